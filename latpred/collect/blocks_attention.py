"""Transformer layers of text and images: encoders, decoders, with every common way to write attention and MLP.

Layers take and give [batch, tokens, width].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import (
    activation,
    convolution,
    layer_norm,
    linear,
    reduce,
    reshape,
    rms_norm,
    split,
    squeeze,
    transpose,
    unsqueeze,
    window_slice,
)

__all__ = [
    "Attention",
    "attend",
    "draw_attention",
    "encoder_layer",
    "language_model",
    "merge_heads",
    "vision_transformer",
]

HEAD_WIDTHS = ((16, 1), (24, 0.5), (32, 3), (48, 0.7), (64, 8), (80, 0.5), (96, 0.5), (128, 1.2))


@dataclass(frozen=True, slots=True)
class Attention:
    """What the layers of one transformer have in common."""

    heads: int
    head_width: int
    key_heads: int = 0  # fewer than `heads` in grouped-query attention; 0: as many
    fused: bool = True  # one projection for query, key and value
    qkv_bias: bool = True
    mask: str = "none"  # "none", "padding" (additive), "causal" (Where), "relative" (additive bias table)
    scale: str = "scores"  # where 1/sqrt(d) is applied: "scores", "query", "both" (its root on query and key)
    rotary: bool = False
    norm: str = "layer"  # or "rms"
    norm_first: bool = True
    mlp: str = "gelu"  # an activation, or "swiglu", "geglu"
    mlp_ratio: float = 4.0
    layer_scale: bool = False

    @property
    def width(self) -> int:
        """Model width."""
        return self.heads * self.head_width


def draw_attention(b: GraphBuilder, text: bool) -> Attention:
    """Heads, widths and habits that occur together."""
    head_width = b.choose([n for n, _ in HEAD_WIDTHS], [w for _, w in HEAD_WIDTHS])
    heads = int(b.choose([2, 3, 4, 6, 8, 10, 12, 16], [1, 1.5, 2, 3, 3, 0.5, 4, 1.5]))
    while heads * head_width > 1280:
        heads = max(2, heads // 2)
    modern = text and b.chance(0.35)
    mlp = b.choose(
        ["gelu", "gelu_tanh", "relu", "quick_gelu", "silu", "swiglu", "geglu", "squared_relu"],
        [1, 0.5, 0.3, 0.1, 0.2, 6, 1, 0.1] if modern else [8, 1.5, 1.5, 1, 0.5, 0.3, 0.3, 0.1],
    )
    return Attention(
        heads=heads,
        head_width=head_width,
        key_heads=int(b.choose([0, max(1, heads // 2), 1], [6, 2, 1])) if modern and heads % 2 == 0 else 0,
        fused=b.chance(0.3 if text else 0.8),
        qkv_bias=not modern and b.chance(0.85),
        mask=b.choose(["none", "padding", "causal", "relative"], [2, 4, 3, 1.5] if text else [8, 0.2, 0.2, 1.5]),
        scale=b.choose(["scores", "query", "both"], [4, 3, 3]),
        rotary=modern and b.chance(0.9),
        norm="rms" if modern and b.chance(0.85) else "layer",
        norm_first=not text or b.chance(0.5),
        mlp=mlp,
        mlp_ratio=float(b.choose([2.0, 3.0, 4.0, 8 / 3 if modern else 4.0], [1, 1, 7, 2])),
        layer_scale=not text and b.chance(0.2),
    )


def _norm(b: GraphBuilder, x: Value, a: Attention) -> Value:
    return rms_norm(b, x) if a.norm == "rms" else layer_norm(b, x)


def split_heads(b: GraphBuilder, x: Value, heads: int, transposed: bool = False) -> Value:
    """[batch, tokens, width] -> [batch, heads, tokens, d], or [batch, heads, d, tokens]."""
    batch, tokens, width = x.shape
    y = reshape(b, x, (batch, tokens, heads, width // heads))
    return transpose(b, y, (0, 2, 3, 1) if transposed else (0, 2, 1, 3))


def merge_heads(b: GraphBuilder, x: Value) -> Value:
    """[batch, heads, tokens, d] -> [batch, tokens, width]."""
    batch, heads, tokens, width = x.shape
    return reshape(b, transpose(b, x, (0, 2, 1, 3)), (batch, tokens, heads * width))


def attend(b: GraphBuilder, query: Value, key: Value, value: Value, a: Attention, bias: Value | None = None) -> Value:
    """Softmax attention over [batch, heads, tokens, d]; the key is already [batch, heads, d, tokens]."""
    if a.scale == "both":
        root = a.head_width**-0.25
        query, key = b.op("Mul", query, root), b.op("Mul", key, root)
    elif a.scale == "query":
        query = b.op("Mul", query, a.head_width**-0.5)
    scores = b.op("MatMul", query, key)
    if a.scale == "scores":
        scores = (
            b.op("Div", scores, sqrt(a.head_width))
            if b.style.layer_names
            else (b.op("Mul", scores, a.head_width**-0.5))
        )
    tokens, others = scores.shape[-2:]
    if a.mask == "causal":
        seen = b.initializer(np.tril(np.ones((1, 1, tokens, others), bool)))
        scores = b.op("Where", seen, scores, b.constant(-1e4, "float32"))
    elif bias is not None:
        scores = b.op("Add", scores, bias)
    return b.op("MatMul", b.op("Softmax", scores, axis=-1 if b.style.opset >= 13 else 3), value)


def _rotate(b: GraphBuilder, x: Value) -> Value:
    """Rotary positions on [batch, heads, tokens, d]: x * cos + rotate_half(x) * sin."""
    tokens, width = x.shape[-2:]
    angles = np.outer(np.arange(tokens), 10000.0 ** (-np.arange(0, width, 2) / width))
    angles = np.concatenate([angles, angles], -1)[None, None].astype(np.float32)
    half = width // 2
    first, second = window_slice(b, x, 3, 0, half), window_slice(b, x, 3, half, width)
    turned = b.op("Concat", b.op("Neg", second), first, axis=-1)
    cosine, sine = b.initializer(np.cos(angles)), b.initializer(np.sin(angles))
    return b.op("Add", b.op("Mul", x, cosine), b.op("Mul", turned, sine))


def _repeat_heads(b: GraphBuilder, x: Value, times: int) -> Value:
    """Each key head serves several query heads: Unsqueeze, Expand, Reshape."""
    batch, heads, tokens, width = x.shape
    y = b.op("Expand", unsqueeze(b, x, [2]), b.constant([batch, heads, times, tokens, width]))
    return reshape(b, y, (batch, heads * times, tokens, width))


def self_attention(b: GraphBuilder, x: Value, a: Attention, bias: Value | None = None) -> Value:
    """Projections, attention, output projection."""
    batch, tokens, _ = x.shape
    key_heads = a.key_heads or a.heads
    if a.fused and key_heads == a.heads:
        all_three = linear(b, x, 3 * a.width, a.qkv_bias)
        if b.chance(0.6):
            y = reshape(b, all_three, (batch, tokens, 3, a.heads, a.head_width))
            y = transpose(b, y, (2, 0, 3, 1, 4))
            if b.chance(0.5):
                parts = [squeeze(b, part, [0]) for part in split(b, y, [1, 1, 1], 0)]
            else:
                parts = [b.op("Gather", y, b.constant(i), axis=0) for i in range(3)]
            query, key, value = parts
        else:
            thirds = split(b, all_three, [a.width] * 3, 2)
            query, key, value = (split_heads(b, part, a.heads) for part in thirds)
        key = key if a.rotary else transpose(b, key, (0, 1, 3, 2))
    else:
        query = split_heads(b, linear(b, x, a.width, a.qkv_bias), a.heads)
        rotated_later = a.rotary or key_heads != a.heads
        key = split_heads(b, linear(b, x, key_heads * a.head_width, a.qkv_bias), key_heads, not rotated_later)
        value = split_heads(b, linear(b, x, key_heads * a.head_width, a.qkv_bias), key_heads)
        if rotated_later and not a.rotary:
            key = transpose(b, _repeat_heads(b, key, a.heads // key_heads), (0, 1, 3, 2))
            value = _repeat_heads(b, value, a.heads // key_heads)
    if a.rotary:
        query, key = _rotate(b, query), _rotate(b, key)
        if key_heads != a.heads:
            key = _repeat_heads(b, key, a.heads // key_heads)
            value = _repeat_heads(b, value, a.heads // key_heads)
        key = transpose(b, key, (0, 1, 3, 2))
    y = merge_heads(b, attend(b, query, key, value, a, bias))
    return linear(b, y, x.shape[-1], a.qkv_bias)


def cross_attention(b: GraphBuilder, x: Value, memory: Value, a: Attention) -> Value:
    """Queries from `x`, keys and values from `memory`."""
    query = split_heads(b, linear(b, x, a.width, a.qkv_bias), a.heads)
    key = split_heads(b, linear(b, memory, a.width, a.qkv_bias), a.heads, True)
    value = split_heads(b, linear(b, memory, a.width, a.qkv_bias), a.heads)
    y = attend(b, query, key, value, replace(a, mask="none"))
    return linear(b, merge_heads(b, y), x.shape[-1], a.qkv_bias)


def feed_forward(b: GraphBuilder, x: Value, a: Attention) -> Value:
    """Two linear layers with an activation between, or three with a gate."""
    width = x.shape[-1]
    hidden = max(8, round(width * a.mlp_ratio / 8) * 8)
    if a.mlp in ("swiglu", "geglu"):
        gate = {"swiglu": "silu", "geglu": "gelu"}[a.mlp]
        if b.chance(0.3):
            left, right = split(b, linear(b, x, 2 * hidden, a.qkv_bias), [hidden, hidden], 2)
        else:
            left, right = linear(b, x, hidden, a.qkv_bias), linear(b, x, hidden, a.qkv_bias)
        return linear(b, b.op("Mul", activation(b, left, gate), right), width, a.qkv_bias)
    bias = a.norm == "layer"
    return linear(b, activation(b, linear(b, x, hidden, bias), a.mlp), width, bias)


def encoder_layer(
    b: GraphBuilder, x: Value, a: Attention, bias: Value | None = None, memory: Value | None = None
) -> Value:
    """Attention (and attention to `memory`), then the MLP, each with its norm and its residual."""

    def scaled(y: Value) -> Value:
        return b.op("Mul", y, b.weight((y.shape[-1],), 0.05, 0.3)) if a.layer_scale else y

    if a.norm_first:
        x = b.op("Add", x, scaled(self_attention(b, _norm(b, x, a), a, bias)))
        if memory is not None:
            x = b.op("Add", x, cross_attention(b, _norm(b, x, a), memory, a))
        return b.op("Add", x, scaled(feed_forward(b, _norm(b, x, a), a)))
    x = _norm(b, b.op("Add", self_attention(b, x, a, bias), x), a)
    if memory is not None:
        x = _norm(b, b.op("Add", cross_attention(b, x, memory, a), x), a)
    return _norm(b, b.op("Add", feed_forward(b, x, a), x), a)


def _bias(b: GraphBuilder, a: Attention, batch: int, tokens: int) -> Value | None:
    """What is added to the scores: a padding mask made from integers, or a gathered table of relative positions."""
    if a.mask == "padding":
        if b.chance(0.4):
            return b.input((batch, 1, int(b.choose([1, tokens])), tokens))
        mask = b.op("Cast", b.input((batch, tokens), "int64", 2), to=1)
        row = unsqueeze(b, unsqueeze(b, mask, [1]), [2])
        return b.op("Mul", b.op("Sub", b.constant(1.0, "float32"), row), -1e4)
    if a.mask == "relative":
        return b.weight((1, a.heads, tokens, tokens), 0.5)
    return None


def language_model(b: GraphBuilder, limit_s: float) -> None:
    """Token ids -> embeddings -> layers -> head: encoders, decoders, encoder-decoders."""
    a = draw_attention(b, text=True)
    batch = int(b.choose([1, 2, 4, 8], [10, 1.5, 1.5, 0.7]))
    tokens = int(
        b.choose(
            [8, 16, 24, 32, 48, 64, 77, 96, 128, 192, 256, 384, 512], [0.7, 1, 0.7, 2.5, 1, 3, 0.7, 1.5, 4, 1, 2, 1, 1]
        )
    )
    if batch > 1:
        tokens = min(tokens, 256 // batch)
    start_s = b.estimated_s
    vocabulary = b.between(1000, 16000)
    b.scope = "embeddings"
    ids = b.input((batch, tokens), "int64", vocabulary)
    x = b.op("Gather", b.weight((vocabulary, a.width), 0.5), ids, axis=0)
    if not a.rotary:
        positions = b.weight((512, a.width), 0.5)
        if b.chance(0.5):
            x = b.op("Add", x, b.op("Gather", positions, b.constant(np.arange(tokens)[None]), axis=0))
        else:
            x = b.op("Add", x, window_slice(b, positions, 0, 0, tokens))
        if b.chance(0.4):
            x = b.op(
                "Add", x, b.op("Gather", b.weight((2, a.width), 0.5), b.input((batch, tokens), "int64", 2), axis=0)
            )
    if not a.norm_first:
        x = layer_norm(b, x)
    memory = None
    if b.chance(0.15):
        memory = b.input((batch, int(b.choose([16, 64, 128])), a.width))
    bias = _bias(b, a, batch, tokens)
    for index in range(int(b.choose([1, 2, 3, 4, 6]))):
        if index and b.estimated_s - start_s > limit_s:
            break
        b.scope = f"layers.{index}"
        x = encoder_layer(b, x, a, bias, memory)
    b.scope = "head"
    x = _norm(b, x, a) if a.norm_first else x
    if b.chance(0.4):
        first = b.op("Gather", x, b.constant(0), axis=1)
        y = b.op("Tanh", linear(b, first, a.width))
        linear(b, y, int(b.choose([2, 3, 20, 400])))
    elif b.chance(0.4) and vocabulary * a.width < 8_000_000:
        linear(b, x, vocabulary, bias=False)


def vision_transformer(b: GraphBuilder, limit_s: float) -> None:
    """Patches -> tokens (with class or register tokens) -> layers -> head."""
    a = draw_attention(b, text=False)
    batch = int(b.choose([1, 2, 4, 8], [10, 1.2, 1, 0.5]))
    patch = int(b.choose([8, 14, 16, 32], [1, 1, 6, 1.5]))
    side = int(b.choose([7, 8, 10, 12, 14, 16, 18, 20, 24], [1.5, 1, 1, 1.5, 6, 2.5, 1, 0.7, 0.7]))
    start_s = b.estimated_s
    b.scope = "patch_embed"
    x = b.input((batch, 3, side * patch, side * patch))
    x = convolution(b, x, a.width, patch, patch, norm=False, bias=True, padding=0)
    x = transpose(b, reshape(b, x, (batch, a.width, side * side)), (0, 2, 1))
    extra = int(b.choose([0, 1, 2, 5], [2, 6, 1, 1]))
    if extra:
        token = b.weight((1, extra, a.width), 0.5)
        if batch > 1:
            token = b.op("Expand", token, b.constant([batch, extra, a.width]))
        x = b.op("Concat", token, x, axis=1)
    tokens = side * side + extra
    x = b.op("Add", x, b.weight((1, tokens, a.width), 0.5))
    if b.chance(0.2):
        x = layer_norm(b, x)
    bias = _bias(b, a, batch, tokens)
    for index in range(int(b.choose([1, 2, 3, 4]))):
        if index and b.estimated_s - start_s > limit_s:
            break
        b.scope = f"blocks.{index}"
        x = encoder_layer(b, x, a, bias)
    b.scope = "head"
    x = _norm(b, x, a)
    linear(b, _pooled(b, x, extra > 0), int(b.choose([10, 100, 1000])))


def _pooled(b: GraphBuilder, x: Value, has_class: bool) -> Value:
    """One row a picture: the class token's, the first, or the mean or largest over all."""
    kind = b.choose(["gather", "slice", "mean", "max"], [7, 1, 2, 0.3] if has_class else [0, 1, 3, 0.3])
    if kind == "gather":
        return b.op("Gather", x, b.constant(0), axis=1)
    if kind == "slice":
        return squeeze(b, window_slice(b, x, 1, 0, 1), [1])
    return reduce(b, {"mean": "ReduceMean", "max": "ReduceMax"}[kind], x, [1], keepdims=False)
