"""A hooked network on real images: what each level keeps of its answers, and what a deadline leaves of its accuracy.

    python benchmarks/hooks.py [--device local] [--home DIR] [--images N] [--load]
        [--save FILE] [--json]
    python benchmarks/hooks.py --measured FILE [--json]

The network was trained on other images (`digits.md`). Heads and gates are trained by `Hooked.train` on what it answers
itself, utilities are measured on what it answers to images that these never saw; none of them is held out here. Regions
are calibrated for int8 on some of what is trained on.
Then everything takes turns on the held-out images, a few in a row, each turn after one inference that does not count:

- `as it is`, and networks that do less and always the same: in int8, left at an exit, both, blocks narrowed, blocks
  left out that cost least; each one graph, cut nowhere. These are the static points.
- each level alone, taken at all blocks where it pays;
- all levels together, mounted by the plan and by hand (two exits, regions between them): under deadlines, by gates that
  decide as they go, and without one for several tolerances of leaving with a wrong answer;
- the choice among four of the static networks, under the same deadlines.

A latency is what the caller waits, the copy of the image and of the scores included. Against a deadline an answer
counts where it is right and in time; the hooked model beats the static points at a deadline where it has more of these
than each of them, by more than twice the standard error of the difference on the same images. It beats a static point
on average where it is no less accurate in less time. Last, all deadlines are taken as equally likely: a static network
is chosen before they are known. `--load` adds load on the other cores that comes and goes.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from contest import DEADLINE, LEVEL, STATIC, TOLERANCE, Answered, Contender, Given, measured, report, summary
from decide_deadlines import pinned
from digits import Digits, digits, shifted
from fixed import in_integers, left_at, narrowed, without
from neighbour import neighbour
from numpy.typing import NDArray
from worth import WRONG, charge, order_of_harm, prices, utilities, values

import latpred
from latpred.chained import Buffers, Piece
from latpred.decide.costs import KEEP
from latpred.decide.declared import Declared
from latpred.decide.plan import Plan
from latpred.decide.points import EXIT, Grid
from latpred.decide.table import Utilities
from latpred.hooks import Hooked, attach, load
from latpred.hooks.sides import HEAD
from latpred.predictor import Predictor
from latpred.surgery.cuts import Cut
from latpred.surgery.tidy import tidied

MODEL = Path(__file__).parent / "digits.onnx"
LEVELS = (EXIT, "skip", "channels", "patches", "int8")
ENTRY, LAST = "image", "stage3.1"
BLOCK = re.compile(r"stage\d\.\d")
EXITS = ("exit after stage1.0", "exit after down2.conv")
LEFT_OUT = (1, 2, 4)  # blocks
SHARES = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.7, 0.9, 1.1)  # of what the network takes as it is
TOLERANCES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # of a wrong answer; under deadlines the first
PRICE = 0.01  # of a wrong answer, for the time that the network takes as it is
CONFIDENCE = 0.99
AGAIN, CALIBRATED, LEARNED, WARM_UP = 3, 64, 150, 90  # times, and images
MOST_SHIFT, SEED = 4, 0
TRAINED = 2  # times: decisions change as side networks learn, and these see what decisions leave them


class Fixed:
    """One graph on bound buffers."""

    group, bound = STATIC, None

    def __init__(self, name: str, model: onnx.ModelProto, predictor: Predictor) -> None:
        self.name = name
        self._predicted_s = predictor.predict(model).latency_s
        self._piece = Piece(model, Buffers(), predictor.estimator.device.threads)
        session, buffers = self._piece.session, self._piece.buffers
        self._image, self._scores = buffers.of(session.get_inputs()[0]), buffers.of(session.get_outputs()[0])

    def answer(self, image: NDArray[Any]) -> Given:
        """The scores of one image."""
        start_s = time.perf_counter()
        np.copyto(self._image, image)
        self._piece.run()
        scores = self._scores.copy()
        return Given(scores, time.perf_counter() - start_s, self._predicted_s, {})

    def rest(self) -> None:
        """Nothing is learned."""


@dataclass(frozen=True, slots=True, eq=False)
class Attached:
    """A hooked model, asked in one way; without `forced` it decides."""

    name: str
    group: str
    hooked: Hooked
    bound: float | None = None
    deadline_s: float | None = None
    forced: Mapping[str, str] | None = None

    def answer(self, image: NDArray[Any]) -> Given:
        """The scores of one image."""
        start_s = time.perf_counter()
        found = self.hooked.run({ENTRY: image}, self.deadline_s, forced=self.forced)
        latency_s = time.perf_counter() - start_s
        (scores,) = found.outputs.values()
        return Given(scores, latency_s, found.predicted_s, found.decisions)

    def rest(self) -> None:
        """Plan anew with what was learned of the machine."""
        if self.forced is None:
            self.hooked.renew()

    def warm_up(self, images: NDArray[Any], deadlines_s: Sequence[float]) -> None:
        """Meet deadlines of all lengths in turn, so that the times of most options are known."""
        for image, deadline_s in zip(images[:, None], cycle(deadlines_s), strict=False):
            self.hooked.run({ENTRY: image}, deadline_s, forced=self.forced)
        self.rest()


def by_hand(plan: Plan) -> list[str | Declared]:
    """Two exits, and what lies between them as regions that can be rounded: what is known to harm little."""
    ends = [ENTRY, *(plan[name].point.end.tensor for name in (*EXITS, LAST))]  # type: ignore[union-attr]
    regions = [
        Declared(f"part {number}", start, end, ("int8",)) for number, (start, end) in enumerate(pairwise(ends), 1)
    ]
    return [*regions, *EXITS]


def blocks_of(plan: Plan, level: str) -> list[str]:
    """Blocks where an option of a level pays."""
    return [
        one.name
        for one in plan.decisions
        if BLOCK.fullmatch(one.name)
        and any(option.level == level and option.break_even_rate is not None for option in one.options)
    ]


def everywhere(options: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Every option at all points that have it, the others kept; exits one by one."""
    kept = dict.fromkeys(options, KEEP)
    for name in dict.fromkeys(option for own in options.values() for option in own if option not in (KEEP, EXIT)):
        having = [point for point, own in options.items() if name in own]
        yield f"{name}, {len(having)} points", kept | dict.fromkeys(having, name)
    for point, own in options.items():
        if EXIT in own:
            yield point, kept | {point: EXIT}


