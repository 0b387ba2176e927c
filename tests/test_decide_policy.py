"""Policies, Pareto fronts and thresholds against brute force over every path."""

from __future__ import annotations

import numpy as np
import pytest
from decide_costs import Way, costs, first_margin, option, random_costs, ways
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from latpred.decide.chain import chain_of
from latpred.decide.costs import Costs
from latpred.decide.observation import Observation
from latpred.decide.policy import pareto
from latpred.decide.table import Table, compile_table
from latpred.decide.ways import Margin, best_after, unbeaten

CLOSE = 1e-9


@st.composite
def small_costs(draw: st.DrawFn, spreads: tuple[float, ...] = (0.0, 0.1, 0.4)) -> Costs:
    points = []
    for _ in range(draw(st.integers(1, 4))):
        keep = option("keep", draw(st.integers(0, 8)) * 1e-3, draw(st.integers(-2, 4)), draw(st.sampled_from(spreads)))
        others = [
            option(
                f"o{number}",
                draw(st.integers(0, 8)) * 1e-3,
                draw(st.integers(-2, 4)),
                draw(st.sampled_from(spreads)),
                ends=draw(st.booleans()),
            )
            for number in range(draw(st.integers(0, 2)))
        ]
        points.append([keep, *others])
    return costs(points, trunk_s=draw(st.sampled_from([0.0, 0.001])))


def allowed(table: Table, not_worth: tuple[str, ...], start: int) -> list[Way]:
    """Paths in which points that are not worth deciding are kept."""
    kept = {number - start for number, name in enumerate(table.points) if name in not_worth}
    return [way for way in ways(table, start) if not any(way.options[k] for k in kept if 0 <= k < len(way.options))]


@settings(max_examples=150)
@given(small_costs(), st.floats(0.0, 0.04), st.sampled_from([0.5, 0.9, 0.99]), st.integers(0, 3))
def test_optimal_is_the_best_path_that_fits(given_costs: Costs, left_s: float, confidence: float, start: int) -> None:
    table = compile_table(given_costs)
    assume(start < len(table.points))
    gate = table.gate(1.0, confidence, clock=None)
    gate.spent(1.0 - left_s)
    z, variance = first_margin(table, confidence)
    paths = allowed(table, gate.not_worth, start)
    needs_s = [way.need_s(z, variance) for way in paths]
    assume(all(abs(need_s - left_s) > CLOSE for need_s in needs_s))
    chosen = gate.decide(start)
    fitting = [way for way, need_s in zip(paths, needs_s, strict=True) if need_s < left_s]
    if not fitting:
        least_s = min(needs_s)
        assert min(n for way, n in zip(paths, needs_s, strict=True) if way.options[0] == chosen) <= least_s + CLOSE
        return
    best = max(way.utility for way in fitting)
    assert max(way.utility for way in fitting if way.options[0] == chosen) >= best - CLOSE


@settings(max_examples=150)
@given(small_costs(), st.floats(0.0, 0.04), st.lists(st.integers(-3, 5), min_size=3, max_size=3))
def test_utilities_of_one_input_count_now_and_the_gate_s_own_later(
    given_costs: Costs, left_s: float, worth: list[int]
) -> None:
    table = compile_table(given_costs)
    gate = table.gate(1.0, 0.9, clock=None)
    gate.spent(1.0 - left_s)
    assume("p0" not in gate.not_worth)
    z, variance = first_margin(table, 0.9)
    own = list(table.utilities()["p0"].values())
    paths = allowed(table, gate.not_worth, 0)
    needs_s = [way.need_s(z, variance) for way in paths]
    assume(all(abs(need_s - left_s) > CLOSE for need_s in needs_s))
    totals = [way.utility - own[way.options[0]] + worth[way.options[0]] for way in paths]
    chosen = gate.decide(0, Observation("p0", utilities=worth[: len(own)]))
    fitting = [(t, way) for t, way, need_s in zip(totals, paths, needs_s, strict=True) if need_s < left_s]
    if not fitting:
        assert chosen == gate.decide(0)
        return
    best = max(total for total, _ in fitting)
    assert max(total for total, way in fitting if way.options[0] == chosen) >= best - CLOSE


@settings(max_examples=150)
@given(small_costs(spreads=(0.0,)), st.floats(0.0, 0.04), st.sampled_from([0.5, 0.9, 0.99]), st.integers(0, 3))
def test_safe_greedy_is_the_best_option_after_which_the_fastest_fits(
    given_costs: Costs, left_s: float, confidence: float, start: int
) -> None:
    table = compile_table(given_costs)
    assume(start < len(table.points))
    gate = table.gate(1.0, confidence, policy="safe-greedy", clock=None)
    gate.spent(1.0 - left_s)
    z, variance = first_margin(table, confidence)
    least_s: dict[int, float] = {}
    for way in allowed(table, gate.not_worth, start):
        need_s = way.need_s(z, variance)
        least_s[way.options[0]] = min(need_s, least_s.get(way.options[0], need_s))
    assume(all(abs(need_s - left_s) > CLOSE for need_s in least_s.values()))
    worth = list(table.utilities()[table.points[start]].values())
    chosen = gate.decide(start)
    fitting = [worth[first] for first, need_s in least_s.items() if need_s < left_s]
    if fitting:
        assert least_s[chosen] < left_s
        assert worth[chosen] == max(fitting)
    else:
        assert least_s[chosen] <= min(least_s.values()) + CLOSE


