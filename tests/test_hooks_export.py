"""One file in which gates and exits decide: the same decisions and outputs as in Python, by a plain session."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from counting_predictor import CountingPredictor
from hooked_networks import blocks, masked_encoder, spatial_blocks
from onnx import TensorProto, helper
from surgery_oracle import close, feeds_of

from latpred.decide.declared import Declared
from latpred.decide.points import Grid
from latpred.errors import ArtefactError, HookError
from latpred.hooks import Heard, Hooked, attach

GRID = Grid(levels=("exit", "skip"))


def hooked_on(model: Any, points: Any, **arguments: Any) -> Hooked:
    return attach(model, CountingPredictor(), points, grid=GRID, **arguments)  # type: ignore[arg-type]


class Averages:
    """Keeps what side networks read."""

    def __init__(self) -> None:
        self.seen: dict[str, list[np.ndarray]] = {}

    def wants(self) -> tuple[str, ...]:
        return ()

    def heard(self, heard: Heard) -> None:
        for one in heard.observations:
            self.seen.setdefault(one.point, []).append(one.features["pooled"][0])

    def close(self) -> None:
        self.seen.clear()


def trained(hooked: Hooked, model: onnx.ModelProto, seed: int = 1) -> Hooked:
    """Side networks that sometimes say one thing and sometimes the other."""
    hooked.listener = averages = Averages()
    for number in range(20):
        hooked.run(feeds_of(model, number), keep=True)
    hooked.listener = None
    rng = np.random.default_rng(seed)
    for (point, role), side in hooked.sides.items():
        rows = np.stack(averages.seen[point])
        matrix = rng.standard_normal((rows.shape[1], side.width))
        matrix *= (3.0 if role == "head" else 1.0) / (rows @ matrix).std(axis=0)
        hooked.replace(point, role, (matrix, -np.median(rows @ matrix, axis=0)))
    return hooked


def session_of(path: Path, more: tuple[str, ...] = ()) -> onnxruntime.InferenceSession:
    """With tensors of the outermost graph as outputs too."""
    model = onnx.load(path)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.BOOL, None) for name in more)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("network", "points"), [
    (blocks, ["layer.0", "layer.1", "layer.2"]),
    (blocks, ["exit after layer.0", "layer.1", "exit after layer.1", "layer.2"]),
    (spatial_blocks, ["layer.0", "exit after layer.0", "layer.1"]),
])  # fmt: skip
def test_a_gated_file_decides_as_python_does(network: Any, points: list[str], tmp_path: Path) -> None:
    model = network()
    onnx.save(model, tmp_path / "model.onnx")
    hooked = trained(hooked_on(tmp_path / "model.onnx", points, tolerance=0.1), model)
    hooked.export(tmp_path / "gated.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "gated.onnx"), full_check=True)
    first = points[0]
    session = session_of(tmp_path / "gated.onnx", (f"{first}/taken",))
    seen = set()
    for seed in range(40):
        feeds = feeds_of(model, seed)
        answer = hooked.run(feeds)
        output, taken = session.run(["y", f"{first}/taken"], feeds)
        close(output, answer.outputs["y"])
        assert bool(np.asarray(taken).item()) == (answer.decisions[first] != "keep")
        seen.add(tuple(answer.decisions.values()))
    assert len(seen) > 2  # else it has not been shown that they decide alike


def test_a_region_is_skipped_only_where_nothing_else_is_worth_more(tmp_path: Path) -> None:
    model = blocks()
    hooked = attach(model, CountingPredictor(), ["layer.1"], grid=Grid(levels=("skip", "channels")))  # type: ignore[arg-type]
    options = hooked.options["layer.1"]
    feeds = feeds_of(model)
    for best in range(len(options)):
        scores = np.linspace(0.0, 0.3, len(options))
        scores[best] = 1.0
        hooked.replace("layer.1", "gate", (np.zeros((8, len(options))), scores))
        hooked.export(tmp_path / "gated.onnx", model)
        (taken,) = session_of(tmp_path / "gated.onnx", ("layer.1/taken",)).run(["layer.1/taken"], feeds)
        decided = hooked.run(feeds).decisions["layer.1"]
        assert decided == options[best]
        assert bool(np.asarray(taken).item()) == (decided == "skip")


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize(("network", "points", "output"), [
    (blocks, ["exit after layer.0", "layer.2"], "y"),
    (masked_encoder, [Declared("layer 1", "h1", "h2", ("skip",))], "h3"),  # tokens: averaged by ReduceMean
])  # fmt: skip
def test_side_networks_are_written_in_the_models_version(
    opset: int, network: Any, points: Any, output: str, tmp_path: Path
) -> None:
    model = network()
    model.opset_import[0].version = opset  # its ops are the same in all of these
    worth = {"layer 1": {"keep": 0.0, "skip": 1.0}} if output == "h3" else None  # so that it is worth deciding
    hooked = trained(hooked_on(model, points, tolerance=0.1, utilities=worth), model)
    hooked.export(tmp_path / "gated.onnx", model)
    session = session_of(tmp_path / "gated.onnx")
    seen = set()
    for seed in range(20):
        feeds = feeds_of(model, seed)
        answer = hooked.run(feeds)
        close(session.run([output], feeds)[0], answer.outputs[output])
        seen.add(tuple(answer.decisions.values()))
    assert len(seen) > 1


def test_what_is_not_decided_is_not_written(tmp_path: Path) -> None:
    model = blocks()
    hooked = hooked_on(model, ["exit after layer.0", "layer.1"], gate="none")
    hooked.export(tmp_path / "gated.onnx", model)
    assert "If" not in {node.op_type for node in onnx.load(tmp_path / "gated.onnx").graph.node}
    untrained = hooked_on(model, ["exit after layer.0"])
    untrained.export(tmp_path / "gated.onnx", model)
    assert "If" not in {node.op_type for node in onnx.load(tmp_path / "gated.onnx").graph.node}
    feeds = feeds_of(model)
    close(session_of(tmp_path / "gated.onnx").run(["y"], feeds)[0], untrained.run(feeds, keep=True).outputs["y"])


def test_what_is_skipped_does_not_run(tmp_path: Path) -> None:
    """The runtime's own profile of a file whose gate always skips, or never."""
    import json

    model = blocks()
    counts = {}
    for bias in product((0.0, 1.0), repeat=1):
        hooked = hooked_on(model, [Declared("mine", "t0", "t1", ("skip",))])
        hooked.replace("mine", "gate", (np.zeros((8, 2)), np.array([0.5, *bias])))
        hooked.export(tmp_path / "gated.onnx", model)
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        session = onnxruntime.InferenceSession(tmp_path / "gated.onnx", options, providers=["CPUExecutionProvider"])
        session.run(None, feeds_of(model))
        events = json.loads(Path(session.end_profiling()).read_text())
        counts[bias] = sum(event.get("args", {}).get("op_name") == "Conv" for event in events)
    assert counts[0.0,] - counts[1.0,] == 2


def test_another_model_or_none_is_refused(tmp_path: Path) -> None:
    model = blocks()
    hooked = hooked_on(model, ["layer.1"])
    with pytest.raises(HookError, match="give it again"):
        hooked.export(tmp_path / "gated.onnx")
    with pytest.raises(ArtefactError, match="another one"):
        hooked.export(tmp_path / "gated.onnx", blocks(2))
    with pytest.raises(HookError, match="several"):
        attach([blocks(1), blocks(2)], CountingPredictor()).export(tmp_path / "gated.onnx")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
