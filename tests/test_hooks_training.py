"""Side networks learn: what from, how well, and that nothing worse takes their place."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Any

import numpy as np
import onnx
import pytest
from counting_predictor import CountingPredictor, info
from hooked_networks import blocks, carried_out
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from surgery_oracle import close, feeds_of, run

from latpred.decide.declared import Declared
from latpred.decide.points import Grid
from latpred.errors import HookError
from latpred.hooks import Hooked, attach
from latpred.hooks.forward_forward import Layer
from latpred.hooks.judging import LEAST_TRIED, Quality, better, head_quality, softmax, tempered, worth
from latpred.hooks.labelling import Example, Labeller, disagreement, is_held_out
from latpred.hooks.learners import GateLearner, HeadLearner
from latpred.hooks.looks import Look
from latpred.hooks.pupils import most_lost
from latpred.hooks.sampler import Sampling
from latpred.hooks.stream import Stream
from latpred.hooks.trainer import Trainer, Training

EXIT = "exit after layer.0"


def hooked_on(model: Any, **arguments: Any) -> Hooked:
    return attach(model, CountingPredictor(), **arguments)  # type: ignore[arg-type]


def samples(count: int, first: int = 100) -> list[dict[str, np.ndarray]]:
    return [feeds_of(blocks(), seed) for seed in range(first, first + count)]


def clusters(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Inputs around ten points of which each has an answer of its own."""
    centres = 5 * np.random.default_rng(7).standard_normal((10, 8, 1, 1))
    rng = np.random.default_rng(seed)
    drawn = [centres[rng.integers(10)] + rng.standard_normal((8, 16, 16)) for _ in range(count)]
    return [{"x": one[None].astype(np.float32)} for one in drawn]


def switch() -> onnx.ModelProto:
    """One block adds 5 relu(a) to the third channel; class 1 is that channel, class 0 the second, always 0.5.

    So leaving out the block changes the answer where a > 0.1, and nowhere else.
    """
    up, down = np.zeros((3, 3, 1, 1), np.float32), np.zeros((3, 3, 1, 1), np.float32)
    up[0, 0], down[2, 0] = 1.0, 5.0
    eye = np.eye(3, dtype=np.float32)[..., None, None]
    fc = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    stored = [
        numpy_helper.from_array(values, name) for name, values in (("eye", eye), ("up", up), ("down", down), ("fc", fc))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "eye"], ["t0"], "/stem/Conv"),
        helper.make_node("Conv", ["t0", "up"], ["h"], "/block/up/Conv"),
        helper.make_node("Relu", ["h"], ["r"], "/block/Relu"),
        helper.make_node("Conv", ["r", "down"], ["d"], "/block/down/Conv"),
        helper.make_node("Add", ["t0", "d"], ["t1"], "/block/Add"),
        helper.make_node("GlobalAveragePool", ["t1"], ["pooled"], "/pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "/flat/Flatten"),
        helper.make_node("Gemm", ["flat", "fc"], ["y"], "/fc/Gemm"),
    ]
    shapes = dict.fromkeys(("t0", "h", "r", "d", "t1"), (1, 3, 8, 8)) | {"pooled": (1, 3, 1, 1), "flat": (1, 3)}
    graph = helper.make_graph(nodes, "switch", [info("x", (1, 3, 8, 8))], [info("y", (1, 2))], stored)
    graph.value_info.extend(info(name, shape) for name, shape in shapes.items())
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def switched(a: float) -> dict[str, np.ndarray]:
    return {"x": np.broadcast_to(np.array([a, 0.5, 0.0], np.float32)[None, :, None, None], (1, 3, 8, 8)).copy()}


# -- at once ---------------------------------------------------------------------------------------------------------


def test_a_head_learns_to_agree_where_that_is_possible() -> None:
    model = blocks()
    hooked = hooked_on(model, points=[EXIT])
    (verdict,) = hooked.train(clusters(400, 0))
    assert (verdict.point, verdict.role, verdict.replaced) == (EXIT, "head", True)
    before, after = verdict.before.agreement, verdict.after.agreement
    assert before is not None
    assert after is not None
    assert after >= 0.95 > 0.5 > before
    unseen = clusters(60, 1)
    scores = [hooked.run(feeds, forced={EXIT: "exit"}).outputs["y"].argmax() for feeds in unseen]
    wanted = [run(model, feeds)["y"].argmax() for feeds in unseen]
    assert np.mean(np.array(scores) == wanted) >= 0.95
    left = [hooked.run(feeds) for feeds in unseen]  # nobody is in a hurry: it leaves where it is sure
    assert np.mean([answer.decisions[EXIT] == "exit" for answer in left]) > 0.5
    assert hooked.sides[EXIT, "head"].current.trained


