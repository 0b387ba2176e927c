"""Predicted against measured latency of whole networks, beside baselines on the same measurements.

    python benchmarks/accuracy.py FOLDER_OR_MODEL... [--materialize SCRIPT] [--save measured.json]
    python benchmarks/accuracy.py FOLDER_OR_MODEL... --measured measured.json [--device local] [--home DIR] [--json]

Each network is timed in several processes: all networks once, then all again, so that a slow minute is nobody's own
and the difference between rounds is the noise floor. The measured latency is the median over rounds of each round's
median. Graphs without weights get seeded random ones.

Baselines:

- FLOPs: latency proportional to FLOPs; the factor is the median over the networks of all *other* families;
- FLOPs + traffic: linear in FLOPs, bytes and launches, least relative squares over the networks of other families;
- roofline: the sum of the kernels' three-level roofline times on the predictor's device;
- unfused: the sum of all ops as the file has them, each predicted as its own kernel by the same regressors.

A family is the part of the name before ``__``, or what ``--families families.json`` says.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from coverage import fill_weights, models
from tabulate import tabulate

import latpred
from latpred.collect.ort import OrtRunner
from latpred.collect.runner import RunPlan
from latpred.errors import LatpredError
from latpred.graph import read
from latpred.kernels.detect import detect
from latpred.metrics import Errors, errors_of

Fill = Callable[[onnx.ModelProto], onnx.ModelProto]
Measured = dict[str, list[float]]  # network -> median latency of each round, s


@dataclass(frozen=True, slots=True)
class Row:
    """One network: what was measured, what was predicted, and what the baselines start from."""

    name: str
    family: str
    measured_s: float
    noise: float  # largest relative difference between rounds
    predicted_s: float
    interval_s: tuple[float, float]
    coverage: float
    flops: float
    traffic_bytes: float
    launches: float
    roofline_s: float
    unfused_s: float


def measure(paths: Sequence[Path], rounds: int, fill: Fill, threads: int, budget_s: float) -> Measured:
    """Median latency in s of each network in each round; a new process every few networks."""
    plan = RunPlan(threads=threads, profile=False, min_latency_runs=9, max_latency_runs=200, latency_budget_s=budget_s,
                   warmup_runs=3, timeout_s=300.0)  # fmt: skip
    found: Measured = {}
    for turn in range(rounds):
        with OrtRunner(runs_per_process=5) as runner:
            for index, path in enumerate(paths):
                model = fill(onnx.load(path, load_external_data=False)).SerializeToString()
                try:
                    latency_s = runner.measure(model, plan).latency_s
                except LatpredError as error:
                    print(f"{path.stem}: {error}", file=sys.stderr)
                    continue
                found.setdefault(path.stem, []).append(latency_s)
                progress = f"round {turn + 1}/{rounds} {index + 1}/{len(paths)}"
                print(f"{progress} {path.stem} {latency_s * 1e3:.3f} ms", file=sys.stderr, flush=True)
    return found


def predict(
    paths: Sequence[Path], measured: Measured, families: Mapping[str, str], predictor: latpred.Predictor
) -> list[Row]:
    """Predictions and the ingredients of the baselines."""
    rules = predictor.estimator.rules
    unfused_rules = rules.revised({name: replace(rule, holds=False) for name, rule in rules.rules.items()})
    rows = []
    for path in paths:
        samples = measured.get(path.stem)
        if not samples:
            continue
        try:
            graph = read(path)
            unfused = predictor.predict_kernels(detect(graph, unfused_rules).kernels)
            prediction = predictor.predict(path)
        except LatpredError as error:
            print(f"{path.stem}: {error}", file=sys.stderr)
            continue
        work = [(entry.kernel.work, entry.kernel.repeat) for entry in prediction.kernels]
        rows.append(
            Row(
                path.stem,
                families.get(path.stem, path.stem.partition("__")[0]),
                statistics.median(samples),
                max(samples) / min(samples) - 1,
                prediction.latency_s,
                prediction.interval_s,
                prediction.coverage,
                float(sum(w.flops * repeat for w, repeat in work)),
                float(sum(w.traffic_bytes * repeat for w, repeat in work)),
                float(sum(repeat for _, repeat in work)),
                sum(entry.roofline_s for entry in prediction.kernels),
                sum(entry.latency_s for entry in unfused),
            )
        )
    return rows


def linear_baseline(rows: Sequence[Row], columns: Callable[[Row], tuple[float, ...]]) -> list[float]:
    """Each network by a non-negative linear model of the other families, least relative squares."""
    from scipy.optimize import nnls

    predicted = []
    for row in rows:
        others = [other for other in rows if other.family != row.family] or list(rows)
        design = np.array([columns(other) for other in others]) / np.array([[other.measured_s] for other in others])
        scale = design.max(axis=0)
        scale[scale == 0] = 1.0
        factors, _ = nnls(design / scale, np.ones(len(others)))
        predicted.append(float(np.dot(columns(row), factors / scale)))
    return predicted


def flops_baseline(rows: Sequence[Row]) -> list[float]:
    """Each network's FLOPs times the median s/FLOP of the other families."""
    predicted = []
    for row in rows:
        others = [other for other in rows if other.family != row.family] or list(rows)
        predicted.append(row.flops * statistics.median(other.measured_s / max(other.flops, 1.0) for other in others))
    return predicted