class Prepared:
    """What is prepared before the first image: hooks that are trained, and what their options are worth."""

    def __init__(self, path: Path, predictor: Predictor, folder: Path) -> None:
        self.path, self.predictor, self._folder = path, predictor, folder
        self.model, self.plan = tidied(path), predictor.plan(path)
        learned, tuned = digits("learned").images, digits("tuned").images
        self.tuned = tuned[LEARNED:]
        self._deadlines_s = np.random.default_rng(SEED).uniform(0.0, 1.5, len(self.tuned)) * self.plan.latency_s
        again = shifted(np.concatenate([learned] * AGAIN), MOST_SHIFT, np.random.default_rng(SEED))
        self._samples = [{ENTRY: image[None]} for image in (*again, *tuned[:LEARNED])]
        self._by_hand = self._trained(by_hand(self.plan))
        with self._loaded(*self._by_hand) as hooked:
            self._heads = {name: hooked.sides[name, HEAD].weights for name in EXITS}

    def static(self) -> Iterator[Fixed]:
        """The network as it is, and such that do less."""
        yield self._fixed("as it is", self.model)
        for name, model in self._in_integers().items():
            yield self._fixed(name, model)
        for name in EXITS:
            yield self._fixed(name, self._left(name))
        blocks = [one.name for one in self.plan.decisions if BLOCK.fullmatch(one.name)]
        yield self._fixed("channels 0.5", narrowed(self.model, self._ends(blocks), 0.5))
        with self._attached(blocks, ("skip",)) as hooked:
            order = order_of_harm(values(hooked, ENTRY, self.tuned), "skip")
        for count in LEFT_OUT:
            yield self._fixed(f"{count} blocks left out", without(self.model, self._ends(order[:count])))

    def levels(self) -> Iterator[Attached]:
        """Each level alone, on all blocks where it pays, taken everywhere; exits one by one."""
        for level in LEVELS:
            names = list(EXITS) if level == EXIT else blocks_of(self.plan, level)
            if names:
                hooked = self._attached(names, (level,), self._heads if level == EXIT else {})
                for name, forced in everywhere(hooked.options):
                    yield Attached(name, LEVEL, hooked, forced=forced)

    def together(self, unaltered_s: float) -> Iterator[Attached]:
        """All levels, mounted by the plan and by hand: all kept, under deadlines, and by tolerance."""
        for label, saved in (("plan", self._trained(list(self.plan.mounted))), ("hand", self._by_hand)):
            hooked = self._loaded(*saved)
            yield Attached(f"{label}: all kept", LEVEL, hooked, forced=dict.fromkeys(hooked.points, KEEP))
            for share in SHARES:
                deadline_s = share * unaltered_s
                yield Attached(f"{label}: deadline {share:g}", DEADLINE, self._loaded(*saved), deadline_s, deadline_s)
            for tolerance in TOLERANCES:
                again = self._loaded(*saved, tolerance)
                yield Attached(f"{label}: tolerance {tolerance:g}", TOLERANCE, again, tolerance)

    def models(self, unaltered_s: float) -> Iterator[Attached]:
        """Whole models to choose among: as it is, in int8, and left at an exit in int8."""
        paths = []
        for name, model in {"as it is": self.model, **self._in_integers()}.items():
            paths.append(self._folder / f"{name}.onnx")
            onnx.save(model, paths[-1])
        with attach(paths, self.predictor) as hooked:
            worth = utilities(values(hooked, ENTRY, self.tuned))
        for share in SHARES:
            hooked = attach(paths, self.predictor, utilities=worth, confidence=CONFIDENCE)
            yield Attached(f"models: deadline {share:g}", DEADLINE, hooked, share * unaltered_s, share * unaltered_s)

    def _attached(
        self, points: Sequence[str | Declared], levels: Sequence[str], own: Mapping[str, Any] | None = None
    ) -> Hooked:
        grid = Grid(levels=tuple(levels))
        samples = self._samples[:CALIBRATED]
        return attach(self.path, self.predictor, points, grid=grid, heads=own, samples=samples)

    def _trained(self, points: Sequence[str | Declared]) -> tuple[Path, Utilities]:
        """Hooks in a file, heads and gates trained, and what options are worth."""
        path = self._folder / f"{len(list(self._folder.iterdir()))}.hooks"
        with self._attached(points, LEVELS) as hooked:
            worth = utilities(values(hooked, ENTRY, self.tuned))
            hooked.save(path)
        costs: dict[str, dict[str, float]] = {}
        for _ in range(TRAINED):
            with self._loaded(path, worth) as hooked:
                hooked.train(self._samples)
                assert hooked.table is not None
                costs = prices(hooked.table, PRICE / hooked.latency_s)
                worth = utilities(values(hooked, ENTRY, self.tuned, self._deadlines_s), costs)
                hooked.save(path)
        with self._loaded(path, worth) as hooked:
            charge(hooked, costs)
            hooked.save(path)
        return path, worth

    def _loaded(self, path: Path, worth: Utilities, tolerance: float = TOLERANCES[0]) -> Hooked:
        return load(
            path, self.path, self.predictor,
            utilities=worth, confidence=CONFIDENCE, tolerance=tolerance, wrong=WRONG,
        )  # fmt: skip

    def _fixed(self, name: str, model: onnx.ModelProto) -> Fixed:
        return Fixed(name, model, self.predictor)

    def _left(self, name: str) -> onnx.ModelProto:
        weights = self._heads[name]
        assert weights is not None
        return left_at(self.model, self._ends([name])[0][0], weights)

    def _in_integers(self) -> dict[str, onnx.ModelProto]:
        whole = {"int8": self.model} | {f"int8, {name}": self._left(name) for name in EXITS}
        return {name: in_integers(model, self._samples[:CALIBRATED]) for name, model in whole.items()}

    def _ends(self, names: Iterable[str]) -> list[tuple[Cut, Cut]]:
        points = [self.plan[name].point for name in names]
        return [(point.start, point.end) for point in points if point is not None]


