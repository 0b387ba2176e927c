"""The arithmetic of the benchmarks' baselines, on cases that can be worked out by hand."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from decide_costs import costs, option
from hypothesis import given
from hypothesis import strategies as st
from synthetic import DEVICE, META, gemm, measured, relu

from latpred import estimators, regressor
from latpred.calibration import Between
from latpred.collect.rounds import MeasuredNetwork, Measurements, Round
from latpred.decide.table import compile_table
from latpred.errors import InputError
from latpred.fit import fit_samples, whole_graphs
from latpred.forest import Forest
from latpred.graph import AttributeValue, Spec
from latpred.kernels.features import FEATURES, features, features_and_terms
from latpred.kernels.fusion import default_rules
from latpred.kernels.kernel import Context, Kernel
from latpred.kernels.roofline import roofline_s
from latpred.metrics import errors_of
from latpred.regressor import Settings
from latpred.store import Dataset, KernelSample, pack_kernel, signature

ROOT = Path(__file__).parent.parent
LSTM = ROOT / "tests" / "networks" / "lstm_2x256bi.onnx"
FAST = Settings(trees=20, learning_rate=0.3)


def benchmark(name: str) -> ModuleType:
    """A script of the folder that is no package."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return import_module(name)
    finally:
        sys.path.pop(0)


nn_meter, ablation, budget = map(benchmark, ("nn_meter", "ablation", "budget"))
deadlines, neighbour = map(benchmark, ("decide_deadlines", "neighbour"))


def kernel_of(
    op_type: str, inputs: list[Spec], output: tuple[int, ...], kind: str = "any", **attributes: AttributeValue
) -> Kernel:
    return Kernel(kind, op_type, "", "k", ("k",), tuple(inputs), (Spec(output),), attributes)


def networks(path: Path = LSTM) -> Measurements:
    """Three rounds of one network; the machine was 10 % slower in the second one."""
    took = ((0.0100, 0.0030), (0.0110, 0.0033), (0.0104, 0.0030))
    rounds = tuple(Round(latency_s, 0.0, reference_s, i) for i, (latency_s, reference_s) in enumerate(took))
    return Measurements("Toy CPU", "onnxruntime", "1.2.3", 1, "2026", (MeasuredNetwork(path.stem, str(path), rounds),))


# -- nn-Meter --------------------------------------------------------------------------------------------------------


def test_convolution_has_the_features_of_the_paper() -> None:
    stem = kernel_of("Conv", [Spec((1, 3, 224, 224)), Spec((32, 3, 3, 3), constant=True)], (1, 32, 112, 112),
                     kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))  # fmt: skip
    parameters = 32 * (3 * 3 * 3 + 1)
    expected = (224, 3, 32, 3, 2, 112 * 112 * parameters / 1e6, parameters / 1e6)
    assert nn_meter.predictor_of(stem) == "conv-bn-relu"
    assert nn_meter.convolution(stem) == pytest.approx(expected)


def test_depthwise_convolution_has_one_filter_a_channel() -> None:
    depthwise = kernel_of("Conv", [Spec((1, 32, 112, 112)), Spec((32, 1, 3, 3), constant=True)], (1, 32, 112, 112),
                          kernel_shape=(3, 3), strides=(1, 1), pads=(1, 1, 1, 1), group=32)  # fmt: skip
    assert nn_meter.predictor_of(depthwise) == "dwconv-bn-relu"
    assert nn_meter.depthwise(depthwise) == pytest.approx((112, 32, 32, 3, 1, 112 * 112 * 320 / 1e6, 320 / 1e6))


def test_matrix_product_forgets_its_rows() -> None:
    few, many = gemm(1, 3072, 768), gemm(197, 3072, 768)
    assert nn_meter.predictor_of(many) == "fc"
    assert nn_meter.fully_connected(few) == nn_meter.fully_connected(many)
    assert nn_meter.fully_connected(few) == pytest.approx((768, 3072, 1537 * 3072 / 2e6, 1537 * 3072 / 1e6))


