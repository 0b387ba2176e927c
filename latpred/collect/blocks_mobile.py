"""Blocks of small convolutional networks: inverted residuals, ghosts, shuffles, separable and large-kernel ones.

Every block has one signature: `block(builder, x, out, stride, traits) -> Value`, NCHW in and out.
"""

from __future__ import annotations

from latpred.collect.blocks_residual import Block, Traits
from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import (
    activation,
    batch_norm,
    channel_gate,
    convolution,
    layer_norm,
    linear,
    pool,
    reduce,
    reshape,
    resize,
    split,
    transpose,
    window_slice,
)

__all__ = ["MOBILE_BLOCKS"]


def _depthwise(b: GraphBuilder, x: Value, kernel: int, stride: int = 1, act: str = "none", **options: bool) -> Value:
    return convolution(b, x, x.shape[1], kernel, stride, groups=x.shape[1], act=act, **options)


def inverted_residual(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """1x1 expansion, depthwise, gate, 1x1 projection."""
    channels = x.shape[1]
    kernel = int(b.choose([3, 5, t.kernel]))
    y = convolution(b, x, max(8, int(channels * t.expansion)), 1, act=t.act) if t.expansion > 1 else x
    y = _depthwise(b, y, kernel, stride, t.act, same_upper=t.same_upper)
    if t.gate != "none":
        y = channel_gate(b, y, t.gate, 0.25 / max(1.0, t.expansion), "relu" if t.act == "hard_swish" else t.act)
    y = convolution(b, y, out, 1)
    return b.op("Add", y, x) if stride == 1 and out == channels else y


def fused_inverted(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """A full 3x3 in place of the 1x1 expansion and the depthwise convolution."""
    y = convolution(b, x, max(8, int(x.shape[1] * t.expansion)), 3, stride, act=t.act, same_upper=t.same_upper)
    if t.gate != "none":
        y = channel_gate(b, y, t.gate, 0.25 / max(1.0, t.expansion), t.act)
    y = convolution(b, y, out, 1)
    return b.op("Add", y, x) if stride == 1 and out == x.shape[1] else y


def universal_inverted(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Depthwise before the expansion, and perhaps again inside it."""
    y = _depthwise(b, x, int(b.choose([3, 5])), 1 if b.chance(0.5) and stride == 1 else stride)
    middle = stride if y.shape[2] == x.shape[2] and stride == 2 else 1
    y = convolution(b, y, max(8, int(x.shape[1] * t.expansion)), 1, act=t.act)
    if middle == 2 or b.chance(0.4):
        y = _depthwise(b, y, int(b.choose([3, 5])), middle, t.act)
    y = convolution(b, y, out, 1)
    return b.op("Add", y, x) if y.shape == x.shape else y


def separable(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Depthwise + pointwise, plain, as the first small networks had it."""
    y = _depthwise(b, x, t.kernel, stride, t.act)
    if t.gate != "none" and b.chance(0.3):
        y = channel_gate(b, y, t.gate)
    return convolution(b, y, out, 1, act=t.act)


def separable_residual(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Three separable convolutions and a shortcut."""
    y = x
    for index in range(3):
        y = activation(b, y, t.act) if b.style.layer_names else y
        last = index == 2
        y = _depthwise(b, y, 3, stride if last else 1, "none")
        y = convolution(b, y, out, 1, act="none" if last or b.style.layer_names else t.act)
    shortcut = x if y.shape == x.shape else convolution(b, x, out, 1, stride)
    return b.op("Add", y, shortcut)


def ghost(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Half of the channels from a 1x1, the other half from a cheap depthwise of the first; twice, with a shortcut."""

    def module(y: Value, channels: int, act: str) -> Value:
        half = (channels + 1) // 2
        first = convolution(b, y, half, 1, act=act)
        second = convolution(b, first, half, 3, groups=half, act=act)
        joined = b.op("Concat", first, second, axis=1)
        return joined if 2 * half == channels else window_slice(b, joined, 1, 0, channels)

    y = module(x, max(16, int(x.shape[1] * t.expansion)), t.act)
    if stride == 2:
        y = _depthwise(b, y, t.kernel, 2)
    if t.gate != "none":
        y = channel_gate(b, y, t.gate)
    y = module(y, out, "none")
    if y.shape == x.shape:
        return b.op("Add", y, x)
    return b.op("Add", y, convolution(b, _depthwise(b, x, t.kernel, stride), out, 1))


def shuffle(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Half of the channels pass, then all are shuffled: Reshape, Transpose, Reshape."""
    half = out // 2
    if stride == 2 or x.shape[1] != 2 * half:
        left = convolution(b, _depthwise(b, x, 3, stride), half, 1, act=t.act)
        right = convolution(b, x, half, 1, act=t.act)
    else:
        left, right = split(b, x, [half, half], 1)
        right = convolution(b, right, half, 1, act=t.act)
    right = convolution(b, _depthwise(b, right, 3, stride), half, 1, act=t.act)
    y = b.op("Concat", left, right, axis=1)
    batch, channels, height, width = y.shape
    y = transpose(b, reshape(b, y, (batch, 2, half, height, width)), (0, 2, 1, 3, 4))
    return reshape(b, y, (batch, channels, height, width))


def channels_last(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Large depthwise convolution, then LayerNorm and a two-layer MLP with the channels last, layer scale, residual."""
    if stride == 2 or x.shape[1] != out:
        x = _norm_nchw(b, x)
        x = convolution(b, x, out, stride, stride, norm=False, bias=True, padding=0)
    y = convolution(b, x, out, int(b.choose([3, 5, 7, 7, 9])), groups=out, norm=False, bias=True)
    y = layer_norm(b, transpose(b, y, (0, 2, 3, 1)))
    y = activation(b, linear(b, y, int(out * t.expansion)), "gelu" if t.act == "relu" else t.act)
    if b.chance(0.25):
        norm = reduce(b, "ReduceL2", y, [1, 2])
        scale = b.op("Div", norm, b.op("Add", reduce(b, "ReduceMean", norm, [-1]), 1e-6))
        y = b.op("Add", y, b.op("Mul", b.op("Mul", y, scale), b.weight((y.shape[-1],), 0.1)))
    y = linear(b, y, out)
    if b.chance(0.6):
        y = b.op("Mul", y, b.weight((out,), 0.1, 0.3))
    return b.op("Add", transpose(b, y, (0, 3, 1, 2)), x)


def _norm_nchw(b: GraphBuilder, x: Value) -> Value:
    """LayerNorm over the channels of an NCHW image: by two transposes, or by hand over axis 1."""
    if b.chance(0.6):
        return transpose(b, layer_norm(b, transpose(b, x, (0, 2, 3, 1))), (0, 3, 1, 2))
    mean = reduce(b, "ReduceMean", x, [1])
    centred = b.op("Sub", x, mean)
    variance = reduce(b, "ReduceMean", b.op("Pow", centred, 2.0), [1])
    y = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, 1e-6)))
    shape = (x.shape[1], 1, 1)
    return b.op("Add", b.op("Mul", b.weight(shape, 0.1, 1.0), y), b.weight(shape, 0.1))


def pointwise_mlp(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """A token mixer (depthwise or pooling) and a 1x1-convolution MLP, all in NCHW, with layer scale."""
    if stride == 2 or x.shape[1] != out:
        x = convolution(b, x, out, 3, stride, act=t.act)
    if b.chance(0.5):
        mixed = b.op("Sub", pool(b, x, "AveragePool", 3, 1, count_include_pad=0), x)
    else:
        mixed = _depthwise(b, x, int(b.choose([3, 7])))
    scale = (out, 1, 1)
    x = b.op("Add", x, b.op("Mul", mixed, b.weight(scale, 0.1, 0.3)))
    y = batch_norm(b, x) if b.chance(0.3) else _depthwise(b, x, int(b.choose([3, 7])))
    y = convolution(b, y, int(out * t.expansion), 1, norm=False, bias=True, act="gelu" if b.chance(0.6) else t.act)
    y = convolution(b, y, out, 1, norm=False, bias=True)
    return b.op("Add", x, b.op("Mul", y, b.weight(scale, 0.1, 0.3)))


def gated_convolution(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Channels last: one linear layer gives a gate, a shortcut and a part that passes a depthwise convolution."""
    if stride == 2 or x.shape[1] != out:
        x = convolution(b, x, out, 3, stride, norm=False, bias=True)
    rows = transpose(b, x, (0, 2, 3, 1))
    y = layer_norm(b, rows)
    hidden = int(out * t.expansion * 2 / 3) // 8 * 8
    convolved = max(8, out // int(b.choose([1, 2])) // 8 * 8)
    convolved = min(convolved, hidden)
    sizes = [hidden, max(1, hidden - convolved), convolved]
    gate, kept, part = split(b, linear(b, y, sum(sizes)), sizes, -1 if b.style.opset >= 13 else 3)
    part = transpose(b, part, (0, 3, 1, 2))
    part = transpose(b, _depthwise(b, part, int(b.choose([3, 7]))), (0, 2, 3, 1))
    y = (
        b.op("Mul", activation(b, gate, "gelu"), b.op("Concat", kept, part, axis=3))
        if (sizes[1] + sizes[2] == hidden)
        else b.op("Concat", kept, part, axis=3)
    )
    return b.op("Add", x, transpose(b, linear(b, y, out), (0, 3, 1, 2)))


def partial_convolution(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """A 3x3 over a quarter of the channels, the rest passes; then a 1x1 MLP."""
    if stride == 2 or x.shape[1] != out:
        x = convolution(b, x, out, 2 if stride == 2 else 1, stride, padding=0)
    quarter = max(4, out // 4)
    part, rest = split(b, x, [quarter, out - quarter], 1)
    y = b.op("Concat", convolution(b, part, quarter, 3, norm=False), rest, axis=1)
    y = convolution(b, y, int(out * 2), 1, act=t.act)
    return b.op("Add", x, convolution(b, y, out, 1, norm=False))


def dilated_large_kernel(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Attention by a large kernel: depthwise 5x5, dilated depthwise 7x7, 1x1, times the input."""
    if stride == 2 or x.shape[1] != out:
        x = convolution(b, x, out, 3, stride)
    y = activation(b, convolution(b, batch_norm(b, x), out, 1, norm=False, bias=True), "gelu")
    attention = convolution(b, y, out, 5, groups=out, norm=False, bias=True)
    attention = convolution(b, attention, out, 7, groups=out, dilation=3, norm=False, bias=True)
    y = b.op("Mul", y, convolution(b, attention, out, 1, norm=False, bias=True))
    x = b.op("Add", x, convolution(b, y, out, 1, norm=False, bias=True))
    y = convolution(b, x, int(out * t.expansion), 1, bias=True)
    y = activation(b, convolution(b, y, y.shape[1], 3, groups=y.shape[1], norm=False, bias=True), "gelu")
    return b.op("Add", x, convolution(b, y, out, 1, norm=False, bias=True))


def context_gate(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """A separable block gated by a coarse view of itself: pooled, convolved, resized, multiplied."""
    y = convolution(b, _depthwise(b, x, 3, stride, t.act), out, 1, act=t.act)
    if min(y.shape[2:]) < 4 or y.shape[2] % 2 or y.shape[3] % 2:
        return y
    coarse = pool(b, y, str(b.choose(["AveragePool", "MaxPool"])), 2, 2)
    coarse = convolution(b, coarse, out, (1, 5), groups=out)
    coarse = convolution(b, coarse, out, (5, 1), groups=out)
    gate = b.op("Sigmoid", coarse)
    return b.op("Mul", y, resize(b, gate, 2.0, str(b.choose(["nearest", "linear"]))))


MOBILE_BLOCKS: dict[str, tuple[Block, float]] = {
    # name: (block, how often networks use it, roughly)
    "inverted_residual": (inverted_residual, 2.5),
    "fused_inverted": (fused_inverted, 0.8),
    "universal_inverted": (universal_inverted, 0.6),
    "separable": (separable, 0.8),
    "separable_residual": (separable_residual, 0.5),
    "ghost": (ghost, 0.6),
    "shuffle": (shuffle, 0.5),
    "channels_last": (channels_last, 1.5),
    "pointwise_mlp": (pointwise_mlp, 1.0),
    "gated_convolution": (gated_convolution, 0.6),
    "partial_convolution": (partial_convolution, 0.4),
    "dilated_large_kernel": (dilated_large_kernel, 0.4),
    "context_gate": (context_gate, 0.3),
}
