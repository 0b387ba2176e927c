"""A hooked model against ONNX Runtime's own sessions: everything kept, anything altered, in any thread."""

from __future__ import annotations

import hashlib
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from counting_predictor import CountingPredictor
from hooked_networks import blocks, carried_out, masked_encoder, spatial_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from surgery_oracle import NETWORKS, close, drawn, feeds_of, info, model_of, network, run

import latpred
from latpred.decide.declared import Declared
from latpred.decide.observation import Observation
from latpred.decide.plan import plan
from latpred.decide.points import Grid
from latpred.decide.steps import DECIDING, ENTERING, LEAVING
from latpred.errors import HookError, InputError, ModelError, SurgeryError
from latpred.hooks import Hooked, attach
from latpred.hooks.answer import Answer, Ask, Heard
from latpred.hooks.stream import Stream

REAL = ("mobilenet_v2", "mobilenetv3_large", "unet_c32r96", "vit_test_b2r160", "lstm_2x256bi")
LAYERS = ("layer.0", "layer.1", "layer.2")
ENDS = (("t0", "t1"), ("t1", "t2"), ("t2", "t3"))


def hooked_on(model: Any, **arguments: Any) -> Hooked:
    return attach(model, CountingPredictor(), **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def three_blocks() -> Hooked:
    return hooked_on(blocks(), points=["exit after layer.1", *LAYERS], samples=[feeds_of(blocks(), 1)])


@pytest.mark.parametrize("name", REAL)
def test_with_all_kept_a_real_network_computes_what_it_computed(name: str) -> None:
    model = network(name)
    with attach(model, latpred.load("xeon-silver-4210-x2")) as hooked:
        for seed in (0, 1):
            feeds = feeds_of(model, seed)
            plain = run(model, feeds)
            answer = hooked.run(feeds, keep=True)
            assert set(answer.outputs) == set(plain)
            for output, value in plain.items():
                close(answer.outputs[output], value)
            assert set(answer.decisions.values()) <= {"keep"}
            assert tuple(answer.decisions) == hooked.points


def test_what_is_answered_is_the_callers_own(three_blocks: Hooked) -> None:
    first = three_blocks.run(feeds_of(blocks(), 0), keep=True).outputs["y"]
    before = first.copy()
    three_blocks.run(feeds_of(blocks(), 1), keep=True)
    assert (first == before).all()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_choice_computes_what_its_pieces_do(three_blocks: Hooked, data: st.DataObject) -> None:
    forced = {
        name: data.draw(st.sampled_from([o for o in three_blocks.options[name] if o[:5] not in ("patch", "int8")]))
        for name in LAYERS
    }
    feeds = feeds_of(blocks(), data.draw(st.integers(0, 3)))
    ends = [(*pair, forced[name]) for pair, name in zip(ENDS, LAYERS, strict=True)]
    answer = three_blocks.run(feeds, forced=forced)
    close(answer.outputs["y"], carried_out(blocks(), ends, feeds)["y"])
    assert {name: answer.decisions[name] for name in LAYERS} == forced


def test_no_graph_has_two_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[bytes] = []
    session = onnxruntime.InferenceSession

    def counted(model: bytes, *arguments: Any, **named: Any) -> Any:
        built.append(model)
        return session(model, *arguments, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    with hooked_on(blocks(), points=["layer.0", "exit after layer.0", "layer.1"]) as hooked:
        for _ in range(2):
            hooked.run(feeds_of(blocks(), 0), forced={"layer.1": "skip"})
    assert len(set(built)) == len(built) > len(hooked.points)


def test_streams_of_several_threads_do_not_mix(three_blocks: Hooked) -> None:
    jobs = [
        ({name: ("skip", "keep")[seed >> bit & 1] for bit, name in enumerate(LAYERS)}, feeds_of(blocks(), seed))
        for seed in range(8)
    ]
    expected = [
        carried_out(blocks(), [(*pair, forced[name]) for pair, name in zip(ENDS, LAYERS, strict=True)], feeds)["y"]
        for forced, feeds in jobs
    ]
    wrong: list[int] = []

    def work(number: int) -> None:
        forced, feeds = jobs[number]
        for _ in range(40):
            answer = three_blocks.run(feeds, forced=forced)
            if np.abs(answer.outputs["y"] - expected[number]).max() > 1e-4:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_without_a_deadline_all_is_kept_and_under_a_hopeless_one_all_is_left_out() -> None:
    hooked = hooked_on(blocks(), points=list(LAYERS), grid=Grid(levels=("skip",)))
    feeds = feeds_of(blocks())
    easy = hooked.run(feeds)
    assert set(easy.decisions.values()) == {"keep"}
    hopeless = hooked.run(feeds, deadline_s=1e-7)
    assert set(hopeless.decisions.values()) == {"skip"}
    assert hopeless.predicted_s / hopeless.slowdown < easy.predicted_s / easy.slowdown
    close(hopeless.outputs["y"], carried_out(blocks(), [(*pair, "skip") for pair in ENDS], feeds)["y"])


def test_the_promise_is_the_plans() -> None:
    hooked = hooked_on(blocks(), points=list(LAYERS), grid=Grid(levels=("skip",)))
    grid = Grid(levels=("skip",))
    costs = plan(CountingPredictor(), blocks(), mount=LAYERS, grid=grid).costs  # type: ignore[arg-type]
    assert costs is not None
    forced = {"layer.0": "skip", "layer.1": "keep", "layer.2": "skip"}
    answer = hooked.run(feeds_of(blocks()), forced=forced)
    parts = [point.before.mean_s for point in costs.points] + [costs.after.mean_s]
    for point in costs.points:
        parts += [option.time.mean_s for option in point.options if option.name == forced[point.name]]
    start_s = 2 * CountingPredictor().estimator.device.dispatch_s  # nobody measured starts there
    entering_s, deciding_s, leaving_s = (step.hot_s + step.starts * start_s for step in (ENTERING, DECIDING, LEAVING))
    assert costs.decide_s == pytest.approx(deciding_s)
    assert answer.predicted_s / answer.slowdown == pytest.approx(entering_s + sum(parts) + 3 * deciding_s + leaving_s)


def test_carried_tensors_and_outputs_on_the_way() -> None:
    model = masked_encoder()
    declared = [Declared(f"layer {i}", f"h{i}", f"h{i + 1}", ("skip",)) for i in (1, 2)]
    hooked = hooked_on(model, points=declared)
    feeds = feeds_of(model)
    answer = hooked.run(feeds, keep=True)
    for output, value in run(model, feeds).items():
        close(answer.outputs[output], value)
    answer = hooked.run(feeds, forced={"layer 1": "skip"})
    expected = carried_out(model, [("h1", "h2", "skip"), ("h2", "h3", "keep")], feeds)
    for output in ("h3", "h1"):
        close(answer.outputs[output], expected[output])


def test_a_point_may_start_where_the_network_does() -> None:
    model = blocks()
    hooked = hooked_on(model, points=[Declared("stem", "x", "t0", ("skip", "int8"))], samples=[feeds_of(model)])
    feeds = feeds_of(model, 3)
    for option in ("keep", "skip"):
        expected = carried_out(model, [("x", "t0", option)], feeds)["y"]
        close(hooked.run(feeds, forced={"stem": option}).outputs["y"], expected)


def test_eight_bits_are_calibrated_on_samples() -> None:
    model = spatial_blocks()
    samples = [feeds_of(model, seed) for seed in range(4)]
    hooked = hooked_on(model, points=["layer.0", "layer.1"], samples=samples, grid=Grid(levels=("int8",)))
    plain = run(model, samples[2])["y"]
    rounded = hooked.run(samples[2], forced=dict.fromkeys(("layer.0", "layer.1"), "int8")).outputs["y"]
    assert 0 < np.abs(rounded - plain).max() < 0.05
    seen = [carried_out(model, [("t0", "t0", "keep")], sample)["t0"] for sample in samples]
    assert hooked.origin.ranges["layer.0"]["t0"] == pytest.approx((np.min(seen), np.max(seen)), rel=1e-5)


def test_a_network_without_mounted_points_runs_as_it_is() -> None:
    model = blocks()
    hooked = hooked_on(model, points=[])
    assert hooked.points == ()
    feeds = feeds_of(model)
    answer = hooked.run(feeds, deadline_s=0.001)
    close(answer.outputs["y"], run(model, feeds)["y"])
    assert answer.decisions == {}
    assert answer.predicted_s == pytest.approx(plan(CountingPredictor(), model).latency_s)  # type: ignore[arg-type]


def test_the_models_file_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(blocks(), path)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with hooked_on(path, samples=[feeds_of(blocks())]) as hooked:
        for seed in range(5):
            hooked.run(feeds_of(blocks(), seed), deadline_s=1e-3)
        hooked.save(tmp_path / "model.hooks")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.hooks", "model.onnx"]


def test_bad_input_is_told_in_one_line(three_blocks: Hooked) -> None:
    feeds = feeds_of(blocks())
    with pytest.raises(HookError, match=r"'x' must be an array of float32\[1, 8, 16, 16\], got NoneType"):
        three_blocks.run({})
    with pytest.raises(HookError, match="got float64"):
        three_blocks.run({"x": feeds["x"].astype(np.float64)})
    with pytest.raises(HookError, match="z came too"):
        three_blocks.run({**feeds, "z": feeds["x"]})
    with pytest.raises(HookError, match="mounted can be forced"):
        three_blocks.run(feeds, forced={"layer.0": "nothing"})
    for deadline_s in (-1.0, 0.0, float("nan")):
        with pytest.raises(InputError, match="deadline"):
            three_blocks.run(feeds, deadline_s=deadline_s)
        with pytest.raises(InputError, match="deadline"), hooked_on(blocks(), points=[]) as plain:
            plain.run(feeds, deadline_s=deadline_s)
    for saliency in (np.full((4, 4), np.nan), np.ones(4), np.ones((2, 4, 4)), "map"):
        with pytest.raises(HookError, match="saliency map"):
            three_blocks.run(feeds, saliency=saliency)  # type: ignore[arg-type]
    for sample in ({}, {"x": np.zeros((1, 8, 4, 4), np.float32)}, feeds["x"]):
        with pytest.raises(HookError, match="input"):
            hooked_on(blocks(), points=["layer.0"], samples=[sample])
    with pytest.raises(ModelError, match="with its weights"):
        hooked_on(NETWORKS / "mobilenet_v2.onnx")
    with pytest.raises(HookError, match="tolerance"):
        hooked_on(blocks(), tolerance=float("nan"))
    with pytest.raises(HookError, match="samples"):
        hooked_on(blocks(), points=[Declared("mine", "t0", "t1", ("int8",))])
    with pytest.raises(HookError, match="outside"):
        hooked_on(blocks(), outside="nowhere")
    with pytest.raises(InputError, match="were found"):
        hooked_on(blocks(), points=["no such point"])
    with pytest.raises(SurgeryError, match="8, 10"):
        hooked_on(blocks(), heads={"exit after layer.1": (np.zeros((8, 3)), np.zeros(3))})
    with pytest.raises(HookError, match="a head can be given"):
        hooked_on(blocks(), heads={"layer.1": (np.zeros((8, 10)), np.zeros(10))})


def test_no_plan_counts_on_an_exit_that_cannot_answer() -> None:
    """A deadline that leaving meets, and skipping the block before it: only the one keeps the block."""
    worth = {"layer.0": {"keep": 1.0, "skip": 0.0}, "exit after layer.0": {"keep": 0.0, "exit": -0.1}}
    points, grid = list(worth), Grid(levels=("exit", "skip"))
    hooked = hooked_on(blocks(), points=points, grid=grid, utilities=worth)
    table = hooked.table
    assert table is not None
    all_kept_s = sum(hooked.terms.trunk_s) + sum(costs_s[0] for costs_s in hooked.terms.costs_s)
    saved_s = hooked.terms.costs_s[0][0] - hooked.terms.costs_s[0][1]
    gate = table.gate(all_kept_s - 0.5 * saved_s, 0.5, worth, clock=None)
    assert gate.options["layer.0"][gate.decide("layer.0")] == "keep"  # and leaves then
    gate.renew(hooked.deciding.utilities_without(("exit after layer.0",)))
    assert gate.options["layer.0"][gate.decide("layer.0")] == "skip"
    stream = hooked.stream()
    assert isinstance(stream, Stream)
    for trained in (False, True):
        if trained:
            hooked.replace("exit after layer.0", "head", (np.zeros((8, 10)), np.zeros(10)))
        stream.run(Ask(feeds_of(blocks())))  # sees which heads can answer
        assert stream.gate is not None
        assert (stream.gate._utility.min() < -1.0) != trained


def test_what_was_learned_of_options_is_promised_once_it_is_planned_with() -> None:
    hooked = hooked_on(blocks(), points=["layer.0"], grid=Grid(levels=("skip",)))
    stream = hooked.stream()
    assert isinstance(stream, Stream)
    assert stream.gate is not None
    before_s = stream._terms.costs_s[0][0]
    for _ in range(50):
        stream.gate.begin()
        stream.gate.observe(0, 3.0 * before_s) if stream.gate.decide(0) == 0 else None
        stream.gate.finish(1.0)
    stream.renew()
    assert stream._terms.costs_s[0][0] != before_s
    table = stream.gate.table
    decided_s = table.decide_s if 0 not in stream._terms.not_worth else 0.0
    assert stream._terms.costs_s[0][0] == pytest.approx(table.mean_s[0] + decided_s)


def test_the_time_before_the_first_graph_counts() -> None:
    """Sensors that take long to read."""
    with hooked_on(blocks(), points=["layer.0"], sensors=lambda: time.sleep(0.02) or {}) as hooked:  # type: ignore[func-returns-value]
        answer = hooked.run(feeds_of(blocks()), deadline_s=0.01)
        assert answer.latency_s > 0.02
        assert answer.decisions["layer.0"] != "keep"


def test_a_policy_of_the_callers_own_sees_what_side_networks_saw() -> None:
    model = blocks()
    asked: list[Observation] = []

    def policy(observation: Observation) -> str:
        asked.append(observation)
        return "skip" if observation.features["pooled"].mean() > 0 else "keep"

    hooked = hooked_on(model, points=["layer.1"], grid=Grid(levels=("skip",)), policy=policy)
    for seed in range(6):
        feeds = feeds_of(model, seed)
        mean = carried_out(model, [("t1", "t1", "keep")], feeds)["t1"].mean()
        assert hooked.run(feeds).decisions == {"layer.1": "skip" if mean > 0 else "keep"}
    assert len(asked) == 6
    assert all(one.resident_bytes for one in asked)


def test_a_model_that_cannot_be_cut_is_refused() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"], "left"), helper.make_node("MatMul", ["x", "w"], ["b"], "right"),
    ]  # fmt: skip
    model = model_of(
        nodes, [info("x", [1, 4])], [info("a", [1, 6]), info("b", [1, 6])], [drawn("v", 4, 6), drawn("w", 4, 6)]
    )
    with pytest.raises(HookError, match="never all meet"):
        hooked_on(model)


def test_planning_anew_changes_no_result(three_blocks: Hooked) -> None:
    feeds = feeds_of(blocks())
    before = three_blocks.run(feeds, keep=True).outputs["y"]
    for _ in range(5):
        three_blocks.run(feeds)
    three_blocks.renew()
    assert three_blocks.run(feeds, deadline_s=10.0).decisions == three_blocks.run(feeds).decisions
    close(three_blocks.run(feeds, keep=True).outputs["y"], before)
    assert latpred.hooks.attach is attach


def test_inputs_with_gaps_are_taken(three_blocks: Hooked) -> None:
    feeds = feeds_of(blocks())
    wide = np.zeros((1, 8, 16, 32), np.float32)
    wide[..., ::2] = feeds["x"]
    got = three_blocks.run({"x": wide[..., ::2]}, keep=True).outputs["y"]
    close(got, run(blocks(), feeds)["y"])


class Hearing:
    """Keeps what it is told."""

    def __init__(self, points: tuple[str, ...]) -> None:
        self.points = points
        self.told: list[Heard] = []
        self.closed = 0

    def wants(self) -> tuple[str, ...]:
        return self.points

    def heard(self, heard: Heard) -> None:
        self.told.append(heard)

    def close(self) -> None:
        self.closed += 1


def test_a_listener_is_told_what_was_seen() -> None:
    model = blocks()
    hooked = hooked_on(model, points=["exit after layer.0", "layer.1"], sensors=lambda: {"celsius": 40.0})
    hearing = Hearing(("layer.1",))
    hooked.listener = hearing
    answers: list[Answer] = [hooked.run(feeds_of(model, seed)) for seed in range(3)]
    hooked.run(feeds_of(model), keep=True, quiet=True)
    assert [heard.answer for heard in hearing.told] == answers
    for seed, heard in enumerate(hearing.told):
        known = carried_out(model, [], feeds_of(model, seed))
        whole = carried_out(model, [("t1", "t1", "keep")], feeds_of(model, seed)) | known
        assert set(heard.tensors) == {"layer.1"}
        close(heard.tensors["layer.1"], whole["t1"])
        assert [one.point for one in heard.observations] == ["exit after layer.0", "layer.1"]
        for one in heard.observations:
            close(one.features["pooled"], whole["t1"].mean(axis=(2, 3)))
            assert one.latency_s is not None
            assert one.predicted_s is not None
            assert one.latency_s > 0
            assert one.sensors == {"celsius": 40.0}
            assert one.resident_bytes
        assert set(heard.times_s) == {"exit after layer.0", "layer.1"}
    hooked.release()
    assert hearing.closed == 1


def test_what_was_released_cannot_be_used_and_leaves_nothing() -> None:
    import psutil

    process = psutil.Process()
    hooked_on(blocks()).release()  # what is only opened once is open now
    threads, files = process.num_threads(), process.num_fds()
    hooked = hooked_on(blocks(), samples=[feeds_of(blocks())])
    hooked.run(feeds_of(blocks()))
    sessions = [weakref.ref(part.session) for part in hooked.program.parts()]  # type: ignore[union-attr]
    sessions += [weakref.ref(side.current.session) for side in hooked.sides.values()]
    hooked.release()
    hooked.release()
    assert [session() for session in sessions] == [None] * len(sessions)
    assert (process.num_threads(), process.num_fds()) == (threads, files)
    with pytest.raises(HookError, match="released"):
        hooked.run(feeds_of(blocks()))
