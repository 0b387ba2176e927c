"""Which points are mounted, and the chain of pieces that they make of the network."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from latpred.decide.appraisal import Appraiser, Decision, Estimated, added
from latpred.decide.costs import KEEP, Costs, Duration, OptionCosts, PointCosts
from latpred.decide.identity import Identity
from latpred.decide.options import Choice, work_share
from latpred.decide.points import EXIT, Point
from latpred.decide.steps import DECIDING, step_s
from latpred.errors import InputError

__all__ = ["chosen", "costs_of", "in_order"]
ALLOWANCE = 0.1  # of the latency
SMALLEST_S = 1e-9
EXIT_MARKS = (0.25, 0.5, 0.75)  # exits are mounted where about so much of the latency is behind


def chosen(decisions: Sequence[Decision], whole_s: float, allowance: float = ALLOWANCE) -> tuple[Decision, ...]:
    """Points that pay and do not overlap, those first that save most for what they cost every inference.

    Regions, and an exit near each of `EXIT_MARKS`, by the ratio of the best saving to the overhead, as long as the
    overheads together stay within an allowance (the greedy rule for knapsacks: Dantzig, Discrete-variable extremum
    problems, Operations Research 5(2), 1957).

    Parameters
    ----------
    decisions : sequence of Decision
    whole_s : float
        Latency of the network as it is, in s.
    allowance : float
        Share of it that having points may cost where all of them keep what there is.
    """
    paying = [one for one in decisions if one.pays]
    exits = [one for one in paying if _point(one).is_exit]
    marked = {
        min(exits, key=lambda one: abs(one.best_saved_s - (1.0 - mark) * whole_s)).name
        for mark in EXIT_MARKS
        if exits
    }  # fmt: skip
    waiting = [one for one in paying if not _point(one).is_exit or one.name in marked]
    waiting.sort(key=lambda one: -one.best_saved_s / max(one.overhead_s, SMALLEST_S))
    mounted: list[Decision] = []
    left_s = allowance * whole_s
    for one in waiting:
        if one.overhead_s <= left_s and not any(_point(one).overlaps(_point(other)) for other in mounted):
            mounted.append(one)
            left_s -= max(0.0, one.overhead_s)
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


def costs_of(
    appraiser: Appraiser, mounted: Sequence[Decision], identity: Identity, complete: Collection[str] = ()
) -> Costs:
    """The chain as it would run: every trunk piece between mounted points, and every option, as predicted.

    Options that never pay are left out, save at points named in `complete`. What an option is worth is the share of
    the network's work that it does, until measured accuracies replace it. A point's gate network runs before anything
    is decided: it counts with what lies before the point.

    Raises
    ------
    InputError
        Where nothing is mounted.
    """
    if not mounted:
        raise InputError(
            "a table of decisions needs a point that pays, and none of this model's does here: not worth deciding"
        )
    first, last, predictor = appraiser.places[0], appraiser.places[-1], appraiser.pricer.predictor
    starts = [_point(one).start for one in mounted] + [last]
    ends = [first] + [_point(one).end for one in mounted]
    trunk = [price.time for price in appraiser.spans(list(zip(ends, starts, strict=True)))]
    kept_s = [one.options[0].time.mean_s - one.gate_s for one in mounted]
    total_s = sum(piece.mean_s for piece in trunk) + sum(kept_s)
    # The network's own prediction holds one start.
    trunk = _longer(trunk, -appraiser.start_s, _unforeseen_s(appraiser, mounted, total_s - appraiser.start_s))
    points = []
    for number, (one, region_s) in enumerate(zip(mounted, kept_s, strict=True)):
        left_out = sum(piece.mean_s for piece in trunk[number + 1 :]) / total_s
        options = [
            option
            for option in one.options
            if option.level == KEEP or option.break_even_rate is not None or one.name in complete
        ]
        worth = [-left_out if option.level == EXIT else _worth(option, region_s / total_s) for option in options]
        before = added(trunk[number], Duration(one.gate_s))
        points.append(PointCosts(one.name, before, tuple(map(partial(_costs, one.gate_s), options, worth))))
    return Costs(
        *identity,
        tuple(points),
        trunk[-1],
        appraiser.whole.shared_spread,
        decide_s=step_s(DECIDING, predictor, appraiser.whole.cycle_bytes, appraiser.whole.peak_bytes),
        frequency_hz=predictor.estimator.device.frequency_hz,
    )


def _unforeseen_s(appraiser: Appraiser, mounted: Sequence[Decision], chain_s: float) -> float:
    """What the chain costs beyond its pieces' own predictions."""
    first, last = appraiser.places[0], appraiser.places[-1]
    ends = {cut.position for one in mounted for cut in (_point(one).start, _point(one).end)}
    whole_s = appraiser.whole.time.mean_s
    inner = len(ends - {first.position, last.position})
    return whole_s + appraiser.cutting.charged_s(chain_s - whole_s, inner, whole_s) - chain_s


def _longer(trunk: Sequence[Duration], first_s: float, behind_s: float) -> list[Duration]:
    """The same with more time on the first piece, and an equal part behind each point, so that an exit spares its own.

    Less time, where a piece is too short for it, comes off the next one.
    """
    parts_s = [first_s, *[behind_s / (len(trunk) - 1)] * (len(trunk) - 1)]
    left_s = 0.0
    longer = []
    for piece, part_s in zip(trunk, parts_s, strict=True):
        wanted_s = piece.mean_s + part_s + left_s
        left_s = min(0.0, wanted_s)
        longer.append(Duration(wanted_s - left_s, piece.variance_s2))
    return longer


def _costs(gate_s: float, option: Estimated, utility: float) -> OptionCosts:
    time = Duration(max(0.0, option.time.mean_s - gate_s), option.time.variance_s2)
    ends = option.level == EXIT
    return OptionCosts(option.name, option.level, time, utility, ends, option.switch_s, option.peak_bytes)


def _worth(option: Estimated, share: float) -> float:
    return share * (1.0 if option.level == KEEP else work_share(Choice(option.level, option.share)))


def _point(decision: Decision) -> Point:
    assert decision.point is not None
    return decision.point