def methods(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Predicted latencies in s by method."""
    return {
        "latpred": [row.predicted_s for row in rows],
        "unfused": [row.unfused_s for row in rows],
        "roofline": [row.roofline_s for row in rows],
        "FLOPs + traffic": linear_baseline(rows, lambda row: (row.flops, row.traffic_bytes, row.launches)),
        "FLOPs": flops_baseline(rows),
    }


def report(rows: Sequence[Row], by_method: Mapping[str, list[float]], errors: Mapping[str, Errors]) -> str:
    """One line a network, worst first, then one a method."""
    measured = [row.measured_s for row in rows]
    baselines = [name for name in by_method if name != "latpred"]
    worst_first = sorted(range(len(rows)), key=lambda i: -abs(rows[i].predicted_s / measured[i] - 1))
    networks = tabulate(
        [
            (
                rows[i].name,
                f"{measured[i] * 1e3:.3f}",
                f"{rows[i].predicted_s * 1e3:.3f}",
                f"{100 * (rows[i].predicted_s / measured[i] - 1):+.1f}",
                "yes" if rows[i].interval_s[0] <= measured[i] <= rows[i].interval_s[1] else "no",
                f"{100 * (rows[i].interval_s[1] - rows[i].interval_s[0]) / rows[i].predicted_s:.0f}",
                f"{100 * rows[i].noise:.1f}",
                *(f"{100 * (by_method[name][i] / measured[i] - 1):+.0f}" for name in baselines),
            )
            for i in worst_first
        ],
        headers=(
            "network", "measured ms", "predicted ms", "error %", "inside", "width %", "rounds differ %",
            *(f"{name} %" for name in baselines),
        ),
        disable_numparse=True,
        colalign=("left", *["right"] * (6 + len(by_method) - 1)),
    )  # fmt: skip
    summary = tabulate(
        [
            (
                name,
                f"{100 * e.mape:.2f}",
                f"{100 * e.median:.2f}",
                f"{100 * e.rmspe:.2f}",
                f"{100 * e.bias:+.2f}",
                f"{100 * e.within_5:.1f}",
                f"{100 * e.within_10:.1f}",
                f"{100 * e.worst:.1f}",
                f"{e.spearman:.4f}",
            )
            for name, e in errors.items()
        ],
        headers=("method", "MAPE %", "median %", "RMSPE %", "bias %", "in 5 %", "in 10 %", "worst %", "Spearman"),
        disable_numparse=True,
        colalign=("left", *["right"] * 8),
    )
    inside = statistics.fmean(low <= row.measured_s <= high for row in rows for low, high in (row.interval_s,))
    width = statistics.median((row.interval_s[1] - row.interval_s[0]) / row.predicted_s for row in rows)
    noise = [row.noise for row in rows]
    return (
        f"{networks}\n\n{summary}\n\n"
        f"{len(rows)} networks of {len({row.family for row in rows})} families; baselines by FLOPs and traffic leave "
        "the network's own family out.\n"
        f"90 % interval: {100 * inside:.1f} % inside, median width {100 * width:.1f} % of the latency; "
        f"rounds differ by {100 * statistics.fmean(noise):.2f} % (mean)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--materialize", type=Path, help="script with a function materialize(model) -> model")
    parser.add_argument("--families", type=Path, help="JSON object: network -> family")
    parser.add_argument("--measured", type=Path, help="latencies that an earlier run saved")
    parser.add_argument("--save", type=Path, help="where to save the measured latencies")
    parser.add_argument("--rounds", type=int, default=2, help="times that every network is measured (default 2)")
    parser.add_argument("--budget", type=float, default=0.5, metavar="S", help="s of runs a network and round")
    parser.add_argument("--device", default="local")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--json", action="store_true", help="print an object instead of tables")
    options = parser.parse_args(arguments)
    paths = models(options.paths)
    if options.measured:
        measured: Measured = json.loads(options.measured.read_text())
    else:
        fill = runpy.run_path(str(options.materialize))["materialize"] if options.materialize else fill_weights
        measured = measure(paths, options.rounds, fill, options.threads or 1, options.budget)
    if options.save:
        options.save.write_text(json.dumps(measured, indent=1))
    families = json.loads(options.families.read_text()) if options.families else {}
    predictor = latpred.load(options.device, options.threads, options.home)
    for warning in predictor.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    rows = predict(paths, measured, families, predictor)
    if not rows:
        print("no network was both measured and predicted", file=sys.stderr)
        return 1
    by_method = methods(rows)
    errors = {name: errors_of(values, [row.measured_s for row in rows]) for name, values in by_method.items()}
    if options.json:
        print(json.dumps({name: e.to_dict() for name, e in errors.items()}, indent=1))
    else:
        print(report(rows, by_method, errors))
    return 0


if __name__ == "__main__":
    sys.exit(main())
