"""Places where a model can be cut: one tensor carries all that was computed so far.

A cut has a main tensor, and at most a few carried ones that hang on no main input of the model (attention masks,
position tables). Between two cuts lies a region. Cuts inside what the runtime runs as one kernel are left out: a
tensor that only elementwise ops and normalisations lie behind, up to the next such place, belongs to what made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from latpred.errors import SurgeryError
from latpred.surgery.wiring import Wiring, descendants, wired
from latpred.tensors import Spec

__all__ = ["CARRIED_LIMIT", "Cut", "channel_axis", "cuts"]

CARRIED_LIMIT = 3

# An op that costs little and joins what stands before it: no cut between the two.
GLUED = frozenset({
    "Abs", "Add", "BatchNormalization", "BiasGelu", "Cast", "Celu", "Clip", "DequantizeLinear", "Div", "Elu",
    "Erf", "Exp", "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "LayerNormalization", "LeakyRelu",
    "Log", "Mish", "Mul", "Neg", "PRelu", "Pow", "QuantizeLinear", "QuickGelu", "RMSNormalization",
    "Reciprocal", "Relu", "Selu", "Sigmoid", "SimplifiedLayerNormalization",
    "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Softplus", "Softsign", "Sqrt",
    "Sub", "Tanh", "ThresholdedRelu",
})  # fmt: skip
# Where an op's channels lie tells where those of the tensor before or behind it lie.
CHANNELS_FIRST = frozenset({
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool",
    "GroupNormalization", "InstanceNormalization", "MaxPool", "PRelu", "QLinearConv",
})  # fmt: skip
CHANNELS_LAST = frozenset({
    "Gemm", "LayerNormalization", "MatMul", "RMSNormalization", "SimplifiedLayerNormalization",
    "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
})  # fmt: skip
INTEGERS = frozenset({"int64", "int32"})


@dataclass(frozen=True, slots=True)
class Cut:
    """A place between two nodes of a tidied model.

    `position` is the number of nodes before it; `carried` are tensors that live on beside the main one.
    """

    tensor: str
    position: int
    carried: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    channel_axis: int

    @property
    def spec(self) -> Spec:
        """Shape and dtype of the main tensor."""
        return Spec(self.shape, self.dtype)


def cuts(model: onnx.ModelProto | Wiring) -> tuple[Cut, ...]:
    """Every cut of a tidied model, in order.

    The first is the model's main input, with all others carried; the last is the output that is made last.

    Raises
    ------
    SurgeryError
        Where the model was not tidied, or there are no two places to cut.

    Examples
    --------
    >>> from onnx import TensorProto, helper
    >>> x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 4, 4]) for n in "xy")
    >>> nodes = [
    ...     helper.make_node("MaxPool", ["x"], ["t"], kernel_shape=[1, 1]), helper.make_node("Relu", ["t"], ["u"]),
    ...     helper.make_node("MaxPool", ["u"], ["y"], kernel_shape=[1, 1]),
    ... ]
    >>> infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 4, 4]) for n in "tu"]
    >>> model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], value_info=infos))
    >>> [(cut.tensor, cut.position) for cut in cuts(model)]
    [('x', 0), ('u', 2), ('y', 3)]
    """
    wiring = wired(model)
    mains = _main_inputs(wiring)
    flow = _flow(wiring, mains)
    places = list(_places(wiring, mains, flow))
    found = [
        _cut(wiring, *place)
        for index, place in enumerate(places)
        if index in (0, len(places) - 1) or _holds_kernel(wiring, flow, place[1], places[index + 1][1])
    ]
    if len(found) < 2:
        raise SurgeryError("a model with two places where one tensor carries everything is needed, but its branches "
                           "never all meet: run it whole")  # fmt: skip
    return tuple(found)


def _main_inputs(wiring: Wiring) -> list[str]:
    """Inputs whose values the network is about: floating ones, else the ids that a table of embeddings is read by."""
    inputs = [name for name in wiring.inputs if name in wiring.users]
    floating = [
        name for name in inputs if not wiring.is_sequence(name) and wiring.spec(name).dtype not in (*INTEGERS, "bool")
    ]
    if floating:
        return floating
    rows = {name: _table_rows(wiring, name) for name in inputs}
    if not any(rows.values()):
        return inputs
    return [max(inputs, key=lambda name: rows[name])]


def _table_rows(wiring: Wiring, name: str) -> int:
    """Rows of the largest constant table that is read at indices computed from an input."""
    reached = descendants(wiring, [name])
    read = [index for index in _lookups(wiring) if wiring.nodes[index].input[1] in reached]
    return max((_table(wiring, index) for index in read), default=0)


def _lookups(wiring: Wiring) -> Iterator[int]:
    """Nodes that read embeddings from a constant table."""
    return (index for index, node in enumerate(wiring.nodes) if node.op_type == "Gather" and _table(wiring, index))


def _table(wiring: Wiring, index: int) -> int:
    stored = wiring.stored.get(wiring.nodes[index].input[0])
    floating = stored is not None and wiring.spec(stored.name).dtype not in (*INTEGERS, "bool")
    return int(stored.dims[0]) if stored is not None and floating and len(stored.dims) == 2 else 0


def _flow(wiring: Wiring, mains: Sequence[str]) -> frozenset[str]:
    """Tensors of the main stream: what is computed from main inputs; from ids, only behind their embedding."""
    if any(wiring.spec(name).dtype not in (*INTEGERS, "bool") for name in mains):
        return descendants(wiring, mains)
    from_ids = descendants(wiring, mains)
    embedded = {wiring.nodes[index].output[0] for index in _lookups(wiring) if wiring.nodes[index].input[1] in from_ids}
    return descendants(wiring, embedded) if embedded else from_ids


def _places(wiring: Wiring, mains: Sequence[str], flow: frozenset[str]) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Main tensor, position and carried tensors wherever one tensor of the stream is live."""
    varying = descendants(wiring, wiring.inputs)
    last_use = {name: users[-1] for name, users in wiring.users.items() if name in varying}
    live = dict.fromkeys(name for name in wiring.inputs if name in last_use)
    end = len(wiring.nodes)
    previous = ""
    if mains:
        previous = max(mains, key=lambda name: wiring.spec(name).elements)
        yield previous, 0, tuple(name for name in live if name != previous)
    for position in range(1, end):
        for name in wiring.nodes[position - 1].output:
            if last_use.get(name, -1) >= position:
                live[name] = None
        for name in [name for name in live if last_use[name] < position]:
            del live[name]
        stream = [name for name in live if name in flow]
        carried = tuple(name for name in live if name not in flow)
        if len(stream) == 1 and len(carried) <= CARRIED_LIMIT and stream[0] != previous:
            if any(map(wiring.is_sequence, (*stream, *carried))):
                continue
            previous = stream[0]
            yield previous, position, carried
    last = max((name for name in wiring.outputs if name in wiring.makers), key=wiring.makers.__getitem__, default="")
    if last and last != previous:
        yield last, end, ()


