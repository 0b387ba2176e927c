"""Deadlines kept and utility reached by gates, in real inferences, while load on the other cores comes and goes.

    python benchmarks/decide_deadlines.py FOLDER_OR_MODEL... [--device local] [--home DIR] [--runs N] [--save FILE]
    python benchmarks/decide_deadlines.py --measured FILE

Each network runs with its hooks on, mounted by its plan, with random weights and gates and heads that were not trained:
options are worth what the table says, and time alone decides. The deadline is a share of what the network as it is
takes without load, so that something must be given up for it. Policies take turns, inference by inference, in an order
drawn anew for each round, so that all meet the same load; the first 30 inferences of each do not count. Beside gates of
several confidences there are a fixed margin and the plain mean, neither of which learns from what it sees, and keeping
everything.

The oracle knows, for each inference, the factor by which it was slower than predicted, and takes the most useful of all
ways that would then have been in time; where even the fastest would not, the inference was not possible and does not
count. Utility is what is gained above the fastest way, over what the oracle gains: `utility` counts late answers as
well, `in time` gives nothing for them. `steady` is what the best single way would have reached that meets the share of
deadlines asked for: it knows how slow how often, but not when.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from coverage import models
from neighbour import Schedule, neighbour
from tabulate import tabulate

import latpred
from latpred.chained import Buffers, Piece
from latpred.collect.ort import spread_cores
from latpred.collect.weights import fill_weights
from latpred.decide.chain import chain_of
from latpred.decide.costs import KEEP
from latpred.decide.forecast import followed
from latpred.decide.gate import Gate
from latpred.decide.observation import Observation
from latpred.decide.policy import pareto
from latpred.decide.table import Table
from latpred.errors import HookError, LatpredError
from latpred.hooks import Hooked, attach
from latpred.hooks.answer import Answer, Ask
from latpred.hooks.sides import HEAD
from latpred.hooks.stream import Stream
from latpred.predictor import Predictor
from latpred.surgery.tidy import tidied
from latpred.tensors import Array

ASKED = (("optimal", 0.90), ("optimal", 0.95), ("optimal", 0.99), ("safe-greedy", 0.95))
MARGINS = (("fixed margin 1.3", 1.3), ("mean only", 1.0))
EVERYTHING = "keep everything"
EVEN = 0.5  # the confidence of a gate that keeps no margin: half of all errors lie on either side of the mean
WARM_UP = 30
RENEWED = 25  # inferences after which a gate plans anew with what it learned, between two inferences
UNALTERED_S = 1.0  # for which the network as it is runs before its deadline is set
LEAST_RUNS = 20
CALIBRATED = 4  # random inputs, for regions in int8


@dataclass(frozen=True, slots=True)
class Inference:
    """One inference under a policy."""

    policy: str
    loaded: bool
    latency_s: float
    predicted_s: float  # of the way that was taken
    utility: float
    deciding_s: float  # what decide and observe took
    decisions: int

    @property
    def factor(self) -> float:
        """Actual over predicted time."""
        return self.latency_s / self.predicted_s


@dataclass(frozen=True, slots=True)
class Trial:
    """All inferences of one network.

    Attributes
    ----------
    network : str
    unaltered_s, predicted_s : float
        Latency of the network as it is, without load.
    deadline_s : float
    ways : sequence of (float, float)
        Predicted latency in s and utility of all ways that no other one beats, from the fastest to the most useful.
    inferences : sequence of Inference
    """

    network: str
    unaltered_s: float
    predicted_s: float
    deadline_s: float
    ways: Sequence[tuple[float, float]]
    inferences: Sequence[Inference]

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Trial:
        """From what `dataclasses.asdict` made of it."""
        return cls(**saved | {"inferences": [Inference(**one) for one in saved["inferences"]]})


def oracle(ways: Sequence[tuple[float, float]], factor: float, deadline_s: float) -> float | None:
    """Utility of the best way that would have been in time; None where there was none.

    Examples
    --------
    >>> ways = [(0.002, 0.1), (0.004, 0.8)]
    >>> [oracle(ways, factor, 0.006) for factor in (1.5, 1.6, 3.1)]
    [0.8, 0.1, None]
    """
    place = bisect_right(ways, deadline_s / factor, key=itemgetter(0))
    return ways[place - 1][1] if place else None


def padded(table: Table, margin: float) -> Table:
    """The same with all times longer by a factor: what fits then fits with that margin."""
    return replace(
        table,
        mean_s=margin * table.mean_s,
        trunk_mean_s=margin * table.trunk_mean_s,
        switch_s=margin * table.switch_s,
        decide_s=margin * table.decide_s,
    )


class Watched:
    """A gate whose time is taken, and that is not told how long things took where it is not to learn."""

    def __init__(self, gate: Gate, told: bool) -> None:
        self.gate, self.told, self.deciding_s = gate, told, 0.0
        self.frequency_hz, self.slowdown = gate.frequency_hz, 1.0

    @property
    def deadline_s(self) -> float:
        """Of the inferences to come."""
        return self.gate.deadline_s

    @deadline_s.setter
    def deadline_s(self, deadline_s: float) -> None:
        self.gate.deadline_s = deadline_s

    def begin(self) -> None:
        """An inference begins."""
        self.deciding_s = 0.0
        self.gate.begin()

    def decide(self, point: int, observation: Observation | None = None) -> int:
        """As the gate does."""
        start_s = time.perf_counter()
        option = self.gate.decide(point, observation)
        self.deciding_s += time.perf_counter() - start_s
        return option

    def observe(self, point: int, took_s: float) -> None:
        """As the gate does, where it is told."""
        if self.told:
            start_s = time.perf_counter()
            self.gate.observe(point, took_s)
            self.deciding_s += time.perf_counter() - start_s

    def finish(self, latency_s: float) -> None:
        """As the gate does, where it is told."""
        if self.told:
            self.gate.finish(latency_s)


@dataclass(frozen=True, slots=True)
class Policy:
    """Who decides, and whether it learns how long things took."""

    name: str
    gate: Gate
    told: bool


def asked_of(kind: str, confidence: float) -> str:
    return f"{kind} {100 * confidence:g} %"


def policies(table: Table, deadline_s: float, clock: Callable[[], float] | None = time.perf_counter) -> list[Policy]:
    """Each with a gate of its own."""
    gates = [
        Policy(asked_of(kind, confidence), table.gate(deadline_s, confidence, policy=kind, clock=clock), True)
        for kind, confidence in ASKED
    ]
    blind = [Policy(name, padded(table, margin).gate(deadline_s, EVEN, clock=clock), False) for name, margin in MARGINS]
    everything = table.gate(deadline_s, EVEN, policy=lambda _: KEEP, clock=clock)
    return [*gates, *blind, Policy(EVERYTHING, everything, False)]


def inferences_of(
    stream: Stream, ask: Ask, table: Table, chosen: Sequence[Policy], rounds: int, schedule: Schedule, seed: int
) -> Iterator[Inference]:
    """Policies in turns, on the same buffers; what they took, and what had been predicted for it."""
    rng = np.random.default_rng(seed)
    watched = [Watched(policy.gate, policy.told) for policy in chosen]
    taken: list[tuple[Policy, bool, Answer, float]] = []
    gc.collect()
    gc.disable()  # pauses would come from what is recorded here
    try:
        for turn in range(WARM_UP + rounds):
            for policy in chosen if turn % RENEWED == RENEWED - 1 else ():
                if policy.told:
                    policy.gate.renew()
            for number in rng.permutation(len(chosen)):
                stream.gate, loaded = watched[number], schedule.is_on(time.monotonic())
                answer = stream.run(ask).answer
                if turn >= WARM_UP:
                    taken.append((chosen[number], loaded, replace(answer, outputs={}), watched[number].deciding_s))
    finally:
        gc.enable()
    chain = chain_of(table, table.utility)
    for policy, loaded, answer, deciding_s in taken:
        options = [policy.gate.options[point].index(option) for point, option in answer.decisions.items()]
        path = followed(table, chain, lambda number, _, options=options: options[number])  # type: ignore[misc]
        utility = float(sum(table.utility[table.first_option[: len(options)] + np.array(options)]))
        yield Inference(
            policy.name, loaded, answer.latency_s, path.mean_s, utility, deciding_s, len(options)
        )  # fmt: skip


def unaltered_s(network: Piece) -> float:
    """Latency of the network as it is, as one session."""
    times_s: list[float] = []
    end_s = time.perf_counter() + UNALTERED_S
    while time.perf_counter() < end_s or len(times_s) < LEAST_RUNS:
        start_s = time.perf_counter()
        network.run()
        times_s.append(time.perf_counter() - start_s)
    return statistics.median(times_s)


def attached(model: onnx.ModelProto, predictor: Predictor, inputs: Sequence[dict[str, Array]]) -> Hooked:
    """The hooks that the plan mounts, with heads that may answer although they know nothing."""
    hooked = attach(model, predictor, samples=inputs)
    for (point, role), side in hooked.sides.items():
        if role == HEAD and side.weights is not None:
            hooked.replace(point, role, side.weights)
    return hooked


def drawn(network: Piece, seed: int) -> dict[str, Array]:
    """Random inputs of a network."""
    buffers = Buffers(seed)
    return {value.name: buffers.of(value) for value in network.session.get_inputs()}


def trial_of(path: Path, predictor: Predictor, options: argparse.Namespace, cores: set[int]) -> Trial:
    """One network, built and run."""
    model = fill_weights(onnx.load(path, load_external_data=False), path.parent)
    network = Piece(tidied(model), Buffers(), predictor.estimator.device.threads)
    took_s = unaltered_s(network)
    inputs = [drawn(network, seed) for seed in range(CALIBRATED)]
    with attached(model, predictor, inputs) as hooked:
        table, stream = hooked.table, hooked.stream()
        if table is None or not isinstance(stream, Stream):
            raise HookError("a network with points that pay is needed, but nothing was mounted: name another")
        ask = Ask(inputs[0], options.deadline * took_s)
        with neighbour(cores, options.seed) as schedule:
            chosen = policies(table, ask.deadline_s)
            found = list(inferences_of(stream, ask, table, chosen, options.runs, schedule, options.seed))
        ways = [(way.latency_s, way.utility) for way in pareto(table)]
        return Trial(path.stem, took_s, hooked.latency_s, ask.deadline_s, ways, found)


def steady(ways: Sequence[tuple[float, float]], factors: Sequence[float], deadline_s: float, share: float) -> float:
    """Utility of the best single way that would have been in time in a share of the inferences, all of them possible.

    Examples
    --------
    >>> ways = [(0.002, 0.1), (0.004, 0.8)]
    >>> [steady(ways, [1.0, 1.1, 1.2, 2.9], 0.006, share) for share in (0.75, 0.9)]
    [0.8, 0.1]
    """
    slow = sorted(factors)[math.ceil(share * len(factors)) - 1]
    best = oracle(ways, slow, deadline_s)
    assert best is not None
    return best


@dataclass(frozen=True, slots=True)
class Figures:
    """What one policy reached; shares are of inferences in which the deadline could be met."""

    inferences: int
    possible: float
    met: float
    met_resting: float
    met_loaded: float
    error: float  # binomial standard error of `met`
    utility: float
    in_time: float
    steady: float
    decision_s: float
    deciding: float  # share of the inference


def figures(trials: Sequence[Trial], policy: str, confidence: float | None = None) -> Figures:
    """Over all inferences of some trials under one policy; `steady` where it was asked for a share of deadlines."""
    met: list[bool] = []
    loaded: list[bool] = []
    decision_s, deciding = [], []
    reached = reached_in_time = reached_steady = best = 0.0
    for trial in trials:
        least = trial.ways[0][1]
        factors = []
        for one in trial.inferences:
            if one.policy != policy:
                continue
            decision_s.append(one.deciding_s / one.decisions)
            deciding.append(one.deciding_s / one.latency_s)
            known = oracle(trial.ways, one.factor, trial.deadline_s)
            if known is None:
                continue
            factors.append(one.factor)
            met.append(one.latency_s <= trial.deadline_s)
            loaded.append(one.loaded)
            reached += one.utility - least
            reached_in_time += met[-1] * (one.utility - least)
            best += known - least
        if confidence is not None and factors:
            reached_steady += len(factors) * (steady(trial.ways, factors, trial.deadline_s, confidence) - least)
    share = _share(met)
    return Figures(
        len(deciding),
        _ratio(len(met), len(deciding)),
        share,
        _share([ok for ok, busy in zip(met, loaded, strict=True) if not busy]),
        _share([ok for ok, busy in zip(met, loaded, strict=True) if busy]),
        (share * (1.0 - share) / len(met)) ** 0.5 if met else float("nan"),
        _ratio(reached, best),
        _ratio(reached_in_time, best),
        _ratio(reached_steady, best) if confidence is not None else float("nan"),
        statistics.median(decision_s),
        statistics.median(deciding),
    )


def _share(met: Sequence[bool]) -> float:
    return _ratio(sum(met), len(met))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


ORDER = (*(asked_of(kind, confidence) for kind, confidence in ASKED), *(name for name, _ in MARGINS), EVERYTHING)
HEADER = (
    "policy", "inferences", "possible %", "met %", "off", "+-", "resting", "loaded",
    "utility %", "in time %", "steady %", "decision us", "of the run %",
)  # fmt: skip


def report(trials: Sequence[Trial]) -> str:
    """A row a policy; `off` is the distance to the confidence asked for, in points, `+-` its standard error."""
    asked = {asked_of(kind, confidence): confidence for kind, confidence in ASKED}
    rows = []
    for name in sorted({one.policy for trial in trials for one in trial.inferences}, key=ORDER.index):
        found = figures(trials, name, asked.get(name))
        off = found.met - asked[name] if name in asked else float("nan")
        shares = (
            found.possible, found.met, off, found.error, found.met_resting, found.met_loaded,
            found.utility, found.in_time, found.steady,
        )  # fmt: skip
        percent = ["" if math.isnan(share) else f"{100 * share:.1f}" for share in shares]
        rows.append([name, found.inferences, *percent, f"{1e6 * found.decision_s:.2f}", f"{100 * found.deciding:.2f}"])
    return tabulate(rows, HEADER, disable_numparse=True, stralign="right")


def heading(trial: Trial) -> str:
    """What there was to meet, and how much slower than predicted the pieces were without load and with it."""
    factors = [
        statistics.median([one.factor for one in trial.inferences if one.loaded == loaded] or [float("nan")])
        for loaded in (False, True)
    ]
    fastest_s, slowest_s = trial.ways[0][0], trial.ways[-1][0]
    return (
        f"{trial.network}: {1e3 * trial.unaltered_s:.2f} ms as it is ({1e3 * trial.predicted_s:.2f} predicted), "
        f"deadline {1e3 * trial.deadline_s:.2f} ms, ways of {1e3 * fastest_s:.2f} to {1e3 * slowest_s:.2f} ms; "
        f"actual over predicted {factors[0]:.2f} without load, {factors[1]:.2f} with"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--device", default="local")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--runs", type=int, default=2000, help="inferences of each policy and network (default 2000)")
    parser.add_argument("--deadline", type=float, default=0.8, help="share of the network's own latency (default 0.8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--measured", type=Path, help="report what an earlier run saved")
    options = parser.parse_args(arguments)
    if options.measured:
        trials = [Trial.of(saved) for saved in json.loads(options.measured.read_text())]
    else:
        trials = measured(options)
    if not trials:
        return 1
    for trial in trials:
        print(f"{heading(trial)}\n{report([trial])}\n")
    print(f"all {len(trials)} networks\n{report(trials)}")
    return 0


def measured(options: argparse.Namespace) -> list[Trial]:
    """Every network in turn, pinned to cores of its own, the load on the others."""
    predictor = latpred.load(options.device, home=options.home)
    trials: list[Trial] = []
    with pinned(predictor.estimator.bundle.manifest.threads) as others:
        for path in models(options.paths):
            try:
                trials.append(trial_of(path, predictor, options, others))
            except LatpredError as error:
                print(f"{path.stem}: {error}", file=sys.stderr)
                continue
            print(heading(trials[-1]), file=sys.stderr)
            if options.save:
                options.save.write_text(json.dumps([asdict(trial) for trial in trials]))
    return trials


@contextmanager
def pinned(threads: int) -> Iterator[set[int]]:
    """Keep to as many cores as there are threads; gives the other ones."""
    own = set(spread_cores(threads))
    if not own:
        yield set()
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, own)
    try:
        yield allowed - own
    finally:
        os.sched_setaffinity(0, allowed)


if __name__ == "__main__":
    sys.exit(main())
