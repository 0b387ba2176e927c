"""What a table says of a program, as plain numbers that a run adds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from latpred.decide.chain import chain_of
from latpred.decide.observation import Policy
from latpred.decide.table import Table, Utilities
from latpred.hooks.leaving import Stake, stakes

__all__ = ["Terms", "terms_of"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a table says of a program, as plain numbers.

    Attributes
    ----------
    trunk_s : tuple of float, length stations + 1
        Before each station, what looks there included, and behind the last.
    costs_s : tuple of tuple of float
        Of each station, those of its options, decision included.
    not_worth : frozenset of int
        Stations that are kept without looking.
    stakes : mapping of int to Stake
        Of exits.
    tolerance : float
        Of an exit's expected loss.
    asked : bool
        Whether a policy of the caller's own decides, which is to see all that is known.
    """

    trunk_s: tuple[float, ...]
    costs_s: tuple[tuple[float, ...], ...]
    not_worth: frozenset[int]
    stakes: Mapping[int, Stake]
    tolerance: float
    asked: bool = False


def terms_of(
    table: Table | None,
    latency_s: float,
    utilities: Utilities | None,
    policy: str | Policy,
    tolerance: float,
    wrong: float | None,
) -> Terms:
    """Of a table under the given utilities; of a network without points, where there is no table.

    Raises
    ------
    InputError
        Where a utility cannot be used, or what a wrong answer loses is not positive.
    """
    if table is None:
        return Terms((latency_s,), (), frozenset(), {}, tolerance)
    utility = table.utility_of(utilities)
    chain = chain_of(table, utility)
    first, means_s = table.first_option.tolist(), table.mean_s.tolist()
    costs_s = tuple(
        tuple(mean_s + (table.decide_s if decided else 0.0) for mean_s in means_s[first[number] : first[number + 1]])
        for number, decided in enumerate(chain.decided)
    )
    return Terms(
        chain.trunk_mean_s,
        costs_s,
        frozenset(number for number, decided in enumerate(chain.decided) if not decided),
        stakes(table, utility, policy != "safe-greedy", wrong),
        tolerance,
        callable(policy),
    )