def _holds_kernel(wiring: Wiring, flow: frozenset[str], start: int, end: int) -> bool:
    """Whether the nodes between two positions do more than what joins the kernel before them."""
    return any(
        node.op_type not in GLUED for node in wiring.nodes[start:end] if not flow.isdisjoint(node.output)
    )  # fmt: skip


def _cut(wiring: Wiring, tensor: str, position: int, carried: tuple[str, ...]) -> Cut:
    spec = wiring.spec(tensor)
    return Cut(tensor, position, carried, spec.shape, spec.dtype, channel_axis(wiring, tensor))


def channel_axis(wiring: Wiring, tensor: str) -> int:
    """The axis of channels: as the nearest op says that tells the first from the last apart."""
    rank = len(wiring.spec(tensor).shape)
    for found in (_behind(wiring, tensor), _before(wiring, tensor)):
        for op_type in found:
            if op_type in CHANNELS_FIRST:
                return min(1, rank - 1)
            if op_type in CHANNELS_LAST:
                return rank - 1
    maker = wiring.nodes[wiring.makers[tensor]] if tensor in wiring.makers else None
    if maker is not None and maker.op_type == "Transpose":  # flattened or averaged as another framework lays maps out
        moved = next((list(own.ints) for own in maker.attribute if own.name == "perm"), list(reversed(range(rank))))
        return moved.index(channel_axis(wiring, maker.input[0]))
    return min(1, rank - 1) if rank >= 4 else rank - 1


def _behind(wiring: Wiring, tensor: str) -> Iterator[str]:
    waiting, seen = [tensor], {tensor}
    for name in waiting:  # grows while it is walked
        for index in wiring.users.get(name, ()):
            node = wiring.nodes[index]
            yield node.op_type
            if node.op_type in GLUED and node.output[0] not in seen:
                seen.add(node.output[0])
                waiting.append(node.output[0])


def _before(wiring: Wiring, tensor: str) -> Iterator[str]:
    waiting, seen = [tensor], {tensor}
    for name in waiting:
        if name not in wiring.makers:
            continue
        node = wiring.nodes[wiring.makers[name]]
        yield node.op_type
        if node.op_type in GLUED:
            fresh = [read for read in node.input if read and read not in seen]
            seen.update(fresh)
            waiting += fresh
