"""One stream of inferences through a program: its buffers, its bindings, its gate. Used by one thread at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latpred.chained import ORT_DTYPES, aligned, bound
from latpred.decide.observation import Observation
from latpred.decide.points import EXIT
from latpred.hooks.answer import HOPELESS_S, Answer, Ask, Heard
from latpred.hooks.clock import clock_hz
from latpred.hooks.endings import answered
from latpred.hooks.looks import Look, share_of_zeros
from latpred.hooks.masks import active, pooled_over_patches
from latpred.hooks.memory import resident_bytes
from latpred.hooks.program import Part, Program, Station, Way
from latpred.hooks.sides import HEAD, Side, mask_role
from latpred.hooks.terms import Deciding
from latpred.surgery.patches import ACTIVE_PATCHES, OUTSIDE
from latpred.tensors import Array, Spec

__all__ = ["Stream"]

ASKED_S = 1.0


class _Slots:
    """Two places for the main tensor, each as large as the largest."""

    def __init__(self, size_bytes: int) -> None:
        self._raw = tuple(aligned((size_bytes,), np.dtype(np.uint8)) for _ in range(2))

    def views(self, spec: Spec) -> tuple[Array, Array]:
        """A tensor in either slot."""
        first, second = (raw[: spec.size_bytes].view(spec.dtype).reshape(spec.shape) for raw in self._raw)
        return first, second


@dataclass(frozen=True, slots=True)
class _Machine:
    """What the system says of the process and the processor."""

    resident_bytes: int | None = None
    clock_hz: float | None = None


class _Stop:
    """A station on this stream's buffers."""

    def __init__(self, station: Station, sides: Mapping[tuple[str, str], Side], slots: _Slots) -> None:
        span = station.span
        self.number, self.name, self.station = station.number, span.name, station
        self.here, self.there = slots.views(span.start.spec), slots.views(span.end.spec)
        self.looks = {role: Look(side, self.here) for (point, role), side in sides.items() if point == span.name}
        self.first_look = self.looks.get(span.looks)
        self.last = np.zeros_like(self.there[0]) if station.remembers else None
        self.knows_last = False
        self.active = [np.zeros(way.n_patches, np.int64) for way in station.ways]
        self.pairs: list[tuple[Any, Any] | None] = []


