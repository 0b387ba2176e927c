"""What each option at each point saves and costs, with nothing hidden: gate network, cut, one more run, a switch.

A point costs `overhead_s` whenever the network runs: its gate network, and what cutting the graph at its ends loses
(fusions, layouts, one more dispatch each), predicted as the pieces around each cut against the graph that spans it. An
option taken saves what it leaves out, less that. The break-even rate r is where both are equal: r * gain = overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import sqrt
from statistics import NormalDist

import onnx

from latpred.decide.costs import KEEP, Duration
from latpred.decide.options import KEPT, Choice, altered
from latpred.decide.points import EXIT, Point, classes_of
from latpred.decide.pricing import NOTHING, Price, Pricer, priced, start_s
from latpred.errors import SurgeryError
from latpred.graph import Graph, excerpt, read
from latpred.predictor import Predictor
from latpred.surgery.cuts import Cut
from latpred.surgery.exits import head
from latpred.surgery.gates import gate_network
from latpred.surgery.likeness import Likeness
from latpred.surgery.pieces import Region, cut_out, region
from latpred.surgery.pooled import channels_of
from latpred.surgery.wiring import wired

__all__ = ["GATES", "Appraiser", "Decision", "Estimated", "added", "break_even"]

POOLED, NONE = "pooled", "none"
GATES = (POOLED, NONE)

_Network = tuple[Hashable, Callable[[], Graph]]  # what it shares with equal ones, and how it is made


@dataclass(frozen=True, slots=True)
class Estimated:
    """One option at a point.

    Attributes
    ----------
    name : str
        Such as ``keep``, ``skip``, ``channels 0.5``, ``patches14 0.25``; a model's name where one is chosen.
    level : str
        One of `latpred.decide.costs.LEVELS`.
    share : float
        Of the region's channels or patches that is computed; 1 elsewhere.
    time : Duration
        What runs at the point when the option is taken, the gate network included.
    saved_s : float
        Latency of the network as it is, less its latency with this point alone mounted and this option taken, in s;
        negative where it takes longer, as `keep` does.
    saved_interval_s : (float, float)
        Bounds around it in s, that hold in the plan's `interval` of cases.
    break_even_rate : float or None
        Share of the inferences that must take the option for the point to pay for itself; None where it never does,
        and of `keep`.
    switch_s : float
        Added where the last inference took another option, in s: its weights come from memory.
    peak_bytes : int
        Activations that live at once, and weights, of what runs at the point, in B.
    """

    name: str
    level: str
    share: float
    time: Duration
    saved_s: float
    saved_interval_s: tuple[float, float]
    break_even_rate: float | None
    switch_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Decision:
    """One point with what its options cost.

    Attributes
    ----------
    name : str
        As a person recognises it: the module's name, with a number behind where there are several of them.
    point : Point or None
        Where it lies; None for the choice among several models.
    options : tuple of Estimated
        The first is `keep`.
    overhead_s : float
        What having the point costs each inference, whatever is taken, in s.
    gate_s : float
        The part of it that the gate network takes, in s.
    """

    name: str
    point: Point | None
    options: tuple[Estimated, ...]
    overhead_s: float
    gate_s: float

    @property
    def best_saved_s(self) -> float:
        """Most that one of its options saves, in s."""
        return max(option.saved_s for option in self.options)

    @property
    def pays(self) -> bool:
        """Whether any of its options saves something, even where it saves the least that its interval holds."""
        return any(option.break_even_rate is not None and option.saved_interval_s[0] > 0.0 for option in self.options)


def break_even(gain_s: float, overhead_s: float) -> float | None:
    """How often an option must be taken to pay for its point; None where never.

    Examples
    --------
    >>> break_even(gain_s=0.004, overhead_s=0.001), break_even(gain_s=0.001, overhead_s=0.004)
    (0.25, None)
    """
    if gain_s <= 0.0 or overhead_s >= gain_s:
        return None
    return max(0.0, overhead_s / gain_s)


def added(*durations: Duration) -> Duration:
    """Durations one after the other; their own errors are independent.

    Examples
    --------
    >>> added(Duration(1.0, 0.25), Duration(2.0, 0.5))
    Duration(mean_s=3.0, variance_s2=0.75)
    """
    return Duration(sum(one.mean_s for one in durations), sum(one.variance_s2 for one in durations))


class Appraiser:
    """Appraises the points of one model.

    Parameters
    ----------
    model : ModelProto
        Tidied; weights are not needed.
    places : sequence of Cut
        Of the model.
    predictor : Predictor
    gate : str
        What looks at the tensor where a point starts: one of `GATES`.
    interval : float
        Share of cases that intervals shall cover.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        places: Sequence[Cut],
        predictor: Predictor,
        gate: str = POOLED,
        interval: float = 0.9,
    ) -> None:
        self.places = tuple(places)
        self.gate = gate
        self._graph = read(model, trusted=True)
        (self.whole,) = priced(predictor, [self._graph])
        self.pricer = Pricer(predictor, self.whole.cycle_bytes)
        self.cutting = predictor.estimator.calibration.cutting
        self._multiple = NormalDist().inv_cdf((1 + interval) / 2)
        self._wiring = wired(model)
        self._likeness = Likeness(self._wiring)
        self._regions: dict[tuple[int, int], tuple[Region, Hashable]] = {}
        self._index = {place.position: index for index, place in enumerate(self.places)}
        self._behind: dict[int, float] = {}
        self._classes = classes_of(self._wiring)
        device = predictor.estimator.device
        self.start_s = start_s(predictor, self.whole.cycle_bytes, self.whole.peak_bytes)  # of the whole among others
        cached = self.whole.peak_bytes <= device.levels[1].size_bytes
        # Where not all fits in the cache, weights come from memory in any case: the prediction has it.
        self._s_per_byte = 1.0 / device.levels[2].bandwidth_bytes_per_s if cached else 0.0

    def appraised(self, points: Sequence[tuple[Point, onnx.ModelProto | None]]) -> tuple[Decision, ...]:
        """Points, each with what stands for the default gate network; all that they need is priced together."""
        for point, gate in points:
            self._expect(point, gate)
        if any(point.is_exit for point, _ in points):
            for ends in (*pairwise(self.places), *zip(self.places, self.places[2:], strict=False)):
                self._expect_span(*ends)
        return tuple(self._exit(*one) if one[0].is_exit else self._region(*one) for one in points)

    def spans(self, ends: Sequence[tuple[Cut, Cut]]) -> list[Price]:
        """Prices of the pieces between cuts; nothing where the two are the same."""
        for pair in ends:
            self._expect_span(*pair)
        return [self._span(*pair) for pair in ends]

    def _expect(self, point: Point, gate: onnx.ModelProto | None) -> None:
        for ends in self._around(point.start, point.end):
            self._expect_span(*ends)
        if not point.is_exit:
            self._expect_altered(point)
        for network in self._networks(point, gate):
            if network is not None:
                self.pricer.expect(*network)

    def _expect_span(self, start: Cut, end: Cut) -> None:
        if start.position != end.position:
            found, key = self._between(start, end)
            self.pricer.expect(key, lambda: excerpt(self._graph, found.nodes, found.inputs, found.outputs))

    def _expect_altered(self, point: Point) -> None:
        found, key = self._between(point.start, point.end)
        piece: list[onnx.ModelProto] = []

        def rewritten(choice: Choice) -> Graph | None:
            if not piece:
                piece.append(cut_out(found))
            made = altered(piece[0], choice)
            return None if made is None else read(made, trusted=True)

        for choice in point.choices:
            self.pricer.expect((key, choice), partial(rewritten, choice))

    def _between(self, start: Cut, end: Cut) -> tuple[Region, Hashable]:
        """A region, and what it shares with those that are equal."""
        ends = start.position, end.position
        if ends not in self._regions:
            found = region(self._wiring, start, end)
            self._regions[ends] = found, self._likeness.key(found)
        return self._regions[ends]

    def _networks(self, point: Point, gate: onnx.ModelProto | None) -> tuple[_Network | None, _Network | None]:
        """What looks at the tensor where a point starts, and what answers where the network is left there."""
        own = None if gate is None else (("gate", point.name), partial(read, gate, trusted=True))
        if point.is_exit:
            answer = self._pooled(point.start, self._classes or 1, "head")
            # Without a gate network of another kind, the head's own confidence decides: it runs in any case.
            return (own, answer) if own or self.gate == NONE else (answer, None)
        if own or self.gate == NONE:
            return own, None
        try:
            channels_of(point.start)
        except SurgeryError:  # of what cannot be averaged, only time is known when the decision is due
            return None, None
        return self._pooled(point.start, 1 + len(point.choices), "scores"), None

    def _pooled(self, cut: Cut, width: int, what: str) -> _Network:
        """A network that is the same for all cuts of one shape."""
        make = partial(head, confident=True) if what == "head" else gate_network
        key = what, cut.spec, cut.channel_axis, width
        return key, lambda: read(make(cut, width, seed=None), trusted=True)

    def _span(self, start: Cut, end: Cut) -> Price:
        return NOTHING if start.position == end.position else self.pricer.of(self._between(start, end)[1])

    def _price(self, network: _Network | None) -> Price:
        return NOTHING if network is None else self.pricer.of(network[0])

    def _region(self, point: Point, gate: onnx.ModelProto | None) -> Decision:
        looks, _ = map(self._price, self._networks(point, gate))
        keep = self._span(point.start, point.end)
        overhead_s = looks.time.mean_s + self._cutting_s(point.start, point.end)
        _, key = self._between(point.start, point.end)
        options = [
            self._option(KEPT, keep, keep, looks, overhead_s),
            *(self._option(one, self.pricer.of((key, one)), keep, looks, overhead_s) for one in point.choices),
        ]
        return Decision(point.name, point, tuple(options), overhead_s, looks.time.mean_s)

    def _exit(self, point: Point, gate: onnx.ModelProto | None) -> Decision:
        looks, leave = map(self._price, self._networks(point, gate))
        cutting_s = self._cutting_s(point.start, point.start)
        overhead_s = looks.time.mean_s + cutting_s
        # What does not run pays nothing for having been cut off.
        spared_s = cutting_s - self._apart_s(point.start, point.start)
        rest = Price(Duration(self._behind_s(point.start) + spared_s))
        options = (
            self._option(KEPT, NOTHING, NOTHING, looks, overhead_s),
            self._option(Choice(EXIT), leave, rest, looks, overhead_s),
        )
        return Decision(point.name, point, options, overhead_s, looks.time.mean_s)

    def _option(self, choice: Choice, price: Price, keep: Price, looks: Price, overhead_s: float) -> Estimated:
        gain_s = keep.time.mean_s - price.time.mean_s
        saved_s = gain_s - overhead_s
        kept = choice.level == KEEP
        own = looks.time.variance_s2 + (0.0 if kept else keep.time.variance_s2 + price.time.variance_s2)
        own += (self.cutting.spread * self.whole.time.mean_s) ** 2
        spread_s = sqrt(own + (self.whole.shared_spread * saved_s) ** 2)
        return Estimated(
            choice.name,
            choice.level,
            choice.share,
            added(looks.time, price.time),
            saved_s,
            (saved_s - self._multiple * spread_s, saved_s + self._multiple * spread_s),
            None if kept else break_even(gain_s, overhead_s),
            self._s_per_byte * price.weight_bytes,
            max(looks.peak_bytes, price.peak_bytes),
        )

    def _around(self, start: Cut, end: Cut) -> tuple[tuple[Cut, Cut], ...]:
        """Pieces between a region's ends and the cuts around it, and last what spans them."""
        before = self.places[max(self._index[start.position] - 1, 0)]
        behind = self.places[min(self._index[end.position] + 1, len(self.places) - 1)]
        return (before, start), (start, end), (end, behind), (before, behind)

    def _cutting_s(self, start: Cut, end: Cut) -> float:
        """What cutting costs at both ends, by what chains of graphs were measured to take more than predicted.

        Where the network begins and ends there is nothing to cut.
        """
        inner = {start.position, end.position} - {self.places[0].position, self.places[-1].position}
        return self.cutting.charged_s(self._apart_s(start, end), len(inner), self.whole.time.mean_s)

    def _apart_s(self, start: Cut, end: Cut) -> float:
        """Predicted: pieces up to the cuts around it against the graph that spans them."""
        *parts, spanning = (self._span(*ends).time.mean_s for ends in self._around(start, end))
        return sum(parts) - spanning

    def _behind_s(self, cut: Cut) -> float:
        """All that runs behind a cut, as one graph: atoms, less what they take more for being apart.

        What each cut costs is predicted from its neighbours alone, and off by a little: scaled so that what is behind
        the first cut is the network.
        """
        if not self._behind:
            rest_s = 0.0
            for index in reversed(range(len(self.places) - 1)):
                here, after = self.places[index], self.places[index + 1]
                joined_s = self._apart_s(after, after) if index + 2 < len(self.places) else 0.0
                rest_s += self._span(here, after).time.mean_s - joined_s
                self._behind[here.position] = rest_s
            scale = (self.whole.time.mean_s + self.start_s) / rest_s
            self._behind = {position: scale * latency_s for position, latency_s in self._behind.items()}
        return self._behind[cut.position]
