"""What the runtime computes ahead or drops: constants, no-ops, duplicates."""

# ruff: noqa: ARG001 - the functions of a table share one signature

from __future__ import annotations

from collections.abc import Mapping

from latpred.graph import AttributeValue
from latpred.kernels.fusion import RuleBook
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["drop_no_ops", "fold_constants", "share_subexpressions", "store_constants"]

# Their result differs from run to run, so nothing may be computed ahead or shared.
RANDOM_OPS = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
INT64_MAX = 2**63 - 1
SHARED_CONSTANT_ELEMENTS = 8  # constants up to here are compared by value


def store_constants(graph: WorkingGraph, rules: RuleBook) -> None:
    """Constant nodes are initializers once the model is loaded."""
    for node in graph.of_type("Constant"):
        graph.remove(node)
        graph.free[node.name] = "a constant: stored, never executed"


def fold_constants(graph: WorkingGraph, rules: RuleBook) -> None:
    """Drop what depends on constants and static shapes only, and what nothing but a folded Shape has read."""
    rule = "fold-constants"
    if not rules.holds(rule):
        return
    for node in graph.in_order():
        if not _foldable(graph, node):
            continue
        sources = [graph.producers[name] for name in node.inputs if name in graph.producers]
        graph.derived.update(node.outputs)
        _declare_free(graph, node, rule, "computed when the session starts")
        for source in sources:
            _drop_unread(graph, source)


def _foldable(graph: WorkingGraph, node: Node) -> bool:
    if node.source is not None or node.op_type in RANDOM_OPS or node.op_type == "DequantizeLinear":
        return False
    if node.op_type == "Shape":
        return True
    return all(not name or graph.is_constant(name) for name in node.inputs)


def _declare_free(graph: WorkingGraph, node: Node, rule: str, why: str) -> None:
    graph.remove(node)
    for op in node.ops:
        graph.free[op] = why
    graph.remark(node.ops, rule, True, why)


