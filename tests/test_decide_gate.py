"""A gate: time, what it answers, what it learns, and everything that is refused before an inference begins."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, nan
from typing import Any

import numpy as np
import pytest
from decide_costs import costs, option, random_costs

from latpred.decide.gate import Gate
from latpred.decide.observation import Observation
from latpred.decide.table import compile_table
from latpred.errors import InputError

# 1 ms trunk, 4 ms or 1 ms, 1 ms trunk, 4 ms or 1 ms or an exit, 1 ms trunk.
TABLE = compile_table(
    costs(
        [
            [option("keep", 0.004, 1.0), option("skip", 0.001, 0.5)],
            [option("keep", 0.004, 1.0), option("skip", 0.001, 0.4), option("exit", 0.0, 0.1, ends=True)],
        ],
        shared_spread=0.0,
        noise_spread=0.0,
    )
)


class Clock:
    """Time that stands where a test puts it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def taken(gate: Gate, point: int | str) -> str:
    return gate.options[point][gate.decide(point)]


def test_the_best_path_that_fits_by_the_clock() -> None:
    clock = Clock()
    gate = TABLE.gate(0.0095, 0.5, clock=clock)
    gate.begin()
    clock.now_s += 0.001
    assert taken(gate, "p0") == "skip"  # 8.5 ms left: 4 + 1 + 1 + 1 = 7 is worth 1.4, 1 + 1 + 4 + 1 = 7 is worth 1.5
    clock.now_s += 0.005
    assert taken(gate, 1) == "skip"  # 3.5 ms left: 4 + 1 does not fit, 1 + 1 does
    clock.now_s += 0.0016
    assert taken(gate, 1) == "exit"  # 1.9 ms
    clock.now_s += 1.0
    assert taken(gate, 1) == "exit"  # too late: the fastest


def test_time_can_be_told() -> None:
    clock = Clock()
    told, silent = TABLE.gate(0.0095, 0.5, clock=clock), TABLE.gate(0.0095, 0.5, clock=None)
    for gate in (told, silent):
        gate.begin()
        gate.spent(0.006)
        assert taken(gate, 1) == "skip"
    clock.now_s += 0.0016  # goes on from what was told
    assert taken(told, 1) == "exit"
    assert taken(silent, 1) == "skip"


def test_points_by_name_and_number_are_the_same() -> None:
    gate = TABLE.gate(0.0095, 0.5, clock=None)
    for spent_s in np.linspace(0.0, 0.01, 21):
        gate.spent(float(spent_s))
        assert gate.decide("p1") == gate.decide(1) == gate.decide(np.int64(1))
    assert gate.points == ("p0", "p1")
    assert gate.options["p1"] == gate.options[1] == ("keep", "skip", "exit")


def test_another_deadline_holds_from_the_next_inference_on() -> None:
    gate = TABLE.gate(0.0095, 0.5, clock=None)
    gate.spent(0.006)
    assert taken(gate, 1) == "skip"
    gate.deadline_s = 0.0200
    assert taken(gate, 1) == "skip"
    gate.spent(0.006)
    assert taken(gate, 1) == "skip"
    assert gate.finish(0.015) is False
    gate.begin()
    gate.spent(0.006)
    assert taken(gate, 1) == "keep"


def test_utilities_decide_what_is_best() -> None:
    utilities = TABLE.utilities()
    utilities["p1"]["exit"] = 9.0
    gate = TABLE.gate(1.0, 0.9, utilities, clock=None)
    assert gate.planned().options == ("keep", "exit")


def test_the_slow_down_is_in_every_time() -> None:
    gate = TABLE.gate(0.0115, 0.5, clock=None)
    gate.begin()
    gate.spent(0.001)
    assert taken(gate, 0) == "keep"
    before = gate.remaining_s(0)
    for _ in range(10):
        gate.observe("p0", 2.5 * TABLE.mean_s[gate.decide(0)])
    assert gate.slowdown == pytest.approx(2.5, rel=0.01)
    after = gate.remaining_s(0)
    assert after.most_s / before.most_s == pytest.approx(gate.slowdown)
    gate.spent(0.001)
    assert taken(gate, 0) == "skip"  # 10.5 ms left: even to exit after keep takes 2.5 * (4 + 1) = 12.5


