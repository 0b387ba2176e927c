"""Predicted against measured, on numbers worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import DEVICE, gemm, relu
from test_predictor import BUNDLE

from latpred.collect.rounds import MeasuredNetwork, Measurements, Round, names_of
from latpred.collect.runner import NullRunner, ProfiledKernel, RunResult
from latpred.comparison import measured_again, retest, steady
from latpred.errors import InputError, MeasurementError, ModelError
from latpred.estimators import AnalyticalEstimator, LearnedEstimator
from latpred.kernels.kernel import Kernel
from latpred.prediction import KernelPrediction, Prediction
from latpred.predictor import Predictor
from latpred.report.validation import validation_object, validation_text
from latpred.validation import Validation, compare, family_of, load_families, measure, plan_for, predictable

NETWORKS = Path(__file__).parent / "networks"
US = 1e-6


def event(kernel: Kernel, latency_us: float, launches: float = 1.0) -> ProfiledKernel:
    """What the profiler would say of a kernel; weights are packed away."""
    inputs = tuple((spec.shape, spec.dtype) for spec in kernel.inputs if not spec.constant)
    outputs = tuple((spec.shape, spec.dtype) for spec in kernel.outputs)
    return ProfiledKernel(kernel.name, kernel.op_type, inputs, outputs, latency_us * US, 0.0, 0.0, 20, launches)


RELU = replace(relu(64, 64, "r"), repeat=2)
PRODUCT = gemm(64, 96, 128, "g")
LONE = relu(8, 8, "never_run")
OTHER = relu(64, 64, "s")
STRANGE = ProfiledKernel("x", "Softmax", (), (((1, 5), "float32"),), 7 * US, 0.0, 0.0, 20)

# Usual reference: median of 1.0, 1.2, 1.0, 1.0 ms. The second round of "a" was measured in a minute 1.2 times slower.
A = MeasuredNetwork(
    "resnet__a", "a.onnx",
    (
        Round(0.010, 0.0, 0.0010, 0, (event(RELU, 50, 2), event(PRODUCT, 10), STRANGE)),
        Round(0.012, 0.0, 0.0012, 1, (event(RELU, 66, 2), event(PRODUCT, 12), replace(STRANGE, latency_s=8.4 * US))),
    ),
)  # fmt: skip
B = MeasuredNetwork(
    "lstm", "b.onnx",
    (Round(0.020, 0.0, 0.0010, 0, (event(OTHER, 60),)), Round(0.022, 0.0, 0.0010, 1, (event(OTHER, 60),))),
)  # fmt: skip
MEASURED = Measurements("Toy CPU", "onnxruntime", "1.2.3", 1, "2026-01-02T03:04:05Z", (A, B), {"crashed": "signal 11"})


def predicted(latency_s: float, interval_s: tuple[float, float], kernels: Mapping[float, Kernel]) -> Prediction:
    entries = tuple(KernelPrediction(kernel, us * US, "learned", "compute", 0.0) for us, kernel in kernels.items())
    return Prediction("net", "toy", latency_s, interval_s, 0.9, 1.0, entries)


ANSWERS = {
    "a.onnx": predicted(0.0095, (0.009, 0.011), {100: RELU, 12: PRODUCT, 1: LONE}),
    "b.onnx": replace(predicted(0.0231, (0.022, 0.024), {90: OTHER}), warnings=("dim 0 is open",)),
}


class Told:
    """A predictor whose answers are written down."""

    device = "toy"
    warnings = ("latency of another machine",)

    def __init__(self, reference_s: float | None = None) -> None:
        self.estimator = AnalyticalEstimator(DEVICE)
        self.estimator.reference_s = reference_s

    def predict(self, path: str, dims: object = None, shapes: object = None) -> Prediction:
        if path not in ANSWERS:
            raise ModelError(f"cannot read {path}")
        return ANSWERS[path]


def validated(measured: Measurements = MEASURED, reference_s: float | None = None, **given: Any) -> Validation:
    return compare(measured, Told(reference_s), **given)


def test_drift_is_cancelled_by_the_reference() -> None:
    assert steady(A, 0.001) == pytest.approx([0.010, 0.010])
    assert steady(A, 0.002) == pytest.approx([0.020, 0.020])
    assert retest([1.0, 3.0, 3.0]) == pytest.approx((2 / 2 + 2 / 2 + 0) / 3)
    assert math.isnan(retest([1.0]))


def test_networks_by_hand() -> None:
    found = validated()
    a, b = found.compared
    assert (a.measured_s, a.raw_measured_s) == (pytest.approx(0.010), pytest.approx(0.011))
    assert (a.retest, a.raw_retest) == (pytest.approx(0.0), pytest.approx(0.002 / 0.011))
    assert (b.measured_s, b.retest) == (pytest.approx(0.021), pytest.approx(0.002 / 0.021))
    assert (a.error, b.error) == (pytest.approx(-0.05), pytest.approx(0.10))
    assert found.errors.mape == pytest.approx(0.075)
    assert found.errors.bias == pytest.approx(0.025)
    assert found.raw_errors.mape == pytest.approx(((0.011 - 0.0095) / 0.011 + 0.10) / 2)
    assert (a.inside, b.inside, found.coverage) == (True, False, 0.5)
    assert found.width == pytest.approx((0.002 / 0.0095 + 0.002 / 0.0231) / 2)
    assert found.retest == pytest.approx(0.002 / 0.021 / 2)
    assert found.raw_retest == pytest.approx((0.002 / 0.011 + 0.002 / 0.021) / 2)
    assert found.drift == pytest.approx(1.2)


def test_the_noise_floor_is_every_round_as_a_prediction_of_the_others() -> None:
    found = validated()
    assert found.noise is not None
    # 10 against 10 ms both times; 20 against 22 ms, and 22 against 20 ms
    assert found.noise.mape == pytest.approx((0 + (2 / 22 + 2 / 20) / 2) / 2)
    assert found.noise.bias == pytest.approx((2 / 20 - 2 / 22) / 2 / 2)
    assert found.noise.worst == pytest.approx((2 / 22 + 2 / 20) / 2)
    assert found.noise_ratio == pytest.approx(0.075 / ((2 / 22 + 2 / 20) / 4))
    once = validated(replace(MEASURED, networks=tuple(replace(n, rounds=n.rounds[:1]) for n in (A, B))))
    assert once.noise is None
    assert math.isnan(once.noise_ratio)
    assert math.isnan(once.retest)


def test_the_noise_floor_knows_no_first_round() -> None:
    rounds_s = [0.010, 0.011, 0.013], [0.5, 0.4, 0.4]
    found = measured_again(rounds_s)
    assert found is not None
    # 10 against 12, 11 against 11.5, 13 against 10.5; 0.5 against 0.4, and 0.4 against 0.45 twice
    sizes = (2 / 12 + 0.5 / 11.5 + 2.5 / 10.5, 0.1 / 0.4 + 2 * 0.05 / 0.45)
    assert found.mape == pytest.approx(sum(sizes) / 6)
    assert found.count == 2
    again = measured_again([rounds[::-1] for rounds in rounds_s])
    assert again is not None
    assert again.mape == pytest.approx(found.mape)
    assert again.bias == pytest.approx(found.bias)
    assert measured_again([[1.0], [2.0]]) is None


def test_a_perfect_prediction_lies_below_the_floor_by_what_the_report_says() -> None:
    rounds_s = np.random.default_rng(0).normal(1.0, 0.01, (2000, 3))
    floor = measured_again(rounds_s.tolist())
    assert floor is not None
    assert np.abs(1.0 / np.median(rounds_s, axis=1) - 1).mean() / floor.mape == pytest.approx(0.55, abs=0.03)


def test_the_noise_ratio_is_of_the_networks_that_were_measured_again() -> None:
    found = validated(replace(MEASURED, networks=(replace(A, rounds=A.rounds[:1]), B)))
    assert found.errors.mape == pytest.approx(0.075)
    assert found.noise is not None
    assert found.noise.count == 1
    assert found.noise_ratio == pytest.approx(0.10 / ((2 / 22 + 2 / 20) / 2))  # only of the second network
    text = validation_text(found)
    assert "noise floor of 1 " in text
    assert "two rounds or more (1), MAPE is 1.05 times" in text


def test_families_are_named_or_read_off_the_name() -> None:
    assert {family: errors.mape for family, errors in validated().by_family.items()} == {
        "resnet": pytest.approx(0.05), "lstm": pytest.approx(0.10),
    }  # fmt: skip
    together = validated(families={"lstm": "all", "resnet__a": "all"}).by_family
    assert together["all"].count == 2
    assert family_of("a__b__c", {}) == "a"


def test_a_variant_is_of_its_networks_family() -> None:
    families = {"vit_s": "transformer", "vit_s-b2r128": "special"}
    assert family_of("vit_s-b1r128", families) == "transformer"
    assert family_of("vit_s-b2r128", families) == "special"
    assert family_of("resnet__18-b1r96", {}) == "resnet"
    assert family_of("vit_s-b1", families) == "vit_s-b1"


def test_kernels_by_hand() -> None:
    found = validated()
    a, b = found.compared
    # Relu: 2 x 50 us, and 2 x 66 us in a minute 1.2 times slower: 100 and 110 us
    measured_us = [None if measured_s is None else measured_s / US for _, measured_s in a.kernels]
    assert measured_us == [pytest.approx(105), pytest.approx(10), None]
    assert a.unmatched_s == pytest.approx(7 * US)
    assert b.unmatched_s == 0
    unary, product = found.by_kind["unary"], found.by_kind["gemm"]
    assert list(found.by_kind) == ["unary", "gemm"]
    errors = (2.5 / 52.5, 30 / 60)  # a launch: 50 against 52.5 us, 90 against 60 us
    assert (unary.count, unary.share) == (2, pytest.approx(165 / 175))
    assert (unary.median, unary.mape) == (pytest.approx(sum(errors) / 2), pytest.approx(sum(errors) / 2))
    assert unary.above_20us == pytest.approx((sum(errors) / 2, sum(errors) / 2))
    assert (product.count, product.mape, product.above_20us) == (1, pytest.approx(0.2), None)
    assert found.kernels_above_20us is not None
    assert found.kernels_above_20us.count == 2
    assert found.kernels_above_20us.bias == pytest.approx((errors[1] - errors[0]) / 2)


def test_kernels_that_miss_most_are_grouped_by_shape() -> None:
    found = validated()
    first, second = found.misses
    of_relu, of_product = 5 * US / 0.010 + 30 * US / 0.021, 2 * US / 0.010  # relative to their networks
    assert (first.kind, first.count, first.networks) == ("unary", 2, 2)
    assert first.share_of_error == pytest.approx(of_relu / (of_relu + of_product))
    assert (first.predicted_s, first.measured_s) == (pytest.approx(190 * US), pytest.approx(165 * US))
    assert (second.kind, second.error_s) == ("gemm", pytest.approx(2 * US))
    worst = found.compared[0].worst_kernel
    assert worst is not None
    assert (worst.name, worst.error_s) == ("r", pytest.approx(-5 * US))
    assert worst.share_of_error == pytest.approx(5 / 7)


def test_latencies_without_a_profile_are_compared_all_the_same() -> None:
    bare = tuple(replace(n, rounds=tuple(replace(one, kernels=()) for one in n.rounds)) for n in (A, B))
    found = validated(replace(MEASURED, networks=bare))
    assert found.errors.mape == pytest.approx(0.075)
    assert (found.by_kind, found.misses, found.kernels_above_20us) == ({}, (), None)
    assert found.compared[0].worst_kernel is None
    assert "misses most" in validation_text(found)


def test_what_could_not_be_compared_is_told() -> None:
    gone = replace(A, name="gone", path="gone.onnx")
    assert validated(replace(MEASURED, networks=(A, gone))).failed == {
        "crashed": "signal 11", "gone": "cannot read gone.onnx",
    }  # fmt: skip
    with pytest.raises(MeasurementError, match=r"crashed: signal 11; gone: cannot read gone\.onnx"):
        validated(replace(MEASURED, networks=(gone,)))


def test_the_machine_is_compared_with_that_of_the_campaign_where_it_is_known() -> None:
    assert validated().machine_ratio is None
    found = validated(reference_s=0.0008)
    assert found.machine_ratio == pytest.approx(1.25)
    assert [one.measured_s for one in found.compared] == pytest.approx([0.010 * 0.8, 0.021 * 0.8])
    assert found.raw_errors == validated().raw_errors


def test_the_regime_says_what_the_predictor_has_seen() -> None:
    assert "nothing was measured" in validated().regime
    learned = Told()
    learned.estimator = LearnedEstimator(BUNDLE)
    learned.estimator.reference_s = 0.0008
    found = compare(MEASURED, learned)
    assert f"({BUNDLE.manifest.records} records)" in found.regime
    assert "Toy CPU, onnxruntime 1.2.3, 1 thread" in found.regime
    assert "README" in found.regime
    assert found.warnings == Told.warnings  # same processor, runtime and threads
    other = compare(replace(MEASURED, threads=2, processor="Other CPU"), learned)
    assert [text for text in other.warnings if "threads" in text and "1, measured was 2" in text]
    assert [text for text in other.warnings if "Other CPU" in text]
    # the campaign's speed is a yardstick for its own machine only
    assert found.machine_ratio == pytest.approx(1.25)
    assert other.machine_ratio is None
    assert [one.measured_s for one in other.compared] == pytest.approx([0.010, 0.021])
    elsewhere = compare(replace(MEASURED, provider="CUDAExecutionProvider"), learned)
    assert elsewhere.warnings[len(Told.warnings) :] == (
        "provider: the predictor is of CPUExecutionProvider, measured was CUDAExecutionProvider",
    )


def test_families_must_be_a_json_object(tmp_path: Path) -> None:
    path = tmp_path / "families.json"
    path.write_text('{"a": "b"}')
    assert load_families(path) == {"a": "b"}
    for text in ("[]", '{"a": 1}', "no json"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"families\.json"):
            load_families(path)


# -- measuring ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_predicted_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"this is no model")
    runners: list[NullRunner] = []

    def runner() -> NullRunner:
        runners.append(NullRunner(lambda model, call: RunResult((0.002,))))
        return runners[-1]

    monkeypatch.setattr("latpred.validation.OrtRunner", runner)
    predictor = Predictor(LearnedEstimator(BUNDLE))
    known, unknown = predictable(names_of([NETWORKS / "lstm_2x256bi.onnx", tmp_path / "bad.onnx"]), predictor)
    assert known == {"lstm_2x256bi": NETWORKS / "lstm_2x256bi.onnx"}
    assert list(unknown) == ["bad"]
    assert isinstance(unknown["bad"], ModelError)
    assert "bad.onnx" in str(unknown["bad"])
    assert runners == []
    measured = measure(known, plan_for(predictor, budget_s=0.7), rounds=2)
    assert [(network.name, network.path) for network in measured.networks] == [
        ("lstm_2x256bi", str(NETWORKS / "lstm_2x256bi.onnx"))
    ]
    assert [len(one.plans) for one in runners] == [3, 3]  # reference, network, reference, twice
    assert runners[0].plans[1].profile
    assert runners[0].plans[1].latency_budget_s == 0.7


def test_networks_run_as_the_predictor_was_measured() -> None:
    manifest = replace(BUNDLE.manifest, threads=4, provider="OtherProvider")
    predictor = Predictor(LearnedEstimator(replace(BUNDLE, manifest=manifest)))
    plans = plan_for(predictor), plan_for(predictor, threads=2, profile=False)
    assert [(plan.threads, plan.provider, plan.profile) for plan in plans] == [
        (4, "OtherProvider", True), (2, "OtherProvider", False),
    ]  # fmt: skip
    assert plan_for(Predictor(AnalyticalEstimator(DEVICE))).threads == 1


# -- the report ---------------------------------------------------------------------------------------------------


def test_the_report_tells_everything_worst_first() -> None:
    text = validation_text(validated())
    rows = [line for line in text.splitlines() if line.startswith(("lstm ", "resnet__a "))]
    assert rows[0].split()[:7] == ["lstm", "21", "23.1", "+10.0", "no", "9", "9.5"]
    assert rows[1].split()[:8] == ["resnet__a", "10", "9.5", "-5.0", "yes", "21", "0.0", "-0.005"]
    summary = {line.split("  ")[0]: line.split()[-3:] for line in text.splitlines() if "  " in line}
    assert summary["MAPE %"] == ["7.50", "4.77", "11.82"]
    assert summary["bias %"] == ["+2.50", "+0.23", "-1.82"]
    assert summary["within 10 %"] == ["100.0", "100.0", "50.0"]
    assert summary["Kendall"] == ["1.0000", "1.0000", "1.0000"]
    for part in (
        "90% interval: 50.0 % of the networks inside", "MAPE is 1.57 times", "took 1.20 times the fastest",
        "a perfect prediction would lie below that floor",
        "warning: latency of another machine", "warning: lstm: dim 0 is open",
        f"{100 * 7 / 182:.2f} % of the profiled time",
    ):  # fmt: skip
        assert part in text
    assert "takes 1.25 times what it took" in validation_text(validated(reference_s=0.0008))


def test_the_object_holds_the_same_and_no_nan() -> None:
    once = validated(replace(MEASURED, networks=(replace(A, rounds=A.rounds[:1]),)))
    assert math.isnan(once.errors.spearman)
    row = json.loads(json.dumps(validation_object(once), allow_nan=False))
    assert row["errors"]["spearman"] is None
    assert row["noise_floor"] is None
    row = json.loads(json.dumps(validation_object(validated()), allow_nan=False))
    assert [network["name"] for network in row["networks"]] == ["lstm", "resnet__a"]
    assert row["networks"][1]["kernel_that_misses_most"]["error_ms"] == pytest.approx(-0.005)
    assert row["errors"]["mape"] == pytest.approx(0.075)
    assert row["kinds"]["gemm"]["above_20us"] is None
    assert row["failed"] == {"crashed": "signal 11"}
    assert row["unmatched_share"] == pytest.approx(7 / 182)
