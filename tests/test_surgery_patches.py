"""On active patches the region's own result, elsewhere its input; at borders every layer's own padding."""

from __future__ import annotations

from math import ceil

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from surgery_oracle import bared, close, drawn, feeds_of, info, model_of, network, run, stored

from latpred.errors import SurgeryError
from latpred.graph import read
from latpred.surgery.cuts import cuts
from latpred.surgery.patches import ACTIVE_PATCHES, can_patch, computed_on, counts, origins
from latpred.surgery.pieces import chain
from latpred.surgery.tidy import tidied

# kernel, dilation, depthwise, what follows
LAYER = st.tuples(st.sampled_from([(1, 1), (3, 3), (1, 5), (5, 3)]), st.integers(1, 2), st.booleans(),
                  st.sampled_from(["Relu", "norm", "Sigmoid", "add x", "shift", ""]))  # fmt: skip


def region(layers: list[tuple[tuple[int, int], int, bool, str]], height: int, width: int) -> onnx.ModelProto:
    nodes, weights, name = [], [], "x"
    for i, ((down, across), dilation, depthwise, behind) in enumerate(layers):
        pads = [dilation * (down - 1) // 2, dilation * (across - 1) // 2] * 2
        weights += [drawn(f"w{i}", 4, 1 if depthwise else 4, down, across, seed=i), drawn(f"b{i}", 4, seed=i)]
        nodes.append(helper.make_node("Conv", [name, f"w{i}", f"b{i}"], [f"c{i}"], f"conv{i}", pads=pads,
                                      dilations=[dilation] * 2, group=4 if depthwise else 1))  # fmt: skip
        name = f"t{i}"
        if behind == "norm":
            weights += [drawn(f"{p}{i}", 4, seed=i) for p in ("scale", "shift", "mean")]
            weights.append(stored(f"var{i}", np.full(4, 0.7)))
            statistics = [f"{p}{i}" for p in ("scale", "shift", "mean", "var")]
            nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *statistics], [name], f"norm{i}"))
        elif behind == "add x":
            nodes.append(helper.make_node("Add", [f"c{i}", "x"], [name], f"add{i}"))
        elif behind == "shift":
            weights.append(drawn(f"s{i}", 4, 1, 1, seed=i))
            nodes.append(helper.make_node("Add", [f"s{i}", f"c{i}"], [name], f"shift{i}"))
        elif behind:
            nodes.append(helper.make_node(behind, [f"c{i}"], [name], f"act{i}"))
        else:
            name = f"c{i}"
    ends = [info("x", [1, 4, height, width])], [info(name, [1, 4, height, width])]
    return tidied(model_of(nodes, *ends, weights))


def expected(dense: np.ndarray, x: np.ndarray, size: int, active: list[int]) -> np.ndarray:
    """Written out from the definition: patches of a grid, the last row and column moved inwards."""
    height, width = x.shape[2:]
    across = ceil(width / size)
    result = x.copy()
    for index in active:
        top, left = min(index // across * size, height - size), min(index % across * size, width - size)
        result[..., top : top + size, left : left + size] = dense[..., top : top + size, left : left + size]
    return result


@settings(max_examples=40, deadline=None)
@given(data=st.data(), layers=st.lists(LAYER, min_size=1, max_size=4), height=st.integers(3, 11),
       width=st.integers(3, 11))  # fmt: skip
def test_active_patches_equal_the_dense_region_and_the_rest_is_untouched(data, layers, height: int, width: int) -> None:
    piece = region(layers, height, width)
    size = data.draw(st.integers(1, min(height, width)))
    total = ceil(height / size) * ceil(width / size)
    active = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=total, unique=True))
    feeds = feeds_of(piece)
    dense = run(piece, feeds)
    (output,) = dense
    made = run(computed_on(piece, size, len(active)), feeds | {ACTIVE_PATCHES: np.array(active)})[output]
    close(made, expected(dense[output], feeds["x"], size, active))


def test_every_patch_at_once_is_the_dense_region() -> None:
    piece = region([((3, 3), 1, False, "Relu"), ((3, 3), 1, False, "add x")], 9, 7)
    feeds = feeds_of(piece)
    (output,) = run(piece, feeds)
    every = np.arange(9)
    made = run(computed_on(piece, 3, 9), feeds | {ACTIVE_PATCHES: every})[output]
    close(made, run(piece, feeds)[output])


def test_a_patch_named_twice_does_no_harm() -> None:
    piece = region([((3, 3), 1, False, "Relu")], 8, 8)
    feeds = feeds_of(piece)
    (output,) = run(piece, feeds)
    twice = run(computed_on(piece, 4, 2), feeds | {ACTIVE_PATCHES: np.array([2, 2])})[output]
    once = run(computed_on(piece, 4, 1), feeds | {ACTIVE_PATCHES: np.array([2])})[output]
    close(twice, once)


def test_work_goes_with_the_patches_and_their_halo() -> None:
    piece = region([((1, 1), 1, False, "Relu"), ((3, 3), 1, False, "")], 12, 12)
    shapes = {op.op_type + str(i): read(computed_on(piece, 4, 3)).tensors[op.outputs[0]].shape
              for i, op in enumerate(o for o in read(computed_on(piece, 4, 3)).ops if o.op_type == "Conv")}  # fmt: skip
    assert shapes == {"Conv0": (3, 4, 6, 6), "Conv1": (3, 4, 4, 4)}


def test_nothing_is_masked_where_no_convolution_pads() -> None:
    piece = region([((1, 1), 1, False, "Relu"), ((1, 1), 1, False, "add x")], 8, 8)
    assert "Mul" not in {node.op_type for node in computed_on(piece, 4, 2).graph.node}


