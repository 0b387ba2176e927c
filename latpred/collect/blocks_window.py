"""Hybrid vision blocks: windows, reduced keys, channel and linear attention, attention by convolutions, mixers."""

from __future__ import annotations

from math import sqrt

import numpy as np

from latpred.collect.blocks_attention import Attention, attend, feed_forward, merge_heads, split_heads
from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import (
    activation,
    batch_norm,
    convolution,
    layer_norm,
    linear,
    reduce,
    reshape,
    split,
    squeeze,
    transpose,
    unsqueeze,
    window_slice,
)

__all__ = ["hybrid_network", "mixer_network"]


def _roll(b: GraphBuilder, x: Value, shift: int, axis: int) -> Value:
    """A cyclic shift, written as two Slices and a Concat."""
    size = x.shape[axis]
    cut = shift % size
    return b.op("Concat", window_slice(b, x, axis, cut, size), window_slice(b, x, axis, 0, cut), axis=axis)


def _to_rows(b: GraphBuilder, x: Value) -> Value:
    """[batch, channels, height, width] -> [batch, height * width, channels]."""
    batch, channels, height, width = x.shape
    return transpose(b, reshape(b, x, (batch, channels, height * width)), (0, 2, 1))


def _to_image(b: GraphBuilder, x: Value, height: int, width: int) -> Value:
    batch, _, channels = x.shape
    return reshape(b, transpose(b, x, (0, 2, 1)), (batch, channels, height, width))


