"""Baselines of benchmarks/accuracy.py on cases that can be worked out by hand, its command, and its variants."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from synthetic import relu
from test_benchmarks import LSTM, benchmark, kernel_of, networks
from test_predictor import BUNDLE

from latpred.calibration import Between
from latpred.collect.rounds import load, save
from latpred.comparison import Compared
from latpred.estimators import LearnedEstimator
from latpred.graph import Spec
from latpred.prediction import KernelPrediction, Prediction
from latpred.predictor import Predictor
from latpred.validation import compare, family_of

accuracy, variants = benchmark("accuracy"), benchmark("variants")


def row(family: str, measured_s: float, flops: float, traffic: float = 0.0, launches: float = 0.0) -> Any:
    prediction = Prediction(family, "toy", measured_s, (0.9 * measured_s, 1.1 * measured_s), 0.9, 1.0, ())
    one = Compared(family, family, prediction, (measured_s,), (2 * measured_s,))
    return accuracy.Row(one, flops, traffic, launches, measured_s / 4, measured_s * 3)


def test_linear_baseline_recovers_a_planted_law() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        flops, traffic, launches = 10 ** rng.uniform(8, 10), 10 ** rng.uniform(6, 8), float(rng.integers(10, 300))
        rows.append(row(f"f{i}", 2e-11 * flops + 1e-10 * traffic + 3e-6 * launches, flops, traffic, launches))
    predicted_s = accuracy.linear_baseline(rows, accuracy.work_columns)
    assert predicted_s == pytest.approx([r.measured_s for r in rows], rel=1e-6)
    # One family measures ten times too slow: its own networks must not tell the law that predicts them.
    slow = [replace(r, compared=replace(r.compared, steady_s=(10 * r.measured_s,))) for r in rows[:1]]
    again_s = accuracy.linear_baseline([*slow, *rows[1:]], accuracy.work_columns)
    assert again_s[0] == pytest.approx(rows[0].measured_s, rel=1e-6)


def test_flops_baseline_leaves_the_family_out() -> None:
    rows = [row("slow", 4.0, 1e9), row("slow", 8.0, 2e9), row("fast", 1.0, 1e9), row("fast", 3.0, 2e9)]
    # Of the others: 1e-9 and 1.5e-9 s/FLOP for the slow ones, 4e-9 twice for the fast ones.
    assert accuracy.flops_baseline(rows) == pytest.approx([1.25, 2.5, 4.0, 8.0])


def test_methods_on_one_table() -> None:
    rows = [row("a", 4.0, 1e9), row("b", 8.0, 2e9), row("c", 1.0, 3e9)]
    by_method = accuracy.methods(rows, None)
    assert list(by_method) == ["latpred", "unfused", "roofline", "FLOPs + traffic", "FLOPs"]
    assert by_method["latpred"].errors.mape == pytest.approx(0.0)
    assert by_method["latpred"].raw_mape == pytest.approx(0.5)  # the clock gave twice as much
    assert by_method["unfused"].errors.mape == pytest.approx(2.0)
    assert by_method["roofline"].errors.bias == pytest.approx(-0.75)
    assert "Kendall" in accuracy.summary_table(by_method)
    assert list(accuracy.methods(rows[:1], None)) == ["latpred", "unfused", "roofline"]  # no other family to learn from


def test_share_of_time_that_nn_meter_does_not_know() -> None:
    softmax = kernel_of("Softmax", [Spec((8, 100))], (8, 100), kind="softmax")
    entries = tuple(KernelPrediction(k, s, "learned", "memory", s) for k, s in ((softmax, 1e-3), (relu(8, 8), 3e-3)))
    one = row("a", 4e-3, 1e9)
    known = replace(one, compared=replace(one.compared, prediction=replace(one.compared.prediction, kernels=entries)))
    assert accuracy.without_predictor([known]) == pytest.approx(0.25)


def test_noise_floor_takes_every_round_for_a_prediction() -> None:
    floor = accuracy.noise_floor(compare(networks(), Predictor(LearnedEstimator(BUNDLE))))
    # Drift cancelled 10.0, 10.0 and 10.4 ms, raw 10.0, 11.0 and 10.4 ms: each against the median of the other two.
    assert floor.errors.mape == pytest.approx((0.2 / 10.2 + 0.2 / 10.2 + 0.4 / 10.0) / 3)
    assert floor.raw_mape == pytest.approx((0.7 / 10.7 + 0.8 / 10.2 + 0.1 / 10.5) / 3)


def test_unfused_ops_have_something_between_them_too() -> None:
    def unfused_s(between: Between) -> float:
        manifest = replace(BUNDLE.manifest, between=between)
        predictor = Predictor(LearnedEstimator(replace(BUNDLE, manifest=manifest)))
        (one,) = accuracy.rows_of(compare(networks(), predictor), {LSTM.stem: LSTM}, predictor)
        return float(one.unfused_s)

    sum_s = unfused_s(Between())
    assert sum_s > 0
    assert unfused_s(Between(scale=1.5, fixed_s=3e-3)) == pytest.approx(1.5 * sum_s + 3e-3)
    assert unfused_s(Between(per_launch_s=1e-3)) - sum_s >= 1e-3


@pytest.mark.parametrize(("asked", "threads"), [(None, 4), (2, 2)])
def test_networks_run_with_the_predictors_threads_unless_told(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, threads: int
) -> None:
    monkeypatch.setattr(accuracy.rounds, "measure_rounds", lambda models, runner, plan, *_, **__: plan)
    predictor = Predictor(LearnedEstimator(replace(BUNDLE, manifest=replace(BUNDLE.manifest, threads=4))))
    options = argparse.Namespace(materialize=None, threads=asked, budget=0.7, rounds=1)
    plan = accuracy.measure({LSTM.stem: LSTM}, options, predictor)
    assert (plan.threads, plan.latency_budget_s, plan.profile) == (threads, 0.7, False)


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A predictor of a made-up machine, and no dataset beside it."""
    predictor = Predictor(LearnedEstimator(BUNDLE), ["latency of another machine"])
    monkeypatch.setattr(accuracy.latpred, "load", lambda *_: predictor)
    monkeypatch.setattr(accuracy, "forests_of", lambda options: None)


