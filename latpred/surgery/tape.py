"""Tangents while they are written down: what each op's rule reads and adds to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from latpred.surgery.expressions import Sheet, Term
from latpred.surgery.weights import values_of
from latpred.surgery.wiring import Wiring
from latpred.tensors import Array

__all__ = ["NoRuleError", "Result", "Tape", "axis_of", "integers"]

Result = Term | tuple[Term, ...]


class NoRuleError(Exception):
    """An op, or a way of using it, that no rule knows; says which. Never leaves `latpred.surgery`."""


class Tape:
    """Tangents known so far, and the sheet that further ones are written on.

    Parameters
    ----------
    wiring : Wiring
    sheet : Sheet
    directions : int
        How many at once.
    """

    def __init__(self, wiring: Wiring, sheet: Sheet, directions: int) -> None:
        self.wiring = wiring
        self.sheet = sheet
        self.directions = directions
        self.tangents: dict[str, Term] = {}

    def moves(self, name: str) -> bool:
        """Whether a tensor has a tangent."""
        return name in self.tangents

    def value(self, name: str) -> Term:
        """The tensor itself."""
        return self.sheet.term(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the tensor itself."""
        return self.wiring.spec(name).shape

    def constant(self, node: onnx.NodeProto, place: int) -> Array:
        """The values of a constant operand."""
        stored = self.wiring.stored.get(node.input[place]) if len(node.input) > place else None
        values = None if stored is None else values_of(stored)
        if values is None:
            raise NoRuleError(f"{node.op_type} {node.name!r}, whose operand {place} is no constant")
        return values

    def only_first_moves(self, node: onnx.NodeProto) -> None:
        """Refuse a node that reads another moving tensor than its first."""
        if any(self.moves(name) for name in node.input[1:]):
            raise NoRuleError(f"{node.op_type} {node.name!r}, which reads more than one moving tensor")

    def tangent(self, name: str, rank: int | None = None) -> Term:
        """Of shape (directions, *shape), with axes of size 1 before the shape up to a rank."""
        shape, found = self.shape(name), self.tangents[name]
        more = (rank or 0) - len(shape)
        return found.shaped([self.directions, *[1] * more, *shape]) if more > 0 else found

    def filled(self, found: Term, shape: Sequence[int], whole: Sequence[int]) -> Term:
        """A tangent of something of one shape, repeated to another."""
        return found if tuple(shape) == tuple(whole) else found.expanded([self.directions, *whole])

    def reshaped(self, found: Term, shape: Sequence[int]) -> Term:
        """A tangent with the axes of another shape behind the directions."""
        return found.shaped([self.directions, *shape])

    def zeros(self, name: str) -> Term:
        """The tangent of what does not move."""
        return self.sheet.constant(0.0).expanded([self.directions, *self.shape(name)])


def axis_of(attributes: Mapping[str, object], rank: int, default: int = 0) -> int:
    """The axis that a node names, counted from the first."""
    return int(str(attributes.get("axis", default))) % rank


def integers(value: object) -> list[int]:
    """All elements of a list, tuple or array."""
    return [int(item) for item in np.asarray(value).reshape(-1)]
