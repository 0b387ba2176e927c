"""The fingerprint changes with the structure and with nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latpred.fingerprint import fingerprint


def network(weights: float = 1.0) -> onnx.ModelProto:
    """A convolution, a reshape by an initializer, and a large constant inside a node."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv", strides=[2, 2]),
        helper.make_node("Reshape", ["h", "target"], ["r"], name="reshape"),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.full((100, 72), weights, np.float32))),
        helper.make_node("Add", ["r", "c"], ["y"], name="add"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    stored = [
        numpy_helper.from_array(np.full((8, 3, 3, 3), weights, np.float32), "w"),
        numpy_helper.from_array(np.array([-1, 72], np.int64), "target"),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "net", [x], [y], stored))


def change_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].ints[0] = 1


def change_dim(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 9


def change_weight_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 16


def change_dtype(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = TensorProto.FLOAT16


def change_target(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array([72, -1], np.int64), "target"))


def change_constant_dims(model: onnx.ModelProto) -> None:
    del model.graph.node[2].attribute[0].t.dims[:]
    model.graph.node[2].attribute[0].t.dims.extend([72, 100])


def change_op(model: onnx.ModelProto) -> None:
    model.graph.node[3].op_type = "Mul"


def change_wiring(model: onnx.ModelProto) -> None:
    model.graph.node[3].input[1] = "r"


def change_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version -= 1


@pytest.mark.parametrize(
    "change",
    [
        change_attribute,
        change_dim,
        change_weight_dims,
        change_dtype,
        change_target,
        change_constant_dims,
        change_op,
        change_wiring,
        change_opset,
    ],
)
def test_structure_counts(change: Callable[[onnx.ModelProto], None]) -> None:
    changed = network()
    change(changed)
    assert fingerprint(changed) != fingerprint(network())


def test_weights_do_not() -> None:
    assert fingerprint(network(1.0)) == fingerprint(network(2.0))


def test_bound_dims_count() -> None:
    seen = {
        fingerprint(network()),
        fingerprint(network(), dims={"N": 1}),
        fingerprint(network(), dims={"N": 2}),
        fingerprint(network(), shapes={"x": (2, 3, 8, 8)}),
    }
    assert len(seen) == 4


def test_bodies_count() -> None:
    def branching(op_type: str) -> onnx.ModelProto:
        y = helper.make_tensor_value_info("b", TensorProto.FLOAT, [2])
        branches = [helper.make_graph([helper.make_node(op, ["x"], ["b"])], op, [], [y]) for op in ("Relu", op_type)]
        node = helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
        flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
        return helper.make_model(helper.make_graph([node], "g", [x, flag], [out]))

    assert fingerprint(branching("Tanh")) != fingerprint(branching("Exp"))


def test_any_source_gives_the_same() -> None:
    assert fingerprint(network().SerializeToString()) == fingerprint(network())


def test_cost_does_not_grow_with_weights() -> None:
    def cost_s(rows: int) -> float:
        model = network()
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((rows, 1000), np.float32), "w"))
        costs = []
        for _ in range(5):
            start = time.perf_counter()
            fingerprint(model)
            costs.append(time.perf_counter() - start)
        return min(costs)

    assert cost_s(20_000) < 10 * cost_s(10)  # 80 MB beside 40 kB: copying alone would take 100 times as long
