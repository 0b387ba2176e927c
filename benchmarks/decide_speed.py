"""What a decision itself costs, beside calling an empty method in the same run.

    python benchmarks/decide_speed.py [MODEL...] [--calls 20000] [--device local] [--home DIR] [--json]

For 4 to 64 points and 2 to 16 options: `Gate.decide` and `Gate.observe` (point by number), `Gate.begin` and
`Gate.finish`, one call each timed by itself, the cost of reading the timer taken off; the making of a gate; the bytes
of the table. Wanted, at 16 points of 8 options: decide in 1 us (median) and 5 us (p99), observe in 2 us.

For each model named: the making of its plan, compiling it, its table in bytes, and what its decisions take of an
inference when their code is in the caches. Between the pieces of a real network it is not: `decide_deadlines.py` has
that. Wanted: plan and table of a ResNet-50 in 0.5 s and 1 MB, decisions below 0.1 % of any inference above 1 ms.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from coverage import models
from tabulate import tabulate

import latpred
from latpred.decide.costs import Costs, Duration, OptionCosts, PointCosts
from latpred.decide.gate import Gate
from latpred.decide.table import Table, compile_table
from latpred.predictor import Predictor

SIZES = ((4, 2), (4, 8), (16, 2), (16, 4), (16, 8), (16, 16), (32, 8), (64, 8), (64, 16))
NETWORK_S = 8e-3


class Empty:
    """What calling a method costs at the least."""

    __slots__ = ()

    def decide(self, point: int) -> int:
        """Answer as little as can be."""
        return point


def table_of(points: int, options: int, seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    named = []
    for number in range(points):
        keep_s = float(rng.uniform(0.4, 1.6)) * NETWORK_S / points
        shares = [1.0, *rng.uniform(0.0, 0.95, options - 1).tolist()]
        here = [
            OptionCosts(
                f"o{index}" if index else "keep",
                "channels" if index else "keep",
                Duration(share * keep_s, (0.05 * share * keep_s) ** 2),
                float(share**0.5 * (rng.uniform(0.6, 1.0) if index else 1.0)),
            )
            for index, share in enumerate(shares)
        ]
        named.append(PointCosts(f"p{number}", Duration(0.1 * NETWORK_S / points), tuple(here)))
    return compile_table(Costs("model", "device", tuple(named), Duration(1e-4), shared_spread=0.04, decide_s=5e-7))


def timer_s(calls: int) -> float:
    """What reading the timer twice takes by itself."""
    read = time.perf_counter_ns
    spans = []
    for _ in range(calls):
        start = read()
        spans.append(read() - start)
    return statistics.median(spans) * 1e-9


def spans_s(call: Callable[..., object], arguments: Iterable[tuple[object, ...]], timer: float) -> list[float]:
    """Time of each call, in s."""
    read = time.perf_counter_ns
    spans = []
    for given in arguments:
        start = read()
        call(*given)
        spans.append((read() - start) * 1e-9 - timer)
    return spans


def inferences(gate: Gate, calls: int, timer: float) -> dict[str, list[float]]:
    """Times of every call of as many inferences as make `calls` decisions; time left goes from all to none."""
    points = len(gate.points)
    rng = np.random.default_rng(1)
    found: dict[str, list[float]] = {name: [] for name in ("begin", "decide", "observe", "finish")}
    for _ in range(max(1, calls // points)):
        found["begin"] += spans_s(gate.begin, [()], timer)
        load = float(rng.uniform(0.8, 1.6))
        for point in range(points):
            gate.spent(load * NETWORK_S * 1.1 * point / points)
            found["decide"] += spans_s(gate.decide, [(point,)], timer)
            took_s = 1e-4 * float(rng.uniform(0.9, 1.1))
            found["observe"] += spans_s(gate.observe, [(point, took_s)], timer)
        found["finish"] += spans_s(gate.finish, [(load * NETWORK_S,)], timer)
    return found


def measured(points: int, options: int, calls: int) -> dict[str, float]:
    """One row: times in us, the making of a gate in ms, the table in bytes."""
    table = table_of(points, options)
    start = time.perf_counter()
    gate = table.gate(NETWORK_S, 0.99)
    made_s = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        table.save(Path(folder) / "table")
        size = (Path(folder) / "table").stat().st_size
    timer = timer_s(calls)
    found = inferences(gate, calls, timer)
    found["empty"] = spans_s(Empty().decide, [(0,)] * calls, timer)
    row: dict[str, float] = {"points": points, "options": options}
    for name, quantiles in (
        ("empty", (50,)),
        ("decide", (50, 99)),
        ("observe", (50, 99)),
        ("begin", (50,)),
        ("finish", (50,)),
    ):
        for quantile in quantiles:
            row[f"{name} p{quantile} us"] = float(np.percentile(found[name], quantile)) * 1e6
    row["gate ms"] = made_s * 1e3
    row["table bytes"] = size
    return row


def planned(path: Path, predictor: Predictor, calls: int) -> dict[str, float | str]:
    """One row for a real model; what decisions take is in percent of its latency."""
    start = time.perf_counter()
    plan = predictor.plan(path)
    made = time.perf_counter()
    row: dict[str, float | str] = {
        "model": path.stem,
        "latency ms": 1e3 * plan.latency_s,
        "plan ms": 1e3 * (made - start),
    }
    if plan.costs is None:
        return {**row, "mounted": 0}
    table = plan.compile()
    compiled = time.perf_counter()
    found = inferences(table.gate(plan.latency_s, 0.95), calls, timer_s(calls))
    inference_s = len(table.points) * sum(statistics.median(found[name]) for name in ("decide", "observe"))
    inference_s += sum(statistics.median(found[name]) for name in ("begin", "finish"))
    return {
        **row,
        "mounted": len(table.points),
        "options": sum(map(len, table.options)),
        "compile ms": 1e3 * (compiled - made),
        "table bytes": table.nbytes,
        "decisions us": 1e6 * inference_s,
        "of the latency %": 100 * inference_s / plan.latency_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--device", default="local")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--calls", type=int, default=20_000, help="decisions timed for each size")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    gc.disable()  # an engine's own pauses are not the gate's
    sizes = [measured(points, options, arguments.calls) for points, options in SIZES]
    predictor = latpred.load(arguments.device, home=arguments.home) if arguments.paths else None
    named = [planned(path, predictor, arguments.calls) for path in models(arguments.paths) if predictor]
    if arguments.json:
        print(json.dumps({"sizes": sizes, "models": named}, indent=1))
        return
    print(tabulate(sizes, headers="keys", floatfmt=".2f"))
    if named:
        print(f"\n{tabulate(named, headers='keys', floatfmt='.2f')}")


if __name__ == "__main__":
    main()
