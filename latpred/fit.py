"""Dataset -> predictor: fits every kind, calibrates the sum and its interval on held-out kernels, saves the bundle."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latpred.bundle import Bundle, KindSummary, Manifest
from latpred.calibration import (
    DEFAULT_FLOOR,
    Between,
    Calibration,
    Cutting,
    Launches,
    Spread,
    conformal_multiples,
    fit_between,
    fit_cutting,
    fit_spread,
    kind_spread,
    parts_of,
)
from latpred.device import Device, load_toml
from latpred.errors import ArtefactError
from latpred.estimators import LearnedEstimator
from latpred.forest import Forest
from latpred.kernels.features import FEATURES
from latpred.kernels.fusion import RuleBook, default_rules
from latpred.metrics import Errors, errors_of
from latpred.packing import unpack_kernel
from latpred.regressor import FittedKind, Samples, Settings, fit_kinds, held_out_s
from latpred.store import Dataset, KernelSample, Meta

__all__ = [
    "FitReport", "WholeGraph", "errors_by_kind", "fit", "fit_samples", "kernels_at_usual_speed", "relative_speeds",
    "whole_graphs",
]  # fmt: skip

Floats = NDArray[np.float64]

FEWEST_GRAPHS = 10  # composite graphs below which no interval is calibrated on them
QUICK = Settings(trees=60, leaves=15, learning_rate=0.15)
QUICK_ROWS = 800  # of a kind
QUIET = 0.05  # interquartile range over median, of a whole graph's samples
HIGHEST_FLOOR = 0.05  # a campaign that repeated little in a disturbed hour does not say more than this
FURTHEST_SPEED = 1.25  # a reference further off than this was itself disturbed
FURTHEST_SHIFT = 0.05  # held-out graphs may move the scale by so much at most, as a log ratio


@dataclass(frozen=True, slots=True)
class WholeGraph:
    """A composite graph that was timed whole and kernel by kernel."""

    record: int  # its ordinal in the dataset
    kernels_s: float  # sum of its measured kernels
    launches: Launches
    whole_s: float  # without the profiler
    network: bool = True  # made of a network's blocks, as what is to be predicted is


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a fit reached on kernels that it did not see."""

    kinds: tuple[KindSummary, ...]  # slowest first
    graphs: Errors | None  # held-out composite graphs; None where too few were timed whole
    bundle: Bundle


def fit(
    dataset_path: str | os.PathLike[str],
    models_path: str | os.PathLike[str],
    jobs: int = 1,
    settings: Settings | None = None,
) -> FitReport:
    """Fit a dataset's kernels and save the predictor.

    Parameters
    ----------
    dataset_path : path
        Folder that `latpred collect` filled.
    models_path : path
        Folder of the predictor; written anew.
    jobs : int
        Processes; -1 for one a core.
    settings : Settings, optional
        How trees are grown.

    Raises
    ------
    ArtefactError
        When there is no dataset, or it lacks its device.
    InputError
        When nothing was measured.
    """
    folder = Path(dataset_path)
    dataset = Dataset.open(folder)
    rules = RuleBook.load(folder / "rules.toml") if (folder / "rules.toml").is_file() else default_rules()
    report = fit_samples(
        kernels_at_usual_speed(dataset),
        whole_graphs(dataset.samples(), relative_speeds(dataset)),
        _device_of(dataset),
        rules,
        dataset.meta,
        jobs,
        settings,
    )
    manifest = report.bundle.manifest
    cutting = _cutting(LearnedEstimator(report.bundle), dataset.chains())
    calibration = replace(manifest.calibration, cutting=cutting)
    report = replace(report, bundle=replace(report.bundle, manifest=replace(manifest, calibration=calibration)))
    report.bundle.save(Path(models_path))
    return report


