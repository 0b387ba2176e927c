"""Inner channels that can be left out: made inside a piece, read inside it, and nowhere else.

A group starts at an op that makes channels (a convolution, a product with a constant matrix) and spreads over all that
holds one value a channel: normalisations, activations, depthwise convolutions, squeeze-and-excitation, the halves that
a gated unit splits. It ends at ops that sum over channels; where a grouped convolution does, as many stay in each of
its groups, as the group with most decides how long it takes. What mixes channels in another way stands in its way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd, prod

import onnx

from latpred.reading.nodes import attribute_value
from latpred.surgery.weights import values_of
from latpred.surgery.wiring import Wiring, wired

__all__ = ["BINARY", "UNARY", "ChannelGroup", "Edit", "attributes_of", "can_narrow", "groups"]

UNARY = frozenset({
    "Abs", "Cast", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
    "Neg", "QuickGelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh",
    "ThresholdedRelu",
})  # fmt: skip
BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub"})
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
MAKERS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class Edit:
    """A constant that one node reads, sliced along an axis that holds `copies` times the group's channels."""

    node: int
    place: int
    axis: int
    copies: int


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels of a piece that stay or go together; nodes are counted as in the piece."""

    name: str  # of the node that makes them
    channels: int
    makers: tuple[Edit, ...]  # weights whose rows make them
    edits: tuple[Edit, ...]  # of all constants, those of the makers included
    sizes: tuple[Edit, ...]  # elements of constant shapes; `axis` is the position in the shape
    depthwise: Mapping[int, int]  # depthwise convolutions -> copies
    tensors: Mapping[str, tuple[int, int]]  # tensors -> axis of the channels, copies
    ways: int  # groups of a grouped convolution that they lie in, with as many in each


class _RefusedError(Exception):
    """The channels cannot be left out; says why. Never leaves this module."""


class _HalvedError(Exception):
    """Channels are split into parts that belong together, each with as many; never leaves this module."""


def groups(piece: onnx.ModelProto | Wiring) -> tuple[ChannelGroup, ...]:
    """Every group of inner channels of a piece, in the order of what makes them.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> x, h, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s]) for n, s in (("x", 8), ("h", 32), ("y", 8)))
    >>> nodes = [helper.make_node("MatMul", ["x", "v"], ["h"], "up"), helper.make_node("MatMul", ["h", "w"], ["y"], "down")]
    >>> weights = [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in (("v", (8, 32)), ("w", (32, 8)))]
    >>> [(group.name, group.channels) for group in groups(helper.make_model(helper.make_graph(
    ...     nodes, "g", [x], [y], weights, value_info=[h])))]
    [('up', 32)]
    """  # noqa: E501
    return _searched(wired(piece))[0]


def can_narrow(piece: onnx.ModelProto | Wiring) -> str | None:
    """Why no channel of a piece can be left out; None where some can."""
    found, reasons = _searched(wired(piece))
    if found:
        return None
    return next(iter(reasons), "it has no convolution and no product with a constant matrix")


def attributes_of(node: onnx.NodeProto) -> dict[str, object]:
    """A node's attributes as plain values."""
    return {attribute.name: attribute_value(attribute) for attribute in node.attribute}


def _searched(wiring: Wiring) -> tuple[tuple[ChannelGroup, ...], list[str]]:
    found: list[ChannelGroup] = []
    reasons: list[str] = []
    taken: set[str] = set()
    for index, node in enumerate(wiring.nodes):
        if node.op_type not in MAKERS or node.output[0] in taken:
            continue
        try:
            group = _group(wiring, index)
        except _RefusedError as refusal:
            reasons.append(str(refusal))
            continue
        found.append(group)
        taken.update(group.tensors)
    return tuple(found), reasons


def _group(wiring: Wiring, start: int) -> ChannelGroup:
    parts = 1
    while True:
        spread = _Spread(wiring, start, parts)
        try:
            return spread.group()
        except _HalvedError as halved:
            parts *= int(str(halved))


