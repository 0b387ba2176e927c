"""ONNX bytes -> a plain graph in which every tensor has a concrete shape and dtype.

Weights are never needed: they are dropped before shape inference, external data is not opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx

from latpred.errors import ModelError

__all__ = ["AttributeValue", "Graph", "Op", "Spec", "Tensor", "read"]

AttributeValue = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]

ITEM_BYTES = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "bool": 1,
    "string": 16,
    "complex64": 8,
    "complex128": 16,
    "int4": 0.5,
    "uint4": 0.5,
}


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and dtype of one operand; `constant` where it is known before the first inference."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    constant: bool = False

    @property
    def elements(self) -> int:
        """Number of elements (1 for a scalar)."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Size in bytes, without padding."""
        return int(self.elements * ITEM_BYTES.get(self.dtype, 4))


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named value of a graph. `value` is there only for small constants (shapes, scalars, axes)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool = False
    value: np.ndarray | None = field(default=None, compare=False)

    @property
    def spec(self) -> Spec:
        """The tensor without its name."""
        return Spec(self.shape, self.dtype, self.constant)


@dataclass(frozen=True, slots=True)
class Op:
    """One ONNX node; an absent optional input is ``""``; the standard domain is ``""``."""

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue]
    bodies: tuple[Graph, ...] = ()  # of If, Loop, Scan, as they were attributes
    repeat: int | None = 1  # trip count of the bodies; None where it is unknown


@dataclass(frozen=True)
class Graph:
    """Ops in topological order and every tensor they touch."""

    name: str
    ops: tuple[Op, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opsets: Mapping[str, int]
    notices: tuple[str, ...] = ()

VALUE_LIMIT = 4096  # elements; larger constants are shapes only


def read(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Graph:
    """First working version: static shapes, whole-graph inference, constant propagation."""
    from onnx import numpy_helper, shape_inference

    if isinstance(source, onnx.ModelProto):
        model = source
    elif isinstance(source, bytes):
        model = onnx.load_from_string(source)
    else:
        model = onnx.load(os.fspath(source), load_external_data=False)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    dims = dims or {}
    shapes = shapes or {}
    for value in bare.graph.input:
        tt = value.type.tensor_type
        for i, d in enumerate(tt.shape.dim):
            if value.name in shapes:
                d.Clear()
                d.dim_value = shapes[value.name][i]
            elif not d.HasField("dim_value"):
                n = dims.get(d.dim_param, 1)
                d.Clear()
                d.dim_value = n
    inferred = shape_inference.infer_shapes(bare, data_prop=True)
    tensors: dict[str, Tensor] = {}

    def dtype_name(code: int) -> str:
        return str(onnx.TensorProto.DataType.Name(code)).lower().replace("float", "float32") if code == 1 else {
            11: "float64"
        }.get(code, str(onnx.TensorProto.DataType.Name(code)).lower())

    for value in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]:
        tt = value.type.tensor_type
        if tt.HasField("shape") and all(d.HasField("dim_value") for d in tt.shape.dim):
            tensors[value.name] = Tensor(
                value.name, tuple(d.dim_value for d in tt.shape.dim), dtype_name(tt.elem_type)
            )
    for init in model.graph.initializer:
        known = init.data_location != onnx.TensorProto.EXTERNAL and prod(init.dims) <= VALUE_LIMIT
        tensors[init.name] = Tensor(
            init.name,
            tuple(init.dims),
            dtype_name(init.data_type),
            True,
            numpy_helper.to_array(init) if known else None,
        )
    opsets = {o.domain: o.version for o in model.opset_import}
    ops = []
    from onnx.reference import ReferenceEvaluator

    for node in model.graph.node:
        attrs: dict[str, AttributeValue] = {}
        for a in node.attribute:
            v = onnx.helper.get_attribute_value(a)
            if isinstance(v, bytes):
                attrs[a.name] = v.decode()
            elif isinstance(v, int | float):
                attrs[a.name] = v
            elif isinstance(v, onnx.TensorProto):
                tensors[node.output[0]] = Tensor(
                    node.output[0], tuple(v.dims), dtype_name(v.data_type), True, numpy_helper.to_array(v)
                )
            elif isinstance(v, Sequence) or hasattr(v, "__iter__"):
                attrs[a.name] = tuple(x.decode() if isinstance(x, bytes) else x for x in v)
        op = Op(node.name or f"{node.op_type}_{len(ops)}", node.op_type, node.domain.replace("ai.onnx", ""),
                tuple(node.input), tuple(node.output), attrs)
        ops.append(op)
        if node.op_type == "Constant":
            continue
        if node.op_type == "Shape" and node.input[0] in tensors:
            shape = tensors[node.input[0]].shape[attrs.get("start", 0):attrs.get("end", None)]
            tensors[node.output[0]] = Tensor(node.output[0], (len(shape),), "int64", True, np.array(shape, np.int64))
            continue
        ins = [tensors.get(i) for i in node.input if i]
        if ins and all(t is not None and t.constant for t in ins):
            values = [t.value for t in ins]  # type: ignore[union-attr]
            if all(v is not None for v in values):
                try:
                    outs = ReferenceEvaluator(
                        onnx.helper.make_model(
                            onnx.helper.make_graph(
                                [node], "g",
                                [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                                 for n, v in {n: v for n, v in zip([i for i in node.input if i], values, strict=True)}.items()],
                                [onnx.helper.make_empty_tensor_value_info(o) for o in node.output]),
                            opset_imports=model.opset_import)
                    ).run(None, dict(zip([i for i in node.input if i], values, strict=True)))
                    for name, v in zip(node.output, outs, strict=True):
                        v = np.asarray(v)
                        tensors[name] = Tensor(name, v.shape, str(v.dtype), True, v if v.size <= VALUE_LIMIT else None)
                    continue
                except Exception as error:
                    raise ModelError(f"cannot fold {node.op_type} {node.name}: {error}") from error
            for o in node.output:
                if o in tensors:
                    t = tensors[o]
                    tensors[o] = Tensor(o, t.shape, t.dtype, True)
    return Graph(model.graph.name, tuple(ops), tensors, tuple(i.name for i in model.graph.input if i.name not in {t.name for t in model.graph.initializer}),
                 tuple(o.name for o in model.graph.output), opsets)


def walk(graph: Graph) -> Iterator[Op]:
    """Every op, bodies included."""
    for op in graph.ops:
        yield op
        for body in op.bodies:
            yield from walk(body)