def test_a_gate_learns_what_skipping_costs() -> None:
    hooked = hooked_on(switch(), points=[Declared("block", "t0", "t1", ("skip",))])
    rng = np.random.default_rng(0)
    (verdict,) = hooked.train([switched(a) for a in rng.uniform(-1, 1, 300)], passes=20)
    assert verdict.replaced
    assert verdict.after.error < 0.15 < verdict.before.error
    weights = hooked.sides["block", "gate"].weights
    assert weights is not None
    averages = np.array([[-0.8, 0.5, 0.0], [0.9, 0.5, 0.0]])
    (keep_low, skip_low), (keep_high, skip_high) = averages @ weights[0] + weights[1]
    table = hooked.table
    assert table is not None
    lost = most_lost(table, hooked.utilities)
    assert keep_low == pytest.approx(keep_high) == pytest.approx(hooked.utilities["block"]["keep"])
    assert keep_low - skip_low < 0.2 * lost
    assert keep_high - skip_high > 0.8 * lost


def test_too_few_samples_and_nothing_to_train_are_refused() -> None:
    hooked = hooked_on(blocks(), points=[EXIT])
    with pytest.raises(HookError, match="held-out"):
        hooked.train(samples(10))
    for nothing in (hooked_on(blocks(), points=[]), hooked_on(blocks(), points=["layer.0"], gate="none")):
        with pytest.raises(HookError, match="to train"):
            nothing.train(samples(10))
    hooked.release()
    with pytest.raises(HookError, match="released"):
        hooked.train(samples(10))
    for numbers in ({"duty": 0.0}, {"tries": -1}, {"least_held_out": 1}, {"wrong": 0.0}):
        with pytest.raises(HookError):
            Training(**numbers)  # type: ignore[arg-type]


def test_the_caller_s_own_gate_is_never_replaced() -> None:
    nodes = [helper.make_node("ReduceMean", ["map"], ["m"], axes=[2, 3], keepdims=0),
             helper.make_node("Slice", ["m", "zero", "two", "one"], ["out"])]  # fmt: skip
    stored = [numpy_helper.from_array(np.array([value]), name) for name, value in (("zero", 0), ("two", 2), ("one", 1))]
    graph = helper.make_graph(nodes, "own", [info("map", (1, 8, 16, 16))], [info("out", (1, 2))], stored)
    own = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    hooked = hooked_on(blocks(), points=[Declared("mine", "t0", "t1", ("skip",), own)])
    with pytest.raises(HookError, match="to train"):
        hooked.train(samples(10))


# -- while running ---------------------------------------------------------------------------------------------------


def test_labels_are_the_main_network_s_even_where_decisions_altered_the_run() -> None:
    model = blocks()
    hooked = hooked_on(model, points=["layer.0", "layer.1"], grid=Grid(levels=("skip",)))
    trainer = Trainer(hooked, Sampling(1, 1, apart_s=0.0))
    hooked.listener = trainer
    feeds = feeds_of(model, 3)
    hooked.run(feeds, forced={"layer.0": "skip"})
    (sample,) = trainer.sampler.take(2)
    assert sample.main_output is None
    example = labeller(hooked).label(sample, [("layer.0", 1), ("layer.1", 1)])
    plain = run(model, feeds)["y"]
    assert example.labels.tolist() == [plain.argmax()]
    seen = carried_out(model, [("t0", "t1", "skip"), ("t1", "t1", "keep")], feeds)
    close(example.pooled["layer.1"], seen["t1"].mean(axis=(2, 3)))  # as the gate saw it
    first, both = [("t0", "t1", "skip")], [("t0", "t1", "skip"), ("t1", "t2", "skip")]
    off = [float(carried_out(model, ends, feeds)["y"].argmax() != plain.argmax()) for ends in ([], first, both)]
    assert example.losses["layer.0"][0, 1] == off[1] - off[0]
    assert example.losses["layer.1"][0, 1] == off[2] - off[1]  # in the company of what was decided before it
    assert np.isnan([example.losses[name][0, 0] for name in example.losses]).all()