def test_another_clock_is_followed_at_once() -> None:
    table = compile_table(costs([[option("keep", 0.004, 1.0), option("skip", 0.0, 0.5)]], frequency_hz=2e9))
    gate = table.gate(0.009, 0.9, clock=None)
    assert gate.frequency_hz == 2e9
    gate.spent(0.001)
    assert taken(gate, 0) == "keep"
    gate.frequency_hz = 1e9
    assert gate.slowdown == pytest.approx(2.0)
    assert taken(gate, 0) == "skip"
    gate.frequency_hz = 2e9
    assert gate.slowdown == pytest.approx(1.0)
    unknown = TABLE.gate(0.01, 0.9)
    assert unknown.frequency_hz is None
    unknown.frequency_hz = 1e9  # the first one says where the clock stands
    assert unknown.slowdown == 1.0


def test_remaining_by_hand() -> None:
    gate = TABLE.gate(0.01, 0.9, clock=None)
    assert gate.remaining_s("p0") == pytest.approx((0.001 + 0.001, 0.010, 0.010))  # skip, trunk, exit | all kept
    assert gate.remaining_s(1) == pytest.approx((0.0, 0.005, 0.005))
    rates = {"p0": {"skip": 0.5}, "p1": {"skip": 0.25, "exit": 0.5}}
    last_s = 0.25 * 0.005 + 0.25 * 0.002 + 0.5 * 0.0
    assert gate.remaining_s(1, rates).expected_s == pytest.approx(last_s)
    assert gate.remaining_s(0, rates).expected_s == pytest.approx(0.5 * 0.004 + 0.5 * 0.001 + 0.001 + last_s)


def test_planned_by_hand() -> None:
    gate = TABLE.gate(0.0095, 0.5, clock=None)
    whole = gate.planned()
    assert whole.options == ("skip", "keep")  # 1 + 1 + 1 + 4 + 1 = 8 ms is worth 1.5; keep, skip 1.4
    assert (whole.latency_s, whole.utility) == pytest.approx((0.008, 1.5))
    gate.spent(0.006)
    assert gate.planned(1).options == ("skip",)


def test_deciding_costs_and_may_not_be_worth_it() -> None:
    points = [
        [option("keep", 0.004, 1.0), option("skip", 0.001, 0.5)],
        [option("keep", 9e-6, 1.0), option("skip", 0.0, 0.9)],  # saves 9 us
        [option("keep", 9e-6, 1.0), option("better", 9e-6, 1.1)],  # saves nothing, but is worth more
    ]
    table = compile_table(costs(points, decide_s=1e-5))
    gate = table.gate(1e-6, 0.9, clock=None)
    assert gate.not_worth == ("p1",)
    assert taken(gate, "p1") == "keep"  # even where nothing fits
    assert gate.remaining_s(0).most_s == pytest.approx(0.004 + 3 * 0.001 + 2 * 9e-6 + 2 * 1e-5)
    kept_s = gate.remaining_s(0).expected_s
    assert gate.remaining_s(0, {"p1": {"skip": 1.0}}).expected_s == kept_s  # nobody will take it
    assert gate.remaining_s(0, {"p0": {"skip": 1.0}}).expected_s == pytest.approx(kept_s - 0.003)
    assert compile_table(costs(points, decide_s=1e-6)).gate(1.0, 0.9).not_worth == ()


def test_switching_is_charged_where_another_option_was_in_use() -> None:
    table = compile_table(
        costs(
            [[option("keep", 0.004, 1.0), option("skip", 0.001, 0.5, switch_s=0.002)]],
            trunk_s=0.0,
            shared_spread=0.0,
            noise_spread=0.0,
        )
    )
    gate = table.gate(0.01, 0.5, clock=None)
    assert gate.planned().latency_s == pytest.approx(0.004)
    gate.spent(0.0065)  # 3.5 ms: skip fits, with its switch
    assert taken(gate, 0) == "skip"
    gate.spent(0.008)
    assert taken(gate, 0) == "skip"
    assert gate.planned(0).latency_s == pytest.approx(0.001)  # in use


