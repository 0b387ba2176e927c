"""What an engine perceives at a decision point, and what a policy is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Observation", "Policy"]


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known when a decision is due; an engine fills in what it has.

    Attributes
    ----------
    point : str
        Where the decision is due.
    features : mapping of str to number or array
        Summaries of feature maps: pooled means, share of zeros.
    latency_s : float or None
        Time since the inference began, in s.
    predicted_s : float or None
        What had been predicted for that, in s.
    resident_bytes : int or None
        Memory that the process holds, in B.
    clock_hz : float or None
        Of the processor, in Hz.
    sensors : mapping of str to float
        Temperature, power, whatever the caller reads; the unit belongs in the name.
    utilities : sequence of float or None
        What each of the point's options is worth for this very input, as a gate network says; the built-in policies
        take them in the place of the gate's own, which later points keep.

    Examples
    --------
    >>> Observation("layer3", {"mean": 0.4}, latency_s=0.0021, predicted_s=0.0020).features["mean"]
    0.4
    """

    point: str
    features: Mapping[str, Any] = field(default_factory=dict)
    latency_s: float | None = None
    predicted_s: float | None = None
    resident_bytes: int | None = None
    clock_hz: float | None = None
    sensors: Mapping[str, float] = field(default_factory=dict)
    utilities: Sequence[float] | None = None


Policy = Callable[[Observation], int | str]
"""Index or name of the option to take at `Observation.point`."""
