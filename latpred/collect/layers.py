"""Layers as exporters write them: activations, norms, linear and convolution layers, pooling, small attention gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod, sqrt

import numpy as np

from latpred.collect.graph_builder import GraphBuilder, Value

__all__ = [
    "ACTIVATIONS",
    "activation",
    "batch_norm",
    "channel_gate",
    "convolution",
    "flatten",
    "global_pool",
    "layer_norm",
    "linear",
    "pool",
    "reduce",
    "reshape",
    "resize",
    "rms_norm",
    "split",
    "squeeze",
    "transpose",
    "unsqueeze",
    "window_slice",
]


# ---- activations -------------------------------------------------------------------------------------------------


def _gelu(b: GraphBuilder, x: Value) -> Value:
    if b.style.gelu == "operator" and b.style.opset >= 20:
        return b.op("Gelu", x)
    half = b.op("Erf", b.op("Div", x, sqrt(2.0)) if b.style.layer_names else b.op("Mul", x, sqrt(0.5)))
    if b.style.layer_names:
        return b.op("Mul", b.op("Mul", x, b.op("Add", half, 1.0)), 0.5)
    return b.op("Mul", b.op("Mul", x, 0.5), b.op("Add", half, 1.0))


def _gelu_tanh(b: GraphBuilder, x: Value) -> Value:
    if b.style.gelu == "operator" and b.style.opset >= 20:
        return b.op("Gelu", x, approximate="tanh")
    cube = b.op("Mul", b.op("Pow", x, 3.0), 0.044715)
    inner = b.op("Tanh", b.op("Mul", b.op("Add", x, cube), sqrt(2.0 / np.pi)))
    return b.op("Mul", b.op("Mul", x, 0.5), b.op("Add", inner, 1.0))


def _hard_swish(b: GraphBuilder, x: Value) -> Value:
    if b.style.opset >= 14 and b.style.layer_names:
        return b.op("HardSwish", x)
    return b.op("Div", b.op("Mul", x, b.op("Clip", b.op("Add", x, 3.0), 0.0, 6.0)), 6.0)


def _hard_sigmoid(b: GraphBuilder, x: Value) -> Value:
    if b.style.layer_names:
        return b.op("HardSigmoid", x, alpha=1.0 / 6.0)
    return b.op("Div", b.op("Clip", b.op("Add", x, 3.0), 0.0, 6.0), 6.0)


def _mish(b: GraphBuilder, x: Value) -> Value:
    if b.style.opset >= 18 and not b.style.layer_names:
        return b.op("Mish", x)
    return b.op("Mul", x, b.op("Tanh", b.op("Softplus", x)))


def _prelu(b: GraphBuilder, x: Value) -> Value:
    shared = b.chance(0.4)
    slope = b.weight((1 if shared else x.shape[1], *(1,) * (len(x.shape) - 2)), 0.05, 0.25)
    return b.op("PRelu", x, slope)


ACTIVATIONS: dict[str, Callable[[GraphBuilder, Value], Value]] = {
    "none": lambda _, x: x,
    "relu": lambda b, x: b.op("Relu", x),
    "relu6": lambda b, x: b.op("Clip", x, 0.0, 6.0),
    "silu": lambda b, x: b.op("Mul", x, b.op("Sigmoid", x)),
    "hard_swish": _hard_swish,
    "hard_sigmoid": _hard_sigmoid,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": lambda b, x: b.op("Mul", x, b.op("Sigmoid", b.op("Mul", x, 1.702))),
    "leaky_relu": lambda b, x: b.op("LeakyRelu", x, alpha=0.1),
    "prelu": _prelu,
    "elu": lambda b, x: b.op("Elu", x),
    "selu": lambda b, x: b.op("Selu", x),
    "mish": _mish,
    "sigmoid": lambda b, x: b.op("Sigmoid", x),
    "tanh": lambda b, x: b.op("Tanh", x),
    "softplus": lambda b, x: b.op("Softplus", x),
    "squared_relu": lambda b, x: b.op("Pow", b.op("Relu", x), 2.0),
}


def activation(b: GraphBuilder, x: Value, name: str) -> Value:
    """Apply an activation by name (`ACTIVATIONS`)."""
    return ACTIVATIONS[name](b, x)


# ---- shape-only layers -------------------------------------------------------------------------------------------


def reshape(b: GraphBuilder, x: Value, shape: Sequence[int]) -> Value:
    """Reshape to a constant shape; one -1 is allowed."""
    return b.op("Reshape", x, b.constant(list(shape)))


def flatten(b: GraphBuilder, x: Value) -> Value:
    """Everything but the first dim into one."""
    return b.op("Flatten", x) if b.style.layer_names else reshape(b, x, (x.shape[0], prod(x.shape[1:])))


def transpose(b: GraphBuilder, x: Value, order: Sequence[int]) -> Value:
    """Permute dims."""
    return b.op("Transpose", x, perm=list(order))


def squeeze(b: GraphBuilder, x: Value, axes: Sequence[int]) -> Value:
    """Drop dims of one."""
    if b.style.opset < 13:
        return b.op("Squeeze", x, axes=list(axes))
    return b.op("Squeeze", x, b.constant(list(axes)))


def unsqueeze(b: GraphBuilder, x: Value, axes: Sequence[int]) -> Value:
    """Insert dims of one."""
    if b.style.opset < 13:
        return b.op("Unsqueeze", x, axes=list(axes))
    return b.op("Unsqueeze", x, b.constant(list(axes)))


def split(b: GraphBuilder, x: Value, sizes: Sequence[int], axis: int) -> tuple[Value, ...]:
    """Cut into parts of given sizes."""
    if b.style.opset < 13:
        return b.multi("Split", x, outputs=len(sizes), axis=axis, split=list(sizes))
    return b.multi("Split", x, b.constant(list(sizes)), outputs=len(sizes), axis=axis)


def window_slice(b: GraphBuilder, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
    """x[start:stop:step] along one axis."""
    return b.op("Slice", x, b.constant([start]), b.constant([stop]), b.constant([axis]), b.constant([step]))


def reduce(b: GraphBuilder, op_type: str, x: Value, axes: Sequence[int], keepdims: bool = True) -> Value:
    """A Reduce* op; its axes are an attribute or an input, as the opset has it."""
    since = 13 if op_type == "ReduceSum" else 18
    if b.style.opset < since:
        return b.op(op_type, x, axes=list(axes), keepdims=int(keepdims))
    return b.op(op_type, x, b.constant(list(axes)), keepdims=int(keepdims))


# ---- norms -------------------------------------------------------------------------------------------------------


def batch_norm(b: GraphBuilder, x: Value) -> Value:
    """A BatchNormalization with plausible running statistics."""
    channels = (x.shape[1],)
    variance = b.initializer(np.abs(b.rng.standard_normal(channels, np.float32)) * 0.2 + 0.9)
    return b.op(
        "BatchNormalization",
        x,
        b.weight(channels, 0.1, 1.0),
        b.weight(channels, 0.1),
        b.weight(channels, 0.1),
        variance,
    )


def layer_norm(b: GraphBuilder, x: Value) -> Value:
    """LayerNorm over the last dim: the operator, or decomposed as older exporters write it."""
    scale, bias = b.weight((x.shape[-1],), 0.1, 1.0), b.weight((x.shape[-1],), 0.1)
    if b.style.opset >= 17 and b.style.layer_norm == "operator":
        return b.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)
    centred = b.op("Sub", x, reduce(b, "ReduceMean", x, [-1]))
    variance = reduce(b, "ReduceMean", b.op("Pow", centred, 2.0), [-1])
    normal = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, 1e-5)))
    return b.op("Add", b.op("Mul", normal, scale), bias)


def rms_norm(b: GraphBuilder, x: Value) -> Value:
    """Root-mean-square norm over the last dim, decomposed."""
    scale = b.weight((x.shape[-1],), 0.1, 1.0)
    root = b.op("Sqrt", b.op("Add", reduce(b, "ReduceMean", b.op("Pow", x, 2.0), [-1]), 1e-6))
    if b.style.layer_names:
        return b.op("Mul", scale, b.op("Mul", x, b.op("Div", b.constant(1.0, "float32"), root)))
    return b.op("Mul", b.op("Mul", x, b.op("Reciprocal", root)), scale)


# ---- linear and convolution --------------------------------------------------------------------------------------


def linear(b: GraphBuilder, x: Value, out: int, bias: bool = True) -> Value:
    """X @ W + bias over the last dim, in the style's way."""
    width = x.shape[-1]
    if len(x.shape) == 2 and bias:
        return b.op("Gemm", x, b.weight((out, width), 1 / sqrt(width)), b.weight((out,), 0.1), transB=1)
    if b.style.linear == "gemm" and bias:
        rows = reshape(b, x, (-1, width))
        y = b.op("Gemm", rows, b.weight((width, out)), b.weight((out,), 0.1))
        return reshape(b, y, (*x.shape[:-1], out))
    y = b.op("MatMul", x, b.weight((width, out)))
    if not bias:
        return y
    offset = b.weight((out,), 0.1)
    return b.op("Add", offset, y) if b.style.layer_names else b.op("Add", y, offset)


