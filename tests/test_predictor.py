"""From an ONNX model to a prediction, with a bundle of a made-up machine and with analytical devices."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from synthetic import DEVICE, META, gemm, latency_s, measured, relu

import latpred
from latpred import predictor as predictors
from latpred.bundle import Bundle
from latpred.calibration import Launches
from latpred.errors import ArtefactError, DeviceError, ModelError, UnsupportedError
from latpred.estimators import LearnedEstimator
from latpred.fit import WholeGraph, fit_samples
from latpred.graph import Spec
from latpred.kernels.fusion import default_rules
from latpred.kernels.kernel import Kernel, Work
from latpred.predictor import Predictor, to_csv
from latpred.regressor import Settings


def bundle() -> Bundle:
    rows = measured(30)
    sums_s = [sum(row.latency_s for row in rows if row.record == record) for record in range(30)]
    graphs = [WholeGraph(record, sum_s, Launches(10), sum_s + 10 * 0.5e-6) for record, sum_s in enumerate(sums_s)]
    settings = Settings(trees=60, learning_rate=0.15)
    return fit_samples(rows, graphs, DEVICE, default_rules(), META, settings=settings).bundle


BUNDLE = bundle()


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(LearnedEstimator(BUNDLE))


def model(
    rows: object = 64, width: int = 128, tail: tuple[str, ...] = ("Relu",), dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """Gemm, then unary ops; the runtime fuses a Relu right behind the Gemm."""
    x = helper.make_tensor_value_info("x", dtype, [rows, width])
    item_bytes = helper.tensor_dtype_to_np_dtype(dtype).itemsize
    weight = helper.make_tensor("w", dtype, [width, 96], bytes(width * 96 * item_bytes), raw=True)
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h0"], "product")]
    for i, op_type in enumerate(tail):
        nodes.append(helper.make_node(op_type, [f"h{i}"], [f"h{i + 1}"], f"{op_type}{i}"))
    y = helper.make_tensor_value_info(f"h{len(tail)}", dtype, [rows, 96])
    return helper.make_model(
        helper.make_graph(nodes, "toy-net", [x], [y], [weight]), opset_imports=[helper.make_opsetid("", 17)]
    )


def test_the_network_is_the_sum_of_its_kernels_and_what_lies_between(predictor: Predictor) -> None:
    prediction = predictor.predict(model(tail=("Neg", "Abs")))
    assert [(k.kernel.kind, k.source) for k in prediction.kernels] == [
        ("gemm", "learned"), ("unary", "learned"), ("unary", "learned")
    ]  # fmt: skip
    assert prediction.kernels[0].latency_s == pytest.approx(latency_s(gemm(64, 96, 128)), rel=0.15)
    assert prediction.kernels[1].latency_s == pytest.approx(latency_s(relu(64, 96)), rel=0.1)
    between = BUNDLE.manifest.between
    sum_s = sum(k.latency_s for k in prediction.kernels)
    launches = Launches(3, 3 + 2 + 2, 2 * (3 + 2 + 2))  # a product and two unary ones of matrices
    assert prediction.latency_s == pytest.approx(between.whole_s(sum_s, launches))
    assert (prediction.model, prediction.device, prediction.coverage) == ("toy-net", "toy", 1.0)
    low_s, high_s = prediction.interval_s
    assert low_s < prediction.latency_s < high_s
    assert prediction.warnings == ()


def test_intervals_widen_with_what_they_cover(predictor: Predictor) -> None:
    widths = []
    for share in (0.5, 0.8, 0.9, 0.99):
        low_s, high_s = predictor.predict(model(), interval=share).interval_s
        widths.append(high_s / low_s)
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    with pytest.raises(ValueError, match="between 0 and 1"):
        predictor.predict(model(), interval=1.0)


def test_json_has_the_promised_fields(predictor: Predictor) -> None:
    row = json.loads(json.dumps(predictor.predict(model(tail=("Neg", "Identity", "Abs"))).to_dict()))
    assert {"model", "device", "latency_ms", "interval_ms", "interval", "coverage", "kernels", "warnings"} == set(row)
    assert row["interval_ms"][0] < row["latency_ms"] < row["interval_ms"][1]
    assert row["interval"] == 0.9
    first = row["kernels"][0]
    assert {"kind", "ops", "latency_ms", "source", "bound", "macs", "flops", "traffic_bytes"} <= set(first)
    assert first["macs"] == 64 * 128 * 96
    assert first["traffic_bytes"] == 4 * (64 * 128 + 128 * 96 + 64 * 96)  # input, weights, output
    ops = [op for kernel in row["kernels"] for op in kernel["ops"]]
    assert sorted(ops) == ["Abs2", "Identity1", "Neg0", "product"]  # each op once
    free = [kernel for kernel in row["kernels"] if kernel["source"] == "free"]
    assert [kernel["ops"] for kernel in free] == [["Identity1"]]
    assert free[0]["latency_ms"] == 0


def test_frames_and_csv_tell_the_same(predictor: Predictor) -> None:
    prediction = predictor.predict(model())
    frame = prediction.to_frame()
    assert list(frame["latency_ms"]) == [k.latency_s * 1e3 for k in prediction.kernels]
    rows = list(csv.DictReader(io.StringIO(to_csv([prediction, prediction]))))
    assert len(rows) == 2 * len(prediction.kernels)
    assert float(rows[0]["latency_ms"]) == pytest.approx(frame["latency_ms"][0])
    assert rows[0]["model"] == "toy-net"


def test_unknown_kinds_fall_back_to_their_kin_and_say_so(predictor: Predictor) -> None:
    prediction = predictor.predict(model(tail=("Neg", "Tanh")))
    tanh = prediction.kernels[2]
    assert (tanh.kernel.kind, tanh.source) == ("transcendental", "roofline")
    ratio = BUNDLE.manifest.kinds["unary"].ratio  # transcendental's kin
    assert tanh.latency_s == pytest.approx(tanh.roofline_s * ratio)
    assert prediction.coverage == pytest.approx(1 - tanh.latency_s / sum(k.latency_s for k in prediction.kernels))
    (warning,) = prediction.warnings
    assert "transcendental: 1 kernel" in warning
    assert "median of unary" in warning
    known = predictor.predict(model(tail=("Neg",)))
    assert prediction.interval_s[1] / prediction.latency_s > known.interval_s[1] / known.latency_s
    with pytest.raises(UnsupportedError, match="transcendental"):
        predictor.predict(model(tail=("Neg", "Tanh")), strict=True)
    assert predictor.predict(model(), strict=True).coverage == 1.0


def test_a_kind_without_any_kin_takes_the_median_of_all(predictor: Predictor) -> None:
    estimator = predictor.estimator
    assert isinstance(estimator, LearnedEstimator)
    assert estimator.ratio_of("unheard-of") == (
        "all kinds", float(np.median([k.ratio for k in BUNDLE.manifest.kinds.values()]))
    )  # fmt: skip


def test_dtypes_that_nobody_measured_are_pointed_out(predictor: Predictor) -> None:
    warnings = predictor.predict(model(dtype=TensorProto.DOUBLE)).warnings
    assert any("float64" in warning for warning in warnings)


def test_trees_of_other_features_are_refused() -> None:
    other = replace(BUNDLE, forest=replace(BUNDLE.forest, features=("something", "else")))
    with pytest.raises(ArtefactError, match="latpred fit"):
        LearnedEstimator(other)


def test_repeated_launches_count_each_time(predictor: Predictor) -> None:
    spec = Spec((64, 64))
    once = Kernel("unary", "Relu", "", "r", ("r",), (spec,), (spec,), work=Work(0, 4096, 16384, 16384))
    looped = Kernel("unary", "Relu", "", "r", ("r",), (spec,), (spec,), work=Work(0, 4096, 16384, 16384), repeat=7)
    one, seven = predictor.predict_kernels([once, looped])
    assert seven.latency_s == pytest.approx(7 * one.latency_s)
    assert seven.roofline_share == pytest.approx(one.roofline_share)


def test_dims_change_the_answer_and_the_same_model_is_known_again(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    symbolic = model("rows")
    small = predictor.predict(symbolic, dims={"rows": 8})
    large = predictor.predict(symbolic, dims={"rows": 512})
    assert large.latency_s > 2 * small.latency_s
    monkeypatch.setattr(predictors, "read", None)  # a second look must not read
    assert predictor.predict(symbolic, dims={"rows": 8}).latency_s == small.latency_s
    assert predictor.predict(symbolic, dims={"rows": 8}, interval=0.5).interval_s != small.interval_s


def test_paths_bytes_and_protos_agree(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(model(), path)
    answers = predictor.predict_many([path, str(path), path.read_bytes(), model()])
    assert len({answer.latency_s for answer in answers}) == 1
    assert [answer.model for answer in answers] == [str(path), str(path), "model", "toy-net"]
    with pytest.raises(ModelError):
        predictor.predict(b"no model")


# -- whose predictor answers --------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships nothing, and a home of one's own that is empty."""
    monkeypatch.setattr("latpred.home.shipped_home", lambda: tmp_path / "shipped")
    monkeypatch.setenv("LATPRED_HOME", str(tmp_path / "own"))
    monkeypatch.setattr("latpred.home.processor_name", lambda: "Toy CPU")
    monkeypatch.setattr(predictors, "installed_runtime", lambda: "1.2.3")
    return tmp_path


