"""The one place where a kernel becomes numbers: fitting and predicting both call `features`.

A row holds the same columns for every kernel; NaN says that a column does not apply. Columns are the kernel's size,
its roofline terms, where its operands lie when it starts (distances against cache sizes), and the numbers of its
views (`latpred.kernels.views`) with what the runtime's blocking makes of them: how full the last block of channels,
rows or columns is, how wide an unpadded row is, how large a packed weight.

The blocking mirrors onnxruntime's CPU kernels: channels in blocks of one vector, up to four blocks of filters at a
time, six pixels at a time in a blocked convolution; 12 rows by two vectors of columns in a matrix product. What these
loops read and write over and over is counted too (`*_streamed`), and how often they are entered (`*_calls`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from latpred.device import Device
from latpred.kernels.kernel import Kernel
from latpred.kernels.roofline import Terms, bound, roofline_s, roofline_terms
from latpred.kernels.views import COLUMNS, views_of

__all__ = ["FEATURES", "bound", "features", "features_and_terms", "roofline_s"]

Floats = NDArray[np.float64]
Columns = Mapping[str, Floats]

FILTER_BLOCKS = 4  # blocks of filters that a blocked convolution computes together
PIXELS = 6  # output pixels that a blocked convolution computes together
DEPTH = 128  # input channels that a pointwise convolution takes before it writes its result
PANEL_COLUMNS, PANEL_DEPTH = 128, 256  # of the right operand that a matrix product goes through at a time
PRODUCT_ROWS = 12  # rows that a matrix product computes together
PAGE_BYTES = 4096  # strides that this divides fall into the same sets of a first-level cache

# Cost order of what is applied to an element, cheapest first; the rank is a feature.
OP_ORDER = (
    "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Relu", "Neg", "Abs", "Not", "And", "Or", "Xor", "Add",
    "Sub", "Mul", "Max", "Min", "Sum", "Clip", "LeakyRelu", "PRelu", "HardSigmoid", "HardSwish", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Where", "Div", "Sqrt", "Reciprocal", "Floor", "Ceil", "Round", "Sign",
    "IsNaN", "IsInf", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "QuickGelu", "Gelu", "FastGelu", "BiasGelu", "Softplus",
    "Elu", "Selu", "Celu", "Mish", "Mod", "Sin", "Cos", "Pow",
    "ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceL1", "ReduceSumSquare", "ReduceL2", "ReduceProd",
    "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin", "CumSum",
    "MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool",
    "ReorderInput", "ReorderOutput", "DepthToSpace", "SpaceToDepth", "Col2Im",
    "Softmax", "LogSoftmax", "LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization",
    "Gather", "GatherElements", "GatherND", "ScatterND", "ScatterElements", "Expand", "Tile", "Concat", "Split",
    "Slice", "Pad", "DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "QLinearAdd", "QLinearMul",
    "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax",
    "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "QLinearMatMul", "QGemm", "MatMulNBits", "Conv", "FusedConv", "QLinearConv", "ConvInteger", "RNN", "GRU", "LSTM",
)  # fmt: skip
_OP_RANK = {op_type: float(rank) for rank, op_type in enumerate(OP_ORDER)}

# Activations fused behind a kernel, cheapest first; "add" is counted apart.
_EPILOGUE_RANK = {
    name: float(rank)
    for rank, name in enumerate(("relu", "clip", "leakyrelu", "hardsigmoid", "hardswish", "sigmoid", "tanh", "gelu"), 1)
}
_DTYPE_RANK = {
    name: float(rank)
    for rank, name in enumerate(
        ("float32", "float16", "bfloat16", "float64", "uint8", "int8", "bool", "int32", "int64")
    )
}
_ITEM_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "float64": 8.0, "uint8": 1.0, "int8": 1.0, "bool": 1.0,
               "int32": 4.0, "int64": 8.0}  # fmt: skip
_BLOCKED_DOMAIN = "com.microsoft.nchwc"

GENERAL = (
    "macs", "flops", "read_bytes", "write_bytes", "weight_bytes", "reuse_bytes", "rewrite_bytes", "cycle_bytes",
    "elements_in", "elements_out", "inner_in", "inner_out", "rank_out", "operands_in", "operands_out",
    "constant_operands",
    "residual", "activation", "op", "blocked", "dtype_in", "dtype_out", "item_bytes_in", "item_bytes_out",
)  # fmt: skip
_GENERAL_LOGS = slice(0, 12)


def _general(kernel: Kernel) -> tuple[float, ...]:
    work, context, inputs, outputs = kernel.work, kernel.context, kernel.inputs, kernel.outputs
    first = inputs[0] if inputs else None
    last = outputs[0] if outputs else None
    dtype_in = first.dtype if first else "float32"
    dtype_out = last.dtype if last else "float32"
    epilogue = kernel.epilogue
    return (
        work.macs, work.flops, work.read_bytes, work.write_bytes, work.weight_bytes, context.reuse_bytes,
        context.rewrite_bytes, context.cycle_bytes, max((s.elements for s in inputs), default=0),
        last.elements if last else 0,
        first.shape[-1] if first and first.shape else 1, last.shape[-1] if last and last.shape else 1,
        len(last.shape) if last else 0, len(inputs), len(outputs), sum(s.constant for s in inputs),
        "add" in epilogue, max((_EPILOGUE_RANK.get(name, 0.0) for name in epilogue), default=0.0),
        _OP_RANK.get(kernel.op_type, -1.0), kernel.domain == _BLOCKED_DOMAIN,
        _DTYPE_RANK.get(dtype_in, 9.0), _DTYPE_RANK.get(dtype_out, 9.0),
        _ITEM_BYTES.get(dtype_in, 4.0), _ITEM_BYTES.get(dtype_out, 4.0),
    )  # fmt: skip


def _filled(count: Floats, block: float) -> Floats:
    """Share of the blocks that is used: 1 where the count divides, 1/block for a count of 1."""
    count = np.maximum(count, 1.0)
    return count / (block * np.ceil(count / block))


def _log(values: Floats) -> Floats:
    return np.log2(np.maximum(values, 0.0) + 1.0)


def _ratio(values: Floats, size: float) -> Floats:
    return np.log2(np.maximum(values, 1.0) / size)


def _alignment(elements: Floats, item_bytes: float = 4.0) -> Floats:
    """Largest power of two up to a page that divides a stride, as a logarithm; 12 where rows share their cache sets."""
    strides = np.nan_to_num(np.maximum(elements, 1.0) * item_bytes).astype(np.int64)
    return np.log2(np.gcd(strides, PAGE_BYTES))


# -- what the runtime's blocking makes of each view ------------------------------------------------------------------


def _window(raw: Columns, device: Device) -> dict[str, Floats]:
    lanes = device.width("float32")
    near, shared, _ = device.levels
    depth_in, depth_out = raw["channels_in"] / raw["groups"], raw["channels_out"] / raw["groups"]
    taps = raw["kernel_height"] * raw["kernel_width"]
    pixels_in, pixels_out = raw["height_in"] * raw["width_in"], raw["height_out"] * raw["width_out"]
    span = (raw["kernel_width"] - 1) * raw["dilation_width"] + 1
    inside = np.clip(np.floor((raw["width_in"] - span) / raw["stride_width"]) + 1, 0, raw["width_out"])
    inside -= (raw["pad_left"] > 0) & (inside == raw["width_out"])
    blocks = np.ceil(depth_out / lanes)
    filters_bytes = 4.0 * np.minimum(blocks, FILTER_BLOCKS) * lanes * depth_in * taps
    return {
        "depth_in": depth_in,
        "depth_out": depth_out,
        "taps": taps,
        "patch": depth_in * taps,
        "pixels_in": pixels_in,
        "pixels_out": pixels_out,
        "pixels_out_all": pixels_out * raw["batch"],
        "pixels_shrink": pixels_in / np.maximum(pixels_out, 1),
        "filled_in": _filled(depth_in, lanes),
        "filled_out": _filled(depth_out, lanes),
        "filled_groups": _filled(raw["groups"], lanes),
        "filter_blocks_left": blocks % FILTER_BLOCKS,
        "filled_filter_blocks": _filled(blocks, FILTER_BLOCKS),
        "filled_pixels": _filled(pixels_out, PIXELS),
        "inside": inside,
        "inside_share": inside / np.maximum(raw["width_out"], 1),
        "filled_inside": _filled(inside, PIXELS),
        "filled_row": _filled(raw["width_out"], PIXELS),
        "filters_in_near": _ratio(filters_bytes, near.size_bytes),
        "rows_in_near": _ratio(4.0 * depth_in * raw["width_in"] * raw["kernel_height"], near.size_bytes),
        "image_in_near": _ratio(4.0 * raw["channels_in"] * pixels_in, near.size_bytes),
        "patches_in_shared": _ratio(4.0 * depth_in * taps * pixels_out, shared.size_bytes),
        "padded": raw["pad_height"] + raw["pad_width"],
        "plane_alignment": _alignment(pixels_in * lanes),
        "row_alignment": _alignment(raw["width_in"] * lanes),
        "depth_ratio": np.log2(np.maximum(depth_out, 1) / np.maximum(depth_in, 1)),
        "calls": raw["batch"]
        * raw["groups"]
        * raw["height_out"]
        * np.ceil(depth_in / lanes)
        * np.ceil(blocks / FILTER_BLOCKS),
        "filters_streamed": 4.0 * raw["channels_out"] * depth_in * taps * raw["height_out"] * raw["batch"],
        "image_streamed": 4.0 * raw["batch"] * raw["channels_in"] * pixels_in * np.ceil(blocks / FILTER_BLOCKS),
        "result_streamed": 4.0 * raw["batch"] * raw["channels_out"] * pixels_out * np.ceil(depth_in / DEPTH),
    }


def _product(raw: Columns, device: Device) -> dict[str, Floats]:
    lanes = device.width("float32")
    near, shared, _ = device.levels
    m, n, k, products = raw["m"], raw["n"], raw["k"], raw["products"]
    return {
        "product_macs": m * n * k,
        "left_bytes": 4.0 * m * k,
        "right_bytes": 4.0 * k * n,
        "result_bytes": 4.0 * m * n,
        "filled_m": _filled(m, PRODUCT_ROWS),
        "m_left": m % PRODUCT_ROWS,
        "filled_n": _filled(n, lanes),
        "filled_n_pair": _filled(n, 2 * lanes),
        "left_in_near": _ratio(4.0 * m * k, near.size_bytes),
        "right_in_near": _ratio(4.0 * k * n, near.size_bytes),
        "right_in_shared": _ratio(4.0 * k * n, shared.size_bytes),
        "all_in_near": _ratio(4.0 * (m * k + k * n + m * n), near.size_bytes),
        "all_in_shared": _ratio(4.0 * products * (m * k + k * n + m * n), shared.size_bytes),
        "m_over_n": np.log2(np.maximum(m, 1) / np.maximum(n, 1)),
        "m_over_k": np.log2(np.maximum(m, 1) / np.maximum(k, 1)),
        "packing_share": np.where(raw["constant_b"] > 0, 0.0, 1.0 / np.maximum(m, 1)),
        "alignment_m": _alignment(m),
        "alignment_n": _alignment(n),
        "alignment_k": _alignment(k),
        "left_streamed": 4.0 * products * m * k * np.ceil(n / PANEL_COLUMNS),
        "result_streamed": 4.0 * products * m * n * np.ceil(k / PANEL_DEPTH),
        "right_packed": np.where(raw["constant_b"] > 0, 0.0, 4.0 * products * k * n),
        "filled_k": _filled(k, PANEL_DEPTH),
        "filled_panel": _filled(n, PANEL_COLUMNS),
        "calls": products * np.ceil(m / PRODUCT_ROWS) * np.ceil(n / (2 * lanes)) * np.ceil(k / PANEL_DEPTH),
        "intensity": m * n * k / np.maximum(m * k + k * n + m * n, 1),
    }


def _recurrence(raw: Columns, device: Device) -> dict[str, Floats]:
    step_bytes = 4.0 * raw["gates"] * raw["hidden_size"] ** 2
    return {
        "launches": raw["steps"] * raw["directions"],
        "step_macs": raw["sequences"] * step_bytes / 4.0,
        "step_in_near": _ratio(step_bytes, device.levels[0].size_bytes),
    }


def _rows(raw: Columns, device: Device) -> dict[str, Floats]:
    lanes = device.width("float32")
    return {
        "filled_row_length": _filled(raw["row_length"], lanes),
        "filled_inner_run": _filled(raw["inner_run"], lanes),
        "inner_alignment": _alignment(raw["inner_run"]),
        "row_cells": raw["rows"] * raw["row_length"],
    }


def _move(raw: Columns, device: Device) -> dict[str, Floats]:
    lanes = device.width("float32")
    return {
        "filled_run": _filled(raw["run"], lanes),
        "filled_inner_out": _filled(raw["inner_out"], lanes),
        "run_alignment": _alignment(raw["shortest_run"]),
        "stride_alignment": _alignment(raw["stride_of_inner"]),
        "inner_out_alignment": _alignment(raw["inner_out"]),
        "stride_in_near": _ratio(4.0 * raw["stride_of_inner"] * raw["inner_out"], device.levels[0].size_bytes),
    }


def _broadcast(raw: Columns, device: Device) -> dict[str, Floats]:
    return {"filled_span": _filled(raw["span"], device.width("float32"))}


def _resize(raw: Columns, device: Device) -> dict[str, Floats]:
    return {"resize_filled_row": _filled(raw["resize_width_out"], device.width("float32"))}


Derive = Callable[[Columns, Device], dict[str, Floats]]

# View -> (what is derived from its raw numbers, names of those that grow with size and are taken as logarithms).
DERIVED: Mapping[str, tuple[Derive, frozenset[str]]] = {
    "window": (_window, frozenset({"channels_in", "channels_out", "groups", "depth_in", "depth_out", "patch",
                                   "pixels_in", "pixels_out", "pixels_out_all", "calls", "filters_streamed",
                                   "image_streamed", "result_streamed"})),
    "product": (_product, frozenset({"m", "n", "k", "products", "product_macs", "left_bytes", "right_bytes",
                                     "result_bytes", "intensity", "left_streamed", "result_streamed",
                                     "right_packed", "calls"})),
    "recurrence": (_recurrence, frozenset({"steps", "input_size", "hidden_size", "launches", "step_macs"})),
    "rows": (_rows, frozenset({"rows", "row_length", "inner_run", "outer_rows", "row_cells"})),
    "move": (_move, frozenset({"run", "runs", "inner_in", "inner_out", "stride_of_inner", "shortest_run",
                               "index_count", "moved_axis", "crossed"})),
    "broadcast": (_broadcast, frozenset({"span", "spans", "small_elements"})),
    "resize": (_resize, frozenset({"planes", "pixels_in", "pixels_out", "resize_width_out"})),
}  # fmt: skip

_ROOFLINE = ("compute_s", "near_s", "shared_s", "off_chip_s", "roofline_s")
_RATIOS = ("own_in_near", "own_in_shared", "weight_in_near", "weight_in_shared", "reuse_in_near", "reuse_in_shared",
           "rewrite_in_near", "rewrite_in_shared", "cycle_in_shared", "own_in_cycle", "flop_per_byte",
           "memory_over_compute", "memory_over_roofline", "dispatch_over_roofline")  # fmt: skip


def _view_features(view: str) -> tuple[str, ...]:
    from latpred.device import Level

    names = COLUMNS[view]
    levels = Level("near", 1, 1.0), Level("shared", 2, 1.0), Level("off-chip", 3, 1.0)
    unit = Device("unit", "", 1, 1, 1.0, {"float32": 1.0}, levels, 1.0, {"float32": 1})
    derived = DERIVED[view][0](dict.fromkeys(names, np.ones(1)), unit)
    return tuple(f"{view}_{name}" for name in (*names, *derived))


_COLUMNS_OF_VIEW: dict[str, tuple[str, ...]] = {view: _view_features(view) for view in COLUMNS}
FEATURES: tuple[str, ...] = (*GENERAL, *_ROOFLINE, *_RATIOS, *(c for names in _COLUMNS_OF_VIEW.values() for c in names))
_FIRST_COLUMN = {view: FEATURES.index(names[0]) for view, names in _COLUMNS_OF_VIEW.items()}


def features(kernels: Sequence[Kernel], device: Device) -> NDArray[np.float32]:
    """Rows of numbers, one a kernel.

    Parameters
    ----------
    kernels : sequence of Kernel
    device : Device

    Returns
    -------
    ndarray of float32, shape (len(kernels), len(FEATURES))
        NaN where a column does not apply.
    """
    return features_and_terms(kernels, device)[0]


def features_and_terms(kernels: Sequence[Kernel], device: Device) -> tuple[NDArray[np.float32], Terms]:
    """`features` and the roofline terms that they contain, computed once."""
    terms = roofline_terms(kernels, device)
    table = np.full((len(kernels), len(FEATURES)), np.nan)
    if not kernels:
        return table.astype(np.float32), terms
    general = np.array([_general(k) for k in kernels], np.float64)
    width = len(GENERAL)
    read, write, weight, reuse, rewrite, cycle = general.T[2:8].copy()
    general[:, _GENERAL_LOGS] = _log(general[:, _GENERAL_LOGS])
    table[:, :width] = general
    memory_s, total_s = terms.memory_s, terms.total_s
    times = np.stack([terms.compute_s, terms.near_s, terms.shared_s, terms.off_chip_s, total_s], axis=1)
    table[:, width : width + len(_ROOFLINE)] = np.log2(times + 1e-9)
    near, shared = (level.size_bytes for level in device.levels[:2])
    own = read + write + weight
    ratios = (
        _ratio(own, near), _ratio(own, shared), _ratio(weight, near), _ratio(weight, shared), _ratio(reuse, near),
        _ratio(reuse, shared), _ratio(rewrite, near), _ratio(rewrite, shared), _ratio(cycle, shared),
        np.log2(np.maximum(own, 1.0) / np.maximum(cycle, 1.0)),
        np.exp2(general[:, 1]) / np.maximum(own, 1.0),
        np.log2((memory_s + 1e-9) / (terms.compute_s + 1e-9)), memory_s / total_s, terms.dispatch_s / total_s,
    )  # fmt: skip
    table[:, width + len(_ROOFLINE) : width + len(_ROOFLINE) + len(_RATIOS)] = np.stack(ratios, axis=1)
    members: dict[str, tuple[list[int], list[tuple[float, ...]]]] = {}
    for row, kernel in enumerate(kernels):
        for view, function in views_of(kernel).items():
            rows, raw = members.setdefault(view, ([], []))
            rows.append(row)
            raw.append(function(kernel))
    for view, (rows, raw) in members.items():
        derive, logs = DERIVED[view]
        columns = dict(zip(COLUMNS[view], np.array(raw, np.float64).T, strict=True))
        columns.update(derive(columns, device))
        first = _FIRST_COLUMN[view]
        block = np.stack([_log(values) if name in logs else values for name, values in columns.items()], axis=1)
        table[np.array(rows)[:, None], np.arange(first, first + block.shape[1])] = block
    return table.astype(np.float32), terms
