"""Predicted against measured latency of whole networks, beside baselines on the same measurements.

    python benchmarks/accuracy.py FOLDER_OR_MODEL... [--materialize SCRIPT] [--save measured.json]
    python benchmarks/accuracy.py FOLDER_OR_MODEL... --measured measured.json [--device local] [--home DIR] [--json]

Measured as `latpred validate` does it, but for the profiler (`latpred.collect.rounds`), compared as it does it
(`latpred.validation`): each network in several rounds, with the machine's drift cancelled by a reference graph beside
each. Graphs without weights get seeded random ones.

Baselines:

- FLOPs: latency proportional to FLOPs; the factor is the median over the networks of all *other* families;
- FLOPs + traffic: linear in FLOPs, bytes and launches, least relative squares over the networks of other families;
- roofline: the sum of the kernels' three-level roofline times on the predictor's device;
- unfused: all ops as the file has them, each predicted as its own kernel by the same regressors, and what lies between;
- nn-Meter recipe: random forests on absolute latency from nn-Meter's features, trained on the predictor's dataset
  (`nn_meter.py`); kernels that it has no predictor for count as 0, as published;
- nn-Meter + every kind: the same, with a forest for each of those kinds too;
- another measurement: every round in turn as the prediction of the median of the others, averaged: the noise floor. A
  perfect prediction would lie below it, its yardstick is the median of all rounds.

A family is the part of the name before ``__``, or what ``--families families.json`` says; what `variants.py` made of a
network is of the network's family.
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
from typing import Any

import numpy as np
import onnx
from coverage import models
from nn_meter import Forests, fit_forests, predictor_of
from tabulate import tabulate

import latpred
from latpred import home as homes
from latpred.calibration import Launches
from latpred.collect import rounds
from latpred.collect.ort import OrtRunner
from latpred.collect.processor import identify
from latpred.collect.weights import runnable
from latpred.comparison import Compared, measured_again
from latpred.errors import LatpredError
from latpred.fit import kernels_at_usual_speed
from latpred.graph import read
from latpred.kernels.detect import detect
from latpred.metrics import Errors, errors_of
from latpred.report.validation import percent, without_nan
from latpred.store import Dataset
from latpred.validation import Validation, compare, load_families, plan_for

OWN, FLOOR = "latpred", "another measurement"


@dataclass(frozen=True, slots=True)
class Row:
    """One network: what was measured and predicted, and what the baselines start from."""

    compared: Compared
    flops: float
    traffic_bytes: float
    launches: float
    roofline_s: float
    unfused_s: float

    @property
    def measured_s(self) -> float:
        """Median of the rounds, drift cancelled."""
        return self.compared.measured_s


@dataclass(frozen=True, slots=True)
class Method:
    """Predictions in s, network by network, and their errors against the drift-cancelled latencies."""

    predicted_s: Sequence[float]  # empty for the noise floor: each round is one
    errors: Errors
    raw_mape: float  # against the latencies as the clock gave them

    @classmethod
    def of(cls, predicted_s: Sequence[float], rows: Sequence[Row]) -> Method:
        """Errors of one method."""
        raw = errors_of(predicted_s, [row.compared.raw_measured_s for row in rows])
        return cls(predicted_s, errors_of(predicted_s, [row.measured_s for row in rows]), raw.mape)


def measure(
    paths: Mapping[str, Path], options: argparse.Namespace, predictor: latpred.Predictor
) -> rounds.Measurements:
    """All networks in rounds, with the predictor's threads unless told; progress goes to the error stream."""
    if options.materialize:
        materialize = runpy.run_path(str(options.materialize))["materialize"]

        def filled(path: Path) -> bytes:
            return bytes(materialize(onnx.load(path, load_external_data=False)).SerializeToString())
    else:
        filled = runnable

    def told(step: rounds.Step) -> None:
        what = step.error if step.latency_s is None else f"{step.latency_s * 1e3:.3f} ms"
        print(f"round {step.round}/{step.rounds} {step.place}/{step.networks} {step.name} {what}", file=sys.stderr)

    def model_of(path: Path) -> Callable[[], bytes]:
        return lambda: filled(path)

    return rounds.measure_rounds(
        {name: model_of(path) for name, path in paths.items()},
        OrtRunner,
        plan_for(predictor, options.threads, options.budget, profile=False),
        options.rounds,
        told,
        processor=identify().label,
        paths={name: str(path) for name, path in paths.items()},
    )


