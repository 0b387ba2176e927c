"""The law of a kind: latency as a non-negative sum of a launch, traffic, elements, turns of loops and arithmetic.

A kernel's time is nearly linear in a handful of counts. Such a law needs few measurements, holds beyond the sizes
that were measured, and leaves to the trees what it cannot say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from latpred.kernels.features import FEATURES
from latpred.kernels.roofline import Terms

__all__ = ["LAW_TERMS", "fit_law", "law_s", "law_terms"]

Floats = NDArray[np.float64]

# Each in s when its factor is 1: a launch takes 1 us, an element or a turn of a loop 1 ns, traffic and arithmetic
# their roofline time; padded arithmetic counts what fills up the last block of rows, columns, filters or pixels too.
# What the inner loops read or write over and over (panels of a product, filters of a row) passes at 100 GB/s, scalar
# arithmetic at 1 GFLOP/s.
# Term -> what its factor may be at most: a few large samples must not make traffic cost many times its roofline time,
# or kernels larger than any measured would cost as many times too much.
_MOST: Mapping[str, float] = {
    "launch": 30.0, "near": 3.0, "shared": 3.0, "off_chip": 3.0, "elements_in": 30.0, "elements_out": 30.0,
    "rows": 300.0, "runs": 100.0, "spans": 100.0, "scattered": 30.0, "products": 3000.0, "compute": 3.0,
    "padded_compute": 3.0, "calls": 300.0, "streamed_left": 3.0, "streamed_result": 3.0, "packed": 10.0,
    "scalar": 30.0,
}  # fmt: skip
# Kinds whose loops take one number after another: arithmetic then costs hundreds of times its roofline time. Of all
# others it is not believed.
SCALAR_KINDS = frozenset({"conv-quantized-by-group", "pool-general", "pool-norm", "resize", "sample"})
LAW_TERMS = tuple(_MOST)
_FILLED = (
    "product_filled_m", "product_filled_n", "window_filled_out", "window_filled_filter_blocks", "window_filled_row",
)  # fmt: skip
_LAUNCH_S, _TURN_S = 1e-6, 1e-9
_STREAM_BYTES_PER_S = 1e11
_ELEMENT_BY_ELEMENT = 4  # of the ways of a transpose
FURTHEST = (0.3, 3000.0)  # a law's time stays within these multiples of the roofline time
ROUNDS, SWEEPS = 8, 60


def law_terms(rows: NDArray[np.float32], terms: Terms) -> Floats:
    """Terms of the law for each kernel, in s.

    Parameters
    ----------
    rows : ndarray of float32, shape (n, len(FEATURES))
    terms : Terms
        Of the same kernels.

    Returns
    -------
    ndarray of float64, shape (n, len(LAW_TERMS))
    """

    def counted(name: str) -> Floats:
        return np.exp2(np.nan_to_num(rows[:, FEATURES.index(name)].astype(np.float64))) - 1.0

    scattered = rows[:, FEATURES.index("move_way")] == _ELEMENT_BY_ELEMENT
    elements_out = counted("elements_out")
    filled = np.ones(len(rows))
    for name in _FILLED:
        filled *= np.nan_to_num(rows[:, FEATURES.index(name)].astype(np.float64), nan=1.0)
    filled = np.maximum(filled, 0.01)
    return np.stack(
        [
            np.full(len(rows), _LAUNCH_S),
            terms.near_s,
            terms.shared_s,
            terms.off_chip_s,
            counted("elements_in") * _TURN_S,
            elements_out * _TURN_S,
            counted("rows_rows") * _TURN_S,
            counted("move_runs") * _TURN_S,
            counted("broadcast_spans") * _TURN_S,
            np.where(scattered, elements_out, 0.0) * _TURN_S,
            counted("product_products") * _TURN_S,
            terms.compute_s,
            terms.compute_s / filled,
            (counted("product_calls") + counted("window_calls")) * _TURN_S,
            (counted("product_left_streamed") + counted("window_filters_streamed")) / _STREAM_BYTES_PER_S,
            (counted("product_result_streamed") + counted("window_result_streamed")) / _STREAM_BYTES_PER_S,
            counted("product_right_packed") / _STREAM_BYTES_PER_S,
            counted("flops") * _TURN_S,
        ],
        axis=1,
    )


def law_s(factors: Sequence[float], of_kernel: Floats, roofline_s: Floats) -> Floats:
    """Latency by the law, in s, kept within sight of the roofline.

    Examples
    --------
    >>> one_kernel = np.array([[1e-6, 2e-6]])
    >>> law_s([3.0, 0.5], one_kernel, np.array([1e-6])).tolist()  # 3 us + 1 us
    [4e-06]
    """
    least, most = FURTHEST
    latency_s: Floats = np.clip(of_kernel @ np.asarray(factors), least * roofline_s, most * roofline_s)
    return latency_s


def fit_law(of_kernel: Floats, latency_s: Floats, weight: Floats, kind: str = "") -> tuple[float, ...]:
    """Non-negative factors that make the law's relative errors small; outliers weigh less (Huber).

    Parameters
    ----------
    of_kernel : ndarray, shape (n, terms)
        As `law_terms` gives them.
    latency_s, weight : ndarray, shape (n,)
    kind : str, optional
        Of the kernels: some have terms that others lack.

    Examples
    --------
    >>> terms = np.array([[1e-6, 1e-6], [1e-6, 5e-6], [1e-6, 9e-6], [1e-6, 20e-6]])
    >>> [round(factor, 3) for factor in fit_law(terms, terms @ np.array([2.0, 0.7]), np.ones(4))]
    [2.0, 0.7]
    """
    design = of_kernel / latency_s[:, None]
    scale = np.maximum(design.max(axis=0), 1e-12)
    design = design / scale
    allowed = [0.0 if term == "scalar" and kind not in SCALAR_KINDS else most for term, most in _MOST.items()]
    most = np.array(allowed)[: design.shape[1]] * scale
    robust = np.ones(len(latency_s))
    factors = np.zeros(design.shape[1])
    for _ in range(ROUNDS):
        weighted = design * (weight * robust)[:, None]
        factors = _bounded(design.T @ weighted, weighted.sum(axis=0), factors, most)
        residual = np.abs(design @ factors - 1.0)
        noise = max(0.02, 1.4826 * float(np.median(residual)))
        robust = np.minimum(1.0, 1.5 * noise / np.maximum(residual, 1e-12))
    return tuple((factors / scale).tolist())


def _bounded(gram: Floats, right: Floats, start: Floats, most: Floats) -> Floats:
    """Minimise ``x G x / 2 - r x`` over 0 <= x <= most by coordinate descent."""
    factors = start.copy()
    diagonal = np.maximum(np.diag(gram), 1e-12)
    for _ in range(SWEEPS):
        for i in range(len(factors)):
            step = (right[i] - gram[i] @ factors) / diagonal[i]
            factors[i] = min(max(0.0, factors[i] + step), most[i])
    return factors