def convolution(
    b: GraphBuilder,
    x: Value,
    out: int,
    kernel: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    groups: int = 1,
    dilation: int = 1,
    act: str = "none",
    norm: bool = True,
    bias: bool = False,
    padding: int | None = None,
    same_upper: bool = False,
) -> Value:
    """Convolution over any number of dims, with a BatchNorm (folded or not, as the style has it) and an activation.

    `padding` None keeps the size (at stride 1); `same_upper` pads as TensorFlow's exporters do.
    """
    dims = len(x.shape) - 2
    kernel_shape = [kernel] * dims if isinstance(kernel, int) else list(kernel)
    strides = [stride] * dims if isinstance(stride, int) else list(stride)
    channels = x.shape[1]
    weights = b.weight((out, channels // groups, *kernel_shape))
    has_bias = bias or (norm and b.style.fold_batch_norm)
    offset = b.weight((out,), 0.1) if has_bias else None
    where: dict[str, object]
    if same_upper:
        where = {"auto_pad": "SAME_UPPER"}
    else:
        margins = [dilation * (k - 1) // 2 if padding is None else padding for k in kernel_shape]
        where = {"pads": margins * 2}
    y = b.op(
        "Conv",
        x,
        weights,
        *([offset] if offset else []),
        kernel_shape=kernel_shape,
        strides=strides,
        dilations=[dilation] * dims,
        group=groups,
        **where,
    )
    if norm and not b.style.fold_batch_norm:
        y = batch_norm(b, y)
    return activation(b, y, act)


def pool(
    b: GraphBuilder, x: Value, kind: str = "MaxPool", kernel: int = 3, stride: int = 2, **attributes: int
) -> Value:
    """MaxPool or AveragePool with half padding."""
    dims = len(x.shape) - 2
    return b.op(
        kind,
        x,
        kernel_shape=[kernel] * dims,
        strides=[stride] * dims,
        pads=[(kernel - 1) // 2] * (2 * dims),
        **attributes,
    )


def global_pool(b: GraphBuilder, x: Value, keepdims: bool = True) -> Value:
    """Mean over the positions of an image, as one of the ops that exporters use."""
    if keepdims and b.chance(0.5):
        return b.op("GlobalAveragePool", x)
    return reduce(b, "ReduceMean", x, list(range(2, len(x.shape))), keepdims)


def resize(b: GraphBuilder, x: Value, scale: float, mode: str = "nearest") -> Value:
    """Resize an image by a factor, by scales or by sizes."""
    coordinates = {"nearest": "asymmetric", "linear": "half_pixel", "cubic": "half_pixel"}[mode]
    attributes: dict[str, object] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = "floor"
    elif mode == "linear" and b.chance(0.3):
        attributes["coordinate_transformation_mode"] = "align_corners"
    no_region = b.constant(np.zeros(0), "float32") if b.style.opset < 13 else None
    spatial = len(x.shape) - 2
    if b.chance(0.5):
        sizes = [*x.shape[:2], *(int(n * scale) for n in x.shape[2:])]
        none = b.constant(np.zeros(0), "float32") if b.style.opset < 13 else None
        return b.op("Resize", x, no_region, none, b.constant(sizes), **attributes)
    return b.op("Resize", x, no_region, b.constant([1.0, 1.0, *[float(scale)] * spatial], "float32"), **attributes)


def channel_gate(b: GraphBuilder, x: Value, kind: str, ratio: float = 0.25, act: str = "relu") -> Value:
    """Squeeze-and-excitation and its relatives: "se" (convolutions), "se_linear", "eca" (1-D convolution)."""
    channels = x.shape[1]
    gate = str(b.choose(["sigmoid", "hard_sigmoid"], [0.7, 0.3]))
    hidden = max(4, int(channels * ratio) // 4 * 4)
    if kind == "eca":
        mean = reduce(b, "ReduceMean", x, [2, 3], keepdims=False)
        row = unsqueeze(b, mean, [1])
        size = int(b.choose([3, 5, 7]))
        scores = convolution(b, row, 1, size, norm=False)
        scale = b.op("Sigmoid", scores)
        return b.op("Mul", x, reshape(b, scale, (x.shape[0], channels, 1, 1)))
    if kind == "se_linear":
        mean = flatten(b, b.op("GlobalAveragePool", x))
        y = activation(b, linear(b, mean, hidden), act)
        scale = activation(b, linear(b, y, channels), gate)
        return b.op("Mul", x, reshape(b, scale, (x.shape[0], channels, 1, 1)))
    mean = global_pool(b, x)
    y = convolution(b, mean, hidden, 1, norm=False, bias=True, act=act)
    scale = activation(b, convolution(b, y, channels, 1, norm=False, bias=True), gate)
    return b.op("Mul", x, scale)
