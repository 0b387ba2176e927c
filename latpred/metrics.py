"""Error measures of predicted against measured latencies; numpy only.

All relative errors are ``predicted / measured - 1``: positive means predicted too slow.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latpred.errors import InputError

__all__ = ["Errors", "errors_of", "kendall", "relative_errors", "spearman"]

PAIRED_ROWS = 256  # that are compared with all others at a time: all pairs at once would need too much memory


@dataclass(frozen=True, slots=True)
class Errors:
    """How far a set of predictions is off; shares and relative errors are fractions, not percent."""

    count: int
    mape: float  # mean absolute percentage error, as a fraction
    median: float  # median absolute relative error
    rmspe: float  # root mean squared percentage error, as a fraction
    bias: float  # mean relative error
    within_5: float  # share of predictions within 5 %
    within_10: float
    worst: float  # largest absolute relative error
    spearman: float  # rank correlation; NaN below two predictions
    kendall: float  # rank correlation by pairs (tau-b); NaN below two predictions

    def to_dict(self) -> dict[str, float]:
        """Plain JSON-ready values."""
        return asdict(self)


def relative_errors(predicted: ArrayLike, measured: ArrayLike) -> NDArray[np.float64]:
    """``predicted / measured - 1``, element by element.

    Raises
    ------
    InputError
        When the lengths differ, there is nothing, or a measurement is not positive.
    """
    p, m = np.asarray(predicted, np.float64).ravel(), np.asarray(measured, np.float64).ravel()
    if p.shape != m.shape or p.size == 0:
        raise InputError(f"error measures need as many predictions as measurements; got {p.size} and {m.size}")
    if not (m > 0).all():
        raise InputError(f"measured latencies must be positive; got {m.min()} s: leave failed measurements out")
    return p / m - 1.0


def errors_of(predicted: ArrayLike, measured: ArrayLike) -> Errors:
    """All measures of one set of predictions.

    Examples
    --------
    >>> errors = errors_of([1.04, 1.8, 3.0], [1.0, 2.0, 3.0])
    >>> round(errors.mape, 4), round(errors.bias, 4), round(errors.within_5, 4), errors.worst.__round__(4)
    (0.0467, -0.02, 0.6667, 0.1)
    """
    relative = relative_errors(predicted, measured)
    absolute = np.abs(relative)
    tolerance = 1e-12  # an error of exactly 5 % counts as within
    return Errors(
        count=int(relative.size),
        mape=float(absolute.mean()),
        median=float(np.median(absolute)),
        rmspe=float(np.sqrt((relative**2).mean())),
        bias=float(relative.mean()),
        within_5=float((absolute <= 0.05 + tolerance).mean()),
        within_10=float((absolute <= 0.10 + tolerance).mean()),
        worst=float(absolute.max()),
        spearman=spearman(predicted, measured),
        kendall=kendall(predicted, measured),
    )


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: NDArray[np.float64] = (ends - (counts + 1) / 2.0)[inverse]
    return means


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation; NaN below two values or where all are equal.

    Examples
    --------
    >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])  # 1 - 6 * 2 / (4 * 15)
    0.8
    """
    ranks_a, ranks_b = _ranks(np.asarray(a, np.float64)), _ranks(np.asarray(b, np.float64))
    ranks_a, ranks_b = ranks_a - ranks_a.mean() if ranks_a.size else ranks_a, ranks_b - ranks_b.mean()
    scale = float(np.sqrt((ranks_a**2).sum() * (ranks_b**2).sum()))
    return float((ranks_a * ranks_b).sum() / scale) if scale > 0 else float("nan")


def kendall(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b; NaN below two values or where all are equal.

    Examples
    --------
    >>> round(kendall([1, 2, 3, 4], [10, 20, 40, 30]), 4)  # (5 - 1) / 6
    0.6667
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    agreement = pairs_x = pairs_y = 0.0
    for start in range(0, x.size, PAIRED_ROWS):
        rows = slice(start, start + PAIRED_ROWS)
        sign_x, sign_y = np.sign(x[rows, None] - x[None, :]), np.sign(y[rows, None] - y[None, :])
        agreement += float((sign_x * sign_y).sum())
        pairs_x += float((sign_x**2).sum())
        pairs_y += float((sign_y**2).sum())
    scale = (pairs_x * pairs_y) ** 0.5
    return agreement / scale if scale > 0 else float("nan")
