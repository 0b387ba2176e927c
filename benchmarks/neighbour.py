"""A process that loads the other cores and the memory, and rests, in turns: what a device does beside an inference.

It follows a schedule that is drawn from a seed and runs by the machine's monotonic clock, so that whoever knows the
seed knows when there is load, and load comes and goes in the middle of an inference too.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Collection, Iterator
from contextlib import contextmanager

LEAST_S, MOST_S = 1.0, 5.0  # between two switches
STREAMED_BYTES = 64 * 2**20
SIDE = 512  # of the matrices
LOOK_S = 0.2  # how often a resting process looks whether it is still wanted


class Schedule:
    """When there is load; at first there is none.

    Parameters
    ----------
    start_s : float
        By `time.monotonic`.
    seed : int

    Examples
    --------
    >>> schedule = Schedule(100.0, seed=0)
    >>> schedule.is_on(100.0), schedule.is_on(schedule.next_s(100.0))
    (False, True)
    """

    def __init__(self, start_s: float, seed: int) -> None:
        self._rng = random.Random(seed)
        self._switches_s = [start_s]

    def next_s(self, now_s: float) -> float:
        """The next switch."""
        while self._switches_s[-1] <= now_s:
            self._switches_s.append(self._switches_s[-1] + self._rng.uniform(LEAST_S, MOST_S))
        return self._switches_s[bisect_right(self._switches_s, now_s)]

    def is_on(self, now_s: float) -> bool:
        """Whether there is load."""
        self.next_s(now_s)
        return bisect_right(self._switches_s, now_s) % 2 == 0


@contextmanager
def neighbour(cores: Collection[int], seed: int) -> Iterator[Schedule]:
    """Load on the cores given, anywhere where there are none, until the end of the block."""
    start_s = time.monotonic()
    given = [f"{start_s!r}", str(seed), *map(str, sorted(cores))]
    child = subprocess.Popen([sys.executable, __file__, *given])
    try:
        yield Schedule(start_s, seed)
    finally:
        child.kill()
        child.wait()


def load(schedule: Schedule) -> None:
    """Stream and multiply by the schedule, for as long as the process that wants it is there."""
    import numpy as np

    block = np.zeros(STREAMED_BYTES // 4, np.float32)
    matrix = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)
    product = np.empty_like(matrix)
    parent = os.getppid()
    while os.getppid() == parent:
        now_s = time.monotonic()
        if schedule.is_on(now_s):
            np.add(block, 1.0, out=block)
            for _ in range(4):
                np.matmul(matrix, matrix, out=product)
        else:
            time.sleep(min(LOOK_S, schedule.next_s(now_s) - now_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start_s", type=float)
    parser.add_argument("seed", type=int)
    parser.add_argument("cores", type=int, nargs="*")
    arguments = parser.parse_args()
    if arguments.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, arguments.cores)
    load(Schedule(arguments.start_s, arguments.seed))


if __name__ == "__main__":
    main()
