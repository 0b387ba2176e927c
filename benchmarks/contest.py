"""A contest on the same images: who answers, how all take turns, and who is better than whom.

Nothing here knows how an answer comes about.
"""

from __future__ import annotations

import gc
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from digits import Digits
from numpy.typing import NDArray
from tabulate import tabulate

__all__ = [
    "DEADLINE", "LEVEL", "STATIC", "TOLERANCE", "Answered", "Contender", "Duel", "Given", "answered", "any_deadline",
    "beaten_by", "duel", "measured", "report", "summary",
]  # fmt: skip

STATIC, LEVEL, DEADLINE, TOLERANCE = "static", "level", "deadline", "tolerance"
IN_A_ROW = 10


class Given(NamedTuple):
    """One answer."""

    scores: NDArray[Any]
    latency_s: float
    predicted_s: float
    decisions: Mapping[str, str]


class Contender(Protocol):
    """Whatever answers; `bound` is its deadline in s, or its tolerance."""

    name: str
    group: str
    bound: float | None

    def answer(self, image: NDArray[Any]) -> Given:
        """The scores of one image of shape (1, 1, 32, 32)."""

    def rest(self) -> None:
        """There is time before the next images, for whoever learns."""


@dataclass(frozen=True, slots=True)
class Answered:
    """How a contender answered all images, in their order."""

    name: str
    group: str
    bound: float | None
    right: Sequence[bool]
    agrees: Sequence[bool]  # with the network as it is
    latency_s: Sequence[float]
    predicted_s: Sequence[float]
    decisions: Mapping[str, int] = field(default_factory=dict)  # such as "layer.1: skip" -> how often

    @property
    def accuracy(self) -> float:
        """Share of answers that are right."""
        return statistics.fmean(self.right)

    @property
    def mean_s(self) -> float:
        """Latency on average."""
        return statistics.fmean(self.latency_s)

    def in_time(self, deadline_s: float) -> NDArray[np.bool_]:
        """Of each image, whether the answer was right and came in time."""
        return np.array(self.right, bool) & (np.array(self.latency_s) <= deadline_s)


def measured(contenders: Sequence[Contender], part: Digits, seed: int) -> list[Answered]:
    """All of them on all images; the first contender's answers are those that others agree with."""
    rng = np.random.default_rng(seed)
    given: list[list[Given]] = [[] for _ in contenders]
    gc.collect()
    gc.disable()  # pauses would come from what is recorded here
    try:
        for first in range(0, len(part), IN_A_ROW):
            images = part.images[first : first + IN_A_ROW, None]
            for number in rng.permutation(len(contenders)):
                contenders[number].rest()
                contenders[number].answer(images[-1])
                given[number] += [contenders[number].answer(image) for image in images]
    finally:
        gc.enable()
    main = [int(one.scores.argmax()) for one in given[0]]
    labels = part.labels.tolist()
    return [answered(one, own, labels, main) for one, own in zip(contenders, given, strict=True)]


def answered(contender: Contender, given: Sequence[Given], labels: Sequence[int], main: Sequence[int]) -> Answered:
    """Answers beside labels and the main network's answers."""
    classes = [int(one.scores.argmax()) for one in given]
    return Answered(
        contender.name,
        contender.group,
        contender.bound,
        [found == label for found, label in zip(classes, labels, strict=True)],
        [found == label for found, label in zip(classes, main, strict=True)],
        [one.latency_s for one in given],
        [one.predicted_s for one in given],
        dict(Counter(f"{point}: {option}" for one in given for point, option in one.decisions.items())),
    )


@dataclass(frozen=True, slots=True)
class Duel:
    """A hooked model against the best static point at one deadline; shares of all images."""

    deadline_s: float
    in_time: float  # right and in time, hooked
    met: float
    mean_s: float
    best: str
    best_in_time: float
    error: float  # standard error of the difference, paired

    @property
    def gain(self) -> float:
        """What the hooked model has more."""
        return self.in_time - self.best_in_time

    @property
    def won(self) -> bool:
        """Whether that is more than chance."""
        return self.gain > 2.0 * self.error


def duel(hooked: Answered, static: Sequence[Answered], deadline_s: float) -> Duel:
    """Against the static point that does best at this very deadline."""
    own = hooked.in_time(deadline_s)
    best = max(static, key=lambda one: one.in_time(deadline_s).mean())
    other = best.in_time(deadline_s)
    difference = own.astype(float) - other
    return Duel(
        deadline_s,
        float(own.mean()),
        float(np.mean(np.array(hooked.latency_s) <= deadline_s)),
        hooked.mean_s,
        best.name,
        float(other.mean()),
        float(difference.std() / len(difference) ** 0.5),
    )


def beaten_by(static: Answered, hooked: Sequence[Answered]) -> Answered | None:
    """The quickest of several that are no less accurate, where it takes less time on average."""
    as_accurate = [one for one in hooked if one.accuracy >= static.accuracy and one.mean_s < static.mean_s]
    return min(as_accurate, key=lambda one: one.mean_s, default=None)


