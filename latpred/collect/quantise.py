"""Quantized variants of a float graph, as quantizers write them: QDQ pairs (static) or integer products (dynamic).

Scales are constants of a plausible size: what an integer kernel costs does not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["quantise_dynamic", "quantise_static"]

ACTIVATION_SCALE = 0.03
HEAVY = ("Conv", "Gemm", "MatMul")
# Ops that a static quantizer wraps: which of their inputs are activations; the rest are weights or parameters.
WRAPPED: Mapping[str, tuple[int, ...] | None] = {
    # None: all inputs
    "Conv": (0,),
    "Gemm": (0,),
    "MatMul": None,
    "Add": None,
    "Mul": None,
    "Relu": (0,),
    "Clip": (0,),
    "Concat": None,
    "AveragePool": (0,),
    "GlobalAveragePool": (0,),
    "MaxPool": (0,),
    "Reshape": (0,),
    "Transpose": (0,),
    "Squeeze": (0,),
    "Unsqueeze": (0,),
    "Flatten": (0,),
    "Resize": (0,),
    "Split": (0,),
    "Softmax": (0,),
    "Sigmoid": (0,),
    "LeakyRelu": (0,),
    "Gather": (0,),
}


class _Rewriter:
    """Nodes and initializers of a graph that is being rewritten."""

    def __init__(self, model: onnx.ModelProto, rng: np.random.Generator) -> None:
        self.model = model
        self.rng = rng
        self.initializers = {t.name: t for t in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.added: list[onnx.TensorProto] = []
        self.count = 0

    def constant(self, array: np.ndarray | np.generic, stem: str) -> str:
        name = f"{stem}_{self.count}"
        self.count += 1
        self.added.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op_type: str, inputs: list[str], outputs: list[str], stem: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op_type, inputs, outputs, f"{stem}_{op_type}_{self.count}", **attributes))
        self.count += 1

    def finish(self) -> onnx.ModelProto:
        graph = self.model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [t for t in (*graph.initializer, *self.added) if t.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return self.model


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 tensors of a graph."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}


def quantise_static(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Wrap convolutions, products and the ops around them in QuantizeLinear and DequantizeLinear pairs, in place.

    Activations are uint8 or int8, one scale a tensor; weights int8, one scale a tensor or a channel; biases int32
    with the scale of the accumulator. A Relu or Clip behind a wrapped op goes: the quantization clips.
    """
    floats = _float_tensors(model)
    work = _Rewriter(model, rng)
    zero = np.int8(0) if rng.random() < 0.5 else np.uint8(128)
    per_channel = bool(rng.random() < 0.5)
    only_heavy = bool(rng.random() < 0.15)
    wrapped: dict[str, str] = {}
    nodes = _without_clipping(model, floats)

    def pair(name: str) -> str:
        if name not in wrapped:
            parameters = [work.constant(np.float32(ACTIVATION_SCALE), "scale"), work.constant(zero, "zero")]
            work.node("QuantizeLinear", [name, *parameters], [f"{name}_quantized"], name)
            wrapped[name] = f"{name}_dequantized"
            work.node("DequantizeLinear", [f"{name}_quantized", *parameters], [wrapped[name]], name)
        return wrapped[name]

    outputs = {v.name for v in model.graph.output}
    for node in nodes:
        heavy = node.op_type in HEAVY
        taken = node.op_type in WRAPPED and (heavy or not only_heavy) and _is_float(node.input[0], floats, work)
        if not taken:
            work.nodes.append(node)
            continue
        activations = WRAPPED[node.op_type]
        weight_scales = np.ones((), np.float32)
        for index, name in enumerate(node.input):
            tensor = work.initializers.get(name)
            if tensor is not None and tensor.data_type == TensorProto.FLOAT and heavy:
                if index == 2:
                    node.input[index] = _integer_bias(work, tensor, weight_scales)
                else:
                    axis = (
                        _channel_axis(node)
                        if per_channel and (len(tensor.dims) == 2 or node.op_type == "Conv")
                        else None
                    )
                    node.input[index], weight_scales = _integer_weight(work, tensor, axis)
            elif (activations is None or index in activations) and _is_float(name, floats, work):
                node.input[index] = pair(name)
        work.nodes.append(node)
        for name in node.output:
            if name in floats and name not in outputs:
                pair(name)
    # Whoever reads a wrapped tensor reads it after its pair, wrapped itself or not.
    for node in work.nodes:
        if node.op_type != "QuantizeLinear":
            for index, name in enumerate(node.input):
                node.input[index] = wrapped.get(name, name)
    return work.finish()


def _is_float(name: str, floats: set[str], work: _Rewriter) -> bool:
    tensor = work.initializers.get(name)
    return name in floats or (tensor is not None and tensor.data_type == TensorProto.FLOAT)


def _without_clipping(model: onnx.ModelProto, floats: set[str]) -> list[onnx.NodeProto]:
    """Nodes without the Relus and Clips that are the only reader of a wrapped op's result."""
    producers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    kept = []
    for node in model.graph.node:
        source = producers.get(node.input[0]) if node.op_type in ("Relu", "Clip") else None
        if source is not None and source.op_type in (*HEAVY, "Add") and readers[node.input[0]] == 1:
            source.output[0] = node.output[0]
            producers[node.output[0]] = source
            floats.add(node.output[0])
        else:
            kept.append(node)
    return kept


def _channel_axis(node: onnx.NodeProto) -> int:
    """The axis of the output channels in a node's weights."""
    if node.op_type == "Conv":
        return 0
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if turned else -1


