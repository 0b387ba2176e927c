"""Shape and dtype of one node's outputs, from its inputs' and the values of its small constant ones."""

# ruff: noqa: ARG005 - the functions of a table share one signature

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx
from onnx import defs, numpy_helper, shape_inference

from latpred.reading.contrib import CONTRIB_SHAPES, NCHWC_SHAPES, Signature
from latpred.reading.nodes import ParsedNode, domain_of
from latpred.tensors import DTYPE_CODES, DTYPE_NAMES, Array, Tensor

__all__ = ["NodeInference", "Signature", "signature_of", "whole_graph_signatures"]

# outputs that onnx's own inference leaves open: op -> function of (inputs, opset) -> signatures of all outputs
SUPPLEMENTS: Mapping[str, Callable[[Sequence[Tensor | None], int], list[Signature | None]]] = {
    "Dropout": lambda inputs, opset: [None, _dropout_mask(inputs[0], opset)],
    "GroupNormalization": lambda inputs, opset: [_same(inputs[0])],
    "MaxUnpool": lambda inputs, opset: [_unpooled(inputs)],
    "MeanVarianceNormalization": lambda inputs, opset: [_same(inputs[0])],
}

INFERENCE_ERRORS = (
    shape_inference.InferenceError,
    onnx.checker.ValidationError,  # of ops that were deprecated
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
)
INTEGER_DATA_LIMIT = 1024  # elements: axes, sizes, pads, repeats and split lengths are integers
FLOAT_DATA_LIMIT = 16  # elements: scales, ranges and regions of interest


def whole_graph_signatures(model: onnx.ModelProto) -> dict[str, Signature]:
    """What onnx's own inference finds over the whole graph: only shapes that are concrete in every dim.

    `model` has no weights, concrete inputs and no outputs (what a file says of them may be stale).
    """
    for node in model.graph.node:
        if node.op_type == "STFT" and not any(attribute.name == "onesided" for attribute in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("onesided", 1))  # inference forgets this default
    try:
        inferred = shape_inference.infer_shapes(model)
    except INFERENCE_ERRORS:
        return {}  # every node is then inferred alone, and named where that fails
    found = {}
    for value in inferred.graph.value_info:
        signature = signature_of(value.type)
        if signature is not None:
            found[value.name] = signature
    return found


def signature_of(declared: onnx.TypeProto) -> Signature | None:
    """Shape and dtype that a type declares; None where a dim or the dtype is open, or it is no tensor."""
    tensor = declared.tensor_type
    name = DTYPE_NAMES.get(tensor.elem_type)
    if name is None or name == "undefined" or not tensor.HasField("shape"):
        return None
    sizes = []
    for dim in tensor.shape.dim:
        size = dim.dim_value
        if size <= 0 and (size < 0 or not dim.HasField("dim_value")):
            return None
        sizes.append(size)
    return tuple(sizes), name


class NodeInference:
    """Infers node by node; nodes that are alike in everything that matters are inferred once."""

    def __init__(self, opset_imports: Sequence[onnx.OperatorSetIdProto], ir_version: int) -> None:
        self._imports = list(opset_imports)
        self._versions = {domain_of(entry.domain): entry.version for entry in opset_imports}
        self._ir_version = ir_version
        self._schemas: dict[tuple[str, str], defs.OpSchema | None] = {}
        self._known: dict[tuple[object, ...], list[Signature | None]] = {}

    def signatures(self, node: ParsedNode, inputs: Sequence[Tensor | None]) -> list[Signature | None]:
        """Shape and dtype of each output; None where they stay unknown."""
        blank: list[Signature | None] = [None] * len(node.outputs)
        if any(t is not None and t.dtype not in DTYPE_CODES for t in inputs):
            return blank  # sequences have no type that could be handed on
        table = NCHWC_SHAPES if node.domain == "com.microsoft.nchwc" else CONTRIB_SHAPES
        contrib = table.get(node.op_type)
        if contrib is not None and self._schema(node.op_type, node.domain) is None:
            try:
                found = contrib([None if t is None else (t.shape, t.dtype) for t in inputs], node.attributes)
            except (AssertionError, IndexError, KeyError, TypeError, ValueError):
                return blank  # inputs that the rule does not cover: the caller names the op
            return [*found, *blank][: len(blank)]
        inferred = self._inferred(node, inputs)
        if None in inferred and not node.domain and node.op_type in SUPPLEMENTS:
            supplement = SUPPLEMENTS[node.op_type](inputs, self._versions.get("", 1))
            inferred = [mine or more for mine, more in zip(inferred, [*supplement, *blank], strict=False)]
        return inferred

    def _inferred(self, node: ParsedNode, inputs: Sequence[Tensor | None]) -> list[Signature | None]:
        schema = self._schema(node.op_type, node.domain)
        if schema is None:
            return [None] * len(node.outputs)
        data = {t.name: t.value for t in inputs if t is not None and t.value is not None and _is_shape_data(t.value)}
        key = (
            node.domain,
            node.op_type,
            len(node.outputs),
            b"".join([attribute.SerializeToString() for attribute in node.proto.attribute]),
            *(t and (t.shape, t.dtype, data[t.name].tobytes() if t.name in data else None) for t in inputs),
        )
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._infer(schema, node.proto, inputs, data)
        return known

    def _schema(self, op_type: str, domain: str) -> defs.OpSchema | None:
        key = (op_type, domain)
        if key not in self._schemas:
            try:
                self._schemas[key] = defs.get_schema(op_type, self._versions.get(domain, 1), domain)
            except defs.SchemaError:
                self._schemas[key] = None
        return self._schemas[key]

    def _infer(
        self,
        schema: defs.OpSchema,
        node: onnx.NodeProto,
        inputs: Sequence[Tensor | None],
        data: Mapping[str, Array],
    ) -> list[Signature | None]:
        try:
            found = shape_inference.infer_node_outputs(
                schema,
                node,
                {t.name: declared_type(t) for t in inputs if t is not None},
                {name: numpy_helper.from_array(value) for name, value in data.items()},
                opset_imports=self._imports,
                ir_version=self._ir_version,
            )
        except INFERENCE_ERRORS:
            return [None] * len(node.output)  # the caller names the op
        return [signature_of(found[name]) if name in found else None for name in node.output]


def declared_type(tensor: Tensor) -> onnx.TypeProto:
    """A tensor's shape and dtype as ONNX writes them."""
    declared = onnx.TypeProto()
    declared.tensor_type.elem_type = DTYPE_CODES[tensor.dtype]
    dims = declared.tensor_type.shape
    dims.SetInParent()
    for size in tensor.shape:
        dims.dim.add().dim_value = size
    return declared


def _is_shape_data(value: Array) -> bool:
    limit = INTEGER_DATA_LIMIT if value.dtype.kind in "iub" else FLOAT_DATA_LIMIT
    return value.size <= limit and value.dtype.kind in "iubf"


def _unpooled(inputs: Sequence[Tensor | None]) -> Signature | None:
    data, asked = inputs[0], inputs[2] if len(inputs) > 2 else None
    if data is None or asked is None or asked.value is None:
        return None
    return tuple(asked.value.tolist()), data.dtype


def _same(data: Tensor | None) -> Signature | None:
    return None if data is None else (data.shape, data.dtype)


def _dropout_mask(data: Tensor | None, opset: int) -> Signature | None:
    return None if data is None else (data.shape, "bool" if opset >= 10 else data.dtype)
