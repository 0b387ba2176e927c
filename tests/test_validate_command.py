"""`latpred validate` as a person meets it: exit codes, what is told when, what is kept; once for real."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_validation import MEASURED, NETWORKS, A

from latpred import cli
from latpred.collect.rounds import MeasuredNetwork, Measurements, Round, load, save


def saved(tmp_path: Path, **changes: Any) -> Path:
    """Made-up measurements of two networks that are there."""
    networks = tuple(
        MeasuredNetwork(name, f"elsewhere/{name}.onnx", (Round(0.02, 0.0, 0.001, 0), Round(0.021, 0.0, 0.001, 1)))
        for name in ("mobilenet_v2", "lstm_2x256bi")
    )
    path = tmp_path / "measured.json"
    save(replace(MEASURED, networks=networks, failed={}, **changes), path)
    return path


def test_measurements_that_were_kept_are_compared_without_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latpred.validation.OrtRunner", None)
    path = str(saved(tmp_path))
    families = tmp_path / "families.json"
    families.write_text('{"mobilenet_v2": "mobile"}')
    common = ["--device", "rtx3090", "--measured", path, "--families", str(families)]
    names = ["mobilenet_v2", "lstm_2x256bi"]
    assert cli.main(["validate", *(str(NETWORKS / f"{name}.onnx") for name in names), *common, "--json"]) == 0
    out, err = capsys.readouterr()
    row = json.loads(out)
    assert err == ""
    assert {network["name"]: network["measured_ms"] for network in row["networks"]} == {
        name: pytest.approx(20.5) for name in names
    }
    assert set(row["families"]) == {"mobile", "lstm_2x256bi"}
    assert any("analytical" in text for text in row["networks"][0]["warnings"])
    # One that was never measured is told, and makes the command fail; the other is compared all the same.
    argv = ["validate", str(NETWORKS / "mobilenet_v2.onnx"), str(NETWORKS / "gpt2_s64.onnx"), *common]
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert "mobilenet_v2" in out
    assert err.startswith("latpred: gpt2_s64: it is not in ")
    assert err.count("\n") == 1
    assert cli.main(["validate", str(NETWORKS / "gpt2_s64.onnx"), *common]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "measured.json: none of gpt2_s64 is in it" in err


def test_one_network_is_measured_alike_whatever_else_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = load(saved(tmp_path))
    fast, slow = whole.networks  # the second was measured while the machine was slow
    slow = replace(slow, rounds=tuple(replace(one, reference_s=0.002) for one in slow.rounds))
    save(replace(whole, networks=(fast, slow)), tmp_path / "measured.json")
    paths = {network.name: str(NETWORKS / f"{network.name}.onnx") for network in whole.networks}
    found: list[dict[str, float]] = []
    for named in (paths.values(), [paths[fast.name]], [paths[slow.name]]):
        argv = ["validate", *named, "--device", "rtx3090", "--measured", str(tmp_path / "measured.json"), "--json"]
        assert cli.main(argv) == 0
        networks = json.loads(capsys.readouterr().out)["networks"]
        found.append({network["name"]: network["measured_ms"] for network in networks})
    assert found[0] == pytest.approx({fast.name: 20.5 * 1.5, slow.name: 20.5 * 1.5 / 2})  # usual: 1.5 ms
    assert found[1] | found[2] == found[0]


def test_what_cannot_be_read_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"this is no model")
    told: list[str] = []

    def measuring(models: Mapping[str, object], *_: object, **__: object) -> Measurements:
        told.append(capsys.readouterr().err)
        return replace(MEASURED, networks=tuple(replace(A, name=name, path=str(lstm)) for name in models), failed={})

    monkeypatch.setattr("latpred.validation.measure_rounds", measuring)
    lstm, bad = NETWORKS / "lstm_2x256bi.onnx", str(tmp_path / "bad.onnx")
    assert cli.main(["validate", bad, str(lstm), "--device", "rtx3090", "--json"]) == 2
    out, err = capsys.readouterr()
    assert len(told) == 1
    assert told[0].startswith(f"latpred: {bad}: ")
    assert told[0].count("\n") == 1
    assert err == ""  # once is enough
    assert "bad.onnx" in json.loads(out)["failed"]["bad"]
    assert [network["name"] for network in json.loads(out)["networks"]] == ["lstm_2x256bi"]
    assert cli.main(["validate", bad, bad, "nowhere.onnx", "--device", "rtx3090"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 2)
    assert len(told) == 1


def test_a_network_that_cannot_run_is_nobodys_input_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = replace(MEASURED, networks=(), failed={"lstm_2x256bi": "signal 11"})
    monkeypatch.setattr("latpred.validation.measure_rounds", lambda *_, **__: crashed)
    argv = ["validate", "--device", "rtx3090", str(NETWORKS / "lstm_2x256bi.onnx")]
    assert cli.main(argv) == 1
    assert "signal 11" in capsys.readouterr().err
    assert cli.main([*argv, "nowhere.onnx"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    save(replace(load(saved(tmp_path)), failed={"gpt2_s64": "signal 11"}), tmp_path / "measured.json")
    argv = ["validate", "--device", "rtx3090", "--measured", str(tmp_path / "measured.json")]
    assert cli.main([*argv, str(NETWORKS / "gpt2_s64.onnx"), str(NETWORKS / "mobilenet_v2.onnx")]) == 1
    assert capsys.readouterr().err == "latpred: gpt2_s64: signal 11\n"


def test_saving_and_comparing_what_was_saved_exclude_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stop:
        cli.main(["validate", str(NETWORKS / "mobilenet_v2.onnx"), "--measured", str(path), "--save", str(path)])
    assert stop.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_ctrl_c_compares_and_keeps_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = load(saved(tmp_path, interrupted=True))
    interrupted = replace(interrupted, networks=tuple(replace(n, path=str(NETWORKS / f"{n.name}.onnx"))
                                                      for n in interrupted.networks))  # fmt: skip
    monkeypatch.setattr("latpred.validation.measure_rounds", lambda *_, **__: interrupted)
    kept = tmp_path / "kept.json"
    models = [str(network.path) for network in interrupted.networks]
    assert cli.main(["validate", *models, "--device", "rtx3090", "--save", str(kept)]) == 1
    out, err = capsys.readouterr()
    assert "MAPE %" in out
    assert err.startswith("latpred: interrupted")
    assert err.count("\n") == 1
    assert load(kept) == interrupted


@pytest.mark.measure
def test_a_network_is_really_validated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept.json"
    argv = ["validate", str(NETWORKS / "lstm_2x256bi.onnx"), "--device", "rtx3090"]
    assert cli.main([*argv, "--repeat", "2", "--run-budget", "0.05s", "--save", str(kept), "--json"]) == 0
    out, err = capsys.readouterr()
    (network,) = json.loads(out)["networks"]
    assert network["measured_ms"] > 0
    assert "recurrent" in json.loads(out)["kinds"]
    assert err.count("round ") == 2
    assert cli.main([*argv, "--measured", str(kept), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["networks"] == [network]
