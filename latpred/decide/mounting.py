"""Which points are mounted, and the chain of pieces that they make of the network."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence

from latpred.decide.appraisal import Appraiser, Decision, Estimated
from latpred.decide.costs import KEEP, Costs, Duration, OptionCosts, PointCosts
from latpred.decide.options import Choice, work_share
from latpred.decide.points import EXIT, Point
from latpred.errors import InputError

__all__ = ["DECIDE_S", "chosen", "costs_of", "in_order"]

DECIDE_S = 1e-6  # one decision of a compiled table in CPython
EXIT_MARKS = (0.25, 0.5, 0.75)  # exits are mounted where about so much of the latency is behind


def chosen(decisions: Sequence[Decision], whole_s: float) -> tuple[Decision, ...]:
    """Points that pay and do not overlap: regions that save most together, and an exit at about each quarter.

    Weighted interval scheduling (Kleinberg, Tardos: Algorithm design, 2005, section 6.1), each region weighing as much
    as its best option saves. Then of exits that pay, those that save nearest to what is left at `EXIT_MARKS`.
    """
    regions = [one for one in decisions if _point(one).is_exit is False and one.pays]
    regions.sort(key=lambda one: (_point(one).end.position, _point(one).start.position))
    ends = [_point(one).end.position for one in regions]
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for number, one in enumerate(regions):
        before = best[bisect_right(ends, _point(one).start.position, 0, number)]
        taken = before[0] + one.best_saved_s, (*before[1], number)
        best.append(max(best[number], taken, key=lambda way: way[0]))
    mounted = [regions[number] for number in best[-1][1]]
    for mark in EXIT_MARKS:
        free = [
            one
            for one in decisions
            if _point(one).is_exit and one.pays and not any(_point(one).overlaps(_point(other)) for other in mounted)
        ]
        if free:
            mounted.append(min(free, key=lambda one: abs(one.best_saved_s - (1.0 - mark) * whole_s)))
    return in_order(mounted)


def in_order(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """Points as an inference meets them.

    Raises
    ------
    InputError
        Where two overlap.
    """
    ordered = sorted(decisions, key=lambda one: (_point(one).start.position, _point(one).end.position))
    for number, one in enumerate(ordered):
        for other in ordered[number + 1 :]:
            if _point(one).overlaps(_point(other)):
                raise InputError(
                    f"points that do not overlap can be mounted, but {one.name!r} and {other.name!r} do: leave one out"
                )
    return tuple(ordered)


def costs_of(appraiser: Appraiser, mounted: Sequence[Decision], model: str, complete: Collection[str] = ()) -> Costs:
    """The chain as it would run: every trunk piece between mounted points, and every option, as predicted.

    Options that never pay are left out, save at points named in `complete`. What an option is worth is the share of
    the network's work that it does, until measured accuracies replace it.

    Raises
    ------
    InputError
        Where nothing is mounted.
    """
    if not mounted:
        raise InputError(
            "a table of decisions needs a point that pays, and none of this model's does here: not worth deciding"
        )
    first, last = appraiser.places[0], appraiser.places[-1]
    starts = [_point(one).start for one in mounted] + [last]
    ends = [first] + [_point(one).end for one in mounted]
    trunk = [price.time for price in appraiser.spans(list(zip(ends, starts, strict=True)))]
    # The network's own prediction, which the chain is to be compared with, holds one start.
    trunk[-1] = Duration(max(0.0, trunk[-1].mean_s - appraiser.start_s), trunk[-1].variance_s2)
    kept_s = [one.options[0].time.mean_s - one.gate_s for one in mounted]
    total_s = sum(piece.mean_s for piece in trunk) + sum(kept_s)
    points = []
    for number, (one, region_s) in enumerate(zip(mounted, kept_s, strict=True)):
        left_out = sum(piece.mean_s for piece in trunk[number + 1 :]) / total_s
        options = [
            option
            for option in one.options
            if option.level == KEEP or option.break_even_rate is not None or one.name in complete
        ]
        worth = [-left_out if option.level == EXIT else _worth(option, region_s / total_s) for option in options]
        points.append(PointCosts(one.name, trunk[number], tuple(map(_costs, options, worth))))
    predictor = appraiser.pricer.predictor
    return Costs(
        model,
        predictor.device,
        tuple(points),
        trunk[-1],
        appraiser.whole.shared_spread,
        decide_s=DECIDE_S,
        frequency_hz=predictor.estimator.device.frequency_hz,
    )


def _costs(option: Estimated, utility: float) -> OptionCosts:
    time = Duration(option.time.mean_s, option.time.variance_s2)
    ends = option.level == EXIT
    return OptionCosts(option.name, option.level, time, utility, ends, option.switch_s, option.peak_bytes)


def _worth(option: Estimated, share: float) -> float:
    return share * (1.0 if option.level == KEEP else work_share(Choice(option.level, option.share)))


def _point(decision: Decision) -> Point:
    assert decision.point is not None
    return decision.point
