"""When a head's confidence is enough to leave the network, and what leaving is worth to a gate.

Going on is worth what the point's `keep` is worth, and the best of what may follow. Leaving with a wrong answer loses
what is at stake: what the caller says that a wrong answer loses, else all of that, less what the table says leaving is
worth. A head that is right with probability c loses (1 - c) * stake in expectation. Up to a tolerance that is enough,
whatever the deadline; beyond it, leaving is worth so much less than going on, and only a deadline makes a gate leave.

Before an exit is reached, the table's utility stands for it. Where that is what leaving is worth on average, as
measured, what a wrong answer loses has to be said.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latpred.decide.table import Table
from latpred.errors import HookError

__all__ = ["Stake", "stakes"]

BONUS = 1e-6  # so that leaving beats going on where it loses nothing that counts


@dataclass(frozen=True, slots=True)
class Stake:
    """What is at stake at an exit.

    Attributes
    ----------
    keep, on : float
        What keeping is worth at the point, and what a policy adds to it for what follows.
    stake : float
    leaves : tuple of bool
        Of each option, whether it leaves.

    Examples
    --------
    A quarter of the utility is at stake; 0.9 sure is not enough for a tolerance of 0.02, 0.95 is.

    >>> at_exit = Stake(keep=0.0, on=0.25, stake=0.25, leaves=(False, True))
    >>> at_exit.utilities(0.9, 0.02), at_exit.utilities(0.95, 0.02)
    ([0.0, 0.225], [0.0, 0.250001])
    >>> round(at_exit.enough(0.02), 3)
    0.92
    """

    keep: float
    on: float
    stake: float
    leaves: tuple[bool, ...]

    def utilities(self, confidence: float, tolerance: float) -> list[float]:
        """What each option is worth when a head is so sure."""
        loss = (1.0 - confidence) * self.stake
        leaving = self.keep + self.on + (BONUS if loss <= tolerance else -loss)
        return [leaving if leaves else self.keep for leaves in self.leaves]

    def enough(self, tolerance: float) -> float:
        """The confidence from which on leaving loses no more than the tolerance."""
        return 1.0 - tolerance / self.stake if self.stake > 0.0 else -np.inf


def stakes(table: Table, utility: NDArray[np.float64], foresees: bool, wrong: float | None = None) -> dict[int, Stake]:
    """Of each point that has an exit.

    Parameters
    ----------
    table
    utility : ndarray of float64, shape (options of all points,)
    foresees : bool
        Whether the policy counts what may follow, as the optimal one does; the greedy one does not.
    wrong : float, optional
        Utility that a wrong answer loses.

    Raises
    ------
    HookError
        Where that is not positive.

    Examples
    --------
    Leaving is worth 0.1 less than going on, on average; a wrong answer loses 1, so that half sure is worth 0.5 less.

    >>> from latpred.decide.costs import Costs, Duration, OptionCosts, PointCosts
    >>> from latpred.decide.table import compile_table
    >>> keep, leave = OptionCosts("keep", "keep", Duration(0), 0), OptionCosts("exit", "exit", Duration(0), -0.1, True)
    >>> table = compile_table(Costs("m", "d", (PointCosts("p", Duration(0.1), (keep, leave)),), Duration(0.1), 0.03))
    >>> [stakes(table, table.utility, True, wrong)[0].utilities(0.5, 0.02)[1] for wrong in (None, 1.0)]
    [-0.05, -0.5]
    """
    if wrong is not None and not wrong > 0.0:
        raise HookError(f"what a wrong answer loses must be positive, got {wrong}: leave it out, or raise it")
    found = {}
    after = 0.0
    for number in reversed(range(len(table.points))):
        rows = slice(int(table.first_option[number]), int(table.first_option[number + 1]))
        ends, worth = table.ends[rows] != 0, utility[rows]
        if ends.any():
            keep = float(worth[0])
            stake = keep + after - float(worth[ends].max()) if wrong is None else wrong
            found[number] = Stake(keep, after if foresees else 0.0, stake, tuple(ends.tolist()))
        after = float(np.max(worth + ~ends * after))
    return found
