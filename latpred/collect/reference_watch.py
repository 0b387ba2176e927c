"""An eye on the machine's speed: a small reference graph, timed again and again while a campaign measures.

Its running median is the machine's speed at that time, an absolute one, and stands with every record. Where the
reference is off that median, the machine is disturbed: measuring waits until it is back. Where it does not come back,
the machine has changed its speed for good, and the median starts anew.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from latpred.collect.runner import Runner, RunPlan
from latpred.collect.synthesize import reference

__all__ = ["FIRST_TIMINGS", "RETRIES", "ReferenceWatch", "Speed"]

EVERY_S = 8.0
SHARE = 0.02  # of the time, at most, is spent on timing the reference
TOLERANCE = 0.1  # records carry the speed: only what moved more within seconds is doubtful
WINDOW = 9  # timings whose median is the machine's speed: a minute or so
RETRIES = 5  # until a machine that is off is taken to stay so
FIRST_TIMINGS = 3
WAIT_S = 1.0
LEAST_RUNS = 10
MOST_RUNS = 40
RUNS_BUDGET_S = 0.1


class Speed(Enum):
    """What a check of the machine's speed came to."""

    STEADY = auto()
    DISTURBED = auto()  # off, and back again: what was measured since the check before is doubtful
    CHANGED = auto()  # off for good
    UNSETTLED = auto()  # off when the time was up


@dataclass(slots=True)
class ReferenceWatch:
    """Times the reference graph, and remembers.

    Parameters
    ----------
    runner : Runner
    plan : RunPlan
        Threads, provider and options of the campaign.
    tell : callable
        Told in words what goes on.
    clock, sleep : callables, optional
        In s.

    Examples
    --------
    >>> from latpred.collect.runner import NullRunner, RunResult
    >>> watch = ReferenceWatch(NullRunner(lambda model, call: RunResult((0.002,))), RunPlan())
    >>> watch.start()
    >>> watch.check(), watch.reference_s, watch.ratio
    (<Speed.STEADY: 1>, 0.002, 1.0)
    """

    runner: Runner
    plan: RunPlan
    tell: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    # state
    model: bytes = field(default_factory=lambda: reference().model)
    timings_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    checked_s: float = 0.0  # by the clock, when the last check was over
    cost_s: float = 0.0  # of one timing
    notices: list[str] = field(default_factory=list)

    @property
    def reference_s(self) -> float:
        """Latency of the reference now: the median of the last timings."""
        return statistics.median(self.timings_s)

    @property
    def ratio(self) -> float:
        """The very last timing over that median."""
        return self.timings_s[-1] / self.reference_s

    @property
    def due(self) -> bool:
        """Whether it is time for a check: so seldom that the checks take no more than their share of the time."""
        return self.clock() - self.checked_s >= max(EVERY_S, self.cost_s / SHARE)

    def start(self, usual_s: float | None = None, until_s: float = float("inf")) -> None:
        """Time the reference for the first time.

        Parameters
        ----------
        usual_s : float, optional
            Its usual latency in the campaign that goes on: a machine that is off that speed is waited for as in any
            check, and where it stays off, a notice says how far.
        until_s : float
            As in `check`.
        """
        if usual_s is not None:
            self.timings_s.append(usual_s)
            self.check(until_s)
            self.timings_s.clear()  # records are to carry today's speed
        for _ in range(FIRST_TIMINGS):
            self.timings_s.append(self._time())
        self.checked_s = self.clock()

    def check(self, until_s: float = float("inf")) -> Speed:
        """Time the reference; where it is off its median, wait for it to come back.

        Parameters
        ----------
        until_s : float
            By the clock, when waiting is no use any more.
        """
        usual_s = self.reference_s
        found = Speed.CHANGED
        for attempt in range(RETRIES):
            now_s = self._time()
            off = now_s / usual_s - 1.0
            if abs(off) <= TOLERANCE:
                found = Speed.DISTURBED if attempt else Speed.STEADY
                break
            if self.clock() > until_s:
                found = Speed.UNSETTLED
                break
            self.tell(f"the reference is {off:+.0%} off its median: waiting")
            self.sleep(WAIT_S)
        if found is Speed.CHANGED:
            self.notices.append(
                f"the machine changed its speed for good ({off:+.0%}): the reference graph takes "
                f"{now_s * 1e3:.3g} ms, before it took {usual_s * 1e3:.3g} ms; each record keeps its own"
            )
            self.timings_s.clear()
        self.timings_s.append(now_s)
        self.checked_s = self.clock()
        return found

    def _time(self) -> float:
        start_s = self.clock()
        plan = replace(
            self.plan,
            profile=False,
            min_latency_runs=LEAST_RUNS,
            max_latency_runs=MOST_RUNS,
            latency_budget_s=RUNS_BUDGET_S,
        )
        latency_s = self.runner.measure(self.model, plan).latency_s
        self.cost_s = self.clock() - start_s
        return latency_s
