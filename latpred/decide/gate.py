"""What decides while a network runs: one search in a sorted list for each decision.

The rule of the built-in policies is to take the best option of which

    mean * slow-down * (1 + z * spread) <= time left,   spread^2 = own variances / mean^2 + shared variance

holds with all that follows. `z` is learned from met and missed deadlines (`conformal`), the slow-down and the shared
variance from timed pieces (`slowdown`), less what each option is off by itself (`learned`). Thresholds hold the `z` and
the variance of when they were computed, at first or by `Gate.renew`; later ones change the factor (1 + z * spread)
alone, by the own variance of the point's most useful way. Where `z` is negative, that is 1 / (1 - z * spread) > 0.

A gate is state of one stream of inferences: use one for each thread. The table is shared.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from copy import copy
from math import inf, isfinite, sqrt

from latpred.decide.chain import chain_of
from latpred.decide.conformal import AdaptiveQuantile
from latpred.decide.forecast import Planned, Remaining, bounds_s, expected_s, followed, probability_within, times_on
from latpred.decide.learned import option_times, relearned
from latpred.decide.names import Names, Rates
from latpred.decide.observation import Observation, Policy
from latpred.decide.policy import POLICIES, OptionPlan, option_plans, plan_of
from latpred.decide.slowdown import SlowDown
from latpred.decide.table import Table, Utilities
from latpred.decide.ways import Margin
from latpred.errors import InputError

__all__ = ["Gate"]


class Gate:
    """Decisions under one deadline; made by `Table.gate`.

    Attributes
    ----------
    points : tuple of str
    options : mapping of str or int to tuple of str
        Names of a point's options, by the point's name or number.
    not_worth : tuple of str
        Points whose options save less than deciding costs: answered `keep` without looking.
    confidence : float

    Examples
    --------
    >>> from latpred.decide.costs import Costs, Duration, OptionCosts, PointCosts
    >>> from latpred.decide.table import compile_table
    >>> keep, skip = OptionCosts("keep", "keep", Duration(0.004), 1.0), OptionCosts("skip", "skip", Duration(0.0), 0.7)
    >>> point = PointCosts("layer3", Duration(0.002), (keep, skip))
    >>> table = compile_table(Costs("model", "device", (point,), Duration(0.001), shared_spread=0.03))
    >>> gate = table.gate(deadline_s=0.008, confidence=0.99, clock=None)
    >>> gate.begin()
    >>> gate.spent(0.002)
    >>> gate.decide("layer3")  # 0.005 s to go in 0.006 s
    0
    >>> gate.spent(0.003)
    >>> gate.options["layer3"][gate.decide("layer3")]  # 0.005 s in 0.005 s would be a gamble
    'skip'
    """

    __slots__ = (
        "_after", "_bounds_s", "_chain", "_clock", "_deadline_s", "_ends_at", "_expected", "_expected_s",
        "_frequency_hz", "_kind", "_last", "_learned", "_level", "_limited", "_margin", "_names", "_next_deadline_s",
        "_own_variance", "_plans", "_policy", "_quantile", "_slow", "_table", "_taken", "_timed_s", "_times",
        "_utility", "_weighed", "confidence", "not_worth", "options", "points",
    )  # fmt: skip

    def __init__(
        self,
        table: Table,
        deadline_s: float,
        confidence: float,
        utilities: Utilities | None,
        policy: str | Policy,
        clock: Callable[[], float] | None,
    ) -> None:
        if not 0.0 < confidence < 1.0:
            raise InputError(f"a confidence must lie between 0 and 1, got {confidence}: 0.99 is 99 %")
        if not callable(policy) and policy not in POLICIES:
            raise InputError(f"a policy must be {', '.join(POLICIES)} or a function, got {policy!r}")
        self.deadline_s = deadline_s
        self.confidence = confidence
        self._names = Names(table)
        self.points = table.points
        self.options = self._names.options
        self._utility = table.utility_of(utilities)
        self._kind = policy if isinstance(policy, str) else "optimal"
        self._policy = policy if callable(policy) else None
        self._slow = SlowDown(table.shared_spread, table.noise_spread)
        self._quantile = AdaptiveQuantile(confidence)
        self._learned = option_times(table)
        self._expected = self._names.by_either(enumerate(self._learned))
        self._prepare(table)
        self._taken = [0] * len(table.points)
        self._frequency_hz = table.frequency_hz
        self._clock: Callable[[], float] = clock if clock is not None else _stopped
        self._last = 0
        self.begin()

    def _prepare(self, table: Table) -> None:
        self._table = table
        self._chain = chain_of(table, self._utility)
        self._margin = Margin(max(0.0, self._quantile.z), self._slow.variance)
        self._after = POLICIES[self._kind](self._chain, self._margin)
        self._weighed: dict[int, list[OptionPlan]] = {}
        plans = [plan_of(self._chain, number, after, self._margin) for number, after in enumerate(self._after)]
        # Plain tuples, by number and by name: either costs one look-up.
        self._plans = self._names.by_either(plan[:] for plan in plans)
        self.not_worth = tuple(name for name, worth in zip(table.points, self._chain.decided, strict=True) if not worth)
        self._bounds_s = bounds_s(self._chain)
        self._times = times_on(table, self._chain)
        kept = followed(table, self._chain, lambda *_: 0)
        self._own_variance = kept.variance_s2 / kept.mean_s**2 if kept.mean_s > 0.0 else 0.0
        self._level = 1.0

    def renew(self, utilities: Utilities | None = None) -> None:
        """Plan anew with options' times as learned; takes some ms, as making a gate: for a pause between inferences.

        Parameters
        ----------
        utilities : mapping, optional
            Point -> option -> what it is worth from now on, complete; without it, what it was worth before.
        """
        if utilities is not None:
            self._utility = self._table.utility_of(utilities)
        self._prepare(relearned(self._table, self._learned))

    @property
    def table(self) -> Table:
        """What is planned with: options' times as they were learned when it was last planned."""
        return self._table

    @property
    def deadline_s(self) -> float:
        """From the beginning of an inference to its end; a new one holds from the next `begin` on."""
        return self._next_deadline_s

    @deadline_s.setter
    def deadline_s(self, deadline_s: float) -> None:
        if not (deadline_s > 0.0 and isfinite(deadline_s)):
            raise InputError(f"a deadline must be positive and finite, got {deadline_s} s: give it in seconds")
        self._next_deadline_s = float(deadline_s)

    @property
    def frequency_hz(self) -> float | None:
        """Clock of the device; setting another one rescales all times at once. None where the table has none."""
        return self._frequency_hz or None

    @frequency_hz.setter
    def frequency_hz(self, frequency_hz: float) -> None:
        if not (frequency_hz > 0.0 and isfinite(frequency_hz)):
            raise InputError(f"a clock must be positive and finite, got {frequency_hz} Hz")
        if self._frequency_hz:
            self._slow.rescale(self._frequency_hz / frequency_hz)
        self._frequency_hz = float(frequency_hz)

    @property
    def slowdown(self) -> float:
        """Actual over predicted time, as tracked."""
        return self._slow.factor * self._level

    @property
    def z(self) -> float:
        """Standard deviations kept as a margin, as learned."""
        return self._quantile.z

    def begin(self) -> None:
        """Start an inference: its time runs from now."""
        self._deadline_s = self._next_deadline_s
        self._ends_at = self._clock() + self._deadline_s
        self._limited = False
        self._timed_s = self._expected_s = 0.0

    def spent(self, elapsed_s: float) -> None:
        """Say that the inference began `elapsed_s` seconds ago; raises InputError where that is not finite."""
        if not isfinite(elapsed_s):
            raise InputError(f"the time spent must be finite, got {elapsed_s} s: give it in seconds")
        self._ends_at = self._clock() + self._deadline_s - elapsed_s

    def decide(self, point: int | str, observation: Observation | None = None) -> int:
        """The option to take at a point, now.

        Parameters
        ----------
        point
            Its number (faster) or name.
        observation
            What a policy of the caller's own is asked with. Of it, the built-in ones look at `utilities` alone: what
            the point's options are worth for this very input, as a gate network says.

        Returns
        -------
        int
            Index of the option; `Gate.options` has its name. Where nothing fits, the fastest.

        Raises
        ------
        InputError
            When there is no such point, the caller's policy gives no option of it, or utilities are not one an option.
        """
        try:
            number, thresholds_s, choices, own_variance, switches_s = self._plans[point]
        except (KeyError, TypeError):
            self._names.refuse(point)
        self._last = number
        if self._policy is not None:
            option = self._asked(number, observation)
        elif not thresholds_s:
            option = choices[0]
        else:
            slow = self._slow
            margin = self._quantile.z * sqrt(own_variance + slow.variance)
            left_s = (self._ends_at - self._clock()) / (slow.factor * self._level)
            budget_s = left_s / (1.0 + margin) if margin >= 0.0 else left_s * (1.0 - margin)
            if observation is not None and observation.utilities is not None:
                return self._weigh(number, budget_s, observation.utilities)
            option = choices[bisect_right(thresholds_s, budget_s)]
            if switches_s and option != self._taken[number]:
                fits = choices[bisect_right(thresholds_s, budget_s - switches_s[option])] == option
                option = option if fits else choices[bisect_right(thresholds_s, budget_s - max(switches_s))]
            if option != choices[-1]:
                self._limited = True
        self._taken[number] = option
        return option

    def _weigh(self, number: int, budget_s: float, utilities: Sequence[float]) -> int:
        plans = self._weighed.get(number)
        if plans is None:
            plans = option_plans(self._chain, number, self._after[number], self._margin)
            self._weighed[number] = plans
        if len(utilities) != len(plans):
            raise InputError(
                f"point {self.points[number]!r} has {len(plans)} options to weigh, "
                f"the observation gave {len(utilities)} utilities: give one each"
            )
        in_use = self._taken[number]
        option = wanted = 0
        best = most = -inf
        for index, (thresholds_s, later, switch_s) in enumerate(plans):
            worth = utilities[index]
            place = bisect_right(thresholds_s, budget_s if index == in_use else budget_s - switch_s)
            if place and worth + later[place - 1] > best:
                best, option = worth + later[place - 1], index
            if worth + later[-1] > most:
                most, wanted = worth + later[-1], index
        if best == -inf:
            option = self._plans[number][2][0]
        if option != wanted:
            self._limited = True
        self._taken[number] = option
        return option

    def observe(self, point: int | str, actual_s: float) -> None:
        """Say how long the option that was decided at a point took.

        Raises
        ------
        InputError
            When there is no such point, or the time is not positive and finite.
        """
        try:
            number, expected = self._expected[point]
        except (KeyError, TypeError):
            self._names.refuse(point)
        time = expected[self._taken[number]]
        expected_s = time.expected_s
        if expected_s > 0.0:
            time.learn(*self._slow.update(actual_s, expected_s, time.own_variance + time.jitter))
            self._timed_s += time.predicted_s
            self._expected_s += expected_s

    def finish(self, elapsed_s: float | None = None) -> bool:
        """End an inference: learn from whether it met its deadline, and from its whole time.

        The latter only where less than half of it was timed piece by piece, for `observe`.

        Parameters
        ----------
        elapsed_s
            Since it began; None asks the clock.

        Returns
        -------
        bool
            Whether the deadline was met.

        Raises
        ------
        InputError
            When the time is not positive and finite.
        """
        if elapsed_s is None:
            elapsed_s = self._clock() - self._ends_at + self._deadline_s
        whole_s = self._chain.trunk_mean_s[0]
        for times, option in zip(self._times, self._taken, strict=True):
            time_s, ends = times[option]
            whole_s += time_s
            if ends:
                break
        own_s = self._expected_s - self._timed_s
        if 2.0 * self._timed_s < whole_s:
            self._slow.update(elapsed_s, whole_s + own_s, self._own_variance)
        self._level = 1.0 + own_s / whole_s
        if not 0.0 < elapsed_s < inf:
            raise InputError(f"an inference takes a positive and finite time, got {elapsed_s} s")
        missed = elapsed_s > self._deadline_s
        least_s = self.slowdown * (self._chain.trunk_mean_s[0] + self._bounds_s[0][0])
        self._quantile.update(missed, self._limited, possible=least_s <= self._deadline_s)
        return not missed

    def remaining_s(self, point: int | str, rates: Rates | None = None) -> Remaining:
        """How long it takes from a point's decision to the end, at the present slow-down.

        Parameters
        ----------
        point
        rates
            Point -> option -> share of the inferences that take it; what is not named is kept.

        Returns
        -------
        Remaining
            The least and the most that options allow, and the expectation under `rates`, in s.

        Raises
        ------
        InputError
            When a point or an option is unknown, or shares of a point are negative or above 1 together.
        """
        number = self._names.number(point)
        least_s, most_s = self._bounds_s[number]
        factor = self.slowdown
        expectation_s = expected_s(self._chain, number, self._names.shares(rates or {}))
        return Remaining(factor * least_s, factor * most_s, factor * expectation_s)

    def probability(self, option: int | str, point: int | str | None = None) -> float:
        """Chance to meet the deadline when an option is taken now, and the policy goes on as planned.

        A policy of the caller's own cannot be asked ahead: ``"optimal"`` stands for it.

        Parameters
        ----------
        option
            Its index or name.
        point
            Where it is taken; None is the point that was decided last, at first the first one.

        Raises
        ------
        InputError
            When there is no such point or option.
        """
        number = self._last if point is None else self._names.number(point)
        index = self._names.option(number, option)
        return self._planned(number, self._ends_at - self._clock(), index).probability

    def planned(self, point: int | str | None = None) -> Planned:
        """What the policy would do from now on, were all times as expected.

        A policy of the caller's own cannot be asked ahead: ``"optimal"`` stands for it.

        Parameters
        ----------
        point
            The decision that is due now; None is the beginning of an inference, before the first trunk piece.

        Raises
        ------
        InputError
            When there is no such point.
        """
        if point is not None:
            return self._planned(self._names.number(point), self._ends_at - self._clock())
        return self._planned(None, self._next_deadline_s)

    def _planned(self, start: int | None, left_s: float, forced: int | None = None) -> Planned:
        slowdown, variance = self.slowdown, self._slow.variance
        ahead = copy(self)  # decides as this gate would, on a time of its own
        ahead._clock, ahead._policy, ahead._taken = _stopped, None, self._taken.copy()

        def choose(number: int, elapsed_s: float) -> int:
            if forced is not None and number == start:
                return forced
            ahead._ends_at = left_s - slowdown * elapsed_s
            return ahead.decide(number)

        path = followed(self._table, self._chain, choose, start, self._taken)
        numbers = range(start or 0, len(self.points))
        taken = list(zip(numbers, path.options, strict=False))
        return Planned(
            tuple(self.options[number][option] for number, option in taken),
            slowdown * path.mean_s,
            float(sum(self._utility[self._table.first_option[number] + option] for number, option in taken)),
            probability_within(left_s / slowdown, path.mean_s, path.variance_s2, variance),
        )

    def _asked(self, number: int, observation: Observation | None) -> int:
        assert self._policy is not None
        if observation is None:
            elapsed_s = self._clock() - self._ends_at + self._deadline_s
            observation = Observation(self.points[number], latency_s=elapsed_s)
        return self._names.option(number, self._policy(observation))


def _stopped() -> float:
    """A clock that stands still: only `Gate.spent` moves time."""
    return 0.0
