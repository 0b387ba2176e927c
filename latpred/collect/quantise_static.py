"""QDQ pairs around the ops of a float graph, as ONNX Runtime's static quantizer writes them.

Scales are constants of a plausible size: what an integer kernel costs does not depend on them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from latpred.collect.graph_rewriter import GraphRewriter

__all__ = ["OP_TYPES", "Manner", "quantise_static"]

SCALES = (0.012, 0.023)  # of activations: up to 6, where a Clip would cut
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
NORMS = ("LayerNormalization", "InstanceNormalization", "BatchNormalization")
REMOVABLE = ("Relu", "Clip")
# What a static quantizer wraps whatever comes in, and what only if its input is quantized already.
FORCED = frozenset(
    {*WEIGHTED, *NORMS, "Add", "Mul", "LeakyRelu", "Sigmoid", "GlobalAveragePool", "Concat", "Softmax", "Split", "Pad"}
)
FOLLOWING = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "GatherElements"}
    | {"Resize", "MaxPool", "AveragePool", "Where", *REMOVABLE}
)
# Their results have the scale of what came in.
SCALE_KEEPING = (FOLLOWING | {"Split", "Pad"}) - {"Where", *REMOVABLE}
# What callers ask for: all that can be, all but what loses most by it, or the heavy ones alone.
OP_TYPES = (FORCED | FOLLOWING, (FORCED | FOLLOWING) - {*NORMS, "Softmax"}, frozenset(WEIGHTED))
NON_NEGATIVE = ("Relu", "Clip", "Sigmoid", "Softmax")


@dataclass(frozen=True, slots=True)
class Manner:
    """What whoever called the quantizer asked for."""

    dtype: np.dtype  # of activations
    symmetric: bool  # zero points are 0: then Relu and Clip stay
    per_channel: bool
    own_zeros: bool  # weights of convolutions are asymmetric too: channels have zero points of their own
    op_types: frozenset[str]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Manner:
        """One of the manners in use."""
        dtype, symmetric = (("uint8", False), ("int8", False), ("int8", True))[int(rng.choice(3, p=[0.45, 0.4, 0.15]))]
        types = OP_TYPES[int(rng.choice(3, p=[0.76, 0.12, 0.12]))]
        per_channel = bool(rng.random() < 0.5)
        own_zeros = per_channel and not symmetric and bool(rng.random() < 0.25)
        return cls(np.dtype(dtype), symmetric, per_channel, own_zeros, types)


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 activations of a graph."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}


def quantise_static(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Put QuantizeLinear and DequantizeLinear pairs around what ONNX Runtime's static quantizer wraps, in place.

    Activations are uint8 or int8, one scale a tensor; weights int8, one scale (and, rarely, one zero point) a tensor
    or a channel; biases int32 with the scale of the accumulator. Where zero points are free, a Relu or Clip behind a
    wrapped op goes.
    """
    work = GraphRewriter(model, rng)
    manner = Manner.draw(rng)
    nodes, origins, non_negative = _marked(model, work, manner)
    grids = _Grids(work, manner, origins, non_negative)
    outputs = {v.name for v in model.graph.output}
    replaced: dict[str, str] = {}

    def pair(name: str) -> None:
        scale, zero = grids.of(name)
        written = f"{name}_float" if name in outputs else name
        read = name if name in outputs else f"{name}_dequantized"
        work.node("QuantizeLinear", [written, scale, zero], [f"{name}_quantized"], name)
        work.node("DequantizeLinear", [f"{name}_quantized", scale, zero], [read], name)
        if name not in outputs:
            replaced[name] = read

    for value in model.graph.input:
        if value.name in origins:
            pair(value.name)
    for node in nodes:
        if node.op_type in manner.op_types and (node.op_type in FORCED or node.op_type == "Gather"):
            _quantise_parameters(work, node, manner, grids, replaced)
        for index, name in enumerate(node.input):
            node.input[index] = replaced.get(name, name)
        written = list(node.output)
        for index, name in enumerate(written):
            if name in origins and name in outputs:
                node.output[index] = f"{name}_float"
        work.nodes.append(node)
        for name in written:
            if name in origins:
                pair(name)
    return work.finish()


