"""What a run is asked with, what it answers, and what it tells a listener."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from latpred.decide.observation import Observation
from latpred.tensors import Array

__all__ = ["HOPELESS_S", "NO_DEADLINE_S", "Answer", "Ask", "Heard", "Listener"]

NO_DEADLINE_S = 1e6
HOPELESS_S = 1e-9  # left of a deadline that has passed before anything was run


@dataclass(frozen=True, slots=True)
class Ask:
    """One inference as a stream is asked for it.

    Attributes
    ----------
    inputs : mapping of str to ndarray
        Where a model is chosen, also a function of its name.
    deadline_s : float
    forced : mapping of int to int
        Number of a point -> option that is taken whatever the gate would say.
    saliency : ndarray or None
        Map of the input's positions, for points that compute on patches.
    sensors : mapping of str to float
    recorded : bool
        Whether anybody listens.
    wanted : collection of str
        Points of which the listener wants the tensor.
    begun_s : float
        When the caller asked, by `time.perf_counter`; 0 where that is now.
    """

    inputs: Mapping[str, Array] | Callable[[str], Mapping[str, Array]]
    deadline_s: float = NO_DEADLINE_S
    forced: Mapping[int, int] = field(default_factory=dict)
    saliency: Array | None = None
    sensors: Mapping[str, float] = field(default_factory=dict)
    recorded: bool = False
    wanted: Collection[str] = ()
    begun_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What an inference came to.

    Attributes
    ----------
    outputs : mapping of str to ndarray
        As the model names them; an exit's scores stand where the model's would.
    decisions : mapping of str to str
        Point -> option, for the points that were met.
    latency_s : float
    predicted_s : float
        What was promised for these decisions, at the slow-down tracked as the inference began.
    slowdown : float
        That slow-down: `predicted_s` over it is what the plan says of a quiet machine.
    """

    outputs: Mapping[str, Array]
    decisions: Mapping[str, str]
    latency_s: float
    predicted_s: float
    slowdown: float = 1.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What a listener is told of an inference.

    Attributes
    ----------
    inputs : mapping of str to ndarray
        The caller's own arrays.
    answer : Answer
    observations : tuple of Observation
        One a point that was met: `features` hold ``pooled``, the averages that its side network read, of shape (batch,
        channels), and ``scores``, what it made of them (for a head, class scores before the softmax); ``confidence`` of
        a trained head; and ``zeros``, the share of zeros in the tensor where the point starts.
    tensors : mapping of str to ndarray
        Point -> copy of the tensor where it starts, for the points that the listener asked for.
    times_s : mapping of str to (float, float)
        Point -> what its option took, and what had been predicted of it at nominal speed.
    """

    inputs: Mapping[str, Array]
    answer: Answer
    observations: tuple[Observation, ...]
    tensors: Mapping[str, Array]
    times_s: Mapping[str, tuple[float, float]]


class Listener(Protocol):
    """What is told of runs; called in the thread of each run, so several may call at once."""

    def wants(self) -> Collection[str] | None:
        """Points whose tensors shall be copied in the run that begins; None where nothing of it is wanted at all.

        Asked just before the run, so it must be quick.
        """

    def heard(self, heard: Heard) -> None:
        """Told after a wanted run, outside of its time; must not wait: what cannot be taken is dropped."""

    def close(self) -> None:
        """The hooks are released: end threads, let go of everything."""
