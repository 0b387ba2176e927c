"""What is still to come from a point on: bounds, expectations, and the path that some chooser would take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from latpred.decide.chain import Chain
from latpred.decide.table import Table

__all__ = ["Path", "Planned", "Remaining", "bounds_s", "expected_s", "followed", "probability_within", "times_on"]

_NORMAL = NormalDist()


class Remaining(NamedTuple):
    """Time from a point's decision to the end, in s, at the present slow-down."""

    least_s: float
    most_s: float
    expected_s: float


class Planned(NamedTuple):
    """What a policy would do from some place on, were all times as expected."""

    options: tuple[str, ...]
    latency_s: float  # at the present slow-down
    utility: float
    probability: float  # of meeting the deadline


class Path(NamedTuple):
    """Options from a point to the end, and what they take at nominal speed."""

    options: tuple[int, ...]
    mean_s: float
    variance_s2: float


def bounds_s(chain: Chain) -> list[tuple[float, float]]:
    """Least and most time from each point's decision on, in s.

    Returns
    -------
    list of (float, float), one a point
    """
    least_s = most_s = 0.0
    bounds = []
    for index in reversed(range(len(chain.points))):
        choices, trunk_s = chain.points[index], chain.trunk_mean_s[index + 1]
        least_s = float(np.min(choices.mean_s + ~choices.ends * (trunk_s + least_s)))
        most_s = float(np.max(choices.mean_s + ~choices.ends * (trunk_s + most_s)))
        bounds.append((least_s, most_s))
    return bounds[::-1]


def expected_s(chain: Chain, start: int, shares: Sequence[Mapping[int, float]]) -> float:
    """Expected time from a point's decision on, in s.

    Parameters
    ----------
    chain
    start
        Number of the point.
    shares
        For each point: option -> share of the inferences that get there and take it, 1 together; a point that is
        not worth deciding is kept whatever they say.
    """
    rest_s = 0.0
    for index in reversed(range(start, len(chain.points))):
        choices = chain.points[index]
        times_s = choices.mean_s + ~choices.ends * (chain.trunk_mean_s[index + 1] + rest_s)
        taken = shares[index] if chain.decided[index] else {0: 1.0}
        rest_s = sum(taken.get(option, 0.0) * time_s for option, time_s in enumerate(times_s.tolist()))
    return rest_s


def times_on(table: Table, chain: Chain) -> list[list[tuple[float, bool]]]:
    """For each option of each point: its time with the trunk behind it, in s, and whether it ends the inference."""
    found = []
    for index, (first, names) in enumerate(zip(table.first_option.tolist(), table.options, strict=False)):
        rows = range(first, first + len(names))
        decide_s = table.decide_s if chain.decided[index] else 0.0
        here = []
        for row in rows:
            ends = bool(table.ends[row])
            trunk_s = 0.0 if ends else chain.trunk_mean_s[index + 1]
            here.append((float(table.mean_s[row]) + decide_s + trunk_s, ends))
        found.append(here)
    return found


def followed(
    table: Table,
    chain: Chain,
    choose: Callable[[int, float], int],
    start: int | None = None,
    in_use: Sequence[int] | None = None,
) -> Path:
    """The path that a chooser takes.

    Parameters
    ----------
    table, chain
    choose
        Number of a point, time in s since `start` -> option.
    start
        A point's decision; None is the beginning of an inference, before the first trunk piece.
    in_use
        Option of each point that switching to another one is charged against; None charges nothing.
    """
    mean_s, variance_s2 = (chain.trunk_mean_s[0], chain.trunk_variance_s2[0]) if start is None else (0.0, 0.0)
    options = []
    for index in range(start or 0, len(chain.points)):
        option = choose(index, mean_s)
        options.append(option)
        row = int(table.first_option[index]) + option
        mean_s += float(table.mean_s[row]) + chain.decided[index] * table.decide_s
        variance_s2 += float(table.variance_s2[row])
        if in_use is not None and option != in_use[index]:
            mean_s += float(table.switch_s[row])
        if table.ends[row]:
            break
        mean_s += chain.trunk_mean_s[index + 1]
        variance_s2 += chain.trunk_variance_s2[index + 1]
    return Path(tuple(options), mean_s, variance_s2)


def probability_within(time_s: float, mean_s: float, variance_s2: float, shared_variance: float) -> float:
    """Chance that something ends in time; errors of its own and shared ones are independent and normal.

    Parameters
    ----------
    time_s
        What there is, at nominal speed.
    mean_s, variance_s2
        What is expected, and its own variance.
    shared_variance
        Relative.

    Examples
    --------
    >>> round(probability_within(11.0, 10.0, 0.4**2, 0.03**2), 4)  # two standard deviations
    0.9772
    """
    spread_s = sqrt(variance_s2 + shared_variance * mean_s * mean_s)
    return _NORMAL.cdf((time_s - mean_s) / spread_s) if spread_s > 0.0 else float(time_s >= mean_s)
