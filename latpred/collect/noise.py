"""What a campaign says of its own measurements: how far two of the same composite differ, and the machine's speed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["SMALL_S", "campaign_reference_s", "noise_floor"]

SMALL_S = 20e-6  # kernels below are noisier, and told apart


def noise_floor(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Median relative differences between repetitions and first measurements.

    Parameters
    ----------
    records
        Of a dataset; those of the role "repeat" are compared with the latest sample of the same configuration.

    Returns
    -------
    dict
        `network` (whole graphs), `kernel_above_20us`, `kernel_below_20us`, `repeats` (how many); empty without repeats.

    Examples
    --------
    >>> first = {"configuration": {"seed": [0, 5]}, "latency": {"median_s": 0.010}, "kernels": []}
    >>> noise_floor([first, {**first, "role": "repeat", "latency": {"median_s": 0.0105}}])["network"]
    0.0488
    """
    samples: dict[tuple[int, ...], Mapping[str, Any]] = {}
    networks: list[float] = []
    large: list[float] = []
    small: list[float] = []
    for record in records:
        role = record.get("role", "sample")
        if role not in ("sample", "repeat"):
            continue
        key = tuple(record["configuration"]["seed"])
        if role == "sample":
            samples[key] = record
            continue
        first = samples.get(key)
        if first is None:
            continue
        networks.append(_difference(first["latency"]["median_s"], record["latency"]["median_s"]))
        latencies_s = {kernel["name"]: kernel["latency_s"] for kernel in first["kernels"]}
        for kernel in record["kernels"]:
            before_s = latencies_s.get(kernel["name"])
            if before_s is not None:
                group = large if before_s >= SMALL_S else small
                group.append(_difference(before_s, kernel["latency_s"]))
    if not networks:
        return {}
    floor: dict[str, float] = {"network": _median(networks), "repeats": len(networks)}
    if large:
        floor["kernel_above_20us"] = _median(large)
    if small:
        floor["kernel_below_20us"] = _median(small)
    return floor


def campaign_reference_s(records: Iterable[Mapping[str, Any]]) -> float | None:
    """Usual latency of the reference graph in a campaign, in s: how fast the machine was, an absolute speed.

    Parameters
    ----------
    records
        Of a dataset.

    Returns
    -------
    float or None
        Median of the records' `reference_s`; None where none has it.

    Examples
    --------
    >>> campaign_reference_s([{"reference_s": 0.002}, {"role": "void"}, {"reference_s": 0.003}])
    0.0025
    """
    references_s = [record["reference_s"] for record in records if "reference_s" in record]
    return statistics.median(references_s) if references_s else None


def _difference(first_s: float, second_s: float) -> float:
    return abs(first_s - second_s) / ((first_s + second_s) / 2)


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 4)