def test_features_of_the_other_predictors() -> None:
    image, wide = Spec((1, 64, 56, 28)), Spec((1, 96, 56, 28))
    pool = kernel_of("MaxPool", [image], (1, 64, 28, 14), kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    assert nn_meter.pooling(pool) == (56, 64, 64, 3, 2)
    assert nn_meter.elementwise(kernel_of("Relu", [image], image.shape)) == (56, 64)
    assert nn_meter.addition(kernel_of("Add", [image, wide], image.shape)) == (56, 64, 96)
    assert nn_meter.concatenation(kernel_of("Concat", [image, wide], (1, 160, 56, 28))) == (56, 2, 64, 96, 0, 0)
    five = kernel_of("Concat", [image, wide, image, image, wide], (1, 384, 56, 28))
    assert nn_meter.concatenation(five) == (56, 5, 64, 96, 64, 64)


def test_a_kind_without_predictor_counts_as_zero() -> None:
    softmax = kernel_of("Softmax", [Spec((8, 100))], (8, 100), kind="softmax")
    known = relu(64, 64)
    rows = [KernelSample(k, s, 1.0, signature(k), i) for i in range(6) for k, s in ((known, 2e-3), (softmax, 5e-3))]
    forests = nn_meter.fit_forests(rows)
    thrice = replace(known, repeat=3)
    assert nn_meter.predictor_of(softmax) is None
    assert forests.kernels_s([softmax, known]) == pytest.approx([0.0, 2e-3])
    assert forests.networks_s([[softmax, thrice], [known], []]) == pytest.approx([6e-3, 2e-3, 0.0])
    assert forests.networks_s([[softmax, thrice], [known], []], every_kind=True) == pytest.approx([11e-3, 2e-3, 0.0])


def test_forests_learn_absolute_latency_from_shapes() -> None:
    sizes = [8, 16, 32, 64, 128]
    rows = [KernelSample(relu(n, n), n * 1e-6, 1.0, str(n), i) for i in range(8) for n in sizes]
    predicted_s = nn_meter.fit_forests(rows).kernels_s([relu(n, n) for n in sizes])
    assert predicted_s == pytest.approx([n * 1e-6 for n in sizes], rel=0.3)
    assert predicted_s[0] < predicted_s[2] < predicted_s[4]


def test_forests_need_samples() -> None:
    with pytest.raises(InputError, match="latpred collect"):
        nn_meter.fit_forests([])


# -- ablation --------------------------------------------------------------------------------------------------------


def test_hidden_columns_are_those_named_and_no_others() -> None:
    hidden = set(ablation.hidden_columns(ablation.MIRRORING))
    assert {"window_filled_out", "product_filled_n", "product_packing_share", "own_in_near"} < hidden
    assert {"rows_inner_alignment", "resize_resize_filled_row", "window_row_alignment"} < hidden
    assert not hidden & {"macs", "read_bytes", "compute_s", "window_channels_in", "product_m", "window_stride_width"}
    views = set(ablation.hidden_columns(ablation.VIEWS))
    assert "product_m" in views
    assert not views & {"macs", "inner_in", "roofline_s", "own_in_near", "cycle_in_shared"}


def test_variants_that_are_not_there_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation.main(["no_dataset", "no_models", "--measured", "no.json", "--only", "a,z"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: --only takes a, ")
    assert "got z:" in err


def test_every_pattern_hides_something() -> None:
    for variant in ablation.ABLATIONS:
        for pattern in variant.hidden:
            assert ablation.hidden_columns([pattern]), f"{variant.key}: no feature is like {pattern}"


@pytest.mark.parametrize("variant", ablation.ABLATIONS, ids=lambda variant: variant.key)
def test_a_variant_sees_all_but_its_hidden_columns(variant: object) -> None:
    kernels = [gemm(100, 200, 64), relu(64, 64)]
    full, (rows, _) = features(kernels, DEVICE), ablation.seen_by(variant)(kernels, DEVICE)
    hidden = [FEATURES.index(name) for name in ablation.hidden_columns(variant.hidden)]
    rest = [i for i in range(len(FEATURES)) if i not in hidden]
    assert np.isnan(rows[:, hidden]).all()
    np.testing.assert_array_equal(rows[:, rest], full[:, rest])


def test_without_context_a_kernel_stands_by_itself() -> None:
    (variant,) = (v for v in ablation.ABLATIONS if not v.context)
    cold = replace(relu(64, 64), context=Context(reuse_bytes=2**30, cycle_bytes=2**31))
    rows, terms = ablation.seen_by(variant)([cold], DEVICE)
    np.testing.assert_array_equal(rows, features([relu(64, 64)], DEVICE))
    assert terms.total_s[0] < features_and_terms([cold], DEVICE)[1].total_s[0]  # no longer read from off chip


def test_absolute_target_knows_no_roofline() -> None:
    (variant,) = (v for v in ablation.ABLATIONS if not v.roofline_target)
    kernels = [gemm(100, 200, 64), relu(64, 64)]
    _, terms = ablation.seen_by(variant)(kernels, DEVICE)
    assert terms.total_s.tolist() == [1e-6, 1e-6]
    np.testing.assert_array_equal(terms.compute_s, features_and_terms(kernels, DEVICE)[1].compute_s)


def test_one_level_of_memory_is_the_last_one() -> None:
    copied_bytes = 2 * 4 * 64 * 64  # read and written; 10e9 B/s off chip, 1 us of dispatch
    assert roofline_s(relu(64, 64), ablation.one_level(DEVICE)) == pytest.approx(copied_bytes / 10e9 + 1e-6, rel=1e-3)
    assert roofline_s(relu(64, 64), DEVICE) == pytest.approx(copied_bytes / 100e9 + 1e-6, rel=1e-3)


def test_averaged_forest_is_what_lightgbm_predicts() -> None:
    import lightgbm

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 2)).astype(np.float32)
    target = 3 + 2 * rows[:, 0] + rows[:, 1]
    parameters = ablation.RANDOM_FOREST.parameters(len(rows))
    boosters = {
        kind: lightgbm.train(parameters, lightgbm.Dataset(rows, target * size, feature_name=["x", "y"]), trees)
        for kind, size, trees in (("one", 1.0, 5), ("other", -7.0, 8))
    }
    forest = ablation.averaged(Forest.compile({k: b.model_to_string() for k, b in boosters.items()}, ["x", "y"]))
    for kind, booster in boosters.items():
        mine, its = forest.predict(rows, [kind] * len(rows)), booster.predict(rows)
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-4)


