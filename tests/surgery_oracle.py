"""ONNX Runtime as the judge of rewritten graphs, and small networks written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from latpred.collect.weights import fill_weights

Array = np.ndarray
NETWORKS = Path(__file__).parent / "networks"


def run(model: onnx.ModelProto, feeds: Mapping[str, Array], optimised: bool = True) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    return dict(zip(names, session.run(names, {n: v for n, v in feeds.items() if n in wanted}), strict=True))


def run_chain(pieces: Sequence[onnx.ModelProto], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Every tensor that pieces hand out, each piece reading what those before it made."""
    known = dict(feeds)
    for model in pieces:
        known |= run(model, known)
    return known


def feeds_of(model: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        integral = np.dtype(dtype).kind in "iu"
        drawn = rng.integers(1, 20, shape) if integral else rng.standard_normal(shape)
        feeds[value.name] = drawn.astype(dtype)
    return feeds


def network(name: str) -> onnx.ModelProto:
    """A real network, with weights drawn; a seed always gives the same."""
    return fill_weights(onnx.load(NETWORKS / f"{name}.onnx", load_external_data=False))


def close(actual: Array, expected: Array, tolerance: float = 1e-5) -> None:
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual / scale, expected / scale, atol=tolerance, rtol=0)


def info(name: str, shape: Sequence[int], dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def stored(name: str, value: object, dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def drawn(name: str, *shape: int, seed: int = 0) -> TensorProto:
    rng = np.random.default_rng([seed, *shape, len(name)])
    return stored(name, rng.standard_normal(shape) / max(1.0, np.sqrt(np.prod(shape[1:]))))


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[TensorProto] = (),
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def bared(model: onnx.ModelProto, above: int = 16) -> onnx.ModelProto:
    """The same model without the data of its larger tensors, as networks are shipped."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if np.prod(tensor.dims) > above and tensor.data_type == TensorProto.FLOAT:
            dims, name = list(tensor.dims), tensor.name
            tensor.Clear()
            tensor.name, tensor.data_type, tensor.data_location = name, TensorProto.FLOAT, TensorProto.EXTERNAL
            tensor.dims.extend(dims)
    return copy
