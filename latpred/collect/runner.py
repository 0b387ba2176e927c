"""What it takes to measure a graph: the plan, the result, and the protocol between; a null runner for tests."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from latpred.errors import MeasurementError

__all__ = ["NullRunner", "Operand", "ProfiledKernel", "RunPlan", "RunResult", "Runner"]

Operand = tuple[tuple[int, ...], str]  # shape and dtype


@dataclass(frozen=True, slots=True)
class RunPlan:
    """How one graph is to be run."""

    threads: int = 1
    provider: str = "CPUExecutionProvider"
    options: Mapping[str, str] = field(default_factory=dict)  # attributes of the session options, or config entries
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of inputs; else as declared, symbols are 1
    integer_limits: Mapping[str, int] = field(default_factory=dict)  # integer inputs are drawn below this; else 2
    cores: tuple[int, ...] | None = None  # to pin to; None lets the runner choose, () leaves it to the system
    warmup_runs: int = 2
    profile: bool = True
    min_profiled_runs: int = 12
    max_profiled_runs: int = 250
    profile_budget_s: float = 0.6
    min_latency_runs: int = 8
    max_latency_runs: int = 100
    latency_budget_s: float = 0.3
    timeout_s: float = 60.0  # for everything: load, warm-up, all runs
    memory_limit_bytes: int = 0  # of the child's address space; 0: no limit
    seed: int = 0  # of the inputs' values

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ProfiledKernel:
    """What the runtime's profiler says of one kernel, over all profiled runs.

    `latency_s` is the mean of the lowest 80 % of the samples; `spread` their interquartile range over the median.
    """

    name: str
    op_type: str
    inputs: tuple[Operand, ...]  # constants that the runtime packed at load time may be missing
    outputs: tuple[Operand, ...]
    latency_s: float
    mean_s: float
    spread: float
    samples: int
    launches: float = 1.0  # a run; more than 1 inside a Loop or Scan


@dataclass(frozen=True, slots=True)
class RunResult:
    """Whole-graph latencies (unprofiled runs, in order) and kernels in launch order."""

    latencies_s: tuple[float, ...]
    kernels: tuple[ProfiledKernel, ...] = ()
    load_s: float = 0.0
    warmups_s: tuple[float, ...] = ()
    profiled_runs: int = 0
    cores: tuple[int, ...] = ()  # that the child was really pinned to
    process: int = 0  # counts child processes: equal numbers ran in one
    runtime_version: str = ""

    @property
    def latency_s(self) -> float:
        """Median of the whole-graph latencies."""
        return statistics.median(self.latencies_s)

    @property
    def iqr_s(self) -> float:
        """Interquartile range of the whole-graph latencies.

        Examples
        --------
        >>> RunResult((1.0, 2.0, 3.0, 4.0, 5.0)).iqr_s
        2.0
        """
        if len(self.latencies_s) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.latencies_s, n=4, method="inclusive")
        return high - low

    def summary(self) -> dict[str, float | int]:
        """What is kept of the whole-graph samples."""
        return {
            "median_s": self.latency_s,
            "iqr_s": self.iqr_s,
            "mean_s": statistics.fmean(self.latencies_s),
            "min_s": min(self.latencies_s),
            "max_s": max(self.latencies_s),
            "samples": len(self.latencies_s),
        }


@runtime_checkable
class Runner(Protocol):
    """Loads a graph, times it, profiles its kernels."""

    @property
    def runtime(self) -> str:
        """Name of the runtime, as rule books and manifests spell it."""
        ...

    @property
    def runtime_version(self) -> str:
        """Its version."""
        ...

    def measure(self, model: bytes, plan: RunPlan) -> RunResult:
        """Run a serialized graph.

        Raises
        ------
        MeasurementError
            Where the graph fails, hangs, crashes or outgrows its memory; the runner stays usable.
        """
        ...

    def close(self) -> None:
        """Let go of processes and files; harmless when repeated."""
        ...


class NullRunner:
    """Answers without running anything: `answer` maps (model, call number) to a result or an exception.

    Examples
    --------
    >>> runner = NullRunner(lambda model, call: RunResult((0.001 * (call + 1),)))
    >>> runner.measure(b"", RunPlan()).latency_s, runner.measure(b"", RunPlan()).latency_s
    (0.001, 0.002)
    """

    runtime = "null"
    runtime_version = "0"

    def __init__(self, answer: Callable[[bytes, int], RunResult | BaseException]) -> None:
        self.answer = answer
        self.plans: list[RunPlan] = []
        self.closed = False

    def measure(self, model: bytes, plan: RunPlan) -> RunResult:
        """The prepared answer."""
        if self.closed:
            raise MeasurementError("an open runner is needed, this one was closed: make another")
        self.plans.append(plan)
        answer = self.answer(model, len(self.plans) - 1)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        """Refuse further work."""
        self.closed = True


def lowest_mean(samples: Sequence[float], share: float = 0.8) -> float:
    """Mean of the lowest `share` of the samples (at least one): interruptions only ever add time.

    Examples
    --------
    >>> lowest_mean([1.0, 1.0, 2.0, 2.0, 90.0])
    1.5
    """
    kept = sorted(samples)[: max(1, int(len(samples) * share))]
    return statistics.fmean(kept)