def test_own_measurements_answer_for_local_without_a_word(shipped: Path) -> None:
    BUNDLE.save(shipped / "own" / "models" / "local-1t")
    BUNDLE.save(shipped / "shipped" / "models" / "reference-1t")
    assert latpred.load().warnings == ()
    assert latpred.predict(model()).warnings == ()


def test_a_shipped_predictor_says_whose_latency_it_is(shipped: Path) -> None:
    BUNDLE.save(shipped / "shipped" / "models" / "reference-1t")
    (warning,) = latpred.load().warnings
    assert "Toy CPU, onnxruntime 1.2.3, 1 thread" in warning
    assert "`latpred collect --device local`" in warning
    assert latpred.predict(model()).warnings == (warning,)


@pytest.mark.parametrize(("threads", "command"), [(None, "--device local`"), (2, "--device local --threads 2`")])
def test_nothing_answers_where_nothing_fits(shipped: Path, threads: int | None, command: str) -> None:
    if threads:
        BUNDLE.save(shipped / "own" / "models" / "local-1t")
        BUNDLE.save(shipped / "shipped" / "models" / "reference-1t")
    with pytest.raises(DeviceError, match="latpred collect") as raised:
        latpred.load(threads=threads)
    assert command in str(raised.value)


def test_another_machine_runtime_or_name_is_refused(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BUNDLE.save(shipped / "own" / "models" / "local-1t")
    monkeypatch.setattr("latpred.home.processor_name", lambda: "Other CPU")
    with pytest.raises(DeviceError, match="Other CPU"):
        latpred.load()
    monkeypatch.setattr("latpred.home.processor_name", lambda: "Toy CPU")
    monkeypatch.setattr(predictors, "installed_runtime", lambda: "9.9.9")
    with pytest.raises(ArtefactError, match=r"9\.9\.9"):
        latpred.load()
    with pytest.raises(DeviceError, match="rtx3090"):  # the error names what there is
        latpred.load("no-such-device")


def test_presets_and_device_files_answer_analytically(shipped: Path) -> None:
    from latpred.device import dump_toml

    prediction = latpred.predict(model(), device="rtx3090")
    assert {k.source for k in prediction.kernels} == {"analytical"}
    assert prediction.coverage == 0.0
    assert "analytical" in prediction.warnings[0]
    dump_toml(DEVICE, shipped / "board.toml")
    assert latpred.predict(model(), device=str(shipped / "board.toml")).device == "toy"


def test_predicting_imports_nothing_heavy() -> None:
    code = (
        "import sys, latpred; from onnx import helper, TensorProto as T\n"
        "x, y = (helper.make_tensor_value_info(n, T.FLOAT, [1, 8]) for n in 'xy')\n"
        "g = helper.make_graph([helper.make_node('Relu', ['x'], ['y'])], 'g', [x], [y])\n"
        "latpred.load('rtx3090').predict(helper.make_model(g)).to_dict()\n"
        "heavy = {'pandas', 'lightgbm', 'sklearn', 'scipy', 'onnxruntime', 'rich', 'joblib', 'psutil'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
