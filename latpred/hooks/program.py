"""A network with its mounted points as graphs that are ready to run: shared by all streams, never changed.

The main tensor passes from graph to graph through two slots: what reads it in one writes the next to the other, and a
region that is left out leaves it where it is. So a graph needs two bindings, whatever was skipped before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from latpred.chained import CPU, opened
from latpred.decide.options import Choice, altered
from latpred.decide.points import EXIT
from latpred.errors import HookError
from latpred.hooks.endings import ending_of
from latpred.hooks.inputs import Accepted
from latpred.surgery.cuts import Cut, cuts
from latpred.surgery.patches import computed_on, counts
from latpred.surgery.pieces import piece
from latpred.surgery.quantize import Range, calibrated, in_int8
from latpred.surgery.wiring import Wiring, wired
from latpred.tensors import Array, Spec

__all__ = [
    "INPUT", "INT8", "LAST", "OUTSIDES", "PATCHES", "SKIP", "Part", "Program", "Span", "Station", "Way", "built",
    "ranges_of",
]  # fmt: skip

INPUT, LAST = "input", "last"
OUTSIDES = (INPUT, LAST)
INT8, PATCHES, SKIP = "int8", "patches", "skip"


@dataclass(frozen=True, slots=True)
class Span:
    """A mounted point: where it lies, and what can be done there, keeping it first.

    `looks` is the role of the side network that is asked before the decision; empty where time alone decides.
    """

    name: str
    start: Cut
    end: Cut
    choices: tuple[Choice, ...]
    looks: str = ""

    @property
    def is_exit(self) -> bool:
        """Whether the network may be left here."""
        return self.start.position == self.end.position


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A graph between two places: beside the main tensors, it reads and makes some that have buffers of their own."""

    session: Any
    start: str
    end: str


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """One option: what runs, nothing where `part` is None.

    Attributes
    ----------
    n_patches : int
        Of how many patches it computes; 0 where it computes no patches.
    onto_last : bool
        Whether it hands on, outside of these, what the region made in the last inference.
    """

    choice: Choice
    part: Part | None
    n_patches: int = 0
    onto_last: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Station:
    """A point with its ways, in the order of the table's options."""

    number: int
    span: Span
    ways: tuple[Way, ...]

    @property
    def remembers(self) -> bool:
        """Whether the region's last value is needed."""
        return any(way.onto_last for way in self.ways)


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """The chain.

    Attributes
    ----------
    main : str
        The input that the chain starts with; all others are carried.
    last : str
        The output that it ends with.
    accepts : Accepted
    inputs, outputs : mapping of str to Spec
        Of the model.
    stations : tuple of Station
        As an inference meets them.
    trunk : tuple of Part or None, length stations + 1
        Before each station, and behind the last; None where nothing lies there.
    ending : str
        The op that makes the answer from class scores, as `endings` names it: an exit has to answer in the same way.
    """

    main: str
    last: str
    accepts: Accepted
    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]
    stations: tuple[Station, ...]
    trunk: tuple[Part | None, ...]
    ending: str

    @property
    def points(self) -> dict[str, tuple[str, ...]]:
        """Point -> its options, as an inference meets them."""
        return {station.span.name: tuple(way.choice.name for way in station.ways) for station in self.stations}

    def parts(self) -> Iterator[Part]:
        """Every graph, those of all options included."""
        yield from (part for part in self.trunk if part is not None)
        for station in self.stations:
            yield from (way.part for way in station.ways if way.part is not None)


def ranges_of(
    model: onnx.ModelProto, spans: Sequence[Span], samples: Sequence[Mapping[str, Array]], threads: int
) -> dict[str, dict[str, Range]]:
    """Ranges of what is rounded in each region that may run in int8, over sampled inputs of the model.

    Raises
    ------
    HookError
        Where there are such regions, and no samples.
    """
    wiring, first = wired(model), cuts(model)[0]
    found = {}
    for span in spans:
        if all(choice.level != INT8 for choice in span.choices):
            continue
        if not samples:
            raise HookError(f"samples of the model's inputs are needed to run {span.name!r} in int8, but none came: "
                            "give some, or mount it without int8")  # fmt: skip
        region = piece(wiring, span.start, span.end)
        found[span.name] = calibrated(region, _before(wiring, first, span.start, region, samples, threads))
    return found


