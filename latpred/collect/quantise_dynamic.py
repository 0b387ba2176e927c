"""Integer products whose input is quantized as it arrives, as ONNX Runtime's dynamic quantizer writes them.

Scales of weights are theirs; those of activations are found by the graph itself.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from latpred.collect.graph_rewriter import GraphRewriter

__all__ = ["quantise_dynamic"]


def quantise_dynamic(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Replace products with constant weights by integer ones whose input is quantized as it arrives, in place.

    Tables that are looked up in are integers too, dequantized behind the lookup.
    """
    work = GraphRewriter(model, rng)
    convolutions = bool(rng.random() < 0.3)  # which exist for uint8 weights only
    dtype = np.dtype("uint8" if convolutions else "int8")
    quantized: dict[str, tuple[str, str, str]] = {}

    def arriving(name: str) -> tuple[str, str, str]:
        if name not in quantized:
            results = (f"{name}_quantized", f"{name}_scale", f"{name}_zero")
            work.node("DynamicQuantizeLinear", [name], list(results), name)
            quantized[name] = results
        return quantized[name]

    for node in list(model.graph.node):
        weight = work.float_initializer(node.input[1]) if len(node.input) > 1 else None
        plain = not any(a.name == "transA" and a.i for a in node.attribute)
        if node.op_type == "Gather" and (table := work.float_initializer(node.input[0])) is not None:
            _integer_lookup(work, node, table, dtype)
        elif weight is not None and plain and node.op_type in ("MatMul", "Gemm"):
            _integer_product(work, node, weight, arriving(node.input[0]), dtype)
        elif weight is not None and node.op_type == "Conv" and convolutions:
            _integer_convolution(work, node, weight, arriving(node.input[0]), dtype)
        else:
            work.nodes.append(node)
    return work.finish()


def _rescaled(
    work: GraphRewriter, raw: str, input_scale: str, weight_scale: str, node: onnx.NodeProto, bias: str
) -> None:
    """Integer sums back to float: Cast, times both scales, plus the bias."""
    stem, result = node.name, node.output[0]
    work.node("Cast", [raw], [f"{raw}_float"], stem, to=TensorProto.FLOAT)
    work.node("Mul", [input_scale, weight_scale], [f"{raw}_scales"], stem)
    product = f"{raw}_product" if bias else result
    work.node("Mul", [f"{raw}_float", f"{raw}_scales"], [product], stem)
    if bias:
        work.node("Add", [product, bias], [result], stem)


def _integers(
    work: GraphRewriter, tensor: onnx.TensorProto, dtype: np.dtype, transposed: bool = False
) -> tuple[str, str, str]:
    """Names of the integers of a float initializer, of their scale and their zero point."""
    values = numpy_helper.to_array(tensor)
    values = values.T if transposed else values
    zero = 128 if dtype == np.uint8 else 0
    scale = np.float32(max(float(np.abs(values).max()), 1e-6) / 127)
    integers = (np.clip(np.round(values / scale), -127, 127) + zero).astype(dtype)
    return (
        work.constant(np.ascontiguousarray(integers), f"{tensor.name}_quantized"),
        work.constant(scale, "weight_scale"),
        work.constant(np.asarray(zero, dtype), "weight_zero"),
    )


def _integer_lookup(work: GraphRewriter, node: onnx.NodeProto, table: onnx.TensorProto, dtype: np.dtype) -> None:
    integers, scale, zero = _integers(work, table, dtype)
    result = node.output[0]
    node.input[0], node.output[0] = integers, f"{result}_quantized"
    work.nodes.append(node)
    work.node("DequantizeLinear", [node.output[0], scale, zero], [result], node.name)


def _integer_product(
    work: GraphRewriter, node: onnx.NodeProto, weight: onnx.TensorProto, arriving: tuple[str, str, str], dtype: np.dtype
) -> None:
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    integers, scale, zero = _integers(work, weight, dtype, transposed)
    raw = f"{node.output[0]}_integer"
    work.node("MatMulInteger", [arriving[0], integers, arriving[2], zero], [raw], node.name)
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    _rescaled(work, raw, arriving[1], scale, node, bias)


def _integer_convolution(
    work: GraphRewriter, node: onnx.NodeProto, weight: onnx.TensorProto, arriving: tuple[str, str, str], dtype: np.dtype
) -> None:
    integers, scale, zero = _integers(work, weight, dtype)
    raw = f"{node.output[0]}_integer"
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    work.node("ConvInteger", [arriving[0], integers, arriving[2], zero], [raw], node.name, **attributes)
    bias = ""
    if len(node.input) > 2:
        shape = np.array([1, -1, *[1] * (len(weight.dims) - 2)], np.int64)
        bias = f"{raw}_bias"
        work.node("Reshape", [node.input[2], work.constant(shape, "bias_shape")], [bias], node.name)
    _rescaled(work, raw, arriving[1], scale, node, bias)
