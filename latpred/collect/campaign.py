"""A measuring campaign: a budget of time spent on composite graphs, durably, resumably, with an eye on drift.

The first 60 % of the budget follow the stream of configurations by the templates' own weights, in breadth; then the
caller's errors by kind shift the weights to templates whose kernels are predicted badly and matter much. A small
reference graph is timed again and again: where it is off its running median, what was measured since it was last
right is taken back and measured anew.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from latpred.collect.matching import match
from latpred.collect.noise import noise_floor
from latpred.collect.refinement import refined_weights
from latpred.collect.runner import Runner, RunPlan, RunResult
from latpred.collect.sample import Configuration, configuration
from latpred.collect.surroundings import memory_limit_bytes, rounded, surroundings
from latpred.collect.synthesize import Composite, reference, synthesize
from latpred.errors import LatpredError, MeasurementError
from latpred.graph import read
from latpred.kernels.detect import detect
from latpred.kernels.fusion import RuleBook
from latpred.kernels.kernel import Kernel
from latpred.packing import pack_kernel
from latpred.store import Dataset

__all__ = ["Campaign", "ErrorByKind", "Progress", "Summary", "preview"]

ErrorByKind = Callable[[Dataset], Mapping[str, float]]

BREADTH_SHARE = 0.6
REFINEMENTS_AT = (0.6, 0.8)  # shares of the budget
LEAST_BUDGET_TO_REFINE_S = 240.0
REFERENCE_EVERY_S = 15.0
REFERENCE_TOLERANCE = 0.04
REFERENCE_WINDOW = 9
REFERENCE_RETRIES = 5
FIRST_REFERENCES = 3
REPEAT_EVERY = 20  # composites
REPEAT_DISTANCE = 10  # composites between a measurement and its repetition, at least
REMEASURING_LIMIT = 0.25  # of the budget
UNSTEADY = 0.15  # interquartile range over median of whole-graph latencies
CALMING_LIMIT = 0.1  # of the budget
SHORT_BUDGET_S = 150.0
MOST_SKIPPED = 300  # configurations in a row without a wanted kind


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a campaign stands."""

    elapsed_s: float
    budget_s: float
    composites: int
    kernels: int
    kinds: int
    failed: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a campaign did; counts are of this run, not of the whole dataset."""

    composites: int
    kernels: int
    kernels_by_kind: Mapping[str, int]
    failed: int
    remeasured: int
    matched_share: float  # of the profiled time
    elapsed_s: float
    interrupted: bool
    noise_floor: Mapping[str, float]
    notices: tuple[str, ...] = ()


@dataclass(slots=True)
class Campaign:
    """Everything that one run of measuring needs and keeps.

    Examples
    --------
    `Campaign(dataset, runner, rules, budget_s=900).run()` measures for a quarter of an hour.
    """

    dataset: Dataset
    runner: Runner
    rules: RuleBook
    budget_s: float = 900.0
    kinds: Sequence[str] = ()  # only composites with such kernels; all where empty
    seed: int = 0
    progress: Callable[[Progress], None] = lambda _: None
    error_by_kind: ErrorByKind | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    # state
    started_s: float = 0.0
    weights: Mapping[str, float] | None = None
    pace: float = 1.0  # how much slower than estimated this machine is, as a power of two
    references_s: deque[float] = field(default_factory=lambda: deque(maxlen=REFERENCE_WINDOW))
    checked_s: float = 0.0  # when the reference was last right
    reference_ratio: float = 1.0
    fresh: list[tuple[int, Configuration]] = field(default_factory=list)  # measured since: ordinals, configurations
    again: deque[Configuration] = field(default_factory=deque)
    remeasuring_s: float = 0.0
    calming_s: float = 0.0  # spent on repeating shaken measurements
    ordinal: int = 0  # of the next record
    counts: Counter[str] = field(default_factory=Counter)
    done: list[Configuration] = field(default_factory=list)
    composites: int = 0
    failed: int = 0
    remeasured: int = 0
    times_s: list[tuple[float, float]] = field(default_factory=list)  # matched, all profiled
    notices: list[str] = field(default_factory=list)
    refined: int = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.started_s

    def run(self) -> Summary:
        """Measure until the budget is spent or Ctrl-C; either way the dataset is whole."""
        self.started_s = self.clock()
        interrupted = False
        try:
            index = self._resume()
            for _ in range(FIRST_REFERENCES):
                self.references_s.append(self._time_reference())
            self.checked_s = self.clock()
            while self.elapsed_s < self.budget_s:
                found = self._next(index)
                if found is None:
                    break
                index, chosen = found
                self._measure(*chosen)
                self._upkeep()
        except KeyboardInterrupt:
            interrupted = True
            self._say("interrupted: what was measured is kept, the same command goes on from here")
        finally:
            self.runner.close()
        floor = noise_floor(self.dataset.records())
        if floor:
            self.dataset.note_noise_floor(floor)
        matched_s = sum(matched for matched, _ in self.times_s)
        profiled_s = sum(profiled for _, profiled in self.times_s)
        return Summary(
            self.composites,
            sum(self.counts.values()),
            dict(self.counts.most_common()),
            self.failed,
            self.remeasured,
            matched_s / profiled_s if profiled_s else 1.0,
            self.elapsed_s,
            interrupted,
            floor,
            tuple(self.notices),
        )

    def _resume(self) -> int:
        """Index of the first configuration that the dataset does not have."""
        last = -1
        for record in self.dataset.records():
            self.ordinal += 1
            made = record.get("configuration")
            if made and made["seed"][0] == self.seed:
                last = max(last, made["index"])
                self.pace = max(self.pace, made.get("pace", 1.0))
        self.notices += self.dataset.notices
        if self.ordinal:
            self._say(f"going on after {self.ordinal} records")
        return last + 1

    def _next(self, index: int) -> tuple[int, tuple[Configuration, Composite, tuple[Kernel, ...]]] | None:
        """The next composite that is wanted, and the index after it; what was spoiled comes first."""
        for _ in range(MOST_SKIPPED):
            if self.again:
                made = self.again.popleft()
                self.remeasured += 1
            else:
                made = configuration(self.seed, index, self.weights)
                made = replace(made, target_s=made.target_s / self.pace)
                index += 1
            try:
                composite = synthesize(made)
                kernels = detect(read(composite.model), self.rules).kernels
            except LatpredError as error:
                self._fail(made, error)
                continue
            if not self.kinds or any(kernel.kind in self.kinds for kernel in kernels):
                return index, (made, composite, kernels)
        self.notices.append(f"no composite of {MOST_SKIPPED} has a kernel of the kinds {', '.join(self.kinds)}")
        return None

    def _plan(self, composite: Composite) -> RunPlan:
        short = self.budget_s <= SHORT_BUDGET_S
        return RunPlan(
            threads=self.dataset.meta.threads,
            provider=self.dataset.meta.provider,
            options=self.dataset.meta.options,
            integer_limits=composite.integer_limits,
            profile_budget_s=0.25 if short else 0.4,
            min_profiled_runs=8 if short else 12,
            latency_budget_s=0.1 if short else 0.2,
            min_latency_runs=5 if short else 8,
            memory_limit_bytes=memory_limit_bytes(),
        )

    def _measure(
        self, made: Configuration, composite: Composite, kernels: tuple[Kernel, ...], role: str = "sample"
    ) -> None:
        start_s = self.clock()
        try:
            result = self._steady(composite)
        except MeasurementError as error:
            self._fail(made, error)
            return
        matching = match(kernels, result.kernels)
        record = {
            "role": role,
            "configuration": {**made.to_dict(), "target_s": made.target_s, "pace": self.pace},
            "latency": {name: rounded(value) for name, value in result.summary().items()},
            "kernels": [
                {
                    **pack_kernel(replace(kernel, ops=(kernel.name,))),
                    "latency_s": rounded(event.latency_s),
                    "samples": event.samples,
                    "spread": rounded(event.spread, 2),
                }
                for kernel, event in matching.matched
            ],
            "unmatched": [
                {"name": event.name, "op_type": event.op_type, "latency_s": rounded(event.latency_s * event.launches)}
                for event in matching.unmatched
            ],
            "unmeasured": [{"name": kernel.name, "op_type": kernel.op_type} for kernel in matching.unmeasured],
            "weight_bytes": composite.weight_bytes,
            "reference_ratio": rounded(self.reference_ratio),
            "run": {
                "profiled_runs": result.profiled_runs,
                "load_s": rounded(result.load_s),
                "cores": list(result.cores),
                "process": result.process,
                **surroundings(),
            },
        }
        self._append(record)
        profiled_s = sum(event.latency_s * event.launches for event in result.kernels)
        self.times_s.append((matching.matched_share * profiled_s, profiled_s))
        if role == "sample":
            self.composites += 1
            self.counts.update(kernel.kind for kernel, _ in matching.matched)
            self.fresh.append((self.ordinal - 1, made))
            self.done.append(made)
            self._adapt_pace(result, composite)
        self._say(f"{'+'.join(made.templates)}, {result.latency_s * 1e3:.1f} ms in {self.clock() - start_s:.1f} s")

    def _steady(self, composite: Composite) -> RunResult:
        """A measurement; one that something else on the machine shook is repeated once, and the calmer one counts."""
        plan = self._plan(composite)
        start_s = self.clock()
        result = self.runner.measure(composite.model, plan)
        shaken = result.iqr_s / result.latency_s
        spent_s = self.clock() - start_s
        if shaken <= UNSTEADY or self.calming_s + spent_s > CALMING_LIMIT * self.budget_s:
            return result
        self.calming_s += spent_s
        second = self.runner.measure(composite.model, plan)
        return second if second.iqr_s / second.latency_s < shaken else result

    def _adapt_pace(self, result: RunResult, composite: Composite) -> None:
        """Slower machines get smaller composites: halve the target while runs take more than twice the estimate."""
        ratio = result.latency_s / max(composite.estimated_s, 1e-6)
        if ratio > 3.0 and result.latency_s > 0.15:
            self.pace *= 2.0

    def _fail(self, made: Configuration, error: LatpredError) -> None:
        self.failed += 1
        self._append({"role": "failed", "configuration": made.to_dict(), "error": str(error)})
        self._say(f"{'+'.join(made.templates)}: {error}")

    def _append(self, record: dict[str, Any]) -> None:
        self.dataset.append(record)
        self.ordinal += 1

    def _upkeep(self) -> None:
        """What is due between composites: the reference, a repetition, a refinement."""
        if self.clock() - self.checked_s > REFERENCE_EVERY_S:
            self._check_reference()
        if self.composites and self.composites % REPEAT_EVERY == 0 and len(self.done) > REPEAT_DISTANCE:
            made = self.done[(self.composites * 7) % (len(self.done) - REPEAT_DISTANCE)]
            self.done.append(made)  # moves the count of those that may come next, so that one is not taken forever
            composite = synthesize(made)
            self._measure(made, composite, detect(read(composite.model), self.rules).kernels, role="repeat")
        due = self.refined < len(REFINEMENTS_AT) and self.elapsed_s > REFINEMENTS_AT[self.refined] * self.budget_s
        if due and self.error_by_kind is not None and self.budget_s >= LEAST_BUDGET_TO_REFINE_S:
            self._refine(self.error_by_kind)

    def _refine(self, error_by_kind: ErrorByKind) -> None:
        """Give the turns to come to the templates that the errors call for."""
        self.refined += 1
        self._say("looking where the error is")
        try:
            errors = error_by_kind(self.dataset)
        except LatpredError as error:
            self.notices.append(f"measured on in breadth, for the errors by kind could not be told: {error}")
            return
        self.weights = refined_weights([record for _, record in self.dataset.samples()], errors)

    def _check_reference(self) -> None:
        """Time the reference; where it is off, wait for it to come back and take back what was measured meanwhile."""
        usual_s = statistics.median(self.references_s) if self.references_s else 0.0
        for attempt in range(REFERENCE_RETRIES):
            now_s = self._time_reference()
            self.reference_ratio = now_s / usual_s if usual_s else 1.0
            if abs(self.reference_ratio - 1.0) <= REFERENCE_TOLERANCE:
                if attempt and self.fresh:
                    self._take_back()
                break
            if self.elapsed_s > self.budget_s:
                break
            self._say(f"the reference is {self.reference_ratio - 1.0:+.0%} off its median: waiting")
            self.sleep(1.0)
        else:
            self.notices.append(f"the machine changed its speed for good ({self.reference_ratio - 1.0:+.0%})")
            self.references_s.clear()
            self.reference_ratio = 1.0
        self.references_s.append(now_s)
        self.fresh.clear()
        self.checked_s = self.clock()

    def _take_back(self) -> None:
        """Void what a disturbed minute spoiled and queue it again, unless that would eat the budget."""
        spoiled_s = self.clock() - self.checked_s
        if self.remeasuring_s + spoiled_s > REMEASURING_LIMIT * self.budget_s:
            self.notices.append(
                f"{len(self.fresh)} composites of a disturbed minute were kept: too little time is left"
            )
            return
        self.remeasuring_s += spoiled_s
        self._append({"role": "void", "voids": [ordinal for ordinal, _ in self.fresh], **surroundings()})
        self.again.extend(made for _, made in self.fresh)
        self._say(f"a disturbed minute: {len(self.fresh)} composites are measured again")

    def _time_reference(self) -> float:
        composite = reference()
        plan = replace(
            self._plan(composite), profile=False, min_latency_runs=20, max_latency_runs=80, latency_budget_s=0.2
        )
        return self.runner.measure(composite.model, plan).latency_s

    def _say(self, message: str) -> None:
        self.progress(
            Progress(
                self.elapsed_s,
                self.budget_s,
                self.composites,
                sum(self.counts.values()),
                len(self.counts),
                self.failed,
                message,
            )
        )


def preview(
    rules: RuleBook, count: int, seed: int = 0, kinds: Iterable[str] = ()
) -> list[tuple[Configuration, Counter[str]]]:
    """What a campaign would measure first: configurations with the kinds of kernels in them. Nothing is run."""
    wanted = set(kinds)
    rows = []
    for index in range(count):
        made = configuration(seed, index)
        found = Counter(kernel.kind for kernel in detect(read(synthesize(made).model), rules).kernels)
        if not wanted or wanted & set(found):
            rows.append((made, found))
    return rows
