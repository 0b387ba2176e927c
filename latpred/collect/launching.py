"""What launching costs: one more kernel in a graph, and the start of a graph that lay idle.

A start runs code of the runtime, which all graphs share, and reads what the runtime keeps of the one graph. Both are
gone from the caches after enough other bytes were touched: a graph that starts right after another one pays for its own
state, and the first start after a long kernel pays for the code as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from latpred.collect.plateaus import significant
from latpred.errors import MeasurementError

__all__ = ["batch_s", "checked", "dispatch_s", "fastest_s", "session_of", "start_curve"]

_OPSET, _IR_VERSION = 17, 8
_SMALLEST_BYTES = 256 * 1024  # below it nothing that a start needs is pushed out
_LEAST_STARTS = 9


def dispatch_s(threads: int = 1, seconds: float = 1.0) -> float:
    """Cost in s of launching one kernel: what one more one-element node adds to a graph's latency."""
    few, many = 32, 288
    latencies = {}
    for nodes in (few, many):
        session = session_of(_chain(nodes), threads)
        if session is None:
            raise MeasurementError("onnxruntime did not run a chain of Neg and Sin: reinstall it, then measure again")
        feed = {"x": np.ones(1, np.float32)}
        latencies[nodes] = fastest_s(partial(session.run, None, feed), seconds / 2)
    return significant(max((latencies[many] - latencies[few]) / (many - few), 1e-9))


def start_curve(threads: int, largest_bytes: int, seconds: float = 3.0) -> list[tuple[int, float, float]]:
    """What a start costs more than one right after the last, by bytes touched since.

    Medians over `_LEAST_STARTS` and more starts of graphs of one node, on bound buffers; neither cost falls with more
    bytes.

    Parameters
    ----------
    threads
        Of the runtime.
    largest_bytes
        Up to which bytes are touched in between, doubling from 256 KiB; at least that.
    seconds
        Time to spend, about.

    Returns
    -------
    list of (int, float, float)
        Bytes touched in B; in s, what a graph pays that itself lay idle, right after the start of another; in s, what
        comes on top where no graph was started since. As `latpred.Device.start_curve` has them.

    Raises
    ------
    MeasurementError
        When the runtime runs no graph of one node.
    """
    first, second = _bound_start(threads), _bound_start(threads)
    points = int(np.log2(largest_bytes / _SMALLEST_BYTES)) + 1
    budget_s = seconds / points
    curve: list[tuple[int, float, float]] = []
    own_s = shared_s = 0.0
    for size in (_SMALLEST_BYTES << point for point in range(points)):
        between = np.ones(size // 4, np.float32)
        own: list[float] = []
        shared: list[float] = []
        end_s = time.perf_counter() + budget_s
        while len(own) < _LEAST_STARTS or time.perf_counter() < end_s:
            np.negative(between, out=between)
            after_all_s, after_first_s, again_s = (batch_s(start, 1) for start in (first, second, second))
            own.append(after_first_s - again_s)
            shared.append(after_all_s - after_first_s)
        own_s, shared_s = max(own_s, statistics.median(own)), max(shared_s, statistics.median(shared))
        curve.append((size, significant(own_s), significant(shared_s)))
    return curve


def _bound_start(threads: int) -> Callable[[], Any]:
    """A call that starts a graph of one node of its own."""
    session = session_of(_chain(1), threads)
    if session is None:
        raise MeasurementError("onnxruntime did not run a graph of one Sin: reinstall it, then measure again")
    binding = session.io_binding()
    arrays = np.ones(1, np.float32), np.ones(1, np.float32)
    binding.bind_input("x", "cpu", 0, np.float32, (1,), arrays[0].ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, (1,), arrays[1].ctypes.data)

    def start(_held: object = arrays) -> None:
        session.run_with_iobinding(binding)

    return start


def fastest_s(call: Callable[[], Any], seconds: float) -> float:
    """Shortest time in s of one call, within about `seconds`; short calls are timed in batches."""
    start = time.perf_counter()
    call()
    first_s = time.perf_counter() - start
    batch = max(1, int(200e-6 / max(first_s, 1e-7)))
    shortest_s, runs, end = first_s, 0, start + seconds
    while runs < 3 or time.perf_counter() < end:
        shortest_s = min(shortest_s, batch_s(call, batch))
        runs += 1
    return shortest_s


def batch_s(call: Callable[[], Any], batch: int) -> float:
    """Mean time in s of one of `batch` calls in a row."""
    start = time.perf_counter()
    for _ in range(batch):
        call()
    return (time.perf_counter() - start) / batch


def session_of(model: onnx.ModelProto, threads: int) -> Any | None:
    """An inference session, or None where this build of the runtime has no such kernel."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except (states.Fail, states.NotImplemented):
        return None


def _chain(nodes: int) -> onnx.ModelProto:
    """One-element nodes that no runtime fuses or cancels: Sin and Neg in turn."""
    steps = [
        helper.make_node(("Sin", "Neg")[i % 2], [f"t{i}" if i else "x"], [f"t{i + 1}" if i + 1 < nodes else "y"])
        for i in range(nodes)
    ]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, (1,)) for end in "xy"]
    return checked(helper.make_graph(steps, "chain", ends[:1], ends[1:]))


def checked(graph: onnx.GraphProto) -> onnx.ModelProto:
    """A model of the graph, of the opset that measuring graphs are written in."""
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
