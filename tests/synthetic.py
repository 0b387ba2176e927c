"""Kernels of a made-up machine whose latencies follow a law that tests can write down."""

from __future__ import annotations

import numpy as np

from latpred.device import Device, Level
from latpred.graph import Spec
from latpred.kernels.kernel import Kernel, Work
from latpred.kernels.roofline import roofline_s
from latpred.store import KernelSample, Meta, signature

LEVELS = (Level("L2", 2**20, 100e9), Level("L3", 2**25, 50e9), Level("DRAM", 2**34, 10e9))
DEVICE = Device("toy", "Toy CPU", 2, 1, 1e9, {"float32": 100e9}, LEVELS, 1e-6, {"float32": 16})
META = Meta("toy", "Toy CPU", "onnxruntime", "1.2.3", threads=1, noise_floor={"network": 0.015})
SLOWNESS = {"gemm": 2.0, "unary": 3.0}  # latency over roofline time of the made-up machine


def gemm(m: int, n: int, k: int, name: str = "g") -> Kernel:
    inputs = (Spec((m, k)), Spec((k, n), constant=True))
    work = Work(m * n * k, 2 * m * n * k, 4 * m * k, 4 * m * n, 4 * k * n)
    return Kernel("gemm", "Gemm", "", name, (name,), inputs, (Spec((m, n)),), work=work)


def relu(rows: int, columns: int, name: str = "r") -> Kernel:
    spec = Spec((rows, columns))
    work = Work(0, spec.elements, spec.size_bytes, spec.size_bytes)
    return Kernel("unary", "Relu", "", name, (name,), (spec,), (spec,), work=work)


def latency_s(kernel: Kernel) -> float:
    """The law: a product of fewer than 100 columns is another 1.5 times slower."""
    narrow = kernel.kind == "gemm" and kernel.outputs[0].shape[1] < 100
    return roofline_s(kernel, DEVICE) * SLOWNESS[kernel.kind] * (1.5 if narrow else 1.0)


def measured(graphs: int = 30, each: int = 10, noise: float = 0.01, seed: int = 0) -> list[KernelSample]:
    """Kernels of some composite graphs, half of them products, with a little noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for record in range(graphs):
        for i in range(each):
            m, n, k = (int(v) for v in 2 ** rng.uniform(3, 9, 3))
            kernel = gemm(m, n, k) if i % 2 else relu(m, n)
            time_s = latency_s(kernel) * float(np.exp(rng.normal(0, noise)))
            rows.append(KernelSample(kernel, time_s, 1.0, signature(kernel), record))
    return rows
