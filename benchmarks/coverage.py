"""How much of what ONNX Runtime executes the detector knows, by time.

    python benchmarks/coverage.py FOLDER_OR_MODEL... [--materialize SCRIPT] [--rules rules.toml] [--missed 15]

For each network: the share of its executed kernel time (the runtime's own profile, one thread) for which the detector
has a kernel of the same op type and shapes. Graphs without weights get random ones: by the function `materialize` of
the given script, else by this one.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from tabulate import tabulate

from latpred.collect.matching import match
from latpred.collect.ort import OrtRunner
from latpred.collect.runner import Runner, RunPlan
from latpred.collect.weights import fill_weights
from latpred.errors import LatpredError
from latpred.graph import read
from latpred.kernels.detect import detect
from latpred.kernels.fusion import RuleBook, default_rules

PLAN = RunPlan(
    min_profiled_runs=3,
    max_profiled_runs=20,
    profile_budget_s=0.5,
    min_latency_runs=1,
    latency_budget_s=0.0,
    warmup_runs=1,
    timeout_s=300.0,
)
MEAN_BAR, WORST_BAR = 0.97, 0.90


@dataclass(frozen=True, slots=True)
class Coverage:
    """One network: the share of time with a kernel, counts, and the missed share by op type."""

    name: str
    share: float
    executed: int
    detected: int
    missed: Counter[str]


def models(paths: Iterable[Path]) -> list[Path]:
    return [model for path in paths for model in (sorted(path.rglob("*.onnx")) if path.is_dir() else [path])]


def coverage(
    path: Path, runner: Runner, rules: RuleBook, fill: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> Coverage:
    """Detect, run and compare one network."""
    model = onnx.load(path, load_external_data=False)
    kernels = detect(read(model), rules).kernels
    result = runner.measure(fill(model).SerializeToString(), PLAN)
    matching = match(kernels, result.kernels)
    total_s = sum(event.latency_s * event.launches for event in result.kernels)
    missed: Counter[str] = Counter()
    for event in matching.unmatched:
        missed[event.op_type] += event.latency_s * event.launches / total_s  # type: ignore[assignment]
    return Coverage(path.stem, matching.matched_share, len(result.kernels), len(kernels), missed)


def report(rows: Sequence[Coverage], worst: int) -> str:
    shares = [row.share for row in rows]
    missed: Counter[str] = Counter()
    for row in rows:
        missed.update(row.missed)
    table = tabulate(
        [
            (row.name, f"{100 * row.share:.2f}", row.executed, row.detected)
            for row in sorted(rows, key=lambda row: row.share)
        ],
        headers=("network", "time covered %", "executed", "detected"),
    )
    lines = [
        table,
        "",
        f"{len(rows)} networks: mean {100 * statistics.fmean(shares):.2f} % (wanted {100 * MEAN_BAR:.0f} %), "
        f"worst {100 * min(shares):.2f} % (wanted {100 * WORST_BAR:.0f} %)",
    ]
    if missed:
        lines += ["", "missed time by op type, % of a network on average:"]
        lines += [f"  {op_type:28s} {100 * share / len(rows):.4f}" for op_type, share in missed.most_common(worst)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--materialize", type=Path, help="script with a function materialize(model) -> model")
    parser.add_argument("--rules", type=Path, help="rule book; default: the one in the package")
    parser.add_argument("--missed", type=int, default=15, help="op types to list")
    options = parser.parse_args(arguments)
    fill = runpy.run_path(str(options.materialize))["materialize"] if options.materialize else fill_weights
    rules = RuleBook.load(options.rules) if options.rules else default_rules()
    rows: list[Coverage] = []
    failures = 0
    with OrtRunner() as runner:
        for path in models(options.paths):
            try:
                rows.append(coverage(path, runner, rules, fill))
            except LatpredError as error:
                failures += 1
                print(f"{path.stem}: {error}", file=sys.stderr)
                continue
            print(f"{rows[-1].name:60s} {100 * rows[-1].share:6.2f} %", file=sys.stderr, flush=True)
    if not rows:
        return 1
    print(report(rows, options.missed))
    passed = statistics.fmean(row.share for row in rows) >= MEAN_BAR and min(row.share for row in rows) >= WORST_BAR
    return 0 if passed and not failures else 1


if __name__ == "__main__":
    sys.exit(main())
