"""Who makes and who reads each tensor of a tidied model, and how a new model is put together from its parts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import helper

from latpred.errors import SurgeryError
from latpred.reading.nodes import names_read
from latpred.reading.shapes import signature_of
from latpred.tensors import DTYPE_CODES, DTYPE_NAMES, Spec

__all__ = ["Wiring", "assembled", "declared", "descendants", "extracted", "wired", "within"]

# Ops whose result is no tensor; a tidied model declares no shape for it.
OF_SEQUENCES = frozenset({
    "Optional", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap",
    "SplitToSequence", "ZipMap",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wiring:
    """A tidied model's nodes in order, and the names between them."""

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    reads: tuple[tuple[str, ...], ...]  # node -> names that it reads, those that its bodies take from outside included
    makers: Mapping[str, int]  # name -> node that makes it
    users: Mapping[str, tuple[int, ...]]  # name -> nodes that read it, in order
    stored: Mapping[str, onnx.TensorProto]
    infos: Mapping[str, onnx.ValueInfoProto]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    specs: dict[str, Spec] = field(default_factory=dict, repr=False, compare=False)  # those that were asked for

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return next((int(entry.version) for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 1)

    def is_sequence(self, name: str) -> bool:
        """Whether a name stands for a sequence, a map or an optional, which no piece can hand on."""
        if name in self.stored:
            return False
        if name in self.infos:
            return not self.infos[name].type.HasField("tensor_type")
        maker = self.nodes[self.makers[name]] if name in self.makers else None
        if maker is not None and maker.op_type == "Identity":
            return self.is_sequence(maker.input[0])
        return maker is not None and maker.op_type in OF_SEQUENCES

    def spec(self, name: str) -> Spec:
        """Shape and dtype of a tensor.

        Raises
        ------
        SurgeryError
            Where the model does not say them, so that it was not tidied.
        """
        found = self.specs.get(name)
        if found is None:
            found = self.specs[name] = self._spec(name)
        return found

    def _spec(self, name: str) -> Spec:
        stored = self.stored.get(name)
        if stored is not None:
            return Spec(tuple(stored.dims), DTYPE_NAMES[stored.data_type], True)
        info = self.infos.get(name)
        signature = None if info is None else signature_of(info.type)
        if signature is None:
            raise SurgeryError(f"tensor {name!r} needs a known shape, but the model says none: tidy the model first")
        return Spec(*signature)


def wired(model: onnx.ModelProto | Wiring) -> Wiring:
    """Read the names of a model once; a wiring is handed through.

    Examples
    --------
    >>> x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 8]) for n in "xy")
    >>> node = helper.make_node("Relu", ["x"], ["y"])
    >>> wiring = wired(helper.make_model(helper.make_graph([node], "g", [x], [y])))
    >>> wiring.makers, wiring.users, wiring.spec("x").shape
    ({'y': 0}, {'x': (0,)}, (1, 8))
    """
    if isinstance(model, Wiring):
        return model
    graph = model.graph
    nodes = tuple(graph.node)
    return _linked(
        model,
        nodes,
        tuple(tuple(dict.fromkeys(name for name in names_read(node) if name)) for node in nodes),
        {stored.name: stored for stored in graph.initializer},
        {info.name: info for infos in (graph.value_info, graph.output, graph.input) for info in infos},
        tuple(value.name for value in graph.input),
        tuple(value.name for value in graph.output),
        {},
    )


def within(wiring: Wiring, nodes: Sequence[int], inputs: Sequence[str], outputs: Sequence[str]) -> Wiring:
    """Some of the nodes as if they were a model of their own, without a copy of anything.

    Examples
    --------
    >>> x, t, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 8]) for n in "xty")
    >>> nodes = [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Tanh", ["t"], ["y"])]
    >>> whole = wired(helper.make_model(helper.make_graph(nodes, "g", [x], [y], value_info=[t])))
    >>> within(whole, [1], ["t"], ["y"]).users
    {'t': (0,)}
    """
    return _linked(
        wiring.model,
        tuple(wiring.nodes[index] for index in nodes),
        tuple(wiring.reads[index] for index in nodes),
        wiring.stored,
        wiring.infos,
        tuple(inputs),
        tuple(outputs),
        wiring.specs,
    )


def _linked(
    model: onnx.ModelProto,
    nodes: tuple[onnx.NodeProto, ...],
    reads: tuple[tuple[str, ...], ...],
    stored: Mapping[str, onnx.TensorProto],
    infos: Mapping[str, onnx.ValueInfoProto],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    specs: dict[str, Spec],
) -> Wiring:
    users: dict[str, list[int]] = {}
    for index, names in enumerate(reads):
        for name in names:
            users.setdefault(name, []).append(index)
    return Wiring(
        model,
        nodes,
        reads,
        {name: index for index, node in enumerate(nodes) for name in node.output if name},
        {name: tuple(found) for name, found in users.items()},
        stored,
        infos,
        inputs,
        outputs,
        specs,
    )


def descendants(wiring: Wiring, names: Iterable[str], without: Collection[int] = ()) -> frozenset[str]:
    """`names` and every tensor that is computed from one of them, by no node of `without`."""
    found = set(names)
    for index, read in enumerate(wiring.reads):
        if index not in without and not found.isdisjoint(read):
            found.update(name for name in wiring.nodes[index].output if name)
    return frozenset(found)


def extracted(wiring: Wiring, inputs: Sequence[str], outputs: Sequence[str]) -> list[int]:
    """Nodes, in order, that make `outputs` from `inputs`.

    Raises
    ------
    SurgeryError
        Where an input of the model is needed that is not among `inputs`.
    """
    given = set(inputs)
    waiting = [name for name in outputs if name not in given]
    found: set[int] = set()
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        if name in wiring.stored:
            continue
        if name not in wiring.makers:
            raise SurgeryError(
                f"{', '.join(outputs)} cannot be made from {', '.join(inputs)}: the model's input {name!r} is needed "
                "too; cut where one tensor carries all of it"
            )
        index = wiring.makers[name]
        if index not in found:
            found.add(index)
            fresh = [read for read in wiring.reads[index] if read not in given and read not in seen]
            seen.update(fresh)
            waiting += fresh
    return sorted(found)


def declared(name: str, spec: Spec) -> onnx.ValueInfoProto:
    """A tensor's shape and dtype as a graph's inputs and outputs write them."""
    return helper.make_tensor_value_info(name, DTYPE_CODES[spec.dtype], list(spec.shape))


def assembled(
    like: onnx.ModelProto,
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    stored: Iterable[onnx.TensorProto],
    infos: Mapping[str, onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of `nodes` with the opsets of `like`, that holds of `stored` and `infos` what the nodes touch.

    Protos are copied, so that nothing given is changed later.
    """
    model = onnx.ModelProto()
    model.ir_version = like.ir_version
    model.opset_import.extend(like.opset_import)
    graph = model.graph
    graph.name = name
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    graph.node.extend(nodes)
    touched = {read for node in nodes for read in names_read(node)} | {value.name for value in outputs}
    graph.initializer.extend(tensor for tensor in stored if tensor.name in touched)
    ends = {value.name for value in (*inputs, *outputs)}
    made = dict.fromkeys(written for node in nodes for written in node.output if written not in ends)
    graph.value_info.extend(infos[written] for written in made if written in infos)
    return model
