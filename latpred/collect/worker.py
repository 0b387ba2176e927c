"""The child process that hosts ONNX Runtime: reads run requests from stdin, answers on stdout.

Run as ``python -m latpred.collect.worker``. Whatever native code does to this process (crash, hang, eat memory),
the parent (`latpred.collect.ort`) lives on and starts another. It ends by itself when the parent is gone.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from latpred.collect.frames import read_frame, write_frame
from latpred.collect.runner import lowest_mean

__all__ = ["main"]

DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    **{f"tensor({name}{bits})": f"{name}{bits}" for name in ("int", "uint") for bits in (8, 16, 32, 64)},
    "tensor(bool)": "bool",
}
PROFILE_DTYPES = {"float": "float32", "double": "float64"}
MICROSECOND = 1e-6
# The profiler cuts durations down to whole microseconds; on average that takes half of one away.
TRUNCATION_S = 0.5e-6
EVENT = re.compile(r'"dur" :(\d+),.*?"name" :"(.*?)_kernel_time","args".*?"node_index" : "(\d+)"')


def main() -> None:
    """Serve requests until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native code that prints to stdout must not break the frames
    requests: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    write_frame(replies, {"ready": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()})
    while True:
        plan, model = requests.get()
        write_frame(replies, _answer(plan, model))


def _listen(stream: IO[bytes], requests: queue.Queue[tuple[dict[str, Any], bytes]]) -> None:
    """Pass requests on; end the whole process when the parent has gone, even in the middle of a run."""
    while (frame := read_frame(stream)) is not None:
        requests.put(frame)
    os._exit(0)


def _answer(plan: dict[str, Any], model: bytes) -> dict[str, Any]:
    """The result of one request, or the failure in words: every failure must reach the parent."""
    try:
        _limit_memory(plan["memory_limit_bytes"])
        return _measure(plan, model)
    except MemoryError as error:
        return {"error": f"out of memory ({error or 'allocation failed'})", "fatal": True}
    except Exception as error:
        text = " ".join(str(error).split())
        return {"error": f"{type(error).__name__}: {text[:400]}", "fatal": "alloc" in text.lower()}
    finally:
        _limit_memory(0)


def _limit_memory(limit_bytes: int) -> None:
    """Bound the address space (0 lifts the bound); the parent watches the resident size where this cannot be done."""
    try:
        import resource
    except ImportError:  # no such thing on Windows
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = limit_bytes or hard
    if hard != resource.RLIM_INFINITY and soft != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _pin(cores: list[int] | None) -> list[int]:
    """Pin this process; the cores that it may really use, or [] where it is free to wander."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return []
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        return []  # not allowed here: the parent records that nothing was pinned
    return sorted(os.sched_getaffinity(0))


def _options(plan: Mapping[str, Any], profile_prefix: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = plan["threads"]
    options.inter_op_num_threads = 1
    for name, value in plan["options"].items():
        if name == "graph_optimization_level":
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, value)
        elif name == "execution_mode":
            options.execution_mode = getattr(onnxruntime.ExecutionMode, value)
        elif isinstance(getattr(options, name, None), bool):
            setattr(options, name, value.lower() in ("1", "true"))
        elif isinstance(getattr(options, name, None), int):
            setattr(options, name, int(value))
        elif isinstance(getattr(options, name, None), str):
            setattr(options, name, value)
        else:
            options.add_session_config_entry(name, value)
    if plan["profile"]:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    return options


def _feeds(session: Any, plan: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Random inputs: standard normal, integers below their limit, fair coins."""
    rng = np.random.default_rng(plan["seed"])
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        shape = plan["shapes"].get(value.name) or [d if isinstance(d, int) else 1 for d in value.shape]
        dtype = DTYPES.get(value.type)
        if dtype is None:
            raise ValueError(f"input {value.name} is a {value.type}, which no random values are made for")
        if dtype.startswith("float"):
            feeds[value.name] = rng.standard_normal(shape, np.float32).astype(dtype)
        else:
            limit = 2 if dtype == "bool" else plan["integer_limits"].get(value.name, 2)
            feeds[value.name] = rng.integers(0, limit, shape).astype(dtype)
    return feeds