def _marked(
    model: onnx.ModelProto, work: GraphRewriter, manner: Manner
) -> tuple[list[onnx.NodeProto], dict[str, str], set[str]]:
    """Nodes that stay; activations that get a pair, each with the one whose scale it has; those never below zero."""
    floats = _float_tensors(model)
    fixed = {v.name for v in (*model.graph.input, *model.graph.output)}
    readers = Counter(name for node in model.graph.node for name in node.input)
    producers: dict[str, onnx.NodeProto] = {}
    origins: dict[str, str] = {}
    non_negative: set[str] = set()
    kept: list[onnx.NodeProto] = []

    def mark(names: list[str]) -> None:
        for name in names:
            if name in floats:
                origins.setdefault(name, name)

    for node in model.graph.node:
        source, result = node.input[0], node.output[0]
        if node.op_type in NON_NEGATIVE:
            non_negative.add(result)
        producers.update(dict.fromkeys(node.output, node))
        kept.append(node)
        carried = node.input[1:] if node.op_type == "Where" else [source]
        follows = node.op_type in FOLLOWING and all(name in origins for name in carried)
        looks_up = node.op_type == "Gather" and work.float_initializer(source) is not None
        if node.op_type not in manner.op_types or not (node.op_type in FORCED or follows or looks_up):
            continue
        if node.op_type in REMOVABLE:
            if not manner.symmetric and readers[source] == 1 and source not in fixed:
                kept.pop()
                producers[source].output[list(producers[source].output).index(source)] = result
                producers[result] = producers.pop(source)
                del origins[source]
            mark([result])
        elif node.op_type in SCALE_KEEPING:
            mark([source])
            for name in node.output:
                if name in floats:
                    origins[name] = origins.get(source, source)
        else:
            mark([*node.input, *node.output])
    return kept, origins, non_negative


class _Grids:
    """Scale and zero point of each activation, as names of initializers."""

    def __init__(self, work: GraphRewriter, manner: Manner, origins: dict[str, str], non_negative: set[str]) -> None:
        self.work = work
        self.manner = manner
        self.origins = origins
        self.non_negative = non_negative
        self.scales: dict[str, np.float32] = {}
        self.names: dict[str, tuple[str, str]] = {}

    def of(self, name: str) -> tuple[str, str]:
        """Names of scale and zero point."""
        origin = self.origins.get(name, name)
        if origin not in self.names:
            limits = np.iinfo(self.manner.dtype)
            zero = (limits.max + limits.min) // 2 + int(self.work.rng.integers(-9, 10))
            if self.manner.symmetric:
                zero = 0
            elif origin in self.non_negative:
                zero = limits.min
            self.scales[origin] = np.float32(self.work.rng.uniform(*SCALES))
            tensor = self.work.float_initializer(origin)
            if tensor is not None:  # its values are known, and small ones would all become zero
                largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
                self.scales[origin] = np.float32(largest / 127 if largest > 1e-30 else 1.0)
                zero = (limits.max + limits.min + 1) // 2
            self.names[origin] = (
                self.work.constant(self.scales[origin], "scale"),
                self.work.constant(np.asarray(zero, self.manner.dtype), "zero"),
            )
        return self.names[origin]

    def scale(self, name: str) -> np.float32:
        """The scale itself."""
        self.of(name)
        return self.scales[self.origins.get(name, name)]


