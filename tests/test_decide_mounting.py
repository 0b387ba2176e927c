"""Which points are mounted, and the chain that they make against the network with what is saved."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from counting_predictor import CountingPredictor, residual_network
from hypothesis import given
from hypothesis import strategies as st
from synthetic import DEVICE

from latpred.calibration import Calibration, Cutting
from latpred.decide.appraisal import Appraiser, Decision, Estimated
from latpred.decide.costs import Duration
from latpred.decide.identity import Identity
from latpred.decide.mounting import _longer, chosen, costs_of
from latpred.decide.options import Choice
from latpred.decide.points import Point, points
from latpred.decide.pricing import Pricer, start_s
from latpred.device import Device
from latpred.surgery.cuts import Cut, cuts
from latpred.surgery.tidy import tidied


def cut(position: int) -> Cut:
    return Cut(f"t{position}", position, (), (1, 8), "float32", 1)


def decision(name: str, start: int, end: int, saved_s: float, overhead_s: float = 0.1) -> Decision:
    point = Point(name, cut(start), cut(end), (Choice("skip"),), {})
    rate = 0.5 if saved_s > 0 else None
    options = tuple(
        Estimated(level, level, 1.0, Duration(1.0), value, (value, value), given, 0.0, 0)
        for level, value, given in (("keep", -0.1, None), ("skip", saved_s, rate))
    )
    return Decision(name, point, options, overhead_s, 0.0)


REGIONS = st.tuples(st.integers(0, 8), st.integers(1, 4), st.integers(-3, 9), st.integers(1, 6))


@given(st.lists(REGIONS, min_size=1, max_size=8))
def test_what_is_left_out_does_not_pay_or_stands_behind_better_ones(drawn: list[tuple[int, int, int, int]]) -> None:
    decisions = [decision(f"p{i}", a, a + n, float(s), float(o)) for i, (a, n, s, o) in enumerate(drawn)]
    mounted = chosen(decisions, whole_s=100.0, allowance=0.1)
    starts = [one.point.start.position for one in mounted if one.point]
    assert starts == sorted(starts)
    spent_s = sum(one.overhead_s for one in mounted)
    assert spent_s <= 10.0
    for one, other in combinations(mounted, 2):
        assert one.point and other.point and not one.point.overlaps(other.point)
    for left in (one for one in decisions if one not in mounted and one.best_saved_s > 0):
        ratio = left.best_saved_s / left.overhead_s
        better = [one for one in mounted if one.best_saved_s / one.overhead_s >= ratio]
        overlaps = any(one.point and left.point and one.point.overlaps(left.point) for one in better)
        assert overlaps or sum(one.overhead_s for one in better) + left.overhead_s > 10.0


def test_a_generous_allowance_mounts_all_that_pay() -> None:
    decisions = [decision("a", 0, 1, 3.0), decision("b", 1, 2, -1.0), decision("c", 2, 3, 0.5)]
    assert [one.name for one in chosen(decisions, 100.0)] == ["a", "c"]
    assert [one.name for one in chosen(decisions, 100.0, allowance=0.001)] == ["a"]


CYCLE_BYTES = 2**24


def appraiser_of(device: Device, cycle_bytes: int = CYCLE_BYTES, cutting: Cutting | None = None) -> Appraiser:
    """Of a network of residual blocks among others that touch so many bytes, by a predictor that counts."""
    predictor: Any = CountingPredictor()
    predictor.estimator.device = device
    predictor.estimator.calibration = Calibration(cutting=cutting or Cutting())
    model = tidied(residual_network())
    appraiser = Appraiser(model, cuts(model), predictor)
    appraiser.pricer = Pricer(predictor, cycle_bytes)
    appraiser.start_s = start_s(predictor, cycle_bytes, appraiser.whole.peak_bytes)
    return appraiser


def test_a_piece_pays_for_its_own_start_and_for_the_next_one() -> None:
    """Own: at the 2^24 B that all pieces touch. Shared: at the piece's own 2 maps and weights, by hand."""
    own_s, shared_s = 3e-6, 7e-6
    curve = (2**10, 1e-6, 2e-6), (2**30, own_s, shared_s)
    stem_bytes = 4 * (2 * 8 * 16 * 16 + 8 * 8)  # x, t0, weights: 16640 B, 2^14.02
    places = appraiser_of(DEVICE).places
    for device, expected_s in (
        (DEVICE, 2 * DEVICE.dispatch_s),
        (
            replace(DEVICE, start_curve=curve),
            1e-6 + (own_s - 1e-6) * 14 / 20 + 2e-6 + (shared_s - 2e-6) * (np.log2(stem_bytes) - 10) / 20,
        ),
    ):
        stem = [(places[0], places[1])]
        # By itself, what its start costs is in its prediction.
        (idle,), (started,) = (appraiser_of(device, cycle).spans(stem) for cycle in (0, CYCLE_BYTES))
        assert idle.peak_bytes == stem_bytes
        assert started.time.mean_s == pytest.approx(idle.time.mean_s + expected_s)


@pytest.mark.parametrize("cutting", [Cutting(), Cutting(1.5, 0.003)])
def test_every_path_of_the_chain_takes_what_it_saves_less(cutting: Cutting) -> None:
    """Pieces, their starts but the one that the network's prediction holds, and what cuts cost beyond predictions."""
    appraiser = appraiser_of(DEVICE, cutting=cutting)
    whole_s = appraiser.whole.time.mean_s
    for point in points(tidied(residual_network())):
        (decision,) = appraiser.appraised([(point, None)])
        costs = costs_of(appraiser, [decision], Identity("model", "device"), {decision.name})
        (mounted,) = costs.points
        for option, estimated in zip(mounted.options, decision.options, strict=True):
            behind_s = 0.0 if option.ends else costs.after.mean_s
            path_s = mounted.before.mean_s + option.time.mean_s + behind_s
            assert path_s == pytest.approx(whole_s - estimated.saved_s), (point.name, option.name)


def test_the_chain_takes_what_cuts_were_measured_to_cost() -> None:
    """Two blocks, four cuts: 4 more runs of 1 us and 4 more starts of 2 us, times 1.5, and 0.3 % a cut."""
    appraiser = appraiser_of(DEVICE, cutting=Cutting(1.5, 0.003))
    whole_s = appraiser.whole.time.mean_s
    found = {point.name: point for point in points(tidied(residual_network()))}
    blocks = appraiser.appraised([(found[name], None) for name in ("layer.0", "layer.2")])
    costs = costs_of(appraiser, blocks, Identity("model", "device"))
    kept_s = costs.after.mean_s + sum(point.before.mean_s + point.options[0].time.mean_s for point in costs.points)
    gates_s = sum(one.gate_s for one in blocks)
    assert kept_s - gates_s == pytest.approx(whole_s + 1.5 * 4 * (1e-6 + 2 * DEVICE.dispatch_s) + 4 * 0.003 * whole_s)


def test_what_comes_off_a_short_piece_comes_off_the_next_one() -> None:
    trunk = [Duration(1.0, 0.1), Duration(5.0), Duration(3.0)]
    assert _longer(trunk, 1.0, 4.0) == [Duration(2.0, 0.1), Duration(7.0), Duration(5.0)]
    assert _longer(trunk, -3.0, 0.0) == [Duration(0.0, 0.1), Duration(3.0), Duration(3.0)]
    assert _longer(trunk, -2.0, -14.0) == [Duration(0.0, 0.1), Duration(0.0), Duration(0.0)]