def shifted_windows(b: GraphBuilder, x: Value, a: Attention) -> Value:
    """Attention inside windows of a channels-last image, shifted every second time, with relative position bias."""
    batch, height, width, channels = x.shape
    side = next((s for s in (int(b.choose([7, 8, 14, 16])), 7, 8, 5, 6, 4, 3) if height % s == 0 and width % s == 0), 0)
    padded = 0
    if not side:
        side = 7
        padded = side - height % side
        if padded + height > 2 * height or height != width:
            side, padded = height, 0
    shifted = b.chance(0.5) and side < height
    y = layer_norm(b, x)
    if padded:
        y = b.op("Pad", y, b.constant([0, 0, 0, 0, 0, padded, padded, 0]), b.constant(0.0, "float32"))
    rows, columns = y.shape[1] // side, y.shape[2] // side if not padded or height == width else 1
    if shifted:
        y = _roll(b, _roll(b, y, side // 2, 1), side // 2, 2)
    y = transpose(b, reshape(b, y, (batch, rows, side, columns, side, channels)), (0, 1, 3, 2, 4, 5))
    y = reshape(b, y, (batch * rows * columns, side * side, channels))
    windows, tokens, _ = y.shape
    qkv = reshape(b, linear(b, y, 3 * channels), (windows, tokens, 3, a.heads, channels // a.heads))
    qkv = transpose(b, qkv, (2, 0, 3, 1, 4))
    query, key, value = (b.op("Gather", qkv, b.constant(i), axis=0) for i in range(3))
    cosine = b.chance(0.3)
    if cosine:
        query, key = _normalised(b, query), _normalised(b, key)
    scores = b.op(
        "MatMul",
        query if cosine else b.op("Mul", query, (channels // a.heads) ** -0.5),
        transpose(b, key, (0, 1, 3, 2)),
    )
    if cosine:
        scores = b.op("Mul", scores, b.weight((a.heads, 1, 1), 0.5, 5.0))
    scores = b.op("Add", scores, b.weight((1, a.heads, tokens, tokens), 0.5))
    if shifted:
        scores = reshape(b, scores, (batch, rows * columns, a.heads, tokens, tokens))
        mask = np.zeros((1, rows * columns, 1, tokens, tokens), np.float32)
        mask[:, -columns:, :, : tokens // 2, tokens // 2 :] = -100.0
        scores = reshape(b, b.op("Add", scores, b.initializer(mask)), (windows, a.heads, tokens, tokens))
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1 if b.style.opset >= 13 else 3), value)
    y = linear(b, merge_heads(b, y), channels)
    y = reshape(b, y, (batch, rows, columns, side, side, channels))
    y = reshape(b, transpose(b, y, (0, 1, 3, 2, 4, 5)), (batch, rows * side, columns * side, channels))
    if shifted:
        y = _roll(b, _roll(b, y, -(side // 2), 1), -(side // 2), 2)
    if padded:
        y = window_slice(b, window_slice(b, y, 1, 0, height), 2, 0, width)
    x = b.op("Add", x, y)
    hidden = activation(b, linear(b, layer_norm(b, x), int(channels * a.mlp_ratio)), "gelu")
    return b.op("Add", x, linear(b, hidden, channels))


def _normalised(b: GraphBuilder, x: Value) -> Value:
    """Rows of unit length: ReduceL2, Clip, (Expand,) Div."""
    norm = b.op("Clip", reduce(b, "ReduceL2", x, [len(x.shape) - 1]), 1e-6, b.constant(1e6, "float32"))
    if b.chance(0.6):
        norm = b.op("Expand", norm, b.constant(list(x.shape)))
    return b.op("Div", x, norm)


def reduced_keys(b: GraphBuilder, x: Value, a: Attention) -> Value:
    """Attention over an NCHW image whose keys come from a smaller copy of it; MLP with a depthwise convolution."""
    batch, channels, height, width = x.shape
    rows = layer_norm(b, _to_rows(b, x))
    query = split_heads(b, linear(b, rows, channels), a.heads)
    factor = int(b.choose([f for f in (1, 2, 4, 7, 8) if height % f == 0 and width % f == 0]))
    source = rows
    if factor > 1:
        image = _to_image(b, rows, height, width)
        if b.chance(0.7):
            image = convolution(b, image, channels, factor, factor, norm=False, bias=True, padding=0)
        else:
            image = b.op("AveragePool", image, kernel_shape=[factor] * 2, strides=[factor] * 2)
        source = layer_norm(b, _to_rows(b, image))
    tokens = source.shape[1]
    pair = reshape(b, linear(b, source, 2 * channels), (batch, tokens, 2, a.heads, channels // a.heads))
    pair = transpose(b, pair, (2, 0, 3, 1, 4))
    key, value = (squeeze(b, part, [0]) for part in split(b, pair, [1, 1], 0))
    y = attend(b, query, transpose(b, key, (0, 1, 3, 2)), value, a)
    x = b.op("Add", _to_rows(b, x), linear(b, merge_heads(b, y), channels))
    hidden = linear(b, layer_norm(b, x), int(channels * a.mlp_ratio))
    if b.chance(0.6):
        image = _to_image(b, hidden, height, width)
        hidden = _to_rows(b, convolution(b, image, image.shape[1], 3, groups=image.shape[1], norm=False, bias=True))
    x = b.op("Add", x, linear(b, activation(b, hidden, "gelu"), channels))
    return _to_image(b, x, height, width)


def channel_attention(b: GraphBuilder, x: Value, a: Attention) -> Value:
    """Attention between channels rather than positions: the transposed product, with normalised rows."""
    batch, channels, height, width = x.shape
    rows = layer_norm(b, _to_rows(b, x))
    tokens = rows.shape[1]
    qkv = reshape(b, linear(b, rows, 3 * channels), (batch, tokens, 3, a.heads, channels // a.heads))
    qkv = transpose(b, qkv, (2, 0, 3, 4, 1))
    query, key, value = (b.op("Gather", qkv, b.constant(i), axis=0) for i in range(3))
    query, key = _normalised(b, query), _normalised(b, key)
    scores = b.op("Mul", b.op("MatMul", query, transpose(b, key, (0, 1, 3, 2))), b.weight((a.heads, 1, 1), 0.1, 1.0))
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1 if b.style.opset >= 13 else 3), value)
    y = reshape(b, transpose(b, y, (0, 3, 1, 2)), (batch, tokens, channels))
    x = b.op("Add", _to_rows(b, x), b.op("Mul", linear(b, y, channels), b.weight((channels,), 0.1, 0.3)))
    image = _to_image(b, layer_norm(b, x), height, width)
    image = activation(b, convolution(b, image, channels, 3, groups=channels, norm=False, bias=True), "gelu")
    image = convolution(b, batch_norm(b, image), channels, 3, groups=channels, norm=False, bias=True)
    x = b.op("Add", x, _to_rows(b, image))
    hidden = activation(b, linear(b, layer_norm(b, x), 4 * channels), "gelu")
    return _to_image(b, b.op("Add", x, linear(b, hidden, channels)), height, width)


def linear_attention(b: GraphBuilder, x: Value, a: Attention) -> Value:
    """ReLU kernels instead of softmax, keys and values multiplied first, all 1x1 convolutions in NCHW."""
    batch, channels, height, width = x.shape
    inner = a.heads * a.head_width
    qkv = convolution(b, x, 3 * inner, 1, norm=False)
    if b.chance(0.6):
        wide = convolution(b, qkv, 3 * inner, 5, groups=3 * inner, norm=False)
        wide = convolution(b, wide, 3 * inner, 1, groups=3 * a.heads, norm=False)
        qkv = b.op("Concat", qkv, wide, axis=1)
    heads = qkv.shape[1] // (3 * a.head_width)
    y = reshape(b, qkv, (batch, heads, 3 * a.head_width, height * width))
    query, key, value = split(b, y, [a.head_width] * 3, 2)
    query, key = b.op("Relu", query), b.op("Relu", key)
    value = b.op("Pad", value, b.constant([0, 0, 0, 0, 0, 0, 1, 0]), b.constant(1.0, "float32"))
    context = b.op("MatMul", value, transpose(b, key, (0, 1, 3, 2)))
    y = b.op("MatMul", context, query)
    top = window_slice(b, y, 2, 0, a.head_width)
    bottom = window_slice(b, y, 2, a.head_width, a.head_width + 1)
    y = b.op("Div", top, b.op("Add", bottom, 1.0))
    y = convolution(b, reshape(b, y, (batch, heads * a.head_width, height, width)), channels, 1)
    x = b.op("Add", x, y)
    hidden = convolution(b, x, int(channels * a.mlp_ratio), 1, act="hard_swish", norm=False, bias=True)
    hidden = convolution(b, hidden, hidden.shape[1], 3, groups=hidden.shape[1], act="hard_swish", norm=False, bias=True)
    return b.op("Add", x, convolution(b, hidden, channels, 1))


def convolutional_attention(b: GraphBuilder, x: Value, a: Attention) -> Value:
    """Attention whose projections are 1x1 convolutions with BatchNorm, with a learned bias a head, NCHW."""
    batch, channels, height, width = x.shape
    key_width = max(8, a.head_width // int(b.choose([1, 2])))
    tokens = height * width
    qkv = convolution(b, x, a.heads * (2 * key_width + a.head_width), 1)
    y = reshape(b, qkv, (batch, a.heads, 2 * key_width + a.head_width, tokens))
    query, key, value = split(b, y, [key_width, key_width, a.head_width], 2)
    scores = b.op("Mul", b.op("MatMul", transpose(b, query, (0, 1, 3, 2)), key), key_width**-0.5)
    scores = b.op("Add", scores, b.weight((a.heads, tokens, tokens), 0.5))
    if b.chance(0.25):
        scores = convolution(b, scores, a.heads, 1, norm=False, bias=True)
    weights = b.op("Softmax", scores, axis=-1 if b.style.opset >= 13 else 3)
    y = b.op("MatMul", value, transpose(b, weights, (0, 1, 3, 2)))
    y = activation(b, reshape(b, y, (batch, a.heads * a.head_width, height, width)), "hard_swish")
    x = b.op("Add", x, convolution(b, y, channels, 1))
    hidden = convolution(b, x, 2 * channels, 1, act=str(b.choose(["hard_swish", "gelu", "relu"])))
    return b.op("Add", x, convolution(b, hidden, channels, 1))


def neighbourhood(b: GraphBuilder, x: Value, a: Attention) -> Value:
    """Attention in small blocks of an image with a halo around the keys: padded, sliced into overlapping windows."""
    batch, channels, height, width = x.shape
    side = next((s for s in (8, 7, 4, 5) if height % s == 0 and width % s == 0), 0)
    if not side or channels % a.heads:
        return convolutional_attention(b, x, a)
    rows, columns = height // side, width // side
    query = convolution(b, x, channels, 1, norm=False)
    query = reshape(b, query, (batch * a.heads, channels // a.heads, rows, side, columns, side))
    query = reshape(
        b, transpose(b, query, (0, 1, 2, 4, 3, 5)), (batch * a.heads, channels // a.heads, rows * columns, side * side)
    )
    query = transpose(b, query, (0, 2, 3, 1))
    halo = 1
    pair = convolution(b, x, 2 * channels, 1, norm=False)
    pair = b.op("Pad", pair, b.constant([0, 0, halo, halo, 0, 0, halo, halo]))
    wide = side + 2 * halo
    columns_of = [window_slice(b, pair, 3, c * side, c * side + wide) for c in range(columns)]
    stacked = b.op("Concat", *[unsqueeze(b, c, [2]) for c in columns_of], axis=2)
    rows_of = [window_slice(b, stacked, 3, r * side, r * side + wide) for r in range(rows)]
    stacked = b.op("Concat", *[unsqueeze(b, r, [2]) for r in rows_of], axis=2)
    pair = reshape(b, stacked, (batch * a.heads, 2 * channels // a.heads, rows * columns, wide * wide))
    pair = transpose(b, pair, (0, 2, 3, 1))
    key, value = split(b, pair, [channels // a.heads] * 2, 3)
    scores = b.op("Mul", b.op("MatMul", query, transpose(b, key, (0, 1, 3, 2))), 1 / sqrt(channels // a.heads))
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1 if b.style.opset >= 13 else 3), value)
    y = transpose(b, y, (0, 3, 1, 2))
    y = reshape(b, y, (batch * a.heads, channels // a.heads, rows, columns, side, side))
    y = reshape(b, transpose(b, y, (0, 1, 2, 4, 3, 5)), (batch, channels, height, width))
    return b.op("Add", x, activation(b, batch_norm(b, y), "silu"))


def pooled_tokens(b: GraphBuilder, x: Value, a: Attention) -> Value:
    """Outlook: a window of weights from the centre pixel, values unfolded, weighted and summed; then the MLP."""
    batch, channels, height, _ = x.shape
    rows = transpose(b, x, (0, 2, 3, 1))
    coarse = b.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1) if height > 7 else x
    weights = linear(b, transpose(b, coarse, (0, 2, 3, 1)), a.heads * 9)
    weights = b.op("Softmax", reshape(b, weights, (batch, coarse.shape[2] * coarse.shape[3], a.heads, 9)), axis=3)
    summed = reduce(b, "ReduceSum", b.op("Mul", weights, b.weight((1, 1, a.heads, 1), 0.1, 1.0)), [2], keepdims=False)
    context = b.op("MatMul", transpose(b, summed, (0, 2, 1)), _to_rows(b, coarse))
    context = reduce(b, "ReduceMean", context, [1])
    y = b.op("Mul", linear(b, rows, channels), unsqueeze(b, context, [1]))
    rows = b.op("Add", rows, linear(b, y, channels))
    hidden = activation(b, linear(b, layer_norm(b, rows), 3 * channels), "gelu")
    return transpose(b, b.op("Add", rows, linear(b, hidden, channels)), (0, 3, 1, 2))


HYBRID_BLOCKS = {
    "shifted_windows": 2.0,
    "reduced_keys": 1.2,
    "channel_attention": 0.7,
    "linear_attention": 0.8,
    "convolutional_attention": 1.0,
    "neighbourhood": 0.4,
    "pooled_tokens": 0.4,
}
IMAGE_BLOCKS = {
    "reduced_keys": reduced_keys,
    "channel_attention": channel_attention,
    "linear_attention": linear_attention,
    "convolutional_attention": convolutional_attention,
    "neighbourhood": neighbourhood,
    "pooled_tokens": pooled_tokens,
}


def _attention(b: GraphBuilder, channels: int) -> Attention:
    head_width = int(b.choose([d for d in (16, 24, 32, 48, 64) if channels % d == 0] or [channels]))
    return Attention(
        heads=channels // head_width,
        head_width=head_width,
        scale=b.choose(["scores", "query"]),
        mlp_ratio=float(b.choose([2.0, 4.0, 4.0])),
    )


def hybrid_network(b: GraphBuilder, limit_s: float) -> None:
    """A convolutional stem, then two or three stages of one hybrid block, 24 to 768 channels wide."""
    names = list(HYBRID_BLOCKS)
    name = b.choose(names, [HYBRID_BLOCKS[n] for n in names])
    batch = int(b.choose([1, 2, 4], [10, 1, 0.7]))
    channels = b.choose([32, 48, 64, 96, 128, 144, 192, 256])
    side = int(b.choose([56, 48, 40, 32, 28, 24, 16, 14], [3, 0.5, 0.5, 1, 3, 0.5, 1.5, 2]))
    if name != "shifted_windows":
        while side * side > 800 * (4 if name in ("reduced_keys", "linear_attention") else 1):
            side //= 2
    start_s = b.estimated_s
    b.scope = "stem"
    x = b.input((batch, 3, side * 4, side * 4))
    x = convolution(b, x, max(8, channels // 2), 3, 2, act="gelu" if b.chance(0.5) else "relu")
    x = convolution(b, x, channels, 3, 2)
    for stage in range(int(b.choose([2, 3]))):
        for index in range(int(b.choose([1, 2]))):
            if (stage or index) and b.estimated_s - start_s > limit_s:
                break
            b.scope = f"stages.{stage}/blocks.{index}"
            a = _attention(b, x.shape[1])
            if name == "shifted_windows":
                x = transpose(b, shifted_windows(b, transpose(b, x, (0, 2, 3, 1)), a), (0, 3, 1, 2))
            else:
                x = IMAGE_BLOCKS[name](b, x, a)
        if x.shape[2] < 8 or x.shape[2] % 2:
            break
        if b.chance(0.3):
            rows = transpose(b, x, (0, 2, 3, 1))
            parts = [
                window_slice(b, window_slice(b, rows, 1, i, rows.shape[1], 2), 2, j, rows.shape[2], 2)
                for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))
            ]
            merged = linear(b, layer_norm(b, b.op("Concat", *parts, axis=3)), 2 * x.shape[1], bias=False)
            x = transpose(b, merged, (0, 3, 1, 2))
        else:
            x = convolution(b, x, 2 * x.shape[1], 3, 2)
    b.scope = "head"
    linear(b, reduce(b, "ReduceMean", x, [2, 3], keepdims=False), int(b.choose([10, 100, 1000])))


def mixer_network(b: GraphBuilder, limit_s: float) -> None:
    """Tokens mixed by linear layers across positions: plain MLP mixers, spatial gating, and pooling."""
    batch = int(b.choose([1, 2, 4], [10, 1, 1]))
    side = int(b.choose([7, 10, 14, 16]))
    tokens = side * side
    width = b.choose([64, 96, 128, 192, 256, 384, 512, 768])
    kind = b.choose(["mixer", "spatial_gate", "affine"])
    start_s = b.estimated_s
    b.scope = "stem"
    patch = int(b.choose([8, 16]))
    x = convolution(
        b, b.input((batch, 3, side * patch, side * patch)), width, patch, patch, norm=False, bias=True, padding=0
    )
    x = _to_rows(b, x)
    a = Attention(heads=1, head_width=width, mlp="gelu", mlp_ratio=float(b.choose([2.0, 3.0, 4.0])))
    for index in range(int(b.choose([1, 2, 3, 4]))):
        if index and b.estimated_s - start_s > limit_s:
            break
        b.scope = f"blocks.{index}"
        if kind == "spatial_gate":
            hidden = activation(b, linear(b, layer_norm(b, x), 4 * width), "gelu")
            left, right = split(b, hidden, [2 * width] * 2, 2)
            right = transpose(b, linear(b, transpose(b, layer_norm(b, right), (0, 2, 1)), tokens), (0, 2, 1))
            x = b.op("Add", x, linear(b, b.op("Mul", left, right), width))
            continue
        if kind == "affine":
            y = b.op("Add", b.op("Mul", x, b.weight((1, 1, width), 0.1, 1.0)), b.weight((1, 1, width), 0.1))
            mixed = transpose(b, linear(b, transpose(b, y, (0, 2, 1)), tokens), (0, 2, 1))
            x = b.op("Add", x, b.op("Mul", mixed, b.weight((width,), 0.1, 0.3)))
        else:
            y = transpose(b, layer_norm(b, x), (0, 2, 1))
            y = linear(b, activation(b, linear(b, y, int(b.choose([tokens // 2, tokens, 2 * tokens]))), "gelu"), tokens)
            x = b.op("Add", x, transpose(b, y, (0, 2, 1)))
        x = b.op("Add", x, feed_forward(b, layer_norm(b, x), a))
    linear(b, reduce(b, "ReduceMean", x, [1], keepdims=False), 1000)
