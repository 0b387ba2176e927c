"""Random small networks from the blocks that real ones are made of; a seed always gives the same graph."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]


class Builder:
    """Nodes, constants and shapes of a graph that grows."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.opset = self.random.choice([13, 17, 18])
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Shape] = {}

    def constant(self, value: object, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def weights(self, *shape: int) -> str:
        rng = np.random.default_rng(len(self.constants))
        return self.constant(np.abs(rng.standard_normal(shape)) * 0.1 + 0.01)

    def op(self, op_type: str, inputs: list[str], shape: Shape, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.shapes[name] = shape
        return name

    def either_way(self, op_type: str, first: str, second: str, shape: Shape) -> str:
        inputs = [first, second] if self.random.random() < 0.5 else [second, first]
        return self.op(op_type, inputs, shape)


def transpose(b: Builder, x: str, *perm: int) -> str:
    return b.op("Transpose", [x], tuple(b.shapes[x][axis] for axis in perm), perm=perm)


def reshape(b: Builder, x: str, *shape: int) -> str:
    attributes = {"allowzero": 1} if b.opset >= 14 and b.random.random() < 0.25 else {}
    return b.op("Reshape", [x, b.constant(shape, np.int64)], shape, **attributes)


def linear(b: Builder, x: str, width: int | None = None) -> str:
    *outer, depth = b.shapes[x]
    width = width or b.random.choice([8, 16, 24])
    y = b.op("MatMul", [x, b.weights(depth, width)], (*outer, width))
    return b.either_way("Add", y, b.weights(width), b.shapes[y]) if b.random.random() < 0.8 else y


def activation(b: Builder, x: str) -> str:
    shape = b.shapes[x]
    kind = b.random.choice(["Relu", "Sigmoid", "Tanh", "silu", "gelu", "gelu first", "clip", "hard-swish"])
    if kind == "silu":
        return b.either_way("Mul", x, b.op("Sigmoid", [x], shape), shape)
    if kind == "hard-swish":
        return b.either_way("Mul", x, b.op("HardSigmoid", [x], shape, alpha=1 / 6), shape)
    if kind == "clip":
        return b.op("Clip", [x, b.constant(0.0), b.constant(6.0)], shape)
    if kind.startswith("gelu"):
        erf = b.op("Erf", [b.op("Div", [x, b.constant(1.41421356)], shape)], shape)
        one = b.either_way("Add", erf, b.constant(1.0), shape)
        if kind == "gelu first":
            return b.either_way("Mul", b.either_way("Mul", x, b.constant(0.5), shape), one, shape)
        return b.either_way("Mul", b.either_way("Mul", x, one, shape), b.constant(0.5), shape)
    return b.op(kind, [x], shape)


def layer_norm(b: Builder, x: str) -> str:
    shape = b.shapes[x]
    scale, bias = b.weights(shape[-1]), b.weights(shape[-1])
    if b.opset >= 17 and b.random.random() < 0.7:
        return b.op("LayerNormalization", [x, scale, bias], shape, axis=-1)
    kept = (*shape[:-1], 1)
    centred = b.op("Sub", [x, mean(b, x, kept, -1)], shape)
    square = b.op("Pow", [centred, b.constant(2.0)], shape)
    deviation = b.op("Sqrt", [b.op("Add", [mean(b, square, kept, -1), b.constant(1e-5)], kept)], kept)
    scaled = b.either_way("Mul", b.op("Div", [centred, deviation], shape), scale, shape)
    return b.either_way("Add", scaled, bias, shape)


def mean(b: Builder, x: str, shape: Shape, *axes: int, keepdims: int = 1) -> str:
    if b.opset >= 18:
        return b.op("ReduceMean", [x, b.constant(axes, np.int64)], shape, keepdims=keepdims)
    return b.op("ReduceMean", [x], shape, axes=axes, keepdims=keepdims)


def attention(b: Builder, x: str) -> str:
    batch, length, width = b.shapes[x]
    heads, size = 2, width // 2
    q, k, v = (reshape(b, linear(b, x, width), batch, length, heads, size) for _ in range(3))
    q, k, v = transpose(b, q, 0, 2, 1, 3), transpose(b, k, 0, 2, 3, 1), transpose(b, v, 0, 2, 1, 3)
    if b.random.random() < 0.5:
        q = b.either_way("Mul", q, b.constant(0.25), b.shapes[q])
    scores = b.op("MatMul", [q, k], (batch, heads, length, length))
    if b.random.random() < 0.5:
        scores = b.op("Div", [scores, b.constant(2.0)], b.shapes[scores])
    mixed = b.op("MatMul", [b.op("Softmax", [scores], b.shapes[scores], axis=-1), v], b.shapes[q])
    joined = linear(b, reshape(b, transpose(b, mixed, 0, 2, 1, 3), batch, length, width), width)
    return b.either_way("Add", x, joined, b.shapes[x])


def mlp(b: Builder, x: str) -> str:
    inner = activation(b, linear(b, layer_norm(b, x), 32))
    return b.either_way("Add", linear(b, inner, b.shapes[x][-1]), x, b.shapes[x])


def conv(b: Builder, x: str, channels: int | None = None, kernel: int | None = None) -> str:
    batch, depth, height, width = b.shapes[x]
    kernel = kernel or b.random.choice([1, 3, 5])
    groups = depth if channels is None and b.random.random() < 0.3 else 1
    channels = channels or (depth if groups > 1 else b.random.choice([8, 16, 24, 32]))
    bias = [b.weights(channels)] if b.random.random() < 0.6 else []
    inputs = [x, b.weights(channels, depth // groups, kernel, kernel), *bias]
    pads = [kernel // 2] * 4
    shape = (batch, channels, height, width)
    return b.op("Conv", inputs, shape, kernel_shape=[kernel, kernel], pads=pads, group=groups)


def normalised_conv(b: Builder, x: str) -> str:
    y = conv(b, x)
    statistics = [b.weights(b.shapes[y][1]) for _ in range(4)]
    return activation(b, b.op("BatchNormalization", [y, *statistics], b.shapes[y], epsilon=1e-5))


def residual(b: Builder, x: str) -> str:
    y = conv(b, activation(b, conv(b, x)), b.shapes[x][1])
    return activation(b, b.either_way("Add", x, y, b.shapes[x]))


def squeeze_and_excite(b: Builder, x: str) -> str:
    batch, depth, _, _ = b.shapes[x]
    pooled = (batch, depth, 1, 1)
    y = b.op("GlobalAveragePool", [x], pooled) if b.random.random() < 0.5 else mean(b, x, pooled, 2, 3)
    y = b.op("Relu", [conv(b, y, 8, 1)], (batch, 8, 1, 1))
    return b.either_way("Mul", x, b.op("Sigmoid", [conv(b, y, depth, 1)], pooled), b.shapes[x])


def pool(b: Builder, x: str) -> str:
    batch, depth, height, width = b.shapes[x]
    if height < 4:
        return x
    shape = (batch, depth, height // 2, width // 2)
    return b.op(b.random.choice(["MaxPool", "AveragePool"]), [x], shape, kernel_shape=[2, 2], strides=[2, 2])


def as_tokens(b: Builder, x: str) -> str:
    batch, depth, height, width = b.shapes[x]
    y = mlp(b, transpose(b, reshape(b, x, batch, depth, height * width), 0, 2, 1))
    return reshape(b, transpose(b, y, 0, 2, 1), batch, depth, height, width)


def shuffle(b: Builder, x: str) -> str:
    batch, depth, height, width = b.shapes[x]
    y = transpose(b, reshape(b, x, batch, 2, depth // 2, height, width), 0, 2, 1, 3, 4)
    return reshape(b, y, batch, depth, height, width)


SEQUENCE: tuple[Callable[[Builder, str], str], ...] = (attention, mlp, linear, activation, layer_norm)
IMAGE: tuple[Callable[[Builder, str], str], ...] = (
    normalised_conv, residual, squeeze_and_excite, pool, as_tokens, shuffle, activation, conv,
)  # fmt: skip


def network(seed: int) -> onnx.ModelProto:
    """A few blocks in a row, on an image or on a sequence."""
    b = Builder(seed)
    blocks = IMAGE if seed % 2 else SEQUENCE
    shape = (b.random.choice([1, 2]), 16, 8, 8) if seed % 2 else (b.random.choice([1, 2]), 12, 16)
    b.shapes["x"] = shape
    y = b.op("Exp", ["x"], shape)
    for _ in range(b.random.randrange(2, 6)):
        y = b.random.choice(blocks)(b, y)
    graph = helper.make_graph(
        b.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, b.shapes[y])],
        [numpy_helper.from_array(value, name) for name, value in b.constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=9)