def errors_by_kind(dataset: Dataset, jobs: int = 1) -> dict[str, float]:
    """Held-out relative error of each kind, by a quick fit of what is there so far; slow kernels weigh more.

    A kernel weighs with the root of its latency, so that neither many tiny ones nor one giant decide. Of kinds with
    very many rows (views, additions) an even selection is enough.
    """
    members: dict[str, list[KernelSample]] = {}
    for row in dataset.kernels():
        members.setdefault(row.kernel.kind, []).append(row)
    rows = [row for same in members.values() for row in same[:: -(-len(same) // QUICK_ROWS)]]
    if not rows:
        return {}
    samples = _samples_of(rows)
    off = np.abs(held_out_s(samples, _device_of(dataset), QUICK, jobs) / samples.latency_s - 1.0)
    weight = np.sqrt(samples.latency_s)
    kinds = np.array([row.kernel.kind for row in rows])
    return {kind: float(np.average(off[kinds == kind], weights=weight[kinds == kind])) for kind in members}


def relative_speeds(dataset: Dataset) -> dict[int, float]:
    """Record -> how much faster than usual the machine ran the reference graph then; latencies are multiplied by it.

    What was measured while the clock was low, or a neighbour busy, is so taken to the campaign's usual speed.
    Records without a reference, or with one that was disturbed itself, are left out.
    """
    usual_s = dataset.meta.reference_s
    if not usual_s:
        return {}
    speeds = {o: usual_s / record["reference_s"] for o, record in dataset.samples() if record.get("reference_s")}
    return {ordinal: speed for ordinal, speed in speeds.items() if 1 / FURTHEST_SPEED < speed < FURTHEST_SPEED}


def kernels_at_usual_speed(dataset: Dataset) -> list[KernelSample]:
    """Measured kernels of a dataset, each latency times the relative speed of its record."""
    speeds = relative_speeds(dataset)
    return [row._replace(latency_s=row.latency_s * speeds.get(row.record, 1.0)) for row in dataset.kernels()]


def whole_graphs(
    samples: Iterable[tuple[int, Mapping[str, Any]]], speeds: Mapping[int, float] | None = None
) -> list[WholeGraph]:
    """Records with their ordinals -> those that were timed whole in quiet and whose every launch has a kernel."""
    speeds = speeds or {}
    graphs = []
    for ordinal, record in samples:
        whole_s = float(record.get("latency", {}).get("median_s", 0.0))
        kernels = [unpack_kernel(row) for row in record["kernels"]]
        matched_s = sum(
            float(row["latency_s"]) * kernel.repeat for row, kernel in zip(record["kernels"], kernels, strict=True)
        )
        unrest = float(record.get("latency", {}).get("iqr_s", 0.0)) / whole_s if whole_s > 0 else 1.0
        if kernels and not record.get("unmatched") and unrest <= QUIET:
            speed = speeds.get(ordinal, 1.0)
            graphs.append(
                WholeGraph(ordinal, matched_s * speed, Launches.of(kernels), whole_s * speed, _is_network(record))
            )
    return graphs


def _is_network(record: Mapping[str, Any]) -> bool:
    """Whether all sections of a record's graph are blocks of networks."""
    from latpred.collect.templates import TEMPLATES

    names = record.get("configuration", {}).get("templates", ())
    return all(name in TEMPLATES and TEMPLATES[name].network for name in names)


def _samples_of(rows: Sequence[KernelSample]) -> Samples:
    return Samples(
        [row.kernel for row in rows],
        np.array([row.latency_s for row in rows]),
        np.array([row.weight for row in rows]),
        [row.group for row in rows],
        [row.record for row in rows],
    )


def _device_of(dataset: Dataset) -> Device:
    path = dataset.path / "device.toml"
    if not path.is_file():
        raise ArtefactError(f"{dataset.path}: device.toml is needed beside the measurements: run `latpred collect`")
    return load_toml(path)


def fit_samples(
    rows: Sequence[KernelSample],
    graphs: Sequence[WholeGraph],
    device: Device,
    rules: RuleBook,
    meta: Meta,
    jobs: int = 1,
    settings: Settings | None = None,
) -> FitReport:
    """Fit measured kernels; nothing is read or written.

    Parameters
    ----------
    rows : sequence of KernelSample
        Each carries the index of the record that it ran in.
    graphs : sequence of WholeGraph
    device, rules, meta
        What they were measured on.
    jobs, settings
        As in `fit`.
    """
    samples = _samples_of(rows)
    kinds = fit_kinds(samples, device, settings, jobs)
    summaries = sorted((_summary(kind, samples.latency_s) for kind in kinds), key=lambda row: -row.share)
    unseen_s = np.zeros(len(rows))
    spreads: dict[str, float] = {}
    for kind in kinds:
        measured_s = samples.latency_s[kind.members]
        unseen_s[kind.members] = kind.held_out_s
        spreads[kind.kind] = kind_spread(np.log(measured_s / kind.held_out_s), measured_s)
    computing = {row.kernel.inputs[0].dtype for row in rows if row.kernel.inputs and row.kernel.work.macs}
    between, calibration, errors = _calibrate(rows, graphs, unseen_s, spreads, _floor_of(meta))
    manifest = Manifest(
        device=meta.device,
        processor=meta.processor,
        runtime=meta.runtime,
        runtime_version=meta.runtime_version,
        threads=meta.threads,
        provider=meta.provider,
        latpred_version=_own_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        records=len({row.record for row in rows}),
        rows=len(rows),
        dtypes=tuple(sorted(computing)),
        kinds={summary.kind: summary for summary in summaries},
        between=between,
        calibration=calibration,
        noise_floor=dict(meta.noise_floor),
        reference_s=meta.reference_s,
    )
    forest = Forest.compile({kind.kind: kind.model for kind in kinds if kind.model}, FEATURES)
    return FitReport(tuple(summaries), errors, Bundle(manifest, forest, device, rules))


def _summary(kind: FittedKind, latency_s: Floats) -> KindSummary:
    measured_s = latency_s[kind.members]
    errors = errors_of(kind.held_out_s, measured_s)
    return KindSummary(
        kind.kind,
        kind.rows,
        kind.groups,
        float(measured_s.sum() / latency_s.sum()),
        kind.learned,
        kind.ratio,
        kind.law,
        errors.median,
        errors.mape,
        errors_of(kind.roofline_s, measured_s).mape,
    )


def _calibrate(
    rows: Sequence[KernelSample],
    graphs: Sequence[WholeGraph],
    unseen_s: Floats,
    spreads: dict[str, float],
    floor: float,
) -> tuple[Between, Calibration, Errors | None]:
    """What lies between kernels, and the interval, on graphs whose every kernel is predicted held out."""
    between = fit_between([g.kernels_s for g in graphs], [g.launches for g in graphs], [g.whole_s for g in graphs])
    members: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault(row.record, []).append(index)
    graphs = [graph for graph in graphs if graph.record in members]
    if len(graphs) < FEWEST_GRAPHS:
        return between, Calibration(Spread(floor), spreads), None
    predicted, measured, parts = [], [], []
    for graph in graphs:
        inside = members[graph.record]
        # Rows of equal kernels were merged: what is predicted of them is carried over to the whole graph.
        all_s = unseen_s[inside] * (graph.kernels_s / sum(rows[i].latency_s for i in inside))
        predicted.append(between.whole_s(float(all_s.sum()), graph.launches))
        measured.append(graph.whole_s)
        parts.append(
            parts_of(
                spreads,
                [rows[i].kernel.kind for i in inside],
                all_s,
                [hash(rows[i].group) for i in inside],
                graph.launches.number,
            )
        )
    shift = float(np.clip(np.median(np.log(np.divide(measured, predicted))), -FURTHEST_SHIFT, FURTHEST_SHIFT))
    factor = float(np.exp(shift))
    between = between.times(factor)
    predicted = [value * factor for value in predicted]
    # Chains of one kind of kernel are predicted worse than networks, where errors of many kinds level out.
    alike = np.array([graph.network for graph in graphs])
    if alike.sum() < FEWEST_GRAPHS:
        alike[:] = True
    log_errors = np.log(np.divide(measured, predicted))
    spread = fit_spread(log_errors[alike], [part for part, a in zip(parts, alike, strict=True) if a], Spread(floor))
    multiples = conformal_multiples(log_errors[alike], np.array([spread.of(part) for part in parts])[alike])
    return between, Calibration(spread, spreads, multiples), errors_of(predicted, measured)


def _cutting(estimator: LearnedEstimator, chains: Iterable[Mapping[str, Any]]) -> Cutting:
    """What chains take more than whole graphs, predicted against measured."""

    def latency_s(rows: Sequence[Mapping[str, Any]]) -> float:
        kernels = [unpack_kernel(row) for row in rows]
        sum_s = sum(e.latency_s * k.repeat for k, e in zip(kernels, estimator.estimate(kernels), strict=True))
        return estimator.between.whole_s(sum_s, Launches.of(kernels))

    predicted, cuts, measured = [], [], []
    for record in chains:
        cycle_bytes = record["cycle_bytes"]
        starts_s = [estimator.device.start_s(cycle_bytes, touched) for touched in record["touched_bytes"]]
        # The prediction of a whole graph holds its one start.
        chain_s = (
            sum(map(latency_s, record["pieces"])) + sum(starts_s) - estimator.device.start_s(cycle_bytes, cycle_bytes)
        )
        predicted.append(chain_s / latency_s(record["whole"]) - 1.0)
        cuts.append(len(record["pieces"]) - 1)
        measured.append(float(np.median(np.divide(record["chain_s"], record["whole_s"]))) - 1.0)
    return fit_cutting(predicted, cuts, measured)


def _floor_of(meta: Meta) -> float:
    """Spread of one measurement of a network: two of them differ by the square root of two times as much."""
    return min(max(DEFAULT_FLOOR, float(meta.noise_floor.get("network", 0.0)) / 2**0.5), HIGHEST_FLOOR)


def _own_version() -> str:
    try:
        return version("latpred")
    except PackageNotFoundError:
        return "uninstalled"
