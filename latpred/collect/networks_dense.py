"""Networks that answer for every pixel: decoders, pyramids, dilated heads, super-resolution, detection, 3-D."""

from __future__ import annotations

import numpy as np

from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import (
    activation,
    convolution,
    flatten,
    global_pool,
    linear,
    pool,
    reduce,
    reshape,
    resize,
    transpose,
    unsqueeze,
    window_slice,
)
from latpred.collect.networks_convolution import draw_batch

__all__ = ["decoder_network", "detector_head", "generator", "pyramid_network", "super_resolution", "volume_network"]

UPSAMPLING = (("nearest", 3), ("linear", 4), ("cubic", 0.3), ("transpose2", 3), ("transpose4", 1))


def _upsample(b: GraphBuilder, x: Value, out: int, kind: str) -> Value:
    if kind.startswith("transpose"):
        size = int(kind[-1])
        margin = (size - 2) // 2
        dims = len(x.shape) - 2
        return b.op(
            "ConvTranspose",
            x,
            b.weight((x.shape[1], out, *[size] * dims), (x.shape[1] * size) ** -0.5),
            b.weight((out,), 0.1),
            kernel_shape=[size] * dims,
            strides=[2] * dims,
            pads=[margin] * (2 * dims),
        )
    return convolution(b, resize(b, x, 2.0, kind), out, int(b.choose([1, 3])), norm=False, bias=True)


def _draw_upsampling(b: GraphBuilder) -> str:
    return b.choose([n for n, _ in UPSAMPLING], [w for _, w in UPSAMPLING])


def decoder_network(b: GraphBuilder, limit_s: float) -> None:
    """Encoder and decoder with skip connections by Concat (or Add)."""
    side = b.choose([64, 96, 128, 160, 192, 224, 256])
    width = b.choose([8, 12, 16, 24, 32, 48, 64])
    while side * side * width * width > 12_000_000:
        side //= 2
    side = side // 16 * 16
    depth = int(b.choose([2, 3, 4]))
    act = b.choose(["relu", "leaky_relu", "silu", "elu"], [6, 2, 1, 0.5])
    kind = _draw_upsampling(b)
    start_s = b.estimated_s
    x = b.input((draw_batch(b) if side <= 64 else 1, int(b.choose([1, 3])), side, side))
    skips = []
    for level in range(depth):
        b.scope = f"down.{level}"
        x = convolution(b, x, width * 2**level, 3, act=act)
        x = convolution(b, x, width * 2**level, 3, act=act)
        skips.append(x)
        x = pool(b, x, "MaxPool", 2, 2) if b.chance(0.7) else convolution(b, x, width * 2**level, 3, 2, act=act)
        if b.estimated_s - start_s > limit_s:
            break
    b.scope = "middle"
    x = convolution(b, x, width * 2 ** len(skips), 3, act=act)
    for level, skip in reversed(list(enumerate(skips))):
        b.scope = f"up.{level}"
        x = _upsample(b, x, skip.shape[1], kind)
        x = b.op("Concat", skip, x, axis=1) if b.chance(0.8) else b.op("Add", skip, x)
        x = convolution(b, x, skip.shape[1], 3, act=act)
    scores = convolution(b, x, int(b.choose([1, 2, 21])), 1, norm=False, bias=True)
    if scores.shape[1] == 1:
        b.op("Sigmoid", scores)
    elif b.chance(0.4):
        b.op("ArgMax", scores, axis=1, keepdims=0)


