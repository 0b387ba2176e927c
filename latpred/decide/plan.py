"""Model -> plan: its decision points, what each option saves and costs on a device, and which of them are mounted.

Users call it as `Predictor.plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from latpred.decide.appraisal import GATES, Appraiser, Decision, Estimated, break_even
from latpred.decide.chain import chain_of
from latpred.decide.costs import KEEP, Costs, Duration, OptionCosts, PointCosts
from latpred.decide.declared import Declared, gate_of, point_of
from latpred.decide.forecast import Remaining, bounds_s, expected_s, probability_within
from latpred.decide.identity import Identity, Shapes, identity_of, paired
from latpred.decide.mounting import chosen, costs_of, in_order
from latpred.decide.names import Names, Rates
from latpred.decide.points import Grid, points
from latpred.decide.pricing import Price, priced
from latpred.decide.steps import DECIDING, step_s
from latpred.decide.table import Table, compile_table
from latpred.errors import InputError
from latpred.graph import read
from latpred.kernels.blocked import channel_block
from latpred.predictor import Model, Predictor, name_of
from latpred.reading.loading import load
from latpred.surgery.cuts import cuts
from latpred.surgery.tidy import tidied
from latpred.surgery.wiring import wired

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Plan", "plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Decision points of one network on one device.

    Attributes
    ----------
    model, device : str
        Names, as a prediction has them; `costs` has what tells models and devices apart.
    latency_s : float
        Of the network as it is, in s.
    spread : float
        Relative standard deviation of its error.
    peak_bytes : int
        Its activations that live at once, and its weights, in B.
    cycle_bytes : int
        Bytes that pass from one inference to the next: pieces are predicted as they run among all others.
    interval : float
        Share of cases that the intervals of savings shall cover.
    decisions : tuple of Decision
        All points that were found, overlapping ones too; ``plan[name]`` is one of them.
    mounted : tuple of str
        Names of those that a table is made of, in the order in which an inference meets them.
    costs : Costs or None
        The chain that the mounted ones make of the network; None where no point pays.
    """

    model: str
    device: str
    latency_s: float
    spread: float
    peak_bytes: int
    cycle_bytes: int
    interval: float
    decisions: tuple[Decision, ...]
    mounted: tuple[str, ...]
    costs: Costs | None

    def __getitem__(self, name: str) -> Decision:
        """A point by its name; raises InputError where there is none."""
        for decision in self.decisions:
            if decision.name == name:
                return decision
        known = ", ".join(decision.name for decision in self.decisions)
        raise InputError(f"the plan has the points {known or 'of none'}, got {name!r}: take one of these")

    def probability(self, deadline_s: float) -> float:
        """Chance that the network as it is, without any point, meets a deadline in s."""
        return probability_within(deadline_s, self.latency_s, 0.0, self.spread**2)

    def compile(self) -> Table:
        """The table that gates decide by.

        Raises
        ------
        InputError
            Where no point is mounted: not worth deciding.
        """
        if self.costs is None:
            raise InputError(
                f"a table of decisions needs a point that pays, and none of {self.model} does on {self.device}: "
                "run the network as it is"
            )
        return compile_table(self.costs)

    def remaining(self, rates: Rates | None = None) -> dict[str, Remaining]:
        """Time from each mounted point's decision to the end, in s: least, most, and expected under rates.

        Parameters
        ----------
        rates
            Point -> option -> share of the inferences that take it; what is not named is kept.

        Raises
        ------
        InputError
            When a point or an option is unknown, or shares of a point are negative or above 1 together.
        """
        table = self.compile()
        chain = chain_of(table, table.utility)
        shares = Names(table).shares(rates or {})
        return {
            name: Remaining(least_s, most_s, expected_s(chain, number, shares))
            for number, (name, (least_s, most_s)) in enumerate(zip(table.points, bounds_s(chain), strict=True))
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; latencies in ms."""
        return {
            "model": self.model,
            "device": self.device,
            "latency_ms": self.latency_s * 1e3,
            "peak_bytes": self.peak_bytes,
            "interval": self.interval,
            "mounted": list(self.mounted),
            "points": [_point_object(one, one.name in self.mounted) for one in self.decisions],
        }

    def to_frame(self) -> pd.DataFrame:
        """One row an option, as `to_dict` names the columns, with the point's in front."""
        import pandas as pd

        rows = []
        for row in self.to_dict()["points"]:
            shared = {name: row[name] for name in ("mounted", "start", "end", "overhead_ms", "gate_ms")}
            rows += [{"point": row["name"], **shared, **option} for option in row["options"]]
        return pd.DataFrame(rows)


def plan(
    predictor: Predictor,
    model: Model | Sequence[Model],
    dims: Mapping[str, int] | None = None,
    shapes: Shapes | Sequence[Shapes | None] | None = None,
    gate: str = "pooled",
    grid: Grid | None = None,
    declared: Sequence[Declared] = (),
    mount: Sequence[str] | None = None,
    interval: float = 0.9,
) -> Plan:
    """Find the decision points of a model, and what each of their options saves.

    Parameters
    ----------
    predictor : Predictor
        Of the device that the network will run on.
    model : path, bytes or ModelProto, or a sequence of them
        Weights are not needed. Of several, the only decision is which of them runs; the first one is kept.
    dims : mapping of str to int, optional
        Symbolic dimension -> size.
    shapes : mapping of str to sequence of int, optional
        Input -> shape; for several models it may be a sequence of one mapping each, such as resolutions.
    gate : str
        ``pooled``: at each point the tensor's positions are averaged, and a linear map scores the options. ``none``:
        nothing looks at the tensor; time alone decides.
    grid : Grid, optional
        Which options are looked at; without it, those of all levels.
    declared : sequence of Declared
        Points by hand; they are mounted before any that was found.
    mount : sequence of str, optional
        Names of the points to mount; without it, those that save most for what they cost, without overlapping.
    interval : float
        Share of cases that intervals shall cover.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        When the model cannot be read or cut, `gate` is unknown, a declared point is impossible, or a point to mount
        is unknown or overlaps another.
    ValueError
        When `interval` is not between 0 and 1.

    Examples
    --------
    A stem and a block of 1x1 convolutions, 64 -> 512 -> 64 channels, of which the block may be left out.

    >>> import numpy as np
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> import latpred
    >>> x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64, 56, 56]) for name in "xy")
    >>> sizes = {"stem": (64, 64), "up": (512, 64), "down": (64, 512)}
    >>> weights = [numpy_helper.from_array(np.ones((*size, 1, 1), np.float32), name) for name, size in sizes.items()]
    >>> nodes = [
    ...     helper.make_node("Conv", ["x", "stem"], ["s"], "/stem/Conv"),
    ...     helper.make_node("Conv", ["s", "up"], ["h"], "/block/up/Conv"),
    ...     helper.make_node("Conv", ["h", "down"], ["y"], "/block/down/Conv"),
    ... ]
    >>> opset = helper.make_opsetid("", 17)
    >>> model = helper.make_model(helper.make_graph(nodes, "toy", [x], [y], weights), opset_imports=[opset])
    >>> found = plan(latpred.load("raspberry-pi-4"), model, mount=["block"])
    >>> [decision.name for decision in found.decisions]
    ['stem .. block.down', 'stem', 'block', 'block.up', 'block.down']
    >>> skip = found["block"].options[1]
    >>> skip.name, round(skip.saved_s / found.latency_s, 1), round(skip.break_even_rate, 2)
    ('skip', 0.9, 0.05)
    >>> gate = found.compile().gate(deadline_s=found.latency_s / 2, confidence=0.9)
    >>> gate.options["block"][gate.decide("block")]
    'skip'
    """
    if not 0 < interval < 1:
        raise ValueError(f"interval must lie between 0 and 1; got {interval}")
    if gate not in GATES:
        raise InputError(f"gate must be one of {', '.join(GATES)}, got {gate!r}: declare a point to give it a network")
    (only, bound), *others = pairs = paired(model, shapes)
    if others:
        return _among(predictor, pairs, dims, identity_of(predictor, model, dims, shapes), interval)
    source = load(only)
    light = tidied(source, dims, bound, large_values=False)
    wiring = wired(light)
    places = cuts(wiring)
    appraiser = Appraiser(light, places, predictor, gate, interval)
    block = channel_block(predictor.estimator.rules)
    _unique([one.name for one in declared])
    by_hand = [(point, gate_of(one, point)) for one in declared for point in [point_of(one, wiring, places, block)]]
    taken = {one.name for one in declared}
    found = [(point, None) for point in points(wiring, grid, places, block) if point.name not in taken]
    decisions = appraiser.appraised([*by_hand, *found])
    own = decisions[: len(by_hand)]
    latency_s = appraiser.whole.time.mean_s
    if mount is None:
        free = [one for one in decisions if not any(_overlap(one, other) for other in own)]
        mounted = in_order([*own, *chosen(free, latency_s)])
    else:
        _unique(mount)
        mounted = in_order([_named(decisions, name) for name in mount])
    identity = identity_of(predictor, source, dims, bound)
    return Plan(
        name_of(only),
        predictor.device,
        latency_s,
        appraiser.whole.spread,
        appraiser.whole.peak_bytes,
        appraiser.whole.cycle_bytes,
        interval,
        decisions,
        tuple(one.name for one in mounted),
        costs_of(appraiser, mounted, identity, {*taken, *(mount or ())}) if mounted else None,
    )


def _among(
    predictor: Predictor,
    pairs: Sequence[tuple[Model, Shapes | None]],
    dims: Mapping[str, int] | None,
    identity: Identity,
    interval: float,
) -> Plan:
    """The choice among several models, or several shapes of one; the first is kept."""
    light = [tidied(load(one), dims, own, large_values=False) for one, own in pairs]
    prices = priced(predictor, [read(one, trusted=True) for one in light])
    names = _own_names([name_of(one) for one, _ in pairs], [own for _, own in pairs])
    first = prices[0]
    multiple = NormalDist().inv_cdf((1 + interval) / 2)
    options = tuple(_whole(name, price, first, multiple) for name, price in zip(names, prices, strict=True))
    most_s = max(price.time.mean_s for price in prices)
    costs = [
        OptionCosts(one.name, one.level, one.time, one.time.mean_s / most_s, peak_bytes=one.peak_bytes)
        for one in options
    ]
    point = PointCosts("model", Duration(0.0), tuple(costs))
    clock_hz = predictor.estimator.device.frequency_hz
    decide_s = step_s(DECIDING, predictor, first.cycle_bytes, first.peak_bytes)
    shared = max(price.shared_spread for price in prices)
    return Plan(
        ", ".join(dict.fromkeys(name_of(one) for one, _ in pairs)),
        predictor.device,
        first.time.mean_s,
        first.spread,
        first.peak_bytes,
        first.cycle_bytes,
        interval,
        (Decision("model", None, options, 0.0, 0.0),),
        ("model",),
        Costs(*identity, (point,), Duration(0.0), shared, decide_s=decide_s, frequency_hz=clock_hz),
    )


def _whole(name: str, price: Price, first: Price, multiple: float) -> Estimated:
    saved_s = first.time.mean_s - price.time.mean_s
    own = 0.0 if price is first else first.time.variance_s2 + price.time.variance_s2
    half_s = multiple * sqrt(own + (first.shared_spread * saved_s) ** 2)
    level = KEEP if price is first else "model"
    rate = None if price is first else break_even(saved_s, 0.0)
    return Estimated(
        name, level, 1.0, price.time, saved_s, (saved_s - half_s, saved_s + half_s), rate, 0.0, price.peak_bytes
    )


def _own_names(names: Sequence[str], shapes: Sequence[Shapes | None]) -> Iterator[str]:
    for number, (name, own) in enumerate(zip(names, shapes, strict=True)):
        if names.count(name) == 1:
            yield name
        else:
            bound = ", ".join(f"{key}={'x'.join(map(str, shape))}" for key, shape in (own or {}).items())
            yield f"{name} {bound or '#' + str(number + 1)}"


def _point_object(decision: Decision, mounted: bool) -> dict[str, Any]:
    point = decision.point
    return {
        "name": decision.name,
        "mounted": mounted,
        "start": point.start.tensor if point else None,
        "end": point.end.tensor if point else None,
        "shape": list(point.start.shape) if point else None,
        "overhead_ms": decision.overhead_s * 1e3,
        "gate_ms": decision.gate_s * 1e3,
        "options": [_option_object(option) for option in decision.options],
        "refused": dict(point.refused) if point else {},
    }


def _option_object(option: Estimated) -> dict[str, Any]:
    low_s, high_s = option.saved_interval_s
    return {
        "name": option.name,
        "level": option.level,
        "share": option.share,
        "latency_ms": option.time.mean_s * 1e3,
        "saved_ms": option.saved_s * 1e3,
        "saved_interval_ms": [low_s * 1e3, high_s * 1e3],
        "break_even_rate": "never" if option.break_even_rate is None else option.break_even_rate,
        "switch_ms": option.switch_s * 1e3,
        "peak_bytes": option.peak_bytes,
    }


def _overlap(one: Decision, other: Decision) -> bool:
    return one.point is not None and other.point is not None and one.point.overlaps(other.point)


def _named(decisions: Sequence[Decision], name: str) -> Decision:
    found = next((one for one in decisions if one.name == name), None)
    if found is None:
        known = ", ".join(one.name for one in decisions)
        raise InputError(f"the points {known or 'of no name'} were found, got {name!r}: mount one of these")
    return found


def _unique(names: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if twice:
        raise InputError(f"points need names of their own, got {', '.join(twice)} twice: leave one out")
