"""What a plan says of options, against the altered networks built and timed.

    python benchmarks/decide_truth.py FOLDER_OR_MODEL... [--device local] [--home DIR] [--points N] [--save FILE]
    python benchmarks/decide_truth.py --measured FILE [--device local] [--home DIR]

At each of a few decision points a level, spread evenly over each network, every option is run as an engine runs it: the
pieces around the point, its gate network, and the option's graph, as sessions over bound buffers. The network as it is,
the chain that keeps everything, and every option take turns, round by round, with a reference graph between them; each
runs several times in a row, and the first run, which finds the caches full of another network, is left out.

Reported, over (point, option) pairs: the altered network's predicted latency against the measured one with the
machine's drift cancelled by the reference; the same anchored, where the prediction is scaled by what the unaltered
network was off; the predicted saving against the measured one, as a share of the network's latency; and how often it is
told right whether an option saves anything. The noise floor stands beside: the same of half the rounds against the
other half. Measurements that were saved are compared with what the predictor says today.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from coverage import models
from tabulate import tabulate

import latpred
from latpred.chained import Buffers, Piece, timed
from latpred.collect.ort import spread_cores
from latpred.collect.synthesize import reference
from latpred.collect.weights import fill_weights
from latpred.decide.appraisal import Decision
from latpred.decide.costs import KEEP
from latpred.decide.options import KEPT, altered
from latpred.decide.plan import Plan
from latpred.decide.points import EXIT
from latpred.errors import LatpredError
from latpred.predictor import Predictor
from latpred.surgery.cuts import Cut, cuts
from latpred.surgery.exits import head
from latpred.surgery.gates import gate_network
from latpred.surgery.pieces import piece
from latpred.surgery.tidy import tidied

LEVELS = ("exit", "skip", "channels", "patches", "int8")
BURST_S = 0.02  # of one network before the next takes its turn
CLEAR = 0.01  # share of the latency below which a saving cannot be told from none by measuring
LEAST_RUNS, MOST_RUNS = 2, 20


def spread_points(plan: Plan, each: int) -> list[Decision]:
    """Up to `each` points of every level, evenly from the first to the last."""
    taken: dict[str, Decision] = {}
    for level in LEVELS:
        having = [one for one in plan.decisions if any(option.level == level for option in one.options)]
        for number in range(min(each, len(having))):
            one = having[int((number + 0.5) / min(each, len(having)) * len(having))]
            taken[one.name] = one
    return list(taken.values())


class Network:
    """One network, in pieces."""

    def __init__(self, path: Path, threads: int) -> None:
        self.threads = threads
        self.model = tidied(fill_weights(onnx.load(path, load_external_data=False), path.parent))
        self.places = cuts(self.model)
        self.buffers = Buffers()
        self.whole = Piece(self.model, self.buffers, threads)

    def piece(self, start: Cut, end: Cut, renamed: dict[str, str] | None = None) -> list[Piece]:
        """What lies between two cuts, where there is anything."""
        if start.position == end.position:
            return []
        return [Piece(piece(self.model, start, end), self.buffers, self.threads, renamed)]

    def chains(self, one: Decision) -> Iterator[tuple[str, str, list[Piece]]]:
        """Option, level, and the pieces that run when it is taken."""
        point = one.point
        assert point is not None
        first, last, start, end = self.places[0], self.places[-1], point.start, point.end
        before, behind = self.piece(first, start), self.piece(end, last)
        if point.is_exit:
            classes = int(self.whole.session.get_outputs()[0].shape[1])
            answer = [Piece(head(start, classes, confident=True), self.buffers, self.threads)]
            yield KEEP, KEEP, [*before, *answer, *behind]
            yield EXIT, EXIT, [*before, *answer]
            return
        looks = []
        if one.gate_s > 0:
            looks = [Piece(gate_network(start, len(one.options)), self.buffers, self.threads)]
        region = piece(self.model, start, end)
        for option, choice in zip(one.options, (KEPT, *point.choices), strict=True):
            graph = altered(region, choice)
            if graph is None:
                yield option.name, option.level, [*before, *looks, *self.piece(end, last, {end.tensor: start.tensor})]
            else:
                yield option.name, option.level, [*before, *looks, Piece(graph, self.buffers, self.threads), *behind]


def measured(chains: Sequence[Sequence[Piece]], rounds: int) -> np.ndarray:
    """Latency of each chain in each round, in s, of shape (rounds, chains)."""
    latencies_s = np.empty((rounds, len(chains)))
    rng, counts = np.random.default_rng(len(chains)), []
    for chain in chains:
        timed(chain)
        counts.append(min(max(int(BURST_S / timed(chain)), LEAST_RUNS), MOST_RUNS))
    for row in latencies_s:
        for number in rng.permutation(len(chains)):
            timed(chains[number])
            row[number] = statistics.median(timed(chains[number]) for _ in range(counts[number]))
    return latencies_s


def rows_of(path: Path, predictor: Predictor, options: argparse.Namespace, threads: int) -> Iterator[dict[str, Any]]:
    """One row a (point, option) pair of one network, `keep` included."""
    plan = latpred.plan(predictor, path)
    chosen = spread_points(plan, options.points)
    if not chosen:
        return
    network = Network(path, threads)
    watch = Piece(reference_model(), Buffers(), threads)
    for one in chosen:
        named = list(network.chains(one))
        chains = [[watch], [network.whole], [network.whole], *(chain for _, _, chain in named)]
        times_s = measured(chains, options.rounds)
        for number, (name, level, _) in enumerate(named):
            yield {
                "path": str(path),
                "point": one.name,
                "option": name,
                "level": level,
                "reference_s": times_s[:, 0].tolist(),
                "whole_s": times_s[:, 1:3].mean(axis=1).tolist(),
                "altered_s": times_s[:, 3 + number].tolist(),
            }


def reference_model() -> onnx.ModelProto:
    return onnx.load_from_string(reference().model)


@dataclass(frozen=True, slots=True)
class Pair:
    """One (point, option) pair; savings are shares of the network's latency."""

    network: str
    level: str
    raw: float  # predicted over measured latency of the altered network, less 1
    steady: float  # the same with drift cancelled
    anchored: float  # the same with the prediction scaled by what the unaltered network was off
    promised: float  # saving, predicted
    saved: float  # and measured
    inside: bool  # whether the interval holds what was saved
    latency_again: float  # half of the rounds over the other half, less 1
    saved_again: float  # what half of the rounds says less what the other half says
    sign_again: bool  # whether both halves agree that something is saved, or that nothing is