def rows_of(validation: Validation, paths: Mapping[str, Path], predictor: latpred.Predictor) -> list[Row]:
    """The ingredients of the baselines, from the kernels that were predicted."""
    rules, between = predictor.estimator.rules, predictor.estimator.between
    unfused_rules = rules.revised({name: replace(rule, holds=False) for name, rule in rules.rules.items()})
    rows = []
    for compared in validation.compared:
        kernels = compared.prediction.kernels
        unfused = detect(read(paths[compared.name]), unfused_rules).kernels
        unfused_s = sum(entry.latency_s for entry in predictor.predict_kernels(unfused))
        work = [(entry.kernel.work, entry.kernel.repeat) for entry in kernels]
        rows.append(
            Row(
                compared,
                float(sum(w.flops * repeat for w, repeat in work)),
                float(sum(w.traffic_bytes * repeat for w, repeat in work)),
                float(sum(repeat for _, repeat in work)),
                sum(entry.roofline_s for entry in kernels),
                between.whole_s(unfused_s, Launches.of(unfused)),
            )
        )
    return rows


def others_of(row: Row, rows: Sequence[Row]) -> list[Row]:
    """Networks of other families."""
    return [other for other in rows if other.compared.family != row.compared.family]


def linear_baseline(rows: Sequence[Row], columns: Callable[[Row], tuple[float, ...]]) -> list[float]:
    """Each network by a non-negative linear model of the other families, least relative squares."""
    from scipy.optimize import nnls

    predicted_s = []
    for row in rows:
        others = others_of(row, rows)
        design = np.array([columns(other) for other in others]) / np.array([[other.measured_s] for other in others])
        scale = design.max(axis=0)
        scale[scale == 0] = 1.0
        factors, _ = nnls(design / scale, np.ones(len(others)))
        predicted_s.append(float(np.dot(columns(row), factors / scale)))
    return predicted_s


def flops_baseline(rows: Sequence[Row]) -> list[float]:
    """Each network's FLOPs times the median s/FLOP of the other families."""
    return [
        row.flops * statistics.median(other.measured_s / max(other.flops, 1.0) for other in others_of(row, rows))
        for row in rows
    ]


def work_columns(row: Row) -> tuple[float, ...]:
    """FLOPs, bytes and launches: what the linear baseline is linear in."""
    return row.flops, row.traffic_bytes, row.launches


def methods(rows: Sequence[Row], forests: Forests | None) -> dict[str, Method]:
    """Every method on the same networks, but nn-Meter without forests, and those that need a second family."""
    predicted_s: dict[str, Sequence[float]] = {
        OWN: [row.compared.prediction.latency_s for row in rows],
        "unfused": [row.unfused_s for row in rows],
        "roofline": [row.roofline_s for row in rows],
    }
    if len({row.compared.family for row in rows}) > 1:
        predicted_s["FLOPs + traffic"] = linear_baseline(rows, work_columns)
        predicted_s["FLOPs"] = flops_baseline(rows)
    if forests:
        networks = [[entry.kernel for entry in row.compared.prediction.kernels] for row in rows]
        predicted_s["nn-Meter recipe"] = forests.networks_s(networks)
        predicted_s["nn-Meter + every kind"] = forests.networks_s(networks, every_kind=True)
    return {name: Method.of(values, rows) for name, values in predicted_s.items()}


def noise_floor(validation: Validation) -> Method | None:
    """Every round as the prediction of the others, averaged; None where there is one round only."""
    raw = measured_again([one.raw_s for one in validation.compared])
    return Method((), validation.noise, raw.mape) if validation.noise and raw else None


def forests_of(options: argparse.Namespace) -> Forests | None:
    """nn-Meter's forests from the dataset that the predictor was fitted on; None where it is not at hand."""
    found = homes.find_model(options.device, options.threads, options.home)
    folder = found.path.parent.parent / "datasets" / found.path.name if found else None
    if folder is None or not (folder / "meta.json").is_file():
        print(f"nn-Meter is left out: no dataset lies beside the predictor of {options.device}", file=sys.stderr)
        return None
    return fit_forests(kernels_at_usual_speed(Dataset.open(folder)))


def without_predictor(rows: Sequence[Row]) -> float:
    """Share of the predicted kernel time for which nn-Meter has no predictor, mean over networks."""
    shares = []
    for row in rows:
        kernels = row.compared.prediction.kernels
        unknown_s = sum(entry.latency_s for entry in kernels if predictor_of(entry.kernel) is None)
        shares.append(unknown_s / sum(entry.latency_s for entry in kernels))
    return statistics.fmean(shares)


HEADERS = ("method", "MAPE %", "raw MAPE %", "median %", "RMSPE %", "bias %", "in 5 %", "in 10 %", "worst %",
           "Spearman", "Kendall")  # fmt: skip


def summary_table(by_method: Mapping[str, Method]) -> str:
    """One line a method."""
    return tabulate(
        [
            (
                name,
                f"{100 * method.errors.mape:.2f}",
                f"{100 * method.raw_mape:.2f}",
                f"{100 * method.errors.median:.2f}",
                f"{100 * method.errors.rmspe:.2f}",
                f"{100 * method.errors.bias:+.2f}",
                f"{100 * method.errors.within_5:.1f}",
                f"{100 * method.errors.within_10:.1f}",
                f"{100 * method.errors.worst:.1f}",
                f"{method.errors.spearman:.4f}",
                f"{method.errors.kendall:.4f}",
            )
            for name, method in by_method.items()
        ],
        headers=HEADERS,
        disable_numparse=True,
        colalign=("left", *["right"] * (len(HEADERS) - 1)),
    )


