"""Blocks of classic convolutional networks: plain, residual, grouped, split-attention, re-parametrised, dense.

Every block has one signature: `block(builder, x, out, stride, traits) -> Value`, NCHW in and out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import (
    activation,
    batch_norm,
    channel_gate,
    convolution,
    global_pool,
    pool,
    reduce,
    reshape,
    split,
    transpose,
    unsqueeze,
)

__all__ = ["RESIDUAL_BLOCKS", "Block", "Traits"]


@dataclass(frozen=True, slots=True)
class Traits:
    """What the blocks of one network have in common."""

    act: str = "relu"
    gate: str = "none"  # see `layers.channel_gate`
    kernel: int = 3
    expansion: float = 4.0  # of inverted bottlenecks; its inverse narrows classic ones
    group_width: int = 0  # channels a group; 0: no groups
    smooth_downsampling: bool = False  # average pooling before the shortcut's convolution
    same_upper: bool = False


Block = Callable[[GraphBuilder, Value, int, int, Traits], Value]


def _groups(channels: int, group_width: int) -> int:
    return channels // group_width if group_width and channels % group_width == 0 else 1


def _shortcut(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    if stride == 1 and x.shape[1] == out:
        return x
    if stride == 2 and t.smooth_downsampling:
        x = pool(b, x, "AveragePool", 2, 2, ceil_mode=1, count_include_pad=0)
        stride = 1
    return convolution(b, x, out, 1, stride)


def _gated(b: GraphBuilder, x: Value, t: Traits) -> Value:
    return x if t.gate == "none" else channel_gate(b, x, t.gate, 1 / 16 if x.shape[1] >= 256 else 1 / 4)


def plain(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Two convolutions, then max pooling."""
    x = convolution(b, x, out, 3, act=t.act, bias=True)
    x = convolution(b, x, out, 3, act=t.act, bias=True)
    return pool(b, x, "MaxPool", 2, 2) if stride == 2 else x


