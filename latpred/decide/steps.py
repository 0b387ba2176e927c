"""What an engine written in Python takes between the graphs that it runs.

Its code, and CPython's, has left the caches by then as a graph that lay idle has, so each step takes what it takes in a
hot loop and a multiple of what starting a graph takes there (`Device.start_s`). Measured on CPython 3.11 between the
pieces of a network whose maps fill the second cache (MobileNetV2, 22 MB: 13 us to decide, 60 us to begin, 40 us to
end) and of one that fits (0.2 ms for eight decisions and both ends).
"""

from __future__ import annotations

from dataclasses import dataclass

from latpred.predictor import Predictor

__all__ = ["DECIDING", "ENTERING", "LEAVING", "Step", "step_s"]


@dataclass(frozen=True, slots=True)
class Step:
    """What a step takes in a hot loop, and for each second that starting a graph takes.

    Examples
    --------
    >>> round(Step(3e-6, 0.9).after(11e-6) * 1e6, 1)
    12.9
    """

    hot_s: float
    starts: float

    def after(self, start_s: float) -> float:
        """In s, where starting a graph takes `start_s`."""
        return self.hot_s + self.starts * start_s


DECIDING = Step(3e-6, 0.9)  # decide and observe
ENTERING = Step(15e-6, 4.0)  # a run, before its first graph
LEAVING = Step(10e-6, 2.7)  # and behind its last


def step_s(step: Step, predictor: Predictor, cycle_bytes: int, peak_bytes: int) -> float:
    """In s, in an engine that runs a network of so many bytes on the predictor's device."""
    return step.after(predictor.estimator.device.start_s(cycle_bytes, peak_bytes))
