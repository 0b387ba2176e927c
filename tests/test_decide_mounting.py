"""The mounted regions against every subset that does not overlap."""

from __future__ import annotations

from itertools import combinations, pairwise

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


def decision(name: str, start: int, end: int, saved_s: float) -> Decision:
    point = Point(name, cut(start), cut(end), (Choice("skip"),), {})
    rate = 0.5 if saved_s > 0 else None
    options = tuple(
        Estimated(level, level, 1.0, Duration(1.0), value, (value, value), given, 0.0, 0)
        for level, value, given in (("keep", -0.1, None), ("skip", saved_s, rate))
    )
    return Decision(name, point, options, 0.1, 0.0)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 4), st.integers(-3, 9)), min_size=1, max_size=8))
def test_mounted_regions_save_most(drawn: list[tuple[int, int, int]]) -> None:
    decisions = [decision(f"p{i}", a, a + length, float(s)) for i, (a, length, s) in enumerate(drawn)]
    mounted = chosen(decisions, 100.0)
    best = 0.0
    for count in range(1, len(decisions) + 1):
        for subset in combinations(decisions, count):
            spans = sorted((one.point.start.position, one.point.end.position) for one in subset if one.point)
            if all(end <= start for (_, end), (start, _) in pairwise(spans)):
                best = max(best, sum(one.best_saved_s for one in subset))
    assert sum(one.best_saved_s for one in mounted) == best
    starts = [one.point.start.position for one in mounted if one.point]
    assert starts == sorted(starts)