def test_a_point_behind_an_exit_that_was_taken_is_looked_at_as_if_it_had_been_met() -> None:
    model = blocks()
    hooked = hooked_on(model, points=[EXIT, "layer.2"], grid=Grid(levels=("exit", "skip")))
    hooked.train(clusters(100, 0))
    inputs = clusters(1, 5)[0]
    given = labeller(hooked)
    sample = given.lived(inputs, 1e-9, {})  # hopeless: it leaves
    assert sample.decisions == {EXIT: "exit"}
    example = given.label(sample, [(EXIT, 1), ("layer.2", 1)])
    plain = run(model, inputs)["y"]
    left = hooked.run(inputs, forced={EXIT: "exit"}).outputs["y"]
    assert example.losses[EXIT][0, 1] == float(left.argmax() != plain.argmax())
    altered = carried_out(model, [("t2", "t3", "skip")], inputs)["y"]
    assert example.losses["layer.2"][0, 1] == float(altered.argmax() != plain.argmax())


def labeller(hooked: Hooked) -> Labeller:
    stream = hooked.stream()
    assert isinstance(stream, Stream)
    return Labeller(stream, "y", hooked.options)


def test_it_learns_from_what_it_hears_and_runs_stay_as_they_were() -> None:
    model = blocks()
    hooked = hooked_on(model, points=[EXIT, "layer.1"], grid=Grid(levels=("exit", "skip")))
    trainer = Trainer(hooked, Sampling(1, 1, apart_s=0.0), Training(examples=16, least_held_out=8))
    hooked.listener = trainer
    for feeds in clusters(250, 0):
        answer = hooked.run(feeds, keep=True)
        close(answer.outputs["y"], run(model, feeds)["y"])
        trainer.step()
    replaced = [verdict.replaced for verdict in trainer.verdicts if verdict.role == "head"]
    assert trainer.examples == 250
    assert replaced.count(True) >= 2
    assert trainer.sampler.waiting == 0
    qualities = [verdict.after for verdict in trainer.verdicts if verdict.replaced and verdict.role == "head"]
    assert qualities[-1].error < qualities[0].error
    assert 0 < trainer.kept_bytes <= trainer.sampler.sampling.budget_bytes // 2


