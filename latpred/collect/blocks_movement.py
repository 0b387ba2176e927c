"""Ops that move data: transposes of every common permutation, joins and cuts, lookups, resampling and pooling."""

from __future__ import annotations

from math import prod

import numpy as np

from latpred.collect.blocks_elementwise import draw_shape
from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import convolution, pool, reshape, resize, split, transpose, unsqueeze, window_slice

__all__ = ["joins", "lookups", "resampling", "transposes"]

MAX_IMAGE = 1 << 20  # elements
PERMUTATIONS: dict[int, tuple[tuple[tuple[int, ...], float], ...]] = {
    2: (((1, 0), 1),),
    3: (((0, 2, 1), 6), ((1, 0, 2), 2), ((2, 0, 1), 0.7), ((1, 2, 0), 0.5), ((2, 1, 0), 0.2)),
    4: (
        ((0, 2, 1, 3), 6),
        ((0, 3, 1, 2), 4),
        ((0, 2, 3, 1), 4),
        ((0, 1, 3, 2), 4),
        ((2, 0, 1, 3), 1),
        ((1, 0, 2, 3), 1),
        ((0, 3, 2, 1), 0.5),
        ((2, 3, 0, 1), 0.3),
        ((3, 0, 1, 2), 0.3),
        ((1, 2, 0, 3), 0.3),
    ),
    5: (
        ((2, 0, 3, 1, 4), 5),
        ((0, 1, 3, 2, 4), 2),
        ((0, 2, 1, 3, 4), 3),
        ((2, 0, 3, 4, 1), 1),
        ((0, 2, 3, 4, 1), 0.5),
        ((0, 4, 1, 2, 3), 0.5),
        ((0, 3, 1, 2, 4), 0.5),
        ((1, 0, 2, 3, 4), 0.5),
        ((0, 1, 4, 2, 3), 0.5),
    ),
    6: (((0, 1, 3, 2, 4, 5), 5), ((0, 3, 5, 1, 2, 4), 1), ((0, 1, 4, 2, 5, 3), 1), ((0, 2, 4, 3, 5, 1), 1)),
}


def _fresh(b: GraphBuilder, shape: tuple[int, ...]) -> Value:
    """An activation that some kernel has just written."""
    return b.op("Neg", b.input(shape))


def transposes(b: GraphBuilder, limit_s: float) -> None:
    """Permutations, each between two elementwise ops so that none is moved or cancelled."""
    start_s = b.estimated_s
    for _ in range(12):
        if b.estimated_s - start_s > limit_s:
            return
        b.scope = "transposes"
        x = _fresh(b, draw_shape(b))
        for _ in range(2):
            permutations = PERMUTATIONS[len(x.shape)]
            x = transpose(b, x, b.choose([p for p, _ in permutations], [w for _, w in permutations]))
            x = b.op("Sin", reshape(b, x, (-1, x.shape[-1])) if b.chance(0.3) else x)