def no_constant(text: str) -> float:
    raise AssertionError(f"{text} is no JSON")


@pytest.mark.usefixtures("toy")
def test_accuracy_from_saved_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(networks(), tmp_path / "measured.json")
    code = accuracy.main([str(LSTM), "--measured", str(tmp_path / "measured.json"), "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out, parse_constant=no_constant)  # one network has no rank correlation
    assert code == 0
    assert found["networks"] == 1
    assert found["drift"] == pytest.approx(1.1)
    assert set(found["methods"]) >= {"latpred", "unfused", "another measurement"}
    assert found["methods"]["latpred"]["spearman"] is None
    assert "warning: latency of another machine" in err


@pytest.mark.usefixtures("toy")
def test_one_round_has_no_noise_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (network,) = networks().networks
    save(replace(networks(), networks=(replace(network, rounds=network.rounds[:1]),)), tmp_path / "measured.json")
    argv = [str(LSTM), "--measured", str(tmp_path / "measured.json")]
    assert accuracy.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=no_constant)
    assert found["retest"] is None
    assert "another measurement" not in found["methods"]
    assert accuracy.main(argv) == 0
    assert "Two rounds differ by - %" in capsys.readouterr().out


@pytest.mark.usefixtures("toy")
def test_what_an_interrupted_run_measured_is_kept_and_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = replace(networks(), interrupted=True)
    monkeypatch.setattr(accuracy, "measure", lambda *_: part)
    kept = tmp_path / "kept.json"
    argv = [str(LSTM), "--save", str(kept)]
    assert accuracy.main(argv) == 1
    out, err = capsys.readouterr()
    assert "another measurement" in out
    assert "interrupted: " in err
    assert load(kept) == part
    monkeypatch.setattr(accuracy, "measure", lambda *_: replace(part, networks=()))
    assert accuracy.main(argv) == 1
    assert load(kept) == part  # nothing does not take the place of something


@pytest.mark.usefixtures("toy")
def test_what_cannot_be_saved_is_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "measure", None)
    assert accuracy.main([str(LSTM), "--save", str(tmp_path)]) == 1
    assert "is a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        accuracy.main([str(LSTM), "--measured", "m.json", "--save", "m.json"])


# -- variants ------------------------------------------------------------------------------------------------------


def test_what_variants_writes_is_of_its_networks_family(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 64, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "net.onnx")
    assert variants.main([str(tmp_path / "net.onnx"), "--out", str(tmp_path / "others"), "--each", "2"]) == 0
    written = sorted(path.stem for path in (tmp_path / "others").iterdir())
    assert len(written) == 2
    assert {family_of(name, {"net": "convolutional"}) for name in written} == {"convolutional"}
