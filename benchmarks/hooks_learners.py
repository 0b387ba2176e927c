"""How well online learners teach a head to agree with a main network: scikit-learn's beside forward-forward learning.

Handwritten digits (scikit-learn's, 8 x 8). The main network: two convolutions with fixed random filters, then a trained
perceptron of one hidden layer on the feature map, averaged over 2 x 2. A head sees the map's averages over all
positions only, and learns from the main network's answers on images that neither of them was trained on; agreement and
cross-entropy are of other images. The same data, order and scaling for all; scores are divided by a temperature fitted
on images that were held out from learning. The reference is a logistic regression fitted to convergence.

Run: ``python benchmarks/hooks_learners.py [--seeds 5] [--json]``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from tabulate import tabulate
from threadpoolctl import threadpool_limits

from latpred.hooks.forward_forward import ForwardForward
from latpred.hooks.judging import head_quality, softmax, tempered
from latpred.hooks.learners import HeadLearner, Scaling
from latpred.tensors import Array

CLASSES, CHANNELS = 10, 64
PASSES = (1, 5, 20)
CHUNK = 64  # rows that are learned from at once, as the trainer does


class Learner(Protocol):
    """What is compared."""

    def learn(self, pooled: Array, labels: Array) -> None:
        """One pass over rows."""

    def scores(self, pooled: Array) -> Array:
        """Class scores, (n, classes)."""

    @property
    def size_bytes(self) -> int:
        """Of weights in single precision."""


class Linear:
    """What the trainer uses: a linear map of the averages."""

    size_bytes = 4 * (CHANNELS + 1) * CLASSES

    def __init__(self, seed: int) -> None:
        self._learner = HeadLearner(CLASSES, seed)
        self.learn = self._learner.learn

    def scores(self, pooled: Array) -> Array:
        """Class scores."""
        weights = self._learner.weights()
        assert weights is not None
        return np.asarray(pooled @ weights[0] + weights[1])


class OfScikitLearn:
    """Another linear learner, on scaled averages."""

    size_bytes = Linear.size_bytes

    def __init__(self, model: Any) -> None:
        self._model, self._scaling = model, Scaling()

    def learn(self, pooled: Array, labels: Array) -> None:
        """One pass, or all at once where the model learns in no other way."""
        scaled = self._scaling.learned(pooled) / np.sqrt(CHANNELS)
        if hasattr(self._model, "partial_fit"):
            self._model.partial_fit(scaled, labels, classes=np.arange(CLASSES))
        else:
            self._model.fit(scaled, labels)

    def scores(self, pooled: Array) -> Array:
        """Class scores."""
        return np.asarray(self._model.decision_function(self._scaling.scaled(pooled) / np.sqrt(CHANNELS)))


def one_against_the_others(seed: int) -> Learner:
    """A logistic regression for each class by itself, by stochastic gradient descent."""
    from sklearn.linear_model import SGDClassifier

    return OfScikitLearn(SGDClassifier(loss="log_loss", alpha=1e-5, random_state=seed))


def converged(_: int) -> Learner:
    """What no online learner of linear maps can be much better than."""
    from sklearn.linear_model import LogisticRegression

    return OfScikitLearn(LogisticRegression(C=CHANNELS, max_iter=2000))


def forward_forward(*units: int) -> Callable[[int], Learner]:
    """Layers of so many units."""
    return lambda seed: ForwardForward(CHANNELS, CLASSES, units, seed)


LEARNERS: dict[str, Callable[[int], Learner]] = {
    "softmax (MLPClassifier without hidden units)": Linear,
    "one against the others (SGDClassifier)": one_against_the_others,
    "forward-forward, 64 units": forward_forward(64),
    "forward-forward, 256 units": forward_forward(256),
    "forward-forward, 64 + 64 units": forward_forward(64, 64),
}
REFERENCE = "logistic regression, converged"


@dataclass(frozen=True, slots=True)
class Case:
    """Averages and the main network's classes: of images that are learned from, that fit temperatures, that judge."""

    pooled: tuple[Array, Array, Array]
    answers: tuple[Array, Array, Array]
    truth: Array  # of the images that judge


@dataclass(frozen=True, slots=True)
class Row:
    """One learner after so many passes, on one seed."""

    learner: str
    passes: int
    agreement: float
    accuracy: float
    cross_entropy: float
    confidence_off: float  # mean confidence less the share of answers that agree
    learn_s: float  # a row and pass
    score_s: float  # a row
    size_bytes: int


