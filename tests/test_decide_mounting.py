"""The mounted regions against every subset that does not overlap; the chain against the network with what is saved."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from counting_predictor import CountingPredictor, residual_network
from hypothesis import given
from hypothesis import strategies as st
from synthetic import DEVICE

from latpred.decide.appraisal import Appraiser, Decision, Estimated
from latpred.decide.costs import Duration
from latpred.decide.identity import Identity
from latpred.decide.mounting import chosen, costs_of
from latpred.decide.options import Choice
from latpred.decide.points import Point, points
from latpred.decide.pricing import Pricer, without_weights
from latpred.device import Device
from latpred.surgery.cuts import Cut, cuts
from latpred.surgery.tidy import tidied


def cut(position: int) -> Cut:
    return Cut(f"t{position}", position, (), (1, 8), "float32", 1)


def decision(name: str, start: int, end: int, saved_s: float) -> Decision:
    point = Point(name, cut(start), cut(end), (Choice("skip"),), {})
    rate = 0.5 if saved_s > 0 else None
    options = tuple(
        Estimated(level, level, 1.0, Duration(1.0), value, (value, value), given, 0.0, 0)
        for level, value, given in (("keep", -0.1, None), ("skip", saved_s, rate))
    )
    return Decision(name, point, options, 0.1, 0.0)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 4), st.integers(-3, 9)), min_size=1, max_size=8))
def test_mounted_regions_save_most(drawn: list[tuple[int, int, int]]) -> None:
    decisions = [decision(f"p{i}", a, a + length, float(s)) for i, (a, length, s) in enumerate(drawn)]
    mounted = chosen(decisions, 100.0)
    best = 0.0
    for count in range(1, len(decisions) + 1):
        for subset in combinations(decisions, count):
            spans = sorted((one.point.start.position, one.point.end.position) for one in subset if one.point)
            if all(end <= start for (_, end), (start, _) in pairwise(spans)):
                best = max(best, sum(one.best_saved_s for one in subset))
    assert sum(one.best_saved_s for one in mounted) == best
    starts = [one.point.start.position for one in mounted if one.point]
    assert starts == sorted(starts)


CYCLE_BYTES = 2**24


def appraiser_of(device: Device, cycle_bytes: int = CYCLE_BYTES) -> Appraiser:
    """Of a network of residual blocks among others that touch so many bytes, by a predictor that counts."""
    predictor: Any = CountingPredictor()
    predictor.estimator.device = device
    model = without_weights(tidied(residual_network()))
    appraiser = Appraiser(model, cuts(model), predictor)
    appraiser.pricer = Pricer(predictor, cycle_bytes)
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
        idle, started = (appraiser_of(device, cycle).span(places[0], places[1]) for cycle in (0, CYCLE_BYTES))
        assert idle.peak_bytes == stem_bytes
        assert idle.start_s == 0.0  # by itself, what it costs is in its prediction
        assert started.start_s == pytest.approx(expected_s)
        assert started.time.mean_s == pytest.approx(idle.time.mean_s + expected_s)


def test_every_path_of_the_chain_has_as_many_starts_as_pieces_less_one() -> None:
    """One start is in the prediction of the network as it is, which savings are taken off."""
    appraiser = appraiser_of(DEVICE)
    whole_s = appraiser.whole.time.mean_s
    for point in points(tidied(residual_network())):
        decision = appraiser.appraised(point)
        costs = costs_of(appraiser, [decision], Identity("model", "device"), {decision.name})
        (mounted,) = costs.points
        for option, estimated in zip(mounted.options, decision.options, strict=True):
            behind_s = 0.0 if option.ends else costs.after.mean_s
            path_s = mounted.before.mean_s + option.time.mean_s + behind_s
            assert path_s == pytest.approx(whole_s - estimated.saved_s), (point.name, option.name)


def test_a_start_longer_than_the_first_piece_comes_off_the_next_one() -> None:
    slow = appraiser_of(replace(DEVICE, start_curve=((1, 0.0, 1e-9), (2**13, 0.0, 1e-9), (2**30, 0.0, 1e-3))))
    first, last = slow.places[0], slow.places[-1]
    blocks = [
        slow.appraised(point) for point in points(tidied(residual_network())) if point.name in ("layer.0", "layer.2")
    ]
    costs = costs_of(slow, blocks, Identity("model", "device"))
    pieces = [
        slow.span(a, b) for a, b in ((first, blocks[0].point.start), (blocks[0].point.end, blocks[1].point.start))
    ]
    start_s = slow.span(first, last).start_s
    assert pieces[0].time.mean_s < start_s < pieces[0].time.mean_s + pieces[1].time.mean_s
    assert costs.points[0].before.mean_s == 0.0
    assert costs.points[1].before.mean_s == pytest.approx(pieces[0].time.mean_s + pieces[1].time.mean_s - start_s)
    assert costs.after.mean_s == slow.span(blocks[1].point.end, last).time.mean_s
