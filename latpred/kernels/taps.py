"""Taps of a convolution that fall on the input: the blocked kernels of ONNX Runtime skip those that fall on padding."""

from __future__ import annotations

from functools import lru_cache
from math import prod

from latpred.kernels.kernel import Kernel
from latpred.kernels.kinds import BLOCKED

__all__ = ["executed_share", "hits"]


@lru_cache(maxsize=1 << 14)
def hits(size_in: int, size_out: int, taps: int, stride: int, dilation: int, pad: int) -> int:
    """(output, tap) pairs along one axis whose input position exists.

    Parameters
    ----------
    size_in, size_out : int
        Positions of the input and of the output.
    taps, stride, dilation : int
    pad : int
        Before the first position.

    Examples
    --------
    >>> hits(7, 7, 3, 1, 1, 1)  # 7 outputs x 3 taps, but for one tap at either end
    19
    >>> hits(10, 10, 3, 1, 12, 12)  # only the middle tap ever meets the input
    10
    """
    count = 0
    for tap in range(taps):
        offset = tap * dilation - pad
        first = max(0, -(offset // stride))
        last = min(size_out - 1, (size_in - 1 - offset) // stride)
        count += max(0, last - first + 1)
    return count


def executed_share(kernel: Kernel) -> float:
    """Share of a kernel's multiply-adds that are executed; 1 but for blocked convolutions with padding.

    Examples
    --------
    >>> from latpred.graph import Spec
    >>> image, weights = Spec((1, 16, 10, 10)), Spec((16, 16, 3, 3), constant=True)
    >>> attributes = {"dilations": (12, 12), "pads": (12, 12, 12, 12), "strides": (1, 1)}
    >>> aspp = Kernel("conv", "Conv", BLOCKED, "c", ("c",), (image, weights), (image,), attributes)
    >>> round(executed_share(aspp) * 9, 6)  # one of nine taps
    1.0
    """
    if kernel.domain != BLOCKED or kernel.op_type != "Conv" or not kernel.outputs:
        return 1.0
    pads = kernel.attributes.get("pads")
    if not isinstance(pads, tuple) or not any(pads):
        return 1.0
    size = kernel.inputs[1].shape[2:]
    rank = len(size)
    strides, dilations = (
        values if isinstance(values := kernel.attributes.get(name, (1,) * rank), tuple) else (1,) * rank
        for name in ("strides", "dilations")
    )
    space_in, space_out = kernel.inputs[0].shape[2:], kernel.outputs[0].shape[2:]
    met = prod(
        hits(space_in[axis], space_out[axis], size[axis], int(strides[axis]), int(dilations[axis]), int(pads[axis]))
        for axis in range(rank)
    )
    return met / max(1, prod(space_out) * prod(size))
