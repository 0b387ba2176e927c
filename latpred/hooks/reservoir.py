"""A uniform sample of everything that came by, under a byte budget.

Algorithm R: the first k items are kept; the i-th after them replaces a random one with probability k / i. At any time
each item that was offered is kept with the same probability. k is as many of the largest item as the budget holds:
where a larger one comes, items are put out at random, and what is left of a uniform sample is one.

References
----------
Vitter: Random sampling with a reservoir. ACM Transactions on Mathematical Software 11(1), 1985 (algorithm R).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np

from latpred.errors import HookError

__all__ = ["Reservoir"]

T = TypeVar("T")


class Reservoir(Generic[T]):
    """What is kept of a stream; used by one thread at a time.

    Parameters
    ----------
    budget_bytes : int
        Of all kept items together.
    seed : int

    Attributes
    ----------
    offered : int
        Items so far, without those that are larger than the budget.
    used_bytes : int

    Raises
    ------
    HookError
        Where the budget is not positive.

    Examples
    --------
    >>> kept = Reservoir(budget_bytes=30)
    >>> for number in range(100):
    ...     _ = kept.offer(number, 10)
    >>> len(kept), kept.used_bytes, kept.offered
    (3, 30, 100)
    """

    def __init__(self, budget_bytes: int, seed: int = 0) -> None:
        if budget_bytes <= 0:
            raise HookError(f"a positive number of bytes is needed as a budget, got {budget_bytes}: give a larger one")
        self.offered = 0
        self.used_bytes = 0
        self._budget_bytes = budget_bytes
        self._largest_bytes = 1
        self._kept: list[tuple[T, int]] = []
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[T]:
        return (item for item, _ in self._kept)

    def offer(self, item: T, size_bytes: int) -> bool:
        """Keep an item or not, whatever it is; says whether it was kept."""
        if size_bytes > self._budget_bytes:
            return False
        self._largest_bytes = max(self._largest_bytes, size_bytes)
        capacity = self._budget_bytes // self._largest_bytes
        while len(self._kept) > capacity:
            place = int(self._rng.integers(len(self._kept)))
            self._kept[place], self._kept[-1] = self._kept[-1], self._kept[place]
            self.used_bytes -= self._kept.pop()[1]
        self.offered += 1
        if len(self._kept) < capacity:
            self._kept.append((item, size_bytes))
            self.used_bytes += size_bytes
            return True
        place = int(self._rng.integers(self.offered))
        if place >= capacity:
            return False
        self.used_bytes += size_bytes - self._kept[place][1]
        self._kept[place] = item, size_bytes
        return True

    def drawn(self, count: int) -> list[T]:
        """So many of the kept items at random, all where there are no more."""
        if count >= len(self._kept):
            return list(self)
        return [self._kept[place][0] for place in self._rng.choice(len(self._kept), count, replace=False)]
