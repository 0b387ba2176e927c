"""Whole networks measured in rounds: all of them once, then all again in another order, a reference beside each.

A slow minute then belongs to no network alone, and the rounds of one network tell the noise floor. The reference
graph is timed right before and right after each network in the same child process, so that what the machine itself
did meanwhile can be told from what the network did. Every few networks a new child process starts: memory layout
differs from process to process.

File of `save`: ``{"schema": 1, "sha256": ..., "measurements": {...}}``; the checksum is of the measurements as compact
JSON with sorted keys. History of the schema: 1, the first; files from before `provider` was kept are of the CPU's.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from latpred.collect.runner import ProfiledKernel, Runner, RunPlan, RunResult
from latpred.collect.synthesize import reference
from latpred.errors import ArtefactError, InputError, LatpredError, MeasurementError, ModelError

__all__ = [
    "NOT_REACHED",
    "RUNS_PER_PROCESS",
    "MeasuredNetwork",
    "Measurements",
    "Round",
    "Step",
    "check_target",
    "load",
    "measure_rounds",
    "names_of",
    "save",
    "select",
]

SCHEMA = 1
NETWORKS_PER_PROCESS = 5
RUNS_PER_PROCESS = 2 * NETWORKS_PER_PROCESS + 1  # what a runner's child has to live through: a reference around each
NOT_REACHED = "it was not measured: interrupted before its first round was over"


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement of one network."""

    latency_s: float  # median of the unprofiled runs
    iqr_s: float
    reference_s: float  # mean of the reference graph's latency right before and right after, same child process
    process: int  # which child process
    kernels: tuple[ProfiledKernel, ...] = ()  # empty unless profiled


@dataclass(frozen=True, slots=True)
class MeasuredNetwork:
    """All rounds of one network."""

    name: str
    path: str
    rounds: tuple[Round, ...]


@dataclass(frozen=True, slots=True)
class Measurements:
    """Networks as one machine ran them; those that it could not run in some round, with the reason."""

    processor: str
    runtime: str
    runtime_version: str
    threads: int
    created: str  # UTC, ISO 8601
    networks: tuple[MeasuredNetwork, ...]
    failed: Mapping[str, str] = field(default_factory=dict)  # name -> why
    interrupted: bool = False
    provider: str = "CPUExecutionProvider"
    file_reference_s: float | None = None  # usual reference of the file that `select` chose these from; never saved

    @property
    def usual_reference_s(self) -> float:
        """Median latency of the reference over all rounds of all networks; NaN where nothing was measured.

        Of networks that were chosen from a file it is that of the whole file: a network's latency with the drift
        cancelled must not depend on what else was chosen.

        Examples
        --------
        >>> rounds = tuple(Round(1.0, 0.0, reference_s, 0) for reference_s in (0.002, 0.004, 0.003))
        >>> Measurements("cpu", "null", "0", 1, "", (MeasuredNetwork("a", "a.onnx", rounds),)).usual_reference_s
        0.003
        """
        if self.file_reference_s is not None:
            return self.file_reference_s
        references_s = [one.reference_s for network in self.networks for one in network.rounds]
        return statistics.median(references_s) if references_s else float("nan")


@dataclass(frozen=True, slots=True)
class Step:
    """One network of one round is over; counts start at 1."""

    round: int
    rounds: int
    place: int
    networks: int
    name: str
    latency_s: float | None  # None where it failed
    error: str = ""