class _Spread:
    """One group while it grows."""

    def __init__(self, wiring: Wiring, start: int, parts: int) -> None:
        self.wiring = wiring
        self.start = start
        self.parts = parts
        self.tensors: dict[str, tuple[int, int]] = {}
        self.makers: dict[Edit, None] = {}
        self.edits: dict[Edit, None] = {}
        self.sizes: dict[Edit, None] = {}
        self.depthwise: dict[int, int] = {}
        self.waiting: list[int] = []
        self.ways = 1

    def group(self) -> ChannelGroup:
        node = self.wiring.nodes[self.start]
        output = node.output[0]
        shape = self.wiring.spec(output).shape
        axis = 1 if node.op_type == "Conv" else len(shape) - 1
        if shape[axis] % self.parts:
            raise _RefusedError(f"{output!r} does not split into {self.parts} equal parts")
        self.channels = shape[axis] // self.parts
        if self.parts > 1 and self.channels < 2:
            raise _RefusedError(f"{output!r} has no more than one channel in each of {self.parts} parts")
        self.add(output, axis, self.parts)
        while self.waiting:
            index = self.waiting.pop()
            at = self.wiring.nodes[index]
            rule = RULES.get(at.op_type)
            if rule is None or at.domain not in ("", "ai.onnx"):
                raise _RefusedError(f"{at.op_type} {at.name!r} mixes channels, or hands them on")
            self.check(at)
            rule(self, index)
        return ChannelGroup(
            node.name, self.channels, tuple(self.makers), tuple(self.edits), tuple(self.sizes), self.depthwise,
            self.tensors, self.ways,
        )  # fmt: skip

    def check(self, node: onnx.NodeProto) -> None:
        """Refuse a node that reads channels where others have weights, or that makes more than one tensor of them."""
        if node.op_type not in BINARY and any(name in self.tensors for name in node.input[1:]):
            raise _RefusedError(f"{node.op_type} {node.name!r} reads channels in the place of its weights")
        if node.op_type != "Split" and any(node.output[1:]):
            raise _RefusedError(f"{node.op_type} {node.name!r} makes more than one tensor")

    def add(self, name: str, axis: int, copies: int) -> None:
        """Take a tensor in, and all nodes around it."""
        if name in self.tensors:
            if self.tensors[name] != (axis, copies):
                raise _RefusedError(f"{name!r} would hold the channels in two ways")
            return
        if name not in self.wiring.makers or name in self.wiring.outputs:
            raise _RefusedError(f"{name!r} is seen outside of the piece")
        if self.wiring.spec(name).shape[axis] != copies * self.channels:
            raise _RefusedError(f"{name!r} does not hold the channels alone")
        self.tensors[name] = (axis, copies)
        self.waiting += [self.wiring.makers[name], *self.wiring.users.get(name, ())]

    def edit(self, index: int, place: int, axis: int, copies: int) -> Edit:
        """Slice a constant that a node reads."""
        name = self.wiring.nodes[index].input[place]
        if name not in self.wiring.stored:
            raise _RefusedError(f"{name!r} is no constant")
        edit = Edit(index, place, axis, copies)
        self.edits[edit] = None
        return edit

    def shape(self, name: str) -> tuple[int, ...]:
        return self.wiring.spec(name).shape

    def element(self, index: int, place: int, position: int, copies: int) -> None:
        """Change one number of a constant shape or of sizes, unless it says "as it comes"."""
        name = self.wiring.nodes[index].input[place]
        stored = self.wiring.stored.get(name)
        values = None if stored is None else values_of(stored)
        if values is None:
            raise _RefusedError(f"the sizes {name!r} are not constant")
        if values.reshape(-1)[position] > 0:
            self.sizes[Edit(index, place, position, copies)] = None


