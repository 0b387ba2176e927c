"""Sample -> example: what the main network says of it, and what taking an option instead changes about that.

Neither is known of the run itself where decisions altered it, so runs are run again: once with everything kept, and
with one option taken at one point, on buffers of their own, which no other run waits for.

An option is tried in the company of what was decided at the other points: a block that can be narrowed without harm
where all else is kept may be what a head behind it cannot do without. And side networks learn from what they will see:
averages of maps as the decisions before them leave them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from latpred.decide.observation import Observation
from latpred.decide.points import EXIT
from latpred.hooks.answer import Ask
from latpred.hooks.sampler import OVERHEAD_BYTES, Sample
from latpred.hooks.stream import Stream
from latpred.tensors import Array

__all__ = ["Example", "Labeller", "classes_in", "disagreement", "is_finite", "is_held_out", "is_scores"]

SLICES = 5  # one of so many inputs is held out


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """What side networks learn from.

    Attributes
    ----------
    pooled : mapping of str to ndarray
        Point -> averages that its side network reads, of shape (batch, channels).
    labels : ndarray of int64, shape (batch,)
        The main network's best class; nothing where its output is no row of class scores.
    losses : mapping of str to ndarray
        Point -> share of the answer that an option changes beyond what keeping does there, of shape (batch, options),
        NaN where it was not tried.
    """

    pooled: Mapping[str, Array]
    labels: Array
    losses: Mapping[str, Array]

    @property
    def size_bytes(self) -> int:
        """Of its arrays, and of what holds them."""
        arrays = (*self.pooled.values(), self.labels, *self.losses.values())
        return OVERHEAD_BYTES + sum(values.nbytes for values in arrays)


class Labeller:
    """Runs samples again.

    Parameters
    ----------
    stream : Stream
        Of nobody else.
    output : str
        The main network's output.
    options : mapping of str to tuple of str
        Point -> its options, in the order in which an inference meets them.
    """

    def __init__(self, stream: Stream, output: str, options: Mapping[str, tuple[str, ...]]) -> None:
        self._stream, self._output, self._options = stream, output, dict(options)
        self._numbers = {point: number for number, point in enumerate(options)}
        self._kept = dict.fromkeys(self._numbers.values(), 0)

    def label(self, sample: Sample, tries: Iterable[tuple[str, int]] = ()) -> Example:
        """The example that a sample makes.

        Parameters
        ----------
        sample : Sample
        tries : iterable of (str, int)
            Point and option whose effect is looked at; the sample's inputs are needed for it.
        """
        pooled = _averages(sample.observations)
        main_output = sample.main_output
        if main_output is None:
            heard = self._stream.run(Ask(sample.inputs, forced=self._kept, recorded=True))
            main_output = heard.answer.outputs[self._output]
            pooled = _averages(heard.observations) | pooled
        losses: dict[str, Array] = {}
        met = {one.point for one in sample.observations}
        lost = {(0,) * len(self._options): disagreement(main_output, main_output)}
        for point, option in tries:
            if point not in pooled:
                continue
            number, company = self._numbers[point], self._company(sample.decisions, point)
            for taken in (option, 0):
                ways = (*company[:number], taken, *company[number + 1 :])
                if ways not in lost:
                    run = self._stream.run(Ask(sample.inputs, forced=dict(enumerate(ways)), recorded=point not in met))
                    lost[ways] = disagreement(run.answer.outputs[self._output], main_output)
                    if taken == 0 and point not in met:  # it would have been met in this company
                        pooled[point] = _averages(run.observations).get(point, pooled[point])
            altered, kept = (lost[*company[:number], taken, *company[number + 1 :]] for taken in (option, 0))
            rows = len(pooled[point])
            known = losses.setdefault(point, np.full((rows, len(self._options[point])), np.nan, np.float32))
            known[:, option] = altered - kept if len(altered) == rows else (altered - kept).mean()
        return Example(pooled, classes_in(main_output), losses)

    def lived(self, inputs: Mapping[str, Array], deadline_s: float, sensors: Mapping[str, float]) -> Sample:
        """What a run under a deadline makes of inputs, as a sampler would record it."""
        heard = self._stream.run(Ask(inputs, deadline_s, sensors=sensors, recorded=True))
        answer = heard.answer
        return Sample(
            dict(inputs), heard.observations, None, answer.decisions, answer.latency_s, answer.predicted_s, "given", 0
        )  # fmt: skip

    def _company(self, decisions: Mapping[str, str], point: str) -> tuple[int, ...]:
        """Option by number, of all points: as decided, but a point is met whatever was decided before it."""
        ways = []
        for name, options in self._options.items():
            option = options.index(decisions.get(name, options[0]))
            before = self._numbers[name] < self._numbers[point]
            ways.append(0 if before and options[option] == EXIT else option)
        return tuple(ways)


def _averages(observations: Iterable[Observation]) -> dict[str, Array]:
    """Point -> what its side network read."""
    return {
        one.point: one.features["pooled"].astype(np.float32) for one in observations if "pooled" in one.features
    }  # fmt: skip


def is_scores(output: Array) -> bool:
    """Whether an output is one row of class scores for each item of the batch."""
    return output.ndim == 2 and output.shape[1] > 1


def classes_in(output: Array) -> Array:
    """The best class of each item of the batch; nothing where the output is no row of class scores.

    Examples
    --------
    >>> classes_in(np.array([[0.1, 0.9], [0.8, 0.2]])).tolist(), classes_in(np.zeros((1, 3, 4))).tolist()
    ([1, 0], [])
    """
    return output.argmax(axis=1) if is_scores(output) else np.zeros(0, np.int64)


def disagreement(output: Array, main_output: Array) -> Array:
    """How far an answer is from the main network's, for each item of the batch.

    Of class scores 0 where the best class is the same, and 1 where it is not; of anything else the norm of the
    difference over that of the main network's answer, at most 1, for the batch as a whole.

    Examples
    --------
    >>> disagreement(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [0.0, 1.0]
    >>> disagreement(np.array([3.0, 5.0, 0.0]), np.array([3.0, 4.0, 0.0])).tolist()  # 1 / 5
    [0.2]
    """
    if is_scores(main_output):
        return np.asarray(output.argmax(axis=1) != main_output.argmax(axis=1), np.float64)
    norm = float(np.linalg.norm(main_output))
    off = float(np.linalg.norm(output.astype(np.float64) - main_output))
    return np.array([min(1.0, off / norm) if norm > 0.0 else float(off > 0.0)])


def is_held_out(example: Example) -> bool:
    """Whether an example is held out: the same inputs always lie on the same side, however often they come.

    By the averages at the first point that looks, which no decision alters.
    """
    digest = blake2b(digest_size=8)
    for values in list(example.pooled.values())[:1]:
        digest.update(np.ascontiguousarray(values).data)
    return int.from_bytes(digest.digest(), "big") % SLICES == 0


def is_finite(example: Example) -> bool:
    """Whether it can be learned from."""
    return all(np.isfinite(values).all() for values in example.pooled.values())
