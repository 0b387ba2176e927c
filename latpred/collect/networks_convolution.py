"""Convolutional networks of a few blocks: a stem, stages that halve the image and widen it, a head.

Widths, resolutions, depths and block options are drawn together, as they occur together in the literature:
channels grow as resolution falls, mostly in multiples of eight; one activation and one gate a network.
"""

from __future__ import annotations

from latpred.collect.blocks_mobile import MOBILE_BLOCKS
from latpred.collect.blocks_residual import RESIDUAL_BLOCKS, Block, Traits
from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import activation, channel_gate, convolution, flatten, global_pool, linear, pool, reduce

__all__ = [
    "BATCHES",
    "LEAST_WIDTH",
    "RESOLUTIONS",
    "classic",
    "classic_traits",
    "draw_batch",
    "draw_resolution",
    "mobile",
    "mobile_traits",
    "round_channels",
]

RESOLUTIONS = (
    (96, 1),
    (112, 1),
    (128, 2),
    (160, 2),
    (176, 1),
    (192, 2),
    (224, 10),
    (240, 1),
    (256, 4),
    (288, 2),
    (299, 1),
    (320, 1),
    (384, 1),
)
LEAST_WIDTH = {"inception": 40}  # channels of a block with four branches
WIDE_BLOCKS = ("channels_last", "pointwise_mlp", "gated_convolution", "partial_convolution", "dilated_large_kernel")
BATCHES = ((1, 14), (2, 2), (3, 0.5), (4, 1.5), (8, 0.7))


def draw_batch(b: GraphBuilder) -> int:
    """Images or sequences at once: mostly one."""
    return b.choose([n for n, _ in BATCHES], [w for _, w in BATCHES])


def draw_resolution(b: GraphBuilder, batch: int = 1) -> int:
    """Side of an input image; smaller in larger batches."""
    limit = {1: 384, 2: 288, 3: 256, 4: 224, 8: 160}[batch]
    allowed = [(n, w) for n, w in RESOLUTIONS if n <= limit]
    return b.choose([n for n, _ in allowed], [w for _, w in allowed])


def round_channels(b: GraphBuilder, width: float) -> int:
    """To multiples of 8 mostly, of 4 or 2 now and then, of nothing rarely: searched networks have odd widths."""
    multiple = b.choose([8, 16, 32, 4, 2, 1], [10, 4, 2, 1.5, 0.8, 0.5])
    return int(max(8, round(width / multiple) * multiple))