class Stream:
    """Runs one inference after another.

    Parameters
    ----------
    program : Program
    sides : mapping of (str, str) to Side
        By point and role.
    deciding : Deciding

    Attributes
    ----------
    gate : Gate or None
        None where there is nothing to decide. Another one may take its place between two runs.
    """

    def __init__(self, program: Program, sides: Mapping[tuple[str, str], Side], deciding: Deciding) -> None:
        self.gate = deciding.gate()
        self._program, self._deciding, self._terms = program, deciding, deciding.terms()
        self._asked_s, self._machine = -ASKED_S, _Machine()
        entry = program.inputs[program.main]
        mains = [spec for part in program.parts() for spec in _ends_of(part)]
        self._slots = _Slots(max(spec.size_bytes for spec in [entry, *mains]))
        self._fixed: dict[str, Array] = {}
        self._trunk = [None if part is None else self._pair(part, {}) for part in program.trunk]
        self._stops = [_Stop(station, sides, self._slots) for station in program.stations]
        for stop in self._stops:
            remembered = {} if stop.last is None else {OUTSIDE: stop.last}
            stop.pairs = [
                None if way.part is None else self._pair(way.part, {ACTIVE_PATCHES: chosen, **remembered})
                for way, chosen in zip(stop.station.ways, stop.active, strict=True)
            ]
        self._entry = self._slots.views(entry)
        self._carried = [name for name in program.inputs if name in self._fixed]
        self._results = self._slots.views(program.outputs[program.last])
        ends = {part.end for part in program.parts()} - {program.last}
        self._heads = tuple(
            (stop.name, stop.looks[HEAD].side) for stop in self._stops if stop.station.span.is_exit
        )  # fmt: skip
        self._unready: tuple[str, ...] = ()
        self._plan_with_heads_as_they_are()  # now, and not in the first run
        # Outputs that are main tensors on the way: they are overwritten before the inference ends.
        self._early = {name: self._slots.views(spec) for name, spec in program.outputs.items() if name in ends}

    def run(self, ask: Ask) -> Heard:
        """One inference; inputs must have the shapes and dtypes that the program declares, without gaps."""
        clock = time.perf_counter
        start_s = ask.begun_s or clock()
        self._plan_with_heads_as_they_are()
        gate, terms = self.gate, self._terms
        learns = gate is not None and not ask.forced
        observes = ask.recorded or terms.asked
        slowdown = 1.0
        if gate is not None:
            gate.deadline_s = max(ask.deadline_s - (clock() - start_s), HOPELESS_S)
            gate.begin()
            slowdown = gate.slowdown
        machine = self._machine_now(start_s) if observes else _Machine()
        outputs: dict[str, Array] = {}
        inputs = self._program.accepts.checked(ask.inputs)
        slot = self._entered(inputs, outputs)
        nominal_s = terms.trunk_s[0]
        decisions: dict[str, str] = {}
        observations: list[Observation] = []
        tensors: dict[str, Array] = {}
        times_s: dict[str, tuple[float, float]] = {}
        left = False
        for stop, trunk, trunk_s in zip(self._stops, self._trunk[1:], terms.trunk_s[1:], strict=True):
            number = stop.number
            if stop.name in ask.wanted:
                tensors[stop.name] = stop.here[slot].copy()
            if observes:
                observation = self._observed(stop, slot, ask, start_s, nominal_s * slowdown, machine)
                observations.append(observation)
                option = self._decided(stop, ask.forced, observation)
            else:
                option = self._glanced(stop, slot, ask.forced)
            way = stop.station.ways[option]
            at_s = clock()
            decisions[stop.name] = way.choice.name
            if way.choice.level == EXIT:
                outputs[self._program.last] = self._left(stop, slot)
                left = True
            elif way.part is not None:
                slot = self._took(stop, option, way, slot, ask.saliency)
            if stop.last is not None:
                np.copyto(stop.last, stop.there[slot])
                stop.knows_last = True
            took_s, cost_s = clock() - at_s, terms.costs_s[number][option]
            nominal_s += cost_s
            if observes:
                times_s[stop.name] = took_s, cost_s
            if learns and gate is not None:
                gate.observe(number, took_s)
            if left:
                break
            if self._early:
                self._keep(stop.station.span.end.tensor, slot, outputs)
            if trunk is not None:
                part = self._program.trunk[number + 1]
                assert part is not None
                part.session.run_with_iobinding(trunk[slot])
                slot = 1 - slot
                if self._early:
                    self._keep(part.end, slot, outputs)
            nominal_s += trunk_s
        if not left:
            for name in self._program.outputs:
                if name not in outputs:
                    outputs[name] = (self._fixed[name] if name in self._fixed else self._results[slot]).copy()
        latency_s = clock() - start_s
        if learns and gate is not None:
            gate.finish(latency_s)
        answer = Answer(outputs, decisions, latency_s, nominal_s * slowdown, slowdown)
        return Heard(inputs, answer, tuple(observations), tensors, times_s)

    def _machine_now(self, now_s: float) -> _Machine:
        """Of a second ago at most: asking the system may take as long as a small network."""
        if now_s > self._asked_s + ASKED_S:
            self._asked_s, self._machine = now_s, _Machine(resident_bytes(), clock_hz())
        return self._machine

    def renew(self) -> None:
        """Plan anew with what was learned of options."""
        if self.gate is not None:
            self._plan_with_heads_as_they_are()
            self.gate.renew()
            self._terms = self._deciding.terms(self.gate.table)

    def _plan_with_heads_as_they_are(self) -> None:
        """Count on no exit whose head nobody trained; where one was, plan anew."""
        if self.gate is None:
            return
        unready = tuple(name for name, side in self._heads if not side.current.trained)
        if unready != self._unready:
            self._unready = unready
            self.gate.renew(self._deciding.utilities_without(unready))

    def _entered(self, inputs: Mapping[str, Array], outputs: dict[str, Array]) -> int:
        """Run up to the first station; the slot of the main tensor."""
        for name in self._carried:
            np.copyto(self._fixed[name], inputs[name])
        main = inputs[self._program.main]
        part, pair = self._program.trunk[0], self._trunk[0]
        if part is None or pair is None:
            np.copyto(self._entry[0], main)
            return 0
        binding = pair[1]  # reads where the caller's array lies, and writes to the first slot
        binding.bind_cpu_input(part.start, main)
        part.session.run_with_iobinding(binding)
        if self._early:
            self._keep(part.end, 0, outputs)
        return 0

    def _observed(
        self, stop: _Stop, slot: int, ask: Ask, start_s: float, predicted_s: float, machine: _Machine
    ) -> Observation:
        """All that is known at a point, what its side network says included."""
        look = stop.first_look or (stop.looks.get(HEAD) if ask.recorded else None)
        features: dict[str, Any] = {}
        if look is not None:
            look.run(slot)
            features |= look.features(copied=ask.recorded)
        if ask.recorded:
            features["zeros"] = share_of_zeros(stop.here[slot])
        return Observation(
            stop.name,
            features,
            time.perf_counter() - start_s,
            predicted_s,
            machine.resident_bytes,
            machine.clock_hz or (self.gate.frequency_hz if self.gate is not None else None),
            ask.sensors,
            None if look is None or look is not stop.first_look else self._utilities(stop, look),
        )

    def _glanced(self, stop: _Stop, slot: int, forced: Mapping[int, int]) -> int:
        """The option, where nobody else wants to know what was seen: between graphs, each object made costs a lot."""
        look = stop.first_look
        if look is None or stop.number in self._terms.not_worth:
            return self._decided(stop, forced, None)
        look.run(slot)
        if stop.number in forced:
            return forced[stop.number]
        utilities = self._utilities(stop, look)
        return self._decided(stop, forced, None if utilities is None else Observation(stop.name, utilities=utilities))

    def _utilities(self, stop: _Stop, look: Look) -> list[float] | None:
        """What each option is worth, as a side network says; None where it is a head that nobody trained."""
        if look.side.role != HEAD:
            return look.utilities()
        if not look.network.trained:
            return None
        return self._terms.stakes[stop.number].utilities(look.confidence, self._terms.tolerance)

    def _decided(self, stop: _Stop, forced: Mapping[int, int], observation: Observation | None) -> int:
        option = forced.get(stop.number)
        if option is not None:
            return option
        if stop.station.span.is_exit and not self._knows_answer(stop):
            return 0  # nobody has said yet what the head shall answer
        assert self.gate is not None
        return self.gate.decide(stop.number, observation)

    def _knows_answer(self, stop: _Stop) -> bool:
        look = stop.looks[HEAD]
        network = look.network if look is stop.first_look else look.side.current  # what has looked, or is about to
        return network.trained

    def _left(self, stop: _Stop, slot: int) -> Array:
        """A head's answer."""
        look = stop.looks[HEAD]
        if look is not stop.first_look:
            look.run(slot)
        answer = answered(self._program.ending, look.scores, look.probabilities)
        return answer.astype(self._program.outputs[self._program.last].dtype)

    def _took(self, stop: _Stop, option: int, way: Way, slot: int, saliency: Array | None) -> int:
        """Run an option's graph; the slot of the main tensor behind it."""
        part, pair = way.part, stop.pairs[option]
        assert part is not None
        assert pair is not None
        if way.n_patches:
            stop.active[option][...] = active(self._patch_scores(stop, way, slot, saliency), way.n_patches)
            if stop.last is not None and not stop.knows_last:
                np.copyto(stop.last, stop.here[slot])
        part.session.run_with_iobinding(pair[slot])
        return 1 - slot

    def _patch_scores(self, stop: _Stop, way: Way, slot: int, saliency: Array | None) -> Array:
        granularity = way.choice.granularity
        if saliency is not None:
            height, width = stop.station.span.start.shape[2:]
            return pooled_over_patches(saliency, height, width, granularity)
        look = stop.looks[mask_role(granularity)]
        look.run(slot)
        scores: Array = look.scores[0]
        return scores

    def _keep(self, name: str, slot: int, outputs: dict[str, Array]) -> None:
        if name in self._early:
            outputs[name] = self._early[name][slot].copy()

    def _pair(self, part: Part, own: Mapping[str, Array]) -> tuple[Any, Any]:
        """Bindings of a part, by the slot that it reads."""
        start, end = (self._slots.views(spec) for spec in _ends_of(part))
        arrays = dict(own)
        for value in (*part.session.get_inputs(), *part.session.get_outputs()):
            if value.name in (part.start, part.end) or value.name in own:
                continue
            if value.name not in self._fixed:
                self._fixed[value.name] = aligned(tuple(value.shape), np.dtype(ORT_DTYPES[value.type]))
            arrays[value.name] = self._fixed[value.name]
        first, second = (
            bound(part.session, arrays | {part.start: start[slot], part.end: end[1 - slot]}) for slot in range(2)
        )
        return first, second


def _ends_of(part: Part) -> Sequence[Spec]:
    """What the main tensor is before and behind a part."""
    values = {value.name: value for value in (*part.session.get_inputs(), *part.session.get_outputs())}
    found = []
    for name in (part.start, part.end):
        value = values[name]
        found.append(Spec(tuple(value.shape), np.dtype(ORT_DTYPES[value.type]).name))
    return found
