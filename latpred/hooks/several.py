"""The choice among whole models, or among resolutions of one, under one deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from latpred.chained import opened
from latpred.decide.observation import Observation
from latpred.errors import HookError
from latpred.hooks.answer import HOPELESS_S, Answer, Ask, Heard
from latpred.hooks.inputs import Accepted
from latpred.hooks.sides import Side
from latpred.hooks.terms import Deciding
from latpred.surgery.wiring import wired
from latpred.tensors import Array

__all__ = ["Inputs", "Several", "SeveralStream", "Whole", "whole_of"]

Inputs = Mapping[str, Array] | Callable[[str], Mapping[str, Array]]


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """One of the models, ready to run."""

    name: str
    session: Any
    accepts: Accepted
    outputs: tuple[str, ...]


def whole_of(name: str, model: onnx.ModelProto, threads: int, providers: Sequence[str]) -> Whole:
    """Open a tidied model; raises ModelError where the runtime cannot load it."""
    wiring = wired(model)
    accepts = Accepted({name: wiring.spec(name) for name in wiring.inputs})
    return Whole(name, opened(model, threads, providers), accepts, wiring.outputs)


@dataclass(frozen=True, slots=True, eq=False)
class Several:
    """All that can be chosen.

    Attributes
    ----------
    point : str
        What the decision is called.
    models : tuple of Whole
        In the order of the table's options.
    """

    point: str
    models: tuple[Whole, ...]

    @property
    def points(self) -> dict[str, tuple[str, ...]]:
        """The decision and its options."""
        return {self.point: tuple(model.name for model in self.models)}


class SeveralStream:
    """Runs one inference after another.

    Parameters
    ----------
    program : Several
    sides : mapping
        Of none: time decides.
    deciding : Deciding
    """

    def __init__(self, program: Several, sides: Mapping[tuple[str, str], Side], deciding: Deciding) -> None:
        gate = deciding.gate()
        if gate is None or sides:
            raise HookError("a choice among models needs a table that knows them all, and no side network: attach anew")
        self._program, self._deciding, self._terms = program, deciding, deciding.terms()
        self._gate = gate

    def renew(self) -> None:
        """Plan anew with what was learned of models."""
        self._gate.renew()
        self._terms = self._deciding.terms(self._gate.table)

    def run(self, ask: Ask) -> Heard:
        """One inference; inputs are asked for by the name of what was chosen where they are given as a function."""
        clock = time.perf_counter
        start_s = ask.begun_s or clock()
        gate = self._gate
        gate.deadline_s = max(ask.deadline_s - (clock() - start_s), HOPELESS_S)
        gate.begin()
        slowdown = gate.slowdown
        point = self._program.point
        observation = None
        if ask.recorded or self._terms.asked:
            observation = Observation(
                point, latency_s=0.0, predicted_s=0.0, clock_hz=gate.frequency_hz, sensors=ask.sensors
            )
        forced = ask.forced.get(0)
        option = gate.decide(0, observation) if forced is None else forced
        chosen = self._program.models[option]
        given = ask.inputs(chosen.name) if callable(ask.inputs) else ask.inputs
        inputs = chosen.accepts.checked(given)
        at_s = clock()
        outputs = dict(zip(chosen.outputs, chosen.session.run(list(chosen.outputs), inputs), strict=True))
        now_s = clock()
        cost_s = self._terms.costs_s[0][option]
        if forced is None:
            gate.observe(0, now_s - at_s)
            gate.finish(now_s - start_s)
        answer = Answer(outputs, {point: chosen.name}, now_s - start_s, cost_s * slowdown, slowdown)
        observations = (observation,) if observation is not None and ask.recorded else ()
        return Heard(inputs, answer, observations, {}, {point: (now_s - at_s, cost_s)})
