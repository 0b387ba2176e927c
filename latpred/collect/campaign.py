"""A measuring campaign: a budget of time spent on composite graphs, durably, resumably, with an eye on drift.

A third of the budget, five minutes at most, follows the stream of configurations by the templates' own weights, in
breadth; then looks at the error (`latpred.collect.looks`) shift the weights to templates whose kernels are predicted
badly and matter much, and end the campaign where the error no longer falls. A small reference graph is timed again and
again (`latpred.collect.reference_watch`): where it was off its running median and comes back, what was measured since
it was last right is taken back and measured anew.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from latpred.collect.looks import ErrorByKind, Looks
from latpred.collect.matching import match
from latpred.collect.noise import campaign_reference_s, noise_floor
from latpred.collect.recording import measurement_record
from latpred.collect.reference_watch import ReferenceWatch, Speed
from latpred.collect.runner import Runner, RunPlan, RunResult
from latpred.collect.sample import Configuration, configuration
from latpred.collect.surroundings import memory_limit_bytes, surroundings
from latpred.collect.synthesize import Composite, synthesize
from latpred.errors import LatpredError, MeasurementError
from latpred.graph import read
from latpred.kernels.detect import detect
from latpred.kernels.fusion import RuleBook
from latpred.kernels.kernel import Kernel
from latpred.store import Dataset

__all__ = ["Campaign", "ErrorByKind", "Progress", "Summary", "preview"]

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
    validation: tuple[tuple[float, float], ...] = ()  # elapsed_s of each look, validation error then
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
    looks: Looks | None = None  # None without `error_by_kind`
    watch: ReferenceWatch = field(init=False)
    pace: float = 1.0  # how much slower than estimated this machine is, as a power of two
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
    stopped: bool = False  # before the budget was spent, for the error no longer fell

    def __post_init__(self) -> None:
        self.watch = ReferenceWatch(
            self.runner, self._plan({}), self._say, self.clock, self.sleep, notices=self.notices
        )
        if self.error_by_kind is not None:
            self.looks = Looks(self.dataset, self.error_by_kind, self.budget_s, self.clock, notices=self.notices)

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
            while self.elapsed_s < self.budget_s and not self.stopped:
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
        reference_s = campaign_reference_s(self.dataset.records())
        if reference_s:
            self.dataset.note_reference(reference_s)
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
            tuple(self.looks.validation) if self.looks else (),
            tuple(self.notices),
        )

    def _resume(self) -> int:
        """Take up what the dataset has; index of the first configuration that it has not."""
        last = -1
        samples = 0
        for record in self.dataset.records():
            self.ordinal += 1
            samples += record.get("role", "sample") == "sample"
            made = record.get("configuration")
            if made and made["seed"][0] == self.seed:
                last = max(last, made["index"])
                self.pace = max(self.pace, made.get("pace", 1.0))
        self.notices += self.dataset.notices
        if self.ordinal:
            self._say(f"going on after {self.ordinal} records")
        self.watch.start(campaign_reference_s(self.dataset.records()), self.started_s + self.budget_s)
        if self.looks:
            self.looks.start(samples)
            self._look()
        return last + 1

    def _next(self, index: int) -> tuple[int, tuple[Configuration, Composite, tuple[Kernel, ...]]] | None:
        """The next composite that is wanted, and the index after it; what was spoiled comes first."""
        for _ in range(MOST_SKIPPED):
            if self.again:
                made = self.again.popleft()
                self.remeasured += 1
            else:
                made = configuration(self.seed, index, self.looks.weights if self.looks else None)
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

    def _plan(self, integer_limits: Mapping[str, int]) -> RunPlan:
        short = self.budget_s <= SHORT_BUDGET_S
        return RunPlan(
            threads=self.dataset.meta.threads,
            provider=self.dataset.meta.provider,
            options=self.dataset.meta.options,
            integer_limits=integer_limits,
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
        self._append(measurement_record(role, made, self.pace, composite.weight_bytes, result, matching, self.watch))
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
        plan = self._plan(composite.integer_limits)
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
        """Slower machines get smaller composites: halve the target where a long run took thrice the estimate."""
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
        """What is due between composites: the reference, a repetition, a look at the error."""
        if self.watch.due:
            self._check_reference()
        if self.composites and self.composites % REPEAT_EVERY == 0 and len(self.done) > REPEAT_DISTANCE:
            made = self.done[(self.composites * 7) % (len(self.done) - REPEAT_DISTANCE)]
            self.done.append(made)  # moves the count of those that may come next, so that one is not taken forever
            composite = synthesize(made)
            self._measure(made, composite, detect(read(composite.model), self.rules).kernels, role="repeat")
        self._look()

    def _look(self) -> None:
        """Where a look is due: give the turns to come to the templates that the errors call for, or stop."""
        if not self.looks or not self.looks.due(self.elapsed_s, self.ordinal):
            return
        self._say("looking where the error is")
        self.looks.look(self.elapsed_s, self.ordinal)
        if self.looks.no_longer_falls(self.elapsed_s):
            self.stopped = True
            self.notices.append(
                f"stopped after {self.elapsed_s / 60:.0f} min of {self.budget_s / 60:.0f}: "
                f"the validation error no longer falls ({self.looks.last_errors})"
            )

    def _check_reference(self) -> None:
        """Where the machine was disturbed, take back what was measured since its speed was last right."""
        since_s = self.watch.checked_s
        speed = self.watch.check(self.started_s + self.budget_s)
        if speed is Speed.DISTURBED and self.fresh:
            self._take_back(self.clock() - since_s)
        self.fresh.clear()

    def _take_back(self, spoiled_s: float) -> None:
        """Void what a disturbed minute spoiled and queue it again, unless that would eat the budget."""
        if self.remeasuring_s + spoiled_s > REMEASURING_LIMIT * self.budget_s:
            self.notices.append(
                f"{len(self.fresh)} composites of a disturbed minute were kept: too little time is left"
            )
            return
        self.remeasuring_s += spoiled_s
        self._append({"role": "void", "voids": [ordinal for ordinal, _ in self.fresh], **surroundings()})
        self.again.extend(made for _, made in self.fresh)
        self._say(f"a disturbed minute: {len(self.fresh)} composites are measured again")

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
