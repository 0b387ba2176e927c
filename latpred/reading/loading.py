"""A path, bytes or a ModelProto -> a ModelProto of one's own that holds the structure and no weights.

A file is mapped, not read: the protobuf wire format is walked field by field, and the bytes of large tensors are
skipped, so that memory and time do not grow with the weights. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

from latpred.errors import ModelError
from latpred.tensors import VALUE_LIMIT

__all__ = ["load", "may_hold_weights"]

KEPT_BYTES = 8 * VALUE_LIMIT  # int64: what constant propagation may need; larger data are weights

# message -> field number of a nested message in which weights may lie -> that message
NESTED: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
# float, int32, string, int64, raw, double and uint64 data; where external data lie
WEIGHT_FIELDS = frozenset({4, 5, 6, 7, 9, 10, 11})
OPSETS_SINCE_IR = 3  # the IR version from which a model has to name its opsets
OPS_WITH_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


def load(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> onnx.ModelProto:
    """The model without its weights, as a new proto that the caller may change.

    Raises
    ------
    ModelError
        Where there is no such file, or it is no ONNX model, or a truncated one.
    """
    if isinstance(source, onnx.ModelProto):
        model, origin = _without_weights(source), "the ModelProto"
    elif isinstance(source, bytes | bytearray | memoryview):
        origin = f"the {len(source)} bytes given"
        model = _parse(memoryview(source), origin)
    elif isinstance(source, str | os.PathLike):
        origin = os.fspath(source)
        model = _load_file(Path(source))
    else:
        raise ModelError(f"a model is a path, bytes or an onnx.ModelProto; got {type(source).__name__}")
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise ModelError(f"{origin} holds no ONNX graph: give a .onnx file that an exporter wrote")
    if model.ir_version >= OPSETS_SINCE_IR and not model.opset_import:
        raise ModelError(f"{origin} names no opset, so it is truncated or broken: export or copy the model again")
    return model


def _load_file(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ModelError(f"{path} is a folder: give the .onnx file itself")
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0 and path.is_file():
                raise ModelError(f"{path} is empty: export or copy the model again")
            if not path.is_file():  # a pipe cannot be mapped
                return _parse(memoryview(file.read()), str(path))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                return _parse(view, str(path))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def _parse(view: memoryview, origin: str) -> onnx.ModelProto:
    if not view:
        raise ModelError(f"{origin}: no bytes in it: export or copy the model again")
    pieces: list[bytes] = []
    try:
        _prune(view, 0, len(view), "model", pieces)
        model: onnx.ModelProto = onnx.ModelProto.FromString(b"".join(pieces))
    except (_MalformedError, DecodeError, RecursionError) as error:
        raise ModelError(f"{origin} is not an ONNX file, or a truncated one: export or copy the model again") from error
    return model


class _MalformedError(ValueError):
    """The bytes are no protobuf message."""


def _prune(view: memoryview, start: int, end: int, message: str, pieces: list[bytes]) -> int:
    """Append the message in ``view[start:end]`` without weights to `pieces`; return its new length."""
    nested = NESTED[message]
    weights = WEIGHT_FIELDS if message == "tensor" else frozenset()
    length = 0
    at = kept_from = start  # what lies between kept_from and at is kept as it is
    while at < end:
        field_start = at
        key, at = _varint(view, at, end)
        wire = key & 7
        if wire == VARINT:
            at = _varint(view, at, end)[1]
            continue
        if wire != DELIMITED:
            if wire not in FIXED_BYTES:
                raise _MalformedError
            at += FIXED_BYTES[wire]
            continue
        size, at = _varint(view, at, end)
        content, at = at, at + size
        if at > end:
            raise _MalformedError
        number = key >> 3
        if size <= KEPT_BYTES or (number not in nested and number not in weights):
            continue
        pieces.append(bytes(view[kept_from:field_start]))
        length += field_start - kept_from
        kept_from = at
        if number in nested:
            inner: list[bytes] = []
            inner_size = _prune(view, content, at, nested[number], inner)
            head = _encoded(key) + _encoded(inner_size)
            pieces.append(head)
            pieces.extend(inner)
            length += len(head) + inner_size
    if at != end:
        raise _MalformedError
    pieces.append(bytes(view[kept_from:end]))
    return length + end - kept_from


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    """The base-128 number at `at`, and where the next field starts."""
    number = shift = 0
    while at < end and shift < 70:
        byte = view[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise _MalformedError


def _encoded(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the structure; the given model's weights are neither copied nor touched."""
    bare = onnx.ModelProto()
    bare.ir_version = model.ir_version
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    if model.HasField("graph"):
        _copy_graph(model.graph, bare.graph)
    return bare


def may_hold_weights(node: onnx.NodeProto) -> bool:
    """Whether a node has a large tensor or a body among its attributes.

    A proto's own size is of no use for this: to tell it, protobuf writes the whole message.
    """
    op_type = node.op_type
    if op_type == "Constant":
        return any(prod(attribute.t.dims) > VALUE_LIMIT for attribute in node.attribute)
    return op_type in OPS_WITH_BODIES


def _copy_graph(graph: onnx.GraphProto, bare: onnx.GraphProto) -> None:
    bare.name = graph.name
    bare.input.extend(graph.input)
    bare.output.extend(graph.output)
    if any(may_hold_weights(node) for node in graph.node):
        for node in graph.node:
            if may_hold_weights(node):
                _copy_node(node, bare.node.add())
            else:
                bare.node.append(node)
    else:
        bare.node.extend(graph.node)
    for tensor in graph.initializer:
        _copy_tensor(tensor, bare.initializer.add())
    for sparse in graph.sparse_initializer:
        copied = bare.sparse_initializer.add()
        copied.dims.extend(sparse.dims)
        _copy_tensor(sparse.values, copied.values)


def _copy_tensor(tensor: onnx.TensorProto, bare: onnx.TensorProto) -> None:
    if prod(tensor.dims) <= VALUE_LIMIT:
        bare.CopyFrom(tensor)
        return
    bare.name = tensor.name
    bare.data_type = tensor.data_type
    bare.dims.extend(tensor.dims)


def _copy_node(node: onnx.NodeProto, bare: onnx.NodeProto) -> None:
    bare.name, bare.op_type, bare.domain = node.name, node.op_type, node.domain
    bare.input.extend(node.input)
    bare.output.extend(node.output)
    for attribute in node.attribute:
        if attribute.type not in (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH):
            bare.attribute.append(attribute)
            continue
        copied = bare.attribute.add()
        copied.name, copied.type = attribute.name, attribute.type
        if attribute.HasField("t"):
            _copy_tensor(attribute.t, copied.t)
        else:
            _copy_graph(attribute.g, copied.g)
