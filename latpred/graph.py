"""ONNX bytes -> a plain graph in which every tensor has a concrete shape and dtype.

Weights are never needed: they are skipped while the file is read, external data is not opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import onnx

from latpred.binding import bind_inputs
from latpred.bodies import CONTROL_FLOW
from latpred.bounds import UPPER_BOUNDS
from latpred.constants import Array, evaluate, filled, fold
from latpred.errors import ModelError, ShapeError
from latpred.loading import load
from latpred.nodes import attribute_value, constant_of, copied, in_order, rename
from latpred.sequences import sequence_result
from latpred.shapes import NodeInference, Signature, domain_of, whole_graph_signatures
from latpred.tensors import DTYPE_NAMES, ITEM_BYTES, AttributeValue, Spec, Tensor, computed_tensor, stored_tensor

__all__ = ["ITEM_BYTES", "AttributeValue", "Graph", "Op", "Spec", "Tensor", "read", "walk"]

RANDOM_OPS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
NAMED_LIMIT = 3  # ops that an error spells out


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


def read(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Graph:
    """Read a model; every tensor of the graph has a concrete shape and dtype.

    Parameters
    ----------
    source : path, bytes or ModelProto
        A ModelProto is not changed.
    dims : mapping of str to int
        Sizes of symbolic dims, by name.
    shapes : mapping of str to sequence of int
        Shapes of inputs, by name; they go before what the model says.

    Raises
    ------
    ModelError
        Where the source is no ONNX model, or a broken one.
    DimensionError
        Where a dim of an input stays open, is bound twice, or a name is not in the model.
    ShapeError
        Where a tensor's shape stays unknown after inference and constant propagation.

    Examples
    --------
    >>> x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8])
    >>> y = onnx.helper.make_empty_tensor_value_info("y")
    >>> node = onnx.helper.make_node("Transpose", ["x"], ["y"])
    >>> model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]))
    >>> read(model, dims={"batch": 4}).tensors["y"].shape
    (8, 4)
    """
    model = load(source)
    if model.functions:
        model = _with_functions_inlined(model)
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    stored.update(sparse.values.name for sparse in graph.sparse_initializer)
    # before IR version 4 an initializer had to be listed as an input too
    inputs = [value for value in graph.input if value.name not in stored]
    notices = bind_inputs(inputs, dims, shapes)
    return _Reader(model, notices).graph(inputs)


def walk(graph: Graph) -> Iterator[Op]:
    """Every op, bodies included."""
    for op in graph.ops:
        yield op
        for body in op.bodies:
            yield from walk(body)


def _with_functions_inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the model's local functions cannot be inlined ({error}): export it without them") from error


class _Scope:
    """Tensors that ops of one graph touch; names of the graphs around it are found and kept too."""

    def __init__(self, outer: _Scope | None = None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.outer = outer

    def find(self, name: str) -> Tensor | None:
        tensor = self.tensors.get(name)
        if tensor is None and self.outer is not None:
            tensor = self.outer.find(name)
            if tensor is not None:
                self.tensors[name] = tensor
        return tensor


class _Reader:
    """One pass over a model: folds what is constant, infers the rest, notes what stays unknown."""

    def __init__(self, model: onnx.ModelProto, notices: Sequence[str]) -> None:
        self.model = model
        self.notices = dict.fromkeys(notices)
        self.inference = NodeInference(model.opset_import, model.ir_version)
        self.opsets = {domain_of(entry.domain): entry.version for entry in model.opset_import}
        self.opset = self.opsets.get("", 1)
        self.inferred: Mapping[str, Signature] = {}
        self.names: dict[str, int] = {}
        self.unknown: list[str] = []
        self.blocked: set[str] = set()  # names of unknown shape, so that only the first of a chain is blamed

    def graph(self, inputs: Sequence[onnx.ValueInfoProto]) -> Graph:
        """The whole model, concrete in every tensor."""
        proto = self.model.graph
        input_names = tuple(value.name for value in inputs)
        output_names = tuple(value.name for value in proto.output)
        scope = _Scope()
        for value in inputs:
            scope.tensors[value.name] = _input_tensor(value)
        self._store(scope, proto)
        nodes = in_order(proto.node, scope.tensors.__contains__)
        self._strip_for_inference(inputs, nodes)
        self.inferred = whole_graph_signatures(self.model)
        self._visit_all(scope, nodes)
        if self.unknown:
            raise ShapeError(_unknown_text(self.unknown))
        for name in output_names:
            if name not in scope.tensors:
                raise ModelError(f"nothing produces the graph's output {name!r}: export the model again")
        return Graph(
            proto.name, tuple(scope.ops), scope.tensors, input_names, output_names, self.opsets, tuple(self.notices)
        )

    def _strip_for_inference(
        self, inputs: Sequence[onnx.ValueInfoProto], nodes: Sequence[onnx.NodeProto]
    ) -> None:
        """Leave what inference needs; what the file says of shapes may be stale."""
        proto = self.model.graph
        if len(inputs) != len(proto.input):
            kept = [copied(value) for value in inputs]
            del proto.input[:]
            proto.input.extend(kept)
        if nodes is not proto.node:
            ordered = [copied(node) for node in nodes]
            del proto.node[:]
            proto.node.extend(ordered)
        del proto.value_info[:]
        del proto.output[:]
        self.model.ir_version = max(self.model.ir_version, 4)

    def _store(self, scope: _Scope, proto: onnx.GraphProto) -> None:
        for stored in proto.initializer:
            scope.tensors[stored.name] = stored_tensor(stored.name, stored)
            if stored.data_location == onnx.TensorProto.EXTERNAL:
                stored.ClearField("data_location")
        for sparse in proto.sparse_initializer:
            dense = stored_tensor(sparse.values.name, sparse.values)
            scope.tensors[dense.name] = Tensor(dense.name, tuple(sparse.dims), dense.dtype, True)

    def _is_known_in(self, scope: _Scope) -> Callable[[str], bool]:
        return lambda name: name in self.blocked or scope.find(name) is not None

    def _visit_all(self, scope: _Scope, nodes: Sequence[onnx.NodeProto]) -> None:
        for node in nodes:
            self._visit(scope, node)

    def _visit(self, scope: _Scope, node: onnx.NodeProto) -> None:
        op_type, domain = node.op_type, domain_of(node.domain)
        names, output_names = tuple(node.input), tuple(node.output)
        attributes: dict[str, AttributeValue] = {}
        graphs: dict[str, onnx.GraphProto] = {}
        literal: onnx.TensorProto | None = None
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                graphs[attribute.name] = attribute.g
                continue
            if attribute.type == onnx.AttributeProto.TENSOR:
                literal = attribute.t
            value = attribute_value(attribute)
            if value is not None:
                attributes[attribute.name] = value
        inputs: list[Tensor | None] = []
        for name in names:
            tensor = scope.find(name) if name else None
            if name and tensor is None and name not in self.blocked:
                raise ModelError(
                    f"{op_type} {node.name!r} reads {name!r}, which nothing produces: export the model again"
                )
            inputs.append(tensor)
        if any(name in self.blocked for name in names):
            self.blocked.update(output_names)
            return
        if op_type == "If" and graphs and inputs[0] is not None and inputs[0].value is not None:
            taken = bool(inputs[0].value.reshape(-1)[0])
            self._inline(scope, graphs["then_branch" if taken else "else_branch"], output_names)
            return
        op_name = self._unique(node.name or f"{op_type}_{len(self.names)}")
        if graphs and op_type in CONTROL_FLOW:
            self._visit_control_flow(scope, op_name, op_type, (names, output_names), inputs, attributes, graphs)
            return
        for tensor in self._results(node, domain, inputs, attributes, literal, op_name):
            if tensor.name:
                scope.tensors[tensor.name] = tensor
        scope.ops.append(Op(op_name, op_type, domain, names, output_names, attributes))

    def _results(
        self,
        node: onnx.NodeProto,
        domain: str,
        inputs: Sequence[Tensor | None],
        attributes: Mapping[str, AttributeValue],
        literal: onnx.TensorProto | None,
        op_name: str,
    ) -> list[Tensor]:
        """The outputs of a node that has no bodies; unknown ones are noted and left out."""
        op_type = node.op_type
        outputs = node.output
        if not domain:
            if op_type == "Constant":
                return [constant_of(node)]
            data = inputs[0] if inputs else None
            if op_type == "Shape" and data is not None and data.dtype != "sequence":
                start, end = cast("tuple[int, int | None]", (attributes.get("start", 0), attributes.get("end")))
                dims = data.shape[start:end]
                return [computed_tensor(outputs[0], np.array(dims, np.int64))]
            if op_type == "Size" and data is not None and data.dtype != "sequence":
                return [computed_tensor(outputs[0], np.array(data.spec.elements, np.int64))]
        made_of_sequences = sequence_result(op_type, inputs, attributes)
        if made_of_sequences is not None:
            return [_named(made_of_sequences, outputs[0])]
        constant = bool(inputs) and op_type not in RANDOM_OPS and all(t is None or t.constant for t in inputs)
        values: list[Array] | None = None
        foldable = constant and not domain and all(t is None or t.value is not None for t in inputs)
        if foldable:
            arrays = [None if t is None else t.value for t in inputs]
            if op_type == "ConstantOfShape":
                values = filled(arrays[0], literal)
            else:
                values = fold(op_type, arrays, attributes, self.opset, len(outputs))
            if values is not None:
                return [computed_tensor(name, value) for name, value in zip(outputs, values, strict=False)]
        found: list[Signature | None] = [self.inferred.get(name) for name in outputs]
        if not all(signature or not name for signature, name in zip(found, outputs, strict=True)):
            inferred = self.inference.signatures(node, domain, inputs, attributes)
            found = [new or old for old, new in zip(found, inferred, strict=True)]
        if foldable and any(s is None or (s[1] in ("int64", "bool") and len(s[0]) < 2) for s in found):
            values = evaluate(node, [t.value if t else None for t in inputs], self.model.opset_import)
            if values is not None:
                return [computed_tensor(name, value) for name, value in zip(outputs, values, strict=False)]
        if any(signature is None and name for signature, name in zip(found, outputs, strict=True)):
            bound = UPPER_BOUNDS.get(op_type)
            if bound is not None and not domain:
                found = [*bound(inputs, attributes), None, None, None][: len(outputs)]
                self._notice(f"{op_type} {op_name!r}: its output size depends on the data; its upper bound is counted")
        made = []
        for name, signature in zip(outputs, found, strict=True):
            if signature is not None:
                made.append(Tensor(name, *signature, constant))
            elif name:
                self._unknown(op_type, domain, op_name, name, inputs)
        return made

    def _visit_control_flow(
        self,
        scope: _Scope,
        op_name: str,
        op_type: str,
        names: tuple[tuple[str, ...], tuple[str, ...]],
        inputs: Sequence[Tensor | None],
        attributes: Mapping[str, AttributeValue],
        graphs: Mapping[str, onnx.GraphProto],
    ) -> None:
        def read_body(proto: onnx.GraphProto, given: Sequence[Tensor]) -> Graph:
            return self._body(proto, given, scope)

        outcome = CONTROL_FLOW[op_type](inputs, attributes, graphs, read_body)
        for notice in outcome.notices:
            self._notice(f"{op_type} {op_name!r}: {notice}")
        for name, tensor in zip(names[1], outcome.outputs, strict=False):
            if tensor is not None:
                scope.tensors[name] = _unvalued(tensor, name)
            elif name:
                self.blocked.add(name)  # the op inside the body is named
        scope.ops.append(Op(op_name, op_type, "", *names, attributes, outcome.bodies, outcome.repeat))

    def _body(self, proto: onnx.GraphProto, given: Sequence[Tensor], outer: _Scope) -> Graph:
        scope = _Scope(outer)
        for value, tensor in zip(proto.input, given, strict=False):
            scope.tensors[value.name] = _unvalued(tensor, value.name)
        self._store(scope, proto)
        inferred, self.inferred = self.inferred, {}
        self._visit_all(scope, in_order(proto.node, self._is_known_in(scope)))
        self.inferred = inferred
        outputs = tuple(value.name for value in proto.output)
        for name in outputs:
            scope.find(name)
        inputs = tuple(value.name for value in proto.input)
        return Graph(proto.name, tuple(scope.ops), scope.tensors, inputs, outputs, self.opsets)

    def _inline(self, scope: _Scope, branch: onnx.GraphProto, output_names: Sequence[str]) -> None:
        """Read the branch that a constant condition takes as if its nodes stood in the graph around it."""
        made = {name for node in branch.node for name in node.output} | {tensor.name for tensor in branch.initializer}
        renamed = {name: f"{name}~{output_names[0]}" for name in made if scope.find(name) is not None}
        inlined = copied(branch)
        for value, name in zip(branch.output, output_names, strict=True):
            if value.name in made and value.name not in renamed:
                renamed[value.name] = name
            else:  # handed through, or given twice
                inlined.node.append(onnx.helper.make_node("Identity", [value.name], [name]))
        rename(inlined, renamed)
        self._store(scope, inlined)
        self._visit_all(scope, in_order(inlined.node, self._is_known_in(scope)))

    def _unique(self, name: str) -> str:
        count = self.names.get(name)
        if count is None:
            self.names[name] = 0
            return name
        while f"{name}_{count + 1}" in self.names:
            count += 1
        self.names[name] = count + 1
        return self._unique(f"{name}_{count + 1}")

    def _notice(self, text: str) -> None:
        self.notices[text] = None

    def _unknown(self, op_type: str, domain: str, op_name: str, output: str, inputs: Sequence[Tensor | None]) -> None:
        given = ", ".join("-" if t is None else f"{t.dtype}{list(t.shape)}" for t in inputs)
        label = f"{domain}.{op_type}" if domain else op_type
        if output not in self.blocked:
            self.unknown.append(f"{label} {op_name!r} ({given})")
            self.blocked.add(output)


def _named(result: Tensor | tuple[Tensor, ...], name: str) -> Tensor:
    if isinstance(result, Tensor):
        return replace(result, name=name)
    return Tensor(name, (), "sequence", items=result)


def _unvalued(tensor: Tensor, name: str) -> Tensor:
    """The same under another name, and not known before the first inference."""
    return replace(tensor, name=name, constant=False, value=None)


def _input_tensor(value: onnx.ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return Tensor(value.name, (), "sequence")
    shape = tuple(dim.dim_value for dim in tensor.shape.dim)
    return Tensor(value.name, shape, DTYPE_NAMES.get(tensor.elem_type, "undefined"))


def _unknown_text(unknown: Sequence[str]) -> str:
    listed = "; ".join(unknown[:NAMED_LIMIT])
    more = f" and {len(unknown) - NAMED_LIMIT} more" if len(unknown) > NAMED_LIMIT else ""
    return (
        f"every tensor needs a shape, but inference finds none for the output of {listed}{more}: "
        "fix the input shapes with --shape, or export with static shapes"
    )
