"""Skipping, exits and gates: small graphs against numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper
from surgery_oracle import close, drawn, info, model_of, network, run, stored

from latpred.errors import SurgeryError
from latpred.surgery.cuts import Cut, cuts
from latpred.surgery.exits import CONFIDENCE, LOGITS, PROBABILITIES, head
from latpred.surgery.gates import SCORES, checked_gate, gate_network
from latpred.surgery.pieces import piece
from latpred.surgery.skip import can_skip
from latpred.surgery.tidy import tidied

SHAPES = {
    (2, 6, 5, 4): 1,
    (2, 6, 2, 3, 1, 4): 1,
    (2, 5, 4, 6): 3,
    (2, 7, 6): 2,
    (2, 6, 7): 1,
    (2, 6): 1,
}  # shape -> channel axis


def cut_of(shape: tuple[int, ...], axis: int, dtype: str = "float32") -> Cut:
    return Cut("x", 0, (), shape, dtype, axis)


def averaged(x: np.ndarray, axis: int) -> np.ndarray:
    return x.mean(axis=tuple(a for a in range(1, x.ndim) if a != axis))


@pytest.mark.parametrize(("shape", "axis"), SHAPES.items())
def test_a_head_is_an_average_and_a_linear_map(shape: tuple[int, ...], axis: int) -> None:
    rng = np.random.default_rng(0)
    matrix, bias = rng.standard_normal((6, 3)), rng.standard_normal(3)
    x = rng.standard_normal(shape).astype(np.float32)
    made = run(head(cut_of(shape, axis), 3, weights=(matrix, bias), confident=True), {"x": x})
    logits = averaged(x, axis) @ matrix + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    close(made[LOGITS], logits)
    close(made[PROBABILITIES], probabilities)
    close(made[CONFIDENCE], probabilities.max(axis=1, keepdims=True))


def test_a_seed_gives_the_same_weights_and_another_gives_others() -> None:
    cut, x = cut_of((1, 6), 1), {"x": np.ones((1, 6), np.float32)}
    same = [run(head(cut, 4, seed=seed), x)[LOGITS] for seed in (1, 1, 2)]
    assert (same[0] == same[1]).all() and (same[0] != same[2]).any()


def test_a_gate_scores_every_option() -> None:
    x = np.random.default_rng(1).standard_normal((1, 7, 6)).astype(np.float32)
    matrix = np.eye(6)[:, :2]
    scores = run(gate_network(cut_of((1, 7, 6), 2), 2, weights=(matrix, np.zeros(2))), {"x": x})[SCORES]
    close(scores, x.mean(axis=1)[:, :2])


@pytest.mark.parametrize("cut", [cut_of((8,), 0), cut_of((1, 8), 1, "int64"), cut_of((8, 1), 0)])
def test_what_cannot_be_averaged_is_refused(cut: Cut) -> None:
    with pytest.raises(SurgeryError, match="choose another cut"):
        gate_network(cut, 2)


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SurgeryError, match=r"\(6, 3\)"):
        head(cut_of((1, 6), 1), 3, weights=(np.zeros((3, 6)), np.zeros(3)))
    with pytest.raises(SurgeryError, match="width is 0"):
        gate_network(cut_of((1, 6), 1), 0)


def own_gate(shape: list[object], width: int, dtype: int = TensorProto.FLOAT, inner: str = "h"):
    nodes = [
        helper.make_node("GlobalAveragePool", ["in"], [inner]), helper.make_node("Flatten", [inner], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["s"]),
    ]  # fmt: skip
    return model_of(nodes, [info("in", shape, dtype)], [info("s", [shape[0], width])], [drawn("w", 6, width)])


@pytest.mark.parametrize("inner", ["h", "x"])
def test_a_gate_of_the_callers_is_bound_and_renamed(inner: str) -> None:
    given, x = own_gate(["N", 6, "H", "W"], 3, inner=inner), np.ones((1, 6, 4, 4), np.float32)
    checked = checked_gate(given, cut_of((1, 6, 4, 4), 1), 3)
    assert [value.name for value in checked.graph.input] == ["x"]
    close(run(checked, {"x": x})["s"], run(given, {"in": x})["s"])


@pytest.mark.parametrize(
    ("gate", "match"),
    [
        (own_gate([1, 6, 5, 4], 3), "export it for this cut"),
        (own_gate([1, 6, 4], 3), "export it for this cut"),
        (own_gate([1, 6, 4, 4], 3, TensorProto.DOUBLE), "export it for this cut"),
        (own_gate([1, 6, 4, 4], 2), "makes 3 scores"),
        (
            model_of([helper.make_node("Add", ["a", "b"], ["s"])], [info("a", [1]), info("b", [1])], [info("s", [1])]),
            "one input and one output",
        ),
    ],
)
def test_a_gate_that_does_not_fit_is_refused(gate, match: str) -> None:
    with pytest.raises(SurgeryError, match=match):
        checked_gate(gate, cut_of((1, 6, 4, 4), 1), 3)


def test_what_can_be_skipped() -> None:
    tidy = tidied(network("mobilenet_v2"))
    places = cuts(tidy)
    makers = {output: node.op_type for node in tidy.graph.node for output in node.output}
    reasons = [can_skip(piece(tidy, a, b)) for a, b in pairwise(places)]
    residual = [reason for b, reason in zip(places[1:], reasons, strict=True) if makers[b.tensor] == "Add"]
    assert len(residual) == 10 and not any(residual)
    assert reasons[-1] is not None and "float32[1, 1000]" in reasons[-1]


def test_a_piece_that_makes_more_than_its_end_cannot_be_skipped() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Mul", ["a", "two"], ["y"])]
    model = model_of(nodes, [info("x", [2])], [info("y", [2]), info("a", [2])], [stored("two", 2)])
    assert can_skip(tidied(model)) == "it also makes 'a', which is read elsewhere"