def _before(
    wiring: Wiring,
    first: Cut,
    start: Cut,
    region: onnx.ModelProto,
    samples: Sequence[Mapping[str, Array]],
    threads: int,
) -> Iterator[dict[str, Array]]:
    """What a region reads, for each sample."""
    read = [value.name for value in region.graph.input]
    if start.position == first.position:
        yield from ({name: sample[name] for name in read} for sample in samples)
        return
    session = opened(piece(wiring, first, start), threads)
    made = [value.name for value in session.get_outputs()]
    wanted = [value.name for value in session.get_inputs()]
    for sample in samples:
        values = dict(sample) | dict(zip(made, session.run(made, {name: sample[name] for name in wanted}), strict=True))
        yield {name: values[name] for name in read}


def built(
    model: onnx.ModelProto,
    spans: Sequence[Span],
    ranges: Mapping[str, Mapping[str, Range]] | None = None,
    outside: str = INPUT,
    threads: int = 1,
    providers: Sequence[str] = CPU,
) -> Program:
    """Open the graphs of a chain; the model is not needed any more afterwards.

    Parameters
    ----------
    model : ModelProto
        Tidied, with its weights.
    spans : sequence of Span
        As an inference meets them, none overlapping another.
    ranges : mapping, optional
        Of regions that may run in int8, as `ranges_of` finds them.
    outside : str
        What regions that are computed on patches hand on elsewhere: one of `OUTSIDES`.
    threads : int
    providers : sequence of str

    Raises
    ------
    ModelError
        Where the runtime cannot load a graph.
    SurgeryError
        Where a region cannot be altered as asked.
    """
    wiring, places = wired(model), cuts(model)

    def trunk_between(start: Cut, end: Cut) -> Part | None:
        if start.position == end.position:
            return None
        return Part(opened(piece(wiring, start, end), threads, providers), start.tensor, end.tensor)

    stations: list[Station] = []
    trunk: list[Part | None] = []
    here = places[0]
    for number, span in enumerate(spans):
        trunk.append(trunk_between(here, span.start))
        here = span.end
        ways = []
        region = None if span.is_exit else piece(wiring, span.start, span.end)
        for choice in span.choices:
            ways.append(_way(region, span, choice, (ranges or {}).get(span.name), outside, threads, providers))
        stations.append(Station(number, span, tuple(ways)))
    trunk.append(trunk_between(here, places[-1]))
    inputs = {name: wiring.spec(name) for name in wiring.inputs}
    outputs = {name: wiring.spec(name) for name in wiring.outputs}
    main, last = places[0].tensor, places[-1].tensor
    ending = ending_of(wiring, last)
    return Program(main, last, Accepted(inputs), inputs, outputs, tuple(stations), tuple(trunk), ending)


def _way(
    region: onnx.ModelProto | None,
    span: Span,
    choice: Choice,
    ranges: Mapping[str, Range] | None,
    outside: str,
    threads: int,
    providers: Sequence[str],
) -> Way:
    if region is None or choice.level in (EXIT, SKIP):
        return Way(choice, None)
    n_patches, onto_last = 0, False
    graph: onnx.ModelProto | None
    if choice.level == PATCHES:
        height, width = span.start.shape[2:]
        n_patches, onto_last = counts(height, width, choice.granularity, choice.share), outside == LAST
        graph = computed_on(region, choice.granularity, n_patches, onto_last)
    elif choice.level == INT8:
        graph = in_int8(region, ranges)
    else:
        graph = altered(region, choice)
    assert graph is not None
    part = Part(opened(graph, threads, providers), span.start.tensor, span.end.tensor)
    return Way(choice, part, n_patches, onto_last)
