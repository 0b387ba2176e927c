"""How many standard deviations of margin bring the share of deadlines met to the one asked for: learned online.

The normal quantile is right where errors are normal, independent and correctly sized, and where nothing can be done
about them later. They are not, and it can: a gate that runs late takes faster options at the points that are left, so
that even a negative multiple, planning for less than the median, may meet most deadlines. So the multiple is moved
after each inference: up by ``step * confidence`` after a miss, down by ``step * (1 - confidence)`` otherwise. In the
long run the two balance where the share of misses is ``1 - confidence``, whatever the errors are like; over n
inferences the share is off by at most (range of the multiple) / (step * n).

Two kinds of inferences say nothing of the margin and leave it as it is: those which could not meet the deadline in any
way, and those met without having been limited by it, unless the multiple stands above its normal value; else an idle
hour would use up the margin that the next busy one needs.

References
----------
Gibbs, Candes: Adaptive conformal inference under distribution shift. NeurIPS 2021 (the update, and its bound).
Angelopoulos, Candes, Tibshirani: Conformal PID control for time series prediction. NeurIPS 2023 (quantile tracking:
moving the quantile itself, not its level).
"""

from __future__ import annotations

from statistics import NormalDist

__all__ = ["AdaptiveQuantile"]

STEP = 0.3
LEAST, MOST = -4.0, 8.0  # beyond these, the spread is wrong and not its multiple


class AdaptiveQuantile:
    """The multiple of the spread that is kept as a margin.

    Attributes
    ----------
    z : float
        Starts as the normal quantile of `confidence`, or 0 where that is negative.

    Examples
    --------
    >>> quantile = AdaptiveQuantile(0.9)
    >>> round(quantile.z, 3)
    1.282
    >>> quantile.update(missed=True)
    >>> round(quantile.z, 3)
    1.552
    """

    __slots__ = ("_down", "_start", "_up", "z")

    def __init__(self, confidence: float) -> None:
        self._start = max(0.0, NormalDist().inv_cdf(confidence))
        self._up = STEP * confidence
        self._down = STEP * (1.0 - confidence)
        self.z = self._start

    def update(self, missed: bool, limited: bool = True, possible: bool = True) -> None:
        """Take the end of one inference into account.

        Parameters
        ----------
        missed
            Whether it ended after its deadline.
        limited
            Whether the deadline kept some decision from its best option.
        possible
            Whether anything could have been expected to meet the deadline.
        """
        if not possible:
            return
        if missed:
            self.z = min(MOST, self.z + self._up)
        elif limited:
            self.z = max(LEAST, self.z - self._down)
        elif self.z > self._start:
            self.z = max(self._start, self.z - self._down)
