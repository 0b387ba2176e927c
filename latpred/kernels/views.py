"""Which view of its problem a kernel is seen through: one literal table, kind -> views, with exceptions by op."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from latpred.kernels import arithmetic_views as arithmetic
from latpred.kernels import memory_views as memory
from latpred.kernels.kernel import Kernel

__all__ = ["COLUMNS", "VIEWS_OF_KIND", "VIEWS_OF_OP", "views_of"]

ViewFunction = Callable[[Kernel], tuple[float, ...]]
Views = Mapping[str, ViewFunction]

# View -> the raw numbers that its functions give, in order.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "window": arithmetic.WINDOW,
    "product": arithmetic.PRODUCT,
    "recurrence": arithmetic.RECURRENCE,
    "rows": memory.ROWS,
    "move": memory.MOVE,
    "broadcast": memory.BROADCAST,
    "resize": memory.RESIZE,
}

_WINDOW: Views = {"window": arithmetic.window}
_LOWERED: Views = {"window": arithmetic.window, "product": arithmetic.convolution_product}
_PRODUCT: Views = {"product": arithmetic.product}
_COPY: Views = {"move": memory.copy}
_LOOKUP: Views = {"move": memory.lookup}
_BROADCAST: Views = {"broadcast": memory.broadcast}
_ALONG_AXIS: Views = {"rows": memory.along_axis}
_SPATIAL: Views = {"rows": memory.spatial_axes}
_RESIZE: Views = {"resize": memory.resize}

VIEWS_OF_KIND: Mapping[str, Views] = {
    "conv": _WINDOW,
    "conv-pointwise": _WINDOW,
    "conv-grouped": _WINDOW,
    "conv-depthwise": _WINDOW,
    "conv-stem": _WINDOW,
    "conv-unblocked": _LOWERED,
    "conv-unblocked-grouped": _LOWERED,
    "conv-quantized": _LOWERED,
    "conv-quantized-grouped": _LOWERED,
    "conv-quantized-by-group": _LOWERED,
    "conv-integer": _LOWERED,
    "conv-deformable": _LOWERED,
    "conv-transpose": {"window": arithmetic.window, "product": arithmetic.transposed_convolution_product},
    "gemm": _PRODUCT,
    "matmul": _PRODUCT,
    "matmul-quantized": _PRODUCT,
    "einsum": {"product": arithmetic.einsum_product},
    "attention": {"product": arithmetic.attention_product},
    "recurrent": {"recurrence": arithmetic.recurrence, "product": arithmetic.recurrence_product},
    "softmax": _ALONG_AXIS,
    "sort": _ALONG_AXIS,
    "cumulative": _ALONG_AXIS,
    "layer-norm": {"rows": memory.trailing_axes},
    "batch-norm": _SPATIAL,
    "instance-norm": _SPATIAL,
    "global-pool": _SPATIAL,
    "reduce": {"rows": memory.reduction},
    "pool": _WINDOW,
    "pool-general": _WINDOW,
    "pool-norm": _WINDOW,
    "pool-channels-last": _WINDOW,
    "resize": _RESIZE,
    "sample": _RESIZE,
    "shuffle": _RESIZE,
    "reorder": {"move": memory.reorder},
    "transpose": {"move": memory.transpose},
    "concat": _COPY,
    "split": _COPY,
    "slice": _COPY,
    "pad": _COPY,
    "expand": {"move": memory.expansion},
    "gather": _LOOKUP,
    "scatter": _LOOKUP,
    "binary": _BROADCAST,
    "power": _BROADCAST,
    "prelu": _BROADCAST,
    "binary-quantized": _BROADCAST,
    "where": _BROADCAST,
    "rotary": _BROADCAST,
}

# Where an op's loop is not that of its kind.
VIEWS_OF_OP: Mapping[str, Views] = {
    "QLinearConcat": _COPY,
    "LpNormalization": _ALONG_AXIS,
}

_NONE: Views = {}


def views_of(kernel: Kernel) -> Views:
    """View name -> function, for one kernel; empty where its size says it all."""
    return VIEWS_OF_OP.get(kernel.op_type) or VIEWS_OF_KIND.get(kernel.kind, _NONE)
