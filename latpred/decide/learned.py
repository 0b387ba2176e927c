"""How long each option takes on this very device: its own error, learned beside the slow-down that all options share.

The predictor is off by a factor for each option, and always the same one: eight bits may take 0.85 of what was
predicted, a convolution 1.1. Taken for noise, it makes the slow-down jump with the options that happen to be chosen,
and rings its alarm at each change from one kind of option to another. So the state of the Kalman filter is the
slow-down x and the own error b of each option, of which one timed piece observes the sum:

    innovation  y = ln(actual / predicted) - x - b,   S = P + R + B + (what reading a clock adds)
    update      x <- x + y P / S,   b <- b + y B / S,   B <- (1 - B / S) B

Covariances between the two are left out, so that one observation costs the same however many options there are. B
starts as the variance of the option's own error in the table, and stays above `SETTLED`, so that what changes is
followed. Thresholds are of times as predicted: what own errors come to over a whole inference, a part of any slow drift
among them, is one more factor beside the slow-down.

References
----------
Schmidt: Application of state-space methods to navigation problems. Advances in Control Systems 3, 1966 (what is not
known for sure of a sensor as a further state).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp

import numpy as np

from latpred.decide.table import Table

__all__ = ["SETTLED", "OptionTime", "option_times", "relearned"]

JITTER_S = 2e-6  # what starting a piece and reading a clock scatter by
SETTLED = 0.01**2  # relative variance of an own error that will not be known better: it hangs on the load


class OptionTime:
    """What one option is expected to take at nominal speed.

    Attributes
    ----------
    predicted_s : float
    expected_s : float
        With its own error, as learned.
    own_variance : float
        Relative, of the own error as far as it is not known yet.
    jitter : float
        Relative variance of timing it.

    Examples
    --------
    A quarter of the surprise is the option's own, where it is a quarter of what could have been expected.

    >>> time = OptionTime(0.001, 0.01)
    >>> time.learn(innovation=0.4, variance=0.04)
    >>> round(time.expected_s, 6), time.own_variance
    (0.001105, 0.0075)
    """

    __slots__ = ("expected_s", "jitter", "own_variance", "predicted_s")

    def __init__(self, predicted_s: float, own_variance: float) -> None:
        self.predicted_s = self.expected_s = predicted_s
        self.own_variance = own_variance
        self.jitter = (JITTER_S / predicted_s) ** 2 if predicted_s > 0.0 else 0.0

    def learn(self, innovation: float, variance: float) -> None:
        """Take from what `SlowDown.update` said of one timing the part that is this option's own."""
        own = self.own_variance
        gain = own / variance
        self.expected_s *= exp(gain * innovation)
        if own > SETTLED:
            self.own_variance = max(SETTLED, own - gain * own)


def option_times(table: Table) -> list[list[OptionTime]]:
    """For each option of each point: its time as predicted."""
    times = []
    for first, names in zip(table.first_option.tolist(), table.options, strict=False):
        rows = slice(first, first + len(names))
        means_s, variances_s2 = table.mean_s[rows].tolist(), table.variance_s2[rows].tolist()
        times.append([
            OptionTime(mean_s, variance_s2 / mean_s**2 if mean_s > 0.0 else 0.0)
            for mean_s, variance_s2 in zip(means_s, variances_s2, strict=True)
        ])  # fmt: skip
    return times


def relearned(table: Table, times: Sequence[Sequence[OptionTime]]) -> Table:
    """The table with options' times as learned; from now on, these count as predicted."""
    listed = [time for here in times for time in here]
    for time in listed:
        time.predicted_s = time.expected_s
    mean_s = np.array([time.expected_s for time in listed])
    own_variances = np.array([time.own_variance for time in listed])
    return replace(table, mean_s=mean_s, variance_s2=own_variances * mean_s**2)
