"""A number that stands for a model's structure, so that a model seen before is known again without reading it.

Two models share it where they differ in nothing but weights: same nodes and attributes, same names, dims and dtypes
of initializers, same small constants, same inputs, outputs and opsets, same bound dims and shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b

import onnx

__all__ = ["fingerprint"]

# int64 and bool hold shapes, axes and masks; of the other dtypes only scalars and scales may steer a shape
STEERING_TYPES = frozenset({int(onnx.TensorProto.INT64), int(onnx.TensorProto.BOOL)})
STEERING_BYTES = 32768  # as much as constant propagation looks at
SMALL_BYTES = 64  # 16 float32
FAT_NODE_BYTES = 4096  # a larger node may hold a tensor or a body


def fingerprint(
    model: onnx.ModelProto,
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
    bound = (sorted((dims or {}).items()), sorted((name, tuple(shape)) for name, shape in (shapes or {}).items()))
    parts = [repr(bound).encode(), b"%d" % model.ir_version]
    parts += [entry.SerializeToString() for entry in model.opset_import]
    for function in model.functions:
        parts += [function.name.encode(), function.domain.encode(), repr((function.input, function.output)).encode()]
        parts += _nodes(function.node)
    parts += _graph(model.graph)
    digest = blake2b(digest_size=16)
    for part in parts:  # with its length, so that no two rows of parts read alike
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


def _graph(graph: onnx.GraphProto) -> Iterator[bytes]:
    yield from [value.SerializeToString() for value in graph.input]
    yield from [value.name.encode() for value in graph.output]
    yield from _nodes(graph.node)
    for stored in graph.initializer:
        yield from _tensor(stored)
    for sparse in graph.sparse_initializer:
        yield repr((sparse.values.name, sparse.values.data_type, tuple(sparse.dims))).encode()


def _nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[bytes]:
    for node in nodes:
        if node.ByteSize() <= FAT_NODE_BYTES:
            yield node.SerializeToString()
            continue
        yield repr((node.name, node.op_type, node.domain, tuple(node.input), tuple(node.output))).encode()
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.name.encode()
                yield from _tensor(attribute.t)
            elif attribute.HasField("g"):
                yield attribute.name.encode()
                yield from _graph(attribute.g)
            else:
                yield attribute.SerializeToString()


def _tensor(stored: onnx.TensorProto) -> Iterator[bytes]:
    kind = stored.data_type
    limit = STEERING_BYTES if kind in STEERING_TYPES else SMALL_BYTES
    yield repr((stored.name, kind, tuple(stored.dims))).encode()
    if len(stored.raw_data) > limit or stored.ByteSize() > limit + len(stored.name) + SMALL_BYTES:
        return
    yield stored.raw_data or stored.SerializeToString()
