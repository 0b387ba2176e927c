"""The list of `benchmarks/unseen.py` and what it does to a graph; no PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_benchmarks import benchmark

unseen = benchmark("unseen")
NAMES = [network.name for network in unseen.NETWORKS]


def test_names_are_apart() -> None:
    assert len(NAMES) == len(set(NAMES)) == 186
    # `--only NAME` is how a process is told its one network.
    assert all(unseen.chosen(None, [name]) == [network] for name, network in zip(NAMES, unseen.NETWORKS, strict=True))


def test_halves_share_no_family() -> None:
    a, b = (unseen.chosen(half, []) for half in "AB")
    assert len(a) == len(b) == 93
    assert not {network.family for network in a} & {network.family for network in b}
    assert {network.name: network.family for network in a + b}["hf-data2vec-vision__small__b1r192d"] == "beit"


def test_half_and_names_narrow_down_together() -> None:
    assert [network.model for network in unseen.chosen("A", ["unet", "lstm"])] == ["seg24", "seg16", "unet64", "unet32"]


def graph_with(*initializers: TensorProto) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [t.name], [f"{t.name}_out"], doc_string="a path") for t in initializers]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], list(initializers), doc_string="a path"))


def test_large_weights_are_left_out() -> None:
    kept, large = np.arange(256, dtype=np.float32), np.zeros((257, 1), np.float32)
    arrays = {"kept": kept, "large": large, "indices": np.arange(1000)}
    model = graph_with(*(numpy_helper.from_array(array, name) for name, array in arrays.items()))
    unseen.strip(model)
    of = {tensor.name: tensor for tensor in model.graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(of["kept"]), kept)
    np.testing.assert_array_equal(numpy_helper.to_array(of["indices"]), np.arange(1000))
    assert (of["large"].data_type, list(of["large"].dims)) == (TensorProto.FLOAT, [257, 1])
    assert of["large"].data_location == TensorProto.EXTERNAL
    assert not of["large"].raw_data
    assert not model.graph.doc_string + model.graph.node[0].doc_string


def test_equal_tables_are_written_once() -> None:
    table = np.arange(1000)
    model = graph_with(*(numpy_helper.from_array(a, n) for n, a in (("a", table), ("b", table), ("c", table + 1))))
    unseen.write_tables_once(model)
    assert [tensor.name for tensor in model.graph.initializer] == ["a", "c"]
    assert [list(node.input) for node in model.graph.node] == [["a"], ["a"], ["c"]]


def test_a_failure_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def apart(network: object, out: Path) -> str:
        if "unet64" in network.name:  # type: ignore[attr-defined]
            return "ValueError: no such thing"
        path = unseen.path_of(network, out)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return ""

    monkeypatch.setattr(unseen, "NEEDED", ())
    monkeypatch.setattr(unseen, "export_apart", apart)
    assert unseen.main([str(tmp_path), "--only", "plain-diffusion"]) == 1
    assert "plain-diffusion__unet64__b1r32: ValueError: no such thing" in capsys.readouterr().err
    assert json.loads((tmp_path / "families.json").read_text()) == {"plain-diffusion__unet32__b2r48": "plain-diffusion"}


def test_a_network_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unseen, "TIMEOUT_S", 0.01)
    assert "not done" in unseen.export_apart(unseen.NETWORKS[0], tmp_path)


def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(unseen, "NEEDED", ("no_such_library",))
    assert unseen.main([str(tmp_path)]) == 1
    assert "no_such_library must be installed: pip install torch" in capsys.readouterr().err
    monkeypatch.setattr(unseen, "NEEDED", ())
    assert unseen.main([str(tmp_path), "--only", "resnet50000"]) == 1
    assert list(tmp_path.iterdir()) == []