@settings(max_examples=150)
@given(small_costs())
def test_pareto_is_the_front_of_all_paths(given_costs: Costs) -> None:
    table = compile_table(given_costs)
    front = pareto(table)
    paths = list(ways(table))
    trunk_s = float(table.trunk_mean_s[0])
    points = {(round(way.mean_s + trunk_s, 9), way.utility) for way in paths}
    wanted = sorted(p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points))
    assert [(round(way.latency_s, 9), way.utility) for way in front] == wanted
    for way in front:
        numbers = tuple(table.options[n].index(name) for n, name in enumerate(way.options))
        same = next(w for w in paths if w.options == numbers)
        assert (way.latency_s, way.utility) == pytest.approx((same.mean_s + trunk_s, same.utility))


def test_pareto_takes_utilities_and_thins_what_is_too_much() -> None:
    table = compile_table(random_costs(np.random.default_rng(3), points=8, options=4, exits=False))
    exact, thinned = pareto(table, limit=10**6), pareto(table, limit=20)
    assert len(thinned) <= 21 < len(exact)
    latency_s = np.array([way.latency_s for way in exact])
    for way in thinned:
        best = exact[int(np.searchsorted(latency_s, way.latency_s + CLOSE)) - 1]
        assert way.utility <= best.utility + CLOSE
    assert (thinned[0].latency_s, thinned[-1].utility) == pytest.approx((exact[0].latency_s, exact[-1].utility))
    same = {point: dict.fromkeys(names, 1.0) for point, names in table.utilities().items()}
    assert len(pareto(table, same)) >= 1
    assert pareto(table, same)[0].latency_s == pytest.approx(exact[0].latency_s)


def test_the_grid_loses_little() -> None:
    table = compile_table(random_costs(np.random.default_rng(4), points=16, options=8))
    chain = chain_of(table, table.utility)
    margin = Margin(2.33, 0.04**2)
    coarse, fine = best_after(chain, margin)[0], best_after(chain, margin, limit=8192)[0]
    assert len(coarse.mean_s) <= 513
    needs = [margin.need_s(w.mean_s, w.variance_s2) for w in (coarse, fine)]
    spread = fine.utility.max() - fine.utility.min()
    for left_s in np.linspace(needs[1].min() * 1.02, needs[1].max(), 40):
        reached = [w.utility[need <= left_s].max() for w, need in zip((coarse, fine), needs, strict=True)]
        assert reached[0] >= reached[1] - 0.01 * spread


def test_own_errors_add_in_quadrature_and_shared_ones_linearly() -> None:
    """Four pieces of 1 s: own spread 10 %, shared 3 %: 4 + z * sqrt(4 * 0.1^2 + (4 * 0.03)^2)."""
    table = compile_table(
        costs(
            [[option("keep", 1.0, 1.0, 0.1), option("skip", 0.0, 0.0)], *[[option("keep", 1.0, 1.0, 0.1)]] * 3],
            trunk_s=0.0,
            shared_spread=0.03,
            noise_spread=0.0,
        )
    )
    gate = table.gate(10.0, 0.9772498680518208, clock=None)  # z = 2
    shared = np.expm1(0.03**2 + 0.003**2)  # 0.3 % is the least noise that is believed
    need_s = 4 + 2 * np.sqrt(4 * 0.1**2 + 4**2 * shared)
    gate.spent(10.0 - need_s - 1e-6)
    assert gate.planned(0).options == ("keep",) * 4
    assert gate.probability("keep", 0) == pytest.approx(0.97725, abs=1e-5)
    gate.spent(10.0 - need_s + 1e-6)
    assert gate.planned(0).options == ("skip", "keep", "keep", "keep")


def test_a_slower_way_of_a_surer_time_is_kept() -> None:
    """10 s with a spread of 10 %, or 11 s for sure: with two standard deviations, 12 s and 11 s are needed."""
    unsure, sure = option("keep", 10.0, 1.0, 0.1), option("sure", 11.0, 1.0)
    none = option("none", 0.0, 0.0)
    table = compile_table(
        costs(
            [[option("keep", 1.0, 1.0), option("skip", 0.0, 0.5)], [unsure, sure, none]], trunk_s=0.0, shared_spread=0.0
        )
    )
    chain = chain_of(table, table.utility)
    after = best_after(chain, Margin(2.0, 0.0))
    assert sorted(after[0].mean_s.tolist()) == [0.0, 10.0, 11.0]
    assert len(unbeaten(chain, 0, after[0], Margin(2.0, 0.0)).mean_s) == 6
    gate = table.gate(20.0, 0.9772498680518208, clock=None)
    assert gate.not_worth == ()
    gate.spent(20.0 - 12.7)  # keep and sure: 12 s and 2 * 12 * 2 % of noise
    assert gate.decide(0) == 0


def test_a_later_switch_is_charged() -> None:
    table = compile_table(
        costs(
            [
                [option("keep", 2.0, 1.0), option("skip", 0.0, 0.5)],
                [option("keep", 4.0, 1.0), option("skip", 1.0, 0.8, switch_s=2.0)],
            ],
            trunk_s=0.0,
            shared_spread=0.0,
            noise_spread=0.0,
        )
    )
    gate = table.gate(10.0, 0.5, clock=None)
    gate.spent(5.5)  # 4.5 s: keep and skip are worth 1.8 but take 2 + 1 + 2 s; skip and keep 4 s
    assert gate.decide(0) == 1
    gate.spent(4.9)
    assert gate.decide(0) == 0
