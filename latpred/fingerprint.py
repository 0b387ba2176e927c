"""A number that stands for a model's structure, so that a model seen before is known again without reading it.

Two models share it where they differ in nothing but weights: same nodes and attributes, same names, dims and dtypes
of initializers, same small constants, same inputs, outputs and opsets, same bound dims and shapes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from math import prod

import onnx

from latpred.reading.loading import load, may_hold_weights
from latpred.tensors import VALUE_LIMIT

__all__ = ["fingerprint"]

# int64 and bool hold shapes, axes and masks; of the other dtypes only scalars and scales may steer a shape
STEERING_TYPES = frozenset({int(onnx.TensorProto.INT64), int(onnx.TensorProto.BOOL)})
SCALE_LIMIT = 16  # elements


def fingerprint(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> bytes:
    """16 bytes that change with everything that a prediction may depend on, and not with weights.

    Examples
    --------
    >>> x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 8]) for n in "xy")
    >>> relu, tanh = (onnx.helper.make_node(op, ["x"], ["y"]) for op in ("Relu", "Tanh"))
    >>> model, other = (onnx.helper.make_model(onnx.helper.make_graph([n], "g", [x], [y])) for n in (relu, tanh))
    >>> fingerprint(model) == fingerprint(other)
    False
    """
    model = source if isinstance(source, onnx.ModelProto) else load(source)
    bound = (sorted((dims or {}).items()), sorted((name, tuple(shape)) for name, shape in (shapes or {}).items()))
    parts = [repr(bound).encode(), b"%d" % model.ir_version]
    parts += [entry.SerializeToString() for entry in model.opset_import]
    for function in model.functions:
        parts += [function.name.encode(), function.domain.encode(), repr((function.input, function.output)).encode()]
        parts += _nodes(function.node)
    parts += _graph(model.graph)
    lengths = repr([len(part) for part in parts])  # so that no two rows of parts read alike
    return blake2b(b"".join([*parts, lengths.encode()]), digest_size=16).digest()


def _graph(graph: onnx.GraphProto) -> list[bytes]:
    return [
        *[value.SerializeToString() for value in graph.input],
        *[value.name.encode() for value in graph.output],
        *_nodes(graph.node),
        *[_tensor(stored) for stored in graph.initializer],
        *[
            repr((sparse.values.name, sparse.values.data_type, tuple(sparse.dims))).encode()
            for sparse in graph.sparse_initializer
        ],
    ]


def _nodes(nodes: Sequence[onnx.NodeProto]) -> list[bytes]:
    parts = []
    for node in nodes:
        if not may_hold_weights(node):
            parts.append(node.SerializeToString())
            continue
        parts.append(repr((node.name, node.op_type, node.domain, tuple(node.input), tuple(node.output))).encode())
        for attribute in node.attribute:
            parts.append(attribute.name.encode())
            if attribute.HasField("t"):
                parts.append(_tensor(attribute.t))
            elif attribute.HasField("g"):
                parts += _graph(attribute.g)
            else:
                parts.append(attribute.SerializeToString())
    return parts


def _tensor(stored: onnx.TensorProto) -> bytes:
    kind, shape = stored.data_type, tuple(stored.dims)
    if prod(shape) <= (VALUE_LIMIT if kind in STEERING_TYPES else SCALE_LIMIT):
        return stored.SerializeToString()  # type: ignore[no-any-return, unused-ignore]
    return repr((stored.name, kind, shape)).encode()