def network_table(rows: Sequence[Row], by_method: Mapping[str, Method]) -> str:
    """One line a network, worst first: the prediction, then the error of each baseline."""
    baselines = [name for name in by_method if name not in (OWN, FLOOR)]

    def line(index: int) -> tuple[str, ...]:
        row, compared = rows[index], rows[index].compared
        return (
            compared.name,
            f"{row.measured_s * 1e3:.3f}",
            f"{compared.prediction.latency_s * 1e3:.3f}",
            f"{100 * compared.error:+.1f}",
            "yes" if compared.inside else "no",
            percent(compared.retest),
            *(f"{100 * (by_method[name].predicted_s[index] / row.measured_s - 1):+.0f}" for name in baselines),
        )

    worst_first = sorted(range(len(rows)), key=lambda i: -abs(rows[i].compared.error))
    headers = ("network", "measured ms", "predicted ms", "error %", "inside", "retest %",
               *(f"{name} %" for name in baselines))  # fmt: skip
    return tabulate([line(index) for index in worst_first], headers=headers, disable_numparse=True,
                    colalign=("left", *["right"] * (len(headers) - 1)))  # fmt: skip


def report(rows: Sequence[Row], by_method: Mapping[str, Method], validation: Validation) -> str:
    """Networks, methods, and what the figures mean."""
    return "\n\n".join(
        (
            network_table(rows, by_method),
            summary_table(by_method),
            f"{validation.device}, measured on {validation.measured_on}: {validation.regime}.\n"
            f"{len(rows)} networks of {len({row.compared.family for row in rows})} families; baselines by FLOPs and "
            "traffic leave the network's own family out.\n"
            f"{FLOOR}: every round as the prediction of the median of the others; a perfect prediction would lie below "
            "that, its yardstick is the median of all rounds.\n"
            "Drift is cancelled by the reference graph beside each measurement; raw is as the clock gave it.\n"
            f"90 % interval: {100 * validation.coverage:.1f} % inside, median width {100 * validation.width:.1f} % of "
            f"the latency. Two rounds differ by {percent(validation.retest, 2)} % on average, "
            f"{percent(validation.raw_retest, 2)} % raw; the reference drifted by a factor of {validation.drift:.3f}.\n"
            f"nn-Meter has no predictor for {100 * without_predictor(rows):.1f} % of the kernel time, mean over "
            "networks.",
        )
    )


def to_dict(rows: Sequence[Row], by_method: Mapping[str, Method], validation: Validation) -> dict[str, Any]:
    """The same for programs; shares and errors are fractions, None for what is undefined."""
    found = {
        "networks": len(rows),
        "methods": {name: {**m.errors.to_dict(), "raw_mape": m.raw_mape} for name, m in by_method.items()},
        "interval_coverage": validation.coverage,
        "interval_width": validation.width,
        "retest": validation.retest,
        "raw_retest": validation.raw_retest,
        "drift": validation.drift,
        "failed": dict(validation.failed),
    }
    plain: dict[str, Any] = without_nan(found)
    return plain


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--materialize", type=Path, help="script with a function materialize(model) -> model")
    parser.add_argument("--families", type=Path, help="JSON object: network -> family")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--measured", type=Path, help="latencies that an earlier run saved")
    kept.add_argument("--save", type=Path, help="where to save the measured latencies")
    parser.add_argument("--rounds", type=int, default=3, help="times that every network is measured (default 3)")
    parser.add_argument("--budget", type=float, default=0.3, metavar="S", help="s of runs a network and round")
    parser.add_argument("--device", default="local")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--json", action="store_true", help="print an object instead of tables")
    options = parser.parse_args(arguments)
    paths = rounds.names_of(models(options.paths))
    try:
        if options.save:
            rounds.check_target(options.save)
        predictor = latpred.load(options.device, options.threads, options.home)
        families = load_families(options.families) if options.families else {}
        measurements = (
            rounds.select(rounds.load(options.measured), paths, str(options.measured))
            if options.measured
            else measure(paths, options, predictor)
        )
        if options.save and measurements.networks:
            rounds.save(measurements, options.save)
        validation = compare(measurements, predictor, families)
        for warning in validation.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        for name, why in validation.failed.items():
            print(f"{name}: {why}", file=sys.stderr)
        rows = rows_of(validation, paths, predictor)
        by_method = methods(rows, forests_of(options))
    except LatpredError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if floor := noise_floor(validation):
        by_method[FLOOR] = floor
    print(json.dumps(to_dict(rows, by_method, validation), indent=1, allow_nan=False) if options.json
          else report(rows, by_method, validation))  # fmt: skip
    if measurements.interrupted:
        print("interrupted: networks have fewer rounds than wanted", file=sys.stderr)
    return 1 if validation.failed or measurements.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
