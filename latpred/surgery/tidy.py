"""A model in which every node computes activations: dims bound, constants folded, nothing that only hands on.

What surgery reads is a tidied model: topological order in which branches are contiguous, a declared shape for every
tensor, a name for every node, no functions, no Constant, Identity or Dropout.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import TensorProto, external_data_helper, helper, inliner, numpy_helper

from latpred.errors import ModelError
from latpred.graph import Graph, read
from latpred.reading.binding import bind_inputs
from latpred.reading.nodes import copied, names_read, rename
from latpred.surgery.folding import folded
from latpred.surgery.weights import bare, has_data
from latpred.tensors import DTYPE_CODES

__all__ = ["tidied"]

OLDEST_IR = 4  # the IR version from which an initializer need not be listed as an input
HANDED_ON = ("Identity", "Dropout")


def tidied(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    large_values: bool = True,
) -> onnx.ModelProto:
    """The same function as a model that surgery can cut.

    What is constant is computed: by numpy where it is small, by ONNX Runtime where it is large. Weights whose data are
    missing keep their dims, and so does what is computed from them.

    Parameters
    ----------
    source : path, bytes or ModelProto
        A ModelProto is not changed; external data beside a path are read where they are there.
    dims, shapes : mappings, optional
        As `latpred.predict` takes them.
    large_values : bool
        Whether large constants are computed; without their values the model has a latency but does not run.

    Raises
    ------
    ModelError, DimensionError, ShapeError
        As `latpred.graph.read` raises them.

    Examples
    --------
    >>> x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 8]) for n in "xy")
    >>> nodes = [helper.make_node("Identity", ["x"], ["t"]), helper.make_node("Relu", ["t"], ["y"])]
    >>> model = tidied(helper.make_model(helper.make_graph(nodes, "g", [x], [y])), dims={"N": 4})
    >>> [node.op_type for node in model.graph.node], [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    (['Relu'], [4, 8])
    """  # noqa: E501
    model, graph = _read(source, dims, shapes)
    nodes = _named(model, graph)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    stored.update((sparse.values.name, _dense(sparse)) for sparse in model.graph.sparse_initializer)
    kept, constants = folded(model, nodes, graph, stored, large_values)
    outputs = [value.name for value in model.graph.output]
    kept, names = _without_handing_on(kept, graph, outputs)
    ordered = _ordered(kept, outputs, names)
    return _assembled(model, graph, ordered, [*stored.values(), *constants], names)


def _read(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    dims: Mapping[str, int] | None,
    shapes: Mapping[str, Sequence[int]] | None,
) -> tuple[onnx.ModelProto, Graph]:
    """A copy of the model, with its weights, that holds no function and no branch that is always taken."""
    graph = read(source, dims, shapes)
    model = _loaded(source)
    if model.functions:
        model = inliner.inline_local_functions(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    stored.update(sparse.values.name for sparse in model.graph.sparse_initializer)
    inputs = [value for value in model.graph.input if value.name not in stored]
    bind_inputs(inputs, dims, shapes)
    if len(inputs) != len(model.graph.input):
        kept = [copied(value) for value in inputs]
        del model.graph.input[:]
        model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, OLDEST_IR)
    while _inline_branches(model, graph):
        graph = read(model)
    return model, graph


def _loaded(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> onnx.ModelProto:
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        return model
    try:
        if isinstance(source, bytes):
            return onnx.ModelProto.FromString(source)  # type: ignore[no-any-return, unused-ignore]
        model = onnx.load(source, load_external_data=False)
        folder = Path(source).parent
        for stored in model.graph.initializer:
            location = next((entry.value for entry in stored.external_data if entry.key == "location"), "")
            if stored.data_location == TensorProto.EXTERNAL and location and (folder / location).is_file():
                external_data_helper.load_external_data_for_tensor(stored, str(folder))
                stored.data_location = TensorProto.DEFAULT
                del stored.external_data[:]
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"a readable ONNX model is needed, with the external data that it names ({error}): "
                         "export or copy it again") from error  # fmt: skip
    return model


def _inline_branches(model: onnx.ModelProto, graph: Graph) -> bool:
    """Put the branch that a constant condition takes in the place of its If, in place; whether there was one."""
    taken = {
        index: branch for index, node in enumerate(model.graph.node) if (branch := _taken(node, graph)) is not None
    }
    if not taken:
        return False
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(model.graph.node):
        if index not in taken:
            nodes.append(copied(node))
            continue
        branch = copied(taken[index])
        made = {name for inner in branch.node for name in inner.output if name}
        made |= {stored.name for stored in branch.initializer}
        made |= {sparse.values.name for sparse in branch.sparse_initializer}
        results = [value.name for value in branch.output]
        rename(branch, {name: f"{name}~{node.output[0]}" for name in made})
        model.graph.initializer.extend(branch.initializer)
        model.graph.sparse_initializer.extend(branch.sparse_initializer)
        nodes += [copied(inner) for inner in branch.node]
        nodes += [
            helper.make_node("Identity", [f"{name}~{node.output[0]}" if name in made else name], [output])
            for name, output in zip(results, node.output, strict=True)
            if output
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return True


def _taken(node: onnx.NodeProto, graph: Graph) -> onnx.GraphProto | None:
    """The branch that an If always takes, where its condition is constant and the branch makes what the If does."""
    condition = graph.tensors.get(node.input[0]) if node.op_type == "If" and node.input else None
    if condition is None or condition.value is None or condition.value.size != 1:
        return None
    name = "then_branch" if condition.value.reshape(-1)[0] else "else_branch"
    branch = next((attribute.g for attribute in node.attribute if attribute.name == name), None)
    return branch if branch is not None and len(branch.output) == len(node.output) else None


def _named(model: onnx.ModelProto, graph: Graph) -> list[onnx.NodeProto]:
    """The nodes in topological order, each with a name of its own."""
    nodes = {next(name for name in node.output if name): node for node in model.graph.node}
    ordered = []
    for op in graph.ops:
        node = nodes.get(next(name for name in op.outputs if name))
        if node is None:
            raise ModelError(f"{op.op_type} {op.name!r} is not in the model twice read: export the model again")
        node.name = op.name
        ordered.append(node)
    return ordered


def _dense(sparse: onnx.SparseTensorProto) -> TensorProto:
    values, indices = sparse.values, sparse.indices
    if not (has_data(values) and has_data(indices)):
        return bare(values.name, sparse.dims, values.data_type)
    dense = np.zeros(tuple(sparse.dims), helper.tensor_dtype_to_np_dtype(values.data_type))
    places = numpy_helper.to_array(indices)
    flat = places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), dense.shape)
    dense.reshape(-1)[flat] = numpy_helper.to_array(values)
    return numpy_helper.from_array(dense, values.name)


def _without_handing_on(
    nodes: Sequence[onnx.NodeProto], graph: Graph, outputs: Sequence[str]
) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """Nodes without those that hand their input through, and the names that tensors take on by that."""
    read_anywhere = {name for node in nodes for name in names_read(node)} | set(outputs)
    made = {name for node in nodes for name in node.output}
    alias: dict[str, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for node in nodes:
        if not _hands_on(node, graph, read_anywhere):
            kept.append(node)
            continue
        source, output = node.input[0], node.output[0]
        source = alias.get(source, source)
        if output not in outputs:
            alias[output] = source
        elif source in made and source not in outputs and source not in renamed:
            renamed[source] = output
        else:  # an input, a constant or another output under a second name
            kept.append(node)
    names = {name: renamed.get(source, source) for name, source in alias.items()}
    return kept, names | renamed


def _hands_on(node: onnx.NodeProto, graph: Graph, read_anywhere: set[str]) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in HANDED_ON:
        return False
    if node.op_type == "Identity":
        return graph.tensors[node.output[0]].dtype != "sequence"
    if any(name in read_anywhere for name in node.output[1:] if name):
        return False
    training = graph.tensors.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    return training is None or (training.value is not None and not training.value.any())


def _ordered(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], names: Mapping[str, str]) -> list[onnx.NodeProto]:
    """Nodes that outputs hang on, each as late as its first reader allows, so that branches are contiguous.

    Depth first from the outputs, those that are made first before the others.
    """
    makers = {names.get(name, name): index for index, node in enumerate(nodes) for name in node.output if name}
    sources = [
        [makers[found] for name in names_read(node) if (found := names.get(name, name)) in makers] for node in nodes
    ]
    order: list[int] = []
    done = [False] * len(nodes)
    for start in sorted(makers[name] for name in outputs if name in makers):
        waiting: list[tuple[int, Iterator[int]]] = [(start, iter(sources[start]))] if not done[start] else []
        done[start] = True
        while waiting:
            index, rest = waiting[-1]
            following = next((source for source in rest if not done[source]), None)
            if following is None:
                order.append(index)
                waiting.pop()
            else:
                done[following] = True
                waiting.append((following, iter(sources[following])))
    return [nodes[index] for index in order]


def _assembled(
    like: onnx.ModelProto,
    graph: Graph,
    nodes: Sequence[onnx.NodeProto],
    stored: Iterable[TensorProto],
    names: Mapping[str, str],
) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.ir_version = like.ir_version
    model.opset_import.extend(like.opset_import)
    model.graph.name = like.graph.name
    model.graph.node.extend(nodes)
    rename(model.graph, names)
    touched = {name for node in model.graph.node for name in names_read(node)} | set(graph.outputs)
    model.graph.initializer.extend(tensor for tensor in stored if tensor.name in touched)
    model.graph.input.extend(like.graph.input)
    tensors = {names.get(name, name): tensor for name, tensor in graph.tensors.items()}
    for value in like.graph.output:
        output = model.graph.output.add()
        output.CopyFrom(value)
        if tensors[value.name].dtype in DTYPE_CODES:
            output.CopyFrom(_info(value.name, tensors[value.name].shape, tensors[value.name].dtype))
    ends = {value.name for value in (*like.graph.input, *like.graph.output)}
    for name in dict.fromkeys(name for node in model.graph.node for name in node.output):
        tensor = tensors.get(name)
        if name not in ends and tensor is not None and tensor.dtype in DTYPE_CODES:
            model.graph.value_info.append(_info(name, tensor.shape, tensor.dtype))
    return model


def _info(name: str, shape: Sequence[int], dtype: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, DTYPE_CODES[dtype], list(shape))
