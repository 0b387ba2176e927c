"""ONNX Runtime in a child process: what it does to itself costs one measurement, never the campaign."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import latpred
from latpred.collect.frames import read_frame, write_frame
from latpred.collect.runner import Operand, ProfiledKernel, RunPlan, RunResult
from latpred.errors import MeasurementError

__all__ = ["OrtRunner", "spread_cores"]

WORKER = (sys.executable, "-m", "latpred.collect.worker")
START_TIMEOUT_S = 60.0
POLL_S = 0.2
STDERR_BYTES = 2000


class OrtRunner:
    """A `Runner` for any execution provider of ONNX Runtime.

    Parameters
    ----------
    runs_per_process
        Graphs after which the child is replaced: memory layout differs from process to process, and a campaign
        should see many of them.
    worker
        Command line of the child.
    """

    runtime = "onnxruntime"

    def __init__(self, runs_per_process: int = 25, worker: Sequence[str] = WORKER) -> None:
        self.runs_per_process = runs_per_process
        self.worker = tuple(worker)
        self.processes = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._replies: queue.Queue[tuple[dict[str, Any], bytes] | None] = queue.Queue()
        self._stderr: Any = None
        self._runs = 0

    def __enter__(self) -> OrtRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def runtime_version(self) -> str:
        """Version of the installed runtime, told without importing it."""
        return metadata.version("onnxruntime")

    @property
    def pid(self) -> int | None:
        """Process id of the child, where one runs."""
        return self._child.pid if self._child else None

    def measure(self, model: bytes, plan: RunPlan) -> RunResult:
        """Run a serialized graph in the child.

        Raises
        ------
        MeasurementError
            The runtime refused the graph, crashed, hung past `plan.timeout_s` or outgrew `plan.memory_limit_bytes`.
        """
        if self._child is None or self._runs >= self.runs_per_process:
            self.restart()
        if plan.cores is None:
            plan = replace(plan, cores=spread_cores(plan.threads))
        self._runs += 1
        try:
            header, _ = self._exchange(model, plan)
        except BaseException:
            self.close()  # a half-finished exchange: the child's next words would answer the wrong question
            raise
        if "error" in header:
            if header.get("fatal"):
                self.close()
            raise MeasurementError(f"the runtime could not run the graph: {header['error']}")
        return _result(header, self.processes)

    def restart(self) -> None:
        """Replace the child by a fresh process.

        Raises
        ------
        MeasurementError
            Where it does not come up.
        """
        self.close()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        package_root = str(Path(latpred.__file__).parents[1])
        path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        self._child = subprocess.Popen(  # noqa: S603
            self.worker,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._replies = queue.Queue()
        self._runs = 0
        self.processes += 1
        assert self._child.stdout is not None
        threading.Thread(target=_collect, args=(self._child.stdout, self._replies), daemon=True).start()
        try:
            self._reply(START_TIMEOUT_S, 0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        continue  # unsent bytes of a request nobody waits for
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def _exchange(self, model: bytes, plan: RunPlan) -> tuple[dict[str, Any], bytes]:
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            write_frame(self._child.stdin, plan.to_dict(), model)
        except (BrokenPipeError, OSError):
            raise MeasurementError(self._epitaph()) from None
        return self._reply(plan.timeout_s, plan.memory_limit_bytes)

    def _reply(self, timeout_s: float, memory_limit_bytes: int) -> tuple[dict[str, Any], bytes]:
        """Wait for the child's answer, watching the clock and its resident memory."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                frame = self._replies.get(timeout=max(0.01, min(POLL_S, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise MeasurementError(
                        f"an answer within {timeout_s:g} s is required, the runtime gave none: "
                        "it was stopped; raise the timeout or leave this graph out"
                    ) from None
                if memory_limit_bytes and (used := self._resident_bytes()) > memory_limit_bytes:
                    raise MeasurementError(
                        f"at most {memory_limit_bytes / 1e9:.1f} GB are allowed, the runtime took {used / 1e9:.1f} GB: "
                        "it was stopped"
                    ) from None
                continue
            if frame is None:
                raise MeasurementError(self._epitaph())
            return frame

    def _resident_bytes(self) -> int:
        import psutil

        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0  # it has just ended: its end is noticed at the next look

    def _epitaph(self) -> str:
        """How the child ended, and the last thing it said."""
        assert self._child is not None
        try:
            code: int | str = self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = "unknown"
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - STDERR_BYTES))
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        how = f"signal {-code}" if isinstance(code, int) and code < 0 else f"exit code {code}"
        return f"the runtime's process ended while it measured ({how}{': ' + said[-1] if said else ''})"


def _collect(stream: IO[bytes], replies: queue.Queue[tuple[dict[str, Any], bytes] | None]) -> None:
    """Move the child's answers to a queue; None says that it has gone."""
    try:
        while (frame := read_frame(stream)) is not None:
            replies.put(frame)
    except ValueError:
        replies.put(None)  # the pipe was closed under the reader, or the answer was no frame
        return
    replies.put(None)


def _result(header: dict[str, Any], process: int) -> RunResult:
    return RunResult(
        latencies_s=tuple(header["latencies_s"]),
        kernels=tuple(
            ProfiledKernel(**{**row, "inputs": _operands(row["inputs"]), "outputs": _operands(row["outputs"])})
            for row in header["kernels"]
        ),
        load_s=header["load_s"],
        warmups_s=tuple(header["warmups_s"]),
        profiled_runs=header["profiled_runs"],
        cores=tuple(header["cores"]),
        process=process,
        runtime_version=header["runtime_version"],
    )


def _operands(rows: list[tuple[list[int], str]]) -> tuple[Operand, ...]:
    return tuple((tuple(shape), dtype) for shape, dtype in rows)


def spread_cores(threads: int) -> tuple[int, ...]:
    """Cores to pin to: one hardware thread a physical core, from the last one down (the first serves interrupts).

    Empty where the system tells nothing or has too few.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    first_of: dict[str, int] = {}
    for core in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        try:
            first_of.setdefault(siblings.read_text().strip(), core)
        except OSError:
            first_of.setdefault(str(core), core)
    physical = list(first_of.values())
    chosen = physical if len(physical) >= threads else allowed
    return tuple(sorted(chosen[:threads])) if len(chosen) >= threads else ()
