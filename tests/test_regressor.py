"""The law of a made-up machine is learned, held out by shape, the same with any number of processes."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import DEVICE, SLOWNESS, latency_s, measured, relu

from latpred.errors import InputError
from latpred.forest import Forest
from latpred.kernels.features import FEATURES, features_and_terms
from latpred.kernels.roofline import roofline_s
from latpred.law import law_s, law_terms
from latpred.regressor import (
    FEWEST_FOR_LAW,
    FEWEST_FOR_TREES,
    Samples,
    Settings,
    fit_kinds,
    held_out_s,
    weighted_median,
)

FAST = Settings(trees=60, learning_rate=0.15)


def samples(rows: list) -> Samples:
    return Samples(
        [r.kernel for r in rows], np.array([r.latency_s for r in rows]), np.array([r.weight for r in rows]),
        [r.group for r in rows], [r.record for r in rows],
    )  # fmt: skip


ROWS = measured(40)
FITTED = {kind.kind: kind for kind in fit_kinds(samples(ROWS), DEVICE, FAST)}


def test_the_law_is_learned_on_shapes_held_out() -> None:
    truth = np.array([latency_s(r.kernel) for r in ROWS])
    for kind in FITTED.values():
        assert kind.model
        assert np.abs(kind.held_out_s / truth[kind.members] - 1).mean() < 0.05
    assert FITTED["unary"].ratio == pytest.approx(SLOWNESS["unary"], rel=0.02)


def test_compiled_models_predict_new_kernels() -> None:
    forest = Forest.compile({kind: fitted.model for kind, fitted in FITTED.items()}, FEATURES)
    fresh = [r.kernel for r in measured(5, seed=99)]
    rows, terms = features_and_terms(fresh, DEVICE)
    of_kernel = law_terms(rows, terms)
    by_law_s = [law_s(FITTED[k.kind].law, of_kernel[[i]], terms.total_s[[i]])[0] for i, k in enumerate(fresh)]
    predicted = by_law_s * np.exp(forest.predict(rows, [k.kind for k in fresh]))
    assert np.abs(predicted / [latency_s(k) for k in fresh] - 1).mean() < 0.05


def test_predictions_held_out_are_those_of_the_fit() -> None:
    predicted_s = held_out_s(samples(ROWS), DEVICE, FAST)
    for kind in FITTED.values():
        np.testing.assert_array_equal(predicted_s[kind.members], kind.held_out_s)


def test_a_shape_is_never_on_both_sides() -> None:
    # Each shape's latency is its own secret: whoever predicts one held out must be wrong.
    rng = np.random.default_rng(1)
    kernels = [relu(8 * i + 8, 64) for i in range(60) for _ in range(5)]
    secret = np.repeat(np.exp(rng.normal(0, 1, 60)), 5)
    times = secret * np.array([roofline_s(k, DEVICE) for k in kernels])
    groups = [str(k.outputs[0].shape) for k in kernels]
    (kind,) = fit_kinds(Samples(kernels, times, np.ones(300), groups, list(range(300))), DEVICE, FAST)
    errors = np.log(kind.held_out_s / times)
    assert np.median(np.abs(errors)) > 0.3


def test_a_record_is_never_on_both_sides() -> None:
    # Each graph ran at a speed of its own, and its shapes tell which: held out, nobody can know it.
    kernels = [relu(2 ** (3 + record), 8 + 8 * i) for record in range(6) for i in range(50)]
    speed = np.repeat([1.0, 8.0, 1.0, 8.0, 1.0, 8.0], 50)
    times = speed * np.array([roofline_s(k, DEVICE) for k in kernels])
    groups = [str(k.outputs[0].shape) for k in kernels]
    together = Samples(kernels, times, np.ones(300), groups, list(np.repeat(np.arange(6), 50)))
    apart = Samples(kernels, times, np.ones(300), groups, [0] * 300)
    (whole,), (mixed,) = (fit_kinds(samples, DEVICE, FAST) for samples in (together, apart))
    assert np.median(np.abs(np.log(mixed.held_out_s / times))) < 0.4
    assert np.median(np.abs(np.log(whole.held_out_s / times))) > 1.0


@pytest.mark.parametrize(("shapes", "by_law"), [(FEWEST_FOR_LAW - 1, False), (FEWEST_FOR_TREES - 1, True)])
def test_few_shapes_get_their_median_ratio_or_a_law_alone(shapes: int, by_law: bool) -> None:
    kernels = [relu(8, 8 * i + 8) for i in range(shapes)] * 3
    times = np.array([4.0 * roofline_s(k, DEVICE) for k in kernels])
    groups = [str(k.inputs) for k in kernels]
    (kind,) = fit_kinds(Samples(kernels, times, np.ones(len(times)), groups, [0] * len(times)), DEVICE)
    assert (kind.model, bool(kind.law)) == ("", by_law)
    assert kind.ratio == pytest.approx(4.0)
    assert kind.held_out_s == pytest.approx(times)


def test_one_lone_shape_is_held_out_from_nothing() -> None:
    kernel = relu(8, 8)
    (kind,) = fit_kinds(Samples([kernel], np.array([1e-5]), np.ones(1), ["one"], [0]), DEVICE)
    assert kind.held_out_s == pytest.approx([roofline_s(kernel, DEVICE)])  # nothing known: the bare roofline


def test_the_result_does_not_depend_on_the_number_of_processes() -> None:
    again = {kind.kind: kind for kind in fit_kinds(samples(ROWS), DEVICE, FAST, jobs=2)}
    for name, kind in FITTED.items():
        assert again[name].model == kind.model
        assert (again[name].held_out_s == kind.held_out_s).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_latencies_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="positive"):
        fit_kinds(Samples([relu(8, 8)], np.array([bad]), np.ones(1), ["a"], [0]), DEVICE)
    with pytest.raises(InputError, match="latpred collect"):
        fit_kinds(Samples([], np.zeros(0), np.zeros(0), [], []), DEVICE)


def test_weighted_median() -> None:
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 1.0])) == 2.0
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([5.0, 1.0, 1.0])) == 3.0
