"""What the options of a hooked model are worth, measured on what it computes itself; no labels are needed.

An option is worth the probability that it leaves for the network's own answer, less what keeping the point leaves, and
less a price for the time that it takes: so that what harms nobody is done where it is quicker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latpred.decide.points import EXIT
from latpred.decide.table import Table
from latpred.hooks import Hooked
from latpred.hooks.sides import GATE, HEAD

__all__ = ["WRONG", "Values", "charge", "order_of_harm", "prices", "probabilities", "utilities", "values"]

Floats = NDArray[Any]
Values = Mapping[str, Mapping[str, Floats]]  # point -> option -> what it is worth, of each image

WRONG = 1.0  # what another answer than the network's loses


def probabilities(scores: Floats) -> Floats:
    """Softmax over the last axis.

    Examples
    --------
    >>> probabilities(np.array([[0.0, np.log(3.0)]])).round(2).tolist()
    [[0.25, 0.75]]
    """
    grown = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=-1, keepdims=True))


def values(hooked: Hooked, entry: str, images: Floats, deadlines_s: Sequence[float] | None = None) -> Values:
    """Of each option; leaving at an exit whose head is not trained yet is a wrong answer.

    Parameters
    ----------
    hooked : Hooked
        Its model makes scores before the softmax.
    entry : str
        Name of the input.
    images : ndarray
        Its values, one after the other along the first axis.
    deadlines_s : sequence of float, optional
        One an image: an option is taken in the company of what is decided elsewhere under it, where a point behind an
        exit is met all the same. Without it, each is taken alone.
    """
    kept = {point: options[0] for point, options in hooked.options.items()}
    found: dict[str, dict[str, list[float]]] = {
        point: {name: [] for name in own} for point, own in hooked.options.items()
    }
    for number, image in enumerate(images):
        scores = _scores(hooked, entry, image, kept)
        main = int(scores.argmax())
        left = {tuple(kept.values()): float(probabilities(scores)[main])}
        decided = kept
        if deadlines_s is not None:
            decided = kept | dict(hooked.run({entry: image[None]}, deadlines_s[number]).decisions)
        for place, (point, options) in enumerate(hooked.options.items()):
            company = {
                name: kept[name] if before < place and option == EXIT else option
                for before, (name, option) in enumerate(decided.items())
            }
            for option in options:
                ways = company | {point: option}
                if tuple(ways.values()) not in left:
                    altered = probabilities(_scores(hooked, entry, image, ways))
                    left[tuple(ways.values())] = float(altered[main])
                untrained = option == EXIT and not hooked.sides[point, HEAD].current.trained
                stays = left[tuple((company | {point: options[0]}).values())]
                found[point][option].append(-WRONG if untrained else left[tuple(ways.values())] - stays)
    return {point: {name: np.array(rows) for name, rows in own.items()} for point, own in found.items()}


def utilities(found: Values, costs: Mapping[str, Mapping[str, float]] | None = None) -> dict[str, dict[str, float]]:
    """Means over images, less what time costs, as gates take them."""
    return {
        point: {option: float(rows.mean()) - (costs[point][option] if costs else 0.0) for option, rows in own.items()}
        for point, own in found.items()
    }


def prices(table: Table, price_per_s: float) -> dict[str, dict[str, float]]:
    """What the time of each option costs, as predicted: point -> option -> utility."""
    means_s = iter(table.mean_s.tolist())
    return {
        point: {option: price_per_s * next(means_s) for option in options}
        for point, options in zip(table.points, table.options, strict=True)
    }


def charge(hooked: Hooked, costs: Mapping[str, Mapping[str, float]]) -> None:
    """Take what time costs from all that gates say."""
    for (point, role), side in hooked.sides.items():
        if role == GATE and side.weights is not None:
            matrix, bias = side.weights
            hooked.replace(point, role, (matrix, bias - np.array([*costs[point].values()])))


def order_of_harm(found: Values, option: str) -> list[str]:
    """Points that have an option, those first where it costs least.

    Examples
    --------
    >>> order_of_harm({"a": {"skip": np.array([-0.2])}, "b": {"skip": np.array([-0.1])}, "c": {}}, "skip")
    ['b', 'a']
    """
    having = [point for point, options in found.items() if option in options]
    return sorted(having, key=lambda point: -float(found[point][option].mean()))


def _scores(hooked: Hooked, entry: str, image: Floats, forced: Mapping[str, str]) -> Floats:
    (scores,) = hooked.run({entry: image[None]}, forced=forced).outputs.values()
    return np.asarray(scores[0])