def pyramid_network(b: GraphBuilder, limit_s: float) -> None:
    """Feature maps of several scales joined: top-down sums, dilated heads, pooled contexts, resized outputs."""
    side = int(b.choose([28, 32, 40, 48, 56, 64]))
    channels = b.choose([16, 24, 32, 48, 64, 96, 128])
    out = b.choose([32, 48, 64, 96, 128, 192, 256])
    while side * side * out * out * 9 > 1_000_000_000:
        out //= 2
    start_s = b.estimated_s
    mode = b.choose(["nearest", "linear"])
    b.scope = "backbone"
    maps = [convolution(b, b.input((1, channels, side, side)), channels, 3, act="relu")]
    while len(maps) < 3 and maps[-1].shape[2] >= 8 and maps[-1].shape[2] % 2 == 0:
        maps.append(convolution(b, maps[-1], channels * 2 ** len(maps), 3, 2, act="relu"))
    b.scope = "neck"
    top = convolution(b, maps[-1], out, 1, norm=False, bias=True)
    for lower in reversed(maps[:-1]):
        raised = resize(b, top, 2.0, mode)
        top = b.op("Add", convolution(b, lower, out, 1, norm=False, bias=True), raised)
        top = convolution(b, top, out, 3, norm=b.chance(0.5), bias=True)
        if b.estimated_s - start_s > limit_s:
            break
    b.scope = "head"
    if b.chance(0.6):
        rates = b.choose([(1, 2, 4), (6, 12, 18), (2, 4, 8)])
        branches = [convolution(b, top, max(8, out // 2), 1, act="relu")]
        branches += [
            convolution(b, top, max(8, out // 2), 3, dilation=rate, act="relu") for rate in rates if rate < top.shape[2]
        ]
        coarse = convolution(b, global_pool(b, top), max(8, out // 2), 1, norm=False, bias=True, act="relu")
        branches.append(
            b.op("Expand", coarse, b.constant([1, coarse.shape[1], *top.shape[2:]]))
            if b.chance(0.5)
            else resize(b, coarse, float(top.shape[2]), "linear" if b.chance(0.5) else "nearest")
        )
        top = convolution(b, b.op("Concat", *branches, axis=1), out, 1, act="relu")
    elif b.chance(0.5):
        contexts = [top]
        for bins in (1, 2, 4):
            if top.shape[2] % bins:
                continue
            size = top.shape[2] // bins
            y = b.op("AveragePool", top, kernel_shape=[size] * 2, strides=[size] * 2)
            contexts.append(resize(b, convolution(b, y, max(8, out // 4), 1, act="relu"), float(size), "linear"))
        top = convolution(b, b.op("Concat", *contexts, axis=1), out, 3, act="relu")
    scores = convolution(b, top, int(b.choose([1, 19, 21, 64])), 1, norm=False, bias=True)
    resize(b, scores, float(b.choose([2, 4])), "linear" if b.chance(0.7) else "cubic")


def super_resolution(b: GraphBuilder, limit_s: float) -> None:
    """Convolutions at one resolution, then depth to space."""
    side = int(b.choose([32, 48, 64, 96, 120, 128]))
    width = b.choose([16, 24, 32, 48, 64])
    factor = int(b.choose([2, 3, 4]))
    act = b.choose(["relu", "tanh", "prelu", "leaky_relu", "gelu"])
    start_s = b.estimated_s
    x = b.input((1, int(b.choose([1, 3])), side, side))
    base = x
    x = convolution(b, x, width, int(b.choose([3, 5])), norm=False, bias=True, act=act)
    for index in range(int(b.choose([1, 2, 4]))):
        if b.estimated_s - start_s > limit_s:
            break
        b.scope = f"body.{index}"
        y = convolution(b, convolution(b, x, width, 3, norm=False, bias=True, act=act), width, 3, norm=False, bias=True)
        x = b.op("Add", x, y if b.chance(0.5) else b.op("Mul", y, 0.1))
    out = base.shape[1]
    x = convolution(b, x, out * factor**2, 3, norm=False, bias=True)
    if b.chance(0.5):
        x = b.op("DepthToSpace", x, blocksize=factor, mode=str(b.choose(["DCR", "CRD"])))
    else:
        x = reshape(b, x, (1, out, factor, factor, side, side))
        x = reshape(b, transpose(b, x, (0, 1, 4, 2, 5, 3)), (1, out, side * factor, side * factor))
    if b.chance(0.4):
        x = b.op("Add", x, resize(b, base, float(factor), str(b.choose(["linear", "cubic", "nearest"]))))
    if b.chance(0.4):
        b.op("Clip", x, 0.0, 1.0)


def generator(b: GraphBuilder, limit_s: float) -> None:
    """Latent -> transposed convolutions; instance or group norms; style-transfer residuals with reflected padding."""
    width = b.choose([16, 32, 48, 64])
    start_s = b.estimated_s
    if b.chance(0.4):
        x = reshape(b, linear(b, b.input((1, int(b.choose([64, 100, 128])))), width * 8 * 16), (1, width * 8, 4, 4))
        for level in range(4):
            if b.estimated_s - start_s > limit_s:
                break
            b.scope = f"up.{level}"
            x = activation(b, _upsample(b, x, max(8, x.shape[1] // 2), "transpose4"), "relu")
        b.op("Tanh", convolution(b, x, 3, 3, norm=False, bias=True))
        return
    side = int(b.choose([32, 48, 64, 96]))
    x = convolution(b, b.input((1, 3, side * 2, side * 2)), width, 3, 2, norm=False, bias=True)
    grouped = b.chance(0.5)
    for index in range(int(b.choose([1, 2, 3]))):
        if b.estimated_s - start_s > limit_s:
            break
        b.scope = f"res.{index}"
        y = b.op("Pad", x, b.constant([0, 0, 1, 1, 0, 0, 1, 1]), mode=str(b.choose(["reflect", "edge"])))
        y = convolution(b, y, width, 3, norm=False, bias=True, padding=0)
        y = _group_norm(b, y, 8) if grouped else _instance_norm(b, y)
        y = convolution(b, activation(b, y, "silu" if grouped else "relu"), width, 3, norm=False, bias=True)
        x = b.op("Add", x, y)
    b.scope = "up"
    x = _upsample(b, x, max(8, width // 2), _draw_upsampling(b))
    b.op("Tanh", convolution(b, activation(b, _instance_norm(b, x), "relu"), 3, 7, norm=False, bias=True))


def _instance_norm(b: GraphBuilder, x: Value) -> Value:
    return b.op("InstanceNormalization", x, b.weight((x.shape[1],), 0.1, 1.0), b.weight((x.shape[1],), 0.1))


def _group_norm(b: GraphBuilder, x: Value, groups: int) -> Value:
    """GroupNorm as exporters write it: an InstanceNormalization of the groups, then scale and shift."""
    batch, channels = x.shape[:2]
    y = reshape(b, x, (batch, groups, -1))
    y = b.op("InstanceNormalization", y, b.weight((groups,), 0.0, 1.0), b.weight((groups,), 0.0))
    y = reshape(b, y, x.shape)
    shape = (channels, *[1] * (len(x.shape) - 2))
    return b.op("Add", b.op("Mul", y, b.weight(shape, 0.1, 1.0)), b.weight(shape, 0.1))


def detector_head(b: GraphBuilder, limit_s: float) -> None:
    """Class and box branches over three scales, flattened, joined, decoded with grids, best ones taken."""
    side = int(b.choose([16, 20, 24, 32, 40]))
    channels = b.choose([24, 32, 48, 64, 96, 128])
    classes = int(b.choose([4, 20, 80]))
    act = b.choose(["silu", "relu", "leaky_relu", "hard_swish"])
    start_s = b.estimated_s
    outputs = []
    for level in range(3):
        if side >> level < 4 or b.estimated_s - start_s > limit_s:
            break
        b.scope = f"level.{level}"
        size = side >> level
        x = convolution(b, b.input((1, channels, size, size)), channels, 3, act=act)
        boxes = convolution(b, convolution(b, x, channels, 3, act=act), 4, 1, norm=False, bias=True)
        scores = convolution(b, convolution(b, x, channels, 3, act=act), classes, 1, norm=False, bias=True)
        joined = b.op("Concat", boxes, b.op("Sigmoid", scores), axis=1)
        outputs.append(reshape(b, joined, (1, 4 + classes, size * size)))
    b.scope = "decode"
    y = b.op("Concat", *outputs, axis=2) if len(outputs) > 1 else outputs[0]
    count = y.shape[2]
    if b.chance(0.7):
        y = transpose(b, y, (0, 2, 1))
        boxes, scores = window_slice(b, y, 2, 0, 4), window_slice(b, y, 2, 4, 4 + classes)
        centre, extent = window_slice(b, boxes, 2, 0, 2), window_slice(b, boxes, 2, 2, 4)
        centre = b.op("Mul", b.op("Add", centre, b.weight((1, count, 2), 1.0)), 8.0)
        extent = b.op("Exp", b.op("Clip", extent, -4.0, 4.0))
        low, high = b.op("Sub", centre, b.op("Div", extent, 2.0)), b.op("Add", centre, b.op("Div", extent, 2.0))
        boxes = b.op("Concat", low, high, axis=2)
        best = reduce(b, "ReduceMax", scores, [2], keepdims=False)
        _, chosen = b.multi("TopK", best, b.constant([min(100, count)]), outputs=2, axis=1)
        index = b.op("Expand", unsqueeze(b, chosen, [2]), b.constant([1, chosen.shape[1], 4]))
        b.op("GatherElements", boxes, index, axis=1)
        b.op("ArgMax", scores, axis=2)


def volume_network(b: GraphBuilder, limit_s: float) -> None:
    """3-D convolutions over volumes or clips: residual, factorised into space and time, decoders."""
    side = int(b.choose([16, 24, 28, 32, 40, 48, 56]))
    depth = int(b.choose([4, 8, 16, 24]))
    width = b.choose([8, 12, 16, 24, 32, 48])
    while depth * side * side * width * width > 8_000_000:
        side = max(8, side // 2)
        depth = max(4, depth // 2)
        if side == 8:
            break
    kind = b.choose(["residual", "factorised", "decoder", "depthwise"])
    start_s = b.estimated_s
    x = b.input((int(b.choose([1, 1, 2])), int(b.choose([1, 3])), depth, side, side))
    x = convolution(b, x, width, (3, 3, 3), (1, 2, 2) if side >= 32 else 1, act="relu")
    for index in range(int(b.choose([1, 2, 3]))):
        if b.estimated_s - start_s > limit_s:
            break
        b.scope = f"blocks.{index}"
        channels = x.shape[1]
        if kind == "factorised":
            y = convolution(b, x, channels, (1, 3, 3), act="relu")
            x = b.op("Add", x, convolution(b, y, channels, (3, 1, 1), act="relu"))
        elif kind == "depthwise":
            y = convolution(b, x, 2 * channels, (1, 1, 1), act="silu")
            y = convolution(b, y, 2 * channels, (3, 3, 3), groups=2 * channels, act="silu")
            x = b.op("Add", x, convolution(b, y, channels, (1, 1, 1)))
        else:
            y = convolution(b, x, channels, (3, 3, 3), act="relu")
            x = activation(b, b.op("Add", x, convolution(b, y, channels, (3, 3, 3))), "relu")
        if min(x.shape[2:]) >= 4 and all(n % 2 == 0 for n in x.shape[2:]):
            x = (
                pool(b, x, str(b.choose(["MaxPool", "AveragePool"])), 2, 2)
                if b.chance(0.5)
                else (convolution(b, x, 2 * channels, (3, 3, 3), 2, act="relu"))
            )
    if kind == "decoder":
        x = _upsample(b, x, max(8, x.shape[1] // 2), str(b.choose(["transpose2", "nearest", "linear"])))
        convolution(b, x, 2, (1, 1, 1), norm=False, bias=True)
        return
    if b.chance(0.3):
        x = b.op("Mul", x, b.op("Sigmoid", b.initializer(np.zeros((1, x.shape[1], 1, 1, 1), np.float32))))
    linear(b, flatten(b, global_pool(b, x)), int(b.choose([10, 101, 400])))
