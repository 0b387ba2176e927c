"""The choice among models, or resolutions, under one deadline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting_predictor import CountingPredictor
from hooked_networks import blocks
from onnx import TensorProto, helper, numpy_helper
from surgery_oracle import close, feeds_of, run

from latpred.decide.steps import DECIDING
from latpred.errors import HookError
from latpred.hooks import Hooked, attach

SIZES = ({"x": (1, 8, 32, 32)}, {"x": (1, 8, 16, 16)})


def hooked_on(model: Any, **arguments: Any) -> Hooked:
    return attach(model, CountingPredictor(), **arguments)  # type: ignore[arg-type]


def any_size() -> Any:
    """A convolution and an average, for maps of any size."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 8, "H", "W"]), ("y", [1, 4]))]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["y"], "flat"),
    ]
    weight = np.random.default_rng(0).standard_normal((4, 8, 1, 1)).astype(np.float32)
    graph = helper.make_graph(nodes, "any", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_deadline_chooses_among_models() -> None:
    large, small = blocks(4), blocks(1)
    large.graph.name, small.graph.name = "large", "small"
    hooked = hooked_on([large, small])
    assert hooked.options == {"model": ("large", "small")}
    feeds = feeds_of(large)
    unhurried = hooked.run(feeds)
    assert unhurried.decisions == {"model": "large"}
    close(unhurried.outputs["y"], run(large, feeds)["y"])
    hurried = hooked.run(feeds, deadline_s=1e-7)
    assert hurried.decisions == {"model": "small"}
    close(hurried.outputs["y"], run(small, feeds)["y"])
    forced = hooked.run(feeds, forced={"model": "small"})
    decide_s = DECIDING.after(2 * CountingPredictor().estimator.device.dispatch_s)  # nobody measured starts there
    assert forced.predicted_s / forced.slowdown == pytest.approx(1e-6 * 1 + 1e-9 * (16384 + 2 * 65536 + 80) + decide_s)


def test_the_deadline_chooses_among_resolutions() -> None:
    model = any_size()
    hooked = hooked_on([model, model], shapes=SIZES)
    asked: list[str] = []

    def inputs(name: str) -> dict[str, np.ndarray]:
        asked.append(name)
        side = 32 if "32" in name else 16
        return {"x": np.full((1, 8, side, side), 0.5, np.float32)}

    first, second = hooked.options["model"]
    for deadline_s, name in ((None, first), (1e-7, second)):
        answer = hooked.run(inputs, deadline_s)
        assert answer.decisions == {"model": name}
        close(answer.outputs["y"], run(model, inputs(name))["y"])
    assert asked[::2] == [first, second]
    with pytest.raises(HookError, match=r"float32\[1, 8, 32, 32\]"):
        hooked.run(inputs(second))


def test_what_belongs_to_one_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HookError, match="of one model"):
        hooked_on([blocks(1), blocks(2)], points=["layer.0"])
    hooked = hooked_on([blocks(1), blocks(2)])
    with pytest.raises(HookError, match="one model"):
        hooked.save(tmp_path / "several.hooks")
    with pytest.raises(HookError, match="mapping"):
        hooked_on(blocks()).run(lambda name: feeds_of(blocks()))
