"""What hooked networks take, for each decision: predicted against measured, beside the network as it is.

    python benchmarks/hooks_timing.py FOLDER_OR_MODEL... [--device local] [--home DIR] [--points N] [--save FILE]
    python benchmarks/hooks_timing.py --measured FILE [--device local] [--home DIR]

Random weights and inputs: latency only. Each network is hooked in three ways: with no point, with the points that its
plan mounts, and with a few blocks a level, spread evenly over the network. Every option is taken by force, alone; with
the points of the plan also several at once, drawn at random. Then the points of the plan decide by themselves, under
deadlines from 0.5 to 1.2 of what the network takes, and learn how fast the machine is: what was promised for each way
that was taken at least a few times, against what it took (`decided`; heads answer although nobody trained them). A
latency is what the caller of `Hooked.run` waits, checks
of inputs and copies of outputs included. All of one hooked model, a plain session of the network (ONNX Runtime's own
defaults but for the number of threads, arrays in and out) and a reference graph take turns, round by round; each runs
several times in a row, of which the first does not count.

Reported: how often the predicted latency is within 5 % of the measured one, as it comes and with the drift of the
machine cancelled by the reference; the median error; what it took over what the plain session took; and the noise
floor, half of the rounds against the other half. The row `keep` is what hooks that change nothing cost beyond the plan,
`no point` what they cost where none is mounted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from coverage import models
from decide_truth import LEVELS, measured, reference_model, share_within
from tabulate import tabulate

import latpred
from latpred.chained import Buffers, Piece
from latpred.collect.ort import spread_cores
from latpred.collect.weights import fill_weights
from latpred.decide.appraisal import Decision
from latpred.decide.costs import KEEP
from latpred.decide.plan import Plan
from latpred.decide.points import Grid
from latpred.errors import LatpredError
from latpred.hooks import Hooked, attach
from latpred.hooks.sides import HEAD
from latpred.predictor import Predictor
from latpred.surgery.tidy import tidied
from latpred.tensors import Array

NO_POINT, SEVERAL, DECIDED = "no point", "several", "decided"
CALIBRATED = 4  # random inputs, for regions in int8
DRAWN = 12  # ways with several options at once
SHARES = (0.5, 1.2)  # from the tightest deadline to the loosest
DECISIONS, LEARNING, RENEWED, LEAST_TAKEN = 600, 100, 25, 8  # runs


class Run:
    """A hooked model that is asked in one way."""

    def __init__(self, hooked: Hooked, inputs: Mapping[str, Array], forced: Mapping[str, str]) -> None:
        self._hooked, self._inputs, self._forced = hooked, inputs, forced
        answer = hooked.run(inputs, forced=forced)
        self.predicted_s = answer.predicted_s / answer.slowdown

    def run(self) -> None:
        """Once."""
        self._hooked.run(self._inputs, forced=self._forced)


def plain_session(source: bytes | Path, threads: int) -> Any:
    """ONNX Runtime's own defaults, but for the number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])


class Plain:
    """The network in a session of its own, as most people run it."""

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Array], threads: int) -> None:
        self._session = plain_session(model.SerializeToString(), threads)
        self._inputs = inputs

    def run(self) -> None:
        """Once."""
        self._session.run(None, self._inputs)