def test_missing_weights_change_nothing_in_the_graph() -> None:
    piece = region([((3, 3), 1, False, "norm"), ((3, 3), 1, False, "add x")], 8, 8)
    full, empty = computed_on(piece, 4, 2), computed_on(bared(piece), 4, 2)
    assert [node.SerializeToString() for node in full.graph.node] == [n.SerializeToString() for n in empty.graph.node]


def test_residual_blocks_of_a_real_network() -> None:
    tidy = tidied(network("mobilenet_v2"))
    makers = {output: node.op_type for node in tidy.graph.node for output in node.output}
    pieces = [part for part in chain(tidy, cuts(tidy)) if can_patch(part) is None]
    blocks = [part for part in pieces if makers[part.graph.output[0].name] == "Add"]
    assert len(blocks) == 10
    block = blocks[0]
    feeds = feeds_of(block)
    x, (output,) = next(iter(feeds.values())), run(block, feeds)
    active = [0, 6, 12, 13, 48]
    made = run(computed_on(block, 8, 5), feeds | {ACTIVE_PATCHES: np.array(active)})[output]
    close(made, expected(run(block, feeds)[output], x, 8, active))


def test_counts() -> None:
    # 14 / 4 -> 4 a side, 16 in all; a third of them: 5.33 -> 6
    assert counts(14, 14, 4, 1 / 3) == 6
    assert counts(14, 14, 4, 0) == 0 and counts(14, 14, 4, 1) == 16
    assert counts(10, 10, 1, 0.29) == 29  # not 30 by rounding
    assert origins(5, 4, 4).tolist() == [[0, 0], [1, 0]]


def conv(kernel: int, pads: list[int], **more: object) -> list[onnx.NodeProto]:
    return [helper.make_node("Conv", ["x", f"w{kernel}"], ["y"], "c", pads=pads, **more)]


REFUSED = {
    "pads one side more": conv(3, [0, 0, 2, 2]),
    "even kernel": [helper.make_node("Conv", ["x", "w2"], ["y"], "c", pads=[1, 1, 0, 0])],
    "neither a convolution": [helper.make_node("Conv", ["x", "w3"], ["a"], "c", pads=[1, 1, 1, 1]),
                              helper.make_node("Softmax", ["a"], ["y"], "s")],
    "changes the map's size": [helper.make_node("GlobalAveragePool", ["x"], ["p"], "p"),
                               helper.make_node("Conv", ["p", "w1"], ["q"], "c"),
                               helper.make_node("Mul", ["x", "q"], ["y"], "m")],
    "differs from position": [helper.make_node("Conv", ["x", "w1"], ["a"], "c"),
                              helper.make_node("Add", ["a", "places"], ["y"], "a")],
    "no convolution": [helper.make_node("Relu", ["x"], ["y"], "r")],
    "other values": [helper.make_node("Cast", ["x"], ["h"], "c", to=onnx.TensorProto.FLOAT16),
                     helper.make_node("Conv", ["h", "half"], ["i"], "d", pads=[1] * 4),
                     helper.make_node("Cast", ["i"], ["y"], "e", to=onnx.TensorProto.FLOAT)],
    "what it sees": [helper.make_node("Conv", ["x", "w1"], ["a"], "c"),
                     helper.make_node("BatchNormalization", ["a", *["four"] * 4], ["y", "", ""], "n",
                                      training_mode=1)],
}  # fmt: skip


@pytest.mark.parametrize("reason", sorted(REFUSED))
def test_refusals(reason: str) -> None:
    weights = [drawn(f"w{k}", 4, 4, k, k) for k in (1, 2, 3)] + [drawn("places", 8, 8)]
    weights += [stored("half", np.ones((4, 4, 3, 3)), np.float16), stored("four", np.ones(4))]
    ends = [info("x", [1, 4, 8, 8])], [info("y", [1, 4, 8, 8])]
    piece = tidied(model_of(REFUSED[reason], *ends, weights))
    assert reason in (can_patch(piece) or "")
    with pytest.raises(SurgeryError, match=reason):
        computed_on(piece, 4, 1)


def test_a_tensor_of_the_name_that_patches_have_is_refused() -> None:
    nodes = [helper.make_node("Conv", [ACTIVE_PATCHES, "w"], ["y"], "c")]
    ends = [info(ACTIVE_PATCHES, [1, 4, 8, 8])], [info("y", [1, 4, 8, 8])]
    assert "already" in (can_patch(tidied(model_of(nodes, *ends, [drawn("w", 4, 4, 1, 1)]))) or "")


def test_a_stride_on_a_single_position_is_refused() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "c", pads=[1] * 4, strides=[2, 2])]
    ends = [info("x", [1, 4, 1, 1])], [info("y", [1, 4, 1, 1])]
    assert "leaves positions out" in (can_patch(tidied(model_of(nodes, *ends, [drawn("w", 4, 4, 3, 3)]))) or "")


def test_wrong_arguments() -> None:
    piece = region([((3, 3), 1, False, "")], 8, 8)
    for size, count, match in ((0, 1, "smaller granularity"), (9, 1, "smaller granularity"), (4, 5, "1 to 4 patches"),
                               (4, 0, "1 to 4 patches")):  # fmt: skip
        with pytest.raises(SurgeryError, match=match):
            computed_on(piece, size, count)
    with pytest.raises(SurgeryError, match="between 0 and 1"):
        counts(8, 8, 4, 1.2)
    batch = tidied(model_of(conv(1, [0] * 4), [info("x", [2, 4, 8, 8])], [info("y", [2, 4, 8, 8])],
                            [drawn("w1", 4, 4, 1, 1)]))  # fmt: skip
    assert "not one map" in (can_patch(batch) or "")
