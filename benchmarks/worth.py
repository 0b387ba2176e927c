"""What the options of a hooked model are worth, measured on what it computes itself; no labels are needed.

An option is worth the probability that it leaves for the network's own answer, less what that has when all is kept,
and less a price for the time that it takes: so that what harms nobody is done where it is quicker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def values(hooked: Hooked, entry: str, images: Floats) -> Values:
    """Of each option, taken alone; leaving at an exit whose head is not trained yet is a wrong answer.

    Parameters
    ----------
    hooked : Hooked
        Its model makes scores before the softmax.
    entry : str
        Name of the input.
    images : ndarray
        Its values, one after the other along the first axis.
    """
    kept = {point: options[0] for point, options in hooked.options.items()}
    scores = np.array(list(_scores(hooked, entry, images, kept)))
    main = scores.argmax(axis=1)
    base = probabilities(scores)[np.arange(len(main)), main]
    found: dict[str, dict[str, Floats]] = {}
    for point, (first, *others) in hooked.options.items():
        found[point] = {first: np.zeros(len(main))}
        for option in others:
            if option == EXIT and not hooked.sides[point, HEAD].current.trained:
                found[point][option] = np.full(len(main), -WRONG)
                continue
            altered = np.array(list(_scores(hooked, entry, images, kept | {point: option})))
            found[point][option] = probabilities(altered)[np.arange(len(main)), main] - base
    return found


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


def _scores(hooked: Hooked, entry: str, images: Floats, forced: Mapping[str, str]) -> Iterator[Floats]:
    for image in images:
        (scores,) = hooked.run({entry: image[None]}, forced=forced).outputs.values()
        yield scores[0]
