"""Reductions, softmax, norms, ArgMax, TopK and CumSum, one after another, over all sorts of axes."""

from __future__ import annotations

from latpred.collect.blocks_contraction import draw_einsum
from latpred.collect.blocks_elementwise import STEPS, draw_shape
from latpred.collect.graph_builder import GraphBuilder
from latpred.collect.layers import batch_norm, layer_norm, reduce, rms_norm

__all__ = ["axis_reductions", "norms", "reductions"]

MAX_ELEMENTS = 1 << 20
TOKENS = (16, 49, 50, 64, 128, 144, 196, 197, 256, 384, 577, 784)


def _axes(b: GraphBuilder, rank: int) -> list[int]:
    options = [[rank - 1], [1], [0], list(range(2, rank)), list(range(1, rank)), [rank - 2], list(range(rank))]
    return b.choose(options, [6, 3, 0.5, 3, 0.7, 1.5, 0.3])


def reductions(b: GraphBuilder, limit_s: float) -> None:
    """Reduce*, softmax, norms, ArgMax, TopK, CumSum over all sorts of axes."""
    start_s = b.estimated_s
    while b.estimated_s - start_s < limit_s:
        b.scope = "reductions"
        shape = draw_shape(b)
        x = b.op("Sigmoid", b.input(shape))
        rank = len(shape)
        for _ in range(STEPS):
            kind = b.choose(
                ["reduce", "softmax", "norm", "arg", "cumsum", "topk", "image", "einsum"],
                [8, 4, 4, 1, 0.7, 0.7, 2.5, 1],
            )
            if kind == "reduce":
                op_type = b.choose(
                    [
                        "ReduceMean",
                        "ReduceSum",
                        "ReduceMax",
                        "ReduceL2",
                        "ReduceMin",
                        "ReduceSumSquare",
                        "ReduceL1",
                        "ReduceLogSumExp",
                    ],
                    [8, 5, 2.5, 2, 0.7, 0.7, 0.5, 0.5],
                )
                reduce(b, op_type, x, _axes(b, rank) or [rank - 1], b.chance(0.6))
            elif kind == "softmax":
                axis = int(b.choose([-1, 1, max(0, rank - 2)], [6, 1.5, 1]))
                if b.style.opset < 13:
                    axis = axis % rank
                x = b.op(str(b.choose(["Softmax", "LogSoftmax"], [5, 1])), x, axis=axis)
                x = b.op("Add", x, 1.0)
            elif kind == "norm":
                norm = b.choose(
                    ["layer", "rms", "batch", "instance", "group"] if rank >= 3 else ["layer", "rms", "batch"]
                )
                if norm == "layer":
                    x = layer_norm(b, x)
                elif norm == "rms":
                    x = rms_norm(b, x)
                elif norm == "batch":
                    x = batch_norm(b, x)
                else:
                    channels = x.shape[1]
                    x = b.op("InstanceNormalization", x, b.weight((channels,), 0.1, 1.0), b.weight((channels,), 0.1))
            elif kind == "arg":
                b.op(str(b.choose(["ArgMax", "ArgMin"], [4, 1])), x, axis=int(b.choose([rank - 1, 1])), keepdims=0)
            elif kind == "cumsum":
                b.op("CumSum", x, b.constant(int(b.choose([rank - 1, 1, 0]))))
            elif kind == "topk":
                size = x.shape[-1]
                b.multi(
                    "TopK",
                    x,
                    b.constant([max(1, min(size, int(b.choose([1, 5, 10, 50, 100]))))]),
                    outputs=2,
                    axis=-1,
                    sorted=int(b.chance(0.8)),
                )
            elif kind == "image" and rank == 4:
                op_type = str(
                    b.choose(["GlobalAveragePool", "GlobalMaxPool", "LRN", "LpNormalization"], [4, 1.5, 1, 1])
                )
                attributes = {"size": 5} if op_type == "LRN" else {"axis": 1} if op_type == "LpNormalization" else {}
                b.op(op_type, x, **attributes)
            elif kind == "einsum":
                draw_einsum(b)
        if b.chance(0.5):
            return


def axis_reductions(b: GraphBuilder, limit_s: float) -> None:
    """Sums of branches, means of tokens and of positions: reductions of one leading or middle axis, and of images."""
    start_s = b.estimated_s
    for _ in range(12):
        if b.estimated_s - start_s > limit_s:
            return
        b.scope = "axis_reductions"
        batch = int(b.choose([1, 2, 4], [10, 1, 0.7]))
        side = int(b.choose([7, 8, 14, 16, 20, 28, 32, 40, 56, 64, 80]))
        tokens, few = int(b.choose(TOKENS)), b.between(2, 8)
        channels = b.between(16, 1024, 8) if b.chance(0.85) else b.between(10, 700)
        while batch * few * channels * side * side > MAX_ELEMENTS and channels > 8:
            channels = max(8, channels // 2)
        shape, axes = b.choose(
            [
                ((batch, few, channels, side, side), [1]),  # branches of a split
                ((few, batch, channels, side, side), [0]),
                ((batch, channels // 8 + 1, few, side, side), [2]),
                ((batch, few, channels), [1]),
                ((batch, tokens, channels), [1]),
                ((batch, few, tokens, channels // 8 + 1), [int(b.choose([1, 2]))]),
                ((batch, channels, side, side), [1]),
                ((batch, channels, side, side), [2, 3]),
                ((batch, channels, side, side), [int(b.choose([2, 3]))]),
                ((batch, side, side, channels), [1, 2]),
                ((batch, channels, tokens), [2]),
            ],
            [4, 1, 1, 1, 3, 1.5, 3, 3, 1, 2, 1],
        )
        op_type = b.choose(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"], [5, 5, 1.5, 0.5])
        y = reduce(b, op_type, b.op("Sigmoid", b.input(shape)), axes, b.chance(0.5))
        if b.chance(0.3):
            b.op("Tanh", y)


def norms(b: GraphBuilder, limit_s: float) -> None:
    """Norms that stand alone: over batches, instances, groups, channels, of rows, volumes and images."""
    start_s = b.estimated_s
    for _ in range(12):
        if b.estimated_s - start_s > limit_s:
            return
        b.scope = "norms"
        x = b.op("Neg", b.input(draw_shape(b, int(b.choose([2, 3, 4, 5], [1, 2, 5, 0.5])))))
        kind = b.choose(["batch", "instance", "group", "layer", "local", "length"], [4, 3, 3, 2, 0.5, 1])
        channels = x.shape[1]
        if kind == "batch" or (kind in ("instance", "group", "local") and len(x.shape) < 3):
            y = batch_norm(b, x)
        elif kind == "instance":
            y = b.op("InstanceNormalization", x, b.weight((channels,), 0.1, 1.0), b.weight((channels,), 0.1))
        elif kind == "group":
            groups = int(b.choose([n for n in (1, 4, 8, 16, 32) if channels % n == 0]))
            rows = b.op("Reshape", x, b.constant([x.shape[0], groups, -1]))
            y = b.op("InstanceNormalization", rows, b.weight((groups,), 0.0, 1.0), b.weight((groups,), 0.0))
        elif kind == "layer":
            y = layer_norm(b, x)
        elif kind == "local" and len(x.shape) == 4:
            y = b.op("LRN", x, size=5)
        else:
            length = reduce(b, "ReduceL2", x, [int(b.choose([1, len(x.shape) - 1]))])
            y = b.op("Div", x, b.op("Add", length, 1e-3))
        b.op("Sigmoid", y)