def test_patches_last_no_longer_than_the_variant() -> None:
    before = regressor.features_and_terms, estimators.features_and_terms
    (variant,) = (v for v in ablation.ABLATIONS if v.key == "c")
    with ablation.without(variant):
        assert regressor.features_and_terms is not before[0]
    assert before == (regressor.features_and_terms, estimators.features_and_terms)
    rows = measured(graphs=12)
    lawless = fit_samples(rows, [], DEVICE, default_rules(), META, settings=replace(FAST, law=variant.law))
    lawful = fit_samples(rows, [], DEVICE, default_rules(), META, settings=FAST)
    assert not any(kind.law for kind in lawless.kinds)
    assert lawless.bundle.forest.kinds == lawful.bundle.forest.kinds != ()  # trees are grown all the same
    assert all(kind.law for kind in lawful.kinds)


def test_what_stands_behind_the_regressors_is_taken_off() -> None:
    bundle = fit_samples(measured(graphs=12), [], DEVICE, default_rules(), META, settings=FAST).bundle
    bundle = replace(bundle, manifest=replace(bundle.manifest, between=Between(scale=1.1, fixed_s=2e-6)))
    of = {variant.key: ablation.taken_apart(variant, bundle) for variant in ablation.ABLATIONS}
    assert of["a"] == bundle
    assert of["g"].manifest.between == Between()
    assert of["g"].rules == bundle.rules
    assert of["h"].manifest.between == bundle.manifest.between
    assert not any(rule.holds for rule in of["h"].rules.rules.values())