def test_what_fits_without_its_switch_only_is_not_taken() -> None:
    options = [option("keep", 4.0, 1.0), option("half", 2.0, 0.7, switch_s=2.0), option("skip", 1.0, 0.4, switch_s=0.5)]
    table = compile_table(costs([options], trunk_s=0.0, shared_spread=0.0, noise_spread=0.0))
    gate = table.gate(10.0, 0.5, clock=None)
    gate.spent(6.5)  # 3.5 s: half takes 2 + 2
    assert taken(gate, 0) == "skip"
    gate.spent(5.9)
    assert taken(gate, 0) == "keep"
    gate.spent(5.5 + 0.4)
    assert gate.decide(0) == 0
    gate.spent(6.1)  # 3.9 s: keep no more, half takes 4
    assert taken(gate, 0) == "skip"
    gate = table.gate(10.0, 0.5, {"p0": {"keep": 0.0, "half": 1.0, "skip": 0.5}}, clock=None)
    gate.spent(5.0)
    assert taken(gate, 0) == "half"
    gate.spent(7.5)  # 2.5 s: in use, so it takes 2
    assert taken(gate, 0) == "half"


def test_an_exit_is_weighed_against_all_that_is_kept() -> None:
    """It takes longer than what it leaves out, and is worth more than its point, but not more than the rest as well."""
    late = option("exit", 20.0, 1.5, ends=True)
    rest = [option("keep", 4.0, 1.0), option("skip", 0.0, 0.1)]
    table = compile_table(costs([[option("keep", 4.0, 1.0), late], rest]))
    assert table.gate(100.0, 0.9).not_worth == ("p0",)


@pytest.mark.parametrize("seed", range(4))
def test_probabilities_against_monte_carlo(seed: int) -> None:
    """Drawn as the model says: one log-normal factor for all, and each piece's own error."""
    rng = np.random.default_rng(seed)
    table = compile_table(random_costs(rng, points=5, options=3, exits=False, own_spread=0.1))
    gate = table.gate(0.009, 0.9, clock=None)
    spread = exp(0.03**2 + 0.02**2)
    shared = np.exp(rng.normal(0.0, np.sqrt(np.log(spread)), 100_000))
    for forced in range(3):
        gate.spent(0.0)
        start = gate.planned(0)
        mean_s = start.latency_s
        for quantile in (0.9, 0.99, 1.0, 1.02, 1.1):
            gate.spent(0.009 - mean_s * quantile)
            gate.decide(0)
            probability = gate.probability(forced, 0)
            rest = [forced, *_later(gate, table, forced)]
            rows = [int(table.first_option[n]) + o for n, o in enumerate(rest)]
            means_s = np.array([*table.mean_s[rows], *table.trunk_mean_s[1:]])
            variances = np.array([*table.variance_s2[rows], *table.trunk_variance_s2[1:]])
            own_s = means_s.sum() + rng.normal(0.0, 1.0, (100_000, len(means_s))) @ np.sqrt(variances)
            assert np.mean(shared * own_s <= mean_s * quantile) == pytest.approx(probability, abs=0.015)


def _later(gate: Gate, table: Any, forced: int) -> list[int]:
    """What is planned behind the first point, read off by deciding there at the expected time."""
    left_s = gate._ends_at
    mean_s = float(table.mean_s[forced])
    options = []
    for number in range(1, len(table.points)):
        mean_s += float(table.trunk_mean_s[number])
        gate.spent(gate.deadline_s - left_s + mean_s)
        options.append(gate.decide(number))
        mean_s += float(table.mean_s[int(table.first_option[number]) + options[-1]])
    gate.spent(gate.deadline_s - left_s)
    return options


def test_an_engine_without_pieces_learns_from_whole_inferences() -> None:
    gate = TABLE.gate(0.02, 0.9, clock=None)
    for _ in range(12):
        gate.begin()
        gate.decide(0), gate.decide(1)
        assert gate.finish(0.0165) is True  # 11 ms predicted
    assert gate.slowdown == pytest.approx(1.5, rel=0.01)
    assert gate.finish(0.03) is False