def _integer_weight(work: _Rewriter, tensor: onnx.TensorProto, axis: int | None) -> tuple[str, np.ndarray]:
    """Name of the dequantized weights, and their scales."""
    values = numpy_helper.to_array(tensor)
    if axis is None or values.ndim < 2:
        spread = np.asarray(np.abs(values).max())
        scales = shaped = (np.maximum(spread, 1e-6) / 127).astype(np.float32)
        axis_attribute = {}
    else:
        axis %= values.ndim
        others = tuple(i for i in range(values.ndim) if i != axis)
        shaped = (np.maximum(np.abs(values).max(others, keepdims=True), 1e-6) / 127).astype(np.float32)
        scales, axis_attribute = shaped.reshape(-1), {"axis": axis}
    zeros = np.zeros(scales.shape, np.int8)
    quantized = work.constant(np.clip(np.round(values / shaped), -127, 127).astype(np.int8), f"{tensor.name}_quantized")
    result = f"{quantized}_dequantized"
    operands = [quantized, work.constant(scales, "weight_scale"), work.constant(zeros, "weight_zero")]
    work.node("DequantizeLinear", operands, [result], tensor.name, **axis_attribute)
    return result, scales


def _integer_bias(work: _Rewriter, tensor: onnx.TensorProto, weight_scales: np.ndarray) -> str:
    values = numpy_helper.to_array(tensor)
    scales = np.asarray(np.float32(ACTIVATION_SCALE) * weight_scales, np.float32)
    quantized = work.constant(np.round(values / scales).astype(np.int32), f"{tensor.name}_quantized")
    result = f"{quantized}_dequantized"
    zeros = np.zeros(scales.shape, np.int32)
    operands = [quantized, work.constant(scales, "bias_scale"), work.constant(zeros, "bias_zero")]
    work.node("DequantizeLinear", operands, [result], tensor.name, **({"axis": 0} if scales.ndim else {}))
    return result


def quantise_dynamic(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Replace products with constant weights by integer ones whose input is quantized as it arrives, in place."""
    work = _Rewriter(model, rng)
    convolutions = bool(rng.random() < 0.3)
    quantized: dict[str, tuple[str, str, str]] = {}

    def arriving(name: str) -> tuple[str, str, str]:
        if name not in quantized:
            results = (f"{name}_quantized", f"{name}_scale", f"{name}_zero")
            work.node("DynamicQuantizeLinear", [name], list(results), name)
            quantized[name] = results
        return quantized[name]

    for node in list(model.graph.node):
        weight = work.initializers.get(node.input[1]) if len(node.input) > 1 else None
        plain = not any(a.name == "transA" and a.i for a in node.attribute)
        if weight is None or weight.data_type != TensorProto.FLOAT or not plain:
            work.nodes.append(node)
        elif node.op_type in ("MatMul", "Gemm"):
            _integer_product(work, node, weight, arriving(node.input[0]))
        elif node.op_type == "Conv" and convolutions:
            _integer_convolution(work, node, weight, arriving(node.input[0]))
        else:
            work.nodes.append(node)
    return work.finish()


def _rescaled(work: _Rewriter, raw: str, input_scale: str, weight_scale: str, node: onnx.NodeProto, bias: str) -> None:
    """Integer sums back to float: Cast, times both scales, plus the bias."""
    stem, result = node.name, node.output[0]
    work.node("Cast", [raw], [f"{raw}_float"], stem, to=TensorProto.FLOAT)
    work.node("Mul", [input_scale, weight_scale], [f"{raw}_scales"], stem)
    product = f"{raw}_product" if bias else result
    work.node("Mul", [f"{raw}_float", f"{raw}_scales"], [product], stem)
    if bias:
        work.node("Add", [product, bias], [result], stem)


def _integer_product(
    work: _Rewriter, node: onnx.NodeProto, weight: onnx.TensorProto, arriving: tuple[str, str, str]
) -> None:
    values = numpy_helper.to_array(weight)
    if any(a.name == "transB" and a.i for a in node.attribute):
        values = values.T
    scale = np.float32(max(float(np.abs(values).max()), 1e-6) / 127)
    integer = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
    name = work.constant(np.ascontiguousarray(integer), f"{weight.name}_quantized")
    zero, scale_name = work.constant(np.int8(0), "weight_zero"), work.constant(scale, "weight_scale")
    raw = f"{node.output[0]}_integer"
    work.node("MatMulInteger", [arriving[0], name, arriving[2], zero], [raw], node.name)
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    _rescaled(work, raw, arriving[1], scale_name, node, bias)


def _integer_convolution(
    work: _Rewriter, node: onnx.NodeProto, weight: onnx.TensorProto, arriving: tuple[str, str, str]
) -> None:
    values = numpy_helper.to_array(weight)
    scale = np.float32(max(float(np.abs(values).max()), 1e-6) / 127)
    integer = np.clip(np.round(values / scale) + 128, 0, 255).astype(np.uint8)
    name = work.constant(integer, f"{weight.name}_quantized")
    zero, scale_name = work.constant(np.uint8(128), "weight_zero"), work.constant(scale, "weight_scale")
    raw = f"{node.output[0]}_integer"
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    work.node("ConvInteger", [arriving[0], name, arriving[2], zero], [raw], node.name, **attributes)
    bias = ""
    if len(node.input) > 2:
        shape = np.array([1, -1, *[1] * (values.ndim - 2)], np.int64)
        bias = f"{raw}_bias"
        work.node("Reshape", [node.input[2], work.constant(shape, "bias_shape")], [bias], node.name)
    _rescaled(work, raw, arriving[1], scale_name, node, bias)
