"""Give every graph input a concrete shape: symbolic dims by name, shapes by input, an open batch as 1."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral

import onnx

from latpred.errors import DimensionError

__all__ = ["bind_inputs"]

NAMED_LIMIT = 4  # open dims that an error spells out
ARITHMETIC: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def bind_inputs(
    inputs: Sequence[onnx.ValueInfoProto],
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> tuple[str, ...]:
    """Write concrete shapes into `inputs`, in place, and return what was assumed, as notices.

    A shape given for an input goes before what the model says, and the symbolic dims that it fills are bound by it
    elsewhere too. A dim that stays open becomes 1 where it is batch-like: it is unnamed or its name stands only at
    first positions, and it stands there.

    Parameters
    ----------
    inputs : sequence of ValueInfoProto
        The inputs that are no initializers; those that are no tensors are left alone.
    dims : mapping of str to int
        Sizes of symbolic dims, by name.
    shapes : mapping of str to sequence of int
        Shapes of inputs, by name.

    Raises
    ------
    DimensionError
        Where a dim stays open, is bound twice, or a name is not in the model.

    Examples
    --------
    >>> value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, "H"])
    >>> bind_inputs([value], dims={"H": 8})
    ("dim 0 ('N') of input 'x' is open: taken as 1; set it with --dim N=...",)
    >>> [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    [1, 3, 8]
    """
    tensors = {value.name: value.type.tensor_type for value in inputs if value.type.HasField("tensor_type")}
    symbols = {
        name: [dim.dim_param if _is_open(dim) else "" for dim in tensor.shape.dim] for name, tensor in tensors.items()
    }
    given = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    bound = _bound_symbols(tensors, symbols, dict(dims or {}), given)
    inner = {symbol for row in symbols.values() for symbol in row[1:]}
    notices: list[str] = []
    still_open: list[str] = []
    # a batch that stays open first: other inputs' dims may be reckoned from it
    for name, tensor in sorted(tensors.items(), key=lambda item: not _opens_with(item[1])):
        if name in given:
            _set_shape(tensor, given[name])
            continue
        if not tensor.HasField("shape"):
            raise DimensionError(f"input {name!r} has no shape in the model: give it with --shape {name}=...")
        sizes = []
        for position, (dim, symbol) in enumerate(zip(tensor.shape.dim, symbols[name], strict=True)):
            if not _is_open(dim):
                size = dim.dim_value
            elif (reckoned := _evaluated(symbol, bound)) is not None:
                size = reckoned
            elif position == 0 and (not symbol or symbol not in inner):
                size = 1
                flag = f"--dim {symbol}=..." if symbol else f"--shape {name}=..."
                label = f"dim 0 ({symbol!r})" if symbol else "dim 0"
                notices.append(f"{label} of input {name!r} is open: taken as 1; set it with {flag}")
                if symbol:
                    bound[symbol] = 1
            else:
                size = 0
                still_open.append(_open_dim(name, position, symbol, tensor))
            sizes.append(size)
        _set_shape(tensor, sizes)
    if still_open:
        more = f"; and {len(still_open) - NAMED_LIMIT} more" if len(still_open) > NAMED_LIMIT else ""
        raise DimensionError("; ".join(still_open[:NAMED_LIMIT]) + more)
    return tuple(notices)


def _bound_symbols(
    tensors: Mapping[str, onnx.TypeProto.Tensor],
    symbols: Mapping[str, Sequence[str]],
    bound: dict[str, int],
    given: Mapping[str, tuple[int, ...]],
) -> dict[str, int]:
    """Sizes of symbolic dims, from those `bound` by name and from the shapes `given`; all of it checked."""
    _check_names("input", given, tensors)
    _check_names("symbolic dim", bound, {symbol for row in symbols.values() for symbol in row if symbol})
    for name, size in bound.items():
        _check_size(size, f"dim {name!r}")
    for name, shape in given.items():
        tensor = tensors[name]
        if tensor.HasField("shape") and len(shape) != len(tensor.shape.dim):
            raise DimensionError(
                f"input {name!r} has rank {len(tensor.shape.dim)} ({_written(tensor)}), "
                f"but its given shape {shape} has rank {len(shape)}: give one size a dim"
            )
        for position, size in enumerate(shape):
            _check_size(size, f"dim {position} of input {name!r}")
            symbol = symbols[name][position] if symbols[name] else ""
            if symbol and bound.setdefault(symbol, size) != size:
                raise DimensionError(
                    f"dim {symbol!r} is bound to {bound[symbol]} and, by the shape of input {name!r}, to {size}: "
                    "give it one size"
                )
    return bound


def _evaluated(symbol: str, bound: Mapping[str, int]) -> int | None:
    """The size of a symbolic dim: bound itself, or a sum or product of bound ones, as exporters write them.

    >>> _evaluated("2*heads + 1", {"heads": 4})
    9
    """
    if symbol in bound or not symbol:
        return bound.get(symbol)
    try:
        size = _value(ast.parse(symbol, mode="eval").body, bound)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError):
        return None
    return size if size > 0 else None


def _value(expression: ast.expr, bound: Mapping[str, int]) -> int:
    match expression:
        case ast.Name(id=name):
            return bound[name]
        case ast.Constant(value=int(number)):
            return number
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in ARITHMETIC:
            return ARITHMETIC[type(sign)](_value(left, bound), _value(right, bound))
    raise ValueError("not a sum or product of dims")


def _is_open(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return not dim.HasField("dim_value") or dim.dim_value < 0  # some exporters write -1 for an open dim


def _opens_with(tensor: onnx.TypeProto.Tensor) -> bool:
    dims = tensor.shape.dim
    return bool(dims) and _is_open(dims[0]) and dims[0].dim_param.isidentifier()


def _set_shape(tensor: onnx.TypeProto.Tensor, shape: Sequence[int]) -> None:
    del tensor.shape.dim[:]
    for size in shape:
        tensor.shape.dim.add().dim_value = int(size)


def _written(tensor: onnx.TypeProto.Tensor) -> str:
    """The shape as the model writes it, ``?`` for an unnamed open dim."""
    return "x".join(str(d.dim_param or "?") if _is_open(d) else str(d.dim_value) for d in tensor.shape.dim) or "scalar"


def _open_dim(name: str, position: int, symbol: str, tensor: onnx.TypeProto.Tensor) -> str:
    by_shape = f"--shape {name}=..."
    if symbol:
        return (
            f"dim {symbol!r} (dim {position} of input {name!r}, {_written(tensor)}) has no size: "
            f"give it with --dim {symbol}=N or {by_shape}"
        )
    return f"dim {position} of input {name!r} ({_written(tensor)}) has no size and no name: give it with {by_shape}"


def _check_names(what: str, given: Collection[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise DimensionError(f"the model has no {what} {name!r}; it has: {listed}")


def _check_size(size: object, what: str) -> None:
    if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
        raise DimensionError(f"{what} needs a whole number of at least 1; got {size!r}")
