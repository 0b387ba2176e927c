"""When an inference is recorded, and how much of it: a listener that never makes a run wait.

Each so many runs, one is looked at. Of these, every so many-th is recorded in any case, and the others where a small
change would have turned a decision, or where the error of the predicted latency has grown. What is recorded is laid
into a waiting line under a byte budget; where the line is full, because whoever takes from it is behind, the run is
dropped before its inputs are copied, and counted. The one lock is held for a few instructions, never while anything is
computed.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from math import log
from time import perf_counter

import numpy as np

from latpred.decide.costs import KEEP
from latpred.decide.observation import Observation
from latpred.errors import HookError
from latpred.hooks.answer import Heard
from latpred.tensors import Array

__all__ = ["ERROR", "EVERY", "UNSURE", "ErrorTrend", "Sample", "Sampler", "Sampling"]

EVERY, UNSURE, ERROR = "every", "unsure", "error"  # why a run is recorded
OVERHEAD_BYTES = 1024  # what a record takes beside its arrays


@dataclass(frozen=True, slots=True)
class Sampling:
    """When and how much.

    Attributes
    ----------
    look_every : int
        Each so many runs, one is looked at: what its side networks read is copied.
    every : int
        Each so many runs, one is recorded in any case; a multiple of `look_every`. Of the others that were looked at,
        those are where a gate was unsure or the error has grown.
    apart_s : float
        Between two runs that are looked at there is at least so much time, so that they cost small networks no more
        than large ones.
    unsure_below : float
        A head is unsure where its confidence is no further from what is enough, a gate where its best two options
        differ by no more than this part of what is at stake.
    budget_bytes : int
        Of everything that is kept: half of it waits to be learned from, half is kept to learn from again.

    Raises
    ------
    HookError
        Where a number is out of range.
    """

    look_every: int = 8
    every: int = 32
    apart_s: float = 0.05
    unsure_below: float = 0.1
    budget_bytes: int = 32 * 2**20

    def __post_init__(self) -> None:
        for name in ("every", "look_every", "budget_bytes"):
            if getattr(self, name) < 1:
                raise HookError(f"{name} must be at least 1, got {getattr(self, name)}: give a larger one")
        if self.every % self.look_every:
            raise HookError(f"every must be a multiple of look_every, got {self.every} and "
                            f"{self.look_every}: change one")  # fmt: skip
        for name in ("apart_s", "unsure_below"):
            if not getattr(self, name) >= 0.0:
                raise HookError(f"{name} must not be negative, got {getattr(self, name)}: 0 switches it off")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What is recorded of one inference; no array is the caller's.

    Attributes
    ----------
    inputs : mapping of str to ndarray
        Empty where nobody will run them again.
    observations : tuple of Observation
        What was perceived at the points that were met.
    main_output : ndarray or None
        The main network's own; None where a decision altered it.
    decisions : mapping of str to str
        Point -> option, for the points that were met.
    latency_s, predicted_s : float
    why : str
        What made the sampler record it.
    size_bytes : int
    """

    inputs: Mapping[str, Array]
    observations: tuple[Observation, ...]
    main_output: Array | None
    decisions: Mapping[str, str]
    latency_s: float
    predicted_s: float
    why: str
    size_bytes: int


class ErrorTrend:
    """Whether the error of predicted against actual latency grows: a quick mean of it against a slow one.

    Attributes
    ----------
    recent : float
        Mean of abs(ln(actual / predicted)) over about the last eight runs that were looked at.

    Examples
    --------
    >>> trend = ErrorTrend()
    >>> any(trend.grows(0.001, 0.001) for _ in range(40))
    False
    >>> trend.grows(0.0015, 0.001), round(trend.recent, 3)  # ln 1.5 / 8
    (True, 0.051)
    """

    __slots__ = ("_runs", "_usual", "recent")

    QUICK, SLOW = 1 / 8, 1 / 64
    FACTOR, FLOOR = 1.5, 0.02  # two runs of one session differ by about 2 %

    def __init__(self) -> None:
        self.recent = self._usual = 0.0
        self._runs = 0

    def grows(self, latency_s: float, predicted_s: float) -> bool:
        """Take one run into account; whether the error has grown."""
        if not predicted_s > 0.0 < latency_s:
            return False
        error = abs(log(latency_s / predicted_s))
        self._runs += 1
        self.recent += max(self.QUICK, 1.0 / self._runs) * (error - self.recent)
        self._usual += max(self.SLOW, 1.0 / self._runs) * (error - self._usual)
        return self.recent > self.FACTOR * self._usual + self.FLOOR