def names_of(paths: Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    """Name -> path: the file's stem where no other file has it, else the whole path; a file named twice counts once.

    Examples
    --------
    >>> list(names_of(["a/net.onnx", "b/net.onnx", "b/other.onnx"]))
    ['a/net.onnx', 'b/net.onnx', 'other']
    """
    distinct = list(dict.fromkeys(Path(path) for path in paths))
    stems = Counter(path.stem for path in distinct)
    return {path.stem if stems[path.stem] == 1 else str(path): path for path in distinct}


def measure_rounds(
    models: Mapping[str, Callable[[], bytes]],
    runner_of: Callable[[], Runner],
    plan: RunPlan,
    rounds: int,
    progress: Callable[[Step], None] = lambda _: None,
    *,
    processor: str = "",
    paths: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Measurements:
    """Measure every network `rounds` times, the reference around each.

    A network that fails once, or whose model cannot be made, is told with the reason and not tried again; its rounds
    before that are kept. Ctrl-C ends the measuring, and what was measured until then is returned.

    Parameters
    ----------
    models : mapping of str to callable
        Name -> what gives the serialized model, called once a round.
    runner_of : callable
        Makes a runner; every few networks a new one. Its child has to live through `RUNS_PER_PROCESS` runs.
    plan : RunPlan
        Of the networks; the reference takes its threads, provider and options. With `plan.profile` every round tells
        its kernels.
    rounds : int
        1 at least.
    progress : callable
        Told after every network of every round.
    processor : str
        What `Measurements` says of the machine.
    paths : mapping of str to str, optional
        Name -> path of the file; the name by default.
    seed : int
        Of the orders in which the rounds go.

    Raises
    ------
    InputError
        When there is no model, or no round is wanted.
    MeasurementError
        When the runner replaces its child between a network and its reference.
    """
    if not models or rounds < 1:
        raise InputError(f"one model and one round are needed at least; got {len(models)} and {rounds}: name a model")
    tour = _Tour(models, runner_of, plan, rounds, progress)
    names = list(models)
    interrupted = False
    try:
        for turn in range(rounds):
            order = [names[i] for i in np.random.default_rng((seed, turn)).permutation(len(names))]
            for start in range(0, len(order), NETWORKS_PER_PROCESS):
                tour.visit(turn, start, order[start : start + NETWORKS_PER_PROCESS])
    except KeyboardInterrupt:
        interrupted = True
        tour.failed.update({name: NOT_REACHED for name in names if name not in {*tour.found, *tour.failed}})
    found = [MeasuredNetwork(n, (paths or {}).get(n, n), tuple(tour.found[n])) for n in names if n in tour.found]
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    failed = {name: tour.failed[name] for name in names if name in tour.failed}
    runtime, version = tour.runtime
    return Measurements(
        processor, runtime, version, plan.threads, created, tuple(found), failed, interrupted, plan.provider
    )


class _Tour:
    """What the rounds have found so far."""

    def __init__(
        self,
        models: Mapping[str, Callable[[], bytes]],
        runner_of: Callable[[], Runner],
        plan: RunPlan,
        rounds: int,
        progress: Callable[[Step], None],
    ) -> None:
        self.models = models
        self.runner_of = runner_of
        self.plan = plan
        self.rounds = rounds
        self.progress = progress
        self.reference = reference()
        self.reference_plan = replace(
            plan,
            profile=False,
            shapes={},
            integer_limits={},
            min_latency_runs=20,
            max_latency_runs=80,
            latency_budget_s=0.2,
        )
        self.runtime = ("", "")
        self.groups = 0
        self.processes: dict[tuple[int, int], int] = {}  # (runner, its child) -> number over all runners
        self.found: dict[str, list[Round]] = {}
        self.failed: dict[str, str] = {}

    def visit(self, turn: int, start: int, names: Sequence[str]) -> None:
        """Measure some networks with a runner of their own; one reference between two networks serves both."""
        runner = self.runner_of()
        self.runtime = (runner.runtime, runner.runtime_version)
        self.groups += 1
        before: RunResult | None = None
        try:
            for place, name in enumerate(names, start + 1):
                if name in self.failed:
                    continue
                latency_s, error_text = None, ""
                try:
                    model = self._model(name)
                    before = before or self._time_reference(runner)
                    result = runner.measure(model, self.plan)
                    after = self._time_reference(runner)
                except LatpredError as error:
                    # Its child may be another one by now: the next network gets a reference of its own.
                    before, error_text = None, str(error)
                    self.failed[name] = error_text
                else:
                    self.found.setdefault(name, []).append(self._round(before, result, after))
                    before, latency_s = after, result.latency_s
                self.progress(Step(turn + 1, self.rounds, place, len(self.models), name, latency_s, error_text))
        finally:
            runner.close()

    def _model(self, name: str) -> bytes:
        try:
            return self.models[name]()
        except LatpredError:
            raise
        except Exception as error:  # whatever a reader of weights comes upon: hours of measuring others must not end
            reason = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise ModelError(f"its model cannot be made ready to run ({reason}): mend it, or leave it out") from error

    def _time_reference(self, runner: Runner) -> RunResult:
        return runner.measure(self.reference.model, self.reference_plan)

    def _round(self, before: RunResult, result: RunResult, after: RunResult) -> Round:
        if not before.process == result.process == after.process:
            raise MeasurementError(
                f"a network and the references around it need one child process, the runner used {before.process}, "
                f"{result.process} and {after.process}: let its child live through {RUNS_PER_PROCESS} runs"
            )
        return Round(
            result.latency_s,
            result.iqr_s,
            (before.latency_s + after.latency_s) / 2,
            self.processes.setdefault((self.groups, result.process), len(self.processes)),
            result.kernels,
        )


def select(measurements: Measurements, paths: Mapping[str, Path], origin: str = "the measurements") -> Measurements:
    """Only the networks named, at the paths given; a name that was not measured is a failure with its reason.

    Drift stays as it was reckoned from all networks.

    Raises
    ------
    InputError
        When the measurements tell of none of the names.

    Examples
    --------
    >>> one = MeasuredNetwork("a", "old/a.onnx", (Round(1.0, 0.0, 0.003, 0),))
    >>> chosen = select(Measurements("cpu", "null", "0", 1, "", (one,)), {"a": Path("new/a.onnx"), "b": Path("b.onnx")})
    >>> chosen.networks[0].path, dict(chosen.failed)
    ('new/a.onnx', {'b': 'it is not in the measurements: measure it, or leave it out'})
    """
    known = {network.name: network for network in measurements.networks}
    if not (known.keys() | measurements.failed.keys()) & paths.keys():
        raise InputError(f"{origin}: none of {', '.join(paths)} is in it: name networks that were measured")
    missing = f"it is not in {origin}: measure it, or leave it out"
    failed = {name: measurements.failed.get(name, missing) for name in paths if name not in known}
    failed |= {name: why for name, why in measurements.failed.items() if name in paths}
    networks = tuple(replace(known[name], path=str(path)) for name, path in paths.items() if name in known)
    usual_s = measurements.usual_reference_s
    return replace(measurements, networks=networks, failed=failed, file_reference_s=usual_s)


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse what `save` could not write to, before anything is measured.

    Raises
    ------
    InputError
        When it is a folder, or lies in one that is not there.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"--save needs a folder that is there, {target.parent} is not: make it first")
    if target.is_dir():
        raise InputError(f"--save needs a file to write, {target} is a folder: name a file in it")


def save(measurements: Measurements, path: str | os.PathLike[str]) -> None:
    """Write one JSON file that `load` reads back.

    Raises
    ------
    InputError
        When they were chosen from a file: without the others their drift would be reckoned otherwise.
    ArtefactError
        When it cannot be written.
    """
    row = asdict(measurements)
    if row.pop("file_reference_s") is not None:
        raise InputError("measurements are saved whole, these are some networks of a file: keep the file itself")
    text = json.dumps({"schema": SCHEMA, "sha256": _checksum(row), "measurements": row}, separators=(",", ":"))
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ArtefactError(f"the measurements cannot be written to {os.fspath(path)} ({error}): name a file that "
                            "can be written") from error  # fmt: skip


def load(path: str | os.PathLike[str]) -> Measurements:
    """What `save` wrote.

    Raises
    ------
    InputError
        When there is no such file, or it cannot be read.
    ArtefactError
        When it is no JSON, is of another schema, was altered or is incomplete.
    """
    origin = os.fspath(path)
    again = "measure again with `latpred validate --save`"
    try:
        row = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{origin}: measurements cannot be read ({reason}): name what `--save` wrote") from error
    except ValueError as error:
        raise ArtefactError(f"{origin}: measurements must be a JSON file ({error}): {again}") from error
    schema = row.get("schema") if isinstance(row, dict) else None
    if schema != SCHEMA:
        raise ArtefactError(f"{origin}: measurements of schema {SCHEMA} are needed, found {schema!r}: {again}")
    measured = row.get("measurements")
    if _checksum(measured) != row.get("sha256"):
        raise ArtefactError(f"{origin}: its checksum does not match, it was altered: {again}")
    try:
        return Measurements(**{**measured, "networks": tuple(_network(network) for network in measured["networks"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{origin}: the measurements are incomplete ({error}): {again}") from error


def _checksum(row: Any) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _network(row: Mapping[str, Any]) -> MeasuredNetwork:
    rounds = (Round(**{**one, "kernels": tuple(_kernel(kernel) for kernel in one["kernels"])}) for one in row["rounds"])
    return MeasuredNetwork(row["name"], row["path"], tuple(rounds))


def _kernel(row: Mapping[str, Any]) -> ProfiledKernel:
    operands = {side: tuple((tuple(shape), dtype) for shape, dtype in row[side]) for side in ("inputs", "outputs")}
    return ProfiledKernel(**{**row, **operands})
