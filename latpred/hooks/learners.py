"""Online learners of the weights of side networks: linear maps of the averages that they read.

Averages are standardised as they come; weights are handed out for averages as they are.

References
----------
Hinton, Vinyals, Dean: Distilling the knowledge in a neural network. arXiv 1503.02531, 2015.
"""

from __future__ import annotations

import numpy as np

from latpred.hooks.sides import Weights
from latpred.tensors import Array

__all__ = ["GateLearner", "HeadLearner", "Scaling"]

BATCH, RATE = 16, 0.03
TRIED = 8  # rows from which on an option's loss is more than a guess


class Scaling:
    """Mean and spread of each channel, of all rows so far."""

    def __init__(self) -> None:
        from sklearn.preprocessing import StandardScaler

        self._scaler = StandardScaler()

    def learned(self, pooled: Array) -> Array:
        """Take rows into account, and scale them."""
        self._scaler.partial_fit(pooled)
        return self.scaled(pooled)

    def scaled(self, pooled: Array) -> Array:
        """Rows of zero mean and unit variance in each channel."""
        return np.asarray(self._scaler.transform(pooled))

    def unscaled(self, matrix: Array, bias: Array) -> Weights:
        """Weights (channels, width) and (width,) that do with rows as they are what these do with scaled ones."""
        own = matrix / self._scaler.scale_[:, None]
        return own, bias - self._scaler.mean_ @ own


class HeadLearner:
    """Learns class scores that agree with the main network: online softmax regression.

    It is scikit-learn's perceptron without a hidden layer. `SGDClassifier` fits each class by itself, which takes as
    many times longer as there are classes: for a thousand of them, 0.6 s a call of 64 rows. What is learned is which
    class the main network answers, and not its probabilities: these help a little where it is sure (one point of
    agreement on handwritten digits), and harm where it is not (two to four).

    Parameters
    ----------
    classes : int
        At least two.
    seed : int

    Examples
    --------
    Two classes that differ in the sign of their first channel:

    >>> pooled = np.random.default_rng(0).standard_normal((200, 3))
    >>> learner = HeadLearner(classes=2)
    >>> for _ in range(20):
    ...     learner.learn(pooled, (pooled[:, 0] <= 0).astype(int))
    >>> matrix, bias = learner.weights()
    >>> float(np.mean((pooled @ matrix + bias).argmax(axis=1) == (pooled[:, 0] <= 0))) > 0.95
    True
    """

    def __init__(self, classes: int, seed: int = 0) -> None:
        from sklearn.neural_network import MLPClassifier

        self._classes = classes
        self._model = MLPClassifier((), batch_size=BATCH, learning_rate_init=RATE, alpha=1e-5, random_state=seed)
        self._scaling = Scaling()
        self._learned = False

    def learn(self, pooled: Array, labels: Array) -> None:
        """One pass over rows: averages (n, channels), and the main network's classes (n,)."""
        self._model.partial_fit(self._scaling.learned(pooled), labels, classes=np.arange(self._classes))
        del self._model.loss_curve_[:-1]  # it grows with each call
        self._learned = True

    def weights(self) -> Weights | None:
        """Matrix (channels, classes) and bias (classes,); None where nothing was learned yet."""
        if not self._learned:
            return None
        matrix, bias = self._model.coefs_[0], self._model.intercepts_[0]
        if self._classes == 2:  # one score stands for both: the difference of the two
            matrix, bias = np.concatenate([-matrix / 2, matrix / 2], axis=1), np.array([-bias[0] / 2, bias[0] / 2])
        return self._scaling.unscaled(matrix, bias)


class GateLearner:
    """Learns what each option of a point costs in agreement: a linear regression an option.

    Parameters
    ----------
    options : int
        Keeping, which costs nothing, is the first.
    seed : int

    Examples
    --------
    The one option costs as much as the first channel says:

    >>> pooled = np.random.default_rng(0).uniform(size=(400, 2))
    >>> learner = GateLearner(options=2)
    >>> for _ in range(20):
    ...     learner.learn(pooled, np.stack([np.full(400, np.nan), pooled[:, 0]], axis=1))
    >>> matrix, bias = learner.weights()
    >>> (np.array([[0.2, 0.5], [0.8, 0.5]]) @ matrix + bias).round(1).tolist()
    [[0.0, 0.2], [0.0, 0.8]]
    """

    def __init__(self, options: int, seed: int = 0) -> None:
        from sklearn.linear_model import SGDRegressor

        self._models = [
            SGDRegressor(alpha=1e-6, eta0=0.5, learning_rate="invscaling", power_t=0.25, random_state=seed + option)
            for option in range(1, options)
        ]
        self._tried = [0] * (options - 1)
        self._scaling = Scaling()

    def learn(self, pooled: Array, losses: Array) -> None:
        """One pass over rows: averages (n, channels), and losses (n, options), NaN where an option was not tried."""
        scaled = self._scaling.learned(pooled) / np.sqrt(pooled.shape[1])  # steps as long whatever the channels
        for index, model in enumerate(self._models):
            known = ~np.isnan(losses[:, index + 1])
            if known.any():
                model.partial_fit(scaled[known], losses[known, index + 1])
                self._tried[index] += int(known.sum())

    def weights(self) -> Weights | None:
        """Matrix (channels, options) and bias (options,) that give losses: NaN of options that were hardly tried.

        None where that is all of them.
        """
        if not any(tried >= TRIED for tried in self._tried):
            return None
        channels = next(len(model.coef_) for model, tried in zip(self._models, self._tried, strict=True) if tried)
        matrix, bias = np.zeros((channels, len(self._models) + 1)), np.zeros(len(self._models) + 1)
        for index, (model, tried) in enumerate(zip(self._models, self._tried, strict=True), start=1):
            if tried >= TRIED:
                matrix[:, index], bias[index] = model.coef_, model.intercept_[0]
            else:
                bias[index] = np.nan
        return self._scaling.unscaled(matrix / np.sqrt(channels), bias)
