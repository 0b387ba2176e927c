"""A predictor that counts: 1 us a run and 1 ns a multiply-add, so that expectations can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from synthetic import DEVICE

from latpred.calibration import Calibration
from latpred.graph import Graph
from latpred.kernels.fusion import default_rules
from latpred.prediction import Prediction

RUN_S, MAC_S = 1e-6, 1e-9


def macs(graph: Graph) -> int:
    count = 0
    for op in graph.ops:
        if op.op_type == "Conv":
            count += prod(graph.tensors[op.outputs[0]].shape) * prod(graph.tensors[op.inputs[1]].shape[1:])
        elif op.op_type in ("Gemm", "MatMul"):
            count += prod(graph.tensors[op.outputs[0]].shape) * graph.tensors[op.inputs[0]].shape[-1]
    return count


class CountingPredictor:
    """Stands for `latpred.Predictor`."""

    device = "counting"

    def __init__(self, block: bool = False) -> None:
        rules = default_rules()
        if not block:
            rules = rules.revised({"conv-nchwc": replace(rules.rule("conv-nchwc"), holds=False)})
        self.estimator = SimpleNamespace(device=DEVICE, calibration=Calibration(), rules=rules)
        self.asked: list[Graph] = []
        self.batches = 0

    def predict_graphs(self, graphs: Sequence[Graph], **_: Any) -> list[Prediction]:
        self.asked += graphs
        self.batches += 1
        latencies_s = [RUN_S + MAC_S * macs(graph) for graph in graphs]
        return [Prediction("model", self.device, each_s, (each_s, each_s), 0.9, 1.0, ()) for each_s in latencies_s]


def info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def residual_network(blocks: int = 3, width: int = 8, inner: int = 32, classes: int = 10) -> onnx.ModelProto:
    """A stem, residual blocks of two 1x1 convolutions on 16 x 16 positions, and a classifier."""
    nodes, stored, infos = [], [], []

    def conv(name: str, x: str, y: str, rows: int, columns: int) -> None:
        weight = f"{name}.weight"
        stored.append(numpy_helper.from_array(np.ones((rows, columns, 1, 1), np.float32), weight))
        nodes.append(helper.make_node("Conv", [x, weight], [y], f"/{name.replace('.', '/')}/Conv"))
        infos.append(info(y, (1, rows, 16, 16)))

    conv("stem", "x", "t0", width, width)
    for block in range(blocks):
        x, y = f"t{block}", f"t{block + 1}"
        conv(f"layer.{block}.up", x, f"{y}.h", inner, width)
        conv(f"layer.{block}.down", f"{y}.h", f"{y}.d", width, inner)
        nodes.append(helper.make_node("Add", [x, f"{y}.d"], [y], f"/layer/{block}/Add"))
        infos.append(info(y, (1, width, 16, 16)))
    stored.append(numpy_helper.from_array(np.ones((width, classes), np.float32), "fc.weight"))
    nodes += [
        helper.make_node("GlobalAveragePool", [f"t{blocks}"], ["pooled"], "/pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "/flat/Flatten"),
        helper.make_node("Gemm", ["flat", "fc.weight"], ["y"], "/fc/Gemm"),
    ]
    infos += [info("pooled", (1, width, 1, 1)), info("flat", (1, width))]
    graph = helper.make_graph(nodes, "residual", [info("x", (1, width, 16, 16))], [info("y", (1, classes))], stored)
    graph.value_info.extend(infos)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
