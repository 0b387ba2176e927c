"""Views and selections that the runtime merges: chains of reshapes; gathers and slices that make up a whole."""

from __future__ import annotations

import numpy as np

from latpred.kernels.fusion import RuleBook
from latpred.kernels.products import add_reshape
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["gather_split", "reshape_fusion", "space_to_depth"]

BLOCK = 2  # the runtime fuses no larger SpaceToDepth
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze"})


def reshape_fusion(graph: WorkingGraph, rules: RuleBook) -> None:
    """A Reshape and the Reshape, Squeeze and Unsqueeze that follow it become one Reshape."""
    rule = "reshape-fusion"
    if not rules.holds(rule):
        return
    for first in graph.of_type("Reshape"):
        if not graph.alive(first):
            continue
        if first.attributes.get("allowzero", 0):
            graph.remark(first.ops, rule, False, "it has allowzero=1")
            continue
        chain = [first]
        while (behind := graph.sole_use(chain[-1].outputs[0])) is not None and behind.op_type in VIEWS:
            if behind.attributes.get("allowzero", 0):
                break
            chain.append(behind)
        if len(chain) < 2:
            continue
        source, target = first.inputs[0], chain[-1].outputs[0]
        ops = tuple(op for node in chain for op in node.ops)
        for node in chain:
            graph.remove(node)
        add_reshape(graph, chain[-1].name, source, target, chain[-1].rank).ops = ops
        graph.remark(ops, rule, True, "a chain of views becomes one Reshape")


def gather_split(graph: WorkingGraph, rules: RuleBook) -> None:
    """Gathers of one index and Slices that together take all of an axis become a Split, with Squeeze behind."""
    rule = "gather-split"
    if not rules.holds(rule) or graph.opsets.get("", 0) < 13:
        return
    sources = dict.fromkeys(node.inputs[0] for node in graph.of_type("Gather", "Slice"))
    # Pieces of a Split are left alone, unless this pass has made it.
    left_alone = {
        source
        for source in sources
        if (producer := graph.producers.get(source)) is not None
        and (producer.op_type == "Shape" or len(producer.outputs) > 1)
    }
    for source in sources:
        parts = [n for n in graph.uses.get(source, []) if n.op_type in ("Gather", "Slice") and n.inputs[0] == source]
        if len(parts) < 2 or graph.is_constant(source):
            continue
        if source in left_alone:
            continue
        shape = graph.shape(source)
        axis = _axis(graph, parts[0], len(shape))
        spans = [_span(graph, part, axis, shape) for part in parts] if axis is not None else []
        if axis is None or not _cover(spans, shape[axis]):
            graph.remark([op for part in parts for op in part.ops], rule, False, "they do not make up a whole axis")
            continue
        _split(graph, source, axis, sorted(zip(spans, parts, strict=True), key=lambda pair: pair[0] or (0, 0)))
        graph.remark([op for part in parts for op in part.ops], rule, True, "they make up a Split")