class Sampler:
    """Hears runs, in the thread of each, and keeps a line of samples for another thread to take.

    Parameters
    ----------
    output : str
        The main network's output.
    enough : mapping of str to float
        Exit -> confidence from which on leaving is right.
    at_stake : mapping of str to float
        Point with a gate -> difference of its options' utilities.
    runs_again : bool
        Whether inputs are needed of runs that kept everything, too.
    sampling : Sampling

    Attributes
    ----------
    trend : ErrorTrend
    """

    def __init__(
        self,
        output: str,
        enough: Mapping[str, float],
        at_stake: Mapping[str, float],
        runs_again: bool,
        sampling: Sampling | None = None,
    ) -> None:
        self.sampling = sampling or Sampling()
        self.trend = ErrorTrend()
        self._output, self._enough, self._runs_again = output, dict(enough), runs_again
        self._close_call = {point: self.sampling.unsure_below * stake for point, stake in at_stake.items()}
        self._begun, self._looked_at = count(), count()
        self._look_every, self._one_of = self.sampling.look_every, self.sampling.every // self.sampling.look_every
        self._not_before_s = 0.0
        self._room_bytes = self.sampling.budget_bytes // 2
        self._line: deque[Sample] = deque()
        self._spare: deque[Mapping[str, Array]] = deque()
        self._lock = threading.Lock()
        self._waiting_bytes = self._dropped = 0
        self._recorded = Counter(dict.fromkeys((EVERY, UNSURE, ERROR), 0))
        self._closed = False

    @property
    def recorded(self) -> dict[str, int]:
        """How many runs were recorded: why -> number."""
        return dict(self._recorded)

    @property
    def dropped(self) -> int:
        """How many runs were not recorded because the line was full."""
        return self._dropped

    @property
    def waiting(self) -> int:
        """How many samples wait."""
        return len(self._line)

    @property
    def waiting_bytes(self) -> int:
        """Memory of what waits, at most half of the budget."""
        return self._waiting_bytes

    def wants(self) -> Collection[str] | None:
        """Whether the run that begins is looked at; tensors of points are never asked for."""
        if next(self._begun) % self._look_every or self._closed:
            return None
        now_s = perf_counter()
        if now_s < self._not_before_s:
            return None
        self._not_before_s = now_s + self.sampling.apart_s
        return ()

    def heard(self, heard: Heard) -> None:
        """Record a run that was looked at, or not."""
        grows = self.trend.grows(heard.answer.latency_s, heard.answer.predicted_s)
        if next(self._looked_at) % self._one_of == 0:
            why = EVERY
        elif grows:
            why = ERROR
        elif self._unsure(heard.observations):
            why = UNSURE
        else:
            return
        self._record(heard, why)

    def close(self) -> None:
        """Record nothing from now on, and let go of what waits."""
        self._closed = True
        self.take(len(self._line))
        self._spare.clear()

    def take(self, at_most: int) -> list[Sample]:
        """The samples that have waited longest, out of the line."""
        taken: list[Sample] = []
        while self._line and len(taken) < at_most:
            taken.append(self._line.popleft())
        with self._lock:
            self._waiting_bytes -= sum(sample.size_bytes for sample in taken)
        return taken

    def give_back(self, sample: Sample) -> None:
        """Say that the inputs of a sample are needed no more: the next ones are copied to where they lie."""
        if sample.inputs:
            self._spare.append(sample.inputs)

    def _copied(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The same in memory of its own; memory that was used before costs a fifth of what new pages do."""
        try:
            spare = self._spare.pop() if inputs else {}
        except IndexError:
            return {name: values.copy() for name, values in inputs.items()}
        for name, values in inputs.items():
            np.copyto(spare[name], values)
        return spare

    def _unsure(self, observations: Iterable[Observation]) -> bool:
        for one in observations:
            confidence = one.features.get("confidence")
            if confidence is not None:
                enough = self._enough.get(one.point)
                if enough is not None and abs(confidence - enough) <= self.sampling.unsure_below:
                    return True
            elif one.utilities is not None:
                close_call = self._close_call.get(one.point)
                if close_call is not None:
                    second, best = sorted(one.utilities)[-2:]
                    if best - second <= close_call:
                        return True
        return False

    def _record(self, heard: Heard, why: str) -> None:
        if self._closed:
            return
        answer = heard.answer
        kept = all(option == KEEP for option in answer.decisions.values())
        inputs = heard.inputs if self._runs_again or not kept else {}
        main_output = answer.outputs[self._output] if kept else None
        size_bytes = OVERHEAD_BYTES + sum(values.nbytes for values in inputs.values())
        size_bytes += 0 if main_output is None else main_output.nbytes
        for one in heard.observations:
            size_bytes += sum(getattr(values, "nbytes", 8) for values in one.features.values())
        with self._lock:
            if self._waiting_bytes + size_bytes > self._room_bytes:
                self._dropped += 1
                return
            self._waiting_bytes += size_bytes
            self._recorded[why] += 1
        self._line.append(
            Sample(
                self._copied(inputs),
                heard.observations,
                None if main_output is None else main_output.copy(),
                answer.decisions,
                answer.latency_s,
                answer.predicted_s,
                why,
                size_bytes,
            )
        )
