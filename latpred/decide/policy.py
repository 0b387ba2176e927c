"""Policies as thresholds: for each point, from how much time left on which option is the best.

Everything slow is done here, once for a gate. What is left for the hot path is one search in a sorted list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from latpred.decide.chain import Chain, chain_of
from latpred.decide.table import Table, Utilities
from latpred.decide.ways import Margin, Ways, fastest_on, ways_on

__all__ = ["POLICIES", "Configuration", "Plan", "pareto"]

FRONT_LIMIT = 4096


class Plan(NamedTuple):
    """What one point answers, by the time that is left.

    Thresholds are of time at the device's nominal speed, without its margin: the time needed, over the factor between
    time needed and mean of the most useful way. So they hold exactly with the margin of the gate's beginning.
    """

    point: int
    thresholds_s: list[float]  # ascending, length n; empty where the point is not worth deciding
    choices: list[int]  # length n + 1: below the first threshold the fastest, above the last the most useful
    own_variance: float  # relative, of the most useful way
    switch_s: float  # the largest of the point's options


def optimal(chain: Chain, margin: Margin) -> list[Plan]:
    """All points together: the greatest sum of utilities whose time fits."""
    return [_plan(index, ways, chain, margin) for index, ways in enumerate(ways_on(chain, margin))]


def safe_greedy(chain: Chain, margin: Margin) -> list[Plan]:
    """Point by point: the most useful option now such that the fastest way on still fits."""
    return [_plan(index, ways, chain, margin) for index, ways in enumerate(fastest_on(chain, margin))]


POLICIES: dict[str, Callable[[Chain, Margin], list[Plan]]] = {"optimal": optimal, "safe-greedy": safe_greedy}


def _plan(index: int, ways: Ways, chain: Chain, margin: Margin) -> Plan:
    if not chain.decided[index]:
        return Plan(index, [], [0], 0.0, 0.0)
    need_s = margin.need_s(ways.mean_s, ways.variance_s2)
    order = np.lexsort((-ways.utility, need_s))
    utility = ways.utility[order]
    better = np.concatenate([[True], utility[1:] > np.maximum.accumulate(utility)[:-1]])
    steps = order[better]
    options = ways.option[steps].tolist()
    best = steps[-1]
    mean_s = float(ways.mean_s[best])
    own_variance = float(ways.variance_s2[best]) / mean_s**2 if mean_s > 0.0 else 0.0
    thresholds_s = need_s[steps] / margin.factor(own_variance)
    return Plan(
        index, thresholds_s.tolist(), [options[0], *options], own_variance, float(chain.points[index].switch_s.max())
    )


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
    ways = ways_on(steady, Margin(0.0, 0.0), limit)
    first = ways[0]
    order = np.argsort(first.mean_s)
    return tuple(
        Configuration(
            chain.trunk_mean_s[0] + float(first.mean_s[row]),
            float(first.utility[row]),
            _options(table, ways, int(row)),
        )
        for row in order
    )


def _options(table: Table, ways: list[Ways], row: int) -> tuple[str, ...]:
    names = []
    for options, here in zip(table.options, ways, strict=True):
        names.append(options[int(here.option[row])])
        row = int(here.then[row])
        if row < 0:
            break
    return tuple(names)
