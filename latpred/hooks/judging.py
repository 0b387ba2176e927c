"""Whether new weights are better than those that run: held against examples that nobody learned from.

Before that, what was learned is made honest on other held-out examples: a head's scores are divided by a temperature so
that its confidence is the share of its answers that agree, and an option that a gate finds better than keeping, so that
it would be taken without any need, must have cost no more than the tolerance wherever it was found so.

References
----------
Guo, Pleiss, Sun, Weinberger: On calibration of modern neural networks. ICML 2017 (temperature scaling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latpred.hooks.sides import Weights
from latpred.tensors import Array

__all__ = [
    "LEAST_TRIED", "Quality", "better", "constant_quality", "gate_quality", "head_quality", "softmax", "tempered",
    "worth",
]  # fmt: skip

TEMPERATURES = np.geomspace(1 / 16, 16, 49)
LEAST_PROBABILITY = 1e-7
LEAST_TRIED = 4  # held-out rows, below which nothing is known of an option


@dataclass(frozen=True, slots=True)
class Quality:
    """How good weights are on held-out rows.

    Attributes
    ----------
    error : float
        Of a head the cross-entropy to the main network's best class; of a gate the mean squared error of what it
        says an option loses.
    agreement : float or None
        Of a head the share of rows with the main network's best class; None of a gate.
    """

    error: float
    agreement: float | None = None


def better(new: Quality, old: Quality) -> bool:
    """Whether one may replace the other: a smaller error, and of a head no less agreement.

    Examples
    --------
    >>> better(Quality(0.3, 0.9), Quality(0.4, 0.9)), better(Quality(0.3, 0.89), Quality(0.4, 0.9))
    (True, False)
    """
    agrees = new.agreement is None or old.agreement is None or new.agreement >= old.agreement
    return new.error < old.error and agrees


def softmax(scores: Array) -> Array:
    """Probabilities of rows of scores."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def head_quality(weights: Weights, pooled: Array, labels: Array) -> Quality:
    """Of a head, on averages (n, channels) and the main network's classes (n,)."""
    return _scores_quality(pooled @ weights[0] + weights[1], labels)


def constant_quality(labels: Array, classes: int) -> Quality:
    """Of the best answer that looks at nothing: what a head must be better than to be of any use.

    Examples
    --------
    >>> constant_quality(np.array([0, 0, 0, 1]), classes=3).agreement
    0.75
    """
    shares = np.bincount(labels, minlength=classes) / len(labels)
    return _scores_quality(np.log(np.maximum(shares, LEAST_PROBABILITY))[None].repeat(len(labels), 0), labels)


def tempered(weights: Weights, pooled: Array, labels: Array) -> Weights:
    """The same head, as sure as it agrees with classes (n,): its scores over the temperature of least cross-entropy."""
    scores = pooled @ weights[0] + weights[1]
    # One answer more is counted as wrong than was seen, so that few rows do not make a head sure of all.
    unseen = 1.0 / (len(labels) + 2.0)
    errors = [_smoothed_error(scores / temperature, labels, unseen) for temperature in TEMPERATURES]
    temperature = TEMPERATURES[int(np.argmin(errors))]
    return weights[0] / temperature, weights[1] / temperature


def worth(
    losses: Weights, utilities: Sequence[float], wrong: float, tolerance: float, pooled: Array, known: Array
) -> Weights:
    """Weights of a gate that says utilities, of weights that say what options lose in agreement.

    Parameters
    ----------
    losses : pair of ndarray
        Matrix (channels, options) and bias (options,), NaN where an option is not known.
    utilities : sequence of float, length options
        As the table has them; what is not known, or was hardly tried on held-out rows, keeps its own.
    wrong : float
        Utility that an answer other than the main network's loses.
    tolerance : float
        Utility that an option may lose in expectation, where it is found better than keeping.
    pooled, known : ndarray, shapes (n, channels) and (n, options)
        Held-out averages and losses, NaN where an option was not tried.

    Examples
    --------
    Skipping loses what the channel says; of ten rows that say nothing is lost, all are right:

    >>> losses = np.array([[0.0, 1.0]]), np.array([0.0, -0.05])
    >>> pooled, known = np.zeros((10, 1)), np.array([[np.nan, 0.0]] * 10)
    >>> matrix, bias = worth(losses, [0.2, 0.1], 0.5, 0.05, pooled, known)
    >>> matrix.round(3).tolist(), bias.round(3).tolist()
    ([[0.0, -0.5]], [0.2, 0.225])
    """
    matrix, bias = np.zeros_like(losses[0]), np.array(utilities, np.float64)
    keep = bias[0]
    for option in range(1, len(bias)):
        if np.isnan(losses[1][option]):
            continue
        row, at = losses[0][:, option], losses[1][option]
        tried = ~np.isnan(known[:, option])
        if tried.sum() < LEAST_TRIED:
            continue
        margin = _margin(pooled[tried] @ row + at, known[tried, option], tolerance / wrong)
        matrix[:, option], bias[option] = -wrong * row, keep - wrong * (at + margin)
    return matrix, bias


def gate_quality(weights: Weights, keep: float, wrong: float, pooled: Array, known: Array) -> Quality:
    """Of a gate, on averages (n, channels) and losses (n, options), NaN where an option was not tried."""
    tried = ~np.isnan(known)
    said = (keep - (pooled @ weights[0] + weights[1])) / wrong
    return Quality(float(np.mean((said[tried] - known[tried]) ** 2)))


def _margin(said: Array, lost: Array, tolerance: float) -> float:
    """What to add to losses so that where they are still said to be negative, no more than the tolerance was lost.

    One more loss is counted than was seen, so that few rows prove nothing.
    """
    order = np.argsort(said)
    said = said[order]
    mean = (np.cumsum(lost[order]) + 1.0) / (np.arange(len(said)) + 2.0)
    fine = np.flatnonzero((mean <= tolerance) & (said < 0.0))
    first = int(fine[-1]) + 1 if len(fine) else 0
    return max(0.0, -float(said[first])) if first < len(said) else 0.0


def _smoothed_error(scores: Array, labels: Array, share: float) -> float:
    """Cross-entropy where a share of the labels is any class."""
    said = np.log(np.maximum(softmax(scores), LEAST_PROBABILITY))
    return float(-((1.0 - share) * said[np.arange(len(labels)), labels] + share * said.mean(axis=1)).mean())


def _scores_quality(scores: Array, labels: Array) -> Quality:
    said = softmax(scores)[np.arange(len(labels)), labels]
    error = float(-np.log(np.maximum(said, LEAST_PROBABILITY)).mean())
    return Quality(error, float(np.mean(scores.argmax(axis=1) == labels)))
