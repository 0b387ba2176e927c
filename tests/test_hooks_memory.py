"""Hooks keep weights once: resident memory of a fresh process beside that of the plain session."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from counting_predictor import residual_network
from hooked_networks import drawn_weights

MOST = 1.3
PROGRAM = """
import ctypes, gc, json, sys
sys.path[:0] = json.loads(sys.argv[3])
import numpy as np, onnx, onnxruntime, psutil
import latpred
from latpred.hooks import attach
from latpred.decide.points import Grid
kind, path = sys.argv[1:3]
x = np.ones((1, 512, 16, 16), np.float32)
predictor = latpred.load("xeon-silver-4210-x2")
predictor.predict(path)
before = psutil.Process().memory_info().rss
if kind == "plain":
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run = lambda: session.run(None, {"x": x})
    count = 0
else:
    points = [f"layer.{i}" for i in range(5)]
    hooked = attach(path, predictor, points, grid=Grid(levels=("exit", "skip")))
    run = lambda: hooked.run({"x": x}, keep=True)
    count = len(hooked.points)
for _ in range(2):
    run()
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
print(json.dumps([psutil.Process().memory_info().rss - before, count]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given back as glibc does")
def test_weights_lie_in_memory_once(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(drawn_weights(residual_network(blocks=5, width=512, inner=2048)), path)
    weights_bytes = sum(np.prod(t.dims) * 4 for t in onnx.load(path).graph.initializer)
    grown = {}
    for kind in ("plain", "hooked"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, kind, str(path), json.dumps(sys.path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        grown[kind], points = json.loads(done.stdout)
    assert points == 5
    assert grown["plain"] > weights_bytes  # 42 MB: enough that nothing else counts
    assert grown["hooked"] < MOST * grown["plain"]
