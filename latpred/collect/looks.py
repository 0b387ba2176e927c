"""Looks at the error while a campaign measures: when they are due, what they cost, and when measuring may stop.

A look is a quick fit of what is there so far. Its errors by kind say where to measure next, and weighed by the kinds'
shares of time they are one number, the validation error. Where look after look brings it down no more, further
measuring is no use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from latpred.collect.refinement import refined_weights, validation_error
from latpred.errors import LatpredError
from latpred.store import Dataset

__all__ = ["ErrorByKind", "Looks"]

ErrorByKind = Callable[[Dataset], Mapping[str, float]]

LEAST_BUDGET_S = 240.0  # below, all of the time goes to breadth
FIRST_SHARE = 0.35  # of the budget, before the first look
FIRST_AT_MOST_S = 315.0
EVERY_S = 180.0
EVERY_AT_LEAST_SHARE = 0.08  # of the budget between looks, where that is longer
EVERY_AT_MOST_SHARE = 0.15  # where `EVERY_S` is more
LAST_SHARE = 0.85  # what is left then is too little to be steered
COST_LIMIT = 0.05  # of the budget, for all looks together
COST_S_PER_RECORD = 0.04  # until a look was timed
RECORDS_TO_LOOK_AT_ONCE = 100  # where a campaign goes on after that many
FLAT_FALL = 0.02  # a look that brought the error down by a smaller share of itself found no progress
FLAT_LOOKS = 3  # in a row, and measuring stops
LEAST_MEASURED_S = 600.0  # before it may stop
UNSTEERED = "measured on in breadth, for a look at the error would have cost too much of the budget: give a longer one"


@dataclass(slots=True)
class Looks:
    """Decides when to look, looks, and tells what came of it.

    Parameters
    ----------
    dataset : Dataset
    error_by_kind : callable
        A quick fit: dataset -> held-out relative error of each kind.
    budget_s : float
    clock : callable, optional
        In s.

    Examples
    --------
    >>> looks = Looks(Dataset, lambda dataset: {}, budget_s=900.0)
    >>> looks.start(records=0)
    >>> looks.due(elapsed_s=300.0, records=200), looks.due(elapsed_s=330.0, records=220)
    (False, True)
    """

    dataset: Dataset
    error_by_kind: ErrorByKind
    budget_s: float
    clock: Callable[[], float] = time.monotonic
    # state
    due_s: float = math.inf  # of the run
    spent_s: float = 0.0
    cost_s_per_record: float = COST_S_PER_RECORD
    validation: list[tuple[float, float]] = field(default_factory=list)  # seconds of the run, validation error
    weights: Mapping[str, float] | None = None  # of the templates; None before the first look
    notices: list[str] = field(default_factory=list)

    def start(self, records: int) -> None:
        """Set the first look, at once where the dataset has many records already."""
        if self.budget_s >= LEAST_BUDGET_S:
            at_once = records >= RECORDS_TO_LOOK_AT_ONCE
            self.due_s = 0.0 if at_once else min(FIRST_SHARE * self.budget_s, FIRST_AT_MOST_S)

    def due(self, elapsed_s: float, records: int) -> bool:
        """Whether to look now; a look whose turn has come but that would cost too much is dropped."""
        if not self.due_s <= elapsed_s <= LAST_SHARE * self.budget_s:
            return False
        self.due_s = elapsed_s + max(
            EVERY_AT_LEAST_SHARE * self.budget_s, min(EVERY_S, EVERY_AT_MOST_SHARE * self.budget_s)
        )
        if self.spent_s + self.cost_s_per_record * records <= COST_LIMIT * self.budget_s:
            return True
        if self.weights is None and UNSTEERED not in self.notices:
            self.notices.append(UNSTEERED)
        return False

    def look(self, elapsed_s: float, records: int) -> None:
        """Fit, and take up the weights and the validation error that come out."""
        start_s = self.clock()
        try:
            errors = self.error_by_kind(self.dataset)
        except LatpredError as error:
            self.due_s = math.inf  # what hinders it now hinders it later
            self.notices.append(f"measured on in breadth, for the errors by kind could not be told: {error}")
            return
        samples = [record for _, record in self.dataset.samples()]
        self.weights = refined_weights(samples, errors)
        self.validation.append((elapsed_s, validation_error(samples, errors)))
        cost_s = self.clock() - start_s
        self.spent_s += cost_s
        self.cost_s_per_record = cost_s / max(1, records)

    def no_longer_falls(self, elapsed_s: float) -> bool:
        """Whether the last looks in a row found no progress, after time enough."""
        return elapsed_s >= LEAST_MEASURED_S and is_flat([error for _, error in self.validation])

    @property
    def last_errors(self) -> str:
        """What `no_longer_falls` has judged, for people: ``5.02 -> 4.99 -> 4.98 -> 4.98 %``."""
        return " -> ".join(f"{100 * error:.2f}" for _, error in self.validation[-FLAT_LOOKS - 1 :]) + " %"


def is_flat(errors: Sequence[float]) -> bool:
    """Whether each of the last `FLAT_LOOKS` errors is down by less than `FLAT_FALL` of the one before it.

    Examples
    --------
    >>> is_flat([0.060, 0.0502, 0.0499, 0.0498, 0.0499])
    True
    >>> is_flat([0.060, 0.0502, 0.0499, 0.0498, 0.0450])
    False
    """
    last = errors[-FLAT_LOOKS - 1 :]
    return len(last) > FLAT_LOOKS and all(after > (1.0 - FLAT_FALL) * before for before, after in pairwise(last))
