"""What onnxruntime really executes for a small graph: the expectation of the detector's tests."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from latpred.collect.probe_graphs import Probe, probe_model
from latpred.graph import read
from latpred.kernels.detect import Detection, detect
from latpred.kernels.fusion import default_rules

Executed = Counter[tuple[str, tuple[tuple[int, ...], ...]]]

DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(int64)": np.int64}


def graph(text: str, opset: int = 17) -> onnx.ModelProto:
    """A model from ONNX's text; tensors without a value become random weights."""
    return probe_model(Probe(text, opset=opset))


def executed(model: onnx.ModelProto, folder: Path) -> Executed:
    """Op types with the shapes of their outputs, by the runtime's own profile of one run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        shape = [dim if isinstance(dim, int) else 1 for dim in value.shape]
        dtype = DTYPES.get(value.type, np.bool_)
        feeds[value.name] = (
            rng.standard_normal(shape).astype(dtype) if dtype is np.float32 else rng.integers(0, 2, shape).astype(dtype)
        )
    session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return Counter(
        (event["args"]["op_name"], _shapes(event["args"]["output_type_shape"]))
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    )


def _shapes(described: list[dict[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for entry in described for shape in entry.values())


def detected(model: onnx.ModelProto) -> Executed:
    """The same by the detector."""
    return launches(detect(read(model), default_rules()))


def launches(detection: Detection) -> Executed:
    """Op types with the shapes of their outputs."""
    return Counter((k.op_type, tuple(spec.shape for spec in k.outputs)) for k in detection.kernels)


def reasons(model: onnx.ModelProto, rule: str) -> list[str]:
    """Why a rule left ops of the model alone."""
    remarks = detect(read(model), default_rules()).remarks
    return [said.reason for found in remarks.values() for said in found if said.rule == rule and not said.applied]
