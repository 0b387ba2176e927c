"""Narrowed pieces compute what a network built narrow computes, and refuse what they cannot narrow."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from surgery_oracle import bared, close, drawn, feeds_of, info, model_of, network, run, stored

from latpred.errors import SurgeryError
from latpred.surgery.channels import can_narrow, groups
from latpred.surgery.cuts import cuts
from latpred.surgery.pieces import chain
from latpred.surgery.slicing import kept_channels, kept_counts, sliced
from latpred.surgery.tidy import tidied

Weights = dict[str, np.ndarray]


def weights_of(seed: int, **shapes: tuple[int, ...]) -> Weights:
    rng = np.random.default_rng(seed)
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: np.abs(value) + 0.5 if name.startswith("var") else value for name, value in drawn.items()}


def bottleneck(w: Weights) -> onnx.ModelProto:
    """Expand, normalise, depthwise, squeeze and excite, project, add: a mobile block."""
    inner, squeezed = len(w["expand"]), len(w["down"])
    nodes = [
        helper.make_node("Conv", ["x", "expand"], ["a"], "expand"),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"], "norm"),
        helper.make_node("HardSwish", ["b"], ["c"], "act"),
        helper.make_node("Conv", ["c", "depth", "depthb"], ["d"], "depthwise", group=inner, pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["d"], ["e1"], "sigmoid"),
        helper.make_node("Mul", ["d", "e1"], ["e"], "silu"),
        helper.make_node("GlobalAveragePool", ["e"], ["p"], "pool"),
        helper.make_node("Conv", ["p", "down", "downb"], ["q"], "down"),
        helper.make_node("Relu", ["q"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "up", "upb"], ["s"], "up"),
        helper.make_node("HardSigmoid", ["s"], ["t"], "gate"),
        helper.make_node("Mul", ["t", "e"], ["u"], "excite"),
        helper.make_node("Conv", ["u", "project"], ["v"], "project"),
        helper.make_node("Add", ["v", "x"], ["y"], "add"),
    ]
    assert squeezed == len(w["downb"])
    ends = [info("x", [1, 6, 5, 5])], [info("y", [1, 6, 5, 5])]
    return tidied(model_of(nodes, *ends, [numpy_helper.from_array(v, n) for n, v in w.items()]))


def test_a_mobile_block_equals_one_built_narrow() -> None:
    w = weights_of(0, expand=(16, 6, 1, 1), scale=(16,), shift=(16,), mean=(16,), var=(16,), depth=(16, 1, 3, 3),
                   depthb=(16,), down=(8, 16, 1, 1), downb=(8,), up=(16, 8, 1, 1), upb=(16,),
                   project=(6, 16, 1, 1))  # fmt: skip
    piece = bottleneck(w)
    found = {group.name: group.channels for group in groups(piece)}
    assert found == {"expand": 16, "down": 8}
    wide, low = [15, 3, 8, 0, 5, 9, 11, 2], [7, 1, 4, 5]
    order = {"expand": [*wide, *sorted(set(range(16)) - set(wide))], "down": [*low, 0, 2, 3, 6]}
    keep, inner = sorted(wide), sorted(low)
    narrow = {name: value[keep] if len(value) == 16 else value for name, value in w.items()}
    narrow |= {"down": w["down"][inner][:, keep], "downb": w["downb"][inner], "up": w["up"][keep][:, inner],
               "project": w["project"][:, keep]}  # fmt: skip
    small = sliced(piece, 0.5, multiple=4, order=order)
    assert np.prod([t.dims[0] for t in small.graph.initializer if t.name.startswith("expand")]) == 8
    feeds = feeds_of(piece)
    close(run(small, feeds)["y"], run(bottleneck(narrow), feeds)["y"])


def mlp(w: Weights, with_reshapes: bool) -> onnx.ModelProto:
    hidden = w["up"].shape[1]
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a0"], "up"), helper.make_node("Add", ["upb", "a0"], ["a"], "bias"),
        helper.make_node("Div", ["a", "root"], ["b1"]), helper.make_node("Erf", ["b1"], ["b2"]),
        helper.make_node("Add", ["b2", "one"], ["b3"]), helper.make_node("Mul", ["a", "b3"], ["h"], "gelu"),
        helper.make_node("MatMul", ["h", "down"], ["y"], "down"),
    ]  # fmt: skip
    if with_reshapes:
        nodes[-1:] = [
            helper.make_node("Reshape", ["h", "flat"], ["hf"], "flatten"),
            helper.make_node("Gemm", ["hf", "down"], ["yf"], "down"),
            helper.make_node("Reshape", ["yf", "full"], ["y"], "unflatten"),
        ]
    more = [stored("root", 1.414), stored("one", 1), stored("flat", [5, hidden], np.int64),
            stored("full", [1, 5, 6], np.int64)]  # fmt: skip
    tensors = [*(numpy_helper.from_array(v, n) for n, v in w.items()), *more]
    return tidied(model_of(nodes, [info("x", [1, 5, 6])], [info("y", [1, 5, 6])], tensors))


@pytest.mark.parametrize("with_reshapes", [False, True])
def test_an_mlp_equals_one_built_narrow_and_keeps_the_strongest(with_reshapes: bool) -> None:
    w = weights_of(1, up=(6, 24), upb=(24,), down=(24, 6))
    piece = mlp(w, with_reshapes)
    assert [(group.name, group.channels) for group in groups(piece)] == [("up", 24)]
    keep = np.sort(np.argsort(-np.abs(w["up"]).sum(axis=0))[:16])
    narrow = mlp({"up": w["up"][:, keep], "upb": w["upb"][keep], "down": w["down"][keep]}, with_reshapes)
    feeds = feeds_of(piece)
    close(run(sliced(piece, 0.4), feeds)["y"], run(narrow, feeds)["y"])


@pytest.mark.parametrize("sizes", [False, True])
def test_a_gated_unit_keeps_pairs(sizes: bool) -> None:
    w = weights_of(2, up=(6, 32), upb=(32,), down=(16, 6))

    def unit(w: Weights) -> onnx.ModelProto:
        half = w["up"].shape[1] // 2
        nodes = [
            helper.make_node("MatMul", ["x", "up"], ["a0"], "up"),
            helper.make_node("Add", ["a0", "upb"], ["a"], "bias"),
            helper.make_node("Split", ["a", "halves"] if sizes else ["a"], ["g", "v"], "split", axis=-1),
            helper.make_node("Sigmoid", ["g"], ["s"], "sigmoid"), helper.make_node("Mul", ["s", "v"], ["h"], "gate"),
            helper.make_node("MatMul", ["h", "down"], ["y"], "down"),
        ]  # fmt: skip
        tensors = [*(numpy_helper.from_array(v, n) for n, v in w.items()), stored("halves", [half, half], np.int64)]
        return tidied(model_of(nodes, [info("x", [3, 6])], [info("y", [3, 6])], tensors))

    piece = unit(w)
    (group,) = groups(piece)
    assert group.channels == 16
    strength = np.abs(w["up"]).sum(axis=0).reshape(2, 16).sum(axis=0)
    keep = np.sort(np.argsort(-strength)[:8])
    both = [*keep, *(keep + 16)]
    narrow = unit({"up": w["up"][:, both], "upb": w["upb"][both], "down": w["down"][keep]})
    feeds = feeds_of(piece)
    close(run(sliced(piece, 0.5), feeds)["y"], run(narrow, feeds)["y"])


@settings(max_examples=20, deadline=None)
@given(
    widths=st.lists(st.integers(2, 20), min_size=1, max_size=3),
    ratio=st.floats(0.05, 1.0),
    multiple=st.sampled_from([1, 4, 8]),
    seed=st.integers(0, 99),
)
def test_chains_of_convolutions_equal_chains_built_narrow(
    widths: list[int], ratio: float, multiple: int, seed: int
) -> None:
    sizes = [3, *widths, 3]
    names = [f"w{i}" for i in range(len(sizes) - 1)]
    w = weights_of(seed, **{n: (b, a, 3, 3) for n, a, b in zip(names, sizes, sizes[1:], strict=False)})

    def build(w: Weights) -> onnx.ModelProto:
        nodes = []
        for i, name in enumerate(names):
            nodes += [
                helper.make_node("Conv", [f"t{i}", name], [f"c{i}"], name, pads=[1, 1, 1, 1]),
                helper.make_node("Relu", [f"c{i}"], [f"t{i + 1}"]),
            ]
        ends = [info("t0", [1, 3, 4, 4])], [info(f"t{len(names)}", [1, 3, 4, 4])]
        return tidied(model_of(nodes, *ends, [numpy_helper.from_array(v, n) for n, v in w.items()]))

    piece = build(w)
    kept = [np.sort(np.argsort(-np.abs(w[n]).sum(axis=(1, 2, 3)), kind="stable")[: kept_channels(len(w[n]), ratio,
            multiple)]) for n in names[:-1]]  # fmt: skip
    ends = [np.arange(3), *kept, np.arange(3)]
    narrow = {n: w[n][ends[i + 1]][:, ends[i]] for i, n in enumerate(names)}
    feeds = feeds_of(piece, seed)
    (output,) = run(piece, feeds)
    close(run(sliced(piece, ratio, multiple), feeds)[output], run(build(narrow), feeds)[output])


def test_only_weights_that_changed_have_new_names() -> None:
    piece = mlp(weights_of(3, up=(6, 24), upb=(24,), down=(24, 6)), True)
    held = {tensor.name: tensor for tensor in piece.graph.initializer}
    names = []
    for ratio in (0.3, 0.6):
        small = {tensor.name: tensor for tensor in sliced(piece, ratio).graph.initializer}
        assert all(small[name] == held[name] for name in set(small) & set(held))
        names.append(set(small) - set(held))
    assert len(names[0]) == 4 and not names[0] & names[1]  # two matrices, a bias, a shape


def test_everything_kept_is_the_piece_itself() -> None:
    piece = mlp(weights_of(3, up=(6, 24), upb=(24,), down=(24, 6)), False)
    feeds = feeds_of(piece)
    close(run(sliced(piece, 1.0), feeds)["y"], run(piece, feeds)["y"])


def test_missing_weights_change_dims_only() -> None:
    piece = mlp(weights_of(4, up=(6, 24), upb=(24,), down=(24, 6)), True)
    full, empty = sliced(piece, 0.3), sliced(bared(piece), 0.3)
    assert [(t.name, list(t.dims)) for t in full.graph.initializer] == [
        (t.name, list(t.dims)) for t in empty.graph.initializer
    ]
    onnx.checker.check_model(full)


def test_a_weight_that_others_read_too_is_not_changed() -> None:
    w = weights_of(5, up=(6, 16), down=(16, 6))
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], "up"), helper.make_node("MatMul", ["a", "down"], ["b"], "down"),
        helper.make_node("Add", ["x", "b"], ["c"], "add"), helper.make_node("MatMul", ["c", "up"], ["y"], "again"),
    ]  # fmt: skip
    tensors = [numpy_helper.from_array(v, n) for n, v in w.items()]
    piece = tidied(model_of(nodes, [info("x", [3, 6])], [info("y", [3, 16])], tensors))
    keep = np.sort(np.argsort(-np.abs(w["up"]).sum(axis=0))[:8])
    x = feeds_of(piece)["x"]
    expected = (x + x @ w["up"][:, keep] @ w["down"][keep]) @ w["up"]
    close(run(sliced(piece, 0.5), {"x": x})["y"], expected)


REFUSED = {
    "seen outside": [helper.make_node("MatMul", ["x", "w"], ["y"], "m")],
    "multiplies two activations": [
        helper.make_node("MatMul", ["x", "w"], ["a"], "m"), helper.make_node("MatMul", ["a", "x"], ["y"], "n"),
    ],
    "mixes channels": [
        helper.make_node("MatMul", ["x", "w"], ["a"], "m"), helper.make_node("Softmax", ["a"], ["b"], "s"),
        helper.make_node("MatMul", ["b", "w"], ["y"], "n"),
    ],
    "no convolution": [helper.make_node("Relu", ["x"], ["y"], "r")],
}  # fmt: skip


@pytest.mark.parametrize("reason", sorted(REFUSED))
def test_refusals(reason: str) -> None:
    piece = tidied(model_of(REFUSED[reason], [info("x", [6, 6])], [info("y", [6, 6])], [drawn("w", 6, 6)]))
    assert reason in (can_narrow(piece) or "")
    with pytest.raises(SurgeryError, match=reason):
        sliced(piece, 0.5)


def conv(x: str, y: str, weight: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, weight], [y], y)


STRANGE = {
    "weights": [
        conv("x", "a", "w"), helper.make_node("GlobalAveragePool", ["a"], ["p"], "p"), conv("x", "q", "p"),
        helper.make_node("Mul", ["q", "x"], ["y"], "m"),
    ],
    "scale": [
        conv("x", "a", "w"), helper.make_node("GlobalAveragePool", ["a"], ["p"], "p"),
        helper.make_node("Reshape", ["p", "flat"], ["s"], "s"),
        helper.make_node("BatchNormalization", ["x", "s", "v", "v", "v"], ["n"], "n"), conv("n", "y", "w"),
    ],
    "bias": [
        helper.make_node("GlobalAveragePool", ["x"], ["p"], "p"), helper.make_node("Flatten", ["p"], ["f"], "f"),
        helper.make_node("Gemm", ["f", "m"], ["a"], "a"), helper.make_node("Gemm", ["f", "m", "a"], ["y"], "g"),
    ],
    "no axes": [
        conv("x", "a", "w"), helper.make_node("ReduceMean", ["a", "axes"], ["r"], "r", keepdims=0),
        helper.make_node("Mul", ["a", "r"], ["b"], "b"), conv("b", "y", "w"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(STRANGE))
def test_channels_that_are_read_as_something_else_stay(case: str) -> None:
    weights = [drawn("w", 16, 16, 1, 1), drawn("m", 16, 16), stored("v", np.ones(16)),
               stored("flat", [-1], np.int64), stored("axes", [], np.int64)]  # fmt: skip
    made = [1, 16] if case == "bias" else [1, 16, 5, 5]
    piece = tidied(model_of(STRANGE[case], [info("x", [1, 16, 5, 5])], [info("y", made)], weights, opset=18))
    assert can_narrow(piece) is not None


@pytest.mark.parametrize(("ways", "channels", "kept"), [(4, 16, 8), (2, 12, 6), (3, 4, 2)])
def test_each_group_of_a_convolution_keeps_as_many(ways: int, channels: int, kept: int) -> None:
    """Against one convolution of all channels with zeros between groups: the same function, narrowed by hand."""
    inner, outer = ways * channels, ways * channels * 2
    rng = np.random.default_rng(ways)
    w = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in {
        "up": (inner, 6, 1, 1), "grouped": (outer, channels, 3, 3), "groupedb": (outer,), "down": (6, outer, 1, 1),
    }.items()}  # fmt: skip

    def block(w: Weights, group: int) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Conv", ["x", "up"], ["a"], "up"), helper.make_node("Relu", ["a"], ["b"], "relu"),
            helper.make_node("Conv", ["b", "grouped", "groupedb"], ["c"], "grouped", pads=[1] * 4, group=group),
            helper.make_node("Sigmoid", ["c"], ["d"], "act"), helper.make_node("Conv", ["d", "down"], ["y"], "down"),
        ]  # fmt: skip
        tensors = [numpy_helper.from_array(v, n) for n, v in w.items()]
        return tidied(model_of(nodes, [info("x", [1, 6, 7, 7])], [info("y", [1, 6, 7, 7])], tensors))

    piece = block(w, ways)
    found = {group.name: group for group in groups(piece)}
    assert {name: (group.channels, group.ways) for name, group in found.items()} == {
        "up": (channels, ways), "grouped": (2 * channels, ways),
    }  # fmt: skip
    inside, outside = np.arange(kept), np.arange(channels, channels + 2 * kept)
    order = {"up": [*inside, *range(kept, channels)],
             "grouped": [*outside, *sorted(set(range(2 * channels)) - set(outside.tolist()))]}  # fmt: skip
    small = sliced(piece, 0.5, multiple=1, order=order)
    rows = np.concatenate([inside + way * channels for way in range(ways)])
    columns = np.concatenate([outside + way * 2 * channels for way in range(ways)])
    dense = np.zeros((outer, inner, 3, 3), np.float32)
    for way in range(ways):
        made, read = slice(way * 2 * channels, (way + 1) * 2 * channels), slice(way * channels, (way + 1) * channels)
        dense[made, read] = w["grouped"][made]
    narrow = {"up": w["up"][rows], "grouped": dense[columns][:, rows], "groupedb": w["groupedb"][columns],
              "down": w["down"][:, columns]}  # fmt: skip
    feeds = feeds_of(piece)
    close(run(small, feeds)["y"], run(block(narrow, 1), feeds)["y"])


@pytest.mark.parametrize(
    ("ways", "channels", "block", "kept"),
    [(1, 48, 16, 32), (1, 48, 0, 24), (4, 32, 16, 16), (32, 4, 16, 2), (4, 12, 16, 8), (2, 12, 0, 8)],
)
def test_channels_stay_in_whole_blocks(ways: int, channels: int, block: int, kept: int) -> None:
    wide = ways * channels
    weights = [drawn("v", wide, 8, 1, 1), drawn("g", wide, channels, 3, 3), drawn("w", 8, wide, 1, 1)]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], "up"),
        helper.make_node("Conv", ["a", "g"], ["b"], "grouped", pads=[1] * 4, group=ways),
        helper.make_node("Conv", ["b", "w"], ["y"], "down"),
    ]
    piece = tidied(model_of(nodes, [info("x", [1, 8, 6, 6])], [info("y", [1, 8, 6, 6])], weights))
    assert kept_counts(piece, [0.5], block=block) == [(kept, kept)]
    narrow = sliced(piece, 0.5, block=block)
    assert {tuple(tensor.dims)[:2] for tensor in narrow.graph.initializer} == {
        (ways * kept, 8), (ways * kept, kept), (8, ways * kept),
    }  # fmt: skip
    run(narrow, feeds_of(piece))


def test_products_have_no_blocks() -> None:
    piece = mlp(weights_of(1, up=(6, 48), upb=(48,), down=(48, 6)), False)
    assert kept_counts(piece, [0.5], block=16) == [(24,)]


def test_wrong_arguments() -> None:
    piece = mlp(weights_of(3, up=(6, 24), upb=(24,), down=(24, 6)), False)
    for arguments, match in (
        ({"keep_ratio": 0.0}, "share of channels"), ({"keep_ratio": 1.5}, "share of channels"),
        ({"keep_ratio": 0.5, "multiple": 0}, "multiples of at least 1"),
        ({"keep_ratio": 0.5, "order": {"other": [0]}}, "leave it out"),
        ({"keep_ratio": 0.5, "order": {"up": [0, 0]}}, "each of them once"),
    ):  # fmt: skip
        with pytest.raises(SurgeryError, match=match):
            sliced(piece, **arguments)


@pytest.mark.parametrize(("name", "least"), [("mobilenet_v2", 15), ("mobilenetv3_large", 12), ("gpt2_s64", 12),
                                             ("vit_test_b2r160", 4)])  # fmt: skip
def test_real_blocks_can_be_narrowed_and_run(name: str, least: int) -> None:
    tidy = tidied(network(name))
    places = cuts(tidy)
    makers = {output: node.op_type for node in tidy.graph.node for output in node.output}
    boundaries = [c for c in places if makers.get(c.tensor) in ("Add", "Conv")] if "mobile" in name else places
    pieces = chain(tidy, boundaries)
    narrowed = [part for part in pieces if can_narrow(part) is None]
    assert len(narrowed) >= least
    for part in narrowed[:: max(1, len(narrowed) // 4)]:
        small, feeds = sliced(part, 0.5), feeds_of(part)
        before, after = run(part, feeds), run(small, feeds)
        assert {n: v.shape for n, v in before.items()} == {n: v.shape for n, v in after.items()}
        assert small.ByteSize() < part.ByteSize()
