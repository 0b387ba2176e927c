"""A tidied model computes what the original computes, and nothing in it only hands on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from random_graphs import network as random_network
from surgery_oracle import NETWORKS, bared, close, drawn, feeds_of, info, model_of, network, run, stored

from latpred.errors import DimensionError, ModelError
from latpred.surgery.tidy import tidied
from latpred.surgery.wiring import wired

REAL = sorted(path.stem for path in NETWORKS.glob("*.onnx"))


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("name", REAL)
def test_real_networks_compute_the_same(name: str) -> None:
    model = network(name)
    tidy = tidied(model)
    feeds = feeds_of(tidy)
    expected, actual = run(model, feeds), run(tidy, feeds)
    assert list(actual) == list(expected)
    for output, value in expected.items():
        close(actual[output], value)
    assert not {"Identity", "Constant", "Shape", "Dropout"} & set(op_types(tidy))


@pytest.mark.parametrize("name", REAL)
def test_every_tensor_has_a_shape_and_every_node_a_name(name: str) -> None:
    tidy = tidied(NETWORKS / f"{name}.onnx")
    wiring = wired(tidy)
    for tensor in (*wiring.makers, *wiring.inputs):
        assert wiring.spec(tensor).dtype
    names = [node.name for node in tidy.graph.node]
    assert all(names) and len(set(names)) == len(names)
    onnx.checker.check_model(bound(tidy))


def bound(model: onnx.ModelProto) -> onnx.ModelProto:
    from latpred.collect.weights import fill_weights

    return fill_weights(model)


@pytest.mark.parametrize("seed", range(30))
def test_random_networks_compute_the_same(seed: int) -> None:
    model = random_network(seed)
    tidy = tidied(model)
    feeds = feeds_of(model)
    for output, value in run(model, feeds).items():
        close(run(tidy, feeds)[output], value)


@pytest.mark.parametrize("seed", range(0, 30, 3))
def test_missing_weights_change_no_node(seed: int) -> None:
    model = random_network(seed)
    full, empty = tidied(model), tidied(bared(model))
    assert op_types(full) == op_types(empty)
    assert {t.name: tuple(t.dims) for t in full.graph.initializer} == {
        t.name: tuple(t.dims) for t in empty.graph.initializer
    }


def test_constants_are_computed_dims_bound_and_names_of_ends_kept() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Transpose", ["w"], ["wt"]),
        helper.make_node("Transpose", ["big"], ["bigt"]),
        helper.make_node("Identity", ["x"], ["x1"]),
        helper.make_node("MatMul", ["x1", "wt"], ["a"]),
        helper.make_node("MatMul", ["a", "bigt"], ["b"]),
        helper.make_node("Dropout", ["b"], ["c", ""]),
        helper.make_node("Reshape", ["c", "s2"], ["d"]),
        helper.make_node("Concat", ["s", "one"], ["s2"], axis=0),
        helper.make_node("Identity", ["d"], ["y"]),
        helper.make_node("Relu", ["x"], ["nobody reads this"]),
    ]
    weights = [drawn("w", 90, 8), drawn("big", 8, 90), drawn("bigger", 90, 90), stored("one", [1], np.int64)]
    model = model_of(nodes, [info("x", ["N", 8])], [info("y", ["N", 8, 1])], weights)
    tidy = tidied(model, dims={"N": 3})
    assert op_types(tidy) == ["MatMul", "MatMul", "Reshape"]
    assert [value.name for value in tidy.graph.output] == ["y"]
    feeds = {"x": np.ones((3, 8), np.float32)}
    close(run(tidy, feeds)["y"], run(model, feeds)["y"])
    assert "bigger" not in {tensor.name for tensor in tidy.graph.initializer}


def test_large_constants_are_computed_by_the_runtime() -> None:
    nodes = [helper.make_node("Transpose", ["w"], ["wt"]), helper.make_node("MatMul", ["x", "wt"], ["y"])]
    model = model_of(nodes, [info("x", [2, 80])], [info("y", [2, 90])], [drawn("w", 90, 80)])
    tidy = tidied(model)
    assert op_types(tidy) == ["MatMul"]
    feeds = feeds_of(model)
    close(run(tidy, feeds)["y"], run(model, feeds)["y"])
    empty = tidied(bared(model))
    assert op_types(empty) == ["MatMul"]
    (weight,) = empty.graph.initializer
    assert list(weight.dims) == [80, 90] and weight.data_location == TensorProto.EXTERNAL


def test_a_large_constant_of_an_inputs_shape_needs_no_input() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Expand", ["half", "s"], ["wide"]), helper.make_node("Add", ["a", "wide"], ["y"]),
    ]  # fmt: skip
    model = model_of(nodes, [info("x", [70, 80])], [info("y", [70, 80])], [drawn("half", 1, 80)])
    tidy = tidied(model)
    assert op_types(tidy) == ["Relu", "Add"]
    feeds = feeds_of(model)
    close(run(tidy, feeds)["y"], run(model, feeds)["y"])
    assert op_types(tidied(bared(model))) == ["Relu", "Add"]


@pytest.mark.parametrize("taken", [True, False])
def test_the_branch_that_is_always_taken_is_inlined(taken: bool) -> None:
    branches = [
        helper.make_graph([helper.make_node(op, ["x"], ["same"], name=op)], op, [], [info("same", [2])])
        for op in ("Relu", "Neg")
    ]
    nodes = [
        helper.make_node("If", ["c"], ["a"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Abs", ["a"], ["y"]),
    ]
    model = model_of(nodes, [info("x", [2])], [info("y", [2])], [stored("c", taken, np.bool_)])
    tidy = tidied(model)
    assert op_types(tidy) == ["Relu" if taken else "Neg", "Abs"]
    feeds = {"x": np.array([-1, 2], np.float32)}
    close(run(tidy, feeds)["y"], run(model, feeds)["y"])


def test_local_functions_are_inlined() -> None:
    function = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model = model_of([helper.make_node("Twice", ["x"], ["y"], domain="own")], [info("x", [2])], [info("y", [2])])
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(function)
    assert op_types(tidied(model)) == ["Add"]


def test_an_input_that_is_also_an_output_stays() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["z"])]
    model = model_of(nodes, [info("x", [2])], [info("y", [2]), info("z", [2])])
    tidy = tidied(model)
    assert sorted(op_types(tidy)) == ["Identity", "Relu"]
    feeds = {"x": np.array([-1, 2], np.float32)}
    close(run(tidy, feeds)["y"], feeds["x"])


def test_quantized_weights_keep_their_dequantization() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = [stored("q", np.ones((4, 4)), np.int8), stored("s", 0.5), stored("z", 0, np.int8)]
    model = model_of(nodes, [info("x", [2, 4])], [info("y", [2, 4])], weights)
    assert op_types(tidied(model)) == ["DequantizeLinear", "MatMul"]


def test_branches_are_contiguous_and_late() -> None:
    # two branches whose nodes alternate in the file
    nodes = [
        helper.make_node("Relu", ["x"], ["a1"]), helper.make_node("Neg", ["x"], ["b1"]),
        helper.make_node("Exp", ["a1"], ["a2"]), helper.make_node("Abs", ["b1"], ["b2"]),
        helper.make_node("Add", ["a2", "b2"], ["y"]),
    ]  # fmt: skip
    tidy = tidied(model_of(nodes, [info("x", [2])], [info("y", [2])]))
    assert op_types(tidy) == ["Relu", "Exp", "Neg", "Abs", "Add"]


def test_large_constants_are_computed_only_where_they_are_wanted() -> None:
    nodes = [helper.make_node("Expand", ["one", "shape"], ["big"]), helper.make_node("Add", ["x", "big"], ["y"])]
    weights = [stored("one", 1), stored("shape", [70, 70], np.int64)]
    model = model_of(nodes, [info("x", [70, 70])], [info("y", [70, 70])], weights)
    (whole,), (light,) = (tidied(model, large_values=wanted).graph.initializer for wanted in (True, False))
    assert list(whole.dims) == list(light.dims) == [70, 70]
    assert whole.raw_data and not light.raw_data


def test_external_data_beside_the_file_are_read(tmp_path: Path) -> None:
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", [1, 40])], [info("y", [1, 40])],
                     [drawn("w", 40, 40)])  # fmt: skip
    feeds = feeds_of(model)
    expected = run(model, feeds)["y"]
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    close(run(tidied(tmp_path / "m.onnx"), feeds)["y"], expected)


def test_the_given_model_is_not_changed() -> None:
    model = random_network(3)
    before = model.SerializeToString()
    tidied(model)
    assert model.SerializeToString() == before


def test_refusals(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], [info("x", [1, "T"])], [info("y", [1, "T"])])
    with pytest.raises(DimensionError, match="T"):
        tidied(model)
    (tmp_path / "no.onnx").write_bytes(b"this is no model")
    with pytest.raises(ModelError):
        tidied(tmp_path / "no.onnx")
