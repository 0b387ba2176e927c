"""Views of kernels that calculate: windows, products, recurrences.

A view is one function: kernel -> as many numbers as it has columns; NaN where a number does not apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan, prod

from latpred.graph import Spec
from latpred.kernels.kernel import Kernel
from latpred.kernels.taps import executed_share

__all__ = [
    "PRODUCT",
    "RECURRENCE",
    "WINDOW",
    "attention_product",
    "convolution_product",
    "einsum_product",
    "product",
    "recurrence",
    "recurrence_product",
    "transposed_convolution_product",
    "window",
]

Shape = Sequence[int]

# Where the weight of a convolution or the right operand of a product stands among the inputs; elsewhere it is 1.
RIGHT_OPERAND = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}


def _ints(kernel: Kernel, name: str, default: int, count: int) -> tuple[int, ...]:
    value = kernel.attributes.get(name)
    if isinstance(value, tuple) and len(value) == count:
        return tuple(int(v) for v in value)
    return (default,) * count


def _int(kernel: Kernel, name: str, default: int = 0) -> int:
    value = kernel.attributes.get(name, default)
    return int(value) if isinstance(value, int | float) else default


def _operand(kernel: Kernel, index: int) -> Spec:
    return kernel.inputs[index] if index < len(kernel.inputs) else Spec(())


def _right(kernel: Kernel) -> Spec:
    return _operand(kernel, RIGHT_OPERAND.get(kernel.op_type, 1))


def _flat(values: Shape) -> tuple[int, int]:
    """(rows, columns) of a spatial extent of any rank: all but the last dim count as rows."""
    return (prod(values[:-1]), values[-1]) if values else (1, 1)


# -- window ------------------------------------------------------------------------------------------------------

WINDOW = (
    "batch", "channels_in", "channels_out", "groups", "height_in", "width_in", "height_out", "width_out",
    "kernel_height", "kernel_width", "stride_height", "stride_width", "dilation_height", "dilation_width",
    "pad_height", "pad_width", "pad_left", "spatial_rank", "channels_last", "executed_share",
)  # fmt: skip


def window(kernel: Kernel) -> tuple[float, ...]:
    """Convolution and pooling; a pool is a window with one group a channel."""
    image, result = _operand(kernel, 0).shape, kernel.outputs[0].shape
    rank = max(len(image) - 2, 0)
    last = bool(_int(kernel, "channels_last")) or kernel.op_type.startswith("Nhwc")
    if last:
        image = (*image[:1], *image[-1:], *image[1:-1])
        result = (*result[:1], *result[-1:], *result[1:-1])
    weight = _right(kernel).shape
    space_in, space_out = image[2:], result[2:]
    if len(weight) > 2 and len(weight) == len(image):
        size = weight[2:]
        groups = _int(kernel, "group", 1)
    else:
        size = _ints(kernel, "kernel_shape", 0, rank)
        size = space_in if 0 in size else size  # a global pool
        groups = image[1] if len(image) > 1 else 1
    strides = _ints(kernel, "strides", 1, rank)
    dilations = _ints(kernel, "dilations", 1, rank)
    pads = _ints(kernel, "pads", -1, 2 * rank)
    if -1 in pads:
        total = [
            max(0, (o - 1) * s + (k - 1) * d + 1 - i)
            for i, o, k, s, d in zip(space_in, space_out, size, strides, dilations, strict=False)
        ]
        pads = (*(p // 2 for p in total), *(p - p // 2 for p in total))
    height_in, width_in = _flat(space_in)
    height_out, width_out = _flat(space_out)
    kernel_height, kernel_width = _flat(size)
    return (
        image[0] if image else 1,
        image[1] if len(image) > 1 else 1,
        result[1] if len(result) > 1 else 1,
        groups,
        height_in, width_in, height_out, width_out, kernel_height, kernel_width,
        *(_flat(strides)), *(_flat(dilations)),
        sum(pads[: rank - 1]) + sum(pads[rank : 2 * rank - 1]) if rank else 0,
        pads[rank - 1] + pads[-1] if rank else 0,
        pads[rank - 1] if rank else 0,
        rank,
        last,
        executed_share(kernel),
    )  # fmt: skip


# -- product -----------------------------------------------------------------------------------------------------

PRODUCT = (
    "m", "n", "k", "products", "transposed_a", "transposed_b", "constant_a", "constant_b", "shared_b", "bias",
    "signed_b",
)  # fmt: skip


def _matrix(shape: Shape, transposed: bool) -> tuple[int, int]:
    rows, columns = (1, *shape)[-2:] if shape else (1, 1)
    return (columns, rows) if transposed else (rows, columns)


def _as_product(
    kernel: Kernel,
    m: float,
    n: float,
    k: float,
    count: float,
    *,
    shared: bool = False,
    transposed_a: bool = False,
    transposed_b: bool = False,
) -> tuple[float, ...]:
    right = _right(kernel)
    bias = len(kernel.inputs) > 2 and any(len(s.shape) == 1 and s.elements > 1 for s in kernel.inputs[2:])
    return (
        m, n, k, count, transposed_a, transposed_b, _operand(kernel, 0).constant, right.constant, shared, bias,
        right.dtype == "int8",
    )  # fmt: skip


def product(kernel: Kernel) -> tuple[float, ...]:
    """Matrix products: `products` of [m, k] x [k, n]; a right operand of rank 2 joins all rows into one product."""
    transposed_a, transposed_b = bool(_int(kernel, "transA")), bool(_int(kernel, "transB"))
    left, right, result = _operand(kernel, 0).shape, _right(kernel).shape, kernel.outputs[0].shape
    k, n = _matrix(right, transposed_b)
    m = _matrix(left, transposed_a)[0]
    count = prod(result) / max(1, m * n)
    shared = prod(right[:-2]) == 1 and count > 1
    if len(right) <= 2 and not transposed_a:
        m, count, shared = prod(left[:-1]), 1, False
    return _as_product(kernel, m, n, k, count, shared=shared, transposed_a=transposed_a, transposed_b=transposed_b)


def convolution_product(kernel: Kernel) -> tuple[float, ...]:
    """The product behind a convolution that is lowered to one: [filters, patch] x [patch, pixels] for each group."""
    weight, result = _right(kernel).shape, kernel.outputs[0].shape
    groups = _int(kernel, "group", 1)
    filters = weight[0] // groups if weight else 1
    return _as_product(kernel, filters, prod(result[2:]), prod(weight[1:]), result[0] * groups if result else 1)


def transposed_convolution_product(kernel: Kernel) -> tuple[float, ...]:
    """A transposed convolution: [filters x patch, channels] x [channels, pixels], then the patches are summed."""
    image, weight = _operand(kernel, 0).shape, _right(kernel).shape
    groups = _int(kernel, "group", 1)
    channels = weight[0] // groups if weight else 1
    return _as_product(kernel, prod(weight[1:]), prod(image[2:]), channels, image[0] * groups if image else 1)


def einsum_product(kernel: Kernel) -> tuple[float, ...]:
    """Two-operand Einsum as a product; `transposed_*` say that an operand has to be rearranged first."""
    equation = str(kernel.attributes.get("equation", "")).replace(" ", "")
    terms, _, result = equation.partition("->")
    names = terms.split(",")
    if (
        len(names) != 2
        or "." in equation
        or any(len(term) != len(spec.shape) for term, spec in zip(names, kernel.inputs, strict=False))
    ):
        return (nan,) * len(PRODUCT)
    sizes: dict[str, int] = {}
    for term, spec in zip(names, kernel.inputs, strict=False):
        sizes.update(zip(term, spec.shape, strict=True))
    left, right = names
    shared = [c for c in left if c in right and c in result]
    summed = [c for c in left if c in right and c not in result]
    rows, columns = [c for c in left if c not in right], [c for c in right if c not in left]

    def size(letters: Sequence[str]) -> int:
        return prod(sizes[c] for c in letters)

    return _as_product(
        kernel, size(rows), size(columns), size(summed), size(shared),
        transposed_a=left != "".join([*shared, *rows, *summed]),
        transposed_b=right != "".join([*shared, *summed, *columns]),
    )  # fmt: skip


def attention_product(kernel: Kernel) -> tuple[float, ...]:
    """Scores of attention: queries x keys for each head."""
    query, key, result = _operand(kernel, 0).shape, _operand(kernel, 1).shape, kernel.outputs[0].shape
    if len(query) not in (3, 4) or not result:
        return (nan,) * len(PRODUCT)
    heads = max(1, _int(kernel, "num_heads", _int(kernel, "q_num_heads", query[1] if len(query) == 4 else 1)))
    if len(query) == 4:
        keys = key[2] if len(key) == 4 else query[2]
        return _as_product(kernel, query[2], keys, query[3], query[0] * heads)
    if kernel.op_type == "Attention":  # query, key and value are still one product with the weight
        return _as_product(kernel, query[1], query[1], result[-1] // heads, query[0] * heads)
    keys = key[1] if len(key) > 1 else query[1]
    return _as_product(kernel, query[1], keys, query[-1] // heads, query[0] * heads)


# -- recurrence --------------------------------------------------------------------------------------------------

RECURRENCE = ("steps", "sequences", "input_size", "hidden_size", "directions", "gates")


def recurrence(kernel: Kernel) -> tuple[float, ...]:
    """LSTM, GRU and RNN: steps of a product with the recurrent weight."""
    image, weight, recurrent = (_operand(kernel, i).shape for i in range(3))
    steps, sequences = (image[0], image[1]) if len(image) == 3 else (1, 1)
    if _int(kernel, "layout"):
        steps, sequences = sequences, steps
    directions = weight[0] if len(weight) == 3 else (2 if kernel.attributes.get("direction") == "bidirectional" else 1)
    hidden = _int(kernel, "hidden_size", recurrent[-1] if recurrent else 1)
    gates = {"LSTM": 4, "GRU": 3}.get(kernel.op_type, 1)
    return (steps, sequences, image[-1] if image else 1, hidden, directions, gates)


def recurrence_product(kernel: Kernel) -> tuple[float, ...]:
    """The product with the input, for all steps at once."""
    steps, sequences, size, hidden, directions, gates = recurrence(kernel)
    return _as_product(kernel, steps * sequences, gates * hidden, size, directions)
