"""What reading costs: linear in nodes, and nothing for weights."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latpred.graph import read


def chain(length: int) -> onnx.ModelProto:
    """Shape, gather, concat and reshape over and over, which only constant propagation resolves."""
    stored = [numpy_helper.from_array(np.array([value], np.int64), f"k{value}") for value in (0, 1)]
    nodes = []
    for i in range(length):
        nodes += [
            helper.make_node("Shape", [f"x{i}"], [f"s{i}"]),
            helper.make_node("Gather", [f"s{i}", "k0"], [f"a{i}"]),
            helper.make_node("Gather", [f"s{i}", "k1"], [f"b{i}"]),
            helper.make_node("Concat", [f"b{i}", f"a{i}"], [f"t{i}"], axis=0),
            helper.make_node("Reshape", [f"x{i}", f"t{i}"], [f"x{i + 1}"]),
        ]
    x = helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["N", 6])
    y = helper.make_empty_tensor_value_info(f"x{length}")
    return helper.make_model(helper.make_graph(nodes, "chain", [x], [y], stored))


def cost_s(model: onnx.ModelProto) -> float:
    costs = []
    for _ in range(3):
        start = time.perf_counter()
        read(model)
        costs.append(time.perf_counter() - start)
    return min(costs)


@pytest.mark.measure
def test_cost_grows_linearly() -> None:
    short, long = cost_s(chain(200)), cost_s(chain(1600))
    assert long < 2 * 8 * short  # 8 times the nodes


@pytest.mark.measure
def test_weights_cost_no_memory(tmp_path: Path) -> None:
    weights = np.zeros((5000, 5000), np.float32)  # 100 MB
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5000])
    y = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(weights, "w")]
    )
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph), path)
    code = (
        "import resource, sys, latpred.graph\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "latpred.graph.read(sys.argv[1])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit_bytes < 0.3 * path.stat().st_size
