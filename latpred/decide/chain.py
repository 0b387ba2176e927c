"""A table with utilities as a chain to search: what can be chosen at each point, and what is not worth choosing.

A decision is worth taking where some option saves more than deciding costs, or is worth more than keeping; everything
else being kept. A point where none does is answered `keep` without looking, and is not charged for a decision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latpred.decide.table import Table

__all__ = ["Chain", "Choices", "chain_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """What can be chosen at one point; all arrays of shape (choices,).

    Attributes
    ----------
    option : ndarray of int64
        Index among the point's options.
    mean_s, variance_s2 : ndarray of float64
        With what the decision itself costs.
    utility, switch_s : ndarray of float64
    ends : ndarray of bool
    """

    option: NDArray[np.int64]
    mean_s: Floats
    variance_s2: Floats
    utility: Floats
    switch_s: Floats
    ends: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Points in order, and the trunk around them.

    Attributes
    ----------
    points : tuple of Choices
    trunk_mean_s, trunk_variance_s2 : tuple of float, length points + 1
        Before each point, and behind the last.
    decided : tuple of bool
        Whether a point is worth deciding.
    """

    points: tuple[Choices, ...]
    trunk_mean_s: tuple[float, ...]
    trunk_variance_s2: tuple[float, ...]
    decided: tuple[bool, ...]


def chain_of(table: Table, utility: Floats) -> Chain:
    """What is left to choose.

    Parameters
    ----------
    table
    utility : ndarray of float64, shape (options of all points,)

    Examples
    --------
    Deciding costs 5 us, skipping saves 4 us: not worth deciding.

    >>> from latpred.decide.costs import Costs, Duration, OptionCosts, PointCosts
    >>> from latpred.decide.table import compile_table
    >>> keep, skip = OptionCosts("keep", "keep", Duration(4e-6), 1.0), OptionCosts("skip", "skip", Duration(0.0), 0.7)
    >>> costs = Costs("m", "d", (PointCosts("p", Duration(0.0), (keep, skip)),), Duration(0.001), 0.03, decide_s=5e-6)
    >>> table = compile_table(costs)
    >>> chain_of(table, table.utility).decided
    (False,)
    """
    trunk_mean_s = table.trunk_mean_s.tolist()
    kept_s, kept_utility = 0.0, 0.0  # of everything behind the point at hand
    points: list[Choices] = []
    decided: list[bool] = []
    for index in reversed(range(len(table.points))):
        rows = slice(int(table.first_option[index]), int(table.first_option[index + 1]))
        goes_on = table.ends[rows] == 0
        total_s = table.mean_s[rows] + goes_on * (trunk_mean_s[index + 1] + kept_s)
        worth = utility[rows] + goes_on * kept_utility
        decide = bool(np.any((total_s[0] - total_s > table.decide_s) | (worth > worth[0])))
        left = slice(None) if decide else slice(1)
        points.append(
            Choices(
                np.arange(len(total_s))[left],
                table.mean_s[rows][left] + (table.decide_s if decide else 0.0),
                table.variance_s2[rows][left],
                utility[rows][left],
                table.switch_s[rows][left],
                ~goes_on[left],
            )
        )
        decided.append(decide)
        kept_s, kept_utility = float(total_s[0]), float(worth[0])
    return Chain(
        tuple(reversed(points)),
        tuple(trunk_mean_s),
        tuple(table.trunk_variance_s2.tolist()),
        tuple(reversed(decided)),
    )