def basic(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Two 3x3 convolutions and a shortcut."""
    y = convolution(b, x, out, 3, stride, act=t.act)
    y = _gated(b, convolution(b, y, out, 3), t)
    return activation(b, b.op("Add", y, _shortcut(b, x, out, stride, t)), t.act)


def bottleneck(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """1x1, 3x3 (grouped or not), 1x1 and a shortcut."""
    width = max(8, int(out / t.expansion) // 8 * 8)
    if t.group_width:
        width = max(t.group_width, round(out / 2 / t.group_width) * t.group_width)
    y = convolution(b, x, width, 1, act=t.act)
    y = convolution(b, y, width, 3, stride, groups=_groups(width, t.group_width), act=t.act)
    y = _gated(b, convolution(b, y, out, 1), t)
    return activation(b, b.op("Add", y, _shortcut(b, x, out, stride, t)), t.act)


def preactivation(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """BatchNorm and activation before each convolution: the norm stays a node of its own."""
    y = activation(b, batch_norm(b, x), t.act)
    shortcut = x if stride == 1 and x.shape[1] == out else convolution(b, y, out, 1, stride, norm=False)
    y = convolution(b, y, max(8, out // 4), 1, norm=True, act=t.act)
    y = convolution(b, y, max(8, out // 4), 3, stride, act=t.act)
    return b.op("Add", convolution(b, y, out, 1, norm=False), shortcut)


def split_attention(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """A bottleneck whose 3x3 convolution has two splits that a softmax weighs."""
    width = max(16, out // 4 // 8 * 8)
    y = convolution(b, x, width, 1, act=t.act)
    y = convolution(b, y, 2 * width, 3, groups=2, act=t.act)
    batch, _, height, breadth = y.shape
    parts = reshape(b, y, (batch, 2, width, height, breadth))
    total = reduce(b, "ReduceSum", parts, [1], keepdims=False)
    scores = convolution(b, global_pool(b, total), max(16, width // 2), 1, act="relu")
    scores = convolution(b, scores, 2 * width, 1, norm=False, bias=True)
    scores = transpose(b, reshape(b, scores, (batch, 1, 2, width)), (0, 2, 1, 3))
    weights = reshape(b, b.op("Softmax", scores, axis=1), (batch, 2, width, 1, 1))
    y = reduce(b, "ReduceSum", b.op("Mul", parts, weights), [1], keepdims=False)
    if stride == 2:
        y = pool(b, y, "AveragePool", 3, 2)
    y = convolution(b, y, out, 1)
    return activation(b, b.op("Add", y, _shortcut(b, x, out, stride, t)), t.act)


def two_branches(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """3x3 and 1x1 side by side and summed, as a re-parametrisable network is before it is merged."""
    y = b.op("Add", convolution(b, x, out, 3, stride), convolution(b, x, out, 1, stride))
    if stride == 1 and x.shape[1] == out:
        y = b.op("Add", y, batch_norm(b, x))
    return activation(b, _gated(b, y, t), t.act)


def merged(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """One 3x3 convolution, as a re-parametrised network is once it is merged."""
    y = convolution(b, x, out, t.kernel, stride, norm=False, bias=True)
    return activation(b, _gated(b, y, t), t.act)


def dense(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Layers that read everything before them: BatchNorm + activation + 1x1 + 3x3, then Concat; a transition last."""
    growth = min(int(b.choose([12, 16, 24, 32, 40, 48])), max(8, out // 2))
    features = [x]
    for _ in range(3):
        joined = b.op("Concat", *features, axis=1) if len(features) > 1 else x
        y = activation(b, batch_norm(b, joined), t.act)
        y = convolution(b, y, 4 * growth, 1, act=t.act)
        features.append(convolution(b, y, growth, 3, norm=False))
    y = b.op("Concat", *features, axis=1)
    y = convolution(b, activation(b, batch_norm(b, y), t.act), out, 1, norm=False)
    return pool(b, y, "AveragePool", 2, 2) if stride == 2 else y


def inception(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Branches of several kernel sizes side by side, some with 1xn and nx1 convolutions, joined by Concat."""
    part = max(8, out // 4 // 8 * 8)
    if stride == 2:
        tower = convolution(b, x, part, 1, act=t.act)
        tower = convolution(b, tower, part, 3, act=t.act)
        branches = [
            convolution(b, x, out - part - x.shape[1] if out > part + x.shape[1] else part, 3, 2, act=t.act),
            convolution(b, tower, part, 3, 2, act=t.act),
            pool(b, x, "MaxPool", 3, 2),
        ]
        return b.op("Concat", *branches, axis=1)
    size = int(b.choose([3, 5, 7]))
    narrow = max(8, part * 2 // 3 // 8 * 8)
    tower = convolution(b, x, narrow, 1, act=t.act)
    if size == 7:
        tower = convolution(b, convolution(b, tower, narrow, (1, 7), act=t.act), part, (7, 1), act=t.act)
    else:
        tower = convolution(b, tower, part, size, act=t.act)
    double = convolution(b, convolution(b, x, narrow, 1, act=t.act), part, 3, act=t.act)
    branches = [
        convolution(b, x, out - 3 * part, 1, act=t.act),
        tower,
        convolution(b, double, part, 3, act=t.act),
        convolution(b, pool(b, x, str(b.choose(["AveragePool", "MaxPool"])), 3, 1), part, 1, act=t.act),
    ]
    return b.op("Concat", *branches, axis=1)


def cross_stage(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Cross-stage partial: half of the channels pass residual blocks, the other half goes around, Concat, 1x1."""
    if stride == 2:
        x = convolution(b, x, out, 3, 2, act=t.act)
    half = max(8, out // 2 // 8 * 8)
    if b.chance(0.5):
        both = convolution(b, x, 2 * half, 1, act=t.act)
        left, right = split(b, both, [half, half], 1)
    else:
        left, right = convolution(b, x, half, 1, act=t.act), convolution(b, x, half, 1, act=t.act)
    kept = [left, right]
    for _ in range(int(b.choose([1, 2]))):
        y = convolution(b, convolution(b, right, half, int(b.choose([1, 3])), act=t.act), half, 3, act=t.act)
        right = b.op("Add", right, y) if b.chance(0.7) else y
        kept.append(right)
    joined = b.op("Concat", *(kept if b.chance(0.5) else [left, right]), axis=1)
    return convolution(b, joined, out, 1, act=t.act)


def fire(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Squeeze to few channels, expand by 1x1 and 3x3 side by side."""
    squeezed = convolution(b, x, max(8, out // 8), 1, norm=False, bias=True, act=t.act)
    half = out // 2
    y = b.op(
        "Concat",
        convolution(b, squeezed, half, 1, norm=False, bias=True, act=t.act),
        convolution(b, squeezed, half, 3, norm=False, bias=True, act=t.act),
        axis=1,
    )
    return pool(b, y, "MaxPool", 3, 2, ceil_mode=1) if stride == 2 else y


def multi_scale(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """A bottleneck whose channels are split into a cascade of small 3x3 convolutions."""
    scales = 4
    part = max(8, out // 8 // 2 * 2)
    y = convolution(b, x, part * scales, 1, stride, act=t.act)
    parts = split(b, y, [part] * scales, 1)
    done = [parts[0]]
    for piece in parts[1:]:
        piece = b.op("Add", piece, done[-1]) if len(done) > 1 else piece
        done.append(convolution(b, piece, part, 3, act=t.act))
    y = convolution(b, b.op("Concat", *done, axis=1), out, 1)
    return activation(b, b.op("Add", _gated(b, y, t), _shortcut(b, x, out, stride, t)), t.act)


def weight_standardised(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """Norm-free: scaled activations before convolutions with a bias, a scaled residual sum."""
    y = b.op("Mul", activation(b, x, t.act), 1.7)
    width = max(8, out // 2 // 8 * 8)
    y = convolution(b, y, width, 1, norm=False, bias=True)
    y = b.op("Mul", activation(b, y, t.act), 1.7)
    y = convolution(b, y, width, 3, stride, groups=_groups(width, t.group_width), norm=False, bias=True)
    y = b.op("Mul", activation(b, y, t.act), 1.7)
    y = _gated(b, convolution(b, y, out, 1, norm=False, bias=True), t)
    return b.op("Add", b.op("Mul", y, 0.2), _shortcut(b, x, out, stride, t))


def non_local(b: GraphBuilder, x: Value, out: int, stride: int, t: Traits) -> Value:
    """A basic block with a global-context gate: a softmax over all positions pools the image."""
    y = convolution(b, x, out, 3, stride, act=t.act)
    batch, channels, height, width = y.shape
    flat = reshape(b, y, (batch, channels, height * width))
    scores = reshape(b, convolution(b, y, 1, 1, norm=False, bias=True), (batch, 1, height * width))
    attention = unsqueeze(b, transpose(b, b.op("Softmax", scores, axis=2), (0, 2, 1)), [1])
    context = b.op("MatMul", unsqueeze(b, flat, [1]), attention)
    context = reshape(b, context, (batch, channels, 1, 1))
    hidden = convolution(b, context, max(8, channels // 16), 1, norm=False, bias=True, act="relu")
    return b.op("Add", y, convolution(b, hidden, channels, 1, norm=False, bias=True))


RESIDUAL_BLOCKS: dict[str, tuple[Block, float]] = {
    # name: (block, how often networks use it, roughly)
    "plain": (plain, 0.6),
    "basic": (basic, 1.0),
    "bottleneck": (bottleneck, 2.0),
    "preactivation": (preactivation, 0.7),
    "split_attention": (split_attention, 0.6),
    "two_branches": (two_branches, 0.5),
    "merged": (merged, 0.6),
    "dense": (dense, 0.9),
    "inception": (inception, 0.8),
    "cross_stage": (cross_stage, 1.0),
    "fire": (fire, 0.3),
    "multi_scale": (multi_scale, 0.4),
    "weight_standardised": (weight_standardised, 0.5),
    "non_local": (non_local, 0.3),
}