def _axis(graph: WorkingGraph, node: Node, rank: int) -> int | None:
    if node.op_type == "Gather":
        axis = node.attributes.get("axis", 0)
        return int(axis) % rank if isinstance(axis, int) else None
    value = graph.scalar(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else None
    return None if value is None else int(value) % rank


def _span(graph: WorkingGraph, node: Node, axis: int | None, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """First and last-but-one index that a Gather or Slice takes of the axis, else None."""
    if axis is None or _axis(graph, node, len(shape)) != axis:
        return None
    size = shape[axis]
    start = graph.scalar(node.inputs[1])
    if start is None:
        return None
    first = int(start) + (size if start < 0 else 0)
    if node.op_type == "Gather":
        return (first, first + 1) if 0 <= first < size else None
    stop = graph.scalar(node.inputs[2])
    step = graph.scalar(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] else 1.0
    if stop is None or step != 1.0:
        return None
    last = int(stop) + (size if stop < 0 else 0)
    first, last = min(max(first, 0), size), min(max(last, 0), size)
    return (first, last) if first < last else None


def _cover(spans: list[tuple[int, int] | None], size: int) -> bool:
    if not spans or None in spans:
        return False
    at = 0
    for first, last in sorted(span for span in spans if span is not None):
        if first != at:
            return False
        at = last
    return at == size


def _split(graph: WorkingGraph, source: str, axis: int, parts: list[tuple[tuple[int, int] | None, Node]]) -> None:
    dtype = graph.tensors[source].dtype
    shape = graph.shape(source)
    sizes = [last - first for first, last in (span for span, _ in parts if span is not None)]
    constant = graph.tensor("split", (len(sizes),), "int64", True, np.array(sizes, np.int64))
    outputs: list[str] = []
    squeezed: list[tuple[Node, str]] = []
    for size, (_, part) in zip(sizes, parts, strict=True):
        if part.op_type == "Gather" and graph.shape(part.inputs[1]) == ():
            piece = graph.tensor("split_output", (*shape[:axis], size, *shape[axis + 1 :]), dtype)
            squeezed.append((part, piece))
            outputs.append(piece)
        else:
            outputs.append(part.outputs[0])
    nodes = [part for _, part in parts]
    split = Node("Split", "", nodes[0].name, [source, constant], outputs, {"axis": axis}, ())
    graph.replace(nodes, split)
    for part, piece in squeezed:
        axes = graph.tensor("axes", (1,), "int64", True, np.array([axis], np.int64))
        graph.add(Node("Squeeze", "", part.name, [piece, axes], list(part.outputs), {}, (), rank=split.rank))


def space_to_depth(graph: WorkingGraph, rules: RuleBook) -> None:
    """Slices that take every second row and column and are joined by channel become one SpaceToDepth.

    Where they are joined in another order than that op has, a Gather puts the channels in place.
    """
    rule = "space-to-depth"
    if not rules.holds(rule):
        return
    for concat in graph.of_type("Concat"):
        parts = [graph.producers.get(name) for name in concat.inputs]
        slices = [part for part in parts if part is not None and part.op_type == "Slice"]
        if concat.attributes.get("axis") not in (1, -3) or len(slices) != BLOCK**2 or len(concat.inputs) != BLOCK**2:
            continue
        source = slices[0].inputs[0]
        shape = graph.shape(source)
        offsets = [_offset(graph, part, source) for part in slices]
        wanted = [(row, column) for row in range(BLOCK) for column in range(BLOCK)]
        if len(shape) != 4 or any(dim % BLOCK for dim in shape[2:]) or sorted(filter(None, offsets)) != wanted:
            reason = "the slices do not take every second row and column, each offset once"
            graph.remark(concat.ops, rule, False, reason)
            continue
        _join(graph, concat, slices, in_order=offsets == wanted)
        graph.remark(concat.ops, rule, True, "the slices become a SpaceToDepth")


def _offset(graph: WorkingGraph, node: Node, source: str) -> tuple[int, int] | None:
    """First row and column of a Slice over the last two of four axes with steps of 2, to the end; else None."""
    if node.inputs[0] != source or graph.sole_use(node.outputs[0]) is None or len(node.inputs) < 5:
        return None
    values = [graph.tensors[name].value if name else None for name in node.inputs[1:5]]
    starts, ends, axes, steps = ([int(x) for x in v.reshape(-1)] if v is not None else [] for v in values)
    if axes != [2, 3] or steps != [BLOCK, BLOCK] or len(starts) != 2:
        return None
    if any(end < dim for end, dim in zip(ends, graph.shape(source)[2:], strict=True)):
        return None
    return starts[0], starts[1]


def _join(graph: WorkingGraph, concat: Node, slices: list[Node], in_order: bool) -> None:
    source, target = slices[0].inputs[0], concat.outputs[0]
    dtype = graph.tensors[source].dtype
    joined = target if in_order else graph.tensor(f"{target}_joined", graph.shape(target), dtype)
    node = Node("SpaceToDepth", "", concat.name, [source], [joined], {"blocksize": BLOCK}, (), rank=concat.rank)
    graph.replace([*slices, concat], node)
    if not in_order:
        channels = graph.shape(target)[1]
        order = graph.tensor("channels", (channels,), "int64", True)
        name = f"{concat.name}/order"
        graph.add(Node("Gather", "", name, [joined, order], [target], {"axis": 1}, (), rank=concat.rank))
