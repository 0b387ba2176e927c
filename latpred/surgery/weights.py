"""Stored tensors with their data, or with dims only where a model has lost them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from latpred.errors import ModelError
from latpred.tensors import Array

__all__ = ["bare", "constant", "has_data", "require_weights", "values_of"]

DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def has_data(stored: TensorProto) -> bool:
    """Whether the tensor's values lie in the model itself."""
    if stored.data_location == TensorProto.EXTERNAL:
        return False
    return not prod(stored.dims) or any(len(getattr(stored, field)) for field in DATA_FIELDS)


def require_weights(model: ModelProto) -> None:
    """Raise ModelError where a stored tensor of a model has no data."""
    missing = [tensor.name for tensor in model.graph.initializer if not has_data(tensor)]
    if missing:
        raise ModelError(f"a model with its weights is needed, but {missing[0]!r} and {len(missing) - 1} more have no "
                         "data: give the file that was trained, with its data files beside it")  # fmt: skip


def values_of(stored: TensorProto) -> Array | None:
    """The values; None where the model holds dims only.

    Raises
    ------
    ModelError
        Where the data do not fill the dims.

    Examples
    --------
    >>> values_of(constant("w", np.ones(2, np.float32)))
    array([1., 1.], dtype=float32)
    >>> values_of(bare("w", (2,), TensorProto.FLOAT)) is None
    True
    """
    if not has_data(stored):
        return None
    try:
        return numpy_helper.to_array(stored)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the data of tensor {stored.name!r} do not fill its dims {list(stored.dims)}: "
                         "export the model again") from error  # fmt: skip


def constant(name: str, values: Array) -> TensorProto:
    """A stored tensor that holds `values`."""
    return numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values)), name)


def bare(name: str, shape: Sequence[int], data_type: int) -> TensorProto:
    """A stored tensor of dims without data, marked as lying elsewhere."""
    stored = TensorProto(name=name, dims=list(shape), data_type=data_type)
    stored.data_location = TensorProto.EXTERNAL
    return stored
