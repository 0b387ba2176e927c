"""Upper bounds for outputs whose size depends on the data: what a buffer for the worst case would hold.

One literal table: op -> function of (inputs, attributes) -> output shapes.
"""

# ruff: noqa: ARG001 - the functions of a table share one signature

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from latpred.tensors import AttributeValue, Tensor

__all__ = ["UPPER_BOUNDS"]

Inputs = Sequence[Tensor | None]
Attributes = Mapping[str, AttributeValue]
Bound = Callable[[Inputs, Attributes], list[tuple[tuple[int, ...], str]]]


def _non_zero(inputs: Inputs, attributes: Attributes) -> list[tuple[tuple[int, ...], str]]:
    (data,) = inputs
    assert data is not None
    return [((len(data.shape), prod(data.shape)), "int64")]


def _non_max_suppression(inputs: Inputs, attributes: Attributes) -> list[tuple[tuple[int, ...], str]]:
    boxes, scores = inputs[0], inputs[1]
    assert boxes is not None and scores is not None
    per_class = boxes.shape[1]
    kept = inputs[2] if len(inputs) > 2 else None
    if kept is not None and kept.value is not None:
        per_class = min(per_class, int(kept.value.reshape(-1)[0]))
    return [((scores.shape[0] * scores.shape[1] * per_class, 3), "int64")]


def _unique(inputs: Inputs, attributes: Attributes) -> list[tuple[tuple[int, ...], str]]:
    (data,) = inputs
    assert data is not None
    count = data.shape[int(attributes["axis"])] if "axis" in attributes else prod(data.shape)  # type: ignore[arg-type]
    shape = data.shape if "axis" in attributes else (count,)
    return [(shape, data.dtype), *[((count,), "int64")] * 3]


def _compress(inputs: Inputs, attributes: Attributes) -> list[tuple[tuple[int, ...], str]]:
    data, condition = inputs
    assert data is not None and condition is not None
    if "axis" not in attributes:
        return [((min(prod(data.shape), condition.shape[0]),), data.dtype)]
    shape, axis = list(data.shape), int(attributes["axis"])  # type: ignore[arg-type]
    shape[axis] = min(shape[axis], condition.shape[0])
    return [(tuple(shape), data.dtype)]


def _slice(inputs: Inputs, attributes: Attributes) -> list[tuple[tuple[int, ...], str]]:
    data = inputs[0]
    assert data is not None
    return [(data.shape, data.dtype)]


def _top_k(inputs: Inputs, attributes: Attributes) -> list[tuple[tuple[int, ...], str]]:
    data = inputs[0]
    assert data is not None
    return [(data.shape, data.dtype), (data.shape, "int64")]


UPPER_BOUNDS: Mapping[str, Bound] = {
    "Compress": _compress,
    "NonMaxSuppression": _non_max_suppression,
    "NonZero": _non_zero,
    "Slice": _slice,
    "TopK": _top_k,
    "Unique": _unique,
}
