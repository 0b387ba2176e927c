"""A network that a gate decides for while it runs: trunk pieces, gate networks and options as sessions, built once.

Where a region is skipped, what reads behind it reads the region's start: the same session, bound to another buffer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import onnx
from decide_truth import Network

from latpred.chained import Piece
from latpred.decide.gate import Gate
from latpred.decide.options import KEPT, altered
from latpred.decide.plan import Plan
from latpred.decide.table import Table
from latpred.surgery.cuts import Cut
from latpred.surgery.exits import head
from latpred.surgery.gates import gate_network
from latpred.surgery.pieces import piece


class Stage:
    """A piece that reads its main tensor from any of several buffers.

    Parameters
    ----------
    model : ModelProto
    start : Cut
        Where it reads.
    sources : iterable of str
        Names of the buffers that may hold that tensor.
    network : Network
    """

    def __init__(self, model: onnx.ModelProto, start: Cut, sources: Iterable[str], network: Network) -> None:
        first, *others = sorted(sources)
        self._piece = Piece(model, network.buffers, network.threads, {start.tensor: first})
        self._run = self._piece.session.run_with_iobinding
        self._bindings = {first: self._piece.binding}
        self._bindings |= {name: self._piece.bound({start.tensor: name}) for name in others}

    def run(self, source: str) -> None:
        """Once, reading from the buffer of that name."""
        self._run(self._bindings[source])


@dataclass(frozen=True, slots=True)
class Step:
    """A decision point, and the trunk before it; None where nothing runs."""

    trunk: Stage | None
    start: str  # tensor that the trunk makes
    looks: Stage | None
    options: tuple[Stage | None, ...]
    end: str  # tensor that the options make
    ends: tuple[bool, ...]


class Run(NamedTuple):
    """One inference."""

    options: tuple[int, ...]
    latency_s: float
    deciding_s: float  # what decide and observe took of it


class Gated:
    """The chain of pieces of a network's mounted points.

    Parameters
    ----------
    network : Network
    plan : Plan
        With gate networks as `latpred.plan` adds them.
    table : Table
        Of the plan; it holds the options that are worth having.
    """

    def __init__(self, network: Network, plan: Plan, table: Table) -> None:
        places = network.places
        self._input = places[0].tensor
        at, sources = places[0], {self._input}
        self._steps: list[Step] = []
        for number, name in enumerate(table.points):
            one = plan[name]
            point = one.point
            assert point is not None
            trunk = _between(network, at, point.start, sources)
            sources = sources if trunk is None else {point.start.tensor}
            looks = None
            options: list[Stage | None]
            if point.is_exit:
                classes = int(network.whole.session.get_outputs()[0].shape[1])
                answer = Stage(head(point.start, classes, confident=True), point.start, sources, network)
                # A head that says how sure it is has answered before the decision.
                looks, options = (answer, [None, None]) if one.gate_s > 0 else (None, [None, answer])
            else:
                if one.gate_s > 0:
                    looks = Stage(gate_network(point.start, len(one.options)), point.start, sources, network)
                region = piece(network.model, point.start, point.end)
                choices = {choice.name: choice for choice in (KEPT, *point.choices)}
                graphs = [altered(region, choices[option]) for option in table.options[number]]
                options = [None if graph is None else Stage(graph, point.start, sources, network) for graph in graphs]
                sources = {point.end.tensor} | (sources if None in options else set())
            first = int(table.first_option[number])
            ends = tuple(bool(ends) for ends in table.ends[first : first + len(options)])
            step = Step(trunk, point.start.tensor, looks, tuple(options), point.end.tensor, ends)
            self._steps.append(step)
            at = point.end
        self._last = _between(network, at, places[-1], sources)

    def infer(self, gate: Gate, told: bool = True) -> Run:
        """One inference; `told` says whether the gate is to know how long what it chose took."""
        clock = time.perf_counter
        deciding_s = 0.0
        options = []
        source = self._input
        start_s = clock()
        gate.begin()
        for number, step in enumerate(self._steps):
            if step.trunk is not None:
                step.trunk.run(source)
                source = step.start
            if step.looks is not None:
                step.looks.run(source)
            looked_s = clock()
            option = gate.decide(number)
            decided_s = clock()
            stage = step.options[option]
            if stage is not None:
                stage.run(source)
                source = step.end
            done_s = clock()
            if told:
                gate.observe(number, done_s - decided_s)
            deciding_s += clock() - done_s + decided_s - looked_s
            options.append(option)
            if step.ends[option]:
                break
        else:
            if self._last is not None:
                self._last.run(source)
        latency_s = clock() - start_s
        if told:
            gate.finish(latency_s)
        return Run(tuple(options), latency_s, deciding_s)


def _between(network: Network, start: Cut, end: Cut, sources: Iterable[str]) -> Stage | None:
    if start.position == end.position:
        return None
    return Stage(piece(network.model, start, end), start, sources, network)
