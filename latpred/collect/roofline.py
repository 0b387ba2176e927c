"""Measure this machine's roofline: clock, peak FLOP/s, bandwidth of three memories, dispatch.

Peaks and dispatch are measured through ONNX Runtime itself: what counts is what its kernels can reach.
Bandwidth is measured with one vectorised read-and-write pass over working sets of growing size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from latpred.collect.clock import measured_frequency_hz
from latpred.collect.launching import batch_s, checked, dispatch_s, fastest_s, session_of, start_curve
from latpred.collect.plateaus import levels_from, significant
from latpred.collect.processor import Processor, identify, theoretical_flops
from latpred.device import Device
from latpred.errors import InputError, MeasurementError

__all__ = ["Progress", "bandwidth_curve", "measure_device", "peak_flops"]

Progress = Callable[[str, float], None]
"""Called with what is measured now, and the share of the measurement that is done (0 to 1)."""

KIB, MIB = 1024, 1024**2

_SMALLEST_BYTES, _LARGEST_BYTES = 8 * KIB, 256 * MIB

# A pass over a part this large takes long enough that threads run together although each call takes Python's lock.
_SMALLEST_JOINT_PART_BYTES = 256 * KIB

# A pass shorter than this share of what calling it costs cannot be told from the call.
_SMALLEST_SHARE_OF_CALL = 0.1


def measure_device(
    name: str,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    seconds: float = 15.0,
    progress: Progress | None = None,
) -> Device:
    """Measure this machine's roofline at a thread count.

    Parameters
    ----------
    name : str
        The device's name.
    threads : int
        Threads that work on one inference.
    provider : str
        ONNX Runtime's execution provider; only the CPU's own can be measured.
    seconds : float
        Time to spend, about.
    progress : callable, optional
        See `Progress`.

    Raises
    ------
    InputError
        When `threads` or `provider` cannot be measured here.
    MeasurementError
        When the runtime runs none of the float32 graphs.
    """
    import onnxruntime

    processor = identify()
    if not 1 <= threads <= processor.logical_cpus:
        raise InputError(f"threads must be 1 to {processor.logical_cpus}, this machine's CPUs; got {threads}")
    if provider != "CPUExecutionProvider":
        raise InputError(
            f"a roofline is measured through CPUExecutionProvider only; got {provider}: "
            "write a device file by hand, a preset shows the form"
        )
    report = progress or _silent
    report("clock", 0.0)
    clocks_hz = [measured_frequency_hz()]
    counts = _thread_counts(threads, processor.cores)
    peaks: dict[int, dict[str, float]] = {}
    for index, count in enumerate(counts):
        report(f"peak FLOP/s at threads: {count}", 0.02 + 0.43 * index / len(counts))
        peaks[count] = peak_flops(count, 0.4 * seconds / len(counts))
    report("bandwidth", 0.45)
    curve = bandwidth_curve(threads, _largest_bytes(processor), 0.5 * seconds)
    report("dispatch", 0.95)
    launch_s = dispatch_s(threads)
    starts = start_curve(threads, _largest_bytes(processor) // 2)
    # The higher of before and after: a neighbour's load slows a clock for seconds, nothing speeds it up.
    clocks_hz.append(measured_frequency_hz())
    measured_hz = max((clock_hz for clock_hz in clocks_hz if clock_hz), default=None)
    frequency_hz = measured_hz or processor.told_frequency_hz
    if frequency_hz is None:
        raise MeasurementError("the clock is neither measurable nor told here: write a device file by hand")
    frequency_hz = significant(frequency_hz)
    report("done", 1.0)
    return Device(
        name=name,
        processor=processor.label,
        cores=processor.cores,
        threads=threads,
        frequency_hz=frequency_hz,
        peak_flops=peaks[threads],
        levels=levels_from(curve, processor.caches, processor.memory_bytes, threads),
        dispatch_s=launch_s,
        lanes={dtype: processor.core.width(dtype) for dtype in ("float32", "float64", "int8")},
        theoretical_flops={
            dtype: significant(flops) for dtype, flops in theoretical_flops(processor, threads, frequency_hz).items()
        },
        peak_flops_by_threads=peaks,
        bandwidth_curve=tuple(curve),
        start_curve=tuple(starts),
        runtime="onnxruntime",
        runtime_version=onnxruntime.__version__,
        provider=provider,
        source="measured",
        notes=_notes(processor, measured_hz),
    )


def peak_flops(threads: int = 1, seconds: float = 6.0) -> dict[str, float]:
    """Peak FLOP/s by dtype that ONNX Runtime reaches, the best of several graphs and of all runs.

    float32 by MatMul and by two convolutions; int8 by MatMulInteger and QLinearConv (uint8 x int8) where this build
    of the runtime has them. 2 FLOPs a multiply-add, integer ones too.

    Raises
    ------
    MeasurementError
        When none of the float32 graphs runs.
    """
    graphs = {"float32": _float_graphs(), "int8": _integer_graphs()}
    each_s = seconds / sum(len(entries) for entries in graphs.values())
    peaks: dict[str, float] = {}
    for dtype, entries in graphs.items():
        rates = []
        for model, feed, flops in entries:
            session = session_of(model, threads)
            if session is not None:
                rates.append(flops / fastest_s(partial(session.run, None, feed), each_s))
        if rates:
            peaks[dtype] = significant(max(rates))
    if "float32" not in peaks:
        raise MeasurementError("onnxruntime ran neither MatMul nor Conv in float32: reinstall it, then measure again")
    return peaks


def bandwidth_curve(
    threads: int = 1, largest_bytes: int = _LARGEST_BYTES, seconds: float = 8.0
) -> list[tuple[int, float]]:
    """Bandwidth in B/s against working set in B, two points an octave from 8 KiB on.

    One pass reads half of the working set and writes the other half (``y = -x``), as an elementwise kernel does; the
    fastest of many passes counts, less the cost of the call; where that drowns the pass, the point is left out.
    Several threads take equal parts of the working set;
    where a part is too small for them to run together, it is one thread's bandwidth times their number.
    """
    octaves = int(np.log2(largest_bytes / _SMALLEST_BYTES))
    sizes = [int(_SMALLEST_BYTES * 2 ** (step / 2)) // 64 * 64 for step in range(2 * octaves + 1)]
    budget_s = seconds / len(sizes)
    points = []
    with ThreadPoolExecutor(threads) as pool:
        for size in sizes:
            part = max(size // threads, 64)
            if threads == 1 or part < _SMALLEST_JOINT_PART_BYTES:
                pass_s = _pass_s(part, budget_s)
                speed = threads * part / pass_s if pass_s else None
            else:
                speed = _joint_bandwidth(pool, threads, part, budget_s)
            if speed:
                points.append((size, significant(speed)))
    return points


def _silent(_what: str, _share: float) -> None:
    """Report to nobody."""


def _thread_counts(threads: int, cores: int) -> list[int]:
    """Counts at which peaks are measured: powers of two up to the cores, the cores, and the asked one."""
    doublings = {2**k for k in range(cores.bit_length()) if 2**k <= cores}
    return sorted(doublings | {cores, threads})


def _largest_bytes(processor: Processor) -> int:
    """The largest working set: well beyond the last cache, within a quarter of the memory."""
    last_cache = processor.caches[-1].size_bytes if processor.caches else 0
    return int(min(max(_LARGEST_BYTES, 4 * last_cache), processor.memory_bytes // 4))


def _notes(processor: Processor, measured_hz: float | None) -> tuple[str, ...]:
    told_hz = processor.told_frequency_hz
    told = "the system tells no clock" if told_hz is None else f"the system tells {told_hz / 1e9:.2f} GHz"
    clock = "clock measured by a chain of multiplications" if measured_hz else "clock as told, not measured"
    core = processor.core
    units = f"theoretical: {core.name}, {core.lanes} float32 lanes x {core.fma_units} FMA unit(s) x 2 a clock and core"
    machine = ("virtual machine: caches may be shared with neighbours",) if processor.virtual else ()
    return (f"{clock}; {told}", units, *machine)


def _pass_over(size_bytes: int) -> Callable[[], Any]:
    source = np.ones(max(1, size_bytes // 8), np.float32)
    target = np.zeros_like(source)
    return lambda: np.negative(source, out=target)


def _pass_s(size_bytes: int, seconds: float) -> float | None:
    """Time in s of one pass without its call, or None where the call drowns it.

    Passes and empty calls take turns, so that both meet the machine in the same mood.
    """
    one_pass, empty_call = _pass_over(size_bytes), _pass_over(8)
    batch = max(1, 2**19 // size_bytes)
    pass_s, call_s = float("inf"), float("inf")
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < 3 or time.perf_counter() < end:
        pass_s = min(pass_s, batch_s(one_pass, batch))
        call_s = min(call_s, batch_s(empty_call, min(batch, 16)))
        rounds += 1
    alone_s = pass_s - call_s
    return alone_s if alone_s > _SMALLEST_SHARE_OF_CALL * call_s else None


def _joint_bandwidth(pool: ThreadPoolExecutor, threads: int, part_bytes: int, seconds: float) -> float:
    """Bandwidth in B/s of all threads, each over its own part; the best of three rounds."""
    passes = [_pass_over(part_bytes) for _ in range(threads)]
    repeats = max(2, int(seconds / 4 / fastest_s(passes[0], seconds / 8)))

    def work(one_pass: Callable[[], Any]) -> None:
        for _ in range(repeats):
            one_pass()

    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        list(pool.map(work, passes))
        best = max(best, threads * part_bytes * repeats / (time.perf_counter() - start))
    return best


_Entry = tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]], int]
_SIDE = 768  # a square matrix product of this side: 0.9 GFLOP, operands of 2.25 MiB
_CONVOLUTIONS = ((256, 28, 1), (128, 28, 3))  # channels in and out, height and width, kernel


def _float_graphs() -> Sequence[_Entry]:
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray[Any, Any]:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    weights = {"w": numbers(_SIDE, _SIDE)}
    square = _model("MatMul", ["x", "w"], (_SIDE, _SIDE), TensorProto.FLOAT, TensorProto.FLOAT, weights)
    entries = [(square, {"x": numbers(_SIDE, _SIDE)}, 2 * _SIDE**3)]
    for channels, side, kernel in _CONVOLUTIONS:
        shape = (1, channels, side, side)
        weights = {"w": numbers(channels, channels, kernel, kernel)}
        attributes = {"pads": [kernel // 2] * 4}
        model = _model("Conv", ["x", "w"], shape, TensorProto.FLOAT, TensorProto.FLOAT, weights, attributes)
        entries.append((model, {"x": numbers(*shape)}, 2 * channels * side * side * channels * kernel * kernel))
    return entries


def _integer_graphs() -> Sequence[_Entry]:
    rng = np.random.default_rng(0)
    activations = rng.integers(0, 255, (_SIDE, _SIDE), np.uint8)
    weights: Mapping[str, np.ndarray[Any, Any]] = {"w": rng.integers(-127, 127, (_SIDE, _SIDE), np.int8)}
    square = _model("MatMulInteger", ["x", "w"], (_SIDE, _SIDE), TensorProto.UINT8, TensorProto.INT32, weights)
    entries = [(square, {"x": activations}, 2 * _SIDE**3)]
    for channels, side, kernel in _CONVOLUTIONS:
        shape = (1, channels, side, side)
        constants = {
            "xs": np.float32(0.1),
            "xz": np.uint8(128),
            "w": rng.integers(-127, 127, (channels, channels, kernel, kernel), np.int8),
            "ws": np.float32(0.1),
            "wz": np.int8(0),
            "ys": np.float32(10.0),
            "yz": np.uint8(128),
        }
        arrays = {key: np.asarray(value) for key, value in constants.items()}
        attributes = {"pads": [kernel // 2] * 4}
        names = ["x", *arrays]
        model = _model("QLinearConv", names, shape, TensorProto.UINT8, TensorProto.UINT8, arrays, attributes)
        feed = {"x": rng.integers(0, 255, shape, np.uint8)}
        entries.append((model, feed, 2 * channels * side * side * channels * kernel * kernel))
    return entries


def _model(
    op_type: str,
    inputs: Sequence[str],
    shape: Sequence[int],
    input_type: int,
    output_type: int,
    constants: Mapping[str, np.ndarray[Any, Any]],
    attributes: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """One node from `x` to `y`, of the same shape."""
    node = helper.make_node(op_type, list(inputs), ["y"], **(attributes or {}))
    graph = helper.make_graph(
        [node],
        op_type,
        [helper.make_tensor_value_info("x", input_type, shape)],
        [helper.make_tensor_value_info("y", output_type, shape)],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return checked(graph)
