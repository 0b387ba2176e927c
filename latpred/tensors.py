"""Shape and dtype of what flows through a graph, and how a stored ONNX tensor becomes one."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from latpred.errors import ModelError

__all__ = [
    "DTYPE_CODES",
    "DTYPE_NAMES",
    "ITEM_BYTES",
    "RAW_DTYPES",
    "VALUE_LIMIT",
    "Array",
    "AttributeValue",
    "Spec",
    "Tensor",
    "computed_tensor",
    "dtype_of",
    "stored_tensor",
]

Array = np.ndarray[Any, Any]
AttributeValue = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]

VALUE_LIMIT = 4096  # elements; a larger constant is known by its shape only

RENAMED = {"float": "float32", "double": "float64"}
DTYPE_NAMES: dict[int, str] = {
    code: RENAMED.get(name.lower(), name.lower()) for name, code in onnx.TensorProto.DataType.items()
}
UNDEFINED = DTYPE_NAMES[onnx.TensorProto.UNDEFINED]
DTYPE_CODES: dict[str, int] = {name: code for code, name in DTYPE_NAMES.items()}

ITEM_BYTES: dict[str, float] = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float8e4m3fn": 1,
    "float8e4m3fnuz": 1,
    "float8e5m2": 1,
    "float8e5m2fnuz": 1,
    "float8e8m0": 1,
    "float4e2m1": 0.5,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "int4": 0.5,
    "uint4": 0.5,
    "int2": 0.25,
    "uint2": 0.25,
    "bool": 1,
    "string": 16,
    "complex64": 8,
    "complex128": 16,
    "sequence": 0,  # its items are counted where they are made
}

# dtypes whose raw bytes are numpy's own, on a little-endian machine as in the file
RAW_DTYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name).newbyteorder("<")
    for code, name in DTYPE_NAMES.items()
    if name in np.sctypeDict and np.dtype(name).kind in "fiub"
}


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and dtype of one operand; `constant` where it is known before the first inference.

    Examples
    --------
    >>> Spec((1, 3, 8, 8), "float16").size_bytes
    384
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    constant: bool = False

    @property
    def elements(self) -> int:
        """Number of elements (1 for a scalar)."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Size in bytes, without padding."""
        return int(self.elements * ITEM_BYTES[self.dtype])


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named value of a graph. `value` is there only for small constants (shapes, scalars, axes).

    A sequence or an optional has the dtype ``"sequence"`` and, where they are known, its `items`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool = False
    value: Array | None = field(default=None, compare=False)
    items: tuple[Tensor, ...] | None = None

    @property
    def spec(self) -> Spec:
        """The tensor without its name."""
        return Spec(self.shape, self.dtype, self.constant)


def stored_tensor(name: str, stored: onnx.TensorProto) -> Tensor:
    """The constant that a `TensorProto` holds; without a value where it is large or its data are not in the file.

    Raises
    ------
    ModelError
        Where its dtype is none that ONNX has.
    """
    shape = tuple(stored.dims)
    elements = prod(shape)
    code = stored.data_type
    dtype = DTYPE_NAMES.get(code, UNDEFINED)
    if dtype == UNDEFINED:
        raise ModelError(f"tensor {name!r} has the dtype code {code}, which ONNX does not have: export the model again")
    value: Array | None = None
    if elements <= VALUE_LIMIT and stored.data_location != onnx.TensorProto.EXTERNAL:
        raw_dtype = RAW_DTYPES.get(code)
        raw = stored.raw_data
        if raw_dtype is not None and len(raw) == elements * raw_dtype.itemsize:
            value = np.frombuffer(raw, raw_dtype).reshape(shape)
        elif raw or elements == 0 or _holds_typed_data(stored):
            try:
                value = numpy_helper.to_array(stored)
            except (TypeError, ValueError):  # data that do not fill the shape: only the shape can be used
                value = None
    return Tensor(name, shape, dtype, True, value)


def computed_tensor(name: str, value: Array) -> Tensor:
    """The constant that a value computed while reading makes."""
    return Tensor(name, value.shape, dtype_of(value), True, value)


def dtype_of(value: Array) -> str:
    """The dtype as latpred names it.

    Examples
    --------
    >>> dtype_of(np.zeros(2, np.float16))
    'float16'
    """
    if value.dtype.kind in "OUST":
        return "string"
    return str(value.dtype.name).replace("_", "")  # float8_e4m3fn is written without it


def _holds_typed_data(stored: onnx.TensorProto) -> bool:
    return bool(
        stored.float_data
        or stored.int64_data
        or stored.int32_data
        or stored.double_data
        or stored.uint64_data
        or stored.string_data
    )
