"""Models that can be run: weights that are missing are drawn at random, open dims are bound."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import TensorProto, external_data_helper, helper
from onnx.checker import ValidationError

from latpred.errors import ModelError
from latpred.reading.binding import bind_inputs

__all__ = ["fill_weights", "runnable"]

# Where ops take scales of normalised values.
NORMALISED = {
    "BatchNormalization": (1, 4),
    "GroupNormalization": (1,),
    "InstanceNormalization": (1,),
    "LayerNormalization": (1,),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2,),
    "SkipSimplifiedLayerNormalization": (2,),
}
# Where ops of quantized models take scales, and where zero points. A zero point differs between channels in next to no
# model, and where it does, the runtime falls back to code that is up to a hundred times slower.
QUANTIZED = {
    "QuantizeLinear": ((1,), (2,)),
    "DequantizeLinear": ((1,), (2,)),
    "QLinearConv": ((1, 4, 6), (2, 5, 7)),
    "QLinearMatMul": ((1, 4, 6), (2, 5, 7)),
    "QGemm": ((1, 4, 7), (2, 5, 8)),
    "MatMulInteger": ((), (2, 3)),
    "ConvInteger": ((), (2, 3)),
    "MatMulIntegerToFloat": ((2, 3), (4, 5)),
    "DynamicQuantizeMatMul": ((2,), (3,)),
    "DynamicQuantizeLSTM": ((8, 10), (9, 11)),
    "QAttention": ((3, 4), (6, 7)),
}
SCALES = {**NORMALISED, **{op_type: scales for op_type, (scales, _) in QUANTIZED.items()}}
ZERO_POINTS = {op_type: points for op_type, (_, points) in QUANTIZED.items()}
UNSIGNED_ZERO = 128

DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def runnable(
    path: str | os.PathLike[str],
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> bytes:
    """A model file as bytes that a runtime can load: dims bound as a prediction binds them, no weight missing.

    The runtime is told the shapes when it loads the model: it folds shape arithmetic then, as the prediction assumes.

    Parameters
    ----------
    path : path
        External data beside it are read; where there are none, seeded random weights take their place.
    dims, shapes : mappings, optional
        As `latpred.predict` takes them.

    Raises
    ------
    ModelError
        When the file is no model, has more than 2 GB with its weights, or its external data cannot be what it says.
    DimensionError
        When a dim stays open or a name is not in the model.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        stored = {tensor.name for tensor in model.graph.initializer}
        bind_inputs([value for value in model.graph.input if value.name not in stored], dims, shapes)
        serialized: bytes = fill_weights(model, Path(path).parent).SerializeToString()
    except OSError as error:
        raise ModelError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error
    except DecodeError as error:
        raise ModelError(f"{os.fspath(path)} is not an ONNX file, or is truncated: export or copy it again") from error
    except ValidationError as error:
        raise ModelError(f"{os.fspath(path)}: external data must be as the model says ({error}): export it again, or "
                         "take the data away to have weights drawn") from error  # fmt: skip
    except (EncodeError, ValueError) as error:
        raise ModelError(f"{os.fspath(path)}: a model below 2 GB is needed to be measured ({error})") from error
    return serialized


def fill_weights(model: onnx.ModelProto, folder: Path | None = None) -> onnx.ModelProto:
    """Seeded random weights, in place, where a tensor has dims but no data.

    Scales and variances are positive, zero points all equal.

    Parameters
    ----------
    model : ModelProto
    folder : Path, optional
        Where external data lie; what lies there is read. Without it, all external data count as missing.

    Returns
    -------
    ModelProto
        The same model.

    Examples
    --------
    >>> empty = TensorProto(name="w", dims=[2, 8], data_type=TensorProto.FLOAT)
    >>> graph = helper.make_graph([], "g", [], [], [empty])
    >>> tensor = fill_weights(helper.make_model(graph)).graph.initializer[0]
    >>> onnx.numpy_helper.to_array(tensor).shape
    (2, 8)
    """
    positive = set(_operands(model.graph, SCALES))
    equal = set(_operands(model.graph, ZERO_POINTS))
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL and folder is not None and _lies_in(folder, tensor):
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
        elif tensor.data_location == TensorProto.EXTERNAL or (prod(tensor.dims) and not _has_data(tensor)):
            _draw(tensor, tensor.name in positive, tensor.name in equal)
    return model


def _operands(graph: onnx.GraphProto, places: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Names of the operands at the given places of the given ops, those in bodies included."""
    for node in graph.node:
        yield from (node.input[i] for i in places.get(node.op_type, ()) if i < len(node.input))
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _operands(attribute.g, places)


def _draw(tensor: TensorProto, positive: bool, equal: bool) -> None:
    rng = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if equal:
        values = np.full(list(tensor.dims), UNSIGNED_ZERO if dtype.kind == "u" else 0, dtype)
    elif dtype.kind in "iu":
        values = rng.integers(1, 64, list(tensor.dims)).astype(dtype)
    else:
        fan_in = int(np.prod(tensor.dims[1:])) or 1
        values = rng.standard_normal(list(tensor.dims)) * np.sqrt(2 / fan_in)
        values = (np.abs(values) + 0.5 if positive else values).astype(dtype)
    tensor.ClearField("data_location")
    del tensor.external_data[:]
    tensor.raw_data = values.tobytes()


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Every stored tensor, those of constants and of bodies included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _has_data(tensor: TensorProto) -> bool:
    return any(len(getattr(tensor, name)) for name in DATA_FIELDS)


def _lies_in(folder: Path, tensor: TensorProto) -> bool:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    return bool(location) and (folder / location).is_file()
