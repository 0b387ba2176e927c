"""Evaluate, on small constants, the ops that exporters compute shapes, indices and masks with.

One literal table: op -> function of (inputs, attributes, opset) -> output value or values. An absent optional input
is None. Functions follow the operator's definition in the ONNX specification; what they do not cover they decline.
"""

# ruff: noqa: ARG001, ARG005 - the functions of a table share one signature

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx

from latpred.tensors import DTYPE_NAMES, RAW_DTYPES, VALUE_LIMIT, Array, AttributeValue, dtype_of

__all__ = ["FOLDED", "fold"]

Attributes = Mapping[str, AttributeValue]
Inputs = Sequence[Array | None]
Function = Callable[[Inputs, Attributes, int], Any]


CAST_DTYPES = frozenset(DTYPE_NAMES[code] for code in RAW_DTYPES) | {"bfloat16"}


class _Declined(Exception):  # noqa: N818 - control flow, never leaves this module
    """The value is too large to be worth having, or the case is not covered."""


def fold(op_type: str, inputs: Inputs, attributes: Attributes, opset: int, output_count: int = 1) -> list[Array] | None:
    """The outputs' values, or None where the op is not in the table or declines.

    Examples
    --------
    >>> fold("Concat", [np.array([1, 2]), np.array([3])], {"axis": 0}, 17)
    [array([1, 2, 3])]
    """
    function = FOLDED.get(op_type)
    if function is None:
        return None
    if op_type == "Split":
        attributes = {"num_outputs": output_count, **attributes}
    try:
        with np.errstate(all="ignore"):
            result = function(inputs, attributes, opset)
    except (_Declined, ValueError, IndexError, TypeError, KeyError, OverflowError):
        return None  # the shape rules get their turn, and name the op if they fail too
    values = [np.asarray(value) for value in (result if isinstance(result, list) else [result])]
    if len(values) < output_count or any(value.size > VALUE_LIMIT for value in values):
        return None
    return values


def _ints(value: Any) -> list[int]:
    return [int(v) for v in np.asarray(value).reshape(-1)]


def _bounded(shape: Sequence[int]) -> Sequence[int]:
    if prod(shape) > VALUE_LIMIT:
        raise _Declined
    return shape


