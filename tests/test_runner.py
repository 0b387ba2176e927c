import io
import os
import signal
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latpred.collect.frames import read_frame, write_frame
from latpred.collect.ort import OrtRunner, spread_cores
from latpred.collect.runner import NullRunner, Runner, RunPlan, RunResult, lowest_mean
from latpred.errors import MeasurementError

QUICK = RunPlan(profile_budget_s=0.02, latency_budget_s=0.02, min_profiled_runs=5, min_latency_runs=5, timeout_s=30)


def model(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()


def f32(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def convolution():
    weight = numpy_helper.from_array(np.full((16, 3, 3, 3), 0.1, np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="the_conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="the_relu"),
        helper.make_node("ReduceMean", ["r"], ["y"], name="the_mean", axes=[2, 3]),
    ]
    return model(nodes, [f32("x", [1, 3, 32, 32])], [f32("y", [1, 16, 1, 1])], [weight])


def endless():
    """A Loop whose trip count keeps a core busy for far longer than any test waits."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["state"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            f32("state", [64, 1024]),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), f32("next", [64, 1024])],
    )
    trips = numpy_helper.from_array(np.int64(10**12), "trips")
    nodes = [helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)]
    return model(nodes, [f32("x", [64, 1024])], [f32("y", [64, 1024])], [trips])


def enormous():
    """Expands to 64 GB."""
    shape = numpy_helper.from_array(np.array([4096, 4096, 1024], np.int64), "shape")
    nodes = [helper.make_node("Expand", ["x", "shape"], ["e"]), helper.make_node("ReduceSum", ["e"], ["y"])]
    return model(nodes, [f32("x", [1, 1, 1024])], [f32("y", [1, 1, 1])], [shape])


@pytest.fixture(scope="module")
def runner():
    with OrtRunner() as runner:
        yield runner


def test_frames_pass_headers_and_bodies_and_notice_a_hang_up():
    stream = io.BytesIO()
    write_frame(stream, {"a": [1, "ü"]}, b"\x00\xff")
    whole = stream.getvalue()
    assert read_frame(io.BytesIO(whole)) == ({"a": [1, "ü"]}, b"\x00\xff")
    assert read_frame(io.BytesIO(b"")) is None
    assert read_frame(io.BytesIO(whole[:-1])) is None


def test_kernels_and_latencies_of_a_real_graph(runner):
    result = runner.measure(convolution(), QUICK)
    assert isinstance(runner, Runner)
    # Without shapes of the blocked layout: one Conv that took the Relu in, a reorder back, the mean.
    assert [k.op_type for k in result.kernels] == ["Conv", "ReorderOutput", "ReduceMean"]
    mean = result.kernels[-1]
    assert mean.outputs == (((1, 16, 1, 1), "float32"),)
    assert mean.inputs[0] == ((1, 16, 32, 32), "float32")
    assert all(k.latency_s >= 0.5e-6 and k.samples == result.profiled_runs for k in result.kernels)
    assert len(result.latencies_s) >= 5
    assert 0 < sum(k.latency_s for k in result.kernels) < 10 * max(result.latencies_s) + 1e-4
    assert result.runtime_version == runner.runtime_version


def test_inputs_take_the_shapes_that_are_asked_for(runner):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    symbolic = model(nodes, [f32("x", ["n", 8])], [f32("y", ["n", 8])])
    assert runner.measure(symbolic, QUICK).kernels[0].outputs == (((1, 8), "float32"),)
    plan = replace(QUICK, shapes={"x": (5, 8)})
    assert runner.measure(symbolic, plan).kernels[0].outputs == (((5, 8), "float32"),)


def test_integers_stay_below_their_limit(runner):
    table = numpy_helper.from_array(np.zeros((100, 4), np.float32), "t")
    nodes = [helper.make_node("Gather", ["t", "i"], ["y"])]
    ids = helper.make_tensor_value_info("i", TensorProto.INT64, [200])
    gather = model(nodes, [ids], [f32("y", [200, 4])], [table])
    assert runner.measure(gather, replace(QUICK, integer_limits={"i": 100})).kernels[0].op_type == "Gather"
    with pytest.raises(MeasurementError, match=r"out of data bounds|indices element out"):
        runner.measure(gather, replace(QUICK, integer_limits={"i": 10_000}))


def test_options_reach_the_session(runner):
    plan = replace(QUICK, options={"graph_optimization_level": "ORT_DISABLE_ALL"})
    assert [k.op_type for k in runner.measure(convolution(), plan).kernels] == ["Conv", "Relu", "ReduceMean"]


def test_a_refused_graph_costs_only_itself(runner):
    before = runner.pid
    with pytest.raises(MeasurementError, match="could not run the graph"):
        runner.measure(b"no model", QUICK)
    assert runner.measure(convolution(), QUICK).kernels
    assert runner.pid == before or before is None


def test_a_crash_costs_only_itself(runner):
    runner.measure(convolution(), QUICK)
    victim = runner.pid
    timer = threading.Timer(0.5, os.kill, (victim, signal.SIGSEGV))
    timer.start()
    with pytest.raises(MeasurementError, match=f"signal {int(signal.SIGSEGV)}"):
        runner.measure(endless(), QUICK)
    assert runner.measure(convolution(), QUICK).kernels
    assert runner.pid != victim


def test_a_hang_is_stopped_in_time(runner):
    start = time.monotonic()
    with pytest.raises(MeasurementError, match=r"within 1 s is required"):
        runner.measure(endless(), replace(QUICK, timeout_s=1.0))
    assert time.monotonic() - start < 10
    assert runner.measure(convolution(), QUICK).kernels


def test_memory_is_limited(runner):
    with pytest.raises(MeasurementError, match=r"alloc|memory|GB are allowed"):
        runner.measure(enormous(), replace(QUICK, memory_limit_bytes=3 * 10**9))
    assert runner.measure(convolution(), QUICK).kernels


def test_a_worker_that_never_comes_up_tells_why():
    broken = OrtRunner(worker=(sys.executable, "-c", "raise SystemExit('no such runtime')"))
    with pytest.raises(MeasurementError, match="exit code 1: no such runtime"):
        broken.measure(b"", QUICK)


def test_the_child_ends_with_its_parent():
    runner = OrtRunner()
    runner.restart()
    child = runner._child
    child.stdin.close()
    assert child.wait(timeout=10) == 0
    runner.close()


def test_processes_are_replaced_after_some_graphs():
    with OrtRunner(runs_per_process=1) as runner:
        numbers = [runner.measure(convolution(), QUICK).process for _ in range(2)]
    assert numbers == [1, 2]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins nothing")
def test_the_child_is_pinned(runner):
    result = runner.measure(convolution(), QUICK)
    assert result.cores == spread_cores(1)
    assert len(result.cores) == 1
    assert spread_cores(10_000) == ()


def test_quartiles_of_a_result():
    result = RunResult((4.0, 1.0, 3.0, 2.0, 5.0))
    assert result.latency_s == 3.0
    assert result.iqr_s == 4.0 - 2.0
    assert lowest_mean([5.0, 1.0, 3.0, 100.0, 2.0]) == (1.0 + 2.0 + 3.0 + 5.0) / 4


def test_null_runner_answers_and_closes():
    runner = NullRunner(lambda m, call: RunResult((1.0,)) if call == 0 else MeasurementError("no"))
    assert runner.measure(b"", RunPlan()).latency_s == 1.0
    with pytest.raises(MeasurementError):
        runner.measure(b"", RunPlan())
    runner.close()
    with pytest.raises(MeasurementError, match="closed"):
        runner.measure(b"", RunPlan())


def test_models_are_valid():
    for built in (convolution(), endless(), enormous()):
        onnx.checker.check_model(built)
