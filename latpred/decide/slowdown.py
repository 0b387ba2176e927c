"""How much slower than predicted the device is at present: one factor for everything, tracked by a Kalman filter.

The state is the logarithm of actual over predicted time, a random walk; each timed piece is one observation of it:

    predict     P <- P + Q
    innovation  y = ln(actual / predicted) - x,   S = P + R + (the piece's own relative variance)
    update      K = P / S,   x <- x + K y,   P <- (1 - K) P

As in ALERT, the process noise follows what is seen, so that steady noise is averaged out and a step is followed: the
innovations, scaled by sqrt(S) and limited to `LIMIT`, are averaged exponentially. Noise averages to nothing. Where the
average leaves `ALARM`, the machine has changed, and P grows by y^2: the next estimate is nearly the last observation.
One outlier does not raise the alarm unless others came before it; two in a row of one sign do. R follows slowly.

References
----------
Wan, Santriaji, Rogers, Hoffmann, Maire, Lu: ALERT: Accurate Learning for Energy and Timeliness. USENIX ATC 2020
(the global slow-down factor, and its Kalman filter of adaptive process noise).
Mehra: On the identification of variances and adaptive Kalman filtering. IEEE TAC 15, 1970 (tests of innovations).
"""

from __future__ import annotations

from math import exp, expm1, inf, log, sqrt

from latpred.errors import InputError

__all__ = ["SlowDown"]

DRIFT = 0.002**2  # Q: what one observation to the next moves at the usual pace, in log
LIMIT = 3.0  # standard deviations that one innovation counts for at most
MEMORY = 0.25  # weight of the last innovation in the average
ALARM = 1.3  # 3.4 standard deviations of that average, sqrt(MEMORY / (2 - MEMORY)) = 0.38, in steady state
LEARNING = 0.05  # weight of one innovation in R
LEAST_NOISE, MOST_NOISE = 0.003**2, 0.5**2
CLOCK_SHARE = 0.25  # part of a clock's change that latencies may not follow: memory has its own clock


class SlowDown:
    """The factor between predicted and actual times.

    Attributes
    ----------
    factor : float
        Actual over predicted time, as expected now.
    variance : float
        Relative variance of what the next inference takes around that: of the estimate and of one run.

    Examples
    --------
    >>> slow = SlowDown(shared_spread=0.03, noise_spread=0.02)
    >>> for _ in range(10):
    ...     _ = slow.update(0.0015, 0.0010)
    >>> round(slow.factor, 2)
    1.5
    """

    __slots__ = ("_estimate", "_noise", "_trend", "_uncertainty", "factor", "variance")

    def __init__(self, shared_spread: float, noise_spread: float) -> None:
        self._estimate = 0.0
        self._uncertainty = shared_spread**2  # the predictor's shared error is what is not known at first
        self._noise = min(MOST_NOISE, max(LEAST_NOISE, noise_spread**2))
        self._trend = 0.0
        self.factor = 1.0
        self.variance = expm1(self._uncertainty + self._noise)

    def update(self, actual_s: float, predicted_s: float, own_variance: float = 0.0) -> tuple[float, float]:
        """Take one timed piece into account.

        Parameters
        ----------
        actual_s, predicted_s
            Both positive, in s.
        own_variance
            Relative variance of the piece's own error.

        Returns
        -------
        innovation, variance : float
            As far as it counted: how much longer than expected the piece took, in log, and how much it could have.

        Raises
        ------
        InputError
            When a time is not positive and finite.
        """
        if not (0.0 < actual_s < inf and 0.0 < predicted_s < inf):
            raise InputError(f"times must be positive and finite, got {actual_s} s for {predicted_s} s predicted")
        uncertainty = self._uncertainty + DRIFT
        noise = self._noise
        total = uncertainty + noise + own_variance
        innovation = log(actual_s / predicted_s) - self._estimate
        limit = LIMIT * sqrt(total)
        limited = limit if innovation > limit else -limit if innovation < -limit else innovation
        trend = self._trend + MEMORY * (limited / limit * LIMIT - self._trend)
        if -ALARM < trend < ALARM:
            self._trend = trend
            noise += LEARNING * (limited * limited - total)
            self._noise = LEAST_NOISE if noise < LEAST_NOISE else MOST_NOISE if noise > MOST_NOISE else noise
        else:
            self._trend = 0.0
            limited = innovation
            uncertainty += innovation * innovation
            total += innovation * innovation
        gain = uncertainty / total
        self._estimate += gain * limited
        self._uncertainty = uncertainty = (1.0 - gain) * uncertainty
        self.factor = exp(self._estimate)
        self.variance = expm1(uncertainty + self._noise)
        return limited, total

    def rescale(self, ratio: float) -> None:
        """Expect all times to be `ratio` times what they were, as after a change of clock."""
        change = log(ratio)
        self._estimate += change
        self._uncertainty += (CLOCK_SHARE * change) ** 2
        self.factor = exp(self._estimate)
        self.variance = expm1(self._uncertainty + self._noise)
