"""A side network and its learner: what it learns from examples, and when new weights take the place of old ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latpred.decide.costs import KEEP
from latpred.decide.table import Table
from latpred.hooks.judging import Quality, better, constant_quality, gate_quality, head_quality, tempered, worth
from latpred.hooks.labelling import Example
from latpred.hooks.learners import GateLearner, HeadLearner
from latpred.hooks.leaving import stakes
from latpred.hooks.sides import GATE, HEAD, Side
from latpred.tensors import Array

if TYPE_CHECKING:
    from latpred.hooks.hooked import Hooked

__all__ = ["Pupil", "Verdict", "most_lost", "pupils_of"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of new weights.

    Attributes
    ----------
    point, role : str
    held_out : int
        Rows that they were judged on.
    before, after : Quality
        Of the weights that ran, and of the new ones.
    replaced : bool
    """

    point: str
    role: str
    held_out: int
    before: Quality
    after: Quality
    replaced: bool


class Pupil(ABC):
    """What heads and gates have in common.

    Attributes
    ----------
    point : str
    options : tuple of int
        Options whose losses are to be looked at.
    enough : float or None
        Of a head: the confidence from which on leaving is right.
    at_stake : float
        Of a gate: the difference of its options' utilities.
    """

    enough: float | None = None
    at_stake: float = 0.0
    options: tuple[int, ...] = ()

    def __init__(self, side: Side) -> None:
        self.side = side
        self.point = side.point

    @abstractmethod
    def learn(self, examples: Sequence[Example]) -> None:
        """One pass over the examples that know of this point."""

    @abstractmethod
    def judged(self, fits: Sequence[Example], judges: Sequence[Example]) -> Verdict | None:
        """Put what was learned in place where it is better; None where that cannot be told yet.

        Parameters
        ----------
        fits, judges : sequences of Example
            Held out: the first to make confidence and margins honest, the second to judge.
        """

    def _decided(self, weights: tuple[Array, Array], rows: int, before: Quality, after: Quality) -> Verdict:
        replaced = better(after, before)
        if replaced:
            self.side.replace(weights)
        return Verdict(self.point, self.side.role, rows, before, after, replaced)


class HeadPupil(Pupil):
    """The head of an exit: learns to agree with the main network."""

    def __init__(self, side: Side, enough: float, seed: int) -> None:
        super().__init__(side)
        self.enough = enough
        self._learner = HeadLearner(side.width, seed)

    def learn(self, examples: Sequence[Example]) -> None:
        """One pass over the examples that know of this point."""
        rows = self._rows(examples)
        if rows is not None:
            self._learner.learn(*rows)

    def judged(self, fits: Sequence[Example], judges: Sequence[Example]) -> Verdict | None:
        """As `Pupil.judged`."""
        weights, fitting, judging = self._learner.weights(), self._rows(fits), self._rows(judges)
        if weights is None or fitting is None or judging is None:
            return None
        weights = tempered(weights, *fitting)
        old = self.side.weights if self.side.current.trained else None
        before = constant_quality(judging[1], self.side.width) if old is None else head_quality(old, *judging)
        return self._decided(weights, len(judging[0]), before, head_quality(weights, *judging))

    def _rows(self, examples: Sequence[Example]) -> tuple[Array, Array] | None:
        known = [one for one in examples if self.point in one.pooled]
        if not known:
            return None
        labels = np.concatenate([one.labels for one in known])
        return _stacked([one.pooled[self.point] for one in known]), labels


class GatePupil(Pupil):
    """A gate: learns what each option costs in agreement, and says what it is worth therefore."""

    def __init__(self, side: Side, utilities: Sequence[float], wrong: float, tolerance: float, seed: int) -> None:
        super().__init__(side)
        self.options = tuple(range(1, side.width))
        self.at_stake = max(utilities) - min(utilities)
        self._utilities, self._wrong, self._tolerance = tuple(utilities), wrong, tolerance
        self._learner = GateLearner(side.width, seed)

    def learn(self, examples: Sequence[Example]) -> None:
        """One pass over the examples that know of this point."""
        rows = self._rows(examples)
        if rows is not None:
            self._learner.learn(*rows)

    def judged(self, fits: Sequence[Example], judges: Sequence[Example]) -> Verdict | None:
        """As `Pupil.judged`."""
        losses, fitting, judging = self._learner.weights(), self._rows(fits), self._rows(judges)
        old = self.side.weights
        if losses is None or fitting is None or judging is None or old is None:
            return None
        weights = worth(losses, self._utilities, self._wrong, self._tolerance, *fitting)
        keep = self._utilities[0]
        before, after = (gate_quality(one, keep, self._wrong, *judging) for one in (old, weights))
        return self._decided(weights, len(judging[0]), before, after)

    def _rows(self, examples: Sequence[Example]) -> tuple[Array, Array] | None:
        known = [one for one in examples if self.point in one.losses]
        if not known:
            return None
        return _stacked([one.pooled[self.point] for one in known]), _stacked([one.losses[self.point] for one in known])


def pupils_of(hooked: Hooked, wrong: float | None, seed: int) -> list[Pupil]:
    """The side networks of a hooked model that can be trained; gates of the caller's own cannot."""
    table = hooked.table
    if table is None:
        return []
    utilities = hooked.utilities
    wrong = hooked.wrong if wrong is None else wrong
    lost = most_lost(table, utilities) if wrong is None else wrong
    exits = stakes(table, table.utility_of(utilities), hooked.foresees, hooked.wrong)
    found: list[Pupil] = []
    for number, point in enumerate(table.points):
        for role in (HEAD, GATE):
            side = hooked.sides.get((point, role))
            if side is None or side.weights is None or side.width < 2:
                continue
            if role == HEAD:
                found.append(HeadPupil(side, exits[number].enough(hooked.tolerance), seed))
            elif lost > 0.0:
                found.append(GatePupil(side, [*utilities[point].values()], lost, hooked.tolerance, seed))
    return found


def most_lost(table: Table, utilities: dict[str, dict[str, float]]) -> float:
    """Utility of keeping everything, over that of the worst that decisions can do together."""
    kept = least = 0.0
    for number in reversed(range(len(table.points))):
        names, first = table.options[number], int(table.first_option[number])
        worths = [utilities[table.points[number]][name] for name in names]
        ends = table.ends[first : first + len(names)].tolist()
        kept += utilities[table.points[number]][KEEP]
        least = min(value if end else value + least for value, end in zip(worths, ends, strict=True))
    return kept - least


def _stacked(arrays: Sequence[Array]) -> Array:
    return np.concatenate(arrays).astype(np.float64)