def _elementwise(function: Callable[..., Any]) -> Function:
    def apply(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
        if "axis" in attributes or "broadcast" in attributes:  # the limited broadcasting before opset 7
            raise _Declined
        arrays = [x for x in inputs if x is not None]
        _bounded(np.broadcast_shapes(*(x.shape for x in arrays)))
        return function(*arrays)

    return apply


def _kept_dtype(function: Callable[..., Any]) -> Function:
    return _elementwise(lambda first, *rest: np.asarray(function(first, *rest)).astype(first.dtype, copy=False))


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    quotient = np.abs(a) // np.maximum(np.abs(b), 1)  # integer division truncates towards zero
    return np.asarray(np.sign(a) * np.sign(b) * quotient)


def _variadic(function: Callable[[Any, Any], Any]) -> Function:
    def reduce_all(*arrays: Array) -> Any:
        result: Any = arrays[0]
        for array in arrays[1:]:
            result = function(result, array)
        return result

    return _elementwise(reduce_all)


def _modulo(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    return _elementwise(np.fmod if attributes.get("fmod", 0) else np.mod)(inputs, {}, opset)


def _cast(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    code = int(attributes["to"])  # type: ignore[arg-type]
    if DTYPE_NAMES.get(code) not in CAST_DTYPES or inputs[0] is None or dtype_of(inputs[0]) not in CAST_DTYPES:
        raise _Declined
    return inputs[0].astype(onnx.helper.tensor_dtype_to_np_dtype(code))


def _cast_like(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    assert inputs[0] is not None and inputs[1] is not None
    return inputs[0].astype(inputs[1].dtype)


def _axes(inputs: Inputs, attributes: Attributes) -> tuple[int, ...] | None:
    """Axes as an attribute (older opsets) or as the second input."""
    if "axes" in attributes:
        return attributes["axes"]  # type: ignore[return-value]
    if len(inputs) > 1 and inputs[1] is not None:
        return tuple(_ints(inputs[1]))
    return None


def _unsqueeze(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    axes = _axes(inputs, attributes)
    assert axes is not None and inputs[0] is not None
    return np.expand_dims(inputs[0], axes)


def _squeeze(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    assert inputs[0] is not None
    return np.squeeze(inputs[0], _axes(inputs, attributes))


def _reshape(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    data, target = inputs[0], _ints(inputs[1])
    assert data is not None
    if not attributes.get("allowzero", 0):
        target = [data.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return data.reshape(target)


def _flatten(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    data = inputs[0]
    assert data is not None
    axis = int(attributes.get("axis", 1))  # type: ignore[arg-type]
    axis += data.ndim if axis < 0 else 0
    return data.reshape(prod(data.shape[:axis]), -1)


def _slice(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    data = inputs[0]
    assert data is not None
    if "starts" in attributes:
        starts, ends = _ints(attributes["starts"]), _ints(attributes["ends"])
        axes = _ints(attributes.get("axes", tuple(range(len(starts)))))
        steps = [1] * len(starts)
    else:
        starts, ends = _ints(inputs[1]), _ints(inputs[2])
        axes = _ints(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
        steps = _ints(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    index: list[slice] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = data.shape[axis]
        # an end below -size means "past the first element" when stepping backwards
        index[axis] = slice(start, None if step < 0 and end < -size else end, step)
    return data[tuple(index)]


def _split(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    data = inputs[0]
    assert data is not None
    axis = int(attributes.get("axis", 0))  # type: ignore[arg-type]
    sizes = attributes.get("split") or (_ints(inputs[1]) if len(inputs) > 1 and inputs[1] is not None else None)
    if sizes is None:  # equal parts, the last one smaller
        size = -(-data.shape[axis] // int(attributes["num_outputs"]))  # type: ignore[arg-type]
        sizes = [size] * int(attributes["num_outputs"])  # type: ignore[arg-type]
    return list(np.split(data, np.cumsum(sizes)[:-1], axis))


def _gather(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    data, indices = inputs[0], inputs[1]
    assert data is not None and indices is not None
    axis = int(attributes.get("axis", 0))  # type: ignore[arg-type]
    _bounded((prod(data.shape) // max(1, data.shape[axis]), indices.size))
    return np.take(data, indices, axis)


def _gather_elements(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    return np.take_along_axis(inputs[0], inputs[1], int(attributes.get("axis", 0)))  # type: ignore


def _gather_nd(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    data, indices = inputs[0], inputs[1]
    assert data is not None and indices is not None
    if attributes.get("batch_dims", 0):
        raise _Declined
    return data[tuple(np.moveaxis(indices, -1, 0))]


def _scatter_nd(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    data, indices, updates = inputs[0], inputs[1], inputs[2]
    assert data is not None and indices is not None
    if attributes.get("reduction", "none") != "none":
        raise _Declined
    result = data.copy()
    result[tuple(np.moveaxis(indices, -1, 0))] = updates
    return result


def _concat(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    return np.concatenate(inputs, int(attributes.get("axis", 0)))  # type: ignore


def _expand(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    assert inputs[0] is not None
    shape = np.broadcast_shapes(inputs[0].shape, tuple(_ints(inputs[1])))
    return np.broadcast_to(inputs[0], tuple(_bounded(shape)))


def _tile(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    assert inputs[0] is not None
    repeats = _ints(inputs[1])
    _bounded([*inputs[0].shape, *repeats])
    return np.tile(inputs[0], repeats)


def _range(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    start, limit, delta = (x.reshape(-1)[0] for x in inputs if x is not None)
    _bounded([max(0, int(np.ceil((limit - start) / delta)))])
    return np.arange(start, limit, delta, dtype=start.dtype)


def _transpose(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    return np.transpose(inputs[0], attributes.get("perm"))  # type: ignore


def _reduce(function: Callable[..., Any]) -> Function:
    def apply(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
        data, axes = inputs[0], _axes(inputs, attributes)
        assert data is not None
        if not axes and attributes.get("noop_with_empty_axes", 0):
            raise _Declined
        kept = bool(attributes.get("keepdims", 1))
        return np.asarray(function(data, axis=axes or None, keepdims=kept)).astype(data.dtype, copy=False)

    return apply


def _arg(function: Callable[..., Any]) -> Function:
    def apply(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
        if attributes.get("select_last_index", 0):
            raise _Declined
        axis, kept = int(attributes.get("axis", 0)), bool(attributes.get("keepdims", 1))  # type: ignore[arg-type]
        return np.asarray(function(inputs[0], axis=axis, keepdims=kept)).astype(np.int64)

    return apply


def _cumulative_sum(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    if attributes.get("exclusive", 0) or attributes.get("reverse", 0):
        raise _Declined
    assert inputs[0] is not None
    return np.cumsum(inputs[0], _ints(inputs[1])[0], dtype=inputs[0].dtype)


def _triangle(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    offset = _ints(inputs[1])[0] if len(inputs) > 1 and inputs[1] is not None else 0
    return (np.triu if attributes.get("upper", 1) else np.tril)(inputs[0], offset)  # type: ignore


def _one_hot(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    indices, values = inputs[0], inputs[2]
    assert indices is not None and values is not None
    depth, axis = _ints(inputs[1])[0], int(attributes.get("axis", -1))  # type: ignore[arg-type]
    _bounded([*indices.shape, depth])
    if indices.min(initial=0) < -depth or indices.max(initial=0) >= depth:
        raise _Declined
    hot = np.expand_dims(indices % depth, axis) == np.moveaxis(
        np.arange(depth).reshape([-1] + [1] * indices.ndim), 0, axis
    )
    return np.where(hot, values[1], values[0])


def _clip(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    data = inputs[0]
    assert data is not None
    low = inputs[1] if len(inputs) > 1 else attributes.get("min")
    high = inputs[2] if len(inputs) > 2 else attributes.get("max")
    return np.clip(data, low, high).astype(data.dtype, copy=False)


def _is_inf(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    if not (attributes.get("detect_positive", 1) and attributes.get("detect_negative", 1)):
        raise _Declined
    assert inputs[0] is not None
    return np.isinf(inputs[0])


def _non_zero(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    assert inputs[0] is not None
    return np.array(np.nonzero(np.atleast_1d(inputs[0])), np.int64)


def _einsum(inputs: Inputs, attributes: Attributes, opset: int) -> Any:
    return np.einsum(str(attributes["equation"]), *(x for x in inputs if x is not None))


FOLDED: Mapping[str, Function] = {
    "Abs": _elementwise(np.abs),
    "Add": _elementwise(np.add),
    "And": _elementwise(np.logical_and),
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "BitwiseAnd": _elementwise(np.bitwise_and),
    "BitwiseNot": _elementwise(np.bitwise_not),
    "BitwiseOr": _elementwise(np.bitwise_or),
    "BitwiseXor": _elementwise(np.bitwise_xor),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _elementwise(np.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Cos": _elementwise(np.cos),
    "CumSum": _cumulative_sum,
    "Div": _elementwise(_divide),
    "Einsum": _einsum,
    "Equal": _elementwise(np.equal),
    "Exp": _elementwise(np.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _elementwise(np.floor),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Greater": _elementwise(np.greater),
    "GreaterOrEqual": _elementwise(np.greater_equal),
    "Identity": lambda inputs, attributes, opset: inputs[0],
    "IsInf": _is_inf,
    "IsNaN": _elementwise(np.isnan),
    "Less": _elementwise(np.less),
    "LessOrEqual": _elementwise(np.less_equal),
    "Log": _elementwise(np.log),
    "Max": _variadic(np.maximum),
    "Min": _variadic(np.minimum),
    "Mod": _modulo,
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "NonZero": _non_zero,
    "Not": _elementwise(np.logical_not),
    "OneHot": _one_hot,
    "Or": _elementwise(np.logical_or),
    "Pow": _kept_dtype(np.power),
    "Range": _range,
    "Reciprocal": _elementwise(np.reciprocal),
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Relu": _elementwise(lambda x: np.maximum(x, 0)),
    "Reshape": _reshape,
    "Round": _elementwise(np.round),
    "ScatterND": _scatter_nd,
    "Sign": _elementwise(np.sign),
    "Sin": _elementwise(np.sin),
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _elementwise(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _elementwise(np.subtract),
    "Sum": _variadic(np.add),
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise(np.where),
    "Xor": _elementwise(np.logical_xor),
}