def any_deadline(hooked: Sequence[Answered], static: Sequence[Answered]) -> dict[str, float]:
    """Share of answers that are right and in time where each deadline is as likely as the others.

    Hooked models are called what their names begin with: ``plan: deadline 0.2`` is a part of ``plan``.
    """
    shares: dict[str, list[float]] = {}
    for one in hooked:
        assert one.bound is not None
        shares.setdefault(one.name.split(":")[0], []).append(float(one.in_time(one.bound).mean()))
    deadlines_s = sorted({one.bound for one in hooked if one.bound is not None})
    for one in static:
        shares[one.name] = [float(one.in_time(deadline_s).mean()) for deadline_s in deadlines_s]
    return {name: statistics.fmean(own) for name, own in shares.items()}


def summary(found: Sequence[Answered]) -> dict[str, Any]:
    """Plain JSON-ready values; shares, and latencies in ms."""
    groups = {name: [one for one in found if one.group == name] for name in (STATIC, LEVEL, DEADLINE, TOLERANCE)}
    duels = {one.name: duel(one, groups[STATIC], one.bound) for one in groups[DEADLINE] if one.bound is not None}
    deciding = [*groups[DEADLINE], *groups[TOLERANCE]]
    return {
        "images": len(found[0].right),
        "points": [_point(one) for group in (STATIC, LEVEL, TOLERANCE) for one in groups[group]],
        "curve": [_curve(name, one) for name, one in duels.items()],
        "beaten": [_beaten(one, beaten_by(one, deciding)) for one in groups[STATIC]],
        "any_deadline": any_deadline(groups[DEADLINE], groups[STATIC]),
    }


def _point(one: Answered) -> dict[str, Any]:
    measured_s, predicted_s = statistics.median(one.latency_s), statistics.median(one.predicted_s)
    return {
        "name": one.name,
        "group": one.group,
        "accuracy": one.accuracy,
        "agreement": statistics.fmean(one.agrees),
        "mean_ms": 1e3 * one.mean_s,
        "measured_ms": 1e3 * measured_s,
        "predicted_ms": 1e3 * predicted_s,
        "error": predicted_s / measured_s - 1.0,
    }


def _beaten(static: Answered, by: Answered | None) -> dict[str, Any]:
    found = {"name": static.name, "accuracy": static.accuracy, "mean_ms": 1e3 * static.mean_s, "by": None}
    if by is not None:
        found |= {"by": by.name, "its_accuracy": by.accuracy, "its_mean_ms": 1e3 * by.mean_s}
    return found


def _curve(name: str, one: Duel) -> dict[str, Any]:
    own = asdict(one)
    del own["deadline_s"], own["mean_s"]
    return {"name": name, "deadline_ms": 1e3 * one.deadline_s, "mean_ms": 1e3 * one.mean_s, **own,
            "gain": one.gain, "won": one.won}  # fmt: skip


POINTS_HEADER = ("", "accuracy %", "agreement %", "mean ms", "median ms", "predicted ms", "off %")
CURVE_HEADER = ("", "deadline ms", "right and in time %", "met %", "mean ms", "best static", "its %", "gain", "+-", "")


BEATEN_HEADER = ("static", "accuracy %", "mean ms", "hooked", "its %", "its ms")


def report(said: Mapping[str, Any]) -> str:
    """The same for a person."""
    lines = []
    for group in (STATIC, LEVEL, TOLERANCE):
        rows = [
            (
                one["name"], *(f"{100 * one[name]:.1f}" for name in ("accuracy", "agreement")),
                *(f"{one[name]:.3f}" for name in ("mean_ms", "measured_ms", "predicted_ms")),
                f"{100 * one['error']:+.1f}",
            )
            for one in said["points"] if one["group"] == group
        ]  # fmt: skip
        lines += [f"{group}, {said['images']} images", tabulate(rows, POINTS_HEADER, disable_numparse=True), ""]
    rows = [
        (
            one["name"], f"{one['deadline_ms']:.3f}", *(f"{100 * one[name]:.1f}" for name in ("in_time", "met")),
            f"{one['mean_ms']:.3f}", one["best"],
            *(f"{100 * one[name]:.1f}" for name in ("best_in_time", "gain", "error")), "won" if one["won"] else "",
        )
        for one in said["curve"]
    ]  # fmt: skip
    lines += ["all levels together, under a deadline", tabulate(rows, CURVE_HEADER, disable_numparse=True), ""]
    won = [one["name"] for one in said["curve"] if one["won"]]
    lines += [f"more answers right and in time than of every static point: {', '.join(won) or 'never'}", ""]
    rows = []
    for one in said["beaten"]:
        by = (one["by"], f"{100 * one['its_accuracy']:.1f}", f"{one['its_mean_ms']:.3f}") if one["by"] else ("never",)
        rows.append((one["name"], f"{100 * one['accuracy']:.1f}", f"{one['mean_ms']:.3f}", *by))
    lines += ["no less accurate in less time on average", tabulate(rows, BEATEN_HEADER, disable_numparse=True)]
    ranked = sorted(said["any_deadline"].items(), key=lambda pair: -pair[1])
    rows = [(name, f"{100 * share:.1f}") for name, share in ranked]
    lines += ["", tabulate(rows, ("any of the deadlines", "right and in time %"), disable_numparse=True)]
    return "\n".join(lines)
