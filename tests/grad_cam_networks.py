"""Small networks with drawn weights whose Grad-CAM weights were recorded from torch, and where they were looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from latpred.collect.weights import fill_weights

NETWORKS = Path(__file__).parent / "networks"
node = helper.make_node


class Drawn:
    """Weights by name, drawn in the order in which they are asked for."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: list[TensorProto] = []

    def __call__(self, name: str, *shape: int, around: float = 0.0) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        scale = np.sqrt(2 / fan_in) if len(shape) > 1 else 0.1
        values = around + scale * self.rng.standard_normal(shape)
        return self.constant(name, values.astype(np.float32))

    def constant(self, name: str, values: object, dtype: type = np.float32) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name


def model(
    nodes: list[onnx.NodeProto],
    drawn: Drawn,
    shape: tuple[int, ...],
    outputs: Mapping[str, tuple[int, ...]],
    opset: int = 17,
) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in {"x": shape, **outputs}.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], drawn.tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def plain(seed: int = 0, batch: int = 2) -> onnx.ModelProto:
    """Convolutions and pooling, then a perceptron on the flattened map, then softmax."""
    w = Drawn(seed)
    nodes = [
        node("Conv", ["x", w("w1", 8, 3, 3, 3), w("b1", 8)], ["c1"], "conv1", pads=[1] * 4),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("MaxPool", ["r1"], ["m1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["m1", w("w2", 12, 8, 3, 3), w("b2", 12)], ["c2"], "conv2", pads=[1] * 4),
        node("Relu", ["c2"], ["r2"], "relu2"),
        node("MaxPool", ["r2"], ["m2"], "pool2", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        node("Flatten", ["m2"], ["f"], "flatten"),
        node("Gemm", ["f", w("w3", 20, 192), w("b3", 20)], ["h"], "hidden", transB=1),
        node("Relu", ["h"], ["r3"], "relu3"),
        node("Gemm", ["r3", w("w4", 20, 7), w("b4", 7)], ["scores"], "head", alpha=0.5),
        node("Softmax", ["scores"], ["y"], "softmax", axis=1),
    ]
    return model(nodes, w, (batch, 3, 16, 16), {"y": (batch, 7)})


def residual(seed: int = 1) -> onnx.ModelProto:
    """A residual block, squeeze-and-excitation, average pooling and a perceptron with HardSwish."""
    w = Drawn(seed)
    norm = [w("scale", 8, around=1), w("shift", 8), w("mean", 8), w("variance", 8, around=1)]
    nodes = [
        node("Conv", ["x", w("w1", 8, 3, 3, 3)], ["c1"], "stem", pads=[1] * 4, strides=[2, 2]),
        node("LeakyRelu", ["c1"], ["stem"], "stem/act", alpha=0.2),
        node("Conv", ["stem", w("w2", 8, 8, 3, 3)], ["c2"], "branch/conv1", pads=[1] * 4),
        node("BatchNormalization", ["c2", *norm], ["n2"], "branch/norm"),
        node("Relu", ["n2"], ["inner"], "branch/relu"),
        node("Conv", ["inner", w("w3", 8, 4, 3, 3)], ["c3"], "branch/conv2", pads=[1] * 4, group=2),
        node("GlobalAveragePool", ["c3"], ["pooled"], "gate/pool"),
        node("Conv", ["pooled", w("w4", 8, 8, 1, 1), w("b4", 8)], ["g1"], "gate/conv"),
        node("Sigmoid", ["g1"], ["gate"], "gate/sigmoid"),
        node("Mul", ["c3", "gate"], ["gated"], "gate/mul"),
        node("Add", ["gated", "stem"], ["sum"], "add"),
        node("Clip", ["sum", w.constant("zero", 0.0), w.constant("six", 6.0)], ["last"], "clip"),
        node("ReduceMean", ["last"], ["features"], "pool", axes=[2, 3], keepdims=0),
        node("MatMul", ["features", w("w5", 8, 24)], ["h1"], "hidden"),
        node("Add", ["h1", w("b5", 24)], ["h2"], "hidden/bias"),
        node("HardSwish", ["h2"], ["h3"], "hidden/act"),
        node("Gemm", ["h3", w("w6", 24, 6), w("b6", 6)], ["y"], "head"),
    ]
    return model(nodes, w, (1, 3, 16, 16), {"y": (1, 6)})


def mobilenet() -> onnx.ModelProto:
    return fill_weights(onnx.load(NETWORKS / "mobilenet_v2.onnx", load_external_data=False))


def mobilenet_v3() -> onnx.ModelProto:
    return fill_weights(onnx.load(NETWORKS / "mobilenetv3_large.onnx", load_external_data=False))


def vision_transformer() -> onnx.ModelProto:
    return fill_weights(onnx.load(NETWORKS / "vit_test_b2r160.onnx", load_external_data=False))


@dataclass(frozen=True)
class Case:
    """A network, the layer that is looked at, and how many extra tokens stand before its patches."""

    network: Callable[[], onnx.ModelProto]
    layer: str
    chosen: bool = False  # whether it is the one that is chosen where none is named
    extra_tokens: int = 0


CASES: Mapping[str, Case] = {
    "plain, last map": Case(plain, "m2", chosen=True),
    "plain, before pooling": Case(plain, "r2"),
    "plain, first map": Case(plain, "r1"),
    "residual, last map": Case(residual, "last", chosen=True),
    "residual, inside the branch": Case(residual, "inner"),
    "residual, before the branch": Case(residual, "stem"),
    "mobilenet, last map": Case(mobilenet, "/features/features.18/features.18.2/Clip_output_0", chosen=True),
    "mobilenet, earlier": Case(mobilenet, "/features/features.16/Add_output_0"),
    "mobilenet v3, last map": Case(mobilenet_v3, "hardswish_19", chosen=True),
    "vision transformer, last attention": Case(
        vision_transformer, "/blocks/blocks.4/Add_1_output_0", chosen=True, extra_tokens=1
    ),
}


def image(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)
