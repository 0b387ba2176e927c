"""The slow-down: steps are followed, noise is not; and the multiple of the margin comes to the share asked for."""

from __future__ import annotations

from math import inf, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latpred.decide.conformal import AdaptiveQuantile
from latpred.decide.slowdown import SlowDown
from latpred.errors import InputError

NOISE = 0.02


def run(slow: SlowDown, rng: np.random.Generator, factor: float, number: int) -> list[float]:
    """Factors after each of some observations."""
    seen = []
    for _ in range(number):
        slow.update(factor * 0.01 * float(np.exp(rng.normal(0.0, NOISE))), 0.01)
        seen.append(slow.factor)
    return seen


@pytest.mark.parametrize("step", [1.5, 2.0, 1 / 1.5, 0.5, 1.15])
@pytest.mark.parametrize("seed", range(20))
def test_a_step_is_followed_within_10_observations(step: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    slow = SlowDown(0.03, NOISE)
    run(slow, rng, 1.0, 100)
    after = run(slow, rng, step, 20)
    assert all(abs(log(factor / step)) < 2.5 * NOISE for factor in after[9:])


def test_steady_noise_is_averaged_out() -> None:
    errors, spreads = [], []
    for seed in range(20):
        slow = SlowDown(0.03, NOISE)
        rng = np.random.default_rng(seed)
        run(slow, rng, 1.3, 50)
        errors += [log(factor / 1.3) for factor in run(slow, rng, 1.3, 200)]
        spreads.append(slow.variance**0.5)
    assert np.std(errors) < NOISE / 2  # one observation alone would be off by NOISE
    assert NOISE * 0.8 < np.median(spreads) < NOISE * 1.4  # what the next run scatters by


def test_one_outlier_moves_little_and_two_are_a_change() -> None:
    slow = SlowDown(0.03, NOISE)
    for _ in range(50):
        slow.update(0.01, 0.01)
    slow.update(0.05, 0.01)
    assert slow.factor < 1.03
    slow.update(0.05, 0.01)
    assert slow.factor > 4.5


def test_a_ramp_is_followed() -> None:
    slow = SlowDown(0.03, NOISE)
    rng = np.random.default_rng(0)
    errors = []
    for number in range(200):
        factor = float(np.exp(0.01 * number))
        slow.update(factor * 0.01 * float(np.exp(rng.normal(0.0, NOISE))), 0.01)
        errors.append(abs(log(slow.factor / factor)))
    assert np.median(errors[20:]) < 2 * NOISE


def test_the_first_estimate_weighs_the_shared_error_against_noise() -> None:
    slow = SlowDown(shared_spread=0.04, noise_spread=0.03)
    assert slow.variance == pytest.approx(np.expm1(0.04**2 + 0.03**2))
    slow.update(0.0105, 0.01)
    gain = (0.04**2 + 0.002**2) / (0.04**2 + 0.002**2 + 0.03**2)
    assert log(slow.factor) == pytest.approx(gain * log(1.05))


def test_a_piece_of_uncertain_prediction_counts_less() -> None:
    certain, uncertain = SlowDown(0.03, 0.02), SlowDown(0.03, 0.02)
    certain.update(0.0105, 0.01)
    uncertain.update(0.0105, 0.01, own_variance=0.1**2)
    assert 1.0 < uncertain.factor < 1.01 < certain.factor


def test_another_clock_rescales_at_once() -> None:
    slow = SlowDown(0.03, 0.02)
    before = slow.variance
    slow.rescale(2.0)
    assert slow.factor == pytest.approx(2.0)
    assert slow.variance > before


@pytest.mark.parametrize("times", [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (inf, 1.0), (1.0, 0.0)])
def test_times_must_be_positive(times: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="positive and finite"):
        SlowDown(0.03, 0.02).update(*times)


@given(st.lists(st.floats(1e-6, 1e3), max_size=60))
def test_no_sequence_of_times_breaks_the_filter(times_s: list[float]) -> None:
    slow = SlowDown(0.03, 0.02)
    for time_s in times_s:
        slow.update(time_s, 0.01)
        assert 0.0 < slow.factor < inf
        assert 0.0 < slow.variance < inf
        assert min([0.01, *times_s]) * 0.9 < slow.factor * 0.01 < max([0.01, *times_s]) * 1.1


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("noise", ["normal", "heavy", "too wide"])
def test_the_multiple_becomes_the_quantile_of_whatever_the_noise_is(confidence: float, noise: str) -> None:
    rng = np.random.default_rng(7)
    draw = {
        "normal": lambda: rng.normal(),
        "heavy": lambda: rng.standard_t(3),
        "too wide": lambda: 0.5 * rng.normal(),
    }[noise]
    quantile = AdaptiveQuantile(confidence)
    missed = []
    for _ in range(4000):
        miss = bool(draw() > quantile.z)
        missed.append(miss)
        quantile.update(miss)
    assert abs(1.0 - np.mean(missed) - confidence) < 0.01


def test_only_what_says_something_moves_the_multiple() -> None:
    quantile = AdaptiveQuantile(0.99)
    start = quantile.z
    quantile.update(missed=True, possible=False)
    quantile.update(missed=False, limited=False)
    assert quantile.z == start
    quantile.update(missed=True, limited=False)
    up = quantile.z
    assert up > start
    quantile.update(missed=False, limited=False)
    assert start < quantile.z < up
    for _ in range(10_000):
        quantile.update(missed=False)
    assert quantile.z == -4.0
    assert AdaptiveQuantile(0.3).z == 0.0
    quantile = AdaptiveQuantile(0.9)
    for _ in range(20):
        quantile.update(missed=False)
    low = quantile.z
    quantile.update(missed=False, limited=False)
    assert quantile.z == low
