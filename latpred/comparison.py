"""One network beside its prediction: drift cancelled, kernels paired, and what its kernels are mispredicted by."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from math import nan

from latpred.collect.matching import match
from latpred.collect.noise import SMALL_S
from latpred.collect.rounds import MeasuredNetwork
from latpred.collect.runner import ProfiledKernel
from latpred.kernels.kernel import Kernel
from latpred.metrics import Errors, errors_of, relative_errors
from latpred.prediction import KernelPrediction, Prediction

__all__ = [
    "Compared",
    "KernelMiss",
    "KindErrors",
    "compared_with",
    "errors_by_kind",
    "launches_of",
    "measured_again",
    "misses_of",
    "retest",
    "steady",
]


@dataclass(frozen=True, slots=True)
class KernelMiss:
    """One kernel of one network, or all kernels of one shape in all of them: predicted beside measured.

    Times are those of the profiled run, with what the profiler adds to each launch, as a predictor learns them.
    """

    kernel: Kernel  # the first of its shape
    count: int
    networks: int
    predicted_s: float
    measured_s: float
    share_of_error: float  # of the absolute misses of all kernels, each taken relative to its network's latency

    @property
    def kind(self) -> str:
        """Kind of the kernel."""
        return self.kernel.kind

    @property
    def label(self) -> str:
        """Kind and epilogue."""
        return self.kernel.label

    @property
    def name(self) -> str:
        """Name of the first such kernel."""
        return self.kernel.name

    @property
    def error_s(self) -> float:
        """Positive where too much was predicted."""
        return self.predicted_s - self.measured_s


@dataclass(frozen=True, slots=True)
class Compared:
    """One network, predicted and measured."""

    name: str
    family: str
    prediction: Prediction
    steady_s: tuple[float, ...]  # latency of each round, drift cancelled
    raw_s: tuple[float, ...]  # as the clock gave it
    kernels: tuple[tuple[KernelPrediction, float | None], ...] = ()  # measured in s; None: the profile has none such
    unmatched_s: float = 0.0  # executed, but no kernel was predicted for it

    @property
    def measured_s(self) -> float:
        """Median over rounds, drift cancelled."""
        return statistics.median(self.steady_s)

    @property
    def raw_measured_s(self) -> float:
        """Median over rounds as the clock gave them."""
        return statistics.median(self.raw_s)

    @property
    def retest(self) -> float:
        """By how much its rounds differ, drift cancelled; NaN for one round."""
        return retest(self.steady_s)

    @property
    def raw_retest(self) -> float:
        """By how much its rounds differ, drift and all; NaN for one round."""
        return retest(self.raw_s)

    @property
    def error(self) -> float:
        """Relative error; positive where too much was predicted."""
        return self.prediction.latency_s / self.measured_s - 1.0

    @property
    def inside(self) -> bool:
        """Whether the interval holds what was measured."""
        low_s, high_s = self.prediction.interval_s
        return low_s <= self.measured_s <= high_s

    @property
    def width(self) -> float:
        """Width of the interval over the predicted latency."""
        low_s, high_s = self.prediction.interval_s
        return (high_s - low_s) / self.prediction.latency_s

    @property
    def worst_kernel(self) -> KernelMiss | None:
        """The kernel that misses by the most seconds; None where none was profiled."""
        return max(misses_of([self], by_shape=False), key=lambda miss: abs(miss.error_s), default=None)


@dataclass(frozen=True, slots=True)
class KindErrors:
    """All kernels of one kind, launch by launch; errors are fractions."""

    count: int
    share: float  # of the measured time of all kernels
    median: float
    mape: float
    above_20us: tuple[float, float] | None  # median and MAPE of those that take 20 us at least; None: there are none


def steady(network: MeasuredNetwork, usual_reference_s: float) -> list[float]:
    """Latency of each round in s with the machine's drift cancelled.

    Parameters
    ----------
    network : MeasuredNetwork
    usual_reference_s : float
        What the reference takes on the machine at its usual speed.

    Examples
    --------
    >>> from latpred.collect.rounds import Round
    >>> slow_minute = Round(latency_s=0.022, iqr_s=0.0, reference_s=0.0033, process=0)
    >>> [round(s, 6) for s in steady(MeasuredNetwork("a", "a.onnx", (slow_minute,)), 0.003)]
    [0.02]
    """
    return [one.latency_s * usual_reference_s / one.reference_s for one in network.rounds]


def retest(latencies_s: Sequence[float]) -> float:
    """Mean absolute difference of all pairs, each relative to its mean; NaN below two latencies.

    Examples
    --------
    >>> round(retest([0.9, 1.1, 1.1]), 4)  # (0.2 + 0.2 + 0) / 3
    0.1333
    """
    pairs = list(combinations(latencies_s, 2))
    return statistics.fmean(abs(a - b) / ((a + b) / 2) for a, b in pairs) if pairs else nan


def measured_again(rounds_s: Sequence[Sequence[float]]) -> Errors | None:
    """What measuring again is off by: every round in turn as the prediction of the median of the others.

    A turn takes one round of each network; each measure is the mean over the turns, so that no round is special.

    Parameters
    ----------
    rounds_s : sequence of sequences of float
        Latencies in s of the rounds of each network. Networks of one round are left out; those of fewer rounds than
        others begin again.

    Returns
    -------
    Errors or None
        None where no network has two rounds.

    Examples
    --------
    >>> again = measured_again([[1.0, 1.0, 1.25], [7.0]])  # 1 against 1.125, twice, and 1.25 against 1
    >>> again.count, round(again.mape, 4)  # (1/9 + 1/9 + 1/4) / 3
    (1, 0.1574)
    """
    again = [list(one) for one in rounds_s if len(one) > 1]
    if not again:
        return None
    turns = []
    for turn in range(max(map(len, again))):
        places = [turn % len(one) for one in again]
        others_s = [statistics.median(one[:i] + one[i + 1 :]) for one, i in zip(again, places, strict=True)]
        turns.append(errors_of([one[i] for one, i in zip(again, places, strict=True)], others_s))
    measures = [field.name for field in fields(Errors)][1:]  # all but the count, which every turn shares
    return Errors(len(again), *(statistics.fmean(getattr(turn, name) for turn in turns) for name in measures))


def compared_with(network: MeasuredNetwork, prediction: Prediction, family: str, usual_reference_s: float) -> Compared:
    """One network beside its prediction, kernel by kernel where it was profiled."""
    matching = match([entry.kernel for entry in prediction.kernels], _typical(network, usual_reference_s))
    measured_s = {id(kernel): event.latency_s for kernel, event in matching.matched}
    profiled = any(one.kernels for one in network.rounds)
    return Compared(
        network.name,
        family,
        prediction,
        tuple(steady(network, usual_reference_s)),
        tuple(one.latency_s for one in network.rounds),
        tuple((entry, measured_s.get(id(entry.kernel))) for entry in prediction.kernels) if profiled else (),
        sum(event.latency_s for event in matching.unmatched),
    )


def _typical(network: MeasuredNetwork, usual_s: float) -> list[ProfiledKernel]:
    """The profiled kernels with all launches of a run as one: the median over rounds, drift cancelled, in s."""
    first: dict[tuple[object, ...], ProfiledKernel] = {}
    found_s: dict[tuple[object, ...], list[float]] = {}
    for one in network.rounds:
        seen: Counter[tuple[object, ...]] = Counter()
        for event in one.kernels:
            described = (event.name, event.op_type, event.inputs, event.outputs)
            seen[described] += 1
            key = (*described, seen[described])
            first.setdefault(key, event)
            found_s.setdefault(key, []).append(event.latency_s * event.launches * usual_s / one.reference_s)
    return [replace(event, latency_s=statistics.median(found_s[key]), launches=1.0) for key, event in first.items()]


def launches_of(compared: Sequence[Compared]) -> Iterator[tuple[KernelPrediction, float, float]]:
    """Every kernel that was both predicted and profiled, with both latencies of one launch in s."""
    for one in compared:
        for entry, measured_s in one.kernels:
            if measured_s is not None:
                yield entry, entry.latency_s / entry.kernel.repeat, measured_s / entry.kernel.repeat


def errors_by_kind(compared: Sequence[Compared]) -> dict[str, KindErrors]:
    """Errors of single launches by kind, the kind that takes most time first."""
    of_kind: dict[str, list[tuple[float, float]]] = {}
    time_s: Counter[str] = Counter()
    for entry, predicted_s, measured_s in launches_of(compared):
        of_kind.setdefault(entry.kernel.kind, []).append((predicted_s, measured_s))
        time_s[entry.kernel.kind] += measured_s * entry.kernel.repeat  # type: ignore[assignment]
    total_s = sum(time_s.values())
    found = {}
    for kind, kind_s in time_s.most_common():
        median, mape = _median_and_mape(of_kind[kind])
        large = [pair for pair in of_kind[kind] if pair[1] >= SMALL_S]
        above = _median_and_mape(large) if large else None
        found[kind] = KindErrors(len(of_kind[kind]), kind_s / total_s, median, mape, above)
    return found


def _median_and_mape(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    sizes = [abs(error) for error in relative_errors(*zip(*pairs, strict=True)).tolist()]
    return statistics.median(sizes), statistics.fmean(sizes)


def misses_of(compared: Sequence[Compared], by_shape: bool) -> list[KernelMiss]:
    """Kernels by what they are mispredicted by; `by_shape` takes equal shapes of all networks together."""
    members: dict[object, list[tuple[Compared, KernelPrediction, float]]] = {}
    for one in compared:
        for entry, measured_s in one.kernels:
            if measured_s is not None:
                kernel = entry.kernel
                shape = (kernel.op_type, kernel.label, kernel.inputs, kernel.outputs, str(kernel.attributes))
                members.setdefault(shape if by_shape else id(entry), []).append((one, entry, measured_s))
    missed = {
        key: sum(abs(entry.latency_s - measured_s) / one.measured_s for one, entry, measured_s in group)
        for key, group in members.items()
    }
    total = sum(missed.values()) or 1.0
    return [
        KernelMiss(
            group[0][1].kernel,
            len(group),
            len({one.name for one, _, _ in group}),
            sum(entry.latency_s for _, entry, _ in group),
            sum(measured_s for _, _, measured_s in group),
            missed[key] / total,
        )
        for key, group in members.items()
    ]
