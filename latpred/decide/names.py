"""Points and options by what a caller calls them: numbers or names."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NoReturn, TypeVar

from latpred.decide.table import Table
from latpred.errors import InputError

__all__ = ["Names", "Rates"]

ROUNDING = 1e-9

Rates = Mapping[str, Mapping[str, float]]  # point -> option -> share of the inferences that take it
Value = TypeVar("Value")


class Names:
    """What the points and options of one table are called.

    Attributes
    ----------
    points : tuple of str
    options : mapping of str or int to tuple of str
        Names of a point's options, by the point's name or number.
    """

    __slots__ = ("_numbers", "options", "points")

    def __init__(self, table: Table) -> None:
        self.points = table.points
        self._numbers = self.by_either(range(len(table.points)))
        self.options: Mapping[int | str, tuple[str, ...]] = MappingProxyType(self.by_either(table.options))

    def by_either(self, values: Iterable[Value]) -> dict[int | str, Value]:
        """One value a point, found by the point's number and by its name alike."""
        listed = list(values)
        return dict(enumerate(listed)) | dict(zip(self.points, listed, strict=True))

    def number(self, point: int | str) -> int:
        """Number of a point; raises InputError where there is none."""
        try:
            return self._numbers[point]
        except (KeyError, TypeError):
            self.refuse(point)

    def refuse(self, point: object) -> NoReturn:
        """Raise InputError: there is no such point."""
        known = f"{', '.join(self.points)} (0 to {len(self.points) - 1})"
        raise InputError(f"the table has the points {known}, got {point!r}") from None

    def option(self, point: int, option: object) -> int:
        """Index of a point's option; raises InputError where there is none."""
        names = self.options[point]
        try:
            index = names.index(option) if isinstance(option, str) else operator.index(option)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            index = -1
        if 0 <= index < len(names):
            return index
        known = f"{', '.join(names)} (0 to {len(names) - 1})"
        raise InputError(f"point {self.points[point]!r} has the options {known}, got {option!r}")

    def shares(self, rates: Rates) -> list[dict[int, float]]:
        """For each point: option -> share; what is not named is kept.

        Raises
        ------
        InputError
            When a point or an option is unknown, or shares of a point are negative or above 1 together.
        """
        shares = [{0: 1.0} for _ in self.points]
        for point, given in rates.items():
            number = self.number(point)
            here = {self.option(number, option): float(share) for option, share in given.items()}
            total = sum(here.values())
            if not (all(share >= 0.0 for share in here.values()) and total <= 1.0 + ROUNDING):
                raise InputError(
                    f"rates of point {point!r} must not be negative and at most 1 together, got {dict(given)}"
                )
            here[0] = here.get(0, 0.0) + 1.0 - total
            shares[number] = here
        return shares
