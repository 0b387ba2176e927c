"""Chains of convolutions and of linear layers, each of another shape: the large kernels in every realistic size.

Where the templates of whole networks repeat a block, a chain changes the width at every step, so that a second of
measuring sees many shapes. Channels and resolution still go together.
"""

from __future__ import annotations

from math import prod

from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import activation, convolution, global_pool, linear, pool, reshape

__all__ = ["convolution_chain", "linear_chain", "separable_chain"]

STEPS = 14
MACS_PER_S = 40e9  # of a current core, roughly: bounds what one layer may take of a section's time
MAX_WEIGHTS = 12_000_000  # elements of one layer
SIDES = (7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160)
GROUP_WIDTHS = (4, 6, 8, 10, 12, 16, 16, 20, 24, 28, 32, 32, 40, 48, 56, 64, 64, 112, 128, 256)
ROWS = (  # tokens of a sequence, or positions of an image, and how often
    (1, 3), (4, 0.7), (8, 1), (16, 1.5), (32, 2), (49, 2), (50, 0.7), (64, 2), (77, 0.5), (98, 0.5), (128, 3), (144, 1),
    (196, 3), (197, 3), (256, 2.5), (257, 1), (320, 0.5), (384, 1.5), (400, 0.5), (512, 1.5), (577, 0.7), (784, 2.5),
    (1024, 1.5), (1568, 1.5), (3136, 2.5), (4096, 1),
)  # fmt: skip
STEP_KINDS = (
    # what one step is, and how often
    ("pointwise", 9),
    ("dense", 5),
    ("depthwise", 3.5),
    ("grouped", 4),
    ("shrinking", 2),
    ("large", 0.7),
    ("flat", 0.7),
)


