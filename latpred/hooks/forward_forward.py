"""Forward-forward learning of a head: two forward passes, and updates of each layer by itself.

A layer of rectified units h sees an input with a label beside it. Its goodness is the sum of its squared activities,
g = sum_j h_j^2. One pass sees the main network's label, the positive one; the other a wrong one, the negative. The
layer takes the logistic function of its goodness over a threshold t, p = 1 / (1 + exp(t - g)), for the chance that what
it saw was positive, and follows the gradient of ln p in the first pass and of ln (1 - p) in the second. With e = 1 - p
there and -p here, and x the layer's own input, that is

    dw_j = 2 e h_j x

(h_j is 0 where the rectifier is closed). No error is handed from a layer to the one before it, and the main network is
not looked into at all. What a layer hands on has length one: the next one must find evidence of its own. A class is as
likely as the goodness of all layers is large with its label.

Wrong labels are drawn as often as the network itself would give them; steps are Adam's, each layer its own.

References
----------
Hinton: The forward-forward algorithm: some preliminary investigations. arXiv 2212.13345, 2022 (sections 2 and 3.3).
Kingma, Ba: Adam: a method for stochastic optimization. ICLR 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from latpred.hooks.judging import softmax
from latpred.hooks.learners import Scaling
from latpred.tensors import Array

__all__ = ["ForwardForward", "Layer", "goodness"]

BATCH = 16
RATE, MOMENT, SECOND, TINY = 0.01, 0.9, 0.99, 1e-8
LABEL_LENGTH = 1.0  # of the label beside averages of length one


class Layer:
    """Rectified units with goodness of their own.

    Parameters
    ----------
    inputs, units : int
    rng : numpy.random.Generator
        Of the first weights.
    """

    def __init__(self, inputs: int, units: int, rng: np.random.Generator) -> None:
        self.weight = rng.standard_normal((inputs, units)) / np.sqrt(inputs)
        self.bias = np.zeros(units)
        self.threshold = float(units) / 16
        self._moments = [np.zeros((2, *values.shape)) for values in (self.weight, self.bias)]
        self._steps = 0

    def active(self, x: Array) -> Array:
        """Activities, shape (..., units)."""
        return np.asarray(np.maximum(x @ self.weight + self.bias, 0.0))

    def gradient(self, positive: Array, negative: Array) -> tuple[Array, Array]:
        """Of the mean of ln p and of ln (1 - p), by weights and biases, on two batches of inputs, each (n, inputs)."""
        weight, bias = np.zeros_like(self.weight), np.zeros_like(self.bias)
        for x, wanted in ((positive, 1.0), (negative, 0.0)):
            h = self.active(x)
            error = wanted - 1.0 / (1.0 + np.exp(np.clip(self.threshold - goodness(h), -50.0, 50.0)))
            step = 2.0 * error[:, None] * h / len(x)
            weight += x.T @ step
            bias += step.sum(axis=0)
        return weight, bias

    def learn(self, positive: Array, negative: Array) -> None:
        """One step uphill."""
        self._steps += 1
        gradients = self.gradient(positive, negative)
        for values, gradient, moments in zip((self.weight, self.bias), gradients, self._moments, strict=True):
            moments[0] += (1.0 - MOMENT) * (gradient - moments[0])
            moments[1] += (1.0 - SECOND) * (gradient**2 - moments[1])
            mean, square = moments[0] / (1.0 - MOMENT**self._steps), moments[1] / (1.0 - SECOND**self._steps)
            values += RATE * mean / (np.sqrt(square) + TINY)


class ForwardForward:
    """Learns class scores that agree with the main network, as `HeadLearner` does.

    Parameters
    ----------
    channels, classes : int
    units : sequence of int
        Of each layer.
    seed : int

    Examples
    --------
    The exclusive or of two signs, which no linear head can tell:

    >>> pooled = np.random.default_rng(0).standard_normal((400, 2))
    >>> label = (pooled[:, 0] > 0) ^ (pooled[:, 1] > 0)
    >>> learner = ForwardForward(channels=2, classes=2)
    >>> for _ in range(20):
    ...     learner.learn(pooled, label.astype(int))
    >>> float(np.mean(learner.scores(pooled).argmax(axis=1) == label)) > 0.9
    True
    """

    def __init__(self, channels: int, classes: int, units: Sequence[int] = (64,), seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._classes = classes
        sizes = [channels + classes, *units]
        self._layers = [Layer(*pair, self._rng) for pair in pairwise(sizes)]
        self._scaling = Scaling()

    @property
    def size_bytes(self) -> int:
        """Of weights in single precision."""
        return sum(4 * int(layer.weight.size + layer.bias.size) for layer in self._layers)

    def learn(self, pooled: Array, labels: Array) -> None:
        """One pass over rows: averages (n, channels), and the main network's classes (n,)."""
        scaled = unit(self._scaling.learned(pooled))
        order = self._rng.permutation(len(scaled))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            positive = self._labelled(scaled[rows], labels[rows])
            negative = self._labelled(scaled[rows], self._wrong(scaled[rows], labels[rows]))
            for layer in self._layers:
                layer.learn(positive, negative)
                positive, negative = (unit(layer.active(x)) for x in (positive, negative))

    def scores(self, pooled: Array) -> Array:
        """Goodness of each class, (n, classes), of averages (n, channels)."""
        return self._scores(unit(self._scaling.scaled(pooled)))

    def _scores(self, scaled: Array) -> Array:
        rows = len(scaled)
        labels = np.tile(np.arange(self._classes), rows)
        x = self._labelled(np.repeat(scaled, self._classes, axis=0), labels)
        total = np.zeros(len(x))
        for layer in self._layers:
            h = layer.active(x)
            total += goodness(h)
            x = unit(h)
        return total.reshape(rows, self._classes)

    def _wrong(self, scaled: Array, labels: Array) -> Array:
        """Other labels, drawn as often as the network would give them."""
        shares = softmax(self._scores(scaled)) + 1e-6
        shares[np.arange(len(labels)), labels] = 0.0
        sums = shares.cumsum(axis=1)
        drawn = (sums <= self._rng.uniform(size=(len(sums), 1)) * sums[:, -1:]).sum(axis=1)
        return np.asarray(drawn.clip(max=self._classes - 1))

    def _labelled(self, scaled: Array, labels: Array) -> Array:
        return np.concatenate([scaled, LABEL_LENGTH * np.eye(self._classes)[labels]], axis=1)


def goodness(h: Array) -> Array:
    """Sum of squared activities.

    Examples
    --------
    >>> goodness(np.array([[1.0, 2.0], [0.0, 3.0]])).tolist()
    [5.0, 9.0]
    """
    return np.asarray((h**2).sum(axis=-1))


def unit(h: Array) -> Array:
    """Rows of length one."""
    return np.asarray(h / (np.linalg.norm(h, axis=-1, keepdims=True) + TINY))