def _measure(plan: dict[str, Any], model: bytes) -> dict[str, Any]:
    import onnxruntime

    cores = _pin(plan["cores"])
    gc.collect()
    gc.disable()
    with tempfile.TemporaryDirectory(prefix="latpred-") as folder:
        start = time.perf_counter()
        options = _options(plan, str(Path(folder) / "profile"))
        session = onnxruntime.InferenceSession(model, options, providers=[plan["provider"]])
        load_s = time.perf_counter() - start
        feeds = _feeds(session, plan)
        warmups = [_run(session, feeds) for _ in range(max(1, plan["warmup_runs"]))]
        profiled_runs = 0
        kernels: list[dict[str, Any]] = []
        if plan["profile"]:
            profiled_runs = _count(
                warmups[-1], plan["min_profiled_runs"], plan["max_profiled_runs"], plan["profile_budget_s"]
            )
            for _ in range(profiled_runs):
                _run(session, feeds)
            profile = session.end_profiling()  # from here on the session runs as if it had never been profiled
            kernels = _kernels(Path(profile), len(warmups), profiled_runs)
        runs = _count(warmups[-1], plan["min_latency_runs"], plan["max_latency_runs"], plan["latency_budget_s"])
        if plan["profile"]:
            _run(session, feeds)
        latencies = [_run(session, feeds) for _ in range(runs)]
    gc.enable()
    return {
        "latencies_s": latencies,
        "kernels": kernels,
        "load_s": load_s,
        "warmups_s": warmups,
        "profiled_runs": profiled_runs,
        "cores": cores,
        "runtime_version": onnxruntime.__version__,
    }


def _run(session: Any, feeds: Mapping[str, np.ndarray]) -> float:
    start = time.perf_counter()
    session.run(None, feeds)
    return time.perf_counter() - start


def _count(one_s: float, least: int, most: int, budget_s: float) -> int:
    """Runs that fit a time budget, between two bounds; of very slow graphs fewer, but three at least."""
    fitting = int(budget_s / max(one_s, 1e-6))
    return max(3, min(least, 3 * fitting), min(most, fitting))


def _kernels(profile: Path, warmup_runs: int, profiled_runs: int) -> list[dict[str, Any]]:
    """Per-kernel statistics from the profiler's file, in order of first launch, warm-ups left out."""
    durations: dict[tuple[str, str], list[int]] = {}
    described: dict[tuple[str, str], dict[str, Any]] = {}
    with profile.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            found = EVENT.search(line)
            if found is None:
                continue
            key = (found[2], found[3])
            if key not in durations:
                durations[key] = []
                described[key] = json.loads(line.rstrip().rstrip(","))["args"]
            durations[key].append(int(found[1]))
    rows = []
    for (name, _), samples in durations.items():
        runs = warmup_runs + profiled_runs
        launches = len(samples) / runs
        kept = samples[round(launches * warmup_runs) :] or samples
        args = described[(name, _)]
        rows.append(
            {
                "name": name,
                "op_type": args["op_name"],
                "inputs": _operands(args.get("input_type_shape", [])),
                "outputs": _operands(args.get("output_type_shape", [])),
                "latency_s": lowest_mean(kept) * MICROSECOND + TRUNCATION_S,
                "mean_s": statistics.fmean(kept) * MICROSECOND + TRUNCATION_S,
                "spread": _spread(kept),
                "samples": len(kept),
                "launches": launches,
            }
        )
    return rows


def _operands(described: list[dict[str, list[int]]]) -> list[tuple[list[int], str]]:
    return [(shape, PROFILE_DTYPES.get(name, name)) for entry in described for name, shape in entry.items()]


def _spread(samples: list[int]) -> float:
    """Interquartile range over the median; half a microsecond stands for a median of nothing."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / (middle + 0.5)


if __name__ == "__main__":
    main()
