"""Ops between DequantizeLinear and QuantizeLinear become integer kernels; products with dynamic quantization too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latpred.kernels.fusion import RuleBook
from latpred.kernels.quantization import DEQUANTIZE, QUANTIZE, same_parameters, zero_point
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["KERNELS", "dynamic_quantize_matmul", "matmul_integer_to_float", "qdq_kernels"]

MICROSOFT = "com.microsoft"
EIGHT_BIT = frozenset({"int8", "uint8"})
SIXTEEN_BIT = frozenset({"int16", "uint16"})


@dataclass(frozen=True, slots=True)
class Group:
    """An op with the DQ nodes before it and the Q nodes behind it."""

    node: Node
    before: tuple[Node, ...]
    behind: tuple[Node, ...]


def qdq_kernels(graph: WorkingGraph, rules: RuleBook) -> None:
    """Every op of the table whose inputs are all dequantized and whose outputs are all quantized."""
    rule = "qdq-kernels"
    if not rules.holds(rule) or not graph.by_type.get(DEQUANTIZE):
        return
    for node in graph.of_type(*KERNELS):
        group = Group(node, _before(graph, node), _behind(graph, node))
        if not group.before:
            continue
        try:
            new = KERNELS[node.op_type](graph, group)
        except _Refusal as refusal:
            graph.remark(node.ops, rule, False, str(refusal))
            continue
        graph.remark(new.ops, rule, True, f"becomes {new.op_type} on integers")


class _Refusal(Exception):  # noqa: N818 - a message for `--explain`, never seen outside
    """Why an op stays in floating point."""


def _before(graph: WorkingGraph, node: Node) -> tuple[Node, ...]:
    producers = [graph.producers.get(name) for name in node.inputs]
    return tuple(p for p in producers if p is not None and p.op_type == DEQUANTIZE)


def _behind(graph: WorkingGraph, node: Node) -> tuple[Node, ...]:
    users = [graph.sole_use(name) for name in node.outputs if name]
    return tuple(u for u in users if u is not None and u.op_type == QUANTIZE)


def _require(
    graph: WorkingGraph, group: Group, inputs: int | None = None, quantized: bool | None = True, wide: bool = False
) -> str:
    """Check a group as the runtime does; the element type of its first input.

    `inputs` is how many inputs must be dequantized (all where None), `quantized` whether the outputs must be
    (None: if one is, all are), `wide` whether 16-bit types will do.
    """
    node = group.node
    wanted = sum(map(bool, node.inputs)) if inputs is None else inputs
    if len(group.before) != wanted:
        raise _Refusal(f"{len(group.before)} of the {wanted} inputs that have to be are dequantized")
    if any(graph.sole_use(dq.outputs[0]) is not node for dq in group.before):
        raise _Refusal("a dequantized input is used elsewhere too")
    outputs = [name for name in node.outputs if name]
    if (group.behind or quantized) and len(group.behind) != len(outputs):
        raise _Refusal("not all outputs go to one QuantizeLinear each")
    dtype = _stored(graph, group.before[0])
    if not wide and dtype in SIXTEEN_BIT:
        raise _Refusal("there is no such kernel for 16-bit integers")
    if any(graph.tensors[q.outputs[0]].dtype != dtype for q in group.behind):
        raise _Refusal("input and output are of different integer types")
    return dtype


def _stored(graph: WorkingGraph, dequantize: Node) -> str:
    return graph.tensors[dequantize.inputs[0]].dtype


def _parameters(graph: WorkingGraph, node: Node) -> list[str]:
    """Scale and zero point of a Q or DQ; a constant 0 where the point is left out."""
    if len(node.inputs) > 2 and node.inputs[2]:
        return node.inputs[1:3]
    point = zero_point(graph, node)
    dtype = point[1] if point else "uint8"
    return [node.inputs[1], graph.tensor("zero_point", (), dtype, True, np.zeros((), np.dtype(dtype)))]


def _form(graph: WorkingGraph, group: Group, op_type: str, domain: str, inputs: list[str]) -> Node:
    outputs = [q.outputs[0] for q in group.behind] or list(group.node.outputs)
    node = group.node
    new = Node(op_type, domain, node.name, inputs, outputs, dict(node.attributes), (), node.epilogue, rank=node.rank)
    return graph.replace([*dict.fromkeys(group.before), node, *group.behind], new)


def _keep(graph: WorkingGraph, group: Group) -> Node:
    """The op itself, on integers: it only moves data."""
    inputs = list(group.node.inputs)
    inputs[0] = group.before[0].inputs[0]
    return _form(graph, group, group.node.op_type, group.node.domain, inputs)


def _move(graph: WorkingGraph, group: Group) -> Node:
    _require(graph, group, inputs=1, wide=True)
    if not all(same_parameters(graph, group.before[0], q) for q in group.behind):
        raise _Refusal("input and output are quantized differently")
    return _keep(graph, group)


def _move_bytes(graph: WorkingGraph, group: Group) -> Node:
    _require(graph, group, inputs=1)
    return _move(graph, group)


def _resize(graph: WorkingGraph, group: Group) -> Node:
    if group.node.attributes.get("mode", "nearest") != "nearest":
        raise _Refusal("only a Resize to the nearest value leaves the numbers as they are")
    return _move_bytes(graph, group)


def _select(graph: WorkingGraph, group: Group) -> Node:
    if graph.producers.get(group.node.inputs[0]) is not group.before[0] or len(group.before) != 1:
        raise _Refusal("the input is not dequantized")
    if graph.sole_use(group.before[0].outputs[0]) is not group.node:
        raise _Refusal("the dequantized input is used elsewhere too")
    return _keep(graph, Group(group.node, group.before, ()))


def _unary(graph: WorkingGraph, group: Group) -> Node:
    _require(graph, group, inputs=1)
    source = group.before[0]
    inputs = [source.inputs[0], *_parameters(graph, source), *_parameters(graph, group.behind[0])]
    return _form(graph, group, f"QLinear{group.node.op_type}", MICROSOFT, inputs)


def _elementwise(graph: WorkingGraph, group: Group) -> Node:
    dtype = _require(graph, group)
    if any(_stored(graph, dq) != dtype for dq in group.before):
        raise _Refusal("the inputs are of different integer types")
    inputs = [name for dq in group.before for name in (dq.inputs[0], *_parameters(graph, dq))]
    inputs += _parameters(graph, group.behind[0])
    return _form(graph, group, f"QLinear{group.node.op_type}", MICROSOFT, inputs)


def _concat(graph: WorkingGraph, group: Group) -> Node:
    dtype = _require(graph, group)
    if any(_stored(graph, dq) != dtype for dq in group.before):
        raise _Refusal("the inputs are of different integer types")
    inputs = [name for dq in group.before for name in (dq.inputs[0], *_parameters(graph, dq))]
    return _form(graph, group, "QLinearConcat", MICROSOFT, [*_parameters(graph, group.behind[0]), *inputs])


def _where(graph: WorkingGraph, group: Group) -> Node:
    dtype = _require(graph, group, inputs=2)
    if any(_stored(graph, dq) != dtype for dq in group.before):
        raise _Refusal("the inputs are of different integer types")
    inputs = [name for dq in group.before for name in (dq.inputs[0], *_parameters(graph, dq))]
    inputs = [group.node.inputs[0], *inputs, *_parameters(graph, group.behind[0])]
    return _form(graph, group, "QLinearWhere", MICROSOFT, inputs)


def _conv(graph: WorkingGraph, group: Group) -> Node:
    dtype = _require(graph, group)
    if dtype == "int8":
        raise _Refusal("the runtime convolves unsigned activations only")
    if len(group.before) == 3 and _stored(graph, group.before[2]) != "int32":
        raise _Refusal("the bias is not int32")
    source, weight = group.before[:2]
    if len(group.before) == 3 and not _fits_accumulator(graph, *group.before):
        raise _Refusal("the scale of the bias is not known to be that of input times weights, with zero point 0")
    inputs = [source.inputs[0], *_parameters(graph, source), weight.inputs[0], *_parameters(graph, weight)]
    inputs += _parameters(graph, group.behind[0])
    inputs += [dq.inputs[0] for dq in group.before[2:]]
    return _form(graph, group, "QLinearConv", "", inputs)


def _fits_accumulator(graph: WorkingGraph, source: Node, weight: Node, bias: Node) -> bool:
    """Whether a quantized bias can be added to the sum of products as it stands."""
    if not bias.ops:
        return True  # quantized by `weight_bias_quantization`, which makes it fit
    scales = [graph.tensors[node.inputs[1]].value for node in (source, weight, bias)]
    if scales[0] is None or scales[1] is None or scales[2] is None:
        return False
    if len(bias.inputs) > 2 and bias.inputs[2]:
        points = graph.tensors[bias.inputs[2]].value
        if points is None or bool(np.any(points)):
            return False
    return bool(np.allclose(scales[0] * scales[1], scales[2], rtol=1e-4, atol=0.0))


def _matmul(graph: WorkingGraph, group: Group) -> Node:
    dtype = _require(graph, group, quantized=None)
    if dtype == "int8":
        raise _Refusal("the runtime multiplies unsigned activations only")
    a, b = group.before
    if group.behind:
        inputs = [a.inputs[0], *_parameters(graph, a), b.inputs[0], *_parameters(graph, b)]
        return _form(graph, group, "QLinearMatMul", "", [*inputs, *_parameters(graph, group.behind[0])])
    (a_scale, a_point), (b_scale, b_point) = _parameters(graph, a), _parameters(graph, b)
    inputs = [a.inputs[0], b.inputs[0], a_scale, b_scale, a_point, b_point]
    return _form(graph, group, "MatMulIntegerToFloat", MICROSOFT, inputs)


def _gemm(graph: WorkingGraph, group: Group) -> Node:
    dtype = _require(graph, group, quantized=None)
    if dtype == "int8" and _stored(graph, group.before[1]) != "int8":
        raise _Refusal("signed activations need signed weights")
    if len(group.before) == 3:
        if group.node.attributes.get("beta", 1.0) != 1.0:
            raise _Refusal("the bias is scaled")
        if _stored(graph, group.before[2]) != "int32":
            raise _Refusal("the bias is not int32")
    a, b = group.before[:2]
    inputs = [a.inputs[0], *_parameters(graph, a), b.inputs[0], *_parameters(graph, b)]
    inputs.append(group.before[2].inputs[0] if len(group.before) == 3 else "")
    if group.behind:
        inputs += _parameters(graph, group.behind[0])
    return _form(graph, group, "QGemm", MICROSOFT, inputs)


# op type -> what forms the integer kernel or says why it cannot.
KERNELS: dict[str, Callable[[WorkingGraph, Group], Node]] = {
    "Split": _move,
    "Resize": _resize,
    "MaxPool": _move_bytes,
    "ReduceMax": _move_bytes,
    "ReduceMin": _move_bytes,
    "DepthToSpace": _move,
    "Expand": _move,
    "Flatten": _move,
    "Gather": _move,
    "GatherElements": _move,
    "Reshape": _move,
    "Slice": _move,
    "Squeeze": _move,
    "Tile": _move,
    "Transpose": _move,
    "Unsqueeze": _move,
    "ArgMax": _select,
    "AveragePool": _unary,
    "LeakyRelu": _unary,
    "GlobalAveragePool": _unary,
    "Sigmoid": _unary,
    "Softmax": _unary,
    "Add": _elementwise,
    "Mul": _elementwise,
    "Concat": _concat,
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Where": _where,
}


def matmul_integer_to_float(graph: WorkingGraph, rules: RuleBook) -> None:
    """MatMulInteger, its Cast and the Mul by both scales become one kernel, with the Add of a constant bias."""
    rule = "matmul-integer-to-float"
    if not rules.holds(rule):
        return
    for product in graph.of_type("MatMulInteger"):
        cast = graph.sole_use(product.outputs[0])
        scaling = graph.sole_use(cast.outputs[0]) if cast is not None and cast.op_type == "Cast" else None
        if cast is None or scaling is None or scaling.op_type != "Mul":
            continue
        other = scaling.inputs[1 if scaling.inputs[0] == cast.outputs[0] else 0]
        scales = graph.producers.get(other)
        if scales is None or scales.op_type != "Mul" or graph.sole_use(other) is None:
            graph.remark(product.ops, rule, False, "the result is not scaled by a product of two scales")
            continue
        old = [product, cast, scales, scaling]
        points = [*product.inputs[2:4], "", ""][:2]
        inputs = [*product.inputs[:2], *scales.inputs, *points]
        bias = graph.sole_use(scaling.outputs[0])
        if bias is not None and bias.op_type == "Add":
            constant = bias.inputs[1 if bias.inputs[0] == scaling.outputs[0] else 0]
            if _is_bias(graph, constant):
                inputs.append(constant)
                old.append(bias)
        outputs = list(old[-1].outputs)
        new = Node("MatMulIntegerToFloat", MICROSOFT, product.name, inputs, outputs, {}, (), rank=product.rank)
        graph.replace(old, new)
        graph.remark(new.ops, rule, True, "becomes MatMulIntegerToFloat")


def _is_bias(graph: WorkingGraph, name: str) -> bool:
    shape = graph.shape(name)
    return graph.is_constant(name) and bool(shape) and shape[-1] > 1 and all(dim == 1 for dim in shape[:-1])


def dynamic_quantize_matmul(graph: WorkingGraph, rules: RuleBook) -> None:
    """DynamicQuantizeLinear and the only MatMulIntegerToFloat that reads it become one kernel."""
    rule = "dynamic-quantize-matmul"
    if not rules.holds(rule):
        return
    for product in graph.of_type("MatMulIntegerToFloat"):
        quantize = graph.producers.get(product.inputs[0])
        if quantize is None or quantize.op_type != "DynamicQuantizeLinear":
            continue
        constants = [product.inputs[1], product.inputs[3], *product.inputs[5:7]]
        if not all(graph.is_constant(name) for name in constants if name):
            graph.remark(product.ops, rule, False, "the second matrix is not constant")
            continue
        if any(graph.sole_use(name) is not product for name in quantize.outputs):
            graph.remark(quantize.ops, rule, False, "several products read the quantized tensor")
            continue
        inputs = [quantize.inputs[0], product.inputs[1], product.inputs[3], *product.inputs[5:7]]
        new = Node("DynamicQuantizeMatMul", MICROSOFT, product.name, inputs, list(product.outputs), {}, ())
        new.rank = product.rank
        graph.replace([quantize, product], new)
        graph.remark(new.ops, rule, True, "quantizes as it multiplies")