def _conv(spread: _Spread, index: int) -> None:
    node = spread.wiring.nodes[index]
    x, y = node.input[0], node.output[0]
    weight = spread.shape(node.input[1])
    count = int(str(attributes_of(node).get("group", 1)))
    biased = len(node.input) > 2 and bool(node.input[2])
    if weight[1] != 1 or weight[0] != count:
        if x in spread.tensors:
            spread.edit(index, 1, 1, _of_group(spread, x, count))
        if y in spread.tensors:
            copies = count * _of_group(spread, y, count)
            spread.makers[spread.edit(index, 1, 0, copies)] = None
            if biased:
                spread.edit(index, 2, 0, copies)
        return
    copies = _at(spread, x if x in spread.tensors else y, 1)[1]
    _unary(spread, index)
    spread.edit(index, 1, 0, copies)
    if biased:
        spread.edit(index, 2, 0, copies)
    spread.depthwise[index] = copies


def _of_group(spread: _Spread, name: str, count: int) -> int:
    """Copies of the channels in each group of a convolution: as many stay in each, at the same places."""
    copies = _at(spread, name, 1)[1]
    if copies % count:
        raise _HalvedError(str(count // gcd(copies, count)))
    spread.ways = max(spread.ways, count)
    return copies // count


def _at(spread: _Spread, name: str, axis: int) -> tuple[int, int]:
    """Axis and copies of a tensor whose channels have to lie on that axis."""
    found = spread.tensors[name]
    if found[0] != axis:
        raise _RefusedError(f"the channels of {name!r} lie on another axis than the op sums over")
    return found


def _gemm(spread: _Spread, index: int) -> None:
    node = spread.wiring.nodes[index]
    attributes = attributes_of(node)
    x, y = node.input[0], node.output[0]
    if attributes.get("transA", 0):
        raise _RefusedError(f"Gemm {node.name!r} transposes its input")
    out_axis = 0 if attributes.get("transB", 0) else 1
    if x in spread.tensors:
        spread.edit(index, 1, 1 - out_axis, _at(spread, x, 1)[1])
    if y in spread.tensors:
        copies = _at(spread, y, 1)[1]
        spread.makers[spread.edit(index, 1, out_axis, copies)] = None
        if len(node.input) > 2 and node.input[2]:
            _broadcast(spread, index, 2, 2, 1, copies)


def _matmul(spread: _Spread, index: int) -> None:
    node = spread.wiring.nodes[index]
    x, matrix, y = node.input[0], node.input[1], node.output[0]
    if matrix not in spread.wiring.stored or len(spread.shape(matrix)) != 2:
        raise _RefusedError(f"MatMul {node.name!r} multiplies two activations")
    if x in spread.tensors:
        spread.edit(index, 1, 0, _at(spread, x, len(spread.shape(x)) - 1)[1])
    if y in spread.tensors:
        copies = _at(spread, y, len(spread.shape(y)) - 1)[1]
        spread.makers[spread.edit(index, 1, 1, copies)] = None


def _batch_normalization(spread: _Spread, index: int) -> None:
    node = spread.wiring.nodes[index]
    copies = _at(spread, node.input[0] if node.input[0] in spread.tensors else node.output[0], 1)[1]
    _unary(spread, index)
    for place in range(1, 5):
        spread.edit(index, place, 0, copies)


def _unary(spread: _Spread, index: int) -> None:
    node = spread.wiring.nodes[index]
    x, y = node.input[0], node.output[0]
    axis, copies = spread.tensors.get(x) or spread.tensors[y]
    spread.add(x, axis, copies)
    spread.add(y, axis, copies)


def _pool(spread: _Spread, index: int) -> None:
    node = spread.wiring.nodes[index]
    _at(spread, node.input[0] if node.input[0] in spread.tensors else node.output[0], 1)
    _unary(spread, index)


def _binary(spread: _Spread, index: int) -> None:
    node = spread.wiring.nodes[index]
    y = node.output[0]
    rank = len(spread.shape(y))
    known = next(name for name in (*node.input, y) if name in spread.tensors)
    axis, copies = spread.tensors[known]
    axis += rank - len(spread.shape(known))
    spread.add(y, axis, copies)
    for place in range(len(node.input)):
        _broadcast(spread, index, place, rank, axis, copies)


def _broadcast(spread: _Spread, index: int, place: int, rank: int, axis: int, copies: int) -> None:
    """Take in an operand of an elementwise op, unless it is one value for all channels."""
    name = spread.wiring.nodes[index].input[place]
    shape = spread.shape(name)
    own = axis - (rank - len(shape))
    if own < 0 or shape[own] == 1:
        return
    if name in spread.wiring.stored:
        spread.edit(index, place, own, copies)
    else:
        spread.add(name, own, copies)


def _view(spread: _Spread, index: int) -> None:
    """Reshape and its like, where the channels stay a dim of their own."""
    node = spread.wiring.nodes[index]
    x, y = node.input[0], node.output[0]
    known, other = (x, y) if x in spread.tensors else (y, x)
    axis, copies = spread.tensors[known]
    before, after = spread.shape(known), spread.shape(other)
    found = [
        b for b, size in enumerate(after) if size == before[axis] and prod(after[:b]) == prod(before[:axis])
    ]  # fmt: skip
    if not found:
        raise _RefusedError(f"{node.op_type} {node.name!r} takes the channels apart")
    spread.add(other, found[0], copies)
    if node.op_type == "Reshape":
        spread.element(index, 1, spread.tensors[y][0], copies)


def _transpose(spread: _Spread, index: int) -> None:
    node = spread.wiring.nodes[index]
    x, y = node.input[0], node.output[0]
    rank = len(spread.shape(x))
    perm = list(attributes_of(node).get("perm") or range(rank)[::-1])  # type: ignore[call-overload]
    if x in spread.tensors:
        axis, copies = spread.tensors[x]
        spread.add(y, perm.index(axis), copies)
    else:
        axis, copies = spread.tensors[y]
        spread.add(x, perm[axis], copies)


def _reduce(spread: _Spread, index: int) -> None:
    node = spread.wiring.nodes[index]
    x, y = node.input[0], node.output[0]
    attributes = attributes_of(node)
    rank = len(spread.shape(x))
    axes: object = attributes.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in spread.wiring.stored:
        axes = values_of(spread.wiring.stored[node.input[1]])
    if axes is None or not len(axes) or x not in spread.tensors:  # type: ignore[arg-type]
        raise _RefusedError(f"{node.op_type} {node.name!r} reduces channels")
    reduced = {int(axis) % rank for axis in axes}  # type: ignore[attr-defined]
    axis, copies = spread.tensors[x]
    if axis in reduced:
        raise _RefusedError(f"{node.op_type} {node.name!r} reduces channels")
    kept = bool(attributes.get("keepdims", 1))
    spread.add(y, axis if kept else axis - sum(other < axis for other in reduced), copies)


def _split(spread: _Spread, index: int) -> None:
    node = spread.wiring.nodes[index]
    x, parts = node.input[0], list(node.output)
    attributes = attributes_of(node)
    axis = int(str(attributes.get("axis", 0))) % len(spread.shape(x))
    sizes = {spread.shape(part)[axis] for part in parts}
    known = next(name for name in (x, *parts) if name in spread.tensors)
    if spread.tensors[known][0] != axis or len(sizes) != 1 or "split" in attributes:
        raise _RefusedError(f"Split {node.name!r} does not halve the channels")
    if x in spread.tensors and spread.tensors[x][1] % len(parts):
        raise _HalvedError(str(len(parts)))
    copies = spread.tensors[x][1] // len(parts) if x in spread.tensors else spread.tensors[known][1]
    spread.add(x, axis, copies * len(parts))
    for position, part in enumerate(parts):
        spread.add(part, axis, copies)
        if len(node.input) > 1 and node.input[1]:
            spread.element(index, 1, position, copies)


RULES: Mapping[str, Callable[[_Spread, int], None]] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _view),
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "Split": _split,
    "Transpose": _transpose,
}