def test_variants_share_the_full_fit_where_only_its_surroundings_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []

    def fitted(variant: object, given: object) -> object:
        fits.append(variant.key)  # type: ignore[attr-defined]
        settings = replace(FAST, trees=5 if variant.key == "d" else 20)  # type: ignore[attr-defined]
        return fit_samples(given.kernels, given.graphs, DEVICE, given.rules, META, settings=settings)  # type: ignore[attr-defined]

    monkeypatch.setattr(ablation, "fit_variant", fitted)
    rows = measured(graphs=12)
    packed = [[{**pack_kernel(r.kernel), "latency_s": r.latency_s} for r in rows if r.record == i] for i in range(12)]
    whole_s = [1.5 * sum(kernel["latency_s"] for kernel in kernels) for kernels in packed]
    records = [{"kernels": kernels, "latency": {"median_s": s}} for kernels, s in zip(packed, whole_s, strict=True)]
    graphs = whole_graphs(enumerate(records))
    given = ablation.Measured(rows, graphs, DEVICE, default_rules(), META, networks())
    results = list(ablation.run([v for v in ablation.ABLATIONS if v.key in "adg"], given))
    assert fits == ["a", "d"]
    assert [result.ablation.key for result in results] == ["a", "d", "g"]
    full, _, bare = results
    assert full.kernel_mape == bare.kernel_mape < results[1].kernel_mape
    assert full.networks != bare.networks
    assert len(ablation.table(results).splitlines()) == 2 + 3


def test_difference_of_two_variants_by_families() -> None:
    errors = errors_of([1.1], [1.0])
    first = ablation.Result(ablation.ABLATIONS[0], errors, {"a": [0.01, 0.03], "b": [0.02]}, 0.1, 0.1)
    worse = replace(first, off={"a": [0.05, 0.03], "b": [0.05]})
    more, low, high = ablation.difference(worse, first)
    assert more == pytest.approx((0.04 + 0.0 + 0.03) / 3)
    # Both families drawn are a, or both are b, in one of four draws each.
    assert (low, high) == pytest.approx((0.04 / 2, 0.03))
    assert ablation.difference(first, first) == (0.0, 0.0, 0.0)


# -- budget ----------------------------------------------------------------------------------------------------------


def test_a_campaign_is_a_budget_and_a_folder() -> None:
    assert budget.parse_campaign("2m=homes/2m") == (2.0, Path("homes/2m"))
    for text in ("homes/2m", "2m=", "soon=homes/2m"):
        with pytest.raises(budget.argparse.ArgumentTypeError):
            budget.parse_campaign(text)


