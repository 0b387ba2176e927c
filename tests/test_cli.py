"""The command line as a person meets it: whole answers, one clear line for what is wrong, exit codes."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from counting_predictor import residual_network
from onnx import TensorProto, helper

from latpred import cli
from latpred.arguments import parse_budget

NETWORKS = Path(__file__).parent / "networks"
MOBILENET = str(NETWORKS / "mobilenet_v2.onnx")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATPRED_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    out, err = capsys.readouterr()
    return code, out, err


def symbolic_model(path: Path) -> Path:
    x = helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["batch", "sequence", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["tokens"], ["y"], name="act")], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_predict_json_has_the_documented_fields(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "predict", MOBILENET, "--device", "rtx3090", "--json")
    (answer,) = json.loads(out)
    assert code == 0
    fields = {"model", "device", "latency_ms", "interval_ms", "interval", "coverage", "kernels", "warnings"}
    assert fields <= set(answer)
    low, high = answer["interval_ms"]
    assert low <= answer["latency_ms"] <= high
    wanted = {"kind", "ops", "latency_ms", "source", "bound", "macs", "flops", "traffic_bytes"}
    assert all(wanted <= set(kernel) for kernel in answer["kernels"])
    # 300,774,272 multiply-adds at 224 x 224 (the MobileNetV2 paper's table 4 rounds them to 300 M), and what
    # the blocked layout adds where it pads 24 channels to 32 at 56 x 56: 96 -> 24, two 24 -> 144, one 144 -> 24
    padding = 8 * 56 * 56 * (96 + 2 * 144 + 144)
    assert sum(kernel["macs"] for kernel in answer["kernels"]) == 300_774_272 + padding


def test_predict_says_that_a_preset_is_analytical(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "predict", MOBILENET, "--device", "jetson-nano")
    assert "warning: analytical" in out


def test_predict_csv_has_one_row_a_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "predict", MOBILENET, "--device", "v100", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    _, text, _ = run(capsys, "predict", MOBILENET, "--device", "v100", "--json")
    assert len(rows) == len(json.loads(text)[0]["kernels"])


def test_good_models_are_answered_beside_bad_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "a_bad.onnx"
    bad.write_bytes(b"this is no model")
    shutil.copy(MOBILENET, tmp_path / "b_good.onnx")
    code, out, err = run(capsys, "predict", str(tmp_path), "--device", "rtx3090", "--json")
    assert code == 2
    assert [Path(answer["model"]).name for answer in json.loads(out)] == ["b_good.onnx"]
    assert err.count("\n") == 1
    assert "a_bad.onnx" in err


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (("predict", "nowhere.onnx", "--device", "rtx3090"), 2, "nowhere.onnx"),
        (("predict", MOBILENET, "--device", "abacus"), 2, "abacus"),
        (("predict", MOBILENET, "--threads", "63"), 2, "latpred collect --device local --threads 63"),
        (("predict", MOBILENET, "--device", "rtx3090", "--dim", "nothing=3"), 2, "nothing"),
        (("predict", MOBILENET, "--device", "rtx3090", "--shape", "nothing=3"), 2, "nothing"),
        (("kernels", MOBILENET, "--explain", "no such node"), 2, "no such node"),
        (("gates", "nowhere.onnx", "--device", "rtx3090"), 2, "nowhere.onnx"),
        (("decide", "nowhere.onnx", "--device", "rtx3090", "--deadline", "8ms"), 2, "nowhere.onnx"),
        (("decide", MOBILENET, "--device", "rtx3090", "--deadline", "8ms", "--utilities", "no.json"), 2, "no.json"),
        (("decide", MOBILENET, "--device", "rtx3090", "--deadline", "8ms", "--utilities", MOBILENET), 2, "utilities"),
        (("device", "abacus"), 2, "abacus"),
        (("fit", "--device", "never-measured"), 1, "latpred collect"),
        (("collect", "--kinds", "abacus", "--dry-run"), 2, "conv-depthwise"),
        (("validate", "nowhere.onnx", "--device", "rtx3090"), 2, "nowhere.onnx"),
        (("validate", MOBILENET, "--device", "rtx3090", "--dim", "nothing=3"), 2, "nothing"),
        (("validate", MOBILENET, "--device", "rtx3090", "--shape", "nothing=3"), 2, "nothing"),
        (("validate", MOBILENET, "--measured", "nowhere.json"), 2, "nowhere.json"),
        (("validate", MOBILENET, "--measured", str(NETWORKS)), 2, str(NETWORKS)),
        (("validate", MOBILENET, "--measured", MOBILENET), 1, "must be a JSON file"),
        (("validate", MOBILENET, "--families", "nowhere.json"), 2, "nowhere.json"),
        (("validate", MOBILENET, "--save", "no_such_folder/measured.json"), 2, "no_such_folder"),
        (("validate", MOBILENET, "--save", str(NETWORKS)), 2, "is a folder"),
    ],
)
def test_what_is_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], code: int, said: str
) -> None:
    monkeypatch.setattr("latpred.validation.OrtRunner", None)  # nothing of this needs a measurement
    exit_code, out, err = run(capsys, *argv)
    assert exit_code == code
    assert out == ""
    assert err.startswith("latpred: ")
    assert err.count("\n") == 1
    assert said in err


def test_truncated_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(Path(MOBILENET).read_bytes()[:20_000])
    code, _, err = run(capsys, "predict", str(cut), "--device", "rtx3090")
    assert code == 2
    assert "cut.onnx" in err


def test_unbound_dimension_names_input_and_flag(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(symbolic_model(tmp_path / "symbolic.onnx"))
    code, _, err = run(capsys, "predict", path, "--device", "rtx3090")
    assert code == 2
    assert all(word in err for word in ("sequence", "tokens", "--dim"))
    code, out, _ = run(capsys, "kernels", path, "--dim", "sequence=16", "--json")
    (answer,) = json.loads(out)
    assert code == 0
    assert answer["kernels"][0]["outputs"][0]["shape"] == [1, 16, 8]
    assert any("batch" in notice for notice in answer["notices"])


@pytest.mark.parametrize("bad", [("--dim", "batch"), ("--dim", "batch=0"), ("--shape", "x=1,a"), ("--interval", "1.5")])
def test_malformed_options_are_usage_errors(bad: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", MOBILENET, *bad])
    assert stop.value.code == 2


def test_explain_tells_what_became_of_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "kernels", MOBILENET, "--explain", "/features/features.0/features.0.2/Clip")
    assert code == 0
    assert "Conv" in out
    assert "clip" in out


def test_device_lists_presets(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "device")
    assert {"local", "rtx3090", "v100", "jetson-tx2", "jetson-nano"} <= set(out.split())
    _, out, _ = run(capsys, "device", "rtx3090", "--json")
    assert json.loads(out)["levels"][2]["bandwidth_bytes_per_s"] == 936e9


def test_budget_reads_units() -> None:
    assert [parse_budget(text) for text in ("90s", "15m", "1h", "0.5m")] == [90.0, 900.0, 3600.0, 30.0]


def test_cold_path_leaves_heavy_libraries_alone() -> None:
    code = (
        "import sys; from latpred.cli import main; "
        f"code = main(['predict', {MOBILENET!r}, '--device', 'rtx3090']); "
        "heavy = {'pandas', 'lightgbm', 'sklearn', 'scipy', 'onnxruntime', 'joblib', 'rich'} & set(sys.modules); "
        "sys.exit(code or (str(heavy) if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nine_networks_of_the_onnx_package_need_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    code, out, _ = run(capsys, "predict", str(folder), "--json")
    assert code == 0
    assert len(json.loads(out)) == 9


def test_gates_lists_points_with_what_they_save(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "gates", MOBILENET, "--device", "jetson-nano")
    assert code == 0
    assert "features.3.conv" in out
    _, text, _ = run(capsys, "gates", MOBILENET, "--device", "jetson-nano", "--json")
    answer = json.loads(text)
    assert {"model", "device", "latency_ms", "mounted", "points"} <= set(answer)
    point = next(point for point in answer["points"] if point["name"] == "features.3.conv")
    assert {"start", "end", "overhead_ms", "options", "refused"} <= set(point)
    wanted = {"name", "level", "saved_ms", "saved_interval_ms", "break_even_rate", "peak_bytes"}
    assert all(wanted <= set(option) for option in point["options"])


def test_decide_keeps_a_loose_deadline_and_says_when_one_cannot_hold(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = ("decide", MOBILENET, "--device", "jetson-nano", "--json", "--deadline")
    code, text, _ = run(capsys, *place, "10s")
    loose = json.loads(text)
    assert code == 0
    assert loose["as_it_is"]["probability"] > 0.999
    assert not loose["worth_deciding"]
    _, text, _ = run(capsys, *place, "1us")
    tight = json.loads(text)
    assert tight["worth_deciding"]
    assert tight["probability"] < 0.05
    assert tight["utilities"] == loose["utilities"]
    utilities = {name: {"keep": 1.0} for name in loose["utilities"]}
    path = tmp_path / "u.json"
    path.write_text(json.dumps(utilities))
    code, _, err = run(capsys, *place, "10s", "--utilities", str(path))
    assert code == 2
    assert "missing" in err
    _, out, _ = run(capsys, "decide", MOBILENET, "--device", "jetson-nano", "--deadline", "10s")
    assert "deadline" in out
    assert "as it is" in out


@pytest.mark.parametrize("deadline", ["-8ms", "0ms", "8", "soon", "nan", "nanms", "infs", "1e3ms", "", "8 ms", "8ns"])
def test_a_deadline_is_a_positive_time(capsys: pytest.CaptureFixture[str], deadline: str) -> None:
    with pytest.raises(SystemExit) as leaving:
        run(capsys, "decide", MOBILENET, f"--deadline={deadline}")
    assert leaving.value.code == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "above 0 such as 500us, 8ms or 1.5s" in said


@pytest.mark.parametrize("confidence", ["0", "1", "99", "99%", "nan", "-0.5", "sure"])
def test_a_confidence_is_a_share(capsys: pytest.CaptureFixture[str], confidence: str) -> None:
    with pytest.raises(SystemExit) as leaving:
        run(capsys, "decide", MOBILENET, "--deadline", "8ms", f"--confidence={confidence}")
    assert leaving.value.code == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert f"between 0 and 1 such as 0.9, got '{confidence}'" in said


def paying_network(path: Path) -> tuple[str, ...]:
    """A small network, and a slow device on which leaving it behind the first block pays."""
    onnx.save(residual_network(2, width=64, inner=512), path)
    return str(path), "--device", "raspberry-pi-4", "--deadline", "8ms"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "must be JSON"),
        ("\xff", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[]", "object of objects"),
        ('{"layer.0": 1.0}', "object of objects"),
        ("{}", "each point of the table (exit after layer.0)"),
        ('{"layer.9": {"keep": 1.0}}', "unknown 'layer.9'"),
        ('{"exit after layer.0": {"keep": 1.0}}', "missing 'exit'"),
        ('{"exit after layer.0": {"keep": 1.0, "exit": 0.5, "skip": 0.5}}', "unknown 'skip'"),
    ],
)
def test_utilities_that_cannot_be_used_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "u.json"
    path.write_bytes(content.encode("latin-1"))
    place = paying_network(tmp_path / "model.onnx")
    code, out, err = run(capsys, "decide", *place, "--utilities", str(path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    "value", [None, "high", [1.0], {}, float("nan"), float("inf"), 10**400], ids=lambda v: str(v)[:9]
)
def test_a_utility_is_a_finite_number(capsys: pytest.CaptureFixture[str], tmp_path: Path, value: object) -> None:
    place = ("decide", *paying_network(tmp_path / "model.onnx"))
    _, text, _ = run(capsys, *place, "--json")
    utilities = json.loads(text)["utilities"]
    path = tmp_path / "u.json"
    path.write_text(json.dumps(utilities))
    code, again, _ = run(capsys, *place, "--json", "--utilities", str(path))
    assert (code, json.loads(again)) == (0, json.loads(text))  # what is printed can be given back
    utilities["exit after layer.0"]["exit"] = value
    path.write_text(json.dumps(utilities))
    code, out, err = run(capsys, *place, "--utilities", str(path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "the utility of 'exit after layer.0', 'exit' must be a finite number" in err


def test_utilities_of_a_network_that_nothing_pays_in_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = ("decide", str(symbolic_model(tmp_path / "relu.onnx")), "--dim", "batch=1", "--dim", "sequence=4")
    place += ("--device", "jetson-nano", "--deadline", "8ms")
    code, out, _ = run(capsys, *place)
    assert code == 0
    assert "not worth deciding" in out
    path = tmp_path / "u.json"
    path.write_text('{"layer.0": {"keep": 1.0}}')
    code, out, err = run(capsys, *place, "--utilities", str(path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'layer.0'" in err


@pytest.mark.parametrize("command", [("gates",), ("decide", "--deadline", "8ms")])
def test_ctrl_c_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latpred.decide.plan.plan", interrupted)
    assert run(capsys, *command, MOBILENET, "--device", "jetson-nano") == (1, "", "latpred: interrupted\n")


def test_a_network_without_a_cut_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])
    node = helper.make_node("RandomNormal", [], ["y"], shape=[1, 8])
    path = tmp_path / "noise.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "noise", [], [y])), path)
    for command in (("gates",), ("decide", "--deadline", "8ms")):
        code, out, err = run(capsys, *command, str(path), "--device", "jetson-nano")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "run it whole" in err
