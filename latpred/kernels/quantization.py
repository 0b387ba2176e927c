"""QuantizeLinear and DequantizeLinear: moved, made unique, typed and cleaned up until integer kernels can be formed.

`latpred.kernels.integer_kernels` does the forming. The runtime wants a DequantizeLinear of its own before each input
of an op and a QuantizeLinear behind each output; these passes bring the graph into that shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from latpred.kernels.fusion import RuleBook
from latpred.kernels.working import Node, WorkingGraph

__all__ = [
    "clip_quantize",
    "double_qdq",
    "qdq_cleanup",
    "qdq_propagation",
    "requantize_transposed",
    "same_parameters",
    "signed_to_unsigned",
    "unique_dq",
    "weight_bias_quantization",
]

DEQUANTIZE, QUANTIZE = "DequantizeLinear", "QuantizeLinear"
MOVABLE = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"})
SLACK = float(np.finfo(np.float32).eps)  # by which a Clip may cut into the quantized range
RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


def zero_point(graph: WorkingGraph, node: Node) -> tuple[float, str] | None:
    """Value and element type of the zero point of a Q or DQ with one constant scale, else None."""
    if graph.scalar(node.inputs[1]) is None:
        return None
    if len(node.inputs) < 3 or not node.inputs[2]:
        name = node.outputs[0] if node.op_type == QUANTIZE else node.inputs[0]
        return 0.0, graph.tensors[name].dtype
    value = graph.scalar(node.inputs[2])
    return None if value is None else (value, graph.tensors[node.inputs[2]].dtype)


def same_parameters(graph: WorkingGraph, first: Node, second: Node) -> bool:
    """Whether two Q or DQ nodes have the same constant scale and zero point, both given."""
    if len(first.inputs) < 3 or len(second.inputs) < 3:
        return False
    points = zero_point(graph, first), zero_point(graph, second)
    return (
        points[0] is not None
        and points[0] == points[1]
        and (graph.scalar(first.inputs[1]) == graph.scalar(second.inputs[1]))
    )


def unique_dq(graph: WorkingGraph, rules: RuleBook) -> None:
    """Every consumer of a dequantized tensor gets a DequantizeLinear of its own."""
    rule = "unique-dq"
    if not rules.holds(rule):
        return
    for node in graph.of_type(DEQUANTIZE):
        target = node.outputs[0]
        edges = [(user, i) for user in dict.fromkeys(graph.uses.get(target, ())) for i in _slots(user, target)]
        for user, index in edges if target in graph.outputs else edges[1:]:
            copy = graph.tensor(f"{target}/duplicated", graph.shape(target), graph.tensors[target].dtype)
            inputs, attributes = list(node.inputs), dict(node.attributes)
            name = f"{node.name}/duplicated"
            graph.add(Node(DEQUANTIZE, node.domain, name, inputs, [copy], attributes, (), rank=node.rank))
            graph.set_input(user, index, copy)
        if len(edges) > 1:
            graph.remark(node.ops, rule, True, f"runs once for each of its {len(edges)} consumers")


def _slots(node: Node, name: str) -> list[int]:
    return [index for index, given in enumerate(node.inputs) if given == name]


def double_qdq(graph: WorkingGraph, rules: RuleBook) -> None:
    """Of two Q-DQ pairs in a row one is kept, with the narrower range."""
    rule = "double-qdq"
    if not rules.holds(rule):
        return
    for inner in graph.of_type(DEQUANTIZE):
        if not graph.alive(inner):
            continue
        parent, child = graph.producers.get(inner.inputs[0]), graph.sole_use(inner.outputs[0])
        if parent is None or child is None or parent.op_type != QUANTIZE or child.op_type != QUANTIZE:
            continue
        last = graph.sole_use(child.outputs[0])
        if graph.sole_use(parent.outputs[0]) is None or last is None or last.op_type != DEQUANTIZE:
            continue
        if not same_parameters(graph, parent, inner) or not same_parameters(graph, child, last):
            graph.remark(inner.ops, rule, False, "the pairs do not have constant parameters of their own")
            continue
        graph.set_input(last, 0, parent.outputs[0])
        for node in (child, inner):
            graph.remove(node)
        parent.ops = (*parent.ops, *inner.ops, *child.ops)
        graph.remark([*inner.ops, *child.ops], rule, True, "one of two Q-DQ pairs in a row is dropped")


def qdq_propagation(graph: WorkingGraph, rules: RuleBook) -> None:
    """Q moves up and DQ moves down across views and MaxPool: a pair is put on the other side of each."""
    rule = "qdq-propagation"
    if not rules.holds(rule):
        return
    for node in graph.of_type(QUANTIZE):
        if zero_point(graph, node) is not None:
            _propagate_up(graph, node)
    for node in graph.of_type(DEQUANTIZE):
        stored = graph.is_constant(node.inputs[0])
        if not stored and zero_point(graph, node) is not None and graph.sole_use(node.outputs[0]) is not None:
            _propagate_down(graph, node, node.outputs[0])


def _propagate_up(graph: WorkingGraph, like: Node) -> None:
    name = like.inputs[0]
    while graph.sole_use(name) is not None:
        source = graph.producers.get(name)
        if source is None or source.op_type not in MOVABLE:
            return
        name = source.inputs[0]
        before = graph.producers.get(name)
        if graph.is_constant(name) or (before is not None and before.op_type == DEQUANTIZE):
            return
        if before is not None and graph.sole_use(name) is None:
            return
        _insert_pair(graph, name, [(source, 0)], like)
        if before is None:
            return


def _propagate_down(graph: WorkingGraph, like: Node, name: str) -> None:
    for node in dict.fromkeys(graph.uses.get(name, ())):
        if node.op_type not in MOVABLE:
            continue
        target = node.outputs[0]
        users = list(dict.fromkeys(graph.uses.get(target, ())))
        if target in graph.outputs:
            continue
        edges = [(user, index) for user in users if user.op_type != QUANTIZE for index in _slots(user, target)]
        if edges:
            for follow in _insert_pair(graph, target, edges, like):
                _propagate_down(graph, like, follow)


def _insert_pair(graph: WorkingGraph, name: str, edges: Iterable[tuple[Node, int]], like: Node) -> list[str]:
    """Put a Q behind a tensor and a DQ before each of its given readers; the names that they now read."""
    shape, dtype = graph.shape(name), graph.tensors[name].dtype
    point = zero_point(graph, like)
    quantized = graph.tensor(f"{name}_q", shape, point[1] if point else "uint8")
    readers = list(edges)
    rank = readers[0][0].rank
    parameters = like.inputs[1:]
    names = []
    for user, index in readers:
        restored = graph.tensor(f"{name}_dq", shape, dtype)
        graph.set_input(user, index, restored)
        graph.add(Node(DEQUANTIZE, like.domain, f"{name}_dq", [quantized, *parameters], [restored], {}, (), rank=rank))
        names.append(restored)
    graph.add(Node(QUANTIZE, like.domain, f"{name}_q", [name, *parameters], [quantized], {}, (), rank=rank))
    return names


def weight_bias_quantization(graph: WorkingGraph, rules: RuleBook) -> None:
    """Float weights and biases of a Conv or Gemm between DQ and Q are quantized ahead; a DQ of each stays."""
    rule = "weight-bias-quantization"
    if not rules.holds(rule) or not graph.by_type.get(DEQUANTIZE):
        return
    for node in graph.of_type("Conv", "ConvTranspose", "Gemm"):
        data = graph.producers.get(node.inputs[0])
        if data is None or data.op_type != DEQUANTIZE or graph.scalar(data.inputs[1]) is None:
            continue
        behind = graph.sole_use(node.outputs[0])
        while behind is not None and behind.op_type in ("Relu", "Clip"):
            behind = graph.sole_use(behind.outputs[0])
        if behind is None or behind.op_type != QUANTIZE:
            continue
        weight = graph.producers.get(node.inputs[1])
        quantized = weight is not None and weight.op_type == DEQUANTIZE
        if not quantized and not graph.is_constant(node.inputs[1]):
            continue
        has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
        if has_bias and not graph.is_constant(node.inputs[2]):
            continue
        channels = graph.shape(node.inputs[2]) if has_bias else ()
        scale = graph.shape(weight.inputs[1]) if weight is not None and quantized else ()
        if scale and scale not in ((1,), channels):
            continue
        if not quantized:
            _quantize_constant(graph, node, 1, "int8", ())
        if has_bias:
            _quantize_constant(graph, node, 2, "int32", scale)
        if has_bias or not quantized:
            graph.remark(node.ops, rule, True, "float weights are quantized ahead")


def _quantize_constant(graph: WorkingGraph, node: Node, index: int, dtype: str, scale: tuple[int, ...]) -> None:
    name = node.inputs[index]
    shape = graph.shape(name)
    stored = graph.tensor(f"{name}_q", shape, dtype, True)
    scales = graph.tensor(f"{name}_scale", scale, "float32", True)
    zeros = np.zeros(scale, np.dtype(dtype))
    points = graph.tensor(f"{name}_zp", scale, dtype, True, zeros)
    restored = graph.tensor(f"{name}_dq", shape, graph.tensors[name].dtype)
    inputs = [stored, scales, points] if dtype == "int8" else [stored, scales]
    graph.add(Node(DEQUANTIZE, "", f"{name}_dq", inputs, [restored], {}, (), rank=node.rank))
    graph.set_input(node, index, restored)


def signed_to_unsigned(graph: WorkingGraph, rules: RuleBook) -> None:
    """Q-DQ pairs of int8 become uint8: the integer kernels of x86 take unsigned activations."""
    rule = "signed-to-unsigned"
    if not rules.holds(rule):
        return
    for node in graph.of_type(QUANTIZE):
        behind = graph.sole_use(node.outputs[0])
        if behind is None or behind.op_type != DEQUANTIZE or min(len(node.inputs), len(behind.inputs)) < 3:
            continue
        point = zero_point(graph, node)
        if point is None or point[1] != "int8" or point != zero_point(graph, behind):
            continue
        value = np.array(int(point[0]) + 128, np.uint8)
        name = graph.tensor("zero_point_u8", (), "uint8", True, value)
        graph.set_input(node, 2, name)
        graph.set_input(behind, 2, name)
        graph.tensors[node.outputs[0]] = replace(graph.tensors[node.outputs[0]], dtype="uint8")
        graph.remark([*node.ops, *behind.ops], rule, True, "int8 becomes uint8")


def clip_quantize(graph: WorkingGraph, rules: RuleBook) -> None:
    """A Clip or Relu whose effect the quantized range has anyway is dropped."""
    for rule, op_type in (("clip-quantize", "Clip"), ("relu-quantize", "Relu")):
        if not rules.holds(rule):
            continue
        for node in graph.of_type(op_type):
            behind = graph.sole_use(node.outputs[0])
            if behind is None or behind.op_type != QUANTIZE:
                continue
            if not implied_by_range(graph, node, behind):
                graph.remark(node.ops, rule, False, "the quantized range is wider than what it lets through")
                continue
            if op_type == "Clip" and node.inputs[0] not in graph.producers:
                graph.remark(node.ops, rule, False, "it reads an input of the graph")
                continue
            graph.set_input(behind, 0, node.inputs[0])
            graph.remove(node)
            behind.ops = (*node.ops, *behind.ops)
            graph.remark(node.ops, rule, True, "the quantized range implies it")


def implied_by_range(graph: WorkingGraph, node: Node, quantize: Node) -> bool:
    """Whether all values that a QuantizeLinear can express pass a Relu or Clip unchanged."""
    scale, point = graph.scalar(quantize.inputs[1]), zero_point(graph, quantize)
    if scale is None or point is None or point[1] not in RANGES:
        return False
    least, most = (float(np.float32(scale * (bound - point[0]))) for bound in RANGES[point[1]])
    if node.op_type == "Relu":
        return point[0] == RANGES[point[1]][0]
    bounds = [_bound(graph, node, index, key) for index, key in ((1, "min"), (2, "max"))]
    if None in bounds:
        return False
    low, high = bounds
    return low is not None and high is not None and max(low - least, most - high) <= SLACK


def _bound(graph: WorkingGraph, node: Node, index: int, key: str) -> float | None:
    """A bound of a Clip; infinite where none is given, None where it is not known."""
    given = node.attributes.get(key)
    if isinstance(given, int | float):
        return float(given)
    if len(node.inputs) > index and node.inputs[index]:
        return graph.scalar(node.inputs[index])
    return float("-inf") if key == "min" else float("inf")


def requantize_transposed(graph: WorkingGraph, rules: RuleBook) -> None:
    """A transpose that was pushed behind a DequantizeLinear gets a Q and a DQ behind it."""
    if not rules.holds("qdq-propagation") or not graph.by_type.get(DEQUANTIZE):
        return
    for transpose in graph.of_type("Transpose"):
        restored = graph.producers.get(transpose.inputs[0])
        name = transpose.outputs[0]
        users = list(dict.fromkeys(graph.uses.get(name, ())))
        if restored is None or restored.op_type != DEQUANTIZE or name in graph.outputs:
            continue
        if any(user.op_type == QUANTIZE for user in users):
            continue
        shape, dtype = graph.shape(name), graph.tensors[name].dtype
        stored = graph.tensor(f"{name}_q", shape, graph.tensors[restored.inputs[0]].dtype)
        again = graph.tensor(f"{name}_dq", shape, dtype)
        graph.replace_uses(name, again)
        parameters, rank = restored.inputs[1:], transpose.rank
        graph.add(Node(QUANTIZE, "", f"{name}_q", [name, *parameters], [stored], {}, (), rank=rank))
        graph.add(Node(DEQUANTIZE, "", f"{name}_dq", [stored, *parameters], [again], {}, (), rank=rank))


def qdq_cleanup(graph: WorkingGraph, rules: RuleBook) -> None:
    """A DQ directly before a Q of the same parameters is dropped with it."""
    rule = "qdq-cleanup"
    if not rules.holds(rule):
        return
    for node in graph.of_type(DEQUANTIZE):
        behind = graph.sole_use(node.outputs[0]) if graph.alive(node) else None
        if behind is None or behind.op_type != QUANTIZE or not same_parameters(graph, node, behind):
            continue
        if behind.outputs[0] in graph.outputs:
            continue
        graph.remove(node)
        graph.remove(behind)
        graph.replace_uses(behind.outputs[0], node.inputs[0])
        for op in (*node.ops, *behind.ops):
            graph.free[op] = "dequantized and quantized again with the same parameters"
        graph.remark([*node.ops, *behind.ops], rule, True, "they undo each other")
