"""Which points are mounted."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from latpred.decide.appraisal import Decision, Estimated
from latpred.decide.costs import Duration
from latpred.decide.mounting import chosen
from latpred.decide.options import Choice
from latpred.decide.points import Point
from latpred.surgery.cuts import Cut


def cut(position: int) -> Cut:
    return Cut(f"t{position}", position, (), (1, 8), "float32", 1)


def decision(name: str, start: int, end: int, saved_s: float, overhead_s: float = 0.1) -> Decision:
    point = Point(name, cut(start), cut(end), (Choice("skip"),), {})
    rate = 0.5 if saved_s > 0 else None
    options = tuple(
        Estimated(level, level, 1.0, Duration(1.0), value, (value, value), given, 0.0, 0)
        for level, value, given in (("keep", -0.1, None), ("skip", saved_s, rate))
    )
    return Decision(name, point, options, overhead_s, 0.0)


REGIONS = st.tuples(st.integers(0, 8), st.integers(1, 4), st.integers(-3, 9), st.integers(1, 6))


@given(st.lists(REGIONS, min_size=1, max_size=8))
def test_what_is_left_out_does_not_pay_or_stands_behind_better_ones(drawn: list[tuple[int, int, int, int]]) -> None:
    decisions = [decision(f"p{i}", a, a + n, float(s), float(o)) for i, (a, n, s, o) in enumerate(drawn)]
    mounted = chosen(decisions, whole_s=100.0, allowance=0.1)
    starts = [one.point.start.position for one in mounted if one.point]
    assert starts == sorted(starts)
    spent_s = sum(one.overhead_s for one in mounted)
    assert spent_s <= 10.0
    for one, other in combinations(mounted, 2):
        assert one.point and other.point and not one.point.overlaps(other.point)
    for left in (one for one in decisions if one not in mounted and one.best_saved_s > 0):
        ratio = left.best_saved_s / left.overhead_s
        better = [one for one in mounted if one.best_saved_s / one.overhead_s >= ratio]
        overlaps = any(one.point and left.point and one.point.overlaps(left.point) for one in better)
        assert overlaps or sum(one.overhead_s for one in better) + left.overhead_s > 10.0


def test_a_generous_allowance_mounts_all_that_pay() -> None:
    decisions = [decision("a", 0, 1, 3.0), decision("b", 1, 2, -1.0), decision("c", 2, 3, 0.5)]
    assert [one.name for one in chosen(decisions, 100.0)] == ["a", "c"]
    assert [one.name for one in chosen(decisions, 100.0, allowance=0.001)] == ["a"]
