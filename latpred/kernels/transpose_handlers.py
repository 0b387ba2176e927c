"""How a Transpose is pushed through each op: the table of `latpred.kernels.transposes`.

A handler changes nothing and returns False where the op cannot be rewritten.
"""

# ruff: noqa: ARG001 - the functions of a table share one signature

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from latpred.kernels.permutations import Permutation, compose, inverse, squeezed, unsqueezed
from latpred.kernels.transposes import Pusher, permutation
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["HANDLERS", "PROVIDER_HANDLERS", "Handler", "broadcast"]

Push = Callable[[Pusher, Node, Node, Permutation, list[int]], bool]
Inputs = Callable[[WorkingGraph, Node], list[int]]


@dataclass(frozen=True, slots=True)
class Handler:
    """Which inputs of an op may be transposed, and how it is pushed through."""

    inputs: Inputs
    push: Push
    transposes_outputs: bool = True


def _first(graph: WorkingGraph, node: Node) -> list[int]:
    return [0]


def _all(graph: WorkingGraph, node: Node) -> list[int]:
    return [index for index, name in enumerate(node.inputs) if name]


def _not_scalar(graph: WorkingGraph, node: Node) -> list[int]:
    return [index for index, name in enumerate(node.inputs) if name and graph.shape(name)]


