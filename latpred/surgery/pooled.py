"""A linear map of what is left of a tensor when its positions are averaged: heads of exits, and gates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from latpred.errors import SurgeryError
from latpred.surgery.cuts import Cut
from latpred.surgery.weights import bare, constant
from latpred.surgery.wiring import declared
from latpred.tensors import DTYPE_CODES, Array, Spec

__all__ = ["channels_of", "pooled_linear"]

OPSET, IR_VERSION = 17, 8
MOST_POOLED = 3  # dims that the runtime's global pooling goes over
FLOATING = ("float32", "float16", "float64")


def channels_of(cut: Cut) -> int:
    """Channels of a cut's tensor: what a linear map of its average reads.

    Raises
    ------
    SurgeryError
        Where the tensor has no batch dim beside the channels, or holds no floating values.

    Examples
    --------
    >>> channels_of(Cut("x", 0, (), (1, 64, 7, 7), "float32", 1))
    64
    """
    if cut.dtype not in FLOATING or len(cut.shape) < 2 or cut.channel_axis == 0:
        raise SurgeryError(
            f"a head needs floating values of shape (batch, channels, ...), but {cut.tensor!r} is "
            f"{cut.dtype}{list(cut.shape)}: choose another cut"
        )
    return cut.shape[cut.channel_axis]


def pooled_linear(
    cut: Cut,
    width: int,
    output: str,
    behind: Sequence[onnx.NodeProto] = (),
    more: Sequence[tuple[str, tuple[int, ...]]] = (),
    weights: tuple[Array, Array] | None = None,
    seed: int | None = 0,
) -> onnx.ModelProto:
    """Average over all positions, then a linear map to `width` values named `output`.

    Parameters
    ----------
    cut : Cut
        What is read; the graph's input has its tensor's name.
    width : int
    output : str
    behind : sequence of NodeProto
        What follows.
    more : sequence of (name, shape)
        Outputs that these make.
    weights : pair of arrays, optional
        Matrix (channels, width) and bias (width,); without it, seeded random ones.
    seed : int or None
        None leaves weights out: dims are enough to predict the latency.

    Raises
    ------
    SurgeryError
        Where the tensor cannot be averaged, or the weights do not fit.
    """
    channels, batch = channels_of(cut), cut.shape[0]
    if width < 1:
        raise SurgeryError(f"a linear map to at least one value is needed, but the width is {width}: give a larger one")
    dtype = np.dtype(cut.dtype)
    names = f"{output}:matrix", f"{output}:bias"
    if weights is None and seed is None:
        code = DTYPE_CODES[cut.dtype]
        stored = [bare(names[0], (channels, width), code), bare(names[1], (width,), code)]
    else:
        matrix, bias = (np.asarray(values, dtype) for values in weights or _drawn(channels, width, seed))
        if matrix.shape != (channels, width) or bias.shape != (width,):
            raise SurgeryError(
                f"weights of shapes ({channels}, {width}) and ({width},) are needed, but {matrix.shape} and "
                f"{bias.shape} came: train the head for this cut and this width"
            )
        stored = [constant(names[0], matrix), constant(names[1], bias)]
    nodes = [
        *_average(cut, f"{output}:pooled"),
        helper.make_node("Gemm", [f"{output}:pooled", *names], [output], f"{output}/map"),
        *behind,
    ]
    outputs = [(output, (batch, width)), *more]
    graph = helper.make_graph(
        nodes,
        f"{cut.tensor} > {output}",
        [declared(cut.tensor, cut.spec)],
        [declared(name, Spec(shape, cut.dtype)) for name, shape in outputs],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _drawn(channels: int, width: int, seed: int | None) -> tuple[Array, Array]:
    drawn = np.random.default_rng(seed).standard_normal((channels, width)) / np.sqrt(channels)
    return drawn, np.zeros(width)


def _average(cut: Cut, pooled: str) -> list[onnx.NodeProto]:
    axes = [axis for axis in range(1, len(cut.shape)) if axis != cut.channel_axis]
    if not axes:
        return [helper.make_node("Flatten", [cut.tensor], [pooled], f"{pooled}/flatten", axis=1)]
    if cut.channel_axis == 1 and 1 < len(axes) <= MOST_POOLED:
        return [
            helper.make_node("GlobalAveragePool", [cut.tensor], [f"{pooled}:map"], f"{pooled}/average"),
            helper.make_node("Flatten", [f"{pooled}:map"], [pooled], f"{pooled}/flatten", axis=1),
        ]
    return [helper.make_node("ReduceMean", [cut.tensor], [pooled], f"{pooled}/average", axes=axes, keepdims=0)]