def convolution_chain(b: GraphBuilder, limit_s: float) -> None:
    """Convolutions one after another at one resolution (or two), some with a residual Add, most with an activation."""
    side = b.choose(SIDES)
    typical = 24 * 224 / 2 / side  # channels of a small network at this resolution
    batch = int(b.choose([1, 2, 4, 8], [12, 1, 1, 0.4])) if side <= 56 else 1
    act = b.choose(["relu", "relu6", "silu", "hard_swish", "gelu", "leaky_relu", "none"], [8, 2, 4, 1.5, 1.5, 0.5, 1])
    start_s = b.estimated_s
    b.scope = "chain"
    wide = float(b.choose([1, 4], [5, 1]))  # of a wide network, or one that keeps its resolution by dilation
    typical *= wide
    fine = int(b.choose([8, 4, 2, 1], [6, 1, 0.7, 0.5]))  # what channels are multiples of: the runtime may block 16
    channels = min(1536, b.between(max(8, typical * 0.5), typical * 4, fine))
    while channels > 8 and batch * channels**2 * side**2 > MACS_PER_S * limit_s:
        channels = max(8, channels // 2 // fine * fine)
    x = b.input((batch, channels, side, side if b.chance(0.9) else max(4, side * 3 // 4)))
    x = convolution(b, x, channels, 1, act=act)
    earlier = [x]
    for step in range(STEPS):
        if b.estimated_s - start_s > limit_s:
            break
        b.scope = f"chain/{step}"
        kind = b.choose([kind for kind, _ in STEP_KINDS], [weight for _, weight in STEP_KINDS])
        x = _step(b, x, kind, typical, act if b.chance(0.7) else "none", MACS_PER_S * limit_s, fine)
        same = [other for other in earlier if other.shape == x.shape]
        if same and b.chance(0.4):
            x = b.op("Add", x, b.choose(same))
            x = activation(b, x, "relu") if act == "relu" and b.chance(0.7) else x
        earlier.append(x)
    if b.chance(0.3):
        linear(b, b.op("Flatten", global_pool(b, x)), 1000)


def _step(b: GraphBuilder, x: Value, kind: str, typical: float, act: str, most_macs: float, fine: int) -> Value:
    channels = x.shape[1]
    if kind == "depthwise":
        taps = int(b.choose([3, 5, 7, 9], [6, 3, 2, 0.3]))
        stride = 2 if b.chance(0.15) and min(x.shape[2:]) > 8 else 1
        return convolution(b, x, channels, taps, stride, groups=channels, act=act)
    factor = float(b.choose([1, 2, 3, 4, 6, 0.5, 0.25, 1 / 3, 1 / 6], [4, 2, 0.7, 2, 1.5, 2.5, 2, 0.7, 1.5]))
    out = channels * factor if b.chance(0.6) else b.between(max(8, typical * 0.4), typical * 6, 8)
    multiple = fine if fine < 8 else int(b.choose([8, 16, 4, 1], [10, 4, 0.7, 0.3]))
    out = int(min(2048, max(8, round(out / multiple) * multiple)))
    if kind == "pointwise":
        while out > 8 and channels * out * x.shape[0] * prod(x.shape[2:]) > most_macs:
            out = max(8, out // 2 // 8 * 8)
        return convolution(b, x, out, 1, act=act)
    if kind == "grouped":
        width = int(b.choose(GROUP_WIDTHS))
        while width > 4 and 2 * channels * width * 9 * x.shape[0] * prod(x.shape[2:]) > most_macs:
            width //= 2
        groups = max(2, round(channels / width))
        if channels != groups * width:
            x = convolution(b, x, groups * width, 1, act=act)
        deep = width * int(b.choose([1, 2], [6, 1]))
        return convolution(b, x, groups * deep, 3, 2 if b.chance(0.15) else 1, groups=groups, act=act)
    size = int(b.choose([3, 5, 7])) if kind == "flat" else int(b.choose([5, 7])) if kind == "large" else 3
    shape = b.choose([(1, size), (size, 1)]) if kind == "flat" else (size, size)
    while out > 8 and channels * out * prod(shape) > min(MAX_WEIGHTS, most_macs / (x.shape[0] * prod(x.shape[2:]))):
        out = max(8, out // 2 // 8 * 8)
    if kind == "shrinking" and min(x.shape[2:]) > 6:
        return convolution(b, x, out, int(b.choose([1, 2, 3], [2, 1, 5])), 2, act=act)
    dilation = int(b.choose([1, 2, 4], [12, 1, 0.5])) if kind == "dense" and min(x.shape[2:]) >= 14 else 1
    return convolution(b, x, out, shape, dilation=dilation, act=act)


def separable_chain(b: GraphBuilder, limit_s: float) -> None:
    """Depthwise and narrow grouped convolutions between pointwise ones, pools, joins of several: any resolution."""
    side = b.between(7, 150)
    odd = b.chance(0.2)  # channels that the runtime's blocked layout does not take
    channels = b.between(16, 1024, int(b.choose([4, 2, 1])) if odd else 8)
    batch = int(b.choose([1, 2, 4], [12, 1, 0.7])) if side <= 40 else 1
    most = MACS_PER_S * limit_s / 4
    while channels > 16 and batch * channels * side * side * max(channels, 300) > most:
        channels = max(16, channels // 2)
    act = b.choose(["relu", "relu6", "hard_swish", "silu", "none"], [6, 4, 1, 1, 1])
    kernel = int(b.choose([3, 5, 7], [6, 3, 2]))
    start_s = b.estimated_s
    b.scope = "separable"
    x = convolution(b, b.input((batch, channels, side, side)), channels, 1, act=act)
    for step in range(STEPS):
        if step and b.estimated_s - start_s > limit_s:
            return
        b.scope = f"separable/{step}"
        kind = b.choose(["separable", "grouped", "join", "pool"], [6, 4, 1.5, 1])
        stride = 2 if b.chance(0.2) and min(x.shape[2:]) > 12 else 1
        if kind == "separable":
            y = convolution(b, x, x.shape[1], kernel, stride, groups=x.shape[1], act=act if b.chance(0.7) else "none")
            x = _pointwise(b, y, x, most, act)
        elif kind == "grouped":
            width = int(b.choose([4, 8, 16, 24, 32, 48, 64] if not odd else [5, 6, 10, 12, 18, 20, 28, 40]))
            groups = max(2, round(min(1500, x.shape[1] * float(b.choose([1, 1, 2]))) / width))
            y = convolution(b, x, groups * width, 1, act=act)
            y = convolution(b, y, groups * width, 3 if width > 16 else kernel, stride, groups=groups, act=act)
            x = _pointwise(b, y, x, most, act)
        elif kind == "join":
            growth = max(4, x.shape[1] // int(b.choose([2, 4, 8])))
            parts = [x]
            for _ in range(int(b.choose([1, 2, 3, 4]))):
                parts.append(convolution(b, parts[-1], growth, int(b.choose([1, 3])), act=act))
            joined = b.op("Concat", *parts, axis=1)
            x = _pointwise(b, joined, x, most, act)
        elif min(x.shape[2:]) >= 4:
            size, step_over = b.choose([(2, 2), (3, 2), (3, 1), (5, 1)], [3, 2, 3, 0.5])
            x = pool(b, x, str(b.choose(["MaxPool", "AveragePool"])), size, step_over)


def _pointwise(b: GraphBuilder, x: Value, before: Value, most_macs: float, act: str) -> Value:
    """A 1x1 convolution back to the channels of before (then perhaps a sum) or to others."""
    channels = before.shape[1]
    out = channels if b.chance(0.6) else max(8, round(channels * float(b.choose([0.5, 1.5, 2])) / 4) * 4)
    while out > 16 and x.shape[1] * out * x.shape[0] * prod(x.shape[2:]) > most_macs:
        out = max(16, out // 2)
    y = convolution(b, x, out, 1, act=act if b.chance(0.5) else "none")
    return b.op("Add", y, before) if y.shape == before.shape and b.chance(0.7) else y


def linear_chain(b: GraphBuilder, limit_s: float) -> None:
    """Linear layers one after another on rows of tokens, widened and narrowed as projections and MLPs do."""
    rows = b.choose([rows for rows, _ in ROWS], [weight for _, weight in ROWS])
    most = 1536 if rows <= 200 else 1024 if rows <= 600 else 384
    width = b.between(32, most, 8) if b.chance(0.85) else b.between(20, 700)
    act = b.choose(["gelu", "relu", "gelu_tanh", "silu", "quick_gelu", "hard_swish"], [6, 3, 0.7, 1.5, 0.5, 0.7])
    shape = (1, rows, width) if b.chance(0.7) else (rows, width)
    start_s = b.estimated_s
    b.scope = "chain"
    x = b.op("Neg", b.input(shape))
    earlier = [x]
    for step in range(STEPS):
        if b.estimated_s - start_s > limit_s:
            break
        b.scope = f"chain/{step}"
        width = x.shape[-1]
        factor = float(b.choose([1, 2, 3, 4, 0.5, 1 / 3, 0.25], [4, 2, 2.5, 3, 2, 2, 3]))
        out = width * factor if b.chance(0.75) else b.between(16, 4 * most, 8)
        out = int(min(4 * most, max(8, round(out / 8) * 8))) if b.chance(0.92) else b.between(5, most)
        while width * out > MAX_WEIGHTS:
            out //= 2
        x = linear(b, x, out, bias=b.chance(0.85))
        if b.chance(0.35):
            x = activation(b, x, act)
        same = [other for other in earlier if other.shape == x.shape]
        if same and b.chance(0.4):
            x = b.op("Add", x, b.choose(same))
        if b.chance(0.1) and len(x.shape) == 3:
            x = reshape(b, x, (x.shape[1], x.shape[2]))
        earlier.append(x)