def _simple(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    pusher.push_through(node, inputs, perm)
    return True


def broadcast(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    """Push through an op that broadcasts: lower ranks get leading dims first, a higher one forbids it."""
    ranks = {index: len(pusher.graph.shape(node.inputs[index])) for index in inputs}
    if max(ranks.values()) > len(perm):
        return False
    for index, rank in ranks.items():
        if rank < len(perm):
            pusher.unsqueeze_input(node, index, len(perm) - rank)
    return _simple(pusher, node, transpose, perm, inputs)


def _along_axis(default: int | None) -> Push:
    def push(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
        axis = node.attributes.get("axis", default)
        if axis is None:
            return False
        pusher.push_through(node, inputs, perm)
        node.attributes["axis"] = perm[int(axis)]  # type: ignore[arg-type]
        return True

    return push


def _softmax(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    if pusher.graph.opsets.get("", 13) >= 13:
        return _along_axis(-1)(pusher, node, transpose, perm, inputs)
    # Before opset 13 the axis splits the dims into two groups: none may move from one to the other.
    axis = int(node.attributes.get("axis", 1)) % len(perm)  # type: ignore[arg-type]
    if any((place < axis) != (source < axis) for place, source in enumerate(perm)):
        return False
    return _simple(pusher, node, transpose, perm, inputs)


def _integers(graph: WorkingGraph, node: Node, attribute: str, index: int) -> tuple[int, ...] | None:
    """Integers that are an attribute or, in later opsets, a constant input."""
    given = node.attributes.get(attribute)
    if isinstance(given, tuple):
        return tuple(int(x) for x in given)
    if len(node.inputs) <= index or not node.inputs[index]:
        return None
    value = graph.tensors[node.inputs[index]].value
    return None if value is None else tuple(int(x) for x in value.reshape(-1))


def _set_integers(graph: WorkingGraph, node: Node, attribute: str, index: int, values: Sequence[int]) -> None:
    if attribute in node.attributes:
        node.attributes[attribute] = tuple(values)
        return
    name = graph.tensor(f"{node.name}_{attribute}", (len(values),), "int64", True, np.array(values, np.int64))
    if index < len(node.inputs):
        graph.set_input(node, index, name)
    else:
        while len(node.inputs) < index:
            node.inputs.append("")
        graph.append_input(node, name)


def _reduce(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    graph = pusher.graph
    axes = _integers(graph, node, "axes", 1)
    has_axes_input = len(node.inputs) > 1 and bool(node.inputs[1])
    if axes is None and has_axes_input:
        return False
    keeps_dims = bool(node.attributes.get("keepdims", 1))
    if not axes:
        kept = keeps_dims or bool(node.attributes.get("noop_with_empty_axes", 0))
        pusher.push_through(node, inputs, perm, perm if kept else ())
        return True
    moved = sorted(perm[axis] for axis in axes)
    _set_integers(graph, node, "axes", 1, moved)
    pusher.push_through(node, inputs, perm, perm if keeps_dims else squeezed(moved, perm))
    return True


def _arg(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    axis = perm[int(node.attributes.get("axis", 0))]  # type: ignore[arg-type]
    node.attributes["axis"] = axis
    pusher.push_through(node, inputs, perm, perm if node.attributes.get("keepdims", 1) else squeezed([axis], perm))
    return True


def _squeeze(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    axes = _integers(pusher.graph, node, "axes", 1)
    if axes is None:
        return False
    moved = sorted(perm[axis] for axis in axes)
    _set_integers(pusher.graph, node, "axes", 1, moved)
    pusher.push_through(node, inputs, perm, squeezed(moved, perm))
    return True


def _unsqueeze(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    axes = _integers(pusher.graph, node, "axes", 1)
    if axes is None:
        return False
    rank = len(perm) + len(axes)
    pusher.push_through(node, inputs, perm, unsqueezed([axis % rank for axis in axes], perm))
    return True


def _gather(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    """One index of an axis: the axis goes, as in a Squeeze."""
    graph = pusher.graph
    if graph.shape(node.inputs[1]) != () or not graph.is_constant(node.inputs[1]):
        return False
    axis = perm[int(node.attributes.get("axis", 0))]  # type: ignore[arg-type]
    node.attributes["axis"] = axis
    pusher.push_through(node, inputs, perm, squeezed([axis], perm))
    return True


def _slice(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    graph = pusher.graph
    axes = _integers(graph, node, "axes", 3)
    if axes is None:
        if len(node.inputs) > 3 and node.inputs[3]:
            return False
        starts = node.attributes.get("starts")
        axes = tuple(range(len(starts) if isinstance(starts, tuple) else graph.shape(node.inputs[1])[0]))
    if "starts" in node.attributes:
        node.attributes["axes"] = ()
    _set_integers(graph, node, "axes", 3, [perm[axis] for axis in axes])
    return _simple(pusher, node, transpose, perm, inputs)


def _pad(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    pads = _integers(pusher.graph, node, "pads", 1)
    rank = len(perm)
    if pads is None or len(pads) != 2 * rank:
        return False
    order = (*inverse(perm), *(axis + rank for axis in inverse(perm)))
    _set_integers(pusher.graph, node, "pads", 1, [pads[place] for place in order])
    return _simple(pusher, node, transpose, perm, inputs)


def _tile(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    repeats = _integers(pusher.graph, node, "repeats", 1)
    if repeats is None:
        return False
    _set_integers(pusher.graph, node, "repeats", 1, [repeats[axis] for axis in inverse(perm)])
    return _simple(pusher, node, transpose, perm, inputs)


def _resize(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    """Only between channels-first and channels-last; the factors move with the axes."""
    if perm not in ((0, 2, 3, 1), (0, 3, 1, 2)):
        return False
    graph = pusher.graph
    for index in range(1, len(node.inputs)):
        name = node.inputs[index]
        tensor = graph.tensors.get(name)
        if tensor is None or tensor.value is None or tensor.value.size not in (4, 8):
            continue
        value = tensor.value.reshape(-1, 4)[:, inverse(perm)].reshape(-1)
        graph.set_input(node, index, graph.tensor(name, value.shape, tensor.dtype, True, value))
    return _simple(pusher, node, transpose, perm, inputs)


def _transpose(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    own = permutation(node)
    if own is None or len(own) != len(perm):
        return False
    return _merge(pusher, node, transpose, perm, own)


def _reshape(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, inputs: list[int]) -> bool:
    """A Reshape that only moves dims of 1 is a Transpose in disguise; one that only splits dims is pushed through."""
    graph = pusher.graph
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    own = _as_permutation(before, after) if len(before) == len(after) else None
    if own is not None:
        return _merge(pusher, node, transpose, perm, own)
    groups = _split_dims(before, after)
    if groups is None:
        return False
    # Axis `a` of the transposed tensor is axis `perm[a]` of the source: its group of new dims goes there.
    order = sorted(range(len(perm)), key=lambda axis: perm[axis])
    pieces = [place for axis in order for place in groups[axis]]
    shape = tuple(after[place] for place in pieces)
    target = graph.tensor(node.name, (len(shape),), "int64", True, np.array(shape, np.int64))
    graph.set_input(node, 1, target)
    pusher.push_through(node, inputs, perm, inverse(tuple(pieces)))
    return True


def _split_dims(before: tuple[int, ...], after: tuple[int, ...]) -> list[list[int]] | None:
    """For each dim, the consecutive new dims that it is split into; None where the Reshape does more than that."""
    groups: list[list[int]] = []
    place = 0
    for dim in before:
        group: list[int] = []
        size = 1
        while place < len(after) and (not group or size < dim):
            size *= after[place]
            group.append(place)
            place += 1
        if size != dim or not group:
            return None
        groups.append(group)
    return groups if place == len(after) else None


def _as_permutation(before: tuple[int, ...], after: tuple[int, ...]) -> Permutation | None:
    left: list[int | None] = list(before)
    perm = []
    for target in after:
        for axis, dim in enumerate(left):
            if dim == target:
                perm.append(axis)
                left[axis] = None
                break
            if dim is not None and dim != 1 and target != 1:
                return None
        else:
            return None
    return tuple(perm)


def _merge(pusher: Pusher, node: Node, transpose: Node, perm: Permutation, own: Permutation) -> bool:
    graph = pusher.graph
    source, target = transpose.inputs[0], node.outputs[0]
    if own != inverse(perm):
        graph.set_input(node, 0, source)
        if node.op_type == "Reshape":
            for index in range(1, len(node.inputs)):
                graph.set_input(node, index, "")
            del node.inputs[1:]
            graph.retype(node, "Transpose")
            node.attributes.clear()
        node.attributes["perm"] = compose(perm, own)
        pusher.heir = node
        pusher.drop(transpose)
        return True
    if target not in graph.outputs:
        graph.remove(node)
        graph.replace_uses(target, source)
        pusher.free(node)
    else:
        producer = graph.producers.get(source)
        if producer is None or source in graph.outputs:
            graph.retype(node, "Identity")
            graph.set_input(node, 0, source)
            node.attributes.clear()
        else:
            graph.remove(node)
            graph.replace_uses(source, target)
            producer.outputs[producer.outputs.index(source)] = target
            del graph.producers[source]
            graph.producers[target] = producer
            pusher.free(node)
    pusher.drop(transpose)
    return True


_SIMPLE = (
    "Cast", "Exp", "Identity", "LeakyRelu", "Log", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Tanh", "Abs", "Not",
    "Ceil", "Floor", "Neg", "Erf", "HardSigmoid", "Round", "IsInf", "IsNaN", "Selu", "Shrink", "Sign", "Softplus",
    "Softsign", "ThresholdedRelu", "Celu", "HardSwish", "Sin", "Cos", "Tan", "Sinh", "Cosh", "Asin", "Acos", "Atan",
    "Asinh", "Acosh", "Atanh", "Elu", "Gelu", "Mish", "Swish",
)  # fmt: skip
_BROADCAST = (
    "Add", "Max", "Min", "Mul", "Sub", "Div", "And", "Or", "Xor", "Mod", "PRelu", "BitShift", "Equal", "Greater",
    "Less", "GreaterOrEqual", "LessOrEqual", "Mean", "Sum", "Pow", "Where",
)  # fmt: skip
_REDUCE = (
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "ReduceL1", "ReduceL2",
)  # fmt: skip

# (domain, op type) -> handler
HANDLERS: dict[tuple[str, str], Handler] = {
    **{("", op_type): Handler(_all, _simple) for op_type in _SIMPLE},
    **{("", op_type): Handler(_first, _simple) for op_type in ("Clip", "CastLike")},
    **{("", op_type): Handler(_not_scalar, broadcast) for op_type in _BROADCAST},
    **{("", op_type): Handler(_first, _reduce) for op_type in _REDUCE},
    **{("", op_type): Handler(_first, _arg) for op_type in ("ArgMin", "ArgMax")},
    **{("", op_type): Handler(_first, _softmax) for op_type in ("Softmax", "LogSoftmax", "Hardmax")},
    **{("", op_type): Handler(_first, _simple) for op_type in ("QuantizeLinear", "DequantizeLinear")},
    **{("com.microsoft", op_type): Handler(_first, _simple) for op_type in ("Gelu", "FastGelu", "QuickGelu")},
    ("", "Gather"): Handler(_first, _gather),
    ("", "Concat"): Handler(_all, _along_axis(None)),
    ("", "Split"): Handler(_first, _along_axis(0)),
    ("", "Pad"): Handler(_first, _pad),
    ("", "Slice"): Handler(_first, _slice),
    ("", "Tile"): Handler(_first, _tile),
    ("", "Squeeze"): Handler(_first, _squeeze),
    ("", "Unsqueeze"): Handler(_first, _unsqueeze),
    ("", "Transpose"): Handler(_first, _transpose, transposes_outputs=False),
    ("", "Reshape"): Handler(_first, _reshape, transposes_outputs=False),
}

# What only the CPU provider does, once nodes are its own.
PROVIDER_HANDLERS: dict[tuple[str, str], Handler] = {("", "Resize"): Handler(_first, _resize)}
