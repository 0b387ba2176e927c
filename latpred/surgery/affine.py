"""What scales and shifts channels behind an op, folded into its weights, as runtimes do at inference.

Batch normalisations go into convolutions:

W' = W * s, b' = (b - mean) * s + shift with s = scale / sqrt(variance + epsilon), channel by channel (Jacob et al.,
"Quantization and training of neural networks", CVPR 2018, section 3.2). A product with a constant matrix and the bias
added behind it become one Gemm on rows.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper

from latpred.reading.nodes import copied
from latpred.surgery.channels import attributes_of
from latpred.surgery.weights import bare, constant, values_of
from latpred.surgery.wiring import Wiring, assembled, declared, wired
from latpred.tensors import Spec

__all__ = ["folded_into_weights"]

EPSILON = 1e-5  # ONNX's default


def folded_into_weights(piece: onnx.ModelProto) -> onnx.ModelProto:
    """The same function without normalisations behind convolutions, and without biases behind products.

    Where weights or statistics are missing, what they are folded to has dims only.
    """
    return _with_biases(wired(_without_normalisations(wired(piece))))


def _without_normalisations(wiring: Wiring) -> onnx.ModelProto:
    piece = wiring.model
    nodes = {index: copied(node) for index, node in enumerate(wiring.nodes)}
    stored: list[TensorProto] = list(piece.graph.initializer)
    for index, node in enumerate(wiring.nodes):
        conv = _convolution_before(wiring, index)
        if conv is None:
            continue
        target = nodes[conv]
        weight, bias = _folded(wiring, conv, node)
        stored += [weight, bias]
        inputs = [target.input[0], weight.name, bias.name]
        del target.input[:]
        target.input.extend(inputs)
        target.output[0] = node.output[0]
        del nodes[index]
    graph = piece.graph
    return assembled(piece, graph.name, list(nodes.values()), graph.input, graph.output, stored, wiring.infos)


def _convolution_before(wiring: Wiring, index: int) -> int | None:
    node = wiring.nodes[index]
    if node.op_type != "BatchNormalization" or any(name not in wiring.stored for name in node.input[1:]):
        return None
    if attributes_of(node).get("training_mode", 0):
        return None
    source = node.input[0]
    conv = wiring.makers.get(source, -1)
    if conv < 0 or wiring.nodes[conv].op_type != "Conv" or source in wiring.outputs or len(wiring.users[source]) != 1:
        return None
    constant_weights = all(name in wiring.stored for name in wiring.nodes[conv].input[1:] if name)
    return conv if constant_weights else None


def _folded(wiring: Wiring, conv: int, norm: onnx.NodeProto) -> tuple[TensorProto, TensorProto]:
    node = wiring.nodes[conv]
    weight = wiring.stored[node.input[1]]
    channels = weight.dims[0]
    names = f"{node.name}:{weight.name}~folded", f"{node.name}:{weight.name}~bias"
    read = [weight, *(wiring.stored[name] for name in norm.input[1:])]
    biased = len(node.input) > 2 and bool(node.input[2])
    if biased:
        read.append(wiring.stored[node.input[2]])
    values = [known for tensor in read if (known := values_of(tensor)) is not None]
    if len(values) < len(read):
        return (
            bare(names[0], weight.dims, weight.data_type),
            bare(names[1], [channels], weight.data_type),
        )
    matrix, scale, shift, mean, variance = values[:5]
    own = values[5] if biased else np.zeros(channels, matrix.dtype)
    factor = scale / np.sqrt(variance + float(str(attributes_of(norm).get("epsilon", EPSILON))))
    spread = factor.reshape(-1, *[1] * (matrix.ndim - 1))
    return (
        constant(names[0], (matrix * spread).astype(matrix.dtype)),
        constant(names[1], ((own - mean) * factor + shift).astype(matrix.dtype)),
    )


def _with_biases(wiring: Wiring) -> onnx.ModelProto:
    piece = wiring.model
    nodes: list[onnx.NodeProto] = []
    stored: list[TensorProto] = list(piece.graph.initializer)
    infos = dict(wiring.infos)
    replaced: set[int] = set()
    flattened: set[str] = set()
    for index, node in enumerate(wiring.nodes):
        if index in replaced:
            continue
        add = _bias_behind(wiring, index)
        if add is None:
            nodes.append(copied(node))
            continue
        replaced.add(add)
        x, result = node.input[0], wiring.nodes[add].output[0]
        bias = next(name for name in wiring.nodes[add].input if name in wiring.stored)
        source, target = wiring.spec(x), wiring.spec(result)
        deep = len(source.shape) > 2
        rows, made = (f"{x}:rows", f"{result}:rows") if deep else (x, result)
        gemm = helper.make_node("Gemm", [rows, node.input[1], bias], [made], node.name)
        if not deep:
            nodes.append(gemm)
            continue
        count = prod(source.shape[:-1])
        infos[rows] = declared(rows, Spec((count, source.shape[-1]), source.dtype))
        infos[made] = declared(made, Spec((count, target.shape[-1]), target.dtype))
        if x not in flattened:
            flattened.add(x)
            stored.append(constant(f"{rows}:shape", np.array([count, source.shape[-1]], np.int64)))
            nodes.append(helper.make_node("Reshape", [x, f"{rows}:shape"], [rows], f"{x}/flatten"))
        stored.append(constant(f"{made}:shape", np.array(target.shape, np.int64)))
        nodes += [gemm, helper.make_node("Reshape", [made, f"{made}:shape"], [result], f"{result}/unflatten")]
    graph = piece.graph
    return assembled(piece, graph.name, nodes, graph.input, graph.output, stored, infos)


def _bias_behind(wiring: Wiring, index: int) -> int | None:
    """The node that adds a constant vector to a product with a constant matrix, if nothing else reads the product."""
    node = wiring.nodes[index]
    result = node.output[0]
    users = wiring.users.get(result, ())
    if node.op_type != "MatMul" or len(users) != 1 or result in wiring.outputs or node.input[0] in wiring.stored:
        return None
    behind = wiring.nodes[users[0]]
    matrix = wiring.stored.get(node.input[1])
    biases = [wiring.stored[name] for name in behind.input if name in wiring.stored]
    if behind.op_type != "Add" or matrix is None or len(matrix.dims) != 2 or len(biases) != 1:
        return None
    return users[0] if list(biases[0].dims) == [matrix.dims[1]] and len(wiring.spec(result).shape) > 1 else None
