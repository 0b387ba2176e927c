"""Pieces in int8: the runtime's kernels are integer ones, and results stay near the floating piece's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from surgery_oracle import bared, close, drawn, feeds_of, info, model_of, network, run, stored

from latpred.collect.weights import fill_weights
from latpred.errors import SurgeryError
from latpred.surgery.affine import folded_into_weights
from latpred.surgery.cuts import cuts
from latpred.surgery.pieces import chain
from latpred.surgery.quantize import calibrated, can_quantize, in_int8, quantized_tensors
from latpred.surgery.tidy import tidied


def launched(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Op types that the runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def residual_block(norm: bool = True) -> onnx.ModelProto:
    names = ("scale", "shift", "mean")
    weights = [drawn("w1", 16, 16, 3, 3), drawn("w2", 16, 16, 3, 3, seed=1), drawn("b2", 16),
               *(drawn(name, 16) for name in names), stored("var", np.full(16, 0.5))]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["a", *names, "var"], ["b"], "norm"),
        helper.make_node("Relu", ["b" if norm else "a"], ["c"], "relu"),
        helper.make_node("Conv", ["c", "w2", "b2"], ["d"], "conv2", pads=[1] * 4),
        helper.make_node("Add", ["d", "x"], ["e"], "add"),
        helper.make_node("Relu", ["e"], ["y"], "relu2"),
    ]
    ends = [info("x", [1, 16, 10, 10])], [info("y", [1, 16, 10, 10])]
    return tidied(model_of(nodes, *ends, weights))


def encoder_mlp() -> onnx.ModelProto:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "up"], ["a"], "up"), helper.make_node("Add", ["a", "upb"], ["b"], "bias"),
        helper.make_node("Sigmoid", ["b"], ["s"], "sigmoid"), helper.make_node("Mul", ["b", "s"], ["h"], "silu"),
        helper.make_node("MatMul", ["h", "down"], ["d"], "down"), helper.make_node("Add", ["d", "x"], ["y"], "add"),
    ]  # fmt: skip
    weights = [drawn("g", 16), drawn("up", 16, 64), drawn("upb", 64), drawn("down", 64, 16)]
    return tidied(model_of(nodes, [info("x", [1, 9, 16])], [info("y", [1, 9, 16])], weights))


def gemm_head() -> onnx.ModelProto:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm", transB=1)]
    weights = [drawn("w", 12, 16), drawn("b", 12)]
    return tidied(model_of(nodes, [info("x", [4, 16])], [info("y", [4, 12])], weights))


# piece -> ops that run, and how far the result may be off, as a share of its range
PIECES = {
    "residual": (residual_block, {"QLinearConv": 2, "QLinearAdd": 1}, {"Conv", "Add", "Relu", "FusedConv"}),
    "mlp": (encoder_mlp, {"MatMulIntegerToFloat": 1, "QGemm": 1}, {"MatMul", "Gemm"}),
    "gemm": (gemm_head, {"QGemm": 1}, {"Gemm"}),
}


@pytest.mark.parametrize("name", sorted(PIECES))
def test_kernels_are_integer_and_results_near(name: str, tmp_path: Path) -> None:
    build, wanted, unwanted = PIECES[name]
    piece = build()
    samples = [feeds_of(piece, seed) for seed in range(8)]
    quantized = in_int8(piece, calibrated(piece, samples))
    onnx.checker.check_model(quantized)
    assert [value.name for value in quantized.graph.output] == ["y"]
    ran = launched(quantized, tmp_path)
    assert {op: ran[op] for op in wanted} == wanted
    assert not unwanted & set(ran)
    for sample in samples[:2]:
        exact, rounded = run(piece, sample)["y"], run(quantized, sample)["y"]
        spread = exact.max() - exact.min()
        assert 0 < np.abs(exact - rounded).max() < 0.05 * spread


@pytest.mark.parametrize("name", sorted(PIECES))
def test_missing_weights_give_the_same_kernels(name: str, tmp_path: Path) -> None:
    build, wanted, _ = PIECES[name]
    full, empty = in_int8(build()), in_int8(bared(build()))
    assert [(n.op_type, n.name) for n in full.graph.node] == [(n.op_type, n.name) for n in empty.graph.node]
    assert {t.name: list(t.dims) for t in full.graph.initializer} == {
        t.name: list(t.dims) for t in empty.graph.initializer
    }
    ran = launched(fill_weights(empty), tmp_path)
    assert {op: ran[op] for op in wanted} == wanted


def test_weights_have_one_scale_a_channel_and_zero_points_of_zero() -> None:
    quantized = in_int8(residual_block())
    stored_ = {tensor.name: tensor for tensor in quantized.graph.initializer}
    integers = [tensor for tensor in stored_.values() if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1]
    assert len(integers) == 2
    for tensor in integers:
        base = tensor.name.removesuffix(":integers")
        assert list(stored_[f"{base}:scale"].dims) == [16]
        assert not onnx.numpy_helper.to_array(stored_[f"{base}:zero"]).any()
        assert np.abs(onnx.numpy_helper.to_array(tensor)).reshape(16, -1).max(axis=1).tolist() == [127] * 16


def test_batch_normalisation_is_folded() -> None:
    piece = residual_block()
    folded = folded_into_weights(piece)
    assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}
    feeds = feeds_of(piece)
    close(run(folded, feeds, optimised=False)["y"], run(piece, feeds, optimised=False)["y"])


def test_biases_are_folded_and_rows_shared() -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["n"], "softmax")]
    for name in ("q", "k"):
        nodes += [
            helper.make_node("MatMul", ["n", f"w{name}"], [f"{name}0"], name),
            helper.make_node("Add", [f"b{name}", f"{name}0"], [f"{name}1"], f"{name} bias"),
        ]
    nodes.append(helper.make_node("Mul", ["q1", "k1"], ["y"], "mul"))
    weights = [drawn("wq", 6, 5), drawn("wk", 6, 5, seed=1), drawn("bq", 5), drawn("bk", 5, seed=1)]
    piece = tidied(model_of(nodes, [info("x", [2, 3, 6])], [info("y", [2, 3, 5])], weights))
    folded = folded_into_weights(piece)
    assert Counter(node.op_type for node in folded.graph.node) == {"Softmax": 1, "Reshape": 3, "Gemm": 2, "Mul": 1}
    feeds = feeds_of(piece)
    close(run(folded, feeds)["y"], run(piece, feeds)["y"])
    assert len(quantized_tensors(piece)) == 1


def test_ranges_are_least_and_largest() -> None:
    piece = gemm_head()
    samples = [feeds_of(piece, seed) for seed in range(3)]
    whole = np.concatenate([sample["x"] for sample in samples])
    assert quantized_tensors(piece) == ("x",)
    assert calibrated(piece, samples) == {"x": (whole.min(), whole.max())}


def test_blocks_of_a_real_network_run_in_integers(tmp_path: Path) -> None:
    tidy = tidied(network("mobilenet_v2"))
    makers = {output: node.op_type for node in tidy.graph.node for output in node.output}
    blocks = [part for part in chain(tidy, cuts(tidy)) if makers[part.graph.output[0].name] == "Add"]
    ran = launched(in_int8(blocks[3]), tmp_path)
    assert ran["QLinearConv"] == 3 and ran["QLinearAdd"] == 1
    assert not {"Conv", "Clip", "FusedConv"} & set(ran)


def test_one_bias_for_all_channels_stays_floating() -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "g")]
    piece = tidied(model_of(nodes, [info("x", [2, 6])], [info("y", [2, 8])], [drawn("w", 6, 8), stored("b", [0.5])]))
    assert "no convolution" in (can_quantize(piece) or "")


def test_a_norm_that_still_learns_is_not_folded() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "c"),
        helper.make_node("BatchNormalization", ["a", *["v"] * 4], ["y", "mean", "var"], "n", training_mode=1),
    ]
    ends = [info("x", [1, 8, 5, 5])], [info("y", [1, 8, 5, 5]), info("mean", [8])]
    piece = tidied(model_of(nodes, *ends, [drawn("w", 8, 8, 1, 1), stored("v", np.ones(8))]))
    feeds = feeds_of(piece)
    made, wanted = run(folded_into_weights(piece), feeds), run(piece, feeds)
    assert set(made) == set(wanted)
    close(made["mean"], wanted["mean"])


def test_refusals() -> None:
    relu = tidied(model_of([helper.make_node("Relu", ["x"], ["y"])], [info("x", [2])], [info("y", [2])]))
    old = tidied(model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", [2, 6])], [info("y", [2, 6])],
                          [drawn("w", 6, 6)], opset=12))  # fmt: skip
    assert "opset is 12" in (can_quantize(old) or "")
    with pytest.raises(SurgeryError, match="leave it floating"):
        in_int8(relu)
    with pytest.raises(SurgeryError, match="'x' has none"):
        in_int8(gemm_head(), {})
    with pytest.raises(SurgeryError, match="finite range"):
        in_int8(gemm_head(), {"x": (1.0, float("inf"))})
    with pytest.raises(SurgeryError, match="at least one sample"):
        calibrated(gemm_head(), [])
