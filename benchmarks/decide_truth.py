"""What a plan says of options, against the altered networks built and timed.

    python benchmarks/decide_truth.py FOLDER_OR_MODEL... [--device local] [--home DIR] [--points N] [--save FILE]
    python benchmarks/decide_truth.py --measured FILE

At each of a few decision points a level, spread evenly over each network, every option is run as an engine runs it: the
pieces around the point, its gate network, and the option's graph, as sessions over bound buffers. The network as it is,
the chain that keeps everything, and every option take turns, round by round, with a reference graph between them; each
runs several times in a row, and the first run, which finds the caches full of another network, is left out.

Reported, over (point, option) pairs: the altered network's predicted latency against the measured one with the
machine's drift cancelled by the reference; the same anchored, where the prediction is scaled by what the unaltered
network was off; the predicted saving against the measured one, as a share of the network's latency; and how often it is
told right whether an option saves anything. The noise floor stands beside: the same of half the rounds against the
other half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from chained import Buffers, Piece, timed
from coverage import models
from tabulate import tabulate

import latpred
from latpred import home as homes
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
            option = next(option for option in one.options if option.name == name)
            yield {
                "network": path.stem,
                "point": one.name,
                "option": name,
                "level": level,
                "whole_predicted_s": plan.latency_s,
                "saved_predicted_s": option.saved_s,
                "saved_interval_s": option.saved_interval_s,
                "pays": option.break_even_rate is not None,
                "reference_s": times_s[:, 0].tolist(),
                "whole_s": times_s[:, 1:3].mean(axis=1).tolist(),
                "altered_s": times_s[:, 3 + number].tolist(),
            }


def reference_model() -> onnx.ModelProto:
    return onnx.load_from_string(reference().model)


def summary(rows: Sequence[dict[str, Any]], usual_s: float | None) -> list[list[Any]]:
    """A table of shares, in all and by level."""
    table = []
    for level in ("all", *LEVELS, KEEP):
        members = [row for row in rows if row["level"] == level or (level == "all" and row["level"] != KEEP)]
        if members:
            table.append([level, *shares(members, usual_s)])
    return table


def shares(rows: Sequence[dict[str, Any]], usual_s: float | None) -> list[Any]:
    raw, steady, anchored, saving, sign, again, again_saving, inside = [], [], [], [], [], [], [], []
    for row in rows:
        reference_s, whole_s, altered_s = (np.array(row[name]) for name in ("reference_s", "whole_s", "altered_s"))
        predicted_s = row["whole_predicted_s"] - row["saved_predicted_s"]
        whole, other, speed = np.median(whole_s), np.median(altered_s), np.median(reference_s) / (usual_s or np.median(reference_s))
        raw.append(abs(predicted_s / other - 1))
        steady.append(abs(predicted_s / (other / speed) - 1))
        anchored.append(abs(predicted_s / row["whole_predicted_s"] * whole / other - 1))
        saved, promised = 1 - np.median(altered_s / whole_s), row["saved_predicted_s"] / row["whole_predicted_s"]
        saving.append(abs(saved - promised))
        low, high = (bound / row["whole_predicted_s"] for bound in row["saved_interval_s"])
        inside.append(low <= saved <= high)
        sign.append((saved > 0) == (promised > 0))
        halves = [np.median(altered_s[index::2] / whole_s[index::2]) for index in (0, 1)]
        again.append(abs(halves[0] / halves[1] - 1))
        again_saving.append(abs(halves[0] - halves[1]))
    share = lambda values, bound: f"{100 * np.mean(np.array(values) < bound):.1f}"  # noqa: E731
    return [
        len(rows), share(raw, 0.05), share(steady, 0.05), share(anchored, 0.05), share(saving, 0.05),
        f"{100 * np.mean(sign):.1f}", f"{100 * np.mean(inside):.1f}", share(again, 0.05), share(again_saving, 0.05),
    ]  # fmt: skip


HEADER = [
    "level", "pairs", "within 5 %", "drift cancelled", "anchored", "saving", "sign", "in interval", "again", "saving again",
]


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
    if options.measured:
        saved = json.loads(options.measured.read_text())
        rows, usual_s = saved["rows"], saved["usual_s"]
    else:
        predictor = latpred.load(options.device, home=options.home)
        usual_s = predictor.estimator.reference_s
        threads = predictor.estimator.bundle.manifest.threads
        import os

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
                options.save.write_text(json.dumps({"usual_s": usual_s, "rows": rows}))
    print(tabulate(summary(rows, usual_s), HEADER))
    return 0


if __name__ == "__main__":
    sys.exit(main())
