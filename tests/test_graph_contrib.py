"""ONNX Runtime's own ops: what comes out of a run is what the shape rules must say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from latpred.errors import ShapeError
from latpred.graph import read
from latpred.reading.contrib import CONTRIB_SHAPES
from latpred.tensors import dtype_of

Value = np.ndarray[Any, Any]


def f32(*shape: int) -> Value:
    return np.random.default_rng(0).random(shape, np.float32)


def u8(*shape: int) -> Value:
    return np.random.default_rng(0).integers(0, 255, shape, np.uint8)


def i32(*shape: int) -> Value:
    return np.zeros(shape, np.int32)


SCALE, ZERO = np.float32(0.5), np.uint8(3)
Q = (SCALE, ZERO)

# op, inputs (the first is fed, the others are initializers), attributes, number of outputs
CASES: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("Attention", [f32(2, 5, 8), f32(8, 24), f32(24)], {"num_heads": 2}, 1),
    ("Attention", [f32(2, 5, 8), f32(8, 24), f32(24), None, f32(2, 2, 2, 3, 4)], {"num_heads": 2}, 2),
    ("BiasGelu", [f32(2, 5, 8), f32(8)], {}, 1),
    ("DynamicQuantizeMatMul", [f32(2, 5, 8), u8(8, 6), f32(1), u8(1)], {}, 1),
    ("EmbedLayerNormalization", [i32(2, 5), i32(2, 5), f32(9, 8), f32(7, 8), f32(2, 8), f32(8), f32(8)], {}, 2),
    ("FastGelu", [f32(2, 5, 8), f32(8)], {}, 1),
    ("FusedConv", [f32(1, 4, 9, 9), f32(6, 4, 3, 3), f32(6)], {"activation": "Relu", "strides": [2, 2]}, 1),
    ("FusedGemm", [f32(4, 3), f32(6, 4), f32(6)], {"transA": 1, "transB": 1, "activation": "Relu"}, 1),
    ("FusedMatMul", [f32(2, 8, 5), f32(2, 6, 8)], {"transA": 1, "transB": 1}, 1),
    ("FusedMatMul", [f32(7, 1, 5, 8), f32(3, 8, 6)], {"alpha": 0.5}, 1),
    ("Gelu", [f32(2, 5)], {}, 1),
    ("GroupQueryAttention",
     [f32(2, 5, 32), f32(2, 5, 16), f32(2, 5, 16), None, None, np.full(2, 4, np.int32), np.array(5, np.int32)],
     {"num_heads": 4, "kv_num_heads": 2}, 3),
    ("MatMulIntegerToFloat", [u8(2, 5, 8), u8(8, 6), f32(1), f32(1), u8(1), u8(1)], {}, 1),
    ("MatMulNBits", [f32(2, 5, 32), u8(6, 2, 8), f32(12)], {"K": 32, "N": 6, "bits": 4, "block_size": 16}, 1),
    ("MultiHeadAttention", [f32(2, 5, 8), f32(2, 7, 8), f32(2, 7, 12)], {"num_heads": 2}, 1),
    ("MultiHeadAttention", [f32(2, 5, 8), f32(2, 2, 7, 4), f32(2, 2, 7, 4)], {"num_heads": 2}, 1),
    ("NhwcMaxPool", [u8(1, 9, 9, 4)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, 1),
    ("QAttention", [u8(2, 5, 8), u8(8, 24), f32(24), f32(1), f32(1), None, u8(1), u8(1)], {"num_heads": 2}, 1),
    ("QGemm", [u8(4, 3), SCALE, ZERO, u8(3, 6), SCALE, ZERO, i32(6), *Q], {}, 1),
    ("QGemm", [u8(3, 4), SCALE, ZERO, u8(6, 3), SCALE, ZERO, i32(6)], {"transA": 1, "transB": 1}, 1),
    ("QLinearAdd", [u8(2, 1, 8), *Q, u8(5, 8), *Q, *Q], {}, 1),
    ("QLinearAveragePool", [u8(1, 4, 9, 9), *Q, *Q], {"kernel_shape": [3, 3], "ceil_mode": 1, "strides": [2, 2]}, 1),
    ("QLinearAveragePool", [u8(1, 9, 9, 4), *Q, *Q], {"kernel_shape": [3, 3], "channels_last": 1}, 1),
    ("QLinearConcat", [u8(2, 3), *Q, u8(2, 5)], {"axis": 1}, 1),
    ("QLinearConv", [u8(1, 9, 9, 4), *Q, u8(6, 4, 3, 3), *Q, *Q], {"channels_last": 1, "pads": [1, 1, 0, 0]}, 1),
    ("QLinearGlobalAveragePool", [u8(2, 4, 7, 7), *Q, *Q], {"channels_last": 0}, 1),
    ("QLinearGlobalAveragePool", [u8(2, 7, 7, 4), *Q, *Q], {"channels_last": 1}, 1),
    ("QLinearLeakyRelu", [u8(2, 5), *Q, *Q], {}, 1),
    ("QLinearMul", [u8(2, 5, 1), *Q, u8(8), *Q, *Q], {}, 1),
    ("QLinearSigmoid", [u8(2, 5), *Q, *Q], {}, 1),
    ("QLinearSoftmax", [u8(2, 5), *Q, *Q], {"opset": 13, "axis": -1}, 1),
    ("QLinearWhere", [np.ones((2, 1), bool), u8(3), *Q, u8(2, 3), *Q, *Q], {}, 1),
    ("QuickGelu", [f32(2, 5)], {}, 1),
    ("RotaryEmbedding", [f32(2, 5, 8), np.zeros(1, np.int64), f32(9, 4), f32(9, 4)], {}, 1),
    ("SimplifiedLayerNormalization", [f32(2, 5, 8), f32(8)], {}, 1),
    ("SkipLayerNormalization", [f32(2, 5, 8), f32(2, 5, 8), f32(8), f32(8), f32(8)], {}, 4),
    ("SkipSimplifiedLayerNormalization", [f32(2, 5, 8), f32(2, 5, 8), f32(8)], {}, 4),
]  # fmt: skip


def one_node(op_type: str, inputs: list[Any], attributes: dict[str, Any], outputs: int) -> onnx.ModelProto:
    if op_type == "QLinearConcat":  # the scale and zero point of the output come first
        inputs = [*Q, *inputs, *Q]
    fed = 2 if op_type == "QLinearConcat" else 0
    names = ["" if value is None else f"i{index}" for index, value in enumerate(inputs)]
    arrays = [(name, np.asarray(value)) for name, value in zip(names, inputs, strict=True) if name]
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in arrays
    ]
    # the two in the middle of a skip-normalisation are not computed for inference
    made = [f"o{i}" if outputs < 4 or i in (0, 3) else "" for i in range(outputs)]
    domain = "" if op_type == "SimplifiedLayerNormalization" else "com.microsoft"
    node = helper.make_node(op_type, names, made, domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [info for info in infos if info.name == f"i{fed}"],
        [helper.make_empty_tensor_value_info(name) for name in made if name],
        [numpy_helper.from_array(value, name) for name, value in arrays if name != f"i{fed}"],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "outputs"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_as_the_runtime(op_type: str, inputs: list[Any], attributes: dict[str, Any], outputs: int) -> None:
    model = one_node(op_type, inputs, attributes, outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made = session.run(None, {model.graph.input[0].name: np.asarray(inputs[0])})
    graph = read(model)
    found = [(graph.tensors[name].shape, graph.tensors[name].dtype) for name in graph.outputs]
    assert found == [(value.shape, dtype_of(value)) for value in made]


def test_a_graph_in_blocked_layout(tmp_path: Path) -> None:
    """The runtime optimises a small network; its result reads, and ends as the runtime's run does."""
    rng = np.random.default_rng(0)
    weights = {"a": (24, 3, 3, 3), "b": (24, 1, 3, 3), "c": (40, 24, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("Conv", ["h2", "b"], ["h3"], group=24, pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["h3"], ["h4"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["h4", "c"], ["h5"]),
        helper.make_node("GlobalAveragePool", ["h5"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 20, 20])
    stored = [numpy_helper.from_array(rng.random(shape, np.float32), name) for name, shape in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [helper.make_empty_tensor_value_info("y")], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = read(tmp_path / "optimized.onnx")
    assert optimized.tensors[optimized.outputs[0]].shape == (1, 40, 1, 1)
    assert len(optimized.ops) >= 4


def test_inputs_that_no_rule_covers_are_named() -> None:
    with pytest.raises(ShapeError, match=r"com\.microsoft\.QLinearAdd"):
        read(one_node("QLinearAdd", [u8(2, 3), *Q, u8(5), *Q, *Q], {}, 1))  # 3 and 5 do not broadcast


def test_most_rules_are_checked() -> None:
    assert len({case[0] for case in CASES}) >= 0.6 * len(CONTRIB_SHAPES)
