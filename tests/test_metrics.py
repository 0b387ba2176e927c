"""Error measures against values worked out by hand, and rank correlations against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latpred.errors import InputError
from latpred.metrics import errors_of, kendall, relative_errors, spearman


def test_measures_by_hand() -> None:
    errors = errors_of([1.1, 0.8, 2.0, 4.2], [1.0, 1.0, 2.0, 4.0])  # +10 %, -20 %, 0, +5 %
    assert errors.count == 4
    assert errors.mape == pytest.approx((0.10 + 0.20 + 0 + 0.05) / 4)
    assert errors.median == pytest.approx((0.05 + 0.10) / 2)
    assert errors.bias == pytest.approx((0.10 - 0.20 + 0 + 0.05) / 4)
    assert errors.rmspe == pytest.approx(math.sqrt((0.10**2 + 0.20**2 + 0.05**2) / 4))
    assert (errors.within_5, errors.within_10) == (2 / 4, 3 / 4)
    assert errors.worst == pytest.approx(0.20)
    # Ranks 1 0 2 3 against 0.5 0.5 2 3: covariance 4.5, variances 5 and 4.5.
    assert errors.spearman == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    # Of 6 pairs 5 agree; the one of the first two is tied in what was measured.
    assert errors.kendall == pytest.approx(5 / math.sqrt(6 * 5))


@pytest.mark.parametrize(("predicted", "measured"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_what_cannot_be_compared_is_refused(predicted: list[float], measured: list[float]) -> None:
    with pytest.raises(InputError):
        relative_errors(predicted, measured)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_rank_correlations_agree_with_scipy(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = np.array(pairs, float).T
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(spearman(a, b))
        assert math.isnan(kendall(a, b))
        return
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-9)


def test_kendall_over_more_pairs_than_are_compared_at_a_time() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a = rng.integers(0, 50, 700).astype(float)
    b = a + rng.integers(0, 40, 700)
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)