def _stem(b: GraphBuilder, x: Value, width: int, act: str, deep: bool) -> Value:
    kind = b.choose(["large", "small", "three", "patch"], [2, 3, 1.5, 1] if deep else [0.5, 5, 0.5, 0.3])
    if kind == "large":
        x = convolution(b, x, width, 7, 2, act=act)
        return pool(b, x, "MaxPool", 3, 2)
    if kind == "small":
        return convolution(b, x, width, 3, 2, act=act)
    if kind == "three":
        x = convolution(b, x, max(8, width // 2), 3, 2, act=act)
        x = convolution(b, x, max(8, width // 2), 3, act=act)
        x = convolution(b, x, width, 3, act=act)
        return pool(b, x, str(b.choose(["MaxPool", "AveragePool"])), 3, 2)
    return convolution(b, x, width, 4, 4, norm=False, bias=True, padding=0)


def _head(b: GraphBuilder, x: Value, act: str) -> None:
    if b.chance(0.4):
        x = convolution(b, x, round_channels(b, x.shape[1] * float(b.choose([1.5, 2, 4]))), 1, act=act)
    if b.chance(0.15):
        flat = flatten(b, x)
        if flat.shape[1] <= 12544:
            hidden = activation(b, linear(b, flat, int(b.choose([128, 256, 512, 1024]))), act)
            linear(b, hidden, int(b.choose([10, 100, 1000])))
            return
    pooled = flatten(b, global_pool(b, x)) if b.chance(0.7) else reduce(b, "ReduceMean", x, [2, 3], keepdims=False)
    if b.chance(0.25):
        pooled = activation(b, linear(b, pooled, int(b.choose([512, 1024, 1280, 2048]))), act)
    scores = linear(b, pooled, int(b.choose([10, 100, 1000, 1000, 1000])))
    if b.chance(0.15):
        b.op("Softmax", scores, axis=-1 if b.style.opset >= 13 else 1)


def _network(b: GraphBuilder, block: Block, traits: Traits, widths: list[int], deep: bool, limit_s: float) -> None:
    """Stages until the time is used up; sometimes the network is cut into at a later stage."""
    batch = draw_batch(b) if widths[0] <= 96 else 1
    resolution = draw_resolution(b, batch)
    start_s = b.estimated_s
    first = int(b.choose([0, 1, 2, 3], [6, 1, 2, 2]))
    if first == 0:
        b.scope = "stem"
        x = _stem(b, b.input((batch, 3, resolution, resolution)), widths[0], traits.act, deep)
    else:
        side = max(4, resolution // 4 // 2**first)
        height = side if b.chance(0.85) else max(4, round(side * 0.75))
        x = b.input((batch, widths[first - 1], height, side))
        x = activation(b, x, "relu")
    for stage, width in enumerate(widths[first:], first):
        for index in range(int(b.choose([1, 2, 3], [3, 5, 2]))):
            spent_s = b.estimated_s - start_s
            if spent_s > 2 * limit_s:
                return
            if index and spent_s > limit_s * (stage + 1) / len(widths):
                break  # later stages are to be seen too
            b.scope = f"stages.{stage}/blocks.{index}"
            shrink = index == 0 and (stage > 0 or (not deep and b.chance(0.5))) and min(x.shape[2:]) > 6
            x = block(b, x, width, 2 if shrink else 1, traits)
    if traits.gate != "none" and b.chance(0.2):
        x = channel_gate(b, x, traits.gate)
    b.scope = "head"
    _head(b, x, traits.act)


def classic_traits(b: GraphBuilder) -> Traits:
    """What classic blocks have in common, as it occurs together."""
    return Traits(
        act=b.choose(
            ["relu", "silu", "leaky_relu", "gelu", "prelu", "elu", "hard_swish", "mish"],
            [10, 2, 0.8, 0.5, 0.4, 0.3, 0.3, 0.3],
        ),
        gate=b.choose(["none", "se", "se_linear", "eca"], [7, 1.5, 0.7, 0.8]),
        kernel=int(b.choose([3, 3, 3, 5, 1])),
        expansion=float(b.choose([4.0, 4.0, 2.0])),
        group_width=b.choose([0, 4, 8, 16, 24, 32, 48, 64], [5, 1, 1, 1, 0.6, 0.8, 0.4, 0.6]),
        smooth_downsampling=b.chance(0.3),
    )


def mobile_traits(b: GraphBuilder) -> Traits:
    """What small blocks have in common, as it occurs together."""
    return Traits(
        act=b.choose(
            ["relu", "relu6", "silu", "hard_swish", "gelu", "leaky_relu", "prelu"], [4, 3, 4, 2.5, 1, 0.3, 0.3]
        ),
        gate=b.choose(["none", "se", "se_linear", "eca"], [5, 4, 0.7, 0.4]),
        kernel=int(b.choose([3, 5, 7], [6, 3, 1])),
        expansion=float(b.choose([1.0, 2.0, 3.0, 4.0, 6.0], [1, 1, 1.5, 3, 4])),
        same_upper=b.chance(0.1),
    )


def classic(b: GraphBuilder, limit_s: float) -> None:
    """A network of classic blocks, 32 to 2048 channels wide."""
    names = list(RESIDUAL_BLOCKS)
    name = b.choose(names, [RESIDUAL_BLOCKS[n][1] for n in names])
    base = (
        b.between(24, 96, 8)
        if name not in ("bottleneck", "preactivation", "split_attention", "multi_scale")
        else (b.between(64, 320, 16))
    )
    base = max(base, LEAST_WIDTH.get(name, 0))
    growth = float(b.choose([2.0, 2.0, 2.0, 1.5, 1.7]))
    traits = classic_traits(b)
    widths = [round_channels(b, base * growth**stage) for stage in range(4)]
    _network(b, RESIDUAL_BLOCKS[name][0], traits, widths, True, limit_s)


def mobile(b: GraphBuilder, limit_s: float) -> None:
    """A network of small blocks, 12 to 768 channels wide."""
    names = list(MOBILE_BLOCKS)
    name = b.choose(names, [MOBILE_BLOCKS[n][1] for n in names])
    wide = name in WIDE_BLOCKS
    base = b.between(32, 128, 8) if wide else b.between(12, 48, 4)
    if name in ("separable_residual", "shuffle"):
        base *= 2
    growth = 2.0 if wide else float(b.choose([1.5, 1.7, 1.9]))
    traits = mobile_traits(b)
    widths = [round_channels(b, base * growth**stage) for stage in range(4 if wide else 5)]
    _network(b, MOBILE_BLOCKS[name][0], traits, widths, wide, limit_s)
