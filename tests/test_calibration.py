"""What lies between kernels is recovered from made-up graphs; intervals cover what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latpred.calibration import (
    UNKNOWN_SPREAD,
    Between,
    Calibration,
    Launches,
    Parts,
    Spread,
    conformal_multiples,
    fit_between,
    fit_spread,
    kind_spread,
    parts_of,
)
from latpred.kernels.kernel import Kernel
from latpred.tensors import Spec


def test_what_lies_between_is_recovered_despite_outliers() -> None:
    rng = np.random.default_rng(0)
    kernels_s = 10 ** rng.uniform(-4, -1, 400)
    number = rng.integers(20, 300, 400)
    operands = number * rng.uniform(2, 4, 400)
    dims = operands * rng.uniform(1, 5, 400)
    whole_s = 1.02 * kernels_s - 1.2e-6 * number - 0.2e-6 * operands - 0.05e-6 * dims + 8e-6
    whole_s *= np.exp(rng.normal(0, 0.005, 400))
    whole_s[::20] *= 1.5  # a disturbed minute
    keep = np.flatnonzero(whole_s > 0.35 * kernels_s)
    launches = [Launches(number[i], operands[i], dims[i]) for i in keep]
    between = fit_between(kernels_s[keep], launches, whole_s[keep])
    assert between.scale == pytest.approx(1.02, abs=0.005)
    assert between.per_launch_s == pytest.approx(-1.2e-6, abs=0.15e-6)
    assert between.per_operand_s == pytest.approx(-0.2e-6, abs=0.05e-6)
    assert between.per_dim_s == pytest.approx(-0.05e-6, abs=0.01e-6)


def test_without_graphs_kernels_simply_add_up() -> None:
    assert fit_between([], [], []) == Between()
    few = fit_between([1e-3], [Launches(10, 20, 40)], [2e-3])  # one odd graph does not overturn that
    assert few.whole_s(1e-3, Launches(10, 20, 40)) < 1.2e-3


def test_a_network_is_never_far_below_its_kernels() -> None:
    assert Between(1.0, -1e-6).whole_s(9e-6, Launches(1000)) == pytest.approx(3e-6)


def test_launches_count_operands_and_dims_of_every_repetition() -> None:
    image, scale, row = Spec((1, 8, 4, 4)), Spec((8, 1, 1), constant=True), Spec((8,))
    mul = Kernel("binary", "Mul", "", "a", ("a",), (image, scale), (image,), repeat=3)
    view = Kernel("view", "Flatten", "", "b", ("b",), (image,), (row,))
    assert Launches.of([mul, view]) == (3 + 1, 3 * 3 + 2, 3 * (4 + 3 + 4) + 4 + 1)


def test_spread_by_hand() -> None:
    kinds, times = ["a", "a", "b"], np.array([3.0, 1.0, 4.0])
    # a takes 1/2 in shares 3/8 and 1/8, b takes 1/2 in one shape; half of a kind's error is shared
    expected = math.sqrt(
        0.02**2
        + (4e6 * 1e-6 / 8.0) ** 2
        + 0.1**2 * (0.5 * (1 / 2) ** 2 + 0.8 * ((3 / 8) ** 2 + (1 / 8) ** 2))
        + UNKNOWN_SPREAD**2 * (0.5 * (1 / 2) ** 2 + 0.8 * (1 / 2) ** 2)
    )
    calibration = Calibration(Spread(0.02, 0.5**0.5, 0.8**0.5, 1e-6), {"a": 0.1})
    assert calibration.spread_of(kinds, times, [0, 1, 2], 4e6) == pytest.approx(expected)
    # two kernels of one shape share their whole error
    assert parts_of({"a": 0.1}, ["a", "a"], np.array([1.0, 1.0]), [5, 5], 0) == pytest.approx((0.01, 0.01, 0.0))
    assert parts_of({}, [], np.zeros(0), [], 0).shared == UNKNOWN_SPREAD**2


@given(st.integers(0, 1000))
def test_weights_of_the_parts_are_found_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = Spread(0.02, 0.3, 1.4, 2e-6)
    parts = [Parts(*row) for row in np.exp(rng.uniform(np.log([1e-4, 1e-4, 1e7]), np.log([0.1, 0.02, 1e10]), (800, 3)))]
    errors = rng.standard_t(4, len(parts)) * [truth.of(part) for part in parts]
    found = fit_spread(errors, parts, Spread(0.01))
    assert (found.own, found.launch_s) == pytest.approx((1.4, 2e-6), rel=0.35)
    spreads = np.array([found.of(part) / truth.of(part) for part in parts])
    assert np.median(spreads) == pytest.approx(1.0, rel=0.1)
    assert fit_spread([], [], truth) == truth


def test_few_samples_leave_a_kind_uncertain() -> None:
    assert kind_spread(np.zeros(0), np.zeros(0)) == UNKNOWN_SPREAD
    assert kind_spread(np.full(3, 0.01), np.ones(3)) == UNKNOWN_SPREAD
    assert kind_spread(np.full(100, 0.01), np.ones(100)) == pytest.approx(0.01)


@given(st.integers(30, 400), st.integers(0, 1000))
def test_conformal_intervals_cover_new_networks(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spreads = rng.uniform(0.01, 0.3, count)
    multiples = conformal_multiples(rng.standard_t(4, count) * spreads, spreads)
    calibration = Calibration(Spread(0.02), {}, multiples)
    new_spreads = rng.uniform(0.01, 0.3, 4000)
    truth = np.exp(rng.standard_t(4, 4000) * new_spreads)
    low, high = np.array([calibration.interval_s(1.0, s, 0.8) for s in new_spreads]).T
    # coverage varies as Beta(0.8 n, 0.2 n): four standard deviations around it
    assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / count) + 0.03)


def test_multiples_grow_with_coverage_and_survive_json() -> None:
    calibration = Calibration(Spread(0.02), {"a": 0.1}, conformal_multiples(np.linspace(0.01, 1, 99), np.ones(99)))
    values = [calibration.multiple(c) for c in (0.05, 0.3, 0.5, 0.8, 0.9, 0.98, 0.999)]
    assert values == sorted(values)
    assert values[0] > 0
    assert Calibration.from_dict(calibration.to_dict()) == calibration