def test_the_whole_counts_where_little_of_it_was_timed() -> None:
    """Of 11 ms, 4 ms are timed as predicted, the whole takes 16.5 ms; of 11 ms, 8 ms are."""
    little, much = (TABLE.gate(0.02, 0.9, clock=None) for _ in range(2))
    for _ in range(40):
        for gate, timed in ((little, (0,)), (much, (0, 1))):
            gate.begin()
            gate.decide(0), gate.decide(1)
            for point in timed:
                gate.observe(point, 0.004)
            gate.finish(0.0165)
    assert little.slowdown > 1.1
    assert much.slowdown == pytest.approx(1.0, abs=0.01)


def test_an_exit_ends_what_is_expected_of_the_whole() -> None:
    gate = TABLE.gate(0.02, 0.9, policy=lambda observation: "keep" if observation.point == "p0" else "exit", clock=None)
    for _ in range(5):
        gate.begin()
        gate.decide(0), gate.decide(1)
        gate.finish(0.001 + 0.004 + 0.001)
    assert gate.slowdown == pytest.approx(1.0)


def test_the_clock_ends_an_inference_too() -> None:
    clock = Clock()
    gate = TABLE.gate(0.012, 0.9, clock=clock)
    gate.begin()
    clock.now_s += 0.011
    assert gate.finish() is True
    gate.begin()
    clock.now_s += 0.013
    assert gate.finish() is False


def test_misses_widen_the_margin_and_impossible_deadlines_do_not() -> None:
    gate = TABLE.gate(0.010, 0.9, clock=None)
    start = gate.z
    gate.decide(0), gate.decide(1)
    gate.observe(0, 0.004)
    gate.finish(0.011)
    assert gate.z > start
    never = TABLE.gate(0.001, 0.9, clock=None)
    never.decide(0)
    never.observe(0, 0.001)
    never.finish(0.011)
    assert never.z == start


def test_a_policy_of_ones_own() -> None:
    seen: list[Observation] = []

    def policy(observation: Observation) -> Any:
        seen.append(observation)
        return answers.pop(0)

    answers: list[Any] = ["exit", 1, np.int64(2)]
    gate = TABLE.gate(0.01, 0.9, policy=policy, clock=None)
    gate.spent(0.003)
    given = Observation("p1", {"mean": 0.3}, sensors={"celsius": 71.0})
    assert [gate.decide("p1", given), gate.decide(1), gate.decide(1)] == [2, 1, 2]
    assert seen[0] is given
    assert seen[1].point == "p1"
    assert seen[1].latency_s == pytest.approx(0.003)
    for wrong in ("none", 3, -1, None, 0.5):
        answers[:] = [wrong]
        with pytest.raises(InputError, match="has the options keep, skip, exit"):
            gate.decide(1)


def test_a_gate_network_s_utilities_hold_for_one_decision() -> None:
    gate = TABLE.gate(0.0095, 0.5, clock=None)
    gate.spent(0.001)
    assert taken(gate, "p0") == "skip"  # then keep: 1.5 in 7 ms; the other way round 1.4
    eager = Observation("p0", utilities=[1.2, 0.5])
    assert gate.decide("p0", eager) == 0  # 1.2 + 0.4
    gate.spent(0.005)
    assert gate.decide("p0", eager) == 1  # 4.5 ms left: 4 + 1 does not fit
    gate.spent(0.001)
    assert taken(gate, "p0") == "skip"


def missing(point: str, name: str | None = None) -> dict[str, dict[str, float]]:
    utilities = TABLE.utilities()
    if name is None:
        del utilities[point]
    else:
        del utilities[point][name]
    return utilities