def test_the_dataset_of_a_home(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one dataset"):
        budget.dataset_of(tmp_path)
    Dataset.create(tmp_path / "datasets" / "local-1t", META)
    assert budget.dataset_of(tmp_path) == tmp_path / "datasets" / "local-1t"
    assert budget.dataset_of(tmp_path / "datasets" / "local-1t") == tmp_path / "datasets" / "local-1t"
    Dataset.create(tmp_path / "datasets" / "local-2t", META)
    with pytest.raises(InputError, match="found 2"):
        budget.dataset_of(tmp_path)


def test_a_plot_puts_every_point_where_it_belongs() -> None:
    lines = budget.plot({"o": [(1.0, 10.0), (4.0, 5.0), (16.0, 0.0)]}, "MAPE %", (0.0, 10.0)).splitlines()
    assert lines[0] == "MAPE %"
    rows = [line.partition("|")[2] for line in lines[1:-2]]
    marks = [(y, x) for y, cells in enumerate(rows) for x, cell in enumerate(cells) if cell == "o"]
    middle = (budget.WIDTH - 1) / 2
    assert (marks[0], marks[-1]) == ((0, 0), (budget.HEIGHT - 1, budget.WIDTH - 1))
    assert marks[1][1] == pytest.approx(middle, abs=0.6)  # 4 lies half way from 1 to 16 on a logarithmic axis
    assert marks[1][0] == pytest.approx((budget.HEIGHT - 1) / 2, abs=0.6)
    assert lines[1].split()[0] == "10.0"
    assert lines[-1].split() == ["1", "2", "4", "8", "16", "minutes"]


def test_a_plot_of_one_point_stands() -> None:
    assert "o" in budget.plot({"o": [(15.0, 4.0)]}, "MAPE %")


def test_report_says_what_others_needed() -> None:
    errors = errors_of([1.04, 0.9], [1.0, 1.0])
    text = budget.report([budget.Campaign(1.0, 40, 900, errors), budget.Campaign(15.0, 600, 9000, errors)])
    assert "| 7.00 |" in " ".join(text.split())  # (4 % + 10 %) / 2
    assert "3600" in text  # 2.5 days in minutes
    assert all(name in text for name in ("nn-Meter", "LitePred", "graph networks"))


# -- deadlines -------------------------------------------------------------------------------------------------------


def told(policy: str, latency_s: float, predicted_s: float, utility: float, loaded: bool = False) -> Any:
    return deadlines.Inference(policy, loaded, latency_s, predicted_s, utility, 4e-6, 2)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(-5, 5)), min_size=1, max_size=8),
    st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    st.integers(1, 30),
)
def test_the_oracle_is_the_best_of_what_was_in_time(
    drawn: list[tuple[int, int]], factor: float, deadline_s: int
) -> None:
    front = [way for way in drawn if not any(other != way and _beats(other, way) for other in drawn)]
    in_time = [utility for latency_s, utility in drawn if factor * latency_s <= deadline_s]
    assert deadlines.oracle(sorted(set(front)), factor, deadline_s) == (max(in_time) if in_time else None)


def _beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1]


def test_deadlines_met_and_utility_by_hand() -> None:
    """Ways of 2 and 4 ms, a deadline of 5 ms: all that is slower than 2.5 times the prediction could not be in time."""
    (asked, blind) = deadlines.ORDER[0], "mean only"
    found = [
        told(asked, 4.4e-3, 4e-3, 1.0),  # in time, as useful as could be
        told(asked, 2.4e-3, 2e-3, 0.2),  # 4.8 ms would have done for the better way
        told(asked, 6.0e-3, 4e-3, 1.0, loaded=True),  # late: 1.5 times as slow, only the faster way would have done
        told(asked, 5.2e-3, 2e-3, 0.2, loaded=True),  # not possible
        told(blind, 9.9e-3, 4e-3, 1.0),
    ]
    trial = deadlines.Trial("net", 6e-3, 6e-3, 5e-3, [(2e-3, 0.2), (4e-3, 1.0)], found)
    row = deadlines.figures([trial], asked, 0.9)
    assert (row.inferences, row.possible) == (4, 0.75)
    assert row.met == pytest.approx(2 / 3)
    assert (row.met_resting, row.met_loaded) == (1.0, 0.0)
    assert row.error == pytest.approx((2 / 3 * 1 / 3 / 3) ** 0.5)
    assert row.utility == pytest.approx((0.8 + 0.0 + 0.8) / (0.8 + 0.8 + 0.0))
    assert row.in_time == pytest.approx(0.8 / 1.6)
    assert row.steady == 0.0  # the slowest of three had to be met: always the faster way
    assert deadlines.figures([trial], asked, 0.6).steady == pytest.approx(3 * 0.8 / 1.6)
    assert math.isnan(deadlines.figures([trial], blind).steady)
    assert row.decision_s == pytest.approx(2e-6)
    assert row.deciding == pytest.approx((4e-6 / 4.4e-3 + 4e-6 / 5.2e-3) / 2)
    both = deadlines.figures([trial, trial], asked, 0.9)
    assert (both.inferences, both.met, both.utility) == (8, row.met, row.utility)


