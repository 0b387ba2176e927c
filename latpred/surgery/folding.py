"""What hangs on no input is computed once: by numpy while the graph is read, by ONNX Runtime where it is large."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
from onnx import TensorProto, helper, numpy_helper

from latpred.errors import ModelError
from latpred.graph import Graph
from latpred.reading.nodes import names_read
from latpred.surgery.weights import bare, has_data
from latpred.surgery.wiring import declared
from latpred.tensors import DTYPE_CODES, VALUE_LIMIT

__all__ = ["folded"]

# The runtime leaves these on constants and runs an integer kernel where they stand around an op.
LEFT_ALONE = frozenset({"DequantizeLinear", "QuantizeLinear"})


def folded(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    graph: Graph,
    stored: Mapping[str, TensorProto],
    large_values: bool = True,
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """The nodes that hang on an input, and the constants that the others make for them.

    Parameters
    ----------
    model : ModelProto
        For its opsets.
    nodes : sequence of NodeProto
        In topological order.
    graph : Graph
        The same, read.
    stored : mapping of str to TensorProto
        Initializers; where their data are missing, so are those of what is computed from them.
    large_values : bool
        Whether constants of more elements than may steer a shape are computed; else they have dims only.

    Raises
    ------
    ModelError
        Where the runtime cannot compute a constant.
    """
    kept: list[onnx.NodeProto] = []
    constant: list[onnx.NodeProto] = []
    unfolded: set[str] = set()
    for node in nodes:
        if _is_constant(node, graph, unfolded):
            constant.append(node)
        else:
            kept.append(node)
            if all(graph.tensors[name].constant for name in node.output if name in graph.tensors):
                unfolded.update(node.output)
    needed = {name for node in kept for name in names_read(node)} | {value.name for value in model.graph.output}
    made = [name for node in constant for name in node.output if name and name in needed]
    known = {
        name: numpy_helper.from_array(value, name)
        for node in constant
        for name in node.output
        if name and (value := graph.tensors[name].value) is not None
    }
    without_data = _without_data(constant, stored, known)
    if not large_values:
        without_data.update(name for name in made if graph.tensors[name].spec.elements > VALUE_LIMIT)
    large = [name for name in made if name not in known and name not in without_data]
    constants = [known[name] for name in made if name in known]
    constants += [
        bare(name, graph.tensors[name].shape, DTYPE_CODES[graph.tensors[name].dtype])
        for name in made
        if name in without_data
    ]
    if large:
        outputs = [declared(name, graph.tensors[name].spec) for name in large]
        constants += _evaluated(model, constant, outputs, {**stored, **known})
    return kept, constants


def _is_constant(node: onnx.NodeProto, graph: Graph, unfolded: set[str]) -> bool:
    if node.op_type in LEFT_ALONE or any(attribute.HasField("g") for attribute in node.attribute):
        return False
    if not unfolded.isdisjoint(node.input):
        return False
    return all(
        name in graph.tensors and graph.tensors[name].constant and graph.tensors[name].dtype in DTYPE_CODES
        for name in node.output
        if name
    )


def _without_data(
    nodes: Iterable[onnx.NodeProto], stored: Mapping[str, TensorProto], known: Mapping[str, TensorProto]
) -> set[str]:
    """Names of what is missing, or computed from what is missing."""
    missing = {name for name, tensor in stored.items() if not has_data(tensor)}
    for node in nodes:
        literals = [attribute.t for attribute in node.attribute if attribute.HasField("t")]
        if not missing.isdisjoint(node.input) or not all(has_data(literal) for literal in literals):
            missing.update(name for name in node.output if name not in known)
    return missing


def _evaluated(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    stored: Mapping[str, TensorProto],
) -> list[TensorProto]:
    wanted = [value.name for value in outputs]
    makers = {name: node for node in nodes for name in node.output if name and name not in stored}
    needed: set[str] = set()
    waiting = wanted[:]
    while waiting:
        name = waiting.pop()
        if name in makers and name not in needed:
            needed.add(name)
            waiting += [read for read in makers[name].input if read]
    used = [node for node in nodes if not needed.isdisjoint(node.output)]
    read = {name for node in used for name in node.input}
    graph = helper.make_graph(
        used,
        "constants",
        [],
        outputs,
        [tensor for name, tensor in stored.items() if name in read],
    )
    whole = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(wanted, {})
    except Exception as error:  # the runtime's own classes share no other base
        raise ModelError(f"the constants {', '.join(wanted[:3])} cannot be computed ({error}): simplify the model "
                         "where it was exported") from error  # fmt: skip
    return [numpy_helper.from_array(value, name) for name, value in zip(wanted, values, strict=True)]