def pairs_of(rows: Iterable[Mapping[str, Any]], predictor: Predictor) -> Iterator[Pair]:
    """Measured rows beside what a plan of their network says."""
    plans: dict[str, Plan] = {}
    usual_s = predictor.estimator.reference_s
    for row in rows:
        if row["path"] not in plans:
            plans[row["path"]] = latpred.plan(predictor, row["path"])
        plan = plans[row["path"]]
        option = next(option for option in plan[row["point"]].options if option.name == row["option"])
        yield compared(row, usual_s, plan.latency_s, option.saved_s, option.saved_interval_s)


def compared(
    row: Mapping[str, Any], usual_s: float | None, network_s: float, saved_s: float, interval_s: tuple[float, float]
) -> Pair:
    """One measured row and what was predicted: the network's latency, what the option saves, and its bounds."""
    reference_s, whole_s, altered_s = (np.array(row[name]) for name in ("reference_s", "whole_s", "altered_s"))
    predicted_s = network_s - saved_s
    speed = (usual_s or np.median(reference_s)) / np.median(reference_s)
    measured_s = float(np.median(altered_s))
    saved = 1.0 - float(np.median(altered_s / whole_s))
    halves = [float(np.median(altered_s[start::2] / whole_s[start::2])) for start in (0, 1)]
    return Pair(
        network=Path(row["path"]).stem,
        level=row["level"],
        raw=predicted_s / measured_s - 1.0,
        steady=predicted_s / (measured_s * speed) - 1.0,
        anchored=predicted_s / network_s * float(np.median(whole_s)) / measured_s - 1.0,
        promised=saved_s / network_s,
        saved=saved,
        inside=interval_s[0] / network_s <= saved <= interval_s[1] / network_s,
        latency_again=halves[0] / halves[1] - 1.0,
        saved_again=halves[0] - halves[1],
        sign_again=(halves[0] < 1.0) == (halves[1] < 1.0),
    )


def share_within(values: Iterable[float], bound: float = 0.05) -> str:
    return percent(abs(value) < bound for value in values)


def percent(hits: Iterable[bool]) -> str:
    return f"{100 * statistics.fmean(hits):.1f}"


def line(pairs: Sequence[Pair]) -> list[str | int]:
    """Shares in percent, as `HEADER` names them."""
    clear = [pair for pair in pairs if abs(pair.saved) > CLEAR]
    return [
        len(pairs),
        share_within(pair.raw for pair in pairs),
        share_within(pair.steady for pair in pairs),
        share_within(pair.anchored for pair in pairs),
        share_within(pair.saved - pair.promised for pair in pairs),
        percent((pair.saved > 0) == (pair.promised > 0) for pair in pairs),
        percent((pair.saved > 0) == (pair.promised > 0) for pair in clear) if clear else "-",
        percent(pair.inside for pair in pairs),
        share_within(pair.latency_again for pair in pairs),
        share_within(pair.saved_again for pair in pairs),
        percent(pair.sign_again for pair in pairs),
    ]


HEADER = [
    "", "pairs", "latency within 5 %", "drift cancelled", "anchored", "saving within 5 %", "sign",
    f"sign above {CLEAR:.0%}", "in interval", "latency again", "saving again", "sign again",
]  # fmt: skip


def summary(pairs: Sequence[Pair]) -> list[list[Any]]:
    """A table of shares: all options, by level, those that keep the region, by network."""
    taken = [pair for pair in pairs if pair.level != KEEP]
    groups = {"all options": taken}
    for level in (*LEVELS, KEEP):
        groups[level] = [pair for pair in pairs if pair.level == level]
    for network in dict.fromkeys(pair.network for pair in pairs):
        groups[network] = [pair for pair in taken if pair.network == network]
    return [[name, *line(members)] for name, members in groups.items() if members]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--device", default="local")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--points", type=int, default=2, help="points of each level and network (default 2)")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--measured", type=Path, help="report what an earlier run saved")
    options = parser.parse_args(arguments)
    predictor = latpred.load(options.device, home=options.home)
    if options.measured:
        rows = json.loads(options.measured.read_text(encoding="utf-8"))
    else:
        threads = predictor.estimator.bundle.manifest.threads
        os.sched_setaffinity(0, spread_cores(threads) or os.sched_getaffinity(0))
        rows = []
        for path in models(options.paths):
            start_s = time.monotonic()
            try:
                rows += rows_of(path, predictor, options, threads)
            except LatpredError as error:
                print(f"{path.stem}: {error}", file=sys.stderr)
            print(f"{path.stem}: {len(rows)} rows after {time.monotonic() - start_s:.0f} s", file=sys.stderr)
            if options.save:
                options.save.write_text(json.dumps(rows), encoding="utf-8")
    print(tabulate(summary(list(pairs_of(rows, predictor))), HEADER, floatfmt=".1f"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