def _quantise_parameters(
    work: GraphRewriter, node: onnx.NodeProto, manner: Manner, grids: _Grids, replaced: dict[str, str]
) -> None:
    """Dequantized stand-ins for the weights, biases and constants of one wrapped node."""
    learned = node.op_type in (*WEIGHTED, *NORMS)
    activation = learned and node.input[1] in grids.origins
    weight_scales = np.asarray(grids.scale(node.input[1]) if activation else 1.0, np.float32)
    for index, name in enumerate(node.input):
        tensor = work.float_initializer(name)
        if tensor is None or name in replaced or (learned and index > 2):
            continue
        if learned and index == 2 and len(tensor.dims) > 0:
            replaced[name] = _integer_bias(work, tensor, weight_scales * grids.scale(node.input[0]))
        elif learned and index < 2:
            axis = _channel_axis(node) if manner.per_channel and node.op_type in WEIGHTED else None
            replaced[name], weight_scales = _integer_weight(
                work, tensor, axis, manner.own_zeros and node.op_type == "Conv"
            )
        elif not learned:
            replaced[name] = _integer_constant(work, tensor, grids)


def _integer_constant(work: GraphRewriter, tensor: onnx.TensorProto, grids: _Grids) -> str:
    """A constant operand, in the dtype of activations."""
    scale, zero = grids.of(tensor.name)
    limits = np.iinfo(grids.manner.dtype)
    middle = (limits.max + limits.min + 1) // 2
    integers = np.round(numpy_helper.to_array(tensor) / grids.scale(tensor.name)) + middle
    quantized = work.constant(
        np.clip(integers, limits.min, limits.max).astype(grids.manner.dtype), f"{tensor.name}_quantized"
    )
    work.node("DequantizeLinear", [quantized, scale, zero], [f"{quantized}_dequantized"], tensor.name)
    return f"{quantized}_dequantized"


def _channel_axis(node: onnx.NodeProto) -> int:
    """The axis of the output channels in a node's weights."""
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}[node.op_type]


def _integer_weight(
    work: GraphRewriter, tensor: onnx.TensorProto, axis: int | None, own_zeros: bool
) -> tuple[str, np.ndarray]:
    """Name of the dequantized weights, and their scales."""
    values = numpy_helper.to_array(tensor)
    axis_attribute: dict[str, int] = {}
    if axis is None or values.ndim < 2:
        spread = np.asarray(np.abs(values).max())
        scales = shaped = (np.maximum(spread, 1e-6) / 127).astype(np.float32)
    else:
        axis %= values.ndim
        others = tuple(i for i in range(values.ndim) if i != axis)
        shaped = (np.maximum(np.abs(values).max(others, keepdims=True), 1e-6) / 127).astype(np.float32)
        scales, axis_attribute = shaped.reshape(-1), {"axis": axis}
    zeros = np.zeros(scales.shape, np.int8)
    if own_zeros and scales.ndim:
        zeros = work.rng.integers(-20, 21, scales.shape).astype(np.int8)
    integers = np.round(values / shaped) + zeros.reshape(shaped.shape)
    quantized = work.constant(np.clip(integers, -127, 127).astype(np.int8), f"{tensor.name}_quantized")
    result = f"{quantized}_dequantized"
    operands = [quantized, work.constant(scales, "weight_scale"), work.constant(zeros, "weight_zero")]
    work.node("DequantizeLinear", operands, [result], tensor.name, **axis_attribute)
    return result, scales


def _integer_bias(work: GraphRewriter, tensor: onnx.TensorProto, scales: np.ndarray) -> str:
    values = numpy_helper.to_array(tensor)
    scales = np.asarray(scales, np.float32).reshape(-1)
    if scales.size != values.shape[-1]:
        scales = scales.max(keepdims=True)
    quantized = work.constant(np.round(values / scales).astype(np.int32), f"{tensor.name}_quantized")
    result = f"{quantized}_dequantized"
    zeros = np.zeros(scales.shape, np.int32)
    operands = [quantized, work.constant(scales, "bias_scale"), work.constant(zeros, "bias_zero")]
    axis_attribute = {"axis": values.ndim - 1} if scales.size > 1 else {}
    work.node("DequantizeLinear", operands, [result], tensor.name, **axis_attribute)
    return result
