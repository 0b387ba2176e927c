"""Side networks steer: gates by what they score, heads by how sure they are; replaced while others run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from counting_predictor import CountingPredictor, info
from hooked_networks import blocks, carried_out, spatial_blocks
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from surgery_oracle import close, feeds_of, run

from latpred.decide.declared import Declared
from latpred.decide.points import Grid
from latpred.errors import HookError, InputError
from latpred.hooks import Hooked, attach
from latpred.hooks.masks import active, mask_head, pooled_over_patches
from latpred.surgery.cuts import cuts
from latpred.surgery.patches import computed_on, origins
from latpred.surgery.pieces import piece
from latpred.surgery.tidy import tidied

SKIPS = Grid(levels=("skip",))


def hooked_on(model: Any, **arguments: Any) -> Hooked:
    return attach(model, CountingPredictor(), **arguments)  # type: ignore[arg-type]


def test_a_gate_skips_where_its_scores_say_so() -> None:
    model = blocks()
    hooked = hooked_on(model, points=["layer.0", "layer.1"], grid=SKIPS)
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((8, 2)).astype(np.float32)
    hooked.replace("layer.0", "gate", (matrix, np.zeros(2)))
    seen = set()
    for seed in range(12):
        feeds = feeds_of(model, seed)
        averages = carried_out(model, [("t0", "t0", "keep")], feeds)["t0"].mean(axis=(2, 3))
        keep, skip = (averages @ matrix)[0]
        expected = "skip" if skip > keep else "keep"
        seen.add(expected)
        answer = hooked.run(feeds)
        assert answer.decisions == {"layer.0": expected, "layer.1": "keep"}
        ends = [("t0", "t1", expected), ("t1", "t2", "keep")]
        close(answer.outputs["y"], carried_out(model, ends, feeds)["y"])
    assert seen == {"keep", "skip"}


def test_until_it_is_trained_a_gate_says_what_the_table_says() -> None:
    model = blocks()
    hooked = hooked_on(model, points=["layer.0"], grid=SKIPS, utilities={"layer.0": {"keep": 0.25, "skip": 0.5}})
    assert hooked.run(feeds_of(model)).decisions == {"layer.0": "skip"}


def gate_graph(cut_shape: tuple[int, ...], threshold: float) -> onnx.ModelProto:
    """Scores (threshold, mean of everything)."""
    nodes = [
        helper.make_node("ReduceMean", ["map"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["column"]),
        helper.make_node("Concat", ["bar", "column"], ["out"], axis=1),
    ]
    stored = [
        numpy_helper.from_array(np.array([1, 1]), "shape"),
        numpy_helper.from_array(np.full((1, 1), threshold, np.float32), "bar"),
    ]
    graph = helper.make_graph(nodes, "own", [info("map", cut_shape)], [info("out", (1, 2))], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("threshold", "expected"), [(-100.0, "skip"), (100.0, "keep")])
def test_a_gate_of_the_callers_own(threshold: float, expected: str) -> None:
    model = blocks()
    own = gate_graph((1, 8, 16, 16), threshold)
    hooked = hooked_on(model, points=[Declared("mine", "t0", "t1", ("skip",), own)])
    assert hooked.run(feeds_of(model)).decisions == {"mine": expected}
    hooked.replace("mine", "gate", gate_graph((1, 8, 16, 16), -threshold))
    assert hooked.run(feeds_of(model)).decisions == {"mine": "keep" if expected == "skip" else "skip"}
    with pytest.raises(InputError, match="reads"):
        hooked.replace("mine", "gate", gate_graph((1, 8, 4, 4), 0.0))


def head_of(sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    return np.eye(8, 10, dtype=np.float32) * sharpness, np.zeros(10, np.float32)


def test_a_sure_head_answers_in_the_networks_place_and_an_unsure_one_does_not() -> None:
    model = blocks()
    name = "exit after layer.0"
    hooked = hooked_on(model, points=[name, "layer.2"], grid=Grid(levels=("exit", "skip")))
    feeds = feeds_of(model)
    assert hooked.run(feeds).decisions[name] == "keep"  # untrained
    assert hooked.run(feeds, deadline_s=1e-7).decisions[name] == "keep"
    hooked.replace(name, "head", head_of(1000.0))
    answer = hooked.run(feeds)
    assert answer.decisions == {name: "exit"}
    averages = carried_out(model, [("t1", "t1", "keep")], feeds)["t1"].mean(axis=(2, 3))
    close(answer.outputs["y"], averages @ head_of(1000.0)[0])
    hooked.replace(name, "head", head_of(0.0))  # a tenth for each class
    assert hooked.run(feeds).decisions == {name: "keep", "layer.2": "keep"}
    assert hooked.run(feeds, deadline_s=1e-7).decisions == {name: "exit"}  # nothing else could be in time


def test_how_sure_is_enough_depends_on_what_is_at_stake() -> None:
    model = blocks()
    name = "exit after layer.0"
    utilities = {name: {"keep": 0.0, "exit": -0.4}}
    sharpness = 20.0
    feeds = feeds_of(model)
    averages = carried_out(model, [("t1", "t1", "keep")], feeds)["t1"].mean(axis=(2, 3)).astype(np.float64)
    scores = np.concatenate([averages, np.zeros((1, 2))], axis=1) * sharpness
    confidence = float((np.exp(scores) / np.exp(scores).sum()).max())
    loss = (1 - confidence) * 0.4
    for tolerance, expected in ((loss * 1.01, "exit"), (loss * 0.99, "keep")):
        hooked = hooked_on(
            model, points=[name], utilities=utilities, tolerance=tolerance, heads={name: head_of(sharpness)}
        )
        assert hooked.run(feeds).decisions == {name: expected}


def test_an_exit_of_a_network_with_a_softmax_answers_with_probabilities() -> None:
    model = spatial_blocks()
    name = "exit after layer.0"
    hooked = hooked_on(model, points=[name], heads={name: (np.eye(8, 4, dtype=np.float32), np.zeros(4))})
    scores = hooked.run(feeds_of(model), forced={name: "exit"}).outputs["y"]
    assert scores.sum() == pytest.approx(1.0, abs=1e-6)
    assert scores.min() > 0


@pytest.mark.parametrize(("ending", "answer"), [
    ("LogSoftmax", lambda scores: scores - np.log(np.exp(scores).sum())),
    ("Sigmoid", lambda scores: 1 / (1 + np.exp(-scores))),
    ("Softmax", lambda scores: np.exp(scores) / np.exp(scores).sum()),
    ("Relu", lambda scores: scores),  # nothing that is known to be an answer's way
])  # fmt: skip
def test_an_exit_answers_as_the_network_would(ending: str, answer: Any, tmp_path: Path) -> None:
    """A head of zeros with a bias: its scores are the bias."""
    model, name, scores = blocks(), "exit after layer.0", np.linspace(-1.0, 2.0, 10)
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(helper.make_node(ending, ["scores"], ["y"], f"/{ending}"))
    model.graph.value_info.append(info("scores", (1, 10)))
    hooked = hooked_on(model, points=[name], heads={name: (np.zeros((8, 10)), scores)})
    close(hooked.run(feeds_of(model), forced={name: "exit"}).outputs["y"], answer(scores)[None])
    hooked = hooked_on(model, points=[name], heads={name: (np.zeros((8, 10)), scores)}, tolerance=1e9)
    hooked.export(tmp_path / "gated.onnx", model)
    session = onnxruntime.InferenceSession(tmp_path / "gated.onnx", providers=["CPUExecutionProvider"])
    close(session.run(["y"], feeds_of(model))[0], hooked.run(feeds_of(model)).outputs["y"])
    assert hooked.run(feeds_of(model)).decisions == {name: "exit"}


def test_replacing_while_runs_are_under_way_is_seen_whole() -> None:
    model = blocks()
    hooked = hooked_on(model, points=["layer.0", "layer.1"], grid=SKIPS)
    always = {option: (np.zeros((8, 2)), np.eye(2)[number]) for number, option in enumerate(("keep", "skip"))}
    stop = threading.Event()
    seen: list[tuple[str, np.ndarray]] = []
    feeds = feeds_of(model)

    def work() -> None:
        while not stop.is_set():
            answer = hooked.run(feeds)
            seen.append((answer.decisions["layer.0"], answer.outputs["y"]))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        hooked.replace("layer.0", "gate", always[("keep", "skip")[turn % 2]])
    stop.set()
    for thread in threads:
        thread.join()
    expected = {option: carried_out(model, [("t0", "t1", option)], feeds)["y"] for option in ("keep", "skip")}
    assert {option for option, _ in seen} == {"keep", "skip"}
    for option, output in seen:
        close(output, expected[option])


def test_only_side_networks_that_are_there_can_be_replaced() -> None:
    hooked = hooked_on(blocks(), points=["layer.0"], grid=SKIPS)
    with pytest.raises(HookError, match="can be replaced"):
        hooked.replace("layer.0", "head", head_of(1.0))
    with pytest.raises(InputError, match=r"\(8, 2\)"):
        hooked.replace("layer.0", "gate", head_of(1.0))


def patched(model: onnx.ModelProto, start: str, end: str, chosen: np.ndarray, feeds: Any, last: Any = None) -> Any:
    """The network with one region on the patches given."""
    tidy = tidied(model)
    places = {cut.tensor: cut for cut in cuts(tidy)}
    first, *_, behind = cuts(tidy)
    known = run(piece(tidy, first, places[start]), feeds)
    graph = computed_on(piece(tidy, places[start], places[end]), 4, len(chosen))
    known |= run(graph, known | {"active_patches": chosen})
    if last is not None:
        mask = np.zeros(known[end].shape[2:], bool)
        for row, column in origins(*known[end].shape[2:], 4)[chosen]:
            mask[row : row + 4, column : column + 4] = True
        known[end] = np.where(mask, known[end], last)
    return known | run(piece(tidy, places[end], behind), known)


@pytest.mark.parametrize("outside", ["input", "last"])
def test_patches_are_those_where_the_map_says_that_it_matters(outside: str) -> None:
    model = spatial_blocks()
    hooked = hooked_on(model, points=["layer.1"], grid=Grid(levels=("patches",), rates=(0.25,)), outside=outside)
    before = None
    for seed in range(3):
        feeds = feeds_of(model, seed)
        saliency = np.zeros((64, 64))
        chosen = np.sort(np.random.default_rng(seed).permutation(16)[:4])
        for row, column in origins(16, 16, 4)[chosen]:
            saliency[4 * row + 3, 4 * column + 5] = 1.0
        answer = hooked.run(feeds, forced={"layer.1": "patches4 0.25"}, saliency=saliency)
        expected = patched(model, "t1", "t2", chosen, feeds, before if outside == "last" else None)
        close(answer.outputs["y"], expected["y"])
        before = expected["t2"]


def test_a_mask_head_says_where_it_matters_until_a_map_comes() -> None:
    model = spatial_blocks()
    hooked = hooked_on(model, points=["layer.1"], grid=Grid(levels=("patches",), rates=(0.25,)))
    feeds = feeds_of(model, 2)
    averages = carried_out(model, [("t1", "t1", "keep")], feeds)["t1"].mean(axis=1)[0]
    for turn, sign in enumerate((1.0, -1.0)):
        if turn:
            hooked.replace("layer.1", "mask4", (np.full((8, 1), -1.0), np.zeros(1)))
        scores = sign * averages.reshape(4, 4, 4, 4).mean(axis=(1, 3)).reshape(-1)
        chosen = np.sort(np.argsort(-scores)[:4])
        answer = hooked.run(feeds, forced={"layer.1": "patches4 0.25"})
        close(answer.outputs["y"], patched(model, "t1", "t2", chosen, feeds)["y"])


@given(
    size=st.tuples(st.integers(4, 20), st.integers(4, 20)),
    granularity=st.integers(1, 4),
    pixels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
)
def test_a_map_is_averaged_over_the_pixels_that_patches_touch(
    size: tuple[int, int], granularity: int, pixels: tuple[int, int], seed: int
) -> None:
    saliency = np.random.default_rng(seed).uniform(size=pixels)
    got = pooled_over_patches(saliency[None, None], *size, granularity)
    for value, origin in zip(got, origins(*size, granularity), strict=True):
        windows = []
        for start, length, count in zip(origin, size, pixels, strict=True):
            touched = [
                pixel for pixel in range(count)
                if pixel * length < (start + granularity) * count and (pixel + 1) * length > start * count
            ]  # fmt: skip
            windows.append(slice(touched[0], touched[-1] + 1))
        assert value == pytest.approx(saliency[windows[0], windows[1]].mean())


def test_a_mask_head_averages_what_it_maps() -> None:
    tidy = tidied(spatial_blocks(side=18))
    cut = next(cut for cut in cuts(tidy) if cut.tensor == "t1")
    rng = np.random.default_rng(0)
    matrix, bias = rng.standard_normal((8, 1)).astype(np.float32), np.array([0.5], np.float32)
    maps = rng.standard_normal(cut.shape).astype(np.float32)
    scores = run(mask_head(cut, 4, (matrix, bias)), {"t1": maps})["mask_scores"][0]
    mapped = (maps[0] * matrix[:, :, None]).sum(axis=0) + 0.5
    expected = [mapped[row : row + 4, column : column + 4].mean() for row, column in origins(18, 18, 4)]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert active(scores, 99).tolist() == list(range(25))


def test_a_map_of_another_kind_is_refused() -> None:
    with pytest.raises(HookError, match="saliency map"):
        pooled_over_patches(np.zeros((3, 8, 8)), 4, 4, 2)