def with_value(value: Any) -> dict[str, dict[str, Any]]:
    utilities: dict[str, dict[str, Any]] = dict(TABLE.utilities())
    utilities["p1"]["skip"] = value
    return utilities


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "zero deadline": (lambda: TABLE.gate(0.0, 0.9), "deadline must be positive and finite, got 0.0 s"),
    "negative deadline": (lambda: TABLE.gate(-1.0, 0.9), "deadline must be positive"),
    "deadline nan": (lambda: TABLE.gate(nan, 0.9), "deadline must be positive and finite, got nan s"),
    "later deadline": (lambda: setattr(TABLE.gate(1.0, 0.9), "deadline_s", -1.0), "deadline must be positive"),
    "no deadline": (lambda: TABLE.gate(inf, 0.9), "deadline must be positive"),
    "confidence 0": (lambda: TABLE.gate(1.0, 0.0), "between 0 and 1, got 0.0"),
    "confidence 1": (lambda: TABLE.gate(1.0, 1.0), "between 0 and 1"),
    "confidence nan": (lambda: TABLE.gate(1.0, nan), "between 0 and 1, got nan"),
    "confidence in percent": (lambda: TABLE.gate(1.0, 99.0), "0.99 is 99 %"),
    "policy": (lambda: TABLE.gate(1.0, 0.9, policy="best"), "optimal, safe-greedy or a function, got 'best'"),
    "point missing": (lambda: TABLE.gate(1.0, 0.9, missing("p1")), "each point .* missing 'p1'"),
    "option missing": (lambda: TABLE.gate(1.0, 0.9, missing("p1", "exit")), "each option of point 'p1' .* 'exit'"),
    "point unknown": (lambda: TABLE.gate(1.0, 0.9, TABLE.utilities() | {"p9": {}}), "unknown 'p9'"),
    "option unknown": (
        lambda: TABLE.gate(1.0, 0.9, TABLE.utilities() | {"p0": {"keep": 1, "skip": 1, "jump": 1}}),
        "unknown 'jump'",
    ),
    "utility nan": (lambda: TABLE.gate(1.0, 0.9, with_value(nan)), "finite number, got nan"),
    "utility text": (lambda: TABLE.gate(1.0, 0.9, with_value("high")), "finite number, got 'high'"),
    "utility none": (lambda: TABLE.gate(1.0, 0.9, with_value(None)), "finite number, got None"),
    "utility list": (lambda: TABLE.gate(1.0, 0.9, with_value([1.0])), "finite number, got \\[1.0\\]"),
    "utility beyond floats": (lambda: TABLE.gate(1.0, 0.9, with_value(10**400)), "finite number, got 1000"),
    "utilities flat": (lambda: TABLE.gate(1.0, 0.9, {"p0": 1.0, "p1": 1.0}), "must map options to numbers"),  # type: ignore[dict-item]
    "decide": (lambda: TABLE.gate(1.0, 0.9).decide("p9"), "points p0, p1 .* got 'p9'"),
    "decide below": (lambda: TABLE.gate(1.0, 0.9).decide(-1), "points p0, p1 .* got -1"),
    "decide list": (lambda: TABLE.gate(1.0, 0.9).decide([0]), "got \\[0\\]"),  # type: ignore[arg-type]
    "utilities of one input": (
        lambda: TABLE.gate(1.0, 0.9).decide(1, Observation("p1", utilities=[1.0])),
        "has 3 options to weigh, the observation gave 1 utilities",
    ),
    "spent": (lambda: TABLE.gate(1.0, 0.9).spent(nan), "finite, got nan s"),
    "planned": (lambda: TABLE.gate(1.0, 0.9).planned("p9"), "points p0, p1 .* got 'p9'"),
    "observe": (lambda: TABLE.gate(1.0, 0.9).observe(2, 1.0), "points p0, p1 .* got 2"),
    "observe time": (lambda: TABLE.gate(1.0, 0.9).observe(0, -1.0), "positive and finite, got -1.0 s"),
    "finish time": (lambda: TABLE.gate(1.0, 0.9).finish(nan), "positive and finite, got nan s"),
    "probability": (lambda: TABLE.gate(1.0, 0.9).probability("jump"), "options keep, skip .* got 'jump'"),
    "remaining": (lambda: TABLE.gate(1.0, 0.9).remaining_s("p9"), "got 'p9'"),
    "rates": (lambda: TABLE.gate(1.0, 0.9).remaining_s(0, {"p0": {"skip": 1.5}}), "at most 1 together"),
    "rates unknown": (lambda: TABLE.gate(1.0, 0.9).remaining_s(0, {"p0": {"jump": 0.5}}), "got 'jump'"),
    "clock": (lambda: setattr(TABLE.gate(1.0, 0.9), "frequency_hz", 0.0), "clock must be positive"),
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_what_is_wrong_is_said(what: str) -> None:
    call, message = WRONG[what]
    with pytest.raises(InputError, match=message):
        call()
