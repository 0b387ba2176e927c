"""Sequences and optionals: what lies in them, as far as constant positions tell.

One literal table: op -> function of (inputs, attributes) -> an item tuple (a sequence), a tensor, or None where the
result stays unknown. An input is a tensor, the items of a sequence, or None (absent, or a sequence whose items
nobody knows). An optional is what it holds.
"""

# ruff: noqa: ARG001, ARG005 - the functions of a table share one signature

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from latpred.tensors import AttributeValue, Tensor, computed_tensor

__all__ = ["sequence_result"]

Items = tuple[Tensor, ...]
Input = Tensor | Items | None
Attributes = Mapping[str, AttributeValue]
Function = Callable[[Sequence[Input], Attributes], Input]


def sequence_result(op_type: str, inputs: Sequence[Tensor | None], attributes: Attributes) -> Input:
    """What an op of the table makes; None where it is not in the table, or where the result stays unknown.

    Examples
    --------
    >>> parts = (Tensor("a", (2, 3), "float32"), Tensor("b", (4, 3), "float32"))
    >>> both = Tensor("s", (), "sequence", items=parts)
    >>> sequence_result("ConcatFromSequence", [both], {"axis": 0}).shape
    (6, 3)
    """
    function = SEQUENCE_OPS.get(op_type)
    if function is None or (op_type == "Identity" and not (inputs[0] and inputs[0].dtype == "sequence")):
        return None
    try:
        return function([t.items if t is not None and t.dtype == "sequence" else t for t in inputs], attributes)
    except (IndexError, KeyError, TypeError, ValueError):
        return None  # the caller names the op


def _items(value: Input) -> Items:
    if not isinstance(value, tuple):
        raise TypeError("the items of the sequence are not known")
    return value


def _tensor(value: Input) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError("a tensor is needed here")
    return value


def _position(inputs: Sequence[Input], index: int) -> int | None:
    given = inputs[index] if index < len(inputs) else None
    if isinstance(given, Tensor) and given.value is not None:
        return int(given.value.reshape(-1)[0])
    return None


def _construct(inputs: Sequence[Input], attributes: Attributes) -> Input:
    return tuple(_tensor(item) for item in inputs)


def _at(inputs: Sequence[Input], attributes: Attributes) -> Input:
    items, position = _items(inputs[0]), _position(inputs, 1)
    if position is not None:
        return items[position]
    alike = {(item.shape, item.dtype) for item in items}
    return replace(items[0], value=None, constant=False) if len(alike) == 1 else None


def _insert(inputs: Sequence[Input], attributes: Attributes) -> Input:
    items, item = _items(inputs[0]), _tensor(inputs[1])
    position = _position(inputs, 2)
    position = len(items) if position is None else position
    return (*items[:position], item, *items[position:])


def _erase(inputs: Sequence[Input], attributes: Attributes) -> Input:
    items, position = list(_items(inputs[0])), _position(inputs, 1)
    del items[-1 if position is None else position]
    return tuple(items)


def _split(inputs: Sequence[Input], attributes: Attributes) -> Input:
    data = _tensor(inputs[0])
    axis = int(cast("int", attributes.get("axis", 0))) % len(data.shape)
    total = data.shape[axis]
    kept = True
    sizes = inputs[1] if len(inputs) > 1 else None
    if sizes is None:
        kept = bool(attributes.get("keepdims", 1))
        lengths = [1] * total
    else:
        value = _tensor(sizes).value
        if value is None:
            return None
        if value.ndim:
            lengths = value.tolist()
        else:
            chunk = int(value)
            lengths = [min(chunk, total - start) for start in range(0, total, chunk)]
    return tuple(
        replace(data, value=None, shape=(*data.shape[:axis], *((length,) if kept else ()), *data.shape[axis + 1 :]))
        for length in lengths
    )


def _concat(inputs: Sequence[Input], attributes: Attributes) -> Input:
    items = _items(inputs[0])
    first = items[0]
    axis = int(cast("int", attributes["axis"]))
    constant = all(item.constant for item in items)
    if attributes.get("new_axis", 0):
        axis %= len(first.shape) + 1
        shape = (*first.shape[:axis], len(items), *first.shape[axis:])
    else:
        axis %= len(first.shape)
        shape = (*first.shape[:axis], sum(item.shape[axis] for item in items), *first.shape[axis + 1 :])
    return Tensor("", shape, first.dtype, constant)


def _length(inputs: Sequence[Input], attributes: Attributes) -> Input:
    return computed_tensor("", np.array(len(_items(inputs[0])), np.int64))


def _has_element(inputs: Sequence[Input], attributes: Attributes) -> Input:
    if inputs and inputs[0] is None:
        return None
    return computed_tensor("", np.array(bool(inputs)))


SEQUENCE_OPS: Mapping[str, Function] = {
    "ConcatFromSequence": _concat,
    "Identity": lambda inputs, attributes: inputs[0],
    "Optional": lambda inputs, attributes: inputs[0] if inputs else None,
    "OptionalGetElement": lambda inputs, attributes: inputs[0],
    "OptionalHasElement": _has_element,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": lambda inputs, attributes: (),
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
    "SplitToSequence": _split,
}
