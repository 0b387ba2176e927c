"""Costs of decisions, small enough to be worked out by hand, or drawn at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import expm1, sqrt
from statistics import NormalDist

import numpy as np

from latpred.decide.costs import Costs, Duration, OptionCosts, PointCosts
from latpred.decide.table import Table


def option(
    name: str, mean_s: float, utility: float, spread: float = 0.0, ends: bool = False, switch_s: float = 0.0
) -> OptionCosts:
    level = "keep" if name == "keep" else "exit" if ends else "skip"
    return OptionCosts(name, level, Duration(mean_s, (spread * mean_s) ** 2), utility, ends, switch_s, peak_bytes=1000)


def costs(
    points: Sequence[Sequence[OptionCosts]],
    trunk_s: float = 0.001,
    shared_spread: float = 0.03,
    noise_spread: float = 0.02,
    decide_s: float = 0.0,
    frequency_hz: float | None = None,
) -> Costs:
    named = tuple(PointCosts(f"p{number}", Duration(trunk_s), tuple(options)) for number, options in enumerate(points))
    return Costs("model-1", "device-1", named, Duration(trunk_s), shared_spread, noise_spread, decide_s, frequency_hz)


def random_costs(
    rng: np.random.Generator, points: int, options: int, exits: bool = True, own_spread: float = 0.05
) -> Costs:
    """Costs as of a network of 8 ms or so: what is faster is worth less."""
    whole = []
    for number in range(points):
        keep_s = float(rng.uniform(0.4, 1.6)) * 8e-3 / points
        here = [option("keep", keep_s, 1.0, own_spread)]
        for index in range(1, options):
            share = float(rng.uniform(0.0, 0.95))
            ends = exits and index == options - 1 and number % 3 == 2
            utility = float(rng.uniform(-0.5, 0.9)) * sqrt(share) if not ends else 0.5 * (points - number)
            here.append(option(f"o{index}", share * keep_s, utility, own_spread, ends))
        whole.append(here)
    return costs(whole, trunk_s=2e-4)


@dataclass(frozen=True)
class Way:
    """One path from a point's decision to the end."""

    options: tuple[int, ...]
    mean_s: float
    variance_s2: float
    utility: float

    def need_s(self, z: float, variance: float) -> float:
        return self.mean_s + z * sqrt(self.variance_s2 + variance * self.mean_s**2)


def ways(table: Table, start: int = 0, utility: Sequence[float] | None = None) -> Iterator[Way]:
    """Every path, by brute force."""
    worth = table.utility if utility is None else np.asarray(utility)
    first = table.first_option.tolist()
    for number in range(len(table.options[start])):
        row = first[start] + number
        mean_s, variance_s2 = float(table.mean_s[row]), float(table.variance_s2[row])
        if table.ends[row]:
            yield Way((number,), mean_s, variance_s2, float(worth[row]))
            continue
        mean_s += float(table.trunk_mean_s[start + 1])
        variance_s2 += float(table.trunk_variance_s2[start + 1])
        if start + 1 == len(table.points):
            yield Way((number,), mean_s, variance_s2, float(worth[row]))
            continue
        for rest in ways(table, start + 1, worth):
            yield Way(
                (number, *rest.options),
                mean_s + rest.mean_s,
                variance_s2 + rest.variance_s2,
                float(worth[row]) + rest.utility,
            )


def first_margin(table: Table, confidence: float) -> tuple[float, float]:
    """Multiple and relative variance of a gate that has seen nothing yet."""
    return NormalDist().inv_cdf(confidence), expm1(table.shared_spread**2 + table.noise_spread**2)
