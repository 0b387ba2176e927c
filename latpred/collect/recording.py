"""What a record keeps of one measured composite graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from latpred.collect.matching import Matching
from latpred.collect.reference_watch import ReferenceWatch
from latpred.collect.runner import RunResult
from latpred.collect.sample import Configuration
from latpred.collect.surroundings import rounded, surroundings
from latpred.packing import pack_kernel

__all__ = ["measurement_record"]


def measurement_record(
    role: str,
    made: Configuration,
    pace: float,
    weight_bytes: int,
    result: RunResult,
    matching: Matching,
    watch: ReferenceWatch,
) -> dict[str, Any]:
    """JSON-ready values of one measurement.

    Parameters
    ----------
    role : str
        "sample", or "repeat" of one.
    made : Configuration
    pace : float
        How much slower than estimated the machine is.
    weight_bytes : int
        Of the composite.
    result : RunResult
    matching : Matching
        Of its kernels.
    watch : ReferenceWatch
        Whose last timings stand with the record. A record is written as soon as it is measured, so they are of before:
        `reference_s` is their median, `reference_ratio` the very last one over that median.
    """
    return {
        "role": role,
        "configuration": {**made.to_dict(), "target_s": made.target_s, "pace": pace},
        "latency": {name: rounded(value) for name, value in result.summary().items()},
        "kernels": [
            {
                **pack_kernel(replace(kernel, ops=(kernel.name,))),
                "latency_s": rounded(event.latency_s),
                "samples": event.samples,
                "spread": rounded(event.spread, 2),
            }
            for kernel, event in matching.matched
        ],
        "unmatched": [
            {"name": event.name, "op_type": event.op_type, "latency_s": rounded(event.latency_s * event.launches)}
            for event in matching.unmatched
        ],
        "unmeasured": [{"name": kernel.name, "op_type": kernel.op_type} for kernel in matching.unmeasured],
        "weight_bytes": weight_bytes,
        "reference_s": rounded(watch.reference_s),
        "reference_ratio": rounded(watch.ratio),
        "run": {
            "profiled_runs": result.profiled_runs,
            "load_s": rounded(result.load_s),
            "cores": list(result.cores),
            "process": result.process,
            **surroundings(),
        },
    }
