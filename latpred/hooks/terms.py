"""What a table says of a program, as plain numbers that a run adds up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from latpred.decide.chain import chain_of
from latpred.decide.gate import Gate
from latpred.decide.observation import Policy
from latpred.decide.points import EXIT
from latpred.decide.table import Table, Utilities
from latpred.hooks.answer import NO_DEADLINE_S
from latpred.hooks.leaving import Stake, stakes

__all__ = ["Deciding", "Terms"]


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


@dataclass(frozen=True, slots=True)
class Deciding:
    """How decisions are taken: what makes the gate of a stream.

    Attributes
    ----------
    table : Table or None
        None where no point is mounted.
    latency_s : float
        Predicted of the model as it is.
    utilities : mapping or None
        Point -> option -> what it is worth, complete; None takes the table's own.
    confidence : float
        Share of the inferences that shall meet their deadline.
    policy : str or callable
        As `Table.gate` takes it.
    tolerance : float
        Utility that leaving at an exit may lose in expectation.
    wrong : float or None
        Utility that a wrong answer loses.
    """

    table: Table | None
    latency_s: float
    utilities: Utilities | None = None
    confidence: float = 0.95
    policy: str | Policy = "optimal"
    tolerance: float = 0.05
    wrong: float | None = None

    def gate(self) -> Gate | None:
        """A gate; None where there is nothing to decide."""
        if self.table is None:
            return None
        return self.table.gate(NO_DEADLINE_S, self.confidence, self.utilities, self.policy)

    def utilities_without(self, unready: Collection[str]) -> dict[str, dict[str, float]]:
        """What options are worth where some exits cannot answer yet: no plan counts on them, whatever else is left."""
        assert self.table is not None
        worth = self.table.utilities() if self.utilities is None else self.utilities
        least = -1.0 - 3.0 * sum(max(map(abs, own.values())) for own in worth.values())
        return {
            point: {name: least if point in unready and name == EXIT else own[name] for name in options}
            for point, options, own in zip(
                self.table.points, self.table.options, map(worth.__getitem__, self.table.points), strict=True
            )
        }

    def terms(self, table: Table | None = None) -> Terms:
        """What a table says, the own one or the same with other times.

        Raises
        ------
        InputError
            Where a utility cannot be used.
        HookError
            Where what a wrong answer loses is not positive.
        """
        table = table or self.table
        if table is None:
            return Terms((self.latency_s,), (), frozenset(), {}, self.tolerance)
        utility = table.utility_of(self.utilities)
        chain = chain_of(table, utility)
        first, means_s = table.first_option.tolist(), table.mean_s.tolist()
        costs_s = tuple(
            tuple(
                mean_s + (table.decide_s if decided else 0.0) for mean_s in means_s[first[number] : first[number + 1]]
            )
            for number, decided in enumerate(chain.decided)
        )
        return Terms(
            chain.trunk_mean_s,
            costs_s,
            frozenset(number for number, decided in enumerate(chain.decided) if not decided),
            stakes(table, utility, self.policy != "safe-greedy", self.wrong),
            self.tolerance,
            callable(self.policy),
        )
