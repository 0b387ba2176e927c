"""What is recorded of runs, how much is kept, and that nobody waits: by hand and against a model that runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from counting_predictor import CountingPredictor
from hooked_networks import blocks
from hypothesis import given
from hypothesis import strategies as st
from surgery_oracle import feeds_of

from latpred.decide.observation import Observation
from latpred.errors import HookError
from latpred.hooks import Hooked, attach
from latpred.hooks.answer import Answer, Heard
from latpred.hooks.reservoir import Reservoir
from latpred.hooks.sampler import ERROR, EVERY, OVERHEAD_BYTES, UNSURE, ErrorTrend, Sampler, Sampling
from latpred.hooks.trainer import Trainer, Training

CRITICAL_39 = 72.05  # chi-square of 39 degrees of freedom: exceeded once in a thousand


def chi_square(keep: Callable[[int], list[int]], items: int, kept: int, trials: int) -> float:
    """Of how often each item is kept, which is kept / items of the trials; draws of one trial exclude each other."""
    counts = np.zeros(items)
    for seed in range(trials):
        counts[keep(seed)] += 1
    expected = trials * kept / items
    return float(((counts - expected) ** 2).sum() / (expected * (1 - kept / items)) * (items - 1) / items)


def kept_of(sizes: list[int], budget_bytes: int, seed: int) -> list[int]:
    reservoir = Reservoir[int](budget_bytes, seed)
    for number, size_bytes in enumerate(sizes):
        reservoir.offer(number, size_bytes)
    return list(reservoir)


def test_every_item_is_kept_equally_often() -> None:
    assert chi_square(lambda seed: kept_of([10] * 40, 89, seed), 40, 8, 1500) < CRITICAL_39
    assert chi_square(lambda seed: sorted(range(40), key=lambda i: i + seed % 9)[:8], 40, 8, 1500) > CRITICAL_39


def test_also_where_larger_items_come_later() -> None:
    """Sixteen of 10 bytes fit, then eight of 20."""
    assert chi_square(lambda seed: kept_of([10] * 20 + [20] * 20, 160, seed), 40, 8, 1500) < CRITICAL_39


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(1, 100))
def test_the_budget_is_held_and_used(sizes: list[int], budget_bytes: int) -> None:
    reservoir = Reservoir[int](budget_bytes)
    for number, size_bytes in enumerate(sizes):
        assert reservoir.offer(number, size_bytes) <= (size_bytes <= budget_bytes)
        assert reservoir.used_bytes == sum(sizes[kept] for kept in reservoir) <= budget_bytes
    possible = [size for size in sizes if size <= budget_bytes]
    assert reservoir.offered == len(possible)
    if possible:
        assert len(reservoir) == min(len(possible), budget_bytes // max(possible))
    drawn = reservoir.drawn(3)
    assert len(set(drawn)) == len(drawn) == min(3, len(reservoir))
    assert set(drawn) <= set(reservoir)


def heard(
    confidence: float | None = None,
    utilities: tuple[float, ...] | None = None,
    decision: str = "keep",
    latency_s: float = 0.001,
) -> Heard:
    features: dict[str, Any] = {"pooled": np.ones((1, 8), np.float32)}
    if confidence is not None:
        features["confidence"] = confidence
    answer = Answer({"y": np.ones((1, 10), np.float32)}, {"p": decision}, latency_s, 0.001)
    seen = (Observation("p", features, utilities=utilities),)
    return Heard({"x": np.ones((1, 25), np.float32)}, answer, seen, {}, {})


SIZE_BYTES = OVERHEAD_BYTES + 4 * (25 + 8 + 10)


def sampler_of(runs_again: bool = True, **numbers: Any) -> Sampler:
    sampling = Sampling(**{"look_every": 1, "every": 1, "apart_s": 0.0, **numbers})
    return Sampler("y", {"p": 0.8}, {"p": 2.0}, runs_again, sampling)


def test_every_so_many_runs_one_is_looked_at_and_of_these_every_so_many_th_recorded() -> None:
    sampler = sampler_of(look_every=5, every=10)
    assert [number for number in range(20) if sampler.wants() is not None] == [0, 5, 10, 15]
    for _ in range(4):
        sampler.heard(heard())
    assert sampler.recorded == {EVERY: 2, UNSURE: 0, ERROR: 0}


def test_looks_lie_apart_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("latpred.hooks.sampler.perf_counter", lambda: now_s)
    sampler = sampler_of(apart_s=0.05)
    wanted = []
    for number in range(8):
        now_s = 100.0 + 0.02 * number
        wanted.append(sampler.wants() is not None)
    assert wanted == [True, False, False, True, False, False, True, False]


@pytest.mark.parametrize(
    ("confidence", "utilities", "unsure"),
    [
        (0.75, None, True),  # 0.8 would have been enough
        (0.89, None, True),
        (0.69, None, False),
        (None, (1.0, 0.81, -3.0), True),  # a tenth of what is at stake is 0.2
        (None, (0.5, 1.0, -1.0), False),
        (None, None, False),
    ],
)
def test_runs_in_which_a_gate_was_unsure_are_recorded(
    confidence: float | None, utilities: tuple[float, ...] | None, unsure: bool
) -> None:
    sampler = sampler_of(every=10)
    for _ in range(4):
        sampler.heard(heard(confidence, utilities))
    assert sampler.recorded == {EVERY: 1, UNSURE: 3 * unsure, ERROR: 0}
    assert [sample.why for sample in sampler.take(9)] == [EVERY] + [UNSURE] * 3 * unsure


def test_an_error_that_stays_does_not_grow() -> None:
    sampler = sampler_of(every=1000)
    for _ in range(300):
        sampler.heard(heard(latency_s=0.0013))
    assert sampler.recorded[ERROR] == 0


def test_runs_are_recorded_while_the_error_grows() -> None:
    sampler = sampler_of(every=1000)
    for latency_s in [0.001] * 50 + [0.002] * 5:
        sampler.heard(heard(latency_s=latency_s))
    assert sampler.recorded[ERROR] == 5
    for _ in range(200):
        sampler.heard(heard(latency_s=0.001))
    before = sampler.recorded[ERROR]
    for _ in range(20):
        sampler.heard(heard(latency_s=0.001))
    assert sampler.recorded[ERROR] == before  # grown no more


def test_the_trend_by_hand() -> None:
    trend, recent, usual = ErrorTrend(), 0.0, 0.0
    seen: list[float] = []
    for latency_s, predicted_s in [(1.0, 1.0), (1.2, 1.0), (1.0, 1.3), (2.0, 1.0), (1.0, 1.0)] * 20:
        error = abs(np.log(latency_s / predicted_s))
        seen.append(error)
        recent = recent * 7 / 8 + error / 8 if len(seen) > 8 else float(np.mean(seen))
        usual = usual * 63 / 64 + error / 64 if len(seen) > 64 else float(np.mean(seen))
        assert trend.grows(latency_s, predicted_s) == (recent > 1.5 * usual + 0.02)
        assert trend.recent == pytest.approx(recent)


def test_what_is_recorded_is_a_copy_and_holds_what_was_perceived() -> None:
    sampler = sampler_of()
    told = heard()
    sampler.heard(told)
    (sample,) = sampler.take(1)
    told.inputs["x"][:] = told.answer.outputs["y"][:] = 7
    assert sample.main_output is not None
    for values in (sample.inputs["x"], sample.main_output, sample.observations[0].features["pooled"]):
        assert (values == 1).all()
    assert (sample.latency_s, sample.predicted_s, sample.size_bytes) == (0.001, 0.001, SIZE_BYTES)


def test_memory_of_inputs_is_used_again_once_it_is_given_back() -> None:
    sampler = sampler_of()
    for value in (1.0, 2.0):
        sampler.heard(replace(heard(), inputs={"x": np.full((1, 25), value, np.float32)}))
    first, second = sampler.take(2)
    sampler.give_back(first)
    for value in (3.0, 4.0):
        sampler.heard(replace(heard(), inputs={"x": np.full((1, 25), value, np.float32)}))
    third, fourth = sampler.take(2)
    assert third.inputs["x"] is first.inputs["x"]
    assert [sample.inputs["x"][0, 0] for sample in (second, third, fourth)] == [2.0, 3.0, 4.0]


def test_inputs_are_recorded_only_where_somebody_runs_them_again() -> None:
    for runs_again, decision, wanted in ((True, "keep", True), (False, "keep", False), (False, "skip", True)):
        sampler = sampler_of(runs_again)
        sampler.heard(heard(decision=decision))
        (sample,) = sampler.take(1)
        assert bool(sample.inputs) == wanted
        assert (sample.main_output is None) == (decision != "keep")


def test_behind_it_drops_and_counts() -> None:
    sampler = sampler_of(budget_bytes=2 * (3 * SIZE_BYTES + 100))
    for _ in range(10):
        sampler.heard(heard())
    assert (sampler.waiting, sampler.dropped, sampler.recorded[EVERY]) == (3, 7, 3)
    assert sampler.waiting_bytes == 3 * SIZE_BYTES
    assert len(sampler.take(2)) == 2
    for _ in range(3):
        sampler.heard(heard())
    assert (sampler.waiting, sampler.dropped) == (3, 8)
    sampler.close()
    assert (sampler.waiting, sampler.waiting_bytes) == (0, 0)
    assert sampler.wants() is None


def hooked_on(points: list[str]) -> Hooked:
    return attach(blocks(), CountingPredictor(), points)  # type: ignore[arg-type]


def test_a_stalled_trainer_keeps_no_run_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    stalled, go_on = threading.Event(), threading.Event()

    def stall(_: Trainer, sample: Any, tries: Any) -> None:
        stalled.set()
        assert go_on.wait(60)

    monkeypatch.setattr(Trainer, "_admit", stall)
    hooked = hooked_on(["layer.0", "layer.1"])
    one_bytes = feeds_of(blocks())["x"].nbytes
    trainer = hooked.train_while_running(Sampling(2, 2, apart_s=0.0, budget_bytes=16 * one_bytes), Training(duty=1.0))
    feeds = feeds_of(blocks())
    hooked.run(feeds)
    assert stalled.wait(60)

    def work() -> None:
        for _ in range(50):
            hooked.run(feeds)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    sampler = trainer.sampler
    assert sampler.dropped > 0
    assert sampler.waiting_bytes <= 8 * one_bytes
    assert sampler.recorded[EVERY] + sampler.dropped == 101  # every second of 201
    go_on.set()
    hooked.release()
    assert not any(thread.name == "latpred-trainer" for thread in threading.enumerate())


def test_observations_hold_zeros_memory_and_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latpred.hooks.stream.clock_hz", lambda: 1.5e9)
    hooked = hooked_on(["exit after layer.0", "layer.1"])
    trainer = Trainer(hooked, Sampling(2, 2, apart_s=0.0))
    hooked.listener = trainer
    for seed in range(4):
        hooked.run(feeds_of(blocks(), seed))
    first, second = trainer.sampler.take(9)[:2]
    for sample in (first, second):
        assert [one.point for one in sample.observations] == list(hooked.points)
        for one in sample.observations:
            assert one.features["pooled"].shape == (1, 8)
            assert one.features["zeros"] == 0.0  # no rectifier in this network
            assert one.resident_bytes
            assert one.clock_hz == 1.5e9
            assert one.predicted_s is not None
    hooked.release()


@pytest.mark.parametrize(
    "numbers",
    [{"every": 0}, {"look_every": 0}, {"every": 12}, {"budget_bytes": 0}, {"unsure_below": -1.0}, {"apart_s": -0.1}],
    ids=str,
)
def test_impossible_sampling_is_refused(numbers: Mapping[str, Any]) -> None:
    with pytest.raises(HookError, match="must"):
        Sampling(**numbers)
    with pytest.raises(HookError, match="budget"):
        Reservoir[int](0)
