"""What cutting costs on this machine: composite graphs run whole and as chains of pieces, in turns.

The campaign measures kernels inside whole graphs. A chain's graphs start cold, hand tensors over in the plain layout,
and write where nothing was written a moment ago; `latpred.fit` compares what that takes with its prediction.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from latpred.chained import Buffers, Piece, timed
from latpred.collect.ort import spread_cores
from latpred.collect.sample import configuration
from latpred.collect.synthesize import synthesize
from latpred.collect.templates import TEMPLATES
from latpred.decide.pricing import activation_bytes, weight_bytes
from latpred.errors import LatpredError
from latpred.graph import read
from latpred.kernels.detect import detect
from latpred.kernels.fusion import RuleBook
from latpred.packing import pack_kernel
from latpred.store import Dataset
from latpred.surgery.cuts import cuts
from latpred.surgery.pieces import piece
from latpred.surgery.tidy import tidied

__all__ = ["chain_record", "measure_chains"]

SEED_OFFSET = 1_000_003  # a stream of its own: none of these graphs is among those that kernels are learned from
MOST_CUTS = 3
ROUNDS = 9
BURST_S = 0.01  # of one of the two before the other takes its turn
LONGEST_S = 0.08  # graphs that take longer leave time for too few others


def measure_chains(
    dataset: Dataset, rules: RuleBook, budget_s: float, clock: Callable[[], float] = time.monotonic
) -> int:
    """Append chains to a dataset until the time is spent; returns how many.

    Parameters
    ----------
    dataset : Dataset
        Of this machine; graphs go on where its last chain ended.
    rules : RuleBook
        By which kernels are named.
    budget_s : float
        Loading included; the graph that is being measured when it ends is finished.
    """
    meta = dataset.meta
    index = max((record["seed"][1] for record in dataset.chains()), default=-1)
    count, until_s = 0, clock() + budget_s
    with _pinned(spread_cores(meta.threads)):
        while clock() < until_s:
            index += 1
            record = chain_record((meta.seed + SEED_OFFSET, index), rules, meta.threads)
            if record is not None:
                dataset.append(record)
                count += 1
    return count


def chain_record(seed: tuple[int, int], rules: RuleBook, threads: int = 1) -> dict[str, Any] | None:
    """One composite graph, whole and cut at drawn places; None where it is no network or cannot be cut.

    Returns
    -------
    dict or None
        JSON-ready: packed kernels of the graph and of its pieces, bytes that each touches, and latencies in s by round.
    """
    made = configuration(*seed)
    if made.quantization != "none" or not all(TEMPLATES[name].network for name in made.templates):
        return None
    composite = synthesize(made)
    if composite.estimated_s > LONGEST_S:
        return None
    try:
        model = tidied(composite.model)
        inner = cuts(model)[1:-1]
        if not inner:
            return None
        rng = np.random.default_rng(seed)
        drawn = sorted(rng.permutation(len(inner))[: int(rng.integers(1, MOST_CUTS + 1))])
        places = [cuts(model)[0], *(inner[index] for index in drawn), cuts(model)[-1]]
        parts = [piece(model, start, end) for start, end in pairwise(places)]
        whole = detect(read(model), rules).kernels
        cycle_bytes = max((kernel.context.cycle_bytes for kernel in whole), default=0)
        graphs = [read(part) for part in parts]
        of_parts = [detect(graph, rules, cycle_bytes).kernels for graph in graphs]
    except LatpredError:  # what cannot be cut is another graph's turn
        return None
    buffers = Buffers()
    whole_s, chain_s = _in_turns(
        [Piece(model, buffers, threads)], [Piece(part, buffers, threads) for part in parts]
    )  # fmt: skip
    return {
        "role": "chain",
        "seed": list(seed),
        "templates": list(made.templates),
        "whole": [pack_kernel(kernel) for kernel in whole],
        "pieces": [[pack_kernel(kernel) for kernel in kernels] for kernels in of_parts],
        "touched_bytes": [activation_bytes(graph) + weight_bytes(graph) for graph in graphs],
        "cycle_bytes": cycle_bytes,
        "whole_s": whole_s,
        "chain_s": chain_s,
    }


def _in_turns(*chains: Sequence[Piece]) -> list[list[float]]:
    """Latency of each chain in each round; the first run of a turn, on caches full of the other, does not count."""
    latencies_s: list[list[float]] = [[] for _ in chains]
    counts = []
    for chain in chains:
        timed(chain)
        counts.append(max(2, int(BURST_S / timed(chain))))
    for number in range(ROUNDS):
        for index in sorted(range(len(chains)), reverse=bool(number % 2)):
            timed(chains[index])
            latencies_s[index].append(statistics.median(timed(chains[index]) for _ in range(counts[index])))
    return latencies_s


@contextmanager
def _pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process on some cores meanwhile, where the system has such a thing."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