def joins(b: GraphBuilder, limit_s: float) -> None:
    """Concat, Split, Slice, Pad, Tile, Expand and views, on every axis."""
    start_s = b.estimated_s
    for _ in range(12):
        if b.estimated_s - start_s > limit_s:
            return
        b.scope = "joins"
        x = _fresh(b, draw_shape(b))
        rank = len(x.shape)
        axis = int(b.choose([1, rank - 1, max(0, rank - 2), 0], [5, 3, 2, 0.5]))
        size = x.shape[axis]
        kind = b.choose(
            ["concat", "split", "slice", "pad", "tile", "expand", "step", "roll"], [6, 4, 4, 2, 0.7, 3, 1.5, 1]
        )
        if kind == "concat":
            others = []
            for _ in range(int(b.choose([1, 2, 3, 7], [5, 3, 2, 0.5]))):
                length = b.choose([size, max(1, size // 2), 1])
                shape = tuple(length if i == axis else n for i, n in enumerate(x.shape))
                others.append(_fresh(b, shape) if b.chance(0.8) else b.weight(shape, 1.0))
            b.op("Concat", x, *others, axis=axis)
        elif kind == "split" and size >= 2:
            parts = int(b.choose([p for p in (2, 3, 4, 6) if size >= p]))
            sizes = [size // parts] * (parts - 1)
            for part in split(b, x, [*sizes, size - sum(sizes)], axis):
                b.op("Neg", part)
        elif kind == "slice" and size >= 2:
            start = int(b.choose([0, 1, size // 2]))
            stop = int(b.choose([size, max(start + 1, size * 3 // 4), start + 1]))
            b.op("Neg", window_slice(b, x, axis, start, stop))
        elif kind == "step" and size >= 4:
            b.op("Neg", window_slice(b, x, axis, int(b.choose([0, 1])), size, 2))
        elif kind == "roll" and size >= 4:
            cut = size // 2
            b.op("Concat", window_slice(b, x, axis, cut, size), window_slice(b, x, axis, 0, cut), axis=axis)
        elif kind == "pad":
            mode = str(b.choose(["constant", "reflect", "edge"], [5, 1, 1]))
            pads = [0] * (2 * rank)
            for edge in range(max(0, rank - 2), rank):
                pads[edge] = int(b.chance(0.7) and x.shape[edge] > 2)
                pads[rank + edge] = int(b.choose([0, 1, 2])) if x.shape[edge] > 3 else 0
            b.op("Pad", x, b.constant(pads), *([b.constant(0.0, "float32")] if mode == "constant" else []), mode=mode)
        elif kind == "tile" and prod(x.shape) < 300_000:
            repeats = [1] * rank
            repeats[axis] = int(b.choose([2, 3]))
            b.op("Tile", x, b.constant(repeats))
        elif kind == "expand":
            thin = b.choose(
                [
                    tuple(1 if i == axis else n for i, n in enumerate(x.shape)),
                    (*x.shape[:-1], 1),
                    (*x.shape[:2], *[1] * (rank - 2)),
                    (x.shape[0], *[1] * (rank - 1)),
                    (1, *x.shape[1:]),
                    x.shape[1:],
                    (1,) * rank,
                ]
            )
            b.op("Neg", b.op("Expand", _fresh(b, thin), b.constant(list(x.shape))))


def lookups(b: GraphBuilder, limit_s: float) -> None:
    """Gather*, Scatter*, embeddings, one-hot, triangles, grids."""
    start_s = b.estimated_s
    for _ in range(10):
        if b.estimated_s - start_s > limit_s:
            return
        b.scope = "lookups"
        kind = b.choose(
            [
                "embedding",
                "gather",
                "elements",
                "gather_nd",
                "scatter_nd",
                "scatter_elements",
                "one_hot",
                "trilu",
                "grid",
                "bias_table",
                "reverse",
                "unfold",
            ],
            [3, 4, 1.5, 1, 3.5, 1, 0.5, 0.7, 0.7, 1.5, 0.2, 0.5],
        )
        rows, width = b.between(16, 512), b.between(16, 1024, 8)
        if kind == "embedding":
            table = b.weight((b.between(100, 20000), min(width, 512)), 1.0)
            b.op("Gather", table, b.input((int(b.choose([1, 4])), rows), "int64", table.shape[0]))
        elif kind == "gather":
            x = _fresh(b, draw_shape(b, int(b.choose([3, 4, 5]))))
            axis = int(b.choose([1, 2, len(x.shape) - 1]))
            if b.chance(0.5):
                b.op("Gather", x, b.constant(int(b.choose([0, x.shape[axis] - 1]))), axis=axis)
            else:
                picks = b.rng.integers(0, x.shape[axis], int(b.choose([2, 16, x.shape[axis]])))
                b.op("Gather", x, b.constant(picks), axis=axis)
        elif kind == "elements":
            x = _fresh(b, (1, rows, width))
            picked = int(b.choose([max(1, rows // 4), min(rows, 100)]))
            b.op("GatherElements", x, b.input((1, picked, width), "int64", rows), axis=1)
        elif kind == "gather_nd":
            x = _fresh(b, (rows, int(b.choose([4, 16, 64])), width // 8))
            b.op("GatherND", x, b.input((rows, 1), "int64", rows))
        elif kind == "scatter_nd":
            _scatter_nd(b, rows)
        elif kind == "scatter_elements":
            x = _fresh(b, (1, rows, width // 8))
            picked = max(1, rows // 4)
            b.op(
                "ScatterElements",
                x,
                b.input((1, picked, width // 8), "int64", rows),
                _fresh(b, (1, picked, width // 8)),
                axis=1,
            )
        elif kind == "one_hot":
            ids = b.input((1, rows), "int64", 64)
            b.op("OneHot", ids, b.constant(int(b.choose([16, 64, 256]))), b.constant([0.0, 1.0], "float32"), axis=-1)
        elif kind == "trilu" and b.style.opset >= 14:
            b.op("Trilu", _fresh(b, (1, rows, rows)), upper=int(b.chance(0.5)))
        elif kind == "grid" and b.style.opset >= 16:
            side, channels = int(b.choose([14, 28, 56])), int(b.choose([8, 32, 64, 128]))
            modes = ["bilinear", "nearest"] if b.style.opset < 20 else ["linear", "nearest"]
            grid = b.op("Tanh", b.input((1, side, side, 2)))
            b.op("GridSample", _fresh(b, (1, channels, side, side)), grid, mode=str(b.choose(modes)))
        elif kind == "bias_table":
            tokens, heads = int(b.choose([16, 49, 64, 144])), int(b.choose([2, 4, 8]))
            y = b.op(
                "Gather", _fresh(b, (4 * tokens, heads)), b.constant(b.rng.integers(0, 4 * tokens, tokens * tokens))
            )
            transpose(b, reshape(b, y, (tokens, tokens, heads)), (2, 0, 1))
        elif kind == "reverse":
            lengths = b.constant(np.full(4, rows))
            b.op("ReverseSequence", _fresh(b, (rows, 4, width)), lengths)
        elif kind == "unfold" and b.style.opset >= 18:
            side, channels = int(b.choose([7, 14, 28])), int(b.choose([16, 32, 96]))
            x = _fresh(b, (1, channels * 9, side * side))
            b.op("Col2Im", x, b.constant([side, side]), b.constant([3, 3]), pads=[1, 1, 1, 1])


def _scatter_nd(b: GraphBuilder, rows: int) -> None:
    """Updates of rows, of elements, or of a region: what exporters make of assignments to slices."""
    heads = int(b.choose([1, 3, 4, 8]))
    inner = int(b.choose([1, 16, 64, rows]))
    kind = b.choose(["rows", "elements", "region"], [3, 1.5, 2])
    if kind == "rows":
        count = int(b.choose([rows - 1, max(1, rows // 2), 1]))
        indices = np.sort(b.rng.permutation(rows)[:count])[:, None]
        b.op("ScatterND", _fresh(b, (rows, heads, inner)), b.constant(indices), _fresh(b, (count, heads, inner)))
        return
    count, width = max(1, int(rows * float(b.choose([0.5, 0.9, 1.0])))), max(1, inner - int(b.choose([0, 1])))
    if kind == "region":
        rest = int(b.choose([1, 8, 32]))
        grid = np.stack(np.meshgrid(np.arange(1), np.arange(heads), indexing="ij"), -1)
        b.op("ScatterND", _fresh(b, (1, heads, rows, rest)), b.constant(grid), _fresh(b, (1, heads, rows, rest)))
        return
    grid = np.stack(np.meshgrid(np.arange(1), np.arange(heads), np.arange(count), np.arange(width), indexing="ij"), -1)
    b.op("ScatterND", _fresh(b, (1, heads, rows, inner)), b.initializer(grid), _fresh(b, (1, heads, count, width)))


def resampling(b: GraphBuilder, limit_s: float) -> None:
    """Resize of every mode, pools of every sort, depth to space and back; in the blocked layout and outside it."""
    start_s = b.estimated_s
    for _ in range(10):
        if b.estimated_s - start_s > limit_s:
            return
        b.scope = "resampling"
        channels = b.between(3, 512) if b.chance(0.15) else b.between(8, 512, 8)
        side = int(b.choose([7, 8, 14, 16, 20, 28, 32, 40, 56, 64, 80, 112]))
        while channels * side * side > MAX_IMAGE:
            channels = max(8, channels // 2 // 8 * 8)
            if channels == 8:
                break
        batch = int(b.choose([1, 2, 4], [8, 1, 0.5]))
        x = b.input((batch, min(channels, 64), side, side))
        x = convolution(b, x, channels, 1, norm=False, bias=True) if b.chance(0.6) else b.op("Neg", x)
        kind = b.choose(
            ["resize", "max", "average", "global", "depth", "space", "lp", "unpool"], [5, 4, 4.5, 1, 2, 1.4, 0.3, 0.3]
        )
        if kind == "resize":
            mode = b.choose(["nearest", "linear", "cubic"], [4, 5, 1])
            scale = b.choose([2.0, 4.0, 0.5, 1.5, 3.0], [5, 1.5, 1.5, 0.7, 0.5])
            if channels * side * side * scale * scale < 4 * MAX_IMAGE and side * scale >= 1:
                resize(b, x, scale, mode)
        elif kind in ("max", "average"):
            op_type = {"max": "MaxPool", "average": "AveragePool"}[kind]
            kernel, stride = b.choose(
                [(2, 2), (3, 2), (3, 1), (5, 1), (7, 1), (9, 1), (13, 1), (4, 4)], [5, 4, 2, 0.7, 0.4, 0.3, 0.3, 0.5]
            )
            if kernel < side:
                attributes = {"ceil_mode": 1} if b.chance(0.2) else {}
                if kind == "average" and b.chance(0.4):
                    attributes["count_include_pad"] = 1
                pool(b, x, op_type, kernel, stride, **attributes)
        elif kind == "global":
            b.op(str(b.choose(["GlobalAveragePool", "GlobalMaxPool"])), x)
        elif kind == "depth" and channels % 4 == 0:
            b.op("DepthToSpace", x, blocksize=2, mode=str(b.choose(["DCR", "CRD"])))
        elif kind == "space" and side % 2 == 0:
            b.op("SpaceToDepth", x, blocksize=2)
        elif kind == "lp":
            b.op("LpPool", x, kernel_shape=[3, 3], strides=[2, 2])
        elif kind == "unpool":
            y = unsqueeze(b, unsqueeze(b, x, [3]), [5])
            y = b.op("Expand", y, b.constant([batch, x.shape[1], side, 2, side, 2]))
            reshape(b, y, (batch, x.shape[1], 2 * side, 2 * side))
