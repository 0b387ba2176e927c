"""Predicted against measured: whole networks, families, kinds and kernels, beside what measuring itself disagrees by.

What is measured of a network is the median over rounds of its latency with the machine's drift cancelled: each round's
latency is scaled by the usual latency of a reference graph over the reference's latency beside that round. A prediction
is of the machine as it was when its predictor was measured, not of the minute or the day in which a network happened to
run: where the campaign's usual reference is known, and the machine is the same, it is that one. Latencies as they were
measured stand beside (`raw_`).

The noise floor is told in the measures of the error: every round in turn taken as a prediction of the median of the
others, and averaged. A perfect prediction would lie below that floor, because its yardstick is the median of all
rounds: of three rounds with equal and independent noise, at about 0.55 of it.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from pathlib import Path

from latpred.collect.noise import SMALL_S
from latpred.collect.ort import OrtRunner
from latpred.collect.processor import identify
from latpred.collect.rounds import Measurements, Step, measure_rounds
from latpred.collect.runner import RunPlan
from latpred.collect.surroundings import memory_limit_bytes
from latpred.collect.weights import runnable
from latpred.comparison import (
    Compared,
    KernelMiss,
    KindErrors,
    compared_with,
    errors_by_kind,
    launches_of,
    measured_again,
    misses_of,
    steady,
)
from latpred.errors import InputError, LatpredError, MeasurementError
from latpred.estimators import LearnedEstimator
from latpred.metrics import Errors, errors_of
from latpred.predictor import Predictor

__all__ = [
    "Compared",
    "KernelMiss",
    "KindErrors",
    "Validation",
    "compare",
    "family_of",
    "load_families",
    "measure",
    "plan_for",
    "predictable",
    "steady",
]

VARIANT = re.compile(r"-b\d+r\d+$")  # another batch size and resolution, as benchmarks/variants.py names it


@dataclass(frozen=True, slots=True)
class Validation:
    """All networks that were both measured and predicted, and why the others were not."""

    device: str
    measured_on: str
    regime: str  # what the predictor has seen of these networks, in words
    compared: tuple[Compared, ...]
    errors: Errors
    raw_errors: Errors  # against latencies as they were measured, drift and all
    noise: Errors | None  # of every round as a prediction of the others, see `measured_again`; None for one round
    by_family: Mapping[str, Errors]
    by_kind: Mapping[str, KindErrors]  # the kind that takes most time first; empty where nothing was profiled
    kernels_above_20us: Errors | None
    coverage: float  # share of networks inside their interval
    width: float  # median over networks
    retest: float  # mean over networks; NaN for one round
    raw_retest: float
    drift: float  # slowest over fastest reference
    machine_ratio: float | None  # usual reference now over the campaign's, to which drift is cancelled
    failed: Mapping[str, str]  # name -> why it was not measured, or in fewer rounds than wanted, or not predicted
    warnings: tuple[str, ...] = ()
    misses: tuple[KernelMiss, ...] = ()  # by shape, the dearest first

    @property
    def noise_ratio(self) -> float:
        """MAPE over that of measuring again, both of the networks that were; NaN where there is none."""
        sizes = [abs(one.error) for one in self.compared if len(one.steady_s) > 1]
        return statistics.fmean(sizes) / self.noise.mape if self.noise and self.noise.mape > 0 else nan


def family_of(name: str, families: Mapping[str, str]) -> str:
    """What `families` says, else the part of the name before ``__``; a variant is of its network's family.

    Examples
    --------
    >>> family_of("resnet__18", {}), family_of("vit_s", {"vit_s": "transformers"}), family_of("lstm", {})
    ('resnet', 'transformers', 'lstm')
    >>> family_of("vit_s-b2r224", {"vit_s": "transformers"})
    'transformers'
    """
    if name in families:
        return families[name]
    original = VARIANT.sub("", name)
    return families.get(original, original.partition("__")[0])


def load_families(path: Path) -> dict[str, str]:
    """A JSON object: name of a network -> family.

    Raises
    ------
    InputError
        When the file is no such thing.
    """
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: families must be a JSON file ({error}): write network names and families") from error
    if not isinstance(row, dict) or not all(isinstance(family, str) for family in row.values()):
        raise InputError(f'{path}: families must be a JSON object such as {{"resnet18": "resnet"}}: write it so')
    return row


def predictable(
    named: Mapping[str, Path],
    predictor: Predictor,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> tuple[dict[str, Path], dict[str, LatpredError]]:
    """Networks that can be predicted, and why the others cannot; asked first, because measuring takes long.

    Parameters
    ----------
    named : mapping of str to Path
        Name -> model file.
    predictor : Predictor
    dims, shapes : mappings, optional
        As `Predictor.predict` takes them.
    """
    unread: dict[str, LatpredError] = {}
    for name, path in named.items():
        try:
            predictor.predict(path, dims, shapes)
        except LatpredError as error:
            unread[name] = error
    return {name: path for name, path in named.items() if name not in unread}, unread


def plan_for(predictor: Predictor, threads: int | None = None, budget_s: float = 0.3, profile: bool = True) -> RunPlan:
    """How a network is run in each round so that it can be compared: on the predictor's provider, with its threads.

    Parameters
    ----------
    predictor : Predictor
    threads : int, optional
        Of the runtime; those of the predictor by default, 1 where nothing was measured for it.
    budget_s : float
        For the unprofiled runs, and as much again for the profiled ones.
    profile : bool
        Whether the kernels are timed too.

    Examples
    --------
    >>> from latpred.predictor import load
    >>> plan = plan_for(load("rtx3090"), budget_s=0.5)
    >>> plan.threads, plan.latency_budget_s
    (1, 0.5)
    """
    plan = RunPlan(
        threads=threads or 1,
        warmup_runs=3,
        profile=profile,
        min_profiled_runs=8,
        profile_budget_s=budget_s,
        min_latency_runs=9,
        max_latency_runs=200,
        latency_budget_s=budget_s,
        timeout_s=300.0,
        memory_limit_bytes=memory_limit_bytes(),
    )
    if isinstance(predictor.estimator, LearnedEstimator):
        manifest = predictor.estimator.bundle.manifest
        plan = replace(plan, threads=threads or manifest.threads, provider=manifest.provider)
    return plan


def measure(
    named: Mapping[str, Path],
    plan: RunPlan,
    rounds: int = 3,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Callable[[Step], None] = lambda _: None,
) -> Measurements:
    """Measure networks on this machine.

    Parameters
    ----------
    named : mapping of str to Path
        Name -> model file; weights that are missing are drawn at random.
    plan : RunPlan
        See `plan_for`.
    rounds : int
    dims, shapes : mappings, optional
        As `Predictor.predict` takes them.
    progress : callable
        Told after every network of every round.
    """
    return measure_rounds(
        {name: partial(runnable, path, dims, shapes) for name, path in named.items()},
        OrtRunner,
        plan,
        rounds,
        progress,
        processor=identify().label,
        paths={name: str(path) for name, path in named.items()},
    )


def compare(
    measurements: Measurements,
    predictor: Predictor,
    families: Mapping[str, str] | None = None,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Validation:
    """Predict every network that was measured, and tell how far off.

    Parameters
    ----------
    measurements : Measurements
    predictor : Predictor
    families : mapping, optional
        Name -> family; see `family_of`.
    dims, shapes : mappings, optional
        With which the networks were measured.

    Raises
    ------
    MeasurementError
        When no network was both measured and predicted; the text names each with its reason.
    """
    mismatches = _mismatches(measurements, predictor)
    collected_s = None if mismatches else predictor.estimator.reference_s
    usual_s = collected_s or measurements.usual_reference_s
    compared: list[Compared] = []
    failed = dict(measurements.failed)
    for network in measurements.networks:
        try:
            prediction = predictor.predict(network.path, dims, shapes)
        except LatpredError as error:
            failed[network.name] = str(error)
            continue
        compared.append(compared_with(network, prediction, family_of(network.name, families or {}), usual_s))
    if not compared:
        raise MeasurementError(_nothing(failed))
    again = [one for one in compared if len(one.steady_s) > 1]
    by_family: dict[str, list[Compared]] = {}
    for one in compared:
        by_family.setdefault(one.family, []).append(one)
    references_s = [one.reference_s for network in measurements.networks for one in network.rounds]
    launches = list(launches_of(compared))
    large = [(predicted_s, measured_s) for _, predicted_s, measured_s in launches if measured_s >= SMALL_S]
    misses = sorted(misses_of(compared, by_shape=True), key=lambda miss: -miss.share_of_error)
    return Validation(
        device=predictor.device,
        measured_on=_measured_on(measurements),
        regime=_regime(predictor),
        compared=tuple(compared),
        errors=_errors(compared),
        raw_errors=errors_of([one.prediction.latency_s for one in compared], [one.raw_measured_s for one in compared]),
        noise=measured_again([one.steady_s for one in compared]),
        by_family={family: _errors(members) for family, members in sorted(by_family.items())},
        by_kind=errors_by_kind(compared),
        kernels_above_20us=errors_of(*zip(*large, strict=True)) if large else None,
        coverage=statistics.fmean(one.inside for one in compared),
        width=statistics.median(one.width for one in compared),
        retest=statistics.fmean(one.retest for one in again) if again else nan,
        raw_retest=statistics.fmean(one.raw_retest for one in again) if again else nan,
        drift=max(references_s) / min(references_s),
        machine_ratio=measurements.usual_reference_s / collected_s if collected_s else None,
        failed=failed,
        warnings=(*predictor.warnings, *mismatches),
        misses=tuple(misses),
    )


def _nothing(failed: Mapping[str, str]) -> str:
    reasons = "; ".join(f"{name}: {why}" for name, why in failed.items()) or "there was none"
    return f"one network that can be both measured and predicted is needed at least: {reasons}"


def _errors(compared: Sequence[Compared]) -> Errors:
    return errors_of([one.prediction.latency_s for one in compared], [one.measured_s for one in compared])


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def _measured_on(measurements: Measurements) -> str:
    return (
        f"{measurements.processor}, {measurements.runtime} {measurements.runtime_version}, "
        f"{_threads(measurements.threads)}, {measurements.created}"
    )


def _regime(predictor: Predictor) -> str:
    estimator = predictor.estimator
    if not isinstance(estimator, LearnedEstimator):
        return f"nothing was measured for this predictor: it computes from the numbers of {predictor.device}"
    manifest = estimator.bundle.manifest
    return (
        "no network and no part of one was measured for this predictor: it was fitted on composite graphs "
        f"({manifest.records} records) collected on {manifest.label} and fitted {manifest.created[:10]}; whether "
        "latpred was developed with these families in view, only its README can say"
    )


def _mismatches(measurements: Measurements, predictor: Predictor) -> list[str]:
    """In what the measurements are of something else than the predictor is."""
    if not isinstance(predictor.estimator, LearnedEstimator):
        return []
    manifest = predictor.estimator.bundle.manifest
    pairs = (
        ("processor", manifest.processor, measurements.processor),
        ("runtime", f"{manifest.runtime} {manifest.runtime_version}",
         f"{measurements.runtime} {measurements.runtime_version}"),
        ("threads", str(manifest.threads), str(measurements.threads)),
        ("provider", manifest.provider, measurements.provider),
    )  # fmt: skip
    return [f"{what}: the predictor is of {of}, measured was {was}" for what, of, was in pairs if of != was]