def test_distance_to_the_confidence_is_in_points() -> None:
    name = deadlines.asked_of("optimal", 0.9)
    found = [told(name, 4e-3 if number else 5.5e-3, 4e-3, 1.0) for number in range(20)]
    found.append(told("mean only", 4e-3, 4e-3, 1.0))
    trial = deadlines.Trial("net", 6e-3, 6e-3, 5e-3, [(2e-3, 0.2), (4e-3, 1.0)], found)
    _, _, asked, blind = deadlines.report([trial]).splitlines()
    assert asked.split()[:7] == ["optimal", "90", "%", "20", "100.0", "95.0", "5.0"]
    assert blind.split()[:5] == ["mean", "only", "1", "100.0", "100.0"]


def test_blind_policies_keep_their_margin_and_never_learn() -> None:
    """1 ms is spent, 5 ms are needed to keep the region, 1 ms to skip it."""
    table = compile_table(costs([[option("keep", 4e-3, 1.0), option("skip", 0.0, 0.5)]], trunk_s=1e-3))

    def chosen(deadline_s: float) -> dict[str, int]:
        answers = {}
        for policy in deadlines.policies(table, deadline_s, clock=None):
            policy.gate.begin()
            policy.gate.spent(1e-3)
            answers[policy.name] = policy.gate.decide(0)
            assert policy.told == policy.name.startswith(("optimal", "safe-greedy"))
        return answers

    keep, skip = 0, 1
    picked = {deadline_s: chosen(deadline_s) for deadline_s in (5.9e-3, 6.1e-3, 7.4e-3, 7.6e-3)}
    assert [answers["mean only"] for answers in picked.values()] == [skip, keep, keep, keep]
    assert [answers["fixed margin 1.3"] for answers in picked.values()] == [skip, skip, skip, keep]
    assert [answers["keep everything"] for answers in picked.values()] == [keep] * 4


def test_load_comes_and_goes_by_its_seed() -> None:
    one, same, other = (neighbour.Schedule(7.0, seed) for seed in (0, 0, 1))
    switches_s, now_s = [], 7.0
    for number in range(50):
        assert one.is_on(now_s) == (number % 2 == 1)
        now_s = one.next_s(now_s)
        switches_s.append(now_s)
    gaps_s = np.diff([7.0, *switches_s])
    assert neighbour.LEAST_S <= gaps_s.min() < gaps_s.max() <= neighbour.MOST_S
    later_s = switches_s[-1] - 1e-6  # asked for the first time, and not from the beginning
    assert same.is_on(later_s) == one.is_on(later_s)
    assert other.next_s(7.0) != one.next_s(7.0)


def test_a_watched_gate_learns_only_where_it_is_told() -> None:
    """Pieces take 1.5 times what was predicted: who learns of it sees a slower machine."""
    table = compile_table(costs([[option("keep", 4e-3, 1.0), option("skip", 0.0, 0.5)]], trunk_s=1e-3))
    for told in (True, False):
        gate = table.gate(1.0, 0.5, clock=None)
        watched = deadlines.Watched(gate, told)
        for _ in range(20):
            watched.begin()
            assert watched.deciding_s == 0.0
            assert watched.decide(0) == 0
            watched.observe(0, 6e-3)
            watched.finish(7.5e-3)
        assert (gate.slowdown > 1.2) == told
        assert watched.deciding_s > 0.0


@pytest.mark.measure
def test_a_few_real_inferences_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATPRED_HOME", str(tmp_path))
    saved = tmp_path / "saved.json"
    network = ROOT / "tests" / "networks" / "mobilenet_v2.onnx"
    assert deadlines.main([str(network), "--runs", "10", "--save", str(saved)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mobilenet_v2: ")
    for kind, confidence in deadlines.ASKED:
        assert printed.count(deadlines.asked_of(kind, confidence)) == 2
    assert deadlines.main(["--measured", str(saved)]) == 0
    assert capsys.readouterr().out == printed