def _drop_unread(graph: WorkingGraph, node: Node) -> None:
    """Remove a node whose outputs nobody reads any more, and what only it has read."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if not graph.alive(node) or any(graph.uses.get(name) or name in graph.outputs for name in node.outputs):
            continue
        waiting += [graph.producers[name] for name in node.inputs if name in graph.producers]
        _declare_free(graph, node, "fold-constants", "only its shape was read")


def drop_no_ops(graph: WorkingGraph, rules: RuleBook) -> None:
    """Drop nodes that hand their input through unchanged."""
    for op_types, rule, unchanged, why in NO_OPS:
        if not rules.holds(rule):
            continue
        for node in graph.of_type(*op_types):
            if graph.alive(node) and unchanged(graph, node):
                index = _passed_input(graph, node)
                stays = _has_to_stay(graph, node, index)
                if not stays and graph.bypass(node, why, index):
                    graph.remark(node.ops, rule, True, why)
                else:
                    graph.remark(node.ops, rule, False, stays or "it makes a graph output, so it stays as a copy")


def _has_to_stay(graph: WorkingGraph, node: Node, index: int) -> str:
    """Why the runtime cannot take a node out although it changes nothing; empty where it can."""
    if node.op_type != "Identity" and node.outputs[0] in graph.outputs:
        return "it makes a graph output, so it stays as a copy"
    if len(node.inputs) > 1 and node.inputs[index] in graph.inputs:
        return "it reads an input of the graph, which the runtime does not wire around a node with more inputs"
    return ""


def _always(graph: WorkingGraph, node: Node) -> bool:
    return True


def _dropout_without_mask(graph: WorkingGraph, node: Node) -> bool:
    return not any(graph.uses.get(name) or name in graph.outputs for name in node.outputs[1:] if name)


def _slice_of_everything(graph: WorkingGraph, node: Node) -> bool:
    """Starts at 0, ends at the largest integer, steps by 1; a slice that merely happens to cover all is kept."""
    wanted = (("starts", 1, 0), ("ends", 2, INT64_MAX), ("steps", 4, 1))
    return all(
        values is not None and all(value == expected for value in values)
        for values, expected in ((_values(graph, node, name, index), expected) for name, index, expected in wanted)
    )


def _values(graph: WorkingGraph, node: Node, attribute: str, index: int) -> list[int] | None:
    """Integers of an attribute or, in later opsets, a constant input; none where it is left out, None if unknown."""
    given = node.attributes.get(attribute)
    if isinstance(given, tuple):
        return [int(value) for value in given]
    if len(node.inputs) <= index or not node.inputs[index]:
        return []
    name = node.inputs[index]
    value = graph.tensors[name].value if graph.is_constant(name) else None
    return None if value is None else [int(x) for x in value.reshape(-1)]


def _same_shape(graph: WorkingGraph, node: Node) -> bool:
    return graph.is_constant(node.inputs[1]) and graph.shape(node.inputs[0]) == graph.shape(node.outputs[0])


def _same_dtype(graph: WorkingGraph, node: Node) -> bool:
    return graph.tensors[node.inputs[0]].dtype == graph.tensors[node.outputs[0]].dtype


def _neutral(graph: WorkingGraph, node: Node) -> bool:
    """Add of 0 and Mul by 1 from either side, Sub of 0 and Div by 1 from the right."""
    neutral = 0.0 if node.op_type in ("Add", "Sub") else 1.0
    sides = (0, 1) if node.op_type in ("Add", "Mul") else (1,)
    for side in sides:
        constant, other = node.inputs[side], node.inputs[1 - side]
        if (
            graph.is_constant(constant)
            and graph.scalar(constant) == neutral
            and len(graph.shape(constant)) <= len(graph.shape(other))
        ):
            return True
    return False


def _passed_input(graph: WorkingGraph, node: Node) -> int:
    return 1 if node.op_type in ("Add", "Mul") and graph.is_constant(node.inputs[0]) else 0


# (op types, rule, what has to hold, why it is free)
NO_OPS = (
    (("Identity",), "eliminate-identity", _always, "hands its input through"),
    (("Dropout",), "eliminate-dropout", _dropout_without_mask, "does nothing at inference"),
    (("Slice",), "eliminate-slice", _slice_of_everything, "takes everything"),
    (("Expand",), "eliminate-expand", _same_shape, "has the wanted shape already"),
    (("Cast",), "eliminate-cast", _same_dtype, "has the wanted type already"),
    (("Add", "Sub", "Mul", "Div"), "eliminate-noop", _neutral, "changes nothing"),
)


def share_subexpressions(graph: WorkingGraph, rules: RuleBook) -> None:
    """Of nodes with the same op, attributes and inputs keep the first; small stored constants are equal by value."""
    rule = "share-subexpressions"
    if not rules.holds(rule):
        return
    number: dict[str, object] = {}  # tensor -> what it stands for
    first: dict[object, Node] = {}
    for node in graph.in_order():
        if node.source is not None or node.op_type in RANDOM_OPS or not node.outputs or not node.inputs:
            continue
        if node.op_type == "DequantizeLinear":
            continue  # each consumer has one of its own
        if any(name in graph.outputs for name in node.outputs):
            continue  # a copy that makes a graph output stays, and nobody else reads it
        inputs = tuple(number.get(name) or _constant_key(graph, number, name) for name in node.inputs)
        key = (node.op_type, node.domain, inputs, _frozen(node.attributes), len(node.outputs))
        known = first.setdefault(key, node)
        if known is node:
            continue
        for mine, theirs in zip(node.outputs, known.outputs, strict=True):
            if mine and theirs:
                graph.replace_uses(mine, theirs)
        _declare_free(graph, node, rule, f"same as {known.name}")


def _constant_key(graph: WorkingGraph, number: dict[str, object], name: str) -> object:
    if not name or name in graph.derived or not graph.is_constant(name):
        return name
    value = graph.tensors[name].value
    if value is None or value.size > SHARED_CONSTANT_ELEMENTS:
        return name
    key = (value.dtype.str, value.shape, value.tobytes())
    number[name] = key
    return key


def _frozen(attributes: Mapping[str, AttributeValue]) -> tuple[tuple[str, AttributeValue], ...]:
    return tuple(sorted(attributes.items()))
