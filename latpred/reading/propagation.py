"""What one node makes of its inputs: values where they are constant and small, else shapes and dtypes.

In this order, the first that succeeds: the value itself (constants, shapes, folding), onnx's whole-graph inference,
inference of the node alone with the values at hand, onnx's reference evaluator, an upper bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import cast

import numpy as np
import onnx

from latpred.reading.bounds import UPPER_BOUNDS
from latpred.reading.constants import fold
from latpred.reading.nodes import ParsedNode, constant_of
from latpred.reading.sequences import sequence_result
from latpred.reading.shapes import NodeInference, Signature
from latpred.tensors import VALUE_LIMIT, Array, Tensor, computed_tensor, stored_tensor

__all__ = ["Propagation"]

RANDOM_OPS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
SHAPE_DTYPES = frozenset({"int64", "int32", "bool"})  # of values that later shapes may hang on


class Propagation:
    """Propagates tensors through nodes; `inferred` holds what whole-graph inference found."""

    def __init__(self, opset_imports: Sequence[onnx.OperatorSetIdProto], opset: int, ir_version: int) -> None:
        self.inferred: Mapping[str, Signature] = {}
        self._imports = opset_imports
        self._opset = opset
        self._inference = NodeInference(opset_imports, ir_version)

    def outputs(
        self, node: ParsedNode, inputs: Sequence[Tensor | None], locally: bool
    ) -> tuple[Sequence[Tensor | None], str | None]:
        """The outputs, and what was assumed about them.

        Parameters
        ----------
        node : ParsedNode
            Without bodies.
        inputs : sequence of Tensor or None
            As the node lists them; None where an optional one is absent.
        locally : bool
            Whether the node stands in a body, of which whole-graph inference knows nothing.

        Returns
        -------
        outputs : sequence of Tensor or None
            None where an output is not asked for, or stays unknown.
        assumption : str or None
            Where an upper bound was taken.
        """
        names = node.outputs
        direct = None if node.domain else _direct(node, inputs)
        if direct is not None:
            return (direct,), None
        constant = bool(inputs) and node.op_type not in RANDOM_OPS
        foldable = not node.domain
        for tensor in inputs:
            if tensor is not None:
                constant = constant and tensor.constant
                foldable = foldable and tensor.value is not None
        foldable = foldable and constant
        if foldable:
            folded = self._folded(node, inputs)
            if folded is not None:
                return folded, None
        known = {} if locally else self.inferred
        found = [known.get(name) for name in names]
        if _incomplete(found, names):
            alone = self._inference.signatures(node, inputs)
            found = [new or old for old, new in zip(found, alone, strict=True)]
        if foldable and any(_worth_evaluating(signature) for signature in found):
            values = _evaluate(node.proto, [t.value if t else None for t in inputs], self._imports)
            if values is not None:
                return [computed_tensor(name, value) for name, value in zip(names, values, strict=True)], None
        assumption = None
        if not node.domain and node.op_type in UPPER_BOUNDS and _incomplete(found, names):
            bounds = UPPER_BOUNDS[node.op_type](inputs, node.attributes)
            found = [*bounds, *[None] * len(names)][: len(names)]
            assumption = "its output size depends on the data; its upper bound is counted"
        made = [
            None if signature is None or not name else Tensor(name, signature[0], signature[1], constant)
            for name, signature in zip(names, found, strict=True)
        ]
        return made, assumption

    def _folded(self, node: ParsedNode, inputs: Sequence[Tensor | None]) -> list[Tensor] | None:
        arrays = [None if t is None else t.value for t in inputs]
        if node.op_type == "ConstantOfShape":
            values = _filled(arrays[0], node.literal)
        else:
            values = fold(node.op_type, arrays, node.attributes, self._opset, len(node.outputs))
        if values is None:
            return None
        return [computed_tensor(name, value) for name, value in zip(node.outputs, values, strict=False)]


def _direct(node: ParsedNode, inputs: Sequence[Tensor | None]) -> Tensor | None:
    """The only output of a node that needs no inference: a constant, a shape, what comes out of a sequence."""
    op_type = node.op_type
    if op_type == "Constant":
        return constant_of(node.proto)
    if op_type in ("Shape", "Size") and inputs[0] is not None and inputs[0].dtype != "sequence":
        shape = inputs[0].shape
        if op_type == "Size":
            return computed_tensor(node.outputs[0], np.array(prod(shape), np.int64))
        start, end = cast("tuple[int, int | None]", (node.attributes.get("start", 0), node.attributes.get("end")))
        return computed_tensor(node.outputs[0], np.array(shape[start:end], np.int64))
    made = sequence_result(op_type, inputs, node.attributes)
    if made is None:
        return None
    if isinstance(made, Tensor):
        return replace(made, name=node.outputs[0])
    return Tensor(node.outputs[0], (), "sequence", items=made)


def _incomplete(found: Sequence[Signature | None], names: Sequence[str]) -> bool:
    return None in found and any(name and signature is None for name, signature in zip(names, found, strict=True))


def _worth_evaluating(signature: Signature | None) -> bool:
    return signature is None or (signature[1] in SHAPE_DTYPES and prod(signature[0]) <= VALUE_LIMIT)


def _filled(shape: Array | None, literal: onnx.TensorProto | None) -> list[Array] | None:
    """What ConstantOfShape makes of `shape` and its attribute; None where that is large.

    Examples
    --------
    >>> _filled(np.array([2]), None)
    [array([0., 0.], dtype=float32)]
    """
    if shape is None or prod(shape.tolist()) > VALUE_LIMIT:
        return None
    value = np.zeros(1, np.float32) if literal is None else stored_tensor("", literal).value
    if value is None or value.size != 1:
        return None
    return [np.full(shape.tolist(), value.reshape(()), value.dtype)]


def _evaluate(
    node: onnx.NodeProto, inputs: Sequence[Array | None], opset_imports: Sequence[onnx.OperatorSetIdProto]
) -> list[Array] | None:
    """The outputs' values by onnx's reference evaluator, for ops that the table lacks; None where it fails too."""
    from onnx import helper  # the evaluator is slow to import and rarely needed
    from onnx.reference import ReferenceEvaluator

    feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if name and value is not None}
    try:
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = helper.make_graph([node], "one_node", infos, outputs)
        made = ReferenceEvaluator(helper.make_model(graph, opset_imports=opset_imports)).run(None, feeds)
    except Exception:  # whatever its operators raise: the values stay unknown, the shapes are inferred elsewhere
        return None
    if any(isinstance(value, list) for value in made):
        return None
    by_name = dict(zip((name for name in node.output if name), made, strict=True))
    values = [np.asarray(by_name.get(name, np.zeros(0))) for name in node.output]
    return None if any(value.size > VALUE_LIMIT for value in values) else values
