"""Policies as thresholds: for each point, from how much time left on which option is the best.

Everything slow is done here, once for a gate. What is left for the hot path is one search in a sorted list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latpred.decide.chain import Chain, chain_of
from latpred.decide.table import Table, Utilities
from latpred.decide.ways import Margin, Ways, best_after, fastest_after, joined, unbeaten

__all__ = ["POLICIES", "Configuration", "OptionPlan", "PointPlan", "option_plans", "pareto", "plan_of"]

Floats = NDArray[np.float64]

FRONT_LIMIT = 4096


class PointPlan(NamedTuple):
    """What one point answers, by the time that is left.

    Thresholds are of time at the device's nominal speed, without its margin: the time needed, over the factor between
    time needed and mean of the most useful way. So they hold exactly with the margin of the gate's beginning.
    """

    point: int
    thresholds_s: list[float]  # ascending, length n; empty where the point is not worth deciding
    choices: list[int]  # length n + 1: below the first threshold the fastest, above the last the most useful
    own_variance: float  # relative, of the most useful way
    switches_s: list[float]  # of each option; empty where none costs anything


class OptionPlan(NamedTuple):
    """What can follow one option, by the time that is left for both."""

    thresholds_s: list[float]  # ascending, as those of the point's plan
    later: list[float]  # utility of the best that can follow, from each threshold on
    switch_s: float


# What may follow an option: the best of all that fits, or the fastest, so that it is safe to be greedy.
POLICIES: dict[str, Callable[[Chain, Margin], list[Ways]]] = {"optimal": best_after, "safe-greedy": fastest_after}


def plan_of(chain: Chain, index: int, after: Ways, margin: Margin) -> PointPlan:
    """Plan of one point, given the ways that can follow its option."""
    if not chain.decided[index]:
        return PointPlan(index, [], [0], 0.0, [])
    ways = joined(chain, index, after)
    need_s = margin.need_s(ways.mean_s, ways.variance_s2)
    steps = _rising(need_s, ways.utility)
    options = ways.option[steps].tolist()
    own_variance, factor = _factor(ways, int(steps[-1]), margin)
    switches_s = chain.points[index].switch_s
    thresholds_s = (need_s[steps] / factor).tolist()
    return PointPlan(
        index, thresholds_s, [options[0], *options], own_variance, switches_s.tolist() if switches_s.any() else []
    )


def option_plans(chain: Chain, index: int, after: Ways, margin: Margin) -> list[OptionPlan]:
    """Plans of the options of one point, whatever these are worth."""
    ways = joined(chain, index, after)
    need_s = margin.need_s(ways.mean_s, ways.variance_s2)
    best = int(_rising(need_s, ways.utility)[-1])
    factor = _factor(ways, best, margin)[1]
    plans = []
    choices = chain.points[index]
    for option, own, switch_s in zip(choices.option, choices.utility, choices.switch_s, strict=True):
        rows = np.flatnonzero(ways.option == option)
        steps = rows[_rising(need_s[rows], ways.utility[rows])]
        later = (ways.utility[steps] - own).tolist()
        plans.append(OptionPlan((need_s[steps] / factor).tolist(), later, float(switch_s)))
    return plans


def _rising(need_s: Floats, utility: Floats) -> NDArray[np.int64]:
    """Rows that are worth more than all which need no more time, by the time needed."""
    order = np.lexsort((-utility, need_s))
    sorted_utility = utility[order]
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(sorted_utility)[:-1]])
    return order[sorted_utility > best_before]


def _factor(ways: Ways, row: int, margin: Margin) -> tuple[float, float]:
    """Relative variance of a way, and the factor between the time it needs and its mean."""
    mean_s = float(ways.mean_s[row])
    own_variance = float(ways.variance_s2[row]) / mean_s**2 if mean_s > 0.0 else 0.0
    return own_variance, margin.factor(own_variance)


@dataclass(frozen=True, slots=True)
class Configuration:
    """One option for each point that is met, taken in every inference."""

    latency_s: float
    utility: float
    options: tuple[str, ...]  # ends with an option that ends


def pareto(table: Table, utilities: Utilities | None = None, limit: int = FRONT_LIMIT) -> tuple[Configuration, ...]:
    """The configurations that no other one beats in both latency and utility.

    Parameters
    ----------
    table
    utilities
        Point -> option -> what it is worth, complete; None takes the table's own.
    limit
        From any point on, so many ways are kept; the front is exact where none has more, else each is real and
        the front is thinned on a grid of the latency.

    Returns
    -------
    tuple of Configuration
        From the fastest to the most useful; latency of the whole network, with what deciding costs.

    Raises
    ------
    InputError
        When a utility cannot be used.

    Examples
    --------
    >>> from latpred.decide.costs import Costs, Duration, OptionCosts, PointCosts
    >>> from latpred.decide.table import compile_table
    >>> keep, skip = OptionCosts("keep", "keep", Duration(0.25), 1.0), OptionCosts("skip", "skip", Duration(0.0), 0.5)
    >>> points = [PointCosts(name, Duration(0.5), (keep, skip)) for name in "ab"]
    >>> for way in pareto(compile_table(Costs("model", "device", tuple(points), Duration(0.0), 0.03))):
    ...     print(way)
    Configuration(latency_s=1.0, utility=1.0, options=('skip', 'skip'))
    Configuration(latency_s=1.25, utility=1.5, options=('keep', 'skip'))
    Configuration(latency_s=1.5, utility=2.0, options=('keep', 'keep'))
    """
    chain = chain_of(table, table.utility_of(utilities))
    steady = replace(
        chain,
        points=tuple(
            replace(point, variance_s2=np.zeros_like(point.variance_s2), switch_s=np.zeros_like(point.switch_s))
            for point in chain.points
        ),
        trunk_variance_s2=(0.0,) * len(chain.trunk_variance_s2),
    )
    nothing = Margin(0.0, 0.0)
    after = best_after(steady, nothing, limit)
    first = unbeaten(steady, 0, after[0], nothing, limit)
    order = np.argsort(first.mean_s)
    return tuple(
        Configuration(
            chain.trunk_mean_s[0] + float(first.mean_s[row]),
            float(first.utility[row]),
            _options(table, [first, *after], int(row)),
        )
        for row in order
    )


def _options(table: Table, ways: list[Ways], row: int) -> tuple[str, ...]:
    names = []
    for options, here in zip(table.options, ways, strict=False):
        names.append(options[int(here.option[row])])
        row = int(here.then[row])
        if row < 0:
            break
    return tuple(names)
