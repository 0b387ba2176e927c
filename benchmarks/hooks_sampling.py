"""What being listened to costs an inference, at the sampler's default rate, and while the trainer's thread works.

One hooked model. First runs with and without a sampler take turns, one by one; then stretches of runs with and without
a trainer whose thread works on what was recorded. Runs that are looked at and runs that are not are compared apart:
medians of each with the median without a listener, added up by how often each occurs. Everything is kept, so that all
runs do the same.

Run: ``python benchmarks/hooks_sampling.py MODEL [--device local] [--home DIR] [--dim batch=1] [--runs 4000]``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

import latpred
from latpred.arguments import parse_dim
from latpred.collect.weights import fill_weights
from latpred.hooks import Heard, Hooked, attach
from latpred.hooks.sampler import Sampling
from latpred.hooks.trainer import Trainer
from latpred.reading.loading import load
from latpred.tensors import Array

STRETCH = 100  # runs between two changes of what the trainer's thread does
SILENT, SAMPLER, TRAINER = "no listener", "sampler", "sampler and trainer"


@dataclass(frozen=True, slots=True)
class Timed:
    """One run."""

    listener: str
    looked_at: bool
    latency_s: float


def inputs_of(hooked: Hooked, count: int) -> list[dict[str, Array]]:
    """Random ones."""
    rng = np.random.default_rng(0)
    specs = hooked.program.inputs
    return [
        {name: rng.standard_normal(spec.shape).astype(spec.dtype) for name, spec in specs.items()} for _ in range(count)
    ]


class Counted:
    """A listener that says which runs were looked at.

    Attributes
    ----------
    looked_at : bool
        Whether the last one was.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.wants, self.close = trainer.wants, trainer.close
        self.looked_at = False

    def heard(self, heard: Heard) -> None:
        """As the trainer's."""
        self.looked_at = True
        self._trainer.heard(heard)


def in_turns(hooked: Hooked, runs: int, sampling: Sampling) -> list[Timed]:
    """Runs without a listener and with a sampler, one by one."""
    trainer = Trainer(hooked, sampling)
    listener = Counted(trainer)
    given = inputs_of(hooked, 8)
    found = []
    for number in range(runs):
        listens = number % 2 == 1
        hooked.listener = listener if listens else None
        listener.looked_at = False
        latency_s = timed(hooked, given[number // 2 % len(given)])
        found.append(Timed(SAMPLER if listens else SILENT, listener.looked_at, latency_s))
        for sample in trainer.sampler.take(1):  # as a trainer that keeps up would
            trainer.sampler.give_back(sample)
    hooked.listener = None
    return found[runs // 10 :]


def in_stretches(hooked: Hooked, runs: int, sampling: Sampling) -> list[Timed]:
    """Runs without a listener while nothing else works, and with a trainer whose thread works."""
    given = inputs_of(hooked, 64)
    found = []
    trainer = listener = None
    stretch = max(1, min(STRETCH, runs // 4))
    for number in range(runs):
        if number and number % stretch == 0:
            if trainer is None:
                trainer = Trainer(hooked, sampling)
                listener = Counted(trainer)
                trainer.start()
            else:
                trainer.close()
                trainer = listener = None
            hooked.listener = listener
        if listener is not None:
            listener.looked_at = False
        latency_s = timed(hooked, given[number % len(given)])
        looked_at = listener is not None and listener.looked_at
        found.append(Timed(SILENT if listener is None else TRAINER, looked_at, latency_s))
    if trainer is not None:
        trainer.close()
        hooked.listener = None
    return found


def timed(hooked: Hooked, inputs: dict[str, Array]) -> float:
    """One run, listeners included, in s."""
    start_s = time.perf_counter()
    hooked.run(inputs, keep=True)
    return time.perf_counter() - start_s


def rows_of(found: Sequence[Timed]) -> list[list[object]]:
    """A row a listener: share looked at, medians, what it adds, 99th percentile."""
    plain_s = statistics.median(run.latency_s for run in found if run.listener == SILENT)
    rows: list[list[object]] = []
    for name in dict.fromkeys(run.listener for run in found):
        runs = [run for run in found if run.listener == name]
        parts = [[run.latency_s for run in runs if run.looked_at == looked_at] for looked_at in (False, True)]
        medians_s = [statistics.median(part) if part else plain_s for part in parts]
        share = len(parts[1]) / len(runs)
        added_s = sum(
            weight * (median_s - plain_s) for weight, median_s in zip((1 - share, share), medians_s, strict=True)
        )
        p99_s = float(np.quantile([run.latency_s for run in runs], 0.99))
        rows.append([
            name, len(runs), f"{share:.1%}", f"{medians_s[0] * 1e3:.4f}", f"{medians_s[1] * 1e3:.4f}" if share else "",
            f"{added_s * 1e6:+.1f}", f"{added_s / plain_s:+.2%}", f"{p99_s * 1e3:.3f}",
        ])  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="local", help="whose predictions mount the points (default local)")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--dim", type=parse_dim, action="append", default=[], metavar="NAME=N")
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--look-every", type=int, default=Sampling().look_every)
    given = parser.parse_args(arguments)
    model = fill_weights(load(given.model))
    with attach(model, latpred.load(given.device, home=given.home), dims=dict(given.dim)) as hooked:
        print(f"{given.model}: {len(hooked.points)} points, {', '.join(hooked.points) or 'none'}")
        sampling = Sampling(given.look_every, 4 * given.look_every)
        turns = in_turns(hooked, given.runs, sampling)
        stretches = in_stretches(hooked, given.runs // 2, sampling)
    headers = ["listener", "runs", "looked at", "others ms", "looked at ms", "adds us", "adds", "p99 ms"]
    print(tabulate([*rows_of(turns), *rows_of(stretches)], headers, disable_numparse=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
