"""The multiple-choice knapsack over the points that are left, by dynamic programming from the last point backwards.

A *way* from a point to the end is one option for each point that it meets: a mean, a variance and a utility. From each
point only the ways are kept that no other one beats in all three (variances add, their root does not, so the time
that a way needs cannot stand for both). Where more than `LIMIT` are left, they are put on a grid of the time needed,
and the most useful one of each cell stays: ways stay real, so nothing is promised that cannot be kept, and what is
lost is at most the utility of one cell's width at each point.

References
----------
Kellerer, Pferschy, Pisinger: Knapsack problems, 2004, chapters 11 (multiple choice) and 3.4 (lists of undominated
states).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from latpred.decide.chain import Chain, Choices

__all__ = ["LIMIT", "Margin", "Ways", "best_after", "fastest_after", "joined", "unbeaten"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

TINY_S = 1e-30  # where all ways take the same time
LIMIT = 512  # ways kept from one point: 0.2 % of the range of times a cell


@dataclass(frozen=True, slots=True)
class Margin:
    """What is kept free so that a deadline holds.

    Attributes
    ----------
    z : float
        Standard deviations.
    variance : float
        Relative variance that all pieces share: the predictor's common error, the slow-down, one run against another.
    """

    z: float
    variance: float

    def need_s(self, mean_s: Floats, variance_s2: Floats) -> Floats:
        """Time that must be there: own errors add in quadrature, shared ones linearly.

        Examples
        --------
        >>> import numpy as np
        >>> Margin(2.0, 0.03**2).need_s(np.array([10.0]), np.array([0.4**2])).tolist()  # 10 + 2 * (0.4^2 + 0.3^2)^0.5
        [11.0]
        """
        need: Floats = mean_s + self.z * np.sqrt(variance_s2 + self.variance * mean_s * mean_s)
        return need

    def factor(self, own_variance: float) -> float:
        """Time needed over mean, for a relative variance of its own."""
        return 1.0 + self.z * sqrt(own_variance + self.variance)


@dataclass(frozen=True, slots=True, eq=False)
class Ways:
    """Ways from a point's decision to the end; all arrays of shape (ways,).

    Attributes
    ----------
    mean_s, variance_s2, utility : ndarray of float64
        Of the whole way; without what switching to its first option costs.
    switch_s : ndarray of float64
        What that costs.
    option : ndarray of int64
        What is taken at the point.
    then : ndarray of int64
        Which way of the next point follows; -1 where nothing does.
    """

    mean_s: Floats
    variance_s2: Floats
    utility: Floats
    switch_s: Floats
    option: Indices
    then: Indices

    def at(self, rows: Indices) -> Ways:
        """Some of the ways, in the order given."""
        return Ways(
            self.mean_s[rows],
            self.variance_s2[rows],
            self.utility[rows],
            self.switch_s[rows],
            self.option[rows],
            self.then[rows],
        )


def best_after(chain: Chain, margin: Margin, limit: int = LIMIT) -> list[Ways]:
    """What can follow each point's option: ways from the next point that no other one beats.

    Parameters
    ----------
    chain
    margin
        Times are judged with it where there are too many ways.
    limit
        How many ways are kept from one point; an exact search where no point has more.

    Returns
    -------
    list of Ways, one a point
        Behind the last point there is one way, of no time and no utility.
    """
    found = [_END]
    for index in range(len(chain.points) - 1, 0, -1):
        found.append(unbeaten(chain, index, found[-1], margin, limit))
    return found[::-1]


def fastest_after(chain: Chain, margin: Margin) -> list[Ways]:
    """What can follow each point's option: the fastest way from the next point alone, taken as of no utility.

    Returns
    -------
    list of Ways, one a point
    """
    found = [_END]
    for index in range(len(chain.points) - 1, 0, -1):
        ways = joined(chain, index, found[-1])
        fastest = np.argmin(margin.need_s(ways.mean_s + ways.switch_s, ways.variance_s2))
        found.append(replace(ways.at(np.array([fastest])), utility=np.zeros(1)))
    return found[::-1]


def unbeaten(chain: Chain, index: int, after: Ways, margin: Margin, limit: int = LIMIT) -> Ways:
    """Ways from a point that no other one beats, given those that can follow its option."""
    return _unbeaten(_on_grid(joined(chain, index, after), margin, limit))


def joined(chain: Chain, index: int, after: Ways) -> Ways:
    """Every option of a point with every way that can follow; a later point's switch is charged in full.

    Parameters
    ----------
    chain
    index
        Number of the point.
    after : Ways
        From the next point on, shape (n,).

    Returns
    -------
    Ways, shape (options that end + n * options that do not,)
    """
    mean_s = after.mean_s + after.switch_s + chain.trunk_mean_s[index + 1]
    variance_s2 = after.variance_s2 + chain.trunk_variance_s2[index + 1]
    choices = chain.points[index]
    ending = np.flatnonzero(choices.ends)
    going = np.repeat(np.flatnonzero(~choices.ends), len(mean_s))
    then = np.tile(np.arange(len(mean_s)), len(choices.ends) - len(ending))
    last = _only(choices, ending)
    more = _only(choices, going)
    return Ways(
        np.concatenate([last.mean_s, more.mean_s + mean_s[then]]),
        np.concatenate([last.variance_s2, more.variance_s2 + variance_s2[then]]),
        np.concatenate([last.utility, more.utility + after.utility[then]]),
        np.concatenate([last.switch_s, more.switch_s]),
        np.concatenate([last.option, more.option]),
        np.concatenate([last.then, then]),
    )


_END = Ways(np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1), np.array([-1]), np.array([-1]))


def _only(choices: Choices, rows: Indices) -> Ways:
    return Ways(
        choices.mean_s[rows],
        choices.variance_s2[rows],
        choices.utility[rows],
        choices.switch_s[rows],
        choices.option[rows],
        np.full(len(rows), -1),
    )


def _on_grid(ways: Ways, margin: Margin, limit: int) -> Ways:
    """At most `limit` ways and one: the most useful of each cell of the time needed, and the fastest of all."""
    if len(ways.mean_s) <= limit:
        return ways
    need_s = margin.need_s(ways.mean_s, ways.variance_s2)
    low_s = need_s.min()
    width_s = (need_s.max() - low_s) / limit
    cell = np.minimum((need_s - low_s) / max(width_s, TINY_S), limit - 1).astype(np.int64)
    order = np.lexsort((need_s, -ways.utility, cell))
    first = np.flatnonzero(np.diff(cell[order], prepend=-1))
    return ways.at(np.union1d(order[first], [np.argmin(need_s)]))


def _unbeaten(ways: Ways) -> Ways:
    """Ways that no other one beats or equals in time, variance and utility.

    Only ways that cost the same to switch to are compared: which option is in use is not known here.
    """
    groups = [np.flatnonzero(ways.switch_s == switch_s) for switch_s in np.unique(ways.switch_s)]
    return ways.at(np.concatenate([group[_staircase(ways.at(group))] for group in groups]))


def _staircase(ways: Ways) -> Indices:
    """Rows that no other row beats or equals.

    Sorted by utility, a row can be beaten only by those before it; a staircase of their times and variances is kept.
    """
    order = np.lexsort((ways.variance_s2, ways.mean_s, -ways.utility))
    kept: list[int] = []
    means: list[float] = []
    variances: list[float] = []
    for row, mean_s, variance_s2 in zip(
        order.tolist(), ways.mean_s[order].tolist(), ways.variance_s2[order].tolist(), strict=True
    ):
        place = bisect_right(means, mean_s)
        if place and variances[place - 1] <= variance_s2:
            continue
        end = place
        while end < len(means) and variances[end] >= variance_s2:
            end += 1
        means[place:end] = [mean_s]
        variances[place:end] = [variance_s2]
        kept.append(row)
    return np.array(kept)
