"""From a curve of bandwidth against working set to three levels of memory. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from latpred.collect.processor import Cache
from latpred.device import Level
from latpred.errors import MeasurementError

__all__ = ["Curve", "knees", "levels_from", "monotone", "significant"]

Curve = Sequence[tuple[int, float]]
"""Points of (working set in B, bandwidth in B/s), working sets growing."""

# A point within this share of a cache's size is inside it: near the brim, other data and the cache's placement
# of lines cost something already.
_INSIDE = 0.7
# Beyond this many times the last cache, hardly a line of the pass before is still there.
_OUTSIDE = 3.0


def significant(value: float) -> float:
    """Four significant digits: the rest is noise, and a device file is read by people.

    >>> significant(193_268_512.7)
    193300000.0
    """
    return float(f"{value:.4g}")


def monotone(speeds: Sequence[float]) -> tuple[float, ...]:
    """The closest non-increasing sequence by ratio: farther memory is never the faster one.

    Neighbours out of order are pooled at their geometric mean (pool-adjacent-violators: Ayer et al., 1955).

    >>> [round(speed) for speed in monotone([100.0, 10.0, 40.0])]
    [100, 20, 20]
    """
    pools: list[list[float]] = []
    for speed in speeds:
        pools.append([math.log(speed)])
        while len(pools) > 1 and float(np.mean(pools[-2])) < float(np.mean(pools[-1])):
            pools[-2:] = [pools[-2] + pools[-1]]
    return tuple(math.exp(float(np.mean(pool))) for pool in pools for _ in pool)


def knees(curve: Curve) -> tuple[int, int]:
    """Working sets in B up to which the first and the second plateau of a curve reach.

    The partition into three plateaus with the least squared error of the logarithm of bandwidth, by trying all.

    Raises
    ------
    MeasurementError
        When the curve has fewer than 3 points.

    Examples
    --------
    >>> knees([(1024, 90e9), (2048, 91e9), (4096, 40e9), (8192, 41e9), (16384, 9e9)])
    (2048, 8192)
    """
    if len(curve) < 3:
        raise MeasurementError(f"three levels need a bandwidth curve of 3 points or more; got {len(curve)}")
    speeds = np.log([speed for _, speed in curve])

    def error(start: int, stop: int) -> float:
        part = speeds[start:stop]
        return float(((part - part.mean()) ** 2).sum())

    end = len(curve)
    splits = [(first, second) for first in range(1, end - 1) for second in range(first + 1, end)]
    first, second = min(splits, key=lambda split: error(0, split[0]) + error(*split) + error(split[1], end))
    return curve[first - 1][0], curve[second - 1][0]


def levels_from(
    curve: Curve, caches: Sequence[Cache], memory_bytes: int, threads: int = 1
) -> tuple[Level, Level, Level]:
    """Three levels from a bandwidth curve and the caches that the system shows.

    The last cache is the shared on-chip memory, the one before it the memory at the processing elements; where
    the system shows fewer than two, the curve's knees stand in. A level's bandwidth is the median of the points
    well inside it, and never higher than that of the level before. The shared memory ends where bandwidth has
    fallen half-way (by ratio) to that of off-chip memory, if that is earlier than its told size: a virtual
    machine's neighbours use the same cache.

    Parameters
    ----------
    curve : sequence of (int, float)
        Working set of all threads together in B, their bandwidth in B/s.
    caches : sequence of Cache
        Nearest first; may be empty.
    memory_bytes : int
        Size of off-chip memory in B.
    threads : int
        Threads that measured the curve, each on its own core.

    Returns
    -------
    tuple of three Level
        The first level's size is that of one core.

    Raises
    ------
    MeasurementError
        When the curve has fewer than 3 points.

    Examples
    --------
    >>> curve = [(2**k, 90e9 if k < 19 else 40e9 if k < 23 else 10e9) for k in range(13, 28)]
    >>> [(level.name, level.size_bytes, round(level.bandwidth_bytes_per_s / 1e9)) for level in levels_from(
    ...     curve, [Cache(2, 2**18, 1), Cache(3, 2**22, 4)], 2**33)]
    [('L2', 262144, 90), ('L3', 4194304, 40), ('off-chip', 8589934592, 10)]
    """
    if len(caches) >= 2:
        near, last = caches[-2:]
        names = f"L{near.level}", f"L{last.level}", "off-chip"
        near_bytes = near.size_bytes * threads
        far_bytes = last.size_bytes * math.ceil(threads / max(1, last.shared_by))
    else:
        near_bytes, far_bytes = knees(curve)
        names = "near", "shared", "off-chip"
    far_bytes = max(far_bytes, near_bytes + 1)
    near_speed, far_speed, off_chip_speed = monotone(
        [
            _plateau(curve, 0, _INSIDE * near_bytes),
            _plateau(curve, near_bytes, _INSIDE * far_bytes),
            _plateau(curve, _OUTSIDE * far_bytes, math.inf),
        ]
    )
    half_way = math.sqrt(far_speed * off_chip_speed)
    held = [size for size, speed in curve if near_bytes < size <= far_bytes and speed >= half_way]
    shared_bytes = min(far_bytes, max(held)) if held and far_speed > off_chip_speed else far_bytes
    return (
        Level(names[0], max(1, near_bytes // threads), significant(near_speed)),
        Level(names[1], shared_bytes, significant(far_speed)),
        Level(names[2], max(memory_bytes, far_bytes + 1), significant(off_chip_speed)),
    )


def _plateau(curve: Curve, low_bytes: float, high_bytes: float) -> float:
    inside = [speed for size, speed in curve if low_bytes < size <= high_bytes]
    if inside:
        return float(np.median(inside))
    # No point is well inside: the curve's last one where it ends too early, else the nearest to the span's middle.
    if high_bytes == math.inf:
        return curve[-1][1]
    middle = math.log(max(low_bytes, 1.0) * high_bytes) / 2
    return min(curve, key=lambda point: abs(math.log(point[0]) - middle))[1]