def feature_map(images: Array, seed: int) -> Array:
    """Two convolutions of 3 x 3 with random filters, each with a rectifier: (n, 8, 8) > (n, 6, 6, CHANNELS)."""
    rng = np.random.default_rng(seed)
    x = np.pad(images[..., None], ((0, 0), (1, 1), (1, 1), (0, 0)))
    for channels in (16, CHANNELS):
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        filters = rng.standard_normal((*windows.shape[3:], channels)) / np.sqrt(np.prod(windows.shape[3:]))
        x = np.maximum(np.einsum("nhwcij,cijk->nhwk", windows, filters, optimize=True), 0.0)
    return np.asarray(x)


def case_of(seed: int) -> Case:
    """Half of the images train the main network; of the other half 48 % are learned from, 12 % fit, 40 % judge."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    maps, labels = feature_map(digits.images[order] / 16.0, seed), digits.target[order]
    smaller = maps.reshape(len(maps), 3, 2, 3, 2, CHANNELS).mean(axis=(2, 4))
    flat, pooled = smaller.reshape(len(maps), -1), maps.mean(axis=(1, 2))
    half = len(labels) // 2
    main = MLPClassifier((64,), max_iter=300, tol=1e-3, random_state=seed).fit(flat[:half], labels[:half])
    answers = main.predict(flat)
    ends = [half, half + round(0.48 * half), half + round(0.6 * half), len(labels)]
    parts = [slice(*pair) for pair in pairwise(ends)]

    def split(values: Array) -> tuple[Array, Array, Array]:
        first, second, third = (values[part] for part in parts)
        return first, second, third

    return Case(split(pooled), split(answers), labels[parts[2]])


def taught(name: str, case: Case, seed: int) -> Iterator[Row]:
    """A learner after one, five and twenty passes."""
    learner = LEARNERS[name](seed) if name in LEARNERS else converged(seed)
    pooled, answers = case.pooled[0], case.answers[0]
    learn_s = 0.0
    for done in range(1, PASSES[-1] + 1):
        start_s = time.perf_counter()
        chunk = CHUNK if name in LEARNERS else len(pooled)
        for start in range(0, len(pooled), chunk):
            learner.learn(pooled[start : start + chunk], answers[start : start + chunk])
        learn_s += time.perf_counter() - start_s
        if done in PASSES:
            yield judged(name, learner, case, done, learn_s / done / len(pooled))
        if name not in LEARNERS:
            return


def judged(name: str, learner: Learner, case: Case, passes: int, learn_s: float) -> Row:
    """On images that nobody learned from."""
    fits, start_s = learner.scores(case.pooled[1]), time.perf_counter()
    scores = learner.scores(case.pooled[2])
    score_s = (time.perf_counter() - start_s) / len(scores)
    as_it_is = np.eye(CLASSES), np.zeros(CLASSES)
    matrix, bias = tempered(as_it_is, fits, case.answers[1])
    scores = scores @ matrix + bias
    quality = head_quality(as_it_is, scores, case.answers[2])
    confidence = float(softmax(scores).max(axis=1).mean())
    assert quality.agreement is not None
    accuracy = float(np.mean(scores.argmax(axis=1) == case.truth))
    return Row(
        name, passes, quality.agreement, accuracy, quality.error, confidence - quality.agreement, learn_s, score_s,
        learner.size_bytes,
    )  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Means over seeds, with the standard deviation of the agreement."""
    lines = []
    for key in dict.fromkeys((row.learner, row.passes) for row in rows):
        same = [row for row in rows if (row.learner, row.passes) == key]

        def mean(field: str, same: Sequence[Row] = same) -> float:
            return statistics.fmean(getattr(row, field) for row in same)

        spread = statistics.pstdev(row.agreement for row in same)
        lines.append([
            *key, f"{mean('agreement'):.1%} +- {spread:.1%}", f"{mean('accuracy'):.1%}", f"{mean('cross_entropy'):.3f}",
            f"{mean('confidence_off'):+.1%}", f"{mean('learn_s') * 1e6:.1f}", f"{mean('score_s') * 1e6:.2f}",
            same[0].size_bytes,
        ])  # fmt: skip
    headers = ["learner", "passes", "agreement", "accuracy", "cross-entropy", "confidence off", "learn us", "score us",
               "weights B"]  # fmt: skip
    return tabulate(lines, headers, disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how often, with other splits and filters (default 5)")
    parser.add_argument("--json", action="store_true", help="print each row as JSON")
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    accuracies: list[float] = []
    with threadpool_limits(1):  # products so small are slower on several threads
        for seed in range(given.seeds):
            case = case_of(seed)
            accuracies.append(float(np.mean(case.answers[2] == case.truth)))
            for name in (REFERENCE, *LEARNERS):
                rows += taught(name, case, seed)
    rows.sort(key=lambda row: ([REFERENCE, *LEARNERS].index(row.learner), row.passes))
    if given.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    print(f"main network: accuracy {statistics.fmean(accuracies):.1%}; {given.seeds} seeds\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
