"""One attention block that the runtime runs as one kernel: queries, keys and values from one packed product.

The runtime looks for the spelling of hybrid vision networks: a channels-first map turned to a sequence, one MatMul to
[batch, sequence, 3 x hidden], a Split by query, key and value, scaled queries, Softmax, and a projection with bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latpred.graph import AttributeValue
from latpred.kernels.fusion import RuleBook
from latpred.kernels.products import add_reshape, permutation
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["packed_attention"]

RULE = "packed-attention"
MICROSOFT = "com.microsoft"


@dataclass(frozen=True, slots=True)
class _Block:
    """What the kernel replaces, and what it needs."""

    replaced: tuple[Node, ...]  # from the Reshape behind the packed product to the one before the projection
    projection: Node  # a Gemm
    scale: float
    heads: int
    hidden: int


class _Other(Exception):  # noqa: N818 - a message for `--explain`, never seen outside
    """Where a block departs from the spelling."""


def packed_attention(graph: WorkingGraph, rules: RuleBook) -> None:
    """Replace each block by a Split and a MultiHeadAttention, and give its projection reshapes of its own."""
    if not rules.holds(RULE):
        return
    for packed in graph.of_type("MatMul"):
        behind = graph.sole_use(packed.outputs[0])
        before = graph.producers.get(packed.inputs[0])
        if behind is None or behind.op_type != "Reshape" or before is None or before.op_type != "Transpose":
            continue
        try:
            block = _block(graph, packed, before, behind)
        except _Other as other:
            graph.remark(packed.ops, RULE, False, str(other))
            continue
        _replace(graph, packed, block)


def _block(graph: WorkingGraph, packed: Node, before: Node, behind: Node) -> _Block:
    source = graph.producers.get(before.inputs[0])
    if permutation(graph, before) != (0, 2, 1) or source is None or source.op_type != "Reshape":
        raise _Other("the product does not read a map that was turned to a sequence")
    split = _next(graph, behind, "Split")
    if split.attributes.get("axis") != 2 or len(split.outputs) != 3:
        raise _Other("query, key and value are not split at axis 2")
    shape = graph.shape(behind.outputs[0])
    if len(shape) != 5 or shape[2] != 3:
        raise _Other("the product is not seen as [batch, sequence, 3, heads, size of a head]")
    heads, hidden = shape[3], shape[3] * shape[4]
    if graph.shape(packed.inputs[1]) != (hidden, 3 * hidden) or not graph.is_constant(packed.inputs[1]):
        raise _Other("the packed weights are not constant, or not [hidden, 3 x hidden]")
    q_moved, q = _turned(graph, split, 0)
    v_moved, v = _turned(graph, split, 2)
    k = _consumer(graph, split.outputs[1], "Squeeze")
    _check_axes(graph, k, 2)
    scaled = _next(graph, q, "Mul")
    other = scaled.inputs[1 if scaled.inputs[0] == q.outputs[0] else 0]
    scale = graph.scalar(other)
    if scale is None:
        raise _Other("the queries are not scaled by a constant")
    k_moved = _next(graph, k, "Transpose", (0, 2, 3, 1))
    scores = _next(graph, scaled, "MatMul")
    if scores.inputs[1] != k_moved.outputs[0]:
        raise _Other("queries are not multiplied with the turned keys")
    softmax = _next(graph, scores, "Softmax")
    mixed = _next(graph, softmax, "MatMul")
    if softmax.attributes.get("axis", -1) != -1 or mixed.inputs[1] != v.outputs[0]:
        raise _Other("the Softmax is not over the keys, or its result does not weigh the values")
    joined = _next(graph, mixed, "Transpose", (0, 2, 1, 3))
    flat = _next(graph, joined, "Reshape")
    projection = _next(graph, flat, "Gemm")
    if [graph.shape(name) for name in projection.inputs[1:]] != [(hidden, hidden), (hidden,)]:
        raise _Other("the projection is not [hidden, hidden] with a bias")
    replaced = (behind, split, q_moved, q, scaled, k, k_moved, scores, softmax, v_moved, v, mixed, joined, flat)
    return _Block(replaced, projection, scale, heads, hidden)


def _consumer(graph: WorkingGraph, name: str, op_type: str) -> Node:
    user = graph.sole_use(name)
    if user is None or user.op_type != op_type:
        raise _Other(f"one {op_type} is expected to read {name}")
    return user


def _next(graph: WorkingGraph, node: Node, op_type: str, perm: tuple[int, ...] | None = None) -> Node:
    user = _consumer(graph, node.outputs[0], op_type)
    if perm is not None and permutation(graph, user) != perm:
        raise _Other(f"{user.name} transposes by {permutation(graph, user)}, not by {perm}")
    return user


def _turned(graph: WorkingGraph, split: Node, index: int) -> tuple[Node, Node]:
    moved = _consumer(graph, split.outputs[index], "Transpose")
    if permutation(graph, moved) != (2, 0, 3, 1, 4):
        raise _Other(f"{moved.name} transposes by {permutation(graph, moved)}, not by (2, 0, 3, 1, 4)")
    squeeze = _next(graph, moved, "Squeeze")
    _check_axes(graph, squeeze, 0)
    return moved, squeeze


def _check_axes(graph: WorkingGraph, squeeze: Node, axis: int) -> None:
    if len(squeeze.inputs) < 2 or graph.scalar(squeeze.inputs[1]) != axis:
        raise _Other(f"{squeeze.name} does not squeeze axis {axis}")


def _replace(graph: WorkingGraph, packed: Node, block: _Block) -> None:
    source = packed.outputs[0]
    batch, sequence, _ = graph.shape(source)
    dtype = graph.tensors[source].dtype
    rank = block.replaced[-1].rank
    sizes = graph.tensor("split", (3,), "int64", True, np.array([block.hidden] * 3, np.int64))
    parts = [graph.tensor(f"attention_{part}", (batch, sequence, block.hidden), dtype) for part in "qkv"]
    result = graph.tensor("attention", (batch, sequence, block.hidden), dtype)
    attributes: dict[str, AttributeValue] = {"num_heads": block.heads, "scale": block.scale}
    name = f"{packed.name}/attention"
    kernel = Node("MultiHeadAttention", MICROSOFT, name, parts, [result], attributes, (), rank=rank)
    projection = block.projection
    rows = graph.shape(projection.inputs[0])[0]
    gemm_input = graph.tensor("gemm_input", (rows, block.hidden), dtype)
    gemm_output = graph.tensor("gemm_output", (rows, block.hidden), dtype)
    target = projection.outputs[0]
    graph.set_input(projection, 0, gemm_input)
    graph.replace(block.replaced, kernel)
    graph.add(Node("Split", "", f"{packed.name}/split", [source, sizes], parts, {"axis": 2}, (), rank=packed.rank))
    inputs, options = list(projection.inputs), dict(projection.attributes)
    gemm = Node("Gemm", "", projection.name, inputs, [gemm_output], options, (), rank=projection.rank)
    graph.replace([projection], gemm)
    add_reshape(graph, f"{projection.name}/input", result, gemm_input, rank)
    add_reshape(graph, f"{projection.name}/output", gemm_output, target, projection.rank)
    graph.remark(kernel.ops, RULE, True, "the whole block is one kernel")
