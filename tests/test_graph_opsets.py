"""Ops as older opsets write them: ONNX Runtime's run says which shapes come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from latpred.graph import read
from latpred.tensors import dtype_of


def f32(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random(shape, np.float32)


def i64(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


# opset, op, inputs (the first is fed, the others are initializers), attributes, number of outputs
CASES: list[tuple[int, str, list[Any], dict[str, Any], int]] = [
    (7, "BatchNormalization", [f32(1, 4, 5, 5), f32(4), f32(4), f32(4), f32(4)], {}, 1),
    (7, "Upsample", [f32(1, 4, 5, 5)], {"scales": [1.0, 1.0, 2.0, 3.0]}, 1),
    (9, "Upsample", [f32(1, 4, 5, 5), np.array([1, 1, 2, 3], np.float32)], {}, 1),
    (10, "Resize", [f32(1, 4, 5, 5), np.array([1, 1, 2, 0.5], np.float32)], {}, 1),
    (11, "Resize", [f32(1, 4, 5, 5), f32(0), np.array([1, 1, 1.5, 2], np.float32)], {}, 1),
    (11, "Resize", [f32(1, 4, 5, 5), f32(0), f32(0), i64(1, 4, 9, 7)], {}, 1),
    (18, "Resize", [f32(1, 4, 5, 5), None, None, i64(9, 7)], {"axes": [2, 3]}, 1),
    (7, "Dropout", [f32(2, 3)], {}, 2),
    (10, "Dropout", [f32(2, 3)], {}, 2),
    (12, "Dropout", [f32(2, 3)], {}, 2),
    (7, "Slice", [f32(4, 6)], {"starts": [1, -3], "ends": [3, 9999]}, 1),
    (10, "Slice", [f32(4, 6), i64(3), i64(-9), i64(0), i64(-2)], {}, 1),
    (7, "Pad", [f32(1, 4, 5, 5)], {"pads": [0, 0, 1, 2, 0, 0, 3, 4]}, 1),
    (11, "Pad", [f32(1, 4, 5, 5), i64(0, 0, 1, 2, 0, 0, 3, 4)], {}, 1),
    (18, "Pad", [f32(1, 4, 5, 5), i64(1, 2), None, i64(2)], {}, 1),
    (7, "Squeeze", [f32(1, 4, 1)], {"axes": [0]}, 1),
    (7, "Squeeze", [f32(1, 4, 1)], {}, 1),
    (13, "Squeeze", [f32(1, 4, 1), i64(-1)], {}, 1),
    (7, "Unsqueeze", [f32(4)], {"axes": [0, 2]}, 1),
    (13, "Unsqueeze", [f32(4), i64(0, -1)], {}, 1),
    (7, "Split", [f32(4, 6)], {"axis": 1}, 3),
    (7, "Split", [f32(4, 6)], {"axis": 1, "split": [1, 5]}, 2),
    (13, "Split", [f32(4, 6), i64(1, 5)], {"axis": 1}, 2),
    (18, "Split", [f32(4, 7)], {"axis": 1, "num_outputs": 3}, 3),
    (7, "TopK", [f32(4, 6)], {"k": 2, "axis": 0}, 2),
    (10, "TopK", [f32(4, 6), i64(3)], {}, 2),
    (7, "ReduceSum", [f32(4, 6, 2)], {"axes": [1], "keepdims": 0}, 1),
    (13, "ReduceSum", [f32(4, 6, 2), i64(1)], {"keepdims": 0}, 1),
    (13, "ReduceSum", [f32(4, 6, 2)], {"noop_with_empty_axes": 1}, 1),
    (18, "ReduceMean", [f32(4, 6, 2), i64(0, -1)], {}, 1),
    (7, "Clip", [f32(4, 6)], {"min": 0.0, "max": 6.0}, 1),
    (7, "Flatten", [f32(4, 6, 2)], {}, 1),
    (7, "Softmax", [f32(4, 6, 2)], {}, 1),
    (7, "Cast", [f32(4)], {"to": 7}, 1),
    (8, "Expand", [f32(4, 1), i64(3, 1, 6)], {}, 1),
    (7, "Tile", [f32(4, 1), i64(2, 3)], {}, 1),
    (9, "OneHot", [i64(1, 2, 3), i64(5), np.array([0, 1], np.float32)], {"axis": 0}, 1),
    (9, "ConstantOfShape", [i64(2, 3)], {}, 1),
    (7, "MaxPool", [f32(1, 4, 9, 9)], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, 1),
    (10, "MaxPool", [f32(1, 4, 9, 9)], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, 2),
    (7, "AveragePool", [f32(1, 4, 9, 9)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, 1),
    (7, "ConvTranspose", [f32(1, 4, 5, 5), f32(4, 6, 3, 3)], {"strides": [2, 2], "output_padding": [1, 1]}, 1),
    (7, "ConvTranspose", [f32(1, 4, 5, 5), f32(4, 6, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_LOWER"}, 1),
    (7, "Conv", [f32(1, 4, 9), f32(6, 2, 3)], {"group": 2, "dilations": [2], "pads": [1, 2]}, 1),
    (7, "LSTM", [f32(5, 2, 3), f32(2, 16, 3), f32(2, 16, 4)], {"hidden_size": 4, "direction": "bidirectional"}, 3),
    (7, "GRU", [f32(5, 2, 3), f32(1, 12, 3), f32(1, 12, 4)], {"hidden_size": 4}, 2),
    (7, "Gemm", [f32(4, 3), f32(6, 4), f32(6)], {"transA": 1, "transB": 1}, 1),
    (7, "ArgMax", [f32(4, 6)], {"axis": 1, "keepdims": 0}, 1),
    (11, "DepthToSpace", [f32(1, 8, 3, 3)], {"blocksize": 2, "mode": "CRD"}, 1),
    (11, "GatherND", [f32(2, 3, 4), np.array([[0], [1]], np.int64)], {}, 1),
    (12, "Einsum", [f32(2, 3, 4), f32(2, 5, 4)], {"equation": "bid,bjd->bij"}, 1),
    (16, "GridSample", [f32(1, 4, 5, 5), f32(1, 7, 6, 2)], {}, 1),
    (17, "LayerNormalization", [f32(2, 3, 4), f32(4)], {}, 1),
    (18, "GroupNormalization", [f32(2, 4, 5, 5), f32(2), f32(2)], {"num_groups": 2}, 1),
    (20, "Gelu", [f32(2, 3)], {}, 1),
    (21, "GroupNormalization", [f32(2, 4, 5, 5), f32(4), f32(4)], {"num_groups": 2}, 1),
    (23, "Attention", [f32(2, 3, 5, 8), f32(2, 3, 7, 8), f32(2, 3, 7, 4)], {}, 1),
    (23, "RMSNormalization", [f32(2, 3, 4), f32(4)], {}, 1),
]


@pytest.mark.parametrize(
    ("opset", "op_type", "inputs", "attributes", "outputs"),
    CASES,
    ids=[f"{i}-{case[1]}-{case[0]}" for i, case in enumerate(CASES)],
)
def test_as_the_runtime(opset: int, op_type: str, inputs: list[Any], attributes: dict[str, Any], outputs: int) -> None:
    names = ["" if value is None else f"i{index}" for index, value in enumerate(inputs)]
    arrays = [(name, value) for name, value in zip(names, inputs, strict=True) if name]
    made = [f"o{i}" for i in range(outputs)]
    first = inputs[0]
    x = helper.make_tensor_value_info("i0", helper.np_dtype_to_tensor_dtype(first.dtype), first.shape)
    graph = helper.make_graph(
        [helper.make_node(op_type, names, made, **attributes)],
        "one",
        [x],
        [helper.make_empty_tensor_value_info(name) for name in made],
        [numpy_helper.from_array(value, name) for name, value in arrays[1:]],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = [(value.shape, dtype_of(value)) for value in session.run(None, {"i0": first})]
    if op_type == "ConstantOfShape":  # the first input steers the shape: it has to be known
        graph.initializer.append(numpy_helper.from_array(first, "i0"))
        del graph.input[:]
        model.graph.CopyFrom(graph)
    found = read(model)
    assert [(found.tensors[name].shape, found.tensors[name].dtype) for name in made] == expected


def test_the_newest_opset_reads() -> None:
    opset = onnx.defs.onnx_opset_version()
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])
    y = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    assert read(model).tensors["y"].shape == (1, 4)
