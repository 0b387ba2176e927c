"""Trains side networks while the main network runs, or at once on samples; the main network is never touched.

Heads learn to agree with the main network, gates learn what options cost in agreement. A part of the examples is held
out: only weights that do better there than those that run take their place, at once for all looks that follow.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latpred.errors import HookError
from latpred.hooks.labelling import Example, Labeller, is_finite, is_held_out
from latpred.hooks.memory import trim
from latpred.hooks.program import LAST, PATCHES, Program
from latpred.hooks.pupils import Verdict, pupils_of
from latpred.hooks.reservoir import Reservoir
from latpred.hooks.sampler import Sample, Sampler, Sampling
from latpred.hooks.stream import Stream
from latpred.tensors import Array

if TYPE_CHECKING:
    from latpred.hooks.hooked import Hooked

__all__ = ["Trainer", "Training"]

IDLE_S = 0.05  # between two looks at the line where nothing was left to do
AT_ONCE = 4  # samples that are labelled before the thread looks whether it shall end
JOIN_S = 60.0
KEPT_VERDICTS = 1000
DEADLINES = (0.0, 1.5)  # of what the network takes: from hopeless to loose


@dataclass(frozen=True, slots=True)
class Training:
    """How much is learned, and how.

    Attributes
    ----------
    duty : float
        Part of the time that the thread works, at most; between pieces of work it rests.
    tries : int
        Of each sample, with so many options it is run again to see what they change.
    examples : int
        So many new ones are learned from at once; then new weights are held against those that run.
    again : int
        With each new example, so many old ones are learned from again.
    least_held_out : int
        Nothing is replaced before so many examples are held out.
    wrong : float or None
        Utility that an answer other than the main network's loses; None takes what the hooks were attached with, else
        the most that decisions can lose together, as the table has it.
    seed : int

    Raises
    ------
    HookError
        Where a number is out of range.
    """

    duty: float = 0.1
    tries: int = 4
    examples: int = 64
    again: int = 8
    least_held_out: int = 16
    wrong: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.duty <= 1.0:
            raise HookError(f"duty must lie between 0 and 1, got {self.duty}: 0.1 is a tenth of one core")
        for name, least in (("tries", 0), ("examples", 1), ("again", 0), ("least_held_out", 2)):
            if getattr(self, name) < least:
                raise HookError(f"{name} must be at least {least}, got {getattr(self, name)}: give a larger number")
        if self.wrong is not None and not self.wrong > 0.0:
            raise HookError(f"what a wrong answer loses must be positive, got {self.wrong}: leave it out, or raise it")


class Trainer:
    """Learns from what it hears of runs; a listener of a hooked model.

    Parameters
    ----------
    hooked : Hooked
    sampling : Sampling, optional
    training : Training, optional

    Attributes
    ----------
    sampler : Sampler
    examples : int
        Looked at so far: learned from, held out or refused.
    refused : int
        Of these, such that hold no finite numbers.
    verdicts : deque of Verdict
        The last thousand, new weights that were refused included.

    Raises
    ------
    HookError
        Where the hooks were released, or there is nothing to train: no head, and no gate of the usual kind.
    """

    def __init__(self, hooked: Hooked, sampling: Sampling | None = None, training: Training | None = None) -> None:
        self._training = training or Training()
        program, stream = hooked.program, hooked.stream()
        self._usual_s = hooked.latency_s
        self._sensed = hooked.sensors or dict
        self._pupils = pupils_of(hooked, self._training.wrong, self._training.seed)
        if not self._pupils or not isinstance(program, Program) or not isinstance(stream, Stream):
            raise HookError("a head or a gate that looks is needed to train, but this model has none: attach with "
                            "points whose gates are 'pooled'")  # fmt: skip
        unclear = PATCHES if hooked.origin.outside == LAST else ""  # what they change hangs on the frame before
        self._choices = [
            (pupil.point, option)
            for pupil in self._pupils
            for option in pupil.options
            if not unclear or not hooked.options[pupil.point][option].startswith(unclear)
        ]
        self._labeller: Labeller | None = Labeller(stream, program.last, hooked.options)
        self.sampler = Sampler(
            program.last,
            {pupil.point: pupil.enough for pupil in self._pupils if pupil.enough is not None},
            {pupil.point: pupil.at_stake for pupil in self._pupils if pupil.enough is None},
            bool(self._choices) and self._training.tries > 0,
            sampling,
        )
        self.wants, self.heard = self.sampler.wants, self.sampler.heard  # in the time of runs: no call between
        budget_bytes = self.sampler.sampling.budget_bytes
        self._kept = Reservoir[Example](max(1, budget_bytes * 3 // 8), self._training.seed)
        self._held_out = Reservoir[Example](max(1, budget_bytes // 8), self._training.seed + 1)
        self._fresh: list[Example] = []
        self.examples = self.refused = 0
        self.verdicts: deque[Verdict] = deque(maxlen=KEPT_VERDICTS)
        self._rng = np.random.default_rng(self._training.seed)
        self._working = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def kept_bytes(self) -> int:
        """Memory of the examples that are kept, at most half of the sampler's budget."""
        return self._kept.used_bytes + self._held_out.used_bytes

    def start(self) -> None:
        """Work in a thread from now on, until the hooks are released or nobody holds them any more."""
        if self._thread is None and not self._stop.is_set():
            arguments = weakref.ref(self), self._stop
            self._thread = threading.Thread(target=_work, args=arguments, name="latpred-trainer", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread, after what it is at, and let go of sessions and samples; nothing is recorded any more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(JOIN_S)
        self.sampler.close()
        with self._working:
            self._labeller = None
            self._pupils.clear()

    def step(self) -> float:
        """One piece of work: some samples, and where enough are new, what they teach; how long to rest then, in s."""
        start_s = time.perf_counter()
        with self._working:
            missing = self._training.examples - len(self._fresh)
            for sample in self.sampler.take(min(missing, AT_ONCE)):
                if not self._stop.is_set():
                    self._admit(sample, self._tries())
                    self.sampler.give_back(sample)
                    trim()
            if len(self._fresh) >= self._training.examples and not self._stop.is_set():
                self._learn(self._fresh + self._kept.drawn(self._training.again * len(self._fresh)))
                self._fresh.clear()
                self._judge()
        busy_s = time.perf_counter() - start_s
        return max(IDLE_S if self.sampler.waiting == 0 else 0.0, busy_s * (1.0 / self._training.duty - 1.0))

    def train(self, samples: Iterable[Mapping[str, Array]], passes: int = 20) -> tuple[Verdict, ...]:
        """Learn from inputs of the model now.

        Each is run under a deadline drawn at random, with everything kept, and with each option in the place of what
        was decided. Decisions change as side networks learn: to train twice shows them what they will see.

        Parameters
        ----------
        samples : iterable of mappings
            As `Hooked.run` takes them.
        passes : int
            How often each is learned from.

        Returns
        -------
        tuple of Verdict
            One a side network.

        Raises
        ------
        HookError
            Where an input is another than declared, there are too few different ones to hold some out, or the hooks
            were released meanwhile.
        """
        with self._working:
            for inputs in samples:
                if self._stop.is_set():
                    raise HookError("a trainer that was not closed is needed, but this one was: attach again")
                deadline_s = self._usual_s * float(self._rng.uniform(*DEADLINES))
                assert self._labeller is not None
                self._admit(self._labeller.lived(inputs, deadline_s, self._sensed()), self._choices)
            self._fresh.clear()
            if len(self._held_out) < self._training.least_held_out or not len(self._kept):
                least = self._training.least_held_out
                raise HookError(
                    f"{least} held-out examples are needed, a fifth of all, but there are {len(self._held_out)}: "
                    f"give about {5 * least} different samples, or a smaller least_held_out"
                )
            for _ in range(passes):
                self._learn(list(self._kept))
            return self._judge()

    def _tries(self) -> list[tuple[str, int]]:
        return [self._choices[place] for place in self._rng.permutation(len(self._choices))[: self._training.tries]]

    def _admit(self, sample: Sample, tries: Iterable[tuple[str, int]]) -> None:
        assert self._labeller is not None
        example = self._labeller.label(sample, tries)
        self.examples += 1
        if not is_finite(example):
            self.refused += 1
        elif is_held_out(example):
            self._held_out.offer(example, example.size_bytes)
        else:
            self._kept.offer(example, example.size_bytes)
            self._fresh.append(example)

    def _learn(self, examples: list[Example]) -> None:
        for pupil in self._pupils:
            pupil.learn(examples)

    def _judge(self) -> tuple[Verdict, ...]:
        if len(self._held_out) < self._training.least_held_out:
            return ()
        held_out = list(self._held_out)
        fits, judges = held_out[0::2], held_out[1::2]
        found = [pupil.judged(fits, judges) for pupil in self._pupils]
        verdicts = tuple(verdict for verdict in found if verdict is not None)
        self.verdicts.extend(verdicts)
        return verdicts


def _work(trainer: weakref.ref[Trainer], stop: threading.Event) -> None:
    """The thread: it holds the trainer only while it works, so that hooks which nobody holds are let go of."""
    rest_s = IDLE_S
    while not stop.wait(rest_s):
        alive = trainer()
        if alive is None:
            return
        rest_s = alive.step()
        del alive
