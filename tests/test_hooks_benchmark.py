"""benchmarks/hooks.py: its images, its network, what it fits, and who wins, against arithmetic by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from counting_predictor import CountingPredictor
from hooked_networks import blocks, carried_out
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from surgery_oracle import close, feeds_of, run
from test_benchmarks import ROOT, benchmark

import latpred
from latpred.decide.points import Grid
from latpred.hooks import attach
from latpred.surgery.cuts import Cut, cuts
from latpred.surgery.tidy import tidied

digits, fixed, worth, contest, hooks = map(benchmark, ("digits", "fixed", "worth", "contest", "hooks"))
NETWORK = ROOT / "benchmarks" / "digits.onnx"
BLOCKS = [("t0", "t1"), ("t1", "t2"), ("t2", "t3")]


def places(model: onnx.ModelProto) -> dict[str, Cut]:
    return {cut.tensor: cut for cut in cuts(model)}


# -- images and network ----------------------------------------------------------------------------------------------


def test_parts_are_all_images_and_share_none() -> None:
    from sklearn.datasets import load_digits

    parts = [digits.digits(name) for name in ("learned", "tuned", "held_out")]
    assert np.concatenate([part.labels for part in parts]).tolist() == load_digits().target.tolist()
    for part in parts:
        assert part.images.shape == (len(part), 1, 32, 32)
        assert (part.images.dtype, float(part.images.min()), float(part.images.max())) == (np.float32, 0.0, 1.0)


@given(seed=st.integers(0, 1000), most=st.integers(0, 5))
def test_a_shifted_image_is_the_image_elsewhere(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.random((32, 32)).astype(np.float32)
    (found,) = digits.shifted(image[None, None], most, rng)
    moved = []
    for down in range(-most, most + 1):
        for across in range(-most, most + 1):
            room = np.zeros((48, 48), np.float32)
            room[8 + down : 40 + down, 8 + across : 40 + across] = image
            moved.append(room[8:40, 8:40])
    assert sum((one == found[0]).all() for one in moved) == 1


def test_the_network_is_small_and_as_accurate_as_its_note_says() -> None:
    stored = onnx.load(NETWORK).graph.initializer
    assert sum(numpy_helper.to_array(tensor).nbytes for tensor in stored) <= NETWORK.stat().st_size <= 1_000_000
    session = onnxruntime.InferenceSession(NETWORK, providers=["CPUExecutionProvider"])
    part = digits.digits("held_out")
    found = [int(session.run(None, {"image": image[None]})[0].argmax()) for image in part.images]
    accuracy = f"{100 * np.mean(np.array(found) == part.labels):.1f} %"
    assert f"held-out accuracy: {accuracy}" in NETWORK.with_suffix(".md").read_text()


# -- networks that always do the same --------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", [[0], [2], [0, 1], [0, 1, 2]])
def test_blocks_left_out_are_not_computed(left_out: list[int]) -> None:
    model, feeds = tidied(blocks()), feeds_of(blocks())
    where = places(model)
    ends = [(where[BLOCKS[number][0]], where[BLOCKS[number][1]]) for number in left_out]
    taken = [(*pair, "skip" if number in left_out else "keep") for number, pair in enumerate(BLOCKS)]
    found = fixed.without(model, ends)
    close(run(found, feeds)["y"], carried_out(blocks(), taken, feeds)["y"])
    assert len(found.graph.node) == len(model.graph.node) - 3 * len(left_out)
    assert len(found.graph.initializer) == len(model.graph.initializer) - 2 * len(left_out)


@pytest.mark.parametrize("narrow", [[1], [0, 2]])
def test_narrowed_blocks_are_those_that_hooks_run(narrow: list[int]) -> None:
    model, feeds = tidied(blocks()), feeds_of(blocks())
    where = places(model)
    ends = [(where[BLOCKS[number][0]], where[BLOCKS[number][1]]) for number in narrow]
    taken = [(*pair, "channels 0.5" if number in narrow else "keep") for number, pair in enumerate(BLOCKS)]
    found = fixed.narrowed(model, ends, 0.5)
    onnx.checker.check_model(found, full_check=True)
    close(run(found, feeds)["y"], carried_out(blocks(), taken, feeds)["y"])


def test_left_at_an_exit_the_head_answers() -> None:
    model, feeds = tidied(blocks()), feeds_of(blocks())
    rng = np.random.default_rng(0)
    matrix, bias = rng.standard_normal((8, 10)), rng.standard_normal(10)
    (found,) = run(fixed.left_at(model, places(model)["t2"], (matrix, bias)), feeds).values()
    averages = carried_out(model, [*((*pair, "keep") for pair in BLOCKS[:2])], feeds)["t2"].mean(axis=(2, 3))
    close(found, averages @ matrix + bias)


def test_in_integers_answers_are_near() -> None:
    model = tidied(blocks())
    feeds = [feeds_of(blocks(), seed) for seed in range(4)]
    rounded = fixed.in_integers(model, feeds)
    for own in feeds:
        whole = run(model, own)["y"]
        off = np.abs(run(rounded, own)["y"] - whole).max() / np.abs(whole).max()
        assert 0.0 < off < 0.1


# -- what options are worth ------------------------------------------------------------------------------------------


def test_values_are_what_is_left_of_the_main_answers_probability() -> None:
    model, images = blocks(), np.concatenate([feeds_of(blocks(), seed)["x"] for seed in range(5)])
    points = ["layer.0", "exit after layer.0", "layer.2"]
    hooked = attach(model, CountingPredictor(), points=points)  # type: ignore[arg-type]
    found = worth.values(hooked, "x", images)
    assert {point: tuple(options) for point, options in found.items()} == hooked.options
    for number, image in enumerate(images):
        feeds = {"x": image[None]}
        kept = carried_out(model, [(*pair, "keep") for pair in BLOCKS], feeds)
        without = carried_out(model, [(*BLOCKS[0], "keep"), (*BLOCKS[1], "keep"), (*BLOCKS[2], "skip")], feeds)
        before, behind = (np.exp(one["y"][0]) / np.exp(one["y"][0]).sum() for one in (kept, without))
        main = int(before.argmax())
        assert found["layer.2"]["skip"][number] == pytest.approx(behind[main] - before[main], abs=1e-4)
    means = worth.utilities(found)
    assert means["layer.2"]["skip"] == pytest.approx(found["layer.2"]["skip"].mean())
    assert (means["layer.0"]["keep"], means["exit after layer.0"]["exit"]) == (0.0, -1.0)


def test_time_has_its_price() -> None:
    hooked = attach(blocks(), CountingPredictor(), points=["layer.0"], grid=Grid(levels=("skip",)))  # type: ignore[arg-type]
    assert hooked.table is not None
    costs = worth.prices(hooked.table, 100.0)
    kept_s = 1e-6 + 1e-9 * 2 * 8 * 32 * 16 * 16  # a run, and the products of two convolutions
    assert costs == {"layer.0": {"keep": pytest.approx(100.0 * kept_s), "skip": 0.0}}
    found = {"layer.0": {"keep": np.zeros(2), "skip": np.array([-0.1, -0.3])}}
    assert worth.utilities(found, costs) == {"layer.0": {"keep": -costs["layer.0"]["keep"], "skip": -0.2}}
    hooked.replace("layer.0", "gate", (np.ones((8, 2)), np.array([0.5, 0.25])))
    worth.charge(hooked, costs)
    matrix, bias = hooked.sides["layer.0", "gate"].weights
    assert (matrix == 1.0).all()
    close(bias, np.array([0.5 - costs["layer.0"]["keep"], 0.25]))


def test_what_harms_least_comes_first() -> None:
    found = {
        "a": {"keep": np.zeros(2), "skip": np.array([-0.3, -0.1])},
        "b": {"keep": np.zeros(2), "int8": np.array([0.0, 0.0])},
        "c": {"keep": np.zeros(2), "skip": np.array([-0.1, -0.2])},
    }
    assert worth.order_of_harm(found, "skip") == ["c", "a"]


# -- the contest -----------------------------------------------------------------------------------------------------


class Echo:
    """Answers with the class that an image is full of, plus an error of its own."""

    def __init__(self, name: str, group: str = "static", off: int = 0, bound: float | None = None) -> None:
        self.name, self.group, self.bound, self.off = name, group, bound, off
        self.seen: list[int] = []
        self.rests = 0

    def rest(self) -> None:
        self.rests += 1

    def answer(self, image: np.ndarray) -> Any:
        assert image.shape == (1, 1, 4, 4)
        shown = int(image.flat[0])
        self.seen.append(shown)
        scores = np.zeros((1, 10))
        scores[0, (shown + self.off) % 10] = 1.0
        return contest.Given(scores, 0.001, 0.002, {"p": "keep" if shown % 2 else "skip"})


def test_all_answer_all_images_after_one_that_does_not_count() -> None:
    labels = np.arange(25) % 10
    images = np.broadcast_to(labels[:, None, None, None], (25, 1, 4, 4)).astype(np.float32)
    right, wrong = Echo("right"), Echo("wrong", "level", off=1)
    first, second = contest.measured([right, wrong], digits.Digits(images, labels), 0)
    assert (first.accuracy, second.accuracy) == (1.0, 0.0)
    assert (np.mean(first.agrees), np.mean(second.agrees)) == (1.0, 0.0)
    assert (len(first.latency_s), len(right.seen), right.rests) == (25, 25 + 3, 3)
    assert first.decisions == {"p: keep": 12, "p: skip": 13}


def answers(name: str, group: str, right: list[int], latency_s: list[float], bound: float | None = None) -> Any:
    told = [bool(one) for one in right]
    return contest.Answered(name, group, bound, told, told, latency_s, [0.001] * len(right))


def test_a_duel_counts_answers_that_are_right_and_in_time() -> None:
    hooked = answers("h", "deadline", [1, 1, 1, 0], [0.9, 0.9, 1.1, 0.9], 1.0)
    late = answers("late", "static", [1, 1, 1, 1], [1.1, 1.1, 1.1, 0.9])
    wrong = answers("wrong", "static", [0, 0, 0, 0], [0.1, 0.1, 0.1, 0.1])
    found = contest.duel(hooked, [wrong, late], 1.0)
    assert (found.best, found.in_time, found.best_in_time, found.met) == ("late", 0.5, 0.25, 0.75)
    # Differences 1, 1, 0, -1: mean 1/4, mean of squares 3/4.
    assert found.error == pytest.approx(((3 / 4 - 1 / 16) / 4) ** 0.5)
    assert not found.won
    wrong = answers("wrong", "static", [0] * 9, [1.0] * 9)
    assert contest.duel(answers("h", "deadline", [1] * 9, [1.0] * 9, 1.0), [wrong], 1.0).won


def test_a_static_point_is_beaten_by_what_is_as_accurate_in_less_time() -> None:
    static = answers("s", "static", [1, 0], [1.0, 2.0])
    others = [
        answers("slower", "tolerance", [1, 1], [1.0, 2.1]),
        answers("worse", "tolerance", [0, 0], [0.1, 0.1]),
        answers("better", "tolerance", [0, 1], [1.0, 1.0]),
        answers("good", "tolerance", [1, 1], [1.0, 1.2]),
    ]
    assert contest.beaten_by(static, others) == others[2]
    assert contest.beaten_by(static, others[:2]) is None


def test_hooks_by_hand_cover_the_network_between_exits() -> None:
    predictor = latpred.load("xeon-silver-4210-x2")
    plan = predictor.plan(NETWORK)
    *regions, first, second = hooks.by_hand(plan)
    assert (first, second) == hooks.EXITS
    assert [one.start for one in regions] == ["image", *(one.end for one in regions[:-1])]
    assert [one.end for one in regions[:-1]] == [plan[name].point.start.tensor for name in hooks.EXITS]
    assert set(hooks.blocks_of(plan, "skip")) <= set(all_blocks())


def all_blocks() -> list[str]:
    return [f"stage{stage}.{block}" for stage, count in ((1, 3), (2, 3), (3, 2)) for block in range(count)]


def test_where_any_deadline_may_come_one_network_has_to_do_for_all() -> None:
    static = [answers("slow", "static", [1, 1], [2.0, 2.0]), answers("quick", "static", [1, 0], [1.0, 1.0])]
    hooked = [
        answers("h: 1", "deadline", [1, 0], [1.0, 1.0], 1.0),
        answers("h: 2", "deadline", [1, 1], [2.0, 2.0], 2.0),
    ]
    assert contest.any_deadline(hooked, static) == {"h": 0.75, "slow": 0.5, "quick": 0.5}


def test_every_option_is_taken_at_all_points_that_have_it() -> None:
    options = {"a": ("keep", "skip", "int8"), "exit after a": ("keep", "exit"), "b": ("keep", "skip")}
    kept = dict.fromkeys(options, "keep")
    assert dict(hooks.everywhere(options)) == {
        "skip, 2 points": kept | {"a": "skip", "b": "skip"},
        "int8, 1 points": kept | {"a": "int8"},
        "exit after a": kept | {"exit after a": "exit"},
    }


def test_the_command_reports_what_was_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "saved.json"
    found = [
        answers("as it is", "static", [1] * 8, [0.002] * 8),
        answers("skip", "level", [1] * 4 + [0] * 4, [0.001] * 8),
        answers("deadline 0.5", "deadline", [1] * 4 + [0] * 4, [0.001] * 8, 0.001),
        answers("tolerance 0.1", "tolerance", [1] * 8, [0.0015] * 8, 0.1),
    ]
    saved.write_text(json.dumps([asdict(one) for one in found]))
    assert hooks.main(["--measured", str(saved), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in said["points"]] == ["as it is", "skip", "tolerance 0.1"]
    assert said["points"][1]["accuracy"] == 0.5
    assert said["points"][0]["error"] == pytest.approx(-0.5)
    (curve,) = said["curve"]
    assert (curve["deadline_ms"], curve["in_time"], curve["best_in_time"], curve["won"]) == (1.0, 0.5, 0.0, True)
    (beaten,) = said["beaten"]
    assert (beaten["by"], beaten["its_accuracy"], beaten["its_mean_ms"]) == ("tolerance 0.1", 1.0, pytest.approx(1.5))
    assert said["any_deadline"] == {"deadline 0.5": 0.5, "as it is": 0.0}
    assert hooks.main(["--measured", str(saved)]) == 0
    assert "than of every static point: deadline 0.5" in capsys.readouterr().out
