"""What ONNX nodes say, as plain Python: attribute values, constants, order, names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import onnx

from latpred.errors import ModelError
from latpred.tensors import AttributeValue, Tensor, computed_tensor, stored_tensor

__all__ = [
    "ParsedNode",
    "attribute_value",
    "constant_of",
    "copied",
    "domain_of",
    "graphs_of",
    "in_order",
    "names_read",
    "parse",
    "rename",
]

TENSOR_ATTRIBUTE_LIMIT = 64  # elements; a larger tensor attribute is left to the tensor that it becomes

Message = TypeVar("Message", onnx.NodeProto, onnx.GraphProto, onnx.ValueInfoProto)

A = onnx.AttributeProto
GRAPH, TENSOR = int(A.GRAPH), int(A.TENSOR)
GETTERS: Mapping[int, Callable[[Any], AttributeValue | None]] = {
    A.FLOAT: lambda a: float(a.f),
    A.INT: lambda a: int(a.i),
    A.STRING: lambda a: _text(a.s),
    A.FLOATS: lambda a: tuple(a.floats),
    A.INTS: lambda a: tuple(a.ints),
    A.STRINGS: lambda a: tuple(_text(s) for s in a.strings),
    A.TENSOR: lambda a: _small_values(a.t),
}
VALUE_DTYPES: Mapping[str, Any] = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_string": np.str_,
    "value_strings": np.str_,
}
GUESSED_TYPES = (("f", A.FLOAT), ("i", A.INT), ("s", A.STRING), ("t", A.TENSOR))


@dataclass(slots=True)
class ParsedNode:
    """A NodeProto taken apart once; `graphs` are the bodies that lie in its attributes."""

    proto: onnx.NodeProto
    name: str
    op_type: str
    domain: str  # empty for the standard one
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, AttributeValue]
    graphs: dict[str, onnx.GraphProto]
    literal: onnx.TensorProto | None  # the tensor among the attributes


def parse(node: onnx.NodeProto) -> ParsedNode:
    """Take a node apart.

    Raises
    ------
    ModelError
        Where its names are no text.
    """
    attributes: dict[str, AttributeValue] = {}
    graphs: dict[str, onnx.GraphProto] = {}
    literal = None
    for attribute in node.attribute:
        kind = attribute.type
        if kind == GRAPH:
            graphs[attribute.name] = attribute.g
            continue
        if kind == TENSOR:
            literal = attribute.t
        getter = GETTERS.get(kind)
        value = getter(attribute) if getter is not None else attribute_value(attribute)
        if value is not None:
            attributes[attribute.name] = value
    name, op_type, domain = node.name, node.op_type, domain_of(node.domain)
    inputs, outputs = tuple(node.input), tuple(node.output)
    try:
        "".join((name, op_type, domain, *inputs, *outputs, *attributes, *graphs))
    except TypeError as error:  # protobuf hands text that is no UTF-8 on as bytes
        raise ModelError(f"node {name!r} has a name that is no text: export or copy the model again") from error
    return ParsedNode(node, name, op_type, domain, inputs, outputs, attributes, graphs, literal)


def domain_of(written: str) -> str:
    """The domain as latpred writes it: the standard one is empty."""
    return "" if written == "ai.onnx" else written


def attribute_value(attribute: onnx.AttributeProto) -> AttributeValue | None:
    """A plain value; None for graphs, types and large tensors.

    Examples
    --------
    >>> attribute_value(onnx.helper.make_attribute("kernel_shape", [3, 3]))
    (3, 3)
    """
    kind = attribute.type
    if kind == A.UNDEFINED:  # IR version 1 did not write it
        kind = next((kind for field, kind in GUESSED_TYPES if attribute.HasField(field)), A.INTS)
        if kind == A.INTS and attribute.floats:
            kind = A.FLOATS
        elif kind == A.INTS and attribute.strings:
            kind = A.STRINGS
    getter = GETTERS.get(kind)
    return None if getter is None else getter(attribute)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


def _small_values(stored: onnx.TensorProto) -> AttributeValue | None:
    if prod(stored.dims) > TENSOR_ATTRIBUTE_LIMIT:
        return None
    value = stored_tensor("", stored).value
    if value is None or value.dtype.kind not in "iufb":
        return None
    flat: list[Any] = value.reshape(-1).tolist()
    return tuple(flat) if value.ndim else flat[0]


def constant_of(node: onnx.NodeProto) -> Tensor:
    """The tensor that a Constant node makes.

    Raises
    ------
    ModelError
        Where the node has no value.
    """
    name = node.output[0]
    for attribute in node.attribute:
        if attribute.name == "value":
            return stored_tensor(name, attribute.t)
        if attribute.name == "sparse_value":
            dense = stored_tensor(name, attribute.sparse_tensor.values)
            return Tensor(name, tuple(attribute.sparse_tensor.dims), dense.dtype, True)
        value, dtype = attribute_value(attribute), VALUE_DTYPES.get(attribute.name)
        if value is not None and dtype is not None:
            return computed_tensor(name, np.array(value, dtype))
    raise ModelError(f"Constant {node.name!r} has no value: export the model again")


def copied(message: Message) -> Message:
    """A copy that may be changed."""
    fresh = type(message)()
    fresh.CopyFrom(message)
    return fresh


def in_order(nodes: Sequence[ParsedNode], known: Callable[[str], bool]) -> Sequence[ParsedNode]:
    """The nodes so that each stands behind those that it reads from: `nodes` itself where it is so already.

    Parameters
    ----------
    nodes : sequence of ParsedNode
    known : function of str
        Whether a name is there before the first node.

    Raises
    ------
    ModelError
        Where nodes read from each other in a circle, or from nothing.
    """
    made: set[str] = set()
    for node in nodes:
        for name in node.inputs:
            if name and name not in made and not known(name):
                return _sorted(nodes, known)
        made.update(node.outputs)
    return nodes


def _sorted(nodes: Sequence[ParsedNode], known: Callable[[str], bool]) -> list[ParsedNode]:
    producer = {name: index for index, node in enumerate(nodes) for name in node.outputs if name}
    waiting: list[int] = []
    users: list[list[int]] = [[] for _ in nodes]
    for index, node in enumerate(nodes):
        read = {name for name in names_read(node.proto) if name}
        for name in node.inputs:
            if name and name not in producer and not known(name):
                raise ModelError(
                    f"{node.op_type} {node.name!r} reads {name!r}, which nothing produces: export the model again"
                )
        sources = {producer[name] for name in read if name in producer}
        waiting.append(len(sources))
        for source in sources:
            users[source].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    for index in ready:  # grows while it is walked
        for user in users[index]:
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    if len(ready) < len(nodes):
        stuck = next(nodes[index] for index, count in enumerate(waiting) if count > 0)
        raise ModelError(f"{stuck.op_type} {stuck.name!r} stands in a circle of nodes: an ONNX graph has none")
    return [nodes[index] for index in ready]


def graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Bodies in a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those that its bodies take from outside included."""
    yield from node.input
    for graph in graphs_of(node):
        own = {value.name for value in graph.input} | {stored.name for stored in graph.initializer}
        own.update(name for inner in graph.node for name in inner.output)
        own.update(sparse.values.name for sparse in graph.sparse_initializer)
        for inner in graph.node:
            yield from (name for name in names_read(inner) if name not in own)
        yield from (value.name for value in graph.output if value.name not in own)


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Replace names of values, in place, bodies included (but not what a body calls so itself)."""
    for stored in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        stored.name = names.get(stored.name, stored.name)
    for value in graph.output:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        _replace(node.input, names)
        _replace(node.output, names)
        for inner in graphs_of(node):
            own: Collection[str] = {value.name for value in inner.input}
            rename(inner, {old: new for old, new in names.items() if old not in own})


def _replace(written: Any, names: Mapping[str, str]) -> None:  # a repeated field of str
    for index, name in enumerate(written):
        if name in names:
            written[index] = names[name]