def ways_of(hooked: Hooked, together: bool) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Name, level and forced options: all kept, each option alone, and some of several at once."""
    kept = dict.fromkeys(hooked.points, KEEP)
    yield KEEP if hooked.points else NO_POINT, KEEP if hooked.points else NO_POINT, kept
    for point, (_, *others) in hooked.options.items():
        for option in others:
            yield f"{point}: {option}", option.split()[0], kept | {point: option}
    if together and len(hooked.points) > 1:
        rng = np.random.default_rng(len(hooked.points))
        for number in range(DRAWN):
            drawn = {point: options[rng.integers(len(options))] for point, options in hooked.options.items()}
            yield f"drawn {number}", SEVERAL, drawn


def mounts_of(plan: Plan, each: int) -> Iterator[tuple[str, list[str], Grid]]:
    """Name, points and levels of each way to hook a network."""
    yield NO_POINT, [], Grid()
    if plan.mounted:
        yield "plan", list(plan.mounted), Grid()
    for level in LEVELS:
        having = [one for one in plan.decisions if any(option.level == level for option in one.options)]
        picked: list[Decision] = []
        for number in range(min(each, len(having))):
            for one in having[int((number + 0.5) / min(each, len(having)) * len(having)) :]:
                if not any(overlap(one, other) for other in picked):
                    picked.append(one)
                    break
        if picked:
            yield level, [one.name for one in picked], Grid(levels=(level,))


def overlap(one: Decision, other: Decision) -> bool:
    """Whether two points cannot be mounted together."""
    assert one.point is not None
    assert other.point is not None
    starts, ends = (
        (one.point.start.position, other.point.start.position),
        (one.point.end.position, other.point.end.position),
    )
    return one.name == other.name or max(starts) < min(ends)


def rows_of(path: Path, predictor: Predictor, options: argparse.Namespace, threads: int) -> Iterator[dict[str, Any]]:
    """One row a way of one network."""
    model = fill_weights(onnx.load(path, load_external_data=False), path.parent)
    watch = Piece(reference_model(), Buffers(), threads)
    declared = Piece(tidied(model), Buffers(), threads).session.get_inputs()
    inputs = [{value.name: Buffers(seed).of(value) for value in declared} for seed in range(CALIBRATED)]
    plain = Plain(model, inputs[0], threads)
    for name, points, grid in mounts_of(predictor.plan(path), options.points):
        try:
            hooked = attach(model, predictor, points, grid=grid, samples=inputs)
        except LatpredError as error:
            print(f"{path.stem}, {name}: {error}", file=sys.stderr)
            continue
        with hooked:
            ways = [
                (*way, Run(hooked, inputs[0], way[-1])) for way in ways_of(hooked, together=name == "plan")
            ]  # fmt: skip
            times_s = measured([[watch], [plain], [plain], *([run] for *_, run in ways)], options.rounds)
            taken = decided(hooked, inputs[0]) if name == "plan" else {}
        for number, (way, level, _, run) in enumerate(ways):
            yield {
                "path": str(path),
                "mounted": name,
                "way": way,
                "level": level,
                "predicted_s": run.predicted_s,
                "reference_s": times_s[:, 0].tolist(),
                "plain_s": times_s[:, 1:3].mean(axis=1).tolist(),
                "hooked_s": times_s[:, 3 + number].tolist(),
            }
        for ways_taken, pairs in taken.items():
            promised_s, latency_s = zip(*pairs, strict=True)
            yield {
                "path": str(path),
                "mounted": name,
                "way": ", ".join(ways_taken),
                "level": DECIDED,
                "predicted_s": statistics.median(promised_s),
                "reference_s": [predictor.estimator.reference_s or 1.0] * len(pairs),  # the machine's speed was learned
                "plain_s": [float(np.median(times_s[:, 1:3]))] * len(pairs),
                "hooked_s": latency_s,
            }


def decided(hooked: Hooked, inputs: Mapping[str, Array]) -> dict[tuple[str, ...], list[tuple[float, float]]]:
    """Ways that gates took often enough, and of each run what was promised and what it took, in s."""
    for (point, role), side in hooked.sides.items():
        if role == HEAD and side.weights is not None:
            hooked.replace(point, role, side.weights)
    rng, unaltered_s = np.random.default_rng(0), hooked.run(inputs, keep=True).latency_s
    taken: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for number in range(LEARNING + DECISIONS):
        if number % RENEWED == 0:
            hooked.renew()
            hooked.run(inputs, unaltered_s)  # finds the caches as a run after another does
        answer = hooked.run(inputs, unaltered_s * float(rng.uniform(*SHARES)))
        if number >= LEARNING:
            way = tuple(f"{point}: {option}" for point, option in answer.decisions.items())
            taken.setdefault(way, []).append((answer.predicted_s, answer.latency_s))
    return {way: pairs for way, pairs in taken.items() if len(pairs) >= LEAST_TAKEN}


def compared(row: Mapping[str, Any], usual_s: float | None) -> tuple[float, float, float, float]:
    """Predicted over measured less 1, as it comes and without drift; measured over plain; halves of the rounds."""
    reference_s, plain_s, hooked_s = (np.array(row[name]) for name in ("reference_s", "plain_s", "hooked_s"))
    off = row["predicted_s"] / float(np.median(hooked_s)) - 1.0
    speed = (usual_s or float(np.median(reference_s))) / float(np.median(reference_s))
    ratios = hooked_s / plain_s
    again = float(np.median(ratios[0::2]) / np.median(ratios[1::2])) - 1.0
    return off, (1.0 + off) / speed - 1.0, float(np.median(ratios)), again


HEADER = [
    "", "ways", "within 5 % %", "drift cancelled %", "median error %", "drift cancelled", "over plain", "again %"
]  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]], usual_s: float | None) -> list[list[Any]]:
    """A line for all decisions, each level, and each network with what its hooks cost."""
    deciding = [row for row in rows if row["level"] not in (KEEP, NO_POINT, DECIDED)]
    groups = {"all forced decisions": deciding}
    for level in (DECIDED, *LEVELS, SEVERAL, KEEP, NO_POINT):
        groups[level] = [row for row in rows if row["level"] == level]
    for path in dict.fromkeys(row["path"] for row in rows):
        groups[Path(path).stem] = [row for row in deciding if row["path"] == path]
        groups[f"{Path(path).stem}, decided"] = [row for row in rows if row["path"] == path and row["level"] == DECIDED]
        groups[f"{Path(path).stem}, kept"] = [row for row in rows if row["path"] == path and row["level"] == KEEP]
    return [[name, *line(members, usual_s)] for name, members in groups.items() if members]


def line(rows: Iterable[Mapping[str, Any]], usual_s: float | None) -> list[str]:
    """As `HEADER` names them."""
    off, steady, ratios, again = zip(*(compared(row, usual_s) for row in rows), strict=True)
    medians = [f"{100 * statistics.median(values):+.1f}" for values in (off, steady)]
    return [
        str(len(off)), share_within(off), share_within(steady), *medians, f"{statistics.median(ratios):.3f}",
        f"{100 * statistics.median(map(abs, again)):.1f}",
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--device", default="local")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--points", type=int, default=3, help="points a level and network (default 3)")
    parser.add_argument("--rounds", type=int, default=10)
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
            try:
                rows += rows_of(path, predictor, options, threads)
            except LatpredError as error:
                print(f"{path.stem}: {error}", file=sys.stderr)
            print(f"{path.stem}: {len(rows)} rows", file=sys.stderr)
            if options.save:
                options.save.write_text(json.dumps(rows), encoding="utf-8")
    print(tabulate(summary(rows, predictor.estimator.reference_s), HEADER, disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
