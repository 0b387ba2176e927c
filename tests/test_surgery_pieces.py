"""Cuts lie at block boundaries; pieces between them, run one after another, compute what the model computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from random_graphs import network as random_network
from surgery_oracle import close, drawn, feeds_of, info, model_of, network, run, run_chain, stored

from latpred.errors import SurgeryError
from latpred.surgery.cuts import Cut, cuts
from latpred.surgery.pieces import chain, piece
from latpred.surgery.tidy import tidied

# network -> cuts that it has at least, and how many times its most frequent shape of a cut occurs
REAL = {"mobilenet_v2": 17, "mobilenetv3_large": 15, "vit_test_b2r160": 10, "gpt2_s64": 24}


def ops_between(model: onnx.ModelProto, places: tuple[Cut, ...]) -> list[set[str]]:
    return [{node.op_type for node in part.graph.node} for part in chain(model, places)]


@pytest.mark.parametrize("name", sorted(REAL))
def test_pieces_of_real_networks_make_the_whole(name: str) -> None:
    tidy = tidied(network(name))
    places = cuts(tidy)
    assert len(places) >= REAL[name]
    feeds = feeds_of(tidy)
    made = run_chain(chain(tidy, places), feeds)
    for output, value in run(tidy, feeds).items():
        close(made[output], value)


def test_gpt2_is_cut_between_attention_and_feed_forward() -> None:
    tidy = tidied(network("gpt2_s64"))
    adds = [cut.tensor for cut in cuts(tidy) if cut.shape == (1, 64, 768)]
    makers = {output: node for node in tidy.graph.node for output in node.output}
    assert (
        sum(makers[tensor].op_type == "Add" for tensor in adds) == 24
    )  # embeddings, then two a block; the last joins its norm
    assert all(cut.channel_axis == 2 for cut in cuts(tidy) if cut.shape == (1, 64, 768))


def test_mobilenet_v2_is_cut_behind_every_convolution_outside_of_residual_branches() -> None:
    tidy = tidied(network("mobilenet_v2"))
    readers: dict[str, set[str]] = {}
    for node in tidy.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    places = cuts(tidy)
    assert sum(readers.get(cut.tensor) == {"Conv", "Add"} for cut in places) == 10
    assert not [cut for cut in places[1:-1] if readers[cut.tensor] == {"Clip"}]
    assert all(cut.channel_axis == 1 for cut in places)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_pieces_of_random_networks_make_the_whole(seed: int) -> None:
    tidy = tidied(random_network(seed))
    feeds = feeds_of(tidy, seed)
    made = run_chain(chain(tidy, cuts(tidy)), feeds)
    for output, value in run(tidy, feeds).items():
        close(made[output], value)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_any_two_cuts_enclose_a_piece(seed: int, data: st.DataObject) -> None:
    tidy = tidied(random_network(seed))
    places = cuts(tidy)
    inner = data.draw(st.lists(st.sampled_from(places[1:-1]), unique=True)) if len(places) > 2 else []
    chosen = [places[0], *sorted(inner, key=lambda cut: cut.position), places[-1]]
    feeds = feeds_of(tidy, seed)
    made = run_chain(chain(tidy, chosen), feeds)
    for output, value in run(tidy, feeds).items():
        close(made[output], value)


def masked_encoder(layers: int) -> onnx.ModelProto:
    """Ids and a mask; the mask is turned into a bias once, and every layer adds it and has a residual."""
    nodes = [
        helper.make_node("Cast", ["mask"], ["m1"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["m1", "minus"], ["bias"]),
        helper.make_node("Gather", ["table", "ids"], ["h0"]),
    ]
    for i in range(layers):
        nodes += [
            helper.make_node("MatMul", [f"h{i}", "w"], [f"s{i}"]),
            helper.make_node("Add", [f"s{i}", "bias"], [f"b{i}"]),
            helper.make_node("Softmax", [f"b{i}"], [f"p{i}"]),
            helper.make_node("Add", [f"p{i}", f"h{i}"], [f"h{i + 1}"]),
        ]
    ends = [info("ids", [1, 6], TensorProto.INT64), info("mask", [1, 1, 8], TensorProto.INT64)]
    weights = [drawn("table", 50, 8), drawn("w", 8, 8), stored("minus", -1)]
    return model_of(nodes, ends, [info(f"h{layers}", [1, 6, 8])], weights)


def test_a_mask_is_carried() -> None:
    tidy = tidied(masked_encoder(3))
    places = cuts(tidy)
    assert [cut.tensor for cut in places] == ["ids", "h0", "h1", "h2", "h3"]
    assert [cut.carried for cut in places] == [("mask",), ("mask",), ("bias",), ("bias",), ()]
    pieces = chain(tidy, places)
    assert [value.name for value in pieces[1].graph.output] == ["h1", "bias"]
    assert [value.name for value in pieces[2].graph.input] == ["h1", "bias"]
    feeds = feeds_of(tidy)
    close(run_chain(pieces, feeds)["h3"], run(tidy, feeds)["h3"])


def test_of_two_towers_the_larger_input_is_the_main_one() -> None:
    nodes = [
        helper.make_node("MatMul", ["text", "v"], ["t"]), helper.make_node("MatMul", ["image", "w"], ["i"]),
        helper.make_node("Add", ["t", "i"], ["both"]), helper.make_node("Softmax", ["both"], ["y"]),
    ]  # fmt: skip
    ends = [info("text", [1, 4]), info("image", [1, 9])]
    tidy = tidied(model_of(nodes, ends, [info("y", [1, 6])], [drawn("v", 4, 6), drawn("w", 9, 6)]))
    places = cuts(tidy)
    assert [(cut.tensor, cut.carried) for cut in places] == [("image", ("text",)), ("both", ()), ("y", ())]
    feeds = feeds_of(tidy)
    close(run_chain(chain(tidy, places), feeds)["y"], run(tidy, feeds)["y"])


def test_outputs_on_the_way_belong_to_the_piece_that_makes_them() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Softmax", ["a"], ["side"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]), helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]  # fmt: skip
    ends = [info("y", [2, 8]), info("side", [2, 8])]
    tidy = tidied(model_of(nodes, [info("x", [2, 8])], ends, [drawn("w", 8, 8)]))
    pieces = chain(tidy, cuts(tidy))
    made_by = [[value.name for value in part.graph.output] for part in pieces]
    assert sum("side" in names for names in made_by) == 1
    feeds = feeds_of(tidy)
    made, whole = run_chain(pieces, feeds), run(tidy, feeds)
    close(made["side"], whole["side"])
    close(made["y"], whole["y"])


def test_pieces_hold_only_their_own_weights_and_keep_the_versions() -> None:
    nodes = [helper.make_node("MatMul", ["x", "v"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    tidy = tidied(model_of(nodes, [info("x", [2, 8])], [info("y", [2, 8])], [drawn("v", 8, 8), drawn("w", 8, 8)]))
    first, second = chain(tidy, cuts(tidy))
    assert [tensor.name for tensor in first.graph.initializer] == ["v"]
    assert [tensor.name for tensor in second.graph.initializer] == ["w"]
    assert first.opset_import[0].version == 17 and first.ir_version == tidy.ir_version


def test_dequantized_weights_come_along() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]  # fmt: skip
    weights = [stored("q", np.eye(8), np.int8), stored("s", 0.5)]
    tidy = tidied(model_of(nodes, [info("x", [2, 8])], [info("y", [2, 8])], weights))
    assert [cut.tensor for cut in cuts(tidy)] == ["x", "a", "y"]
    feeds = feeds_of(tidy)
    close(run_chain(chain(tidy, cuts(tidy)), feeds)["y"], feeds["x"] / 4, 5e-3)  # the runtime multiplies in integers


def test_the_last_piece_makes_constant_outputs() -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"]), helper.make_node("Softmax", ["s"], ["y"]),
        helper.make_node("Neg", ["w"], ["c"]),
    ]  # fmt: skip
    tidy = tidied(model_of(nodes, [info("x", [1, 8])], [info("c", [4]), info("y", [1, 8])], [stored("w", np.ones(4))]))
    feeds = feeds_of(tidy)
    made = run_chain(chain(tidy, cuts(tidy)), feeds)
    for name, value in run(tidy, feeds).items():
        close(made[name], value)


def test_no_cut_lies_where_a_sequence_is_handed_on() -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["t"]), helper.make_node("SplitToSequence", ["t"], ["parts"], axis=1),
        helper.make_node("ConcatFromSequence", ["parts"], ["u"], axis=1), helper.make_node("Softmax", ["u"], ["y"]),
    ]  # fmt: skip
    tidy = tidied(model_of(nodes, [info("x", [1, 8])], [info("y", [1, 8])]))
    assert [cut.tensor for cut in cuts(tidy)] == ["x", "t", "u", "y"]
    feeds = feeds_of(tidy)
    close(run_chain(chain(tidy, cuts(tidy)), feeds)["y"], run(tidy, feeds)["y"])


def test_refusals() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    model = model_of(nodes, [info("x", [2, 8])], [info("y", [2, 8])], [drawn("w", 8, 8)])
    with pytest.raises(SurgeryError, match="tidy the model first"):
        cuts(model)
    places = cuts(tidied(model))
    with pytest.raises(SurgeryError, match="behind its start"):
        piece(tidied(model), places[1], places[0])


def test_a_view_between_two_blocks_is_a_piece_of_its_own() -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"]), helper.make_node("Add", ["s", "x"], ["a"]),
        helper.make_node("Reshape", ["a", "flat"], ["f"]), helper.make_node("Softmax", ["f"], ["t"]),
        helper.make_node("Add", ["t", "f"], ["y"]),
    ]  # fmt: skip
    flat = stored("flat", [1, 6, 8], np.int64)
    tidy = tidied(model_of(nodes, [info("x", [1, 2, 3, 8])], [info("y", [1, 6, 8])], [flat]))
    assert [(cut.tensor, cut.shape) for cut in cuts(tidy)] == [
        ("x", (1, 2, 3, 8)), ("a", (1, 2, 3, 8)), ("f", (1, 6, 8)), ("y", (1, 6, 8)),
    ]  # fmt: skip
