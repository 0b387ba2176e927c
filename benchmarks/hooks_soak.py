"""A week in small: many runs of one hooked model that trains meanwhile, and what is left of it in the end.

    python benchmarks/hooks_soak.py [MODEL] [--runs 20000] [--threads 1] [--device local] [--home DIR]

The network of `hooks.py` (or another, with random weights if it has none), with the points that its plan mounts, runs
under deadlines from hopeless to loose, in turns, on random inputs, while the sampler records and the trainer learns in
its thread; every 1,000 runs, hooks plan anew. With several threads, all of them run the same hooked model.

Reported: resident memory after the first 1,000 runs and at the end of every tenth of the rest; what was sampled,
dropped and learned; threads and open files before attaching and after `release`. Wanted: memory grows by less than 5 %
after the first 1,000 runs, and nothing is left.
"""

from __future__ import annotations

import argparse
import gc
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import psutil
from tabulate import tabulate

import latpred
from latpred.collect.weights import fill_weights
from latpred.hooks import Hooked, attach
from latpred.hooks.trainer import Trainer
from latpred.surgery.tidy import tidied
from latpred.surgery.wiring import wired
from latpred.tensors import Array

MODEL = Path(__file__).parent / "digits.onnx"
SHARES = (0.1, 0.4, 0.6, 0.8, 1.0, 2.0)  # of what the network is predicted to take
FIRST, PARTS = 1000, 10
INPUTS = 64
WARM_UP = 120  # inputs, enough that some are held out
MOST_GROWTH = 0.05


def inputs_of(model: onnx.ModelProto, count: int) -> list[dict[str, Array]]:
    """Standard normal, one after the other from seed 0."""
    wiring, rng = wired(tidied(model)), np.random.default_rng(0)
    specs = {name: wiring.spec(name) for name in wiring.inputs}
    return [
        {name: rng.standard_normal(spec.shape).astype(spec.dtype) for name, spec in specs.items()} for _ in range(count)
    ]


def ran(hooked: Hooked, inputs: Sequence[dict[str, Array]], runs: int, threads: int) -> None:
    """So many runs in all, shared by threads."""

    def some(first: int) -> None:
        for number in range(first, runs, threads):
            deadline_s = SHARES[number % len(SHARES)] * hooked.latency_s
            hooked.run(inputs[number % len(inputs)], deadline_s)

    workers = [threading.Thread(target=some, args=(first,)) for first in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def soaked(hooked: Hooked, trainer: Trainer, inputs: Sequence[dict[str, Array]], runs: int, threads: int) -> list[int]:
    """Resident bytes after the first 1,000 runs and after each tenth of the rest."""
    process = psutil.Process()
    resident = []
    for count in (FIRST, *[(runs - FIRST) // PARTS] * PARTS):
        for start in range(0, count, FIRST):
            ran(hooked, inputs, min(FIRST, count - start), threads)
            hooked.renew()
        resident.append(process.memory_info().rss)
        print(f"{resident[-1] / 2**20:.1f} MiB, {trainer.examples} examples", file=sys.stderr)
    return resident


def left() -> tuple[int, int]:
    """Threads and open files of this process."""
    gc.collect()
    process = psutil.Process()
    return process.num_threads(), process.num_fds() if hasattr(process, "num_fds") else process.num_handles()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=MODEL)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="local")
    parser.add_argument("--home", type=Path)
    options = parser.parse_args(arguments)
    model = fill_weights(onnx.load(options.model, load_external_data=False), options.model.parent)
    predictor = latpred.load(options.device, home=options.home)
    inputs = inputs_of(model, INPUTS)
    with attach(model, predictor, samples=inputs[:4]) as first:  # libraries' own threads are there from here on
        first.train(inputs_of(model, WARM_UP), passes=1)
    before = left()
    start_s = time.monotonic()
    hooked = attach(model, predictor, samples=inputs[:4])
    trainer = hooked.train_while_running()
    resident = soaked(hooked, trainer, inputs, options.runs, options.threads)
    took_s = time.monotonic() - start_s
    recorded, dropped = trainer.sampler.recorded, trainer.sampler.dropped
    examples, verdicts = trainer.examples, list(trainer.verdicts)
    points = len(hooked.points)
    hooked.release()
    del hooked, trainer
    after = left()
    growth = resident[-1] / resident[0] - 1.0
    rows = [
        ("points", points),
        ("runs, threads", f"{options.runs}, {options.threads}"),
        ("took s", f"{took_s:.0f}"),
        (f"resident MiB after {FIRST} runs", f"{resident[0] / 2**20:.1f}"),
        ("resident MiB at the end, at most", f"{resident[-1] / 2**20:.1f}, {max(resident) / 2**20:.1f}"),
        ("growth %", f"{100 * growth:+.2f}"),
        ("recorded", ", ".join(f"{why} {count}" for why, count in recorded.items())),
        ("dropped", dropped),
        ("examples learned from or held out", examples),
        (
            "new weights taken, refused",
            f"{sum(one.replaced for one in verdicts)}, {sum(not one.replaced for one in verdicts)}",
        ),
        ("threads before attaching, after release", f"{before[0]}, {after[0]}"),
        ("open files before attaching, after release", f"{before[1]}, {after[1]}"),
    ]
    print(tabulate(rows, disable_numparse=True))
    return 0 if growth < MOST_GROWTH and after[0] <= before[0] and after[1] <= before[1] else 1


if __name__ == "__main__":
    sys.exit(main())