def test_no_thread_is_left_after_release_nor_where_nobody_holds_the_hooks() -> None:
    def trainers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "latpred-trainer"]

    with hooked_on(blocks(), points=[EXIT]) as hooked:
        trainer = hooked.train_while_running()
        assert len(trainers()) == 1
        assert trainers()[0].daemon
        with pytest.raises(HookError, match="listens"):
            hooked.train_while_running()
        hooked.run(feeds_of(blocks()))
    assert trainers() == []
    trainer.start()
    assert trainers() == []
    with pytest.raises(HookError, match="closed"):
        trainer.train(samples(1))
    hooked = hooked_on(blocks(), points=[EXIT])
    hooked.train_while_running()
    (thread,) = trainers()
    del hooked
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_a_trainer_that_somebody_holds_holds_no_sessions_after_release(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[weakref.ref[Stream]] = []
    stream = Hooked.stream

    def watched(self: Hooked) -> Any:
        made = stream(self)
        opened.append(weakref.ref(made))  # type: ignore[arg-type]
        return made

    monkeypatch.setattr(Hooked, "stream", watched)
    hooked = hooked_on(blocks(), points=[EXIT])
    trainer = hooked.train_while_running()
    hooked.release()
    gc.collect()
    assert opened
    assert all(made() is None for made in opened)
    assert trainer.sampler.waiting == 0


def test_the_thread_works_while_runs_go_on() -> None:
    hooked = hooked_on(blocks(), points=[EXIT])
    trainer = hooked.train_while_running(Sampling(1, 1, apart_s=0.0), Training(1.0, examples=8, least_held_out=4))
    feeds = clusters(100, 0)
    ends_at = time.monotonic() + 60
    while not any(verdict.replaced for verdict in tuple(trainer.verdicts)):
        assert time.monotonic() < ends_at
        for one in feeds:
            hooked.run(one)
    hooked.release()
    assert trainer.examples > 0


# -- nothing worse ---------------------------------------------------------------------------------------------------


def test_a_worse_head_is_refused_and_a_better_one_taken() -> None:
    hooked = hooked_on(blocks(), points=[EXIT])
    given = samples(200)
    hooked.train(given, passes=30)
    good = hooked.sides[EXIT, "head"].current
    (verdict,) = hooked.train(given, passes=1)  # hardly learned
    assert not verdict.replaced
    assert verdict.after.error > verdict.before.error
    assert hooked.sides[EXIT, "head"].current is good
    hooked.replace(EXIT, "head", (np.random.default_rng(0).standard_normal((8, 10)), np.zeros(10)))
    (verdict,) = hooked.train(given, passes=30)
    assert verdict.replaced
    before, after = verdict.before.agreement, verdict.after.agreement
    assert before is not None
    assert after is not None
    assert before < after


@given(st.tuples(*[st.sampled_from([0.1, 0.2])] * 2), st.tuples(*[st.sampled_from([0.8, 0.9])] * 2))
def test_better_is_better_in_no_respect_worse(errors: tuple[float, float], agreements: tuple[float, float]) -> None:
    new, old = (Quality(*pair) for pair in zip(errors, agreements, strict=True))
    assert better(new, old) == (errors[0] < errors[1] and agreements[0] >= agreements[1])


def test_heads_are_swapped_whole_while_runs_are_under_way() -> None:
    model = blocks()
    hooked = hooked_on(model, points=[EXIT])
    feeds = feeds_of(model)
    rng = np.random.default_rng(0)
    heads = [(rng.standard_normal((8, 10)).astype(np.float32), rng.standard_normal(10)) for _ in range(2)]
    averages = carried_out(model, [("t1", "t1", "keep")], feeds)["t1"].mean(axis=(2, 3))
    expected = [averages @ matrix + bias for matrix, bias in heads]
    hooked.replace(EXIT, "head", heads[0])
    stop, seen = threading.Event(), [0, 0, 0]

    def work() -> None:
        while not stop.is_set():
            scores = hooked.run(feeds, forced={EXIT: "exit"}).outputs["y"]
            seen[next((i for i in range(2) if np.abs(scores - expected[i]).max() < 1e-4), 2)] += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(80):
        hooked.replace(EXIT, "head", heads[turn % 2])
    stop.set()
    for thread in threads:
        thread.join()
    assert seen[2] == 0
    assert min(seen[:2]) > 0


def test_a_head_that_is_trained_between_look_and_decision_answers_no_sooner_than_it_looked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hooked = hooked_on(blocks(), points=[EXIT])
    look = Look.run

    def replaced_behind(self: Look, slot: int) -> None:
        look(self, slot)
        if not self.side.current.trained:
            self.side.replace((np.ones((8, 10)), np.arange(10.0)))

    monkeypatch.setattr(Look, "run", replaced_behind)
    assert hooked.run(feeds_of(blocks()), deadline_s=1e-7).decisions == {EXIT: "keep"}
    assert hooked.run(feeds_of(blocks()), deadline_s=1e-7).decisions == {EXIT: "exit"}


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_few_answers_that_all_agree_do_not_make_a_head_sure_of_all() -> None:
    """8 rows of 8: the next one may be wrong with a probability of about 1 in 10."""
    pooled, labels = np.eye(2)[np.arange(8) % 2], np.arange(8) % 2
    matrix, bias = tempered((np.eye(2), np.zeros(2)), pooled, labels)
    assert 0.75 < softmax(pooled @ matrix + bias).max() < 0.97


def test_an_option_that_was_hardly_tried_keeps_its_utility() -> None:
    losses = np.zeros((2, 3)), np.array([0.0, -1.0, -1.0])
    known = np.full((20, 3), np.nan)
    known[:3, 1], known[:, 2] = 0.0, 0.0
    _, bias = worth(losses, [0.3, 0.2, 0.1], 1.0, 0.05, np.zeros((20, 2)), known)
    assert bias[1] == 0.2
    assert bias[2] > 0.3


def test_what_is_no_number_is_not_learned_from() -> None:
    hooked = hooked_on(blocks(), points=[EXIT])
    trainer = Trainer(hooked)
    broken = {"x": np.full((1, 8, 16, 16), np.nan, np.float32)}
    trainer.train([*clusters(120, 0), broken, broken])
    assert (trainer.examples, trainer.refused) == (122, 2)


def test_a_temperature_makes_confidence_the_share_that_agrees() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((4000, 5)) * 2
    labels = np.array([rng.choice(5, p=shares) for shares in softmax(scores)])
    weights = tempered((np.eye(5) * 4, np.zeros(5)), scores, labels)  # four times too sure
    assert weights[0][0, 0] == pytest.approx(1.0, rel=0.1)
    confidence = softmax(scores @ weights[0] + weights[1]).max(axis=1).mean()
    assert confidence == pytest.approx(np.mean(scores.argmax(axis=1) == labels), abs=0.02)


@given(st.integers(0, 200), st.integers(LEAST_TRIED, 60), st.floats(0.02, 0.5))
def test_an_option_better_than_keeping_has_lost_little_where_it_was(seed: int, count: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    pooled = rng.standard_normal((count, 1))
    lost = (rng.uniform(size=count) < 0.5 + 0.4 * np.tanh(pooled[:, 0])).astype(float)
    known = np.stack([np.full(count, np.nan), lost], axis=1)
    losses = np.array([[0.0, 0.4]]), np.array([0.0, 0.2])
    matrix, bias = worth(losses, [1.0, 0.5], 2.0, 2.0 * tolerance, pooled, known)
    said = pooled @ matrix + bias
    taken = said[:, 1] > said[:, 0] + 1e-9
    assert (said[:, 0] == 1.0).all()
    assert not taken.any() or (lost[taken].sum() + 1) / (taken.sum() + 1) <= tolerance + 1e-9
    # No larger set of the best rows would have done.
    order = np.argsort(pooled[:, 0])
    unadjusted = int((pooled[:, 0] * 0.4 + 0.2 < 0).sum())
    for more in range(int(taken.sum()) + 1, unadjusted + 1):
        assert (lost[order[:more]].sum() + 1) / (more + 1) > tolerance


def test_learners_of_unscaled_channels() -> None:
    """Channels of very different means and spreads; weights are for averages as they are."""
    rng = np.random.default_rng(0)
    true = rng.standard_normal((3, 4))
    plain = rng.standard_normal((500, 3))
    pooled = plain * [0.01, 1.0, 100.0] + [5.0, 0.0, -300.0]
    head, gate = HeadLearner(4), GateLearner(3)
    losses = np.stack([np.full(500, np.nan), 0.3 + 0.1 * plain[:, 0], np.full(500, np.nan)], axis=1)
    for _ in range(30):
        head.learn(pooled, (plain @ true).argmax(axis=1))
        gate.learn(pooled, losses)
    weights = head.weights()
    assert weights is not None
    agreement = head_quality(weights, pooled, (plain @ true).argmax(axis=1)).agreement
    assert agreement is not None
    assert agreement > 0.95
    found = gate.weights()
    assert found is not None
    np.testing.assert_allclose((pooled @ found[0] + found[1])[:, 1], losses[:, 1], atol=0.02)
    assert np.isnan(found[1][2])  # never tried
    assert GateLearner(2).weights() is HeadLearner(3).weights() is None


def test_disagreement_of_other_outputs_is_relative() -> None:
    main = np.array([[[3.0, 4.0]]])
    assert disagreement(np.array([[[3.0, 5.0]]]), main).tolist() == [0.2]
    assert disagreement(-9 * main, main).tolist() == [1.0]
    assert disagreement(np.zeros(3), np.zeros(3)).tolist() == [0.0]


def test_the_same_inputs_are_always_held_out_or_never() -> None:
    def split(value: float) -> bool:
        seen = {"first": np.full((1, 2), value), "second": np.random.default_rng().uniform(size=(1, 2))}
        return is_held_out(Example(seen, np.zeros(1, np.int64), {}))

    sides = [split(value) for value in range(500)]
    assert sides == [split(value) for value in range(500)]
    assert 60 < sum(sides) < 140  # a fifth


def test_local_updates_follow_the_gradient_of_goodness() -> None:
    """Against differences of ln p(positive) + ln(1 - p(negative)), each parameter by itself."""
    rng = np.random.default_rng(0)
    layer = Layer(4, 6, rng)
    layer.bias[:] = rng.standard_normal(6)
    positive, negative = rng.standard_normal((2, 5, 4))

    def objective() -> float:
        total = 0.0
        for x, sign in ((positive, 1.0), (negative, -1.0)):
            g = (np.maximum(x @ layer.weight + layer.bias, 0) ** 2).sum(axis=1)
            total += float(-np.log1p(np.exp(-sign * (g - layer.threshold))).mean())
        return total

    for values, gradient in zip((layer.weight, layer.bias), layer.gradient(positive, negative), strict=True):
        for place in np.ndindex(values.shape):
            before = values[place]
            values[place] = before + 1e-6
            above = objective()
            values[place] = before - 1e-6
            below = objective()
            values[place] = before
            assert gradient[place] == pytest.approx((above - below) / 2e-6, abs=1e-6)
