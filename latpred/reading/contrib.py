"""Output shapes of ONNX Runtime's own ops (domain com.microsoft and kin), which quantizers and optimizers emit.

One literal table: op -> function of (input signatures, attributes) -> output signatures. A signature is
``(shape, dtype)``; an absent optional input is None, an unneeded output is left out.
Source: the operator documentation of ONNX Runtime (docs/ContribOperators.md).
"""

# ruff: noqa: ARG001, ARG005 - the functions of a table share one signature

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx

from latpred.tensors import DTYPE_CODES, DTYPE_NAMES, AttributeValue

__all__ = ["CONTRIB_SHAPES", "NCHWC_SHAPES", "Signature"]

CHANNEL_BLOCK = 16  # of the blocked layout on AVX-512; a machine with narrower lanes has 8

Signature = tuple[tuple[int, ...], str]
Inputs = Sequence[Signature | None]
Attributes = Mapping[str, AttributeValue]
Function = Callable[[Inputs, Attributes], list[Signature | None]]


def _need(inputs: Inputs, index: int) -> Signature:
    signature = inputs[index]
    if signature is None:
        raise ValueError("a required input is absent")
    return signature


def _given(inputs: Inputs, index: int) -> Signature | None:
    return inputs[index] if index < len(inputs) else None


def _int(attributes: Attributes, name: str, default: int = 0) -> int:
    return int(cast("int", attributes.get(name, default)))


def _dtype(attributes: Attributes, name: str, default: str) -> str:
    code = _int(attributes, name, -1)
    return DTYPE_NAMES[code] if code > 0 else default


def _same(index: int = 0) -> Function:
    return lambda inputs, attributes: [_need(inputs, index)]


