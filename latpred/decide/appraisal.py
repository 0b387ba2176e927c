"""What each option at each point saves and costs, with nothing hidden: gate network, cut, one more run, a switch.

A point costs `overhead_s` whenever the network runs: its gate network, and what cutting the graph at its ends loses
(fusions, layouts, one more dispatch each), predicted as the pieces around each cut against the graph that spans it. An
option taken saves what it leaves out, less that. The break-even rate r is where both are equal: r * gain = overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from statistics import NormalDist

import onnx

from latpred.decide.costs import KEEP, Duration
from latpred.decide.options import KEPT, Choice
from latpred.decide.points import EXIT, Point, classes_of
from latpred.decide.pricing import NOTHING, Price, Pricer, without_weights
from latpred.errors import SurgeryError
from latpred.predictor import Predictor
from latpred.surgery.cuts import Cut
from latpred.surgery.exits import head
from latpred.surgery.gates import gate_network
from latpred.surgery.pieces import piece
from latpred.surgery.wiring import wired

__all__ = ["GATES", "Appraiser", "Decision", "Estimated", "added", "break_even"]

POOLED, NONE = "pooled", "none"
GATES = (POOLED, NONE)


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
    """Appraises the points of one model; remembers the pieces between its cuts.

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
        self.whole = Pricer(predictor).of(model)
        self.pricer = Pricer(predictor, self.whole.cycle_bytes)
        self.cutting = predictor.estimator.calibration.cutting
        self._multiple = NormalDist().inv_cdf((1 + interval) / 2)
        self._pieces: dict[tuple[int, int], onnx.ModelProto] = {}
        self._spans: dict[tuple[int, int], Price] = {}
        self._behind: dict[int, float] = {}
        self._pooled: dict[Hashable, Price] = {}
        self._wiring = wired(model)
        self._classes = classes_of(self._wiring)
        device = predictor.estimator.device
        cached = self.whole.peak_bytes <= device.levels[1].size_bytes
        # Where not all fits in the cache, weights come from memory in any case: the prediction has it.
        self._s_per_byte = 1.0 / device.levels[2].bandwidth_bytes_per_s if cached else 0.0

    def appraised(self, point: Point, gate: onnx.ModelProto | None = None) -> Decision:
        """One point; `gate` stands for the default gate network."""
        if point.is_exit:
            return self._exit(point, gate)
        keep = self.span(point.start, point.end)
        looks = self._looks(point, gate)
        overhead_s = looks.time.mean_s + self._cutting_s(point.start, point.end)
        options = [self._option(KEPT, keep, keep, looks, overhead_s)]
        prices = self.pricer.altered(self.between(point.start, point.end), point.choices)
        for choice, price in zip(point.choices, prices, strict=True):
            options.append(self._option(choice, price, keep, looks, overhead_s))
        return Decision(point.name, point, tuple(options), overhead_s, looks.time.mean_s)

    def between(self, start: Cut, end: Cut) -> onnx.ModelProto:
        """The piece between two cuts."""
        key = start.position, end.position
        if key not in self._pieces:
            self._pieces[key] = piece(self._wiring, start, end)
        return self._pieces[key]

    def span(self, start: Cut, end: Cut) -> Price:
        """Its price; nothing where the cuts are the same."""
        key = start.position, end.position
        if key[0] == key[1]:
            return NOTHING
        if key not in self._spans:
            self._spans[key] = self.pricer.of(self.between(start, end))
        return self._spans[key]

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

    def _exit(self, point: Point, gate: onnx.ModelProto | None) -> Decision:
        assert self._classes is not None
        cut = point.start
        answer = self._of_pooled(cut, self._classes, partial(head, confident=True))
        # Without a gate network of another kind, the head's own confidence decides: it runs in any case.
        if gate is not None:
            looks, leave = self.pricer.of(gate), answer
        elif self.gate == POOLED:
            looks, leave = answer, NOTHING
        else:
            looks, leave = NOTHING, answer
        overhead_s = looks.time.mean_s + self._cutting_s(cut, cut)
        rest = Price(Duration(self._behind_s(cut), 0.0))
        options = [
            self._option(KEPT, NOTHING, NOTHING, looks, overhead_s),
            self._option(Choice(EXIT), leave, rest, looks, overhead_s),
        ]
        return Decision(point.name, point, tuple(options), overhead_s, looks.time.mean_s)

    def _looks(self, point: Point, gate: onnx.ModelProto | None) -> Price:
        if gate is not None:
            return self.pricer.of(gate)
        if self.gate == NONE:
            return NOTHING
        try:
            return self._of_pooled(point.start, 1 + len(point.choices), gate_network)
        except SurgeryError:  # of what cannot be averaged, only time is known when the decision is due
            return NOTHING

    def _of_pooled(self, cut: Cut, width: int, network: Callable[[Cut, int], onnx.ModelProto]) -> Price:
        """Price of a head or a gate network, made once for all cuts of one shape."""
        key = cut.spec, cut.channel_axis, width, network is gate_network
        if key not in self._pooled:
            self._pooled[key] = self.pricer.of(without_weights(network(cut, width)))
        return self._pooled[key]

    def _cutting_s(self, start: Cut, end: Cut) -> float:
        """What cutting costs at both ends, by what chains of graphs were measured to take more than predicted.

        Where the network begins and ends there is nothing to cut.
        """
        inner = {start.position, end.position} - {self.places[0].position, self.places[-1].position}
        return self.cutting.charged_s(self._apart_s(start, end), len(inner), self.whole.time.mean_s)

    def _apart_s(self, start: Cut, end: Cut) -> float:
        """Predicted: pieces up to the cuts around it against the graph that spans them."""
        first, last = self._index(start), self._index(end)
        before = self.places[max(first - 1, 0)]
        behind = self.places[min(last + 1, len(self.places) - 1)]
        parts_s = sum(
            self.span(*ends).time.mean_s for ends in ((before, start), (start, end), (end, behind))
        )  # fmt: skip
        return parts_s - self.span(before, behind).time.mean_s

    def _behind_s(self, cut: Cut) -> float:
        """All that runs behind a cut, as one graph: atoms, less what they take more for being apart."""
        if not self._behind:
            rest_s = 0.0
            for index in reversed(range(len(self.places) - 1)):
                here, after = self.places[index], self.places[index + 1]
                joined_s = self._apart_s(after, after) if index + 2 < len(self.places) else 0.0
                rest_s += self.span(here, after).time.mean_s - joined_s
                self._behind[here.position] = rest_s
        return self._behind[cut.position]

    def _index(self, cut: Cut) -> int:
        return next(index for index, place in enumerate(self.places) if place.position == cut.position)
