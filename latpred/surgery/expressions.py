"""Nodes written as arithmetic: each operator adds one to a sheet, which a model is made of later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import helper

from latpred.surgery.weights import constant
from latpred.tensors import Array

__all__ = ["Operand", "Sheet", "Term"]

# Opsets from which reductions take their axes as an input.
AXES_AS_INPUT = {"ReduceSum": 13, "ReduceMean": 18}
SPLIT_AS_INPUT = 13


class Sheet:
    """Nodes and constants in the making.

    Parameters
    ----------
    prefix : str
        What the names of all results begin with; no tensor of the model that the nodes join may.
    opset : int
    dtype : str
        Of plain numbers that stand beside terms.

    Examples
    --------
    >>> sheet = Sheet("d/", 17)
    >>> x = sheet.term("x")
    >>> y = x * (1 - x)
    >>> [(node.op_type, list(node.input)) for node in sheet.nodes]
    [('Sub', ['d/0', 'x']), ('Mul', ['x', 'd/1'])]
    """

    def __init__(self, prefix: str, opset: int, dtype: str = "float32") -> None:
        self.prefix = prefix
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self._count = 0

    def term(self, name: str) -> Term:
        """A tensor that is made elsewhere."""
        return Term(self, name)

    def constant(self, values: Any, dtype: Any = None) -> Term:
        """A stored tensor, of the sheet's dtype unless another is given."""
        name = self._name()
        self.stored.append(constant(name, np.asarray(values, self.dtype if dtype is None else dtype)))
        return Term(self, name)

    def op(self, op_type: str, *inputs: Operand, domain: str = "", **attributes: Any) -> Term:
        """Add a node with one result."""
        return self.multi(op_type, *inputs, results=1, domain=domain, **attributes)[0]

    def multi(
        self, op_type: str, *inputs: Operand, results: int, domain: str = "", **attributes: Any
    ) -> tuple[Term, ...]:
        """Add a node with several results."""
        read = [x.name if isinstance(x, Term) else self.constant(x).name for x in inputs]
        made = [self._name() for _ in range(results)]
        self.nodes.append(helper.make_node(op_type, read, made, f"{made[0]}/{op_type}", domain=domain, **attributes))
        return tuple(Term(self, name) for name in made)

    def where(self, condition: Term, taken: Operand, otherwise: Operand) -> Term:
        """Elements of `taken` where the condition holds, else of `otherwise`."""
        return self.op("Where", condition, taken, otherwise)

    def reduced(self, op_type: str, x: Term, axes: Sequence[int], keepdims: bool = True) -> Term:
        """A sum or a mean over axes, written as the opset has it."""
        if self.opset < AXES_AS_INPUT[op_type]:
            return self.op(op_type, x, axes=list(axes), keepdims=int(keepdims))
        return self.op(op_type, x, self.constant(list(axes), np.int64), keepdims=int(keepdims))

    def parts(self, x: Term, sizes: Sequence[int], axis: int) -> tuple[Term, ...]:
        """Consecutive parts of the given sizes along an axis."""
        if self.opset < SPLIT_AS_INPUT:
            return self.multi("Split", x, results=len(sizes), axis=axis, split=list(sizes))
        return self.multi("Split", x, self.constant(list(sizes), np.int64), results=len(sizes), axis=axis)

    def _name(self) -> str:
        self._count += 1
        return f"{self.prefix}{self._count - 1}"


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A tensor of a sheet by name; arithmetic with it adds nodes."""

    sheet: Sheet
    name: str

    __array_ufunc__: ClassVar[None] = None  # an array beside a term leaves the arithmetic to the term

    def op(self, op_type: str, *others: Operand, **attributes: Any) -> Term:
        """The result of a node that reads this tensor first."""
        return self.sheet.op(op_type, self, *others, **attributes)

    def shaped(self, shape: Sequence[int]) -> Term:
        """The same elements in another shape."""
        return self.op("Reshape", self.sheet.constant(list(shape), np.int64))

    def expanded(self, shape: Sequence[int]) -> Term:
        """Repeated along axes of size 1, as broadcasting does it."""
        return self.op("Expand", self.sheet.constant(list(shape), np.int64))

    def above(self, other: Operand) -> Term:
        """Whether elements are greater."""
        return self.op("Greater", other)

    def __add__(self, other: Operand) -> Term:
        return self.op("Add", other)

    def __sub__(self, other: Operand) -> Term:
        return self.op("Sub", other)

    def __mul__(self, other: Operand) -> Term:
        return self.op("Mul", other)

    def __truediv__(self, other: Operand) -> Term:
        return self.op("Div", other)

    def __matmul__(self, other: Term) -> Term:
        return self.op("MatMul", other)

    def __pow__(self, other: Operand) -> Term:
        return self.op("Pow", other)

    def __radd__(self, other: Operand) -> Term:
        return self.sheet.op("Add", other, self)

    def __rsub__(self, other: Operand) -> Term:
        return self.sheet.op("Sub", other, self)

    def __rmul__(self, other: Operand) -> Term:
        return self.sheet.op("Mul", other, self)

    def __rtruediv__(self, other: Operand) -> Term:
        return self.sheet.op("Div", other, self)

    def __neg__(self) -> Term:
        return self.op("Neg")


Operand = Term | float | Array