def _broadcast(first: int, second: int) -> Function:
    def shapes(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
        (a, dtype), (b, _) = _need(inputs, first), _need(inputs, second)
        return [(tuple(np.broadcast_shapes(a, b)), dtype)]

    return shapes


def matmul_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a matrix product as numpy and ONNX define it.

    Examples
    --------
    >>> matmul_shape((8, 1, 4, 5), (3, 5, 6))
    (8, 3, 4, 6)
    """
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    return (*np.broadcast_shapes(a[:-2], b[:-2]), *rows, *columns)


def _matmul(first: int = 0, second: int = 1, dtype: str = "") -> Function:
    def shapes(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
        (a, a_dtype), (b, _) = _need(inputs, first), _need(inputs, second)
        if _int(attributes, "transBatchA"):
            a = (*a[1:-1], a[0], a[-1])
        if _int(attributes, "transBatchB"):
            b = (*b[1:-1], b[0], b[-1])
        if _int(attributes, "transA"):
            a = (*a[:-2], a[-1], a[-2])
        if _int(attributes, "transB"):
            b = (*b[:-2], b[-1], b[-2])
        return [(matmul_shape(a, b), dtype or a_dtype)]

    return shapes


def _matmul_n_bits(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    a, dtype = _need(inputs, 0)
    return [((*a[:-1], _int(attributes, "N")), dtype)]


def _q_gemm(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    (a, a_dtype), (b, _) = _need(inputs, 0), _need(inputs, 3)
    rows = a[1] if _int(attributes, "transA") else a[0]
    columns = b[0] if _int(attributes, "transB") else b[1]
    return [((rows, columns), a_dtype if _given(inputs, 8) else "float32")]


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[-1], *shape[1:-1])


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1])


def _in_channels_last(op_type: str, operands: tuple[int, ...]) -> Function:
    function = _standard(op_type, operands)
    return lambda inputs, attributes: function(inputs, {**attributes, "channels_last": 1})


def _standard(op_type: str, operands: tuple[int, ...], dtype_from: int = 0, dtype: str = "") -> Function:
    """As the standard op of that name infers it, from the `operands` among the inputs."""

    def shapes(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
        schema = onnx.defs.get_schema(op_type, 17)
        values: dict[str, Any] = {name: value for name, value in attributes.items() if name in schema.attributes}
        last = _int(attributes, "channels_last")
        names, types = [], {}
        for index in operands:
            signature = _given(inputs, index)
            if last and signature and index == operands[0]:
                signature = (_channels_first(signature[0]), signature[1])
            names.append(f"i{index}" if signature else "")
            if signature:
                types[f"i{index}"] = onnx.helper.make_tensor_type_proto(DTYPE_CODES["float32"], signature[0])
        node = onnx.helper.make_node(op_type, names, ["y"], **values)
        found = onnx.shape_inference.infer_node_outputs(schema, node, types)
        made = tuple(d.dim_value for d in found["y"].tensor_type.shape.dim)
        return [(_channels_last(made) if last else made, dtype or _need(inputs, dtype_from)[1])]

    return shapes


def _global_pool(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    shape, dtype = _need(inputs, 0)
    spatial = (1,) * (len(shape) - 2)
    last = _int(attributes, "channels_last")
    return [((shape[0], *spatial, shape[-1]) if last else (*shape[:2], *spatial), dtype)]


def _q_concat(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    parts = [_need(inputs, index)[0] for index in range(2, len(inputs), 3)]  # Y scale, Y zero, then X, scale, zero
    axis = _int(attributes, "axis") % len(parts[0])
    total = sum(part[axis] for part in parts)
    return [((*parts[0][:axis], total, *parts[0][axis + 1 :]), _need(inputs, 2)[1])]


def _skip_norm(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    shape, dtype = _need(inputs, 0)
    statistics = ((*shape[:-1], 1), "float32")  # mean and inverse deviation
    return [(shape, dtype), statistics, statistics, (shape, dtype)]


def _embed_norm(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    (batch, length), _ = _need(inputs, 0)
    (_, width), dtype = _need(inputs, 2)
    hidden: Signature = ((batch, length, width), dtype)
    return [hidden, ((batch,), "int32"), hidden]


def _attention(past_at: int, dtype_from: int) -> Function:
    def shapes(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
        (batch, length, _), _ = _need(inputs, 0)
        dtype = _need(inputs, dtype_from)[1]
        sizes = cast("tuple[int, ...]", attributes.get("qkv_hidden_sizes", ()))
        width = sizes[2] if sizes else _need(inputs, 1)[0][-1] // 3
        heads = _int(attributes, "num_heads")
        past = _given(inputs, past_at)
        total = length + (past[0][3] if past else 0)
        return [((batch, length, width), dtype), ((2, batch, heads, total, width // heads), dtype)]

    return shapes


def _multi_head_attention(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    query, dtype = _need(inputs, 0)
    key, value = _given(inputs, 1), _given(inputs, 2)
    heads = _int(attributes, "num_heads")
    if len(query) == 5:  # packed: batch, length, heads, 3, head width
        return [((query[0], query[1], query[2] * query[4]), dtype)]
    width, length = query[2], query[1]
    if key is not None:
        length = key[0][2] if len(key[0]) == 4 else key[0][1]
    if value is not None:
        width = value[0][1] * value[0][3] if len(value[0]) == 4 else value[0][2]
    past = _given(inputs, 6)
    length += past[0][2] if past else 0
    present: Signature = ((query[0], heads, length, width // heads), dtype)
    return [((query[0], query[1], width), dtype), present, present]


def _grouped_query_attention(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    (batch, length, width), dtype = _need(inputs, 0)
    heads, kv_heads = _int(attributes, "num_heads"), _int(attributes, "kv_num_heads")
    packed = _given(inputs, 1) is None
    head_width = width // (heads + 2 * kv_heads if packed else heads)
    past = _given(inputs, 3)
    present: Signature = ((batch, kv_heads, max(length, past[0][2]) if past else length, head_width), dtype)
    return [((batch, length, heads * head_width), dtype), present, present]


def _dequantize(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    return [(_need(inputs, 0)[0], _need(inputs, 1)[1])]


def _quantize(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    zero = _given(inputs, 2)
    return [(_need(inputs, 0)[0], zero[1] if zero else _dtype(attributes, "output_dtype", "uint8"))]


def _gather_block_quantized(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    (data, _), (indices, _), (_, dtype) = _need(inputs, 0), _need(inputs, 1), _need(inputs, 2)
    axis = _int(attributes, "gather_axis") % len(data)
    return [((*data[:axis], *indices, *data[axis + 1 :]), dtype)]


def _reorder_input(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    shape, dtype = _need(inputs, 0)
    if _int(attributes, "channels_last"):
        shape = _channels_first(shape)
    blocks = -(-shape[1] // CHANNEL_BLOCK)
    return [((shape[0], blocks * CHANNEL_BLOCK, *shape[2:]), dtype)]


def _reorder_output(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    shape, dtype = _need(inputs, 0)
    shape = (shape[0], _int(attributes, "channels"), *shape[2:])
    return [(_channels_last(shape) if _int(attributes, "channels_last") else shape, dtype)]


def _blocked_upsample(inputs: Inputs, attributes: Attributes) -> list[Signature | None]:
    shape, dtype = _need(inputs, 0)
    scales = cast("tuple[int, ...]", attributes["scales"])
    return [(tuple(size * scale for size, scale in zip(shape, scales, strict=True)), dtype)]


NCHWC_SHAPES: Mapping[str, Function] = {
    "AveragePool": _standard("AveragePool", (0,)),
    "Conv": _standard("Conv", (0, 1)),
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "MaxPool": _standard("MaxPool", (0,)),
    "ReorderInput": _reorder_input,
    "ReorderOutput": _reorder_output,
    "Upsample": _blocked_upsample,
}

CONTRIB_SHAPES: Mapping[str, Function] = {
    "Attention": _attention(past_at=4, dtype_from=0),
    "BiasAdd": _same(),
    "BiasGelu": _same(),
    "BiasSoftmax": _same(),
    "BiasSplitGelu": lambda inputs, attributes: [
        ((*_need(inputs, 0)[0][:-1], _need(inputs, 0)[0][-1] // 2), _need(inputs, 0)[1])
    ],
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeMatMul": _matmul(),
    "EmbedLayerNormalization": _embed_norm,
    "FastGelu": _same(),
    "FusedConv": _standard("Conv", (0, 1)),
    "FusedGemm": _standard("Gemm", (0, 1, 2)),
    "FusedMatMul": _matmul(),
    "FusedMatMulActivation": _matmul(),
    "GatherBlockQuantized": _gather_block_quantized,
    "Gelu": _same(),
    "GemmFastGelu": _matmul(),
    "GridSample": _standard("GridSample", (0, 1)),
    "GroupNorm": _same(),
    "GroupQueryAttention": _grouped_query_attention,
    "Inverse": _same(),
    "MatMulInteger16": _matmul(dtype="int32"),
    "MatMulIntegerToFloat": lambda inputs, attributes: [
        (matmul_shape(_need(inputs, 0)[0], _need(inputs, 1)[0]), _need(inputs, 2)[1])
    ],
    "MatMulNBits": _matmul_n_bits,
    "MultiHeadAttention": _multi_head_attention,
    "NhwcFusedConv": _in_channels_last("Conv", (0, 1)),
    "NhwcMaxPool": _in_channels_last("MaxPool", (0,)),
    "QAttention": _attention(past_at=8, dtype_from=3),
    "QGemm": _q_gemm,
    "QLinearAdd": _broadcast(0, 3),
    "QLinearAveragePool": _standard("AveragePool", (0,)),
    "QLinearConcat": _q_concat,
    "QLinearConv": _standard("Conv", (0, 3)),
    "QLinearGlobalAveragePool": _global_pool,
    "QLinearLeakyRelu": _same(),
    "QLinearMul": _broadcast(0, 3),
    "QLinearReduceMean": _standard("ReduceMean", (0,)),
    "QLinearSigmoid": _same(),
    "QLinearSoftmax": _same(),
    "QLinearWhere": lambda inputs, attributes: [
        (tuple(np.broadcast_shapes(*(_need(inputs, i)[0] for i in (0, 1, 4)))), _need(inputs, 1)[1])
    ],
    "QMoE": _same(),
    "QuantizeLinear": _quantize,
    "QuickGelu": _same(),
    "RotaryEmbedding": _same(),
    "SimplifiedLayerNormalization": _same(),
    "SkipGroupNorm": _same(),
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "TransposeMatMul": _matmul(),
}
