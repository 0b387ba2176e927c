"""ONNX bytes -> a plain graph in which every tensor has a concrete shape and dtype.

Weights are never needed: they are skipped while the file is read, external data is not opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import onnx

from latpred.errors import ModelError, ShapeError
from latpred.reading.binding import bind_inputs
from latpred.reading.bodies import CONTROL_FLOW
from latpred.reading.loading import load
from latpred.reading.nodes import ParsedNode, copied, domain_of, in_order, parse, rename
from latpred.reading.propagation import Propagation
from latpred.reading.shapes import Signature, signature_of, whole_graph_signatures
from latpred.tensors import DTYPE_NAMES, ITEM_BYTES, VALUE_LIMIT, AttributeValue, Spec, Tensor, stored_tensor

__all__ = ["ITEM_BYTES", "AttributeValue", "Graph", "Op", "Spec", "Tensor", "captured", "excerpt", "read", "walk"]

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
    trusted: bool = False,
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
    trusted : bool
        Whether what a ModelProto declares of shapes inside is right, so that nothing is inferred where it does.

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
    declared = _declared(source) if trusted and isinstance(source, onnx.ModelProto) else None
    return _Reader(model, notices).graph(inputs, declared)


def _declared(model: onnx.ModelProto) -> dict[str, Signature]:
    infos = (*model.graph.value_info, *model.graph.output)
    return {info.name: found for info in infos if (found := signature_of(info.type)) is not None}


def excerpt(graph: Graph, ops: Sequence[int], inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
    """Some ops of a graph as one of its own.

    Parameters
    ----------
    graph : Graph
    ops : sequence of int
        Places in ``graph.ops``, ascending; they hang on `inputs` and on constants alone.
    inputs, outputs : sequence of str

    Examples
    --------
    >>> infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [8]) for name in "xy"]
    >>> nodes = [onnx.helper.make_node("Relu", ["x"], ["t"]), onnx.helper.make_node("Exp", ["t"], ["y"])]
    >>> whole = read(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:])))
    >>> excerpt(whole, [1], ["t"], ["y"]).tensors["t"].shape
    (8,)
    """
    taken = tuple(graph.ops[index] for index in ops)
    named = dict.fromkeys([*inputs, *outputs])
    for op in taken:
        named.update(dict.fromkeys((*op.inputs, *op.outputs, *(name for body in op.bodies for name in captured(body)))))
    tensors = {name: graph.tensors[name] for name in named if name in graph.tensors}
    for name in inputs:
        tensors[name] = _unvalued(tensors[name], name)
    return Graph(graph.name, taken, tensors, tuple(inputs), tuple(outputs), graph.opsets)


def captured(body: Graph) -> set[str]:
    """Tensors that a body reads from around it."""
    found = {name for op in body.ops for name in op.inputs if name} | set(body.outputs)
    for op in body.ops:
        for inner in op.bodies:
            found |= captured(inner)
    return found - set(body.inputs) - {name for op in body.ops for name in op.outputs}


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
        self.opsets = {domain_of(entry.domain): entry.version for entry in model.opset_import}
        self.propagation = Propagation(model.opset_import, self.opsets.get("", 1), model.ir_version)
        self.names: dict[str, int] = {}
        self.unknown: list[str] = []
        self.blocked: set[str] = set()  # names of unknown shape, so that only the first of a chain is blamed

    def graph(self, inputs: Sequence[onnx.ValueInfoProto], declared: Mapping[str, Signature] | None = None) -> Graph:
        """The whole model, concrete in every tensor; `declared` stands for what inference would find."""
        proto = self.model.graph
        input_names = tuple(value.name for value in inputs)
        output_names = tuple(value.name for value in proto.output)
        scope = _Scope()
        for value in inputs:
            scope.tensors[value.name] = _input_tensor(value)
        self._store(scope, proto)
        nodes = [parse(node) for node in proto.node]
        ordered = in_order(nodes, scope.tensors.__contains__)
        self.propagation.inferred = self._inferred(inputs, nodes, ordered) if declared is None else declared
        for node in ordered:
            self._visit(scope, node)
        if self.unknown:
            raise ShapeError(_unknown_text(self.unknown))
        for name in output_names:
            if name not in scope.tensors:
                raise ModelError(f"nothing produces the graph's output {name!r}: export the model again")
        return Graph(
            proto.name, tuple(scope.ops), scope.tensors, input_names, output_names, self.opsets, tuple(self.notices)
        )

    def _inferred(
        self, inputs: Sequence[onnx.ValueInfoProto], nodes: Sequence[ParsedNode], ordered: Sequence[ParsedNode]
    ) -> Mapping[str, Signature]:
        """What onnx infers over the whole graph, once it is stripped to what that needs: declarations may be stale."""
        proto = self.model.graph
        if len(inputs) != len(proto.input):
            kept = [copied(value) for value in inputs]
            del proto.input[:]
            proto.input.extend(kept)
        del proto.value_info[:]
        del proto.output[:]
        self.model.ir_version = max(self.model.ir_version, 4)
        if ordered is not nodes or any(node.graphs for node in nodes):
            kept = [copied(node.proto) for node in ordered if not node.graphs]  # bodies may declare stale shapes
            del proto.node[:]
            proto.node.extend(kept)
        return whole_graph_signatures(self.model)

    def _store(self, scope: _Scope, proto: onnx.GraphProto) -> None:
        for stored in proto.initializer:
            scope.tensors[stored.name] = stored_tensor(stored.name, stored)
            if stored.data_location == onnx.TensorProto.EXTERNAL:
                stored.ClearField("data_location")
        for sparse in proto.sparse_initializer:
            dense = stored_tensor(sparse.values.name, sparse.values)
            scope.tensors[dense.name] = Tensor(dense.name, tuple(sparse.dims), dense.dtype, True)

    def _visit_all(self, scope: _Scope, nodes: Sequence[onnx.NodeProto]) -> None:
        def is_known(name: str) -> bool:
            return name in self.blocked or scope.find(name) is not None

        for node in in_order([parse(node) for node in nodes], is_known):
            self._visit(scope, node)

    def _visit(self, scope: _Scope, node: ParsedNode) -> None:
        tensors = scope.tensors
        inputs: list[Tensor | None] = []
        for name in node.inputs:
            tensor = tensors.get(name)
            if tensor is None and name:
                tensor = scope.find(name)
                if tensor is None:  # of unknown shape: only the first of a chain is blamed
                    self.blocked.update(node.outputs)
                    return
            inputs.append(tensor)
        if node.graphs and node.op_type in CONTROL_FLOW:
            self._visit_control_flow(scope, node, inputs)
            return
        name = self._unique(node)
        outputs, assumption = self.propagation.outputs(node, inputs, scope.outer is not None)
        if assumption is not None:
            self.notices[f"{node.op_type} {name!r}: {assumption}"] = None
        for output_name, output in zip_longest(node.outputs, outputs):
            if output is not None:
                tensors[output_name] = output
            elif output_name:
                self._unknown(node, name, output_name, inputs)
        scope.ops.append(Op(name, node.op_type, node.domain, node.inputs, node.outputs, node.attributes))

    def _visit_control_flow(self, scope: _Scope, node: ParsedNode, inputs: Sequence[Tensor | None]) -> None:
        condition = inputs[0].value if node.op_type == "If" and inputs and inputs[0] is not None else None
        if condition is not None and condition.size == 1:
            branch = node.graphs.get("then_branch" if condition.reshape(-1)[0] else "else_branch")
            if branch is not None and len(branch.output) == len(node.outputs):
                self._inline(scope, branch, node.outputs)
                return
        name = self._unique(node)

        def read_body(proto: onnx.GraphProto, given: Sequence[Tensor]) -> Graph:
            return self._body(proto, given, scope)

        try:
            outcome = CONTROL_FLOW[node.op_type](inputs, node.attributes, node.graphs, read_body)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{node.op_type} {name!r} does not fit its bodies: export the model again") from error
        for notice in outcome.notices:
            self.notices[f"{node.op_type} {name!r}: {notice}"] = None
        for output_name, tensor in zip_longest(node.outputs, outcome.outputs):
            if tensor is not None:
                scope.tensors[output_name] = _unvalued(tensor, output_name)
            elif output_name:
                self.blocked.add(output_name)  # the op inside the body is named
        scope.ops.append(
            Op(
                name, node.op_type, node.domain, node.inputs, node.outputs, node.attributes,
                outcome.bodies, outcome.repeat,
            )
        )  # fmt: skip

    def _body(self, proto: onnx.GraphProto, given: Sequence[Tensor], outer: _Scope) -> Graph:
        scope = _Scope(outer)
        for value, tensor in zip(proto.input, given, strict=False):
            scope.tensors[value.name] = _unvalued(tensor, value.name)
        self._store(scope, proto)
        self._visit_all(scope, proto.node)
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
        self._visit_all(scope, inlined.node)

    def _unique(self, node: ParsedNode) -> str:
        """The node's name, with a number behind it where the name is taken."""
        name = wanted = node.name or f"{node.op_type}_{len(self.names)}"
        count = self.names.get(name, 0)
        while name in self.names:
            count += 1
            name = f"{wanted}_{count}"
        self.names[wanted] = count
        self.names.setdefault(name, 0)
        return name

    def _unknown(self, node: ParsedNode, name: str, output: str, inputs: Sequence[Tensor | None]) -> None:
        if output not in self.blocked:
            given = ", ".join("-" if t is None else _written(t) for t in inputs)
            label = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            self.unknown.append(f"{label} {name!r} ({given})")
            self.blocked.add(output)


def _written(tensor: Tensor) -> str:
    without = tensor.constant and tensor.value is None and tensor.spec.elements <= VALUE_LIMIT
    return f"{tensor.dtype}{list(tensor.shape)}{' whose data are not in the file' if without else ''}"


def _unvalued(tensor: Tensor, name: str) -> Tensor:
    """The same under another name, and not known before the first inference."""
    return replace(tensor, name=name, constant=False, value=None)


def _input_tensor(value: onnx.ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return Tensor(value.name, (), "sequence")
    if tensor.elem_type not in DTYPE_NAMES or not tensor.elem_type:
        raise ModelError(f"input {value.name!r} has no dtype that ONNX has: export the model again")
    return Tensor(value.name, tuple(dim.dim_value for dim in tensor.shape.dim), DTYPE_NAMES[tensor.elem_type])


def _unknown_text(unknown: Sequence[str]) -> str:
    listed = "; ".join(unknown[:NAMED_LIMIT])
    more = f" and {len(unknown) - NAMED_LIMIT} more" if len(unknown) > NAMED_LIMIT else ""
    return (
        f"every tensor needs a shape, but inference finds none for the output of {listed}{more}: "
        "fix the input shapes with --shape, or export with static shapes"
    )