def latency_of(contender: Contender, images: NDArray[Any]) -> float:
    """In s, without anything else between."""
    return statistics.median(contender.answer(image).latency_s for image in images[:, None])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="local")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--images", type=int, help="of the held-out ones (default: all)")
    parser.add_argument("--load", action="store_true", help="load on the other cores that comes and goes")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--measured", type=Path, help="report what an earlier run saved")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    saved = json.loads(options.measured.read_text()) if options.measured else None
    found = run(options) if saved is None else [Answered(**one) for one in saved]
    if options.save:
        options.save.write_text(json.dumps([asdict(one) for one in found]))
    said = summary(found)
    print(json.dumps(said, indent=1) if options.json else report(said))
    return 0


def run(options: argparse.Namespace) -> list[Answered]:
    """Prepare, then let everything take turns."""
    predictor = latpred.load(options.device, home=options.home)
    held_out = digits("held_out")
    part = Digits(held_out.images[: options.images], held_out.labels[: options.images])
    with pinned(predictor.estimator.device.threads) as others, tempfile.TemporaryDirectory() as folder:
        prepared = Prepared(MODEL, predictor, Path(folder))
        static = list(prepared.static())
        unaltered_s = latency_of(static[0], prepared.tuned[:WARM_UP])
        hooked = [*prepared.levels(), *prepared.together(unaltered_s), *prepared.models(unaltered_s)]
        for one in hooked:
            one.warm_up(prepared.tuned[:WARM_UP], [share * unaltered_s for share in SHARES])
        contenders: list[Contender] = [*static, *hooked]
        print(f"{len(contenders)} contenders are prepared", file=sys.stderr)
        with neighbour(others, SEED) if options.load else nullcontext():
            return measured(contenders, part, SEED)


if __name__ == "__main__":
    sys.exit(main())
