"""Slim networks: whole ones of a hundred small kernels, which show what lies between kernels and what launches cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from latpred.collect.blocks_attention import draw_attention, encoder_layer
from latpred.collect.blocks_mobile import MOBILE_BLOCKS
from latpred.collect.blocks_residual import RESIDUAL_BLOCKS, Block, Traits
from latpred.collect.blocks_sequence import recurrent_layer
from latpred.collect.graph_builder import GraphBuilder
from latpred.collect.layers import (
    activation,
    convolution,
    flatten,
    global_pool,
    layer_norm,
    linear,
    pool,
    reduce,
    reshape,
    split,
    transpose,
)
from latpred.collect.networks_convolution import LEAST_WIDTH, classic_traits, mobile_traits

__all__ = ["slim_network"]

MOST_NODES = 330
SIDES = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160)


def _images(b: GraphBuilder, limit_s: float, block: Block, traits: Traits, least: int) -> None:
    """A stem, many narrow blocks in three to five stages, a classifier."""
    side = int(b.choose(SIDES))
    stages = int(b.choose([3, 4, 5]))
    first = max(least, b.between(4, 32, int(b.choose([4, 2]))))
    growth = max(1.0, b.between(64, 200) / first) ** (1 / (stages - 1))
    multiple = int(b.choose([8, 4, 2], [6, 3, 1]))
    widths = [max(least, 4, round(first * growth**stage / multiple) * multiple) for stage in range(stages)]
    start_s = b.estimated_s
    b.scope = "stem"
    x = b.input((1, int(b.choose([1, 3], [1, 4])), side, side))
    x = convolution(b, x, widths[0], 3, 2 if side > 40 else 1, act=traits.act)
    if side > 100:
        x = pool(b, x, str(b.choose(["MaxPool", "AveragePool"])), 3, 2)
    for stage, width in enumerate(widths):
        for index in range(int(b.choose([2, 3, 4, 6]))):
            if index and b.estimated_s - start_s > limit_s * (stage + 1) / stages:
                break
            if len(b.nodes) > MOST_NODES or b.estimated_s - start_s > 1.5 * limit_s:
                break
            b.scope = f"stages.{stage}/blocks.{index}"
            x = block(b, x, width, 2 if index == 0 and stage and min(x.shape[2:]) > 6 else 1, traits)
    b.scope = "head"
    linear(b, flatten(b, global_pool(b, x)), int(b.choose([2, 10, 100])))


def _mobile(b: GraphBuilder, limit_s: float) -> None:
    block = MOBILE_BLOCKS[b.choose(list(MOBILE_BLOCKS))][0]
    _images(b, limit_s, block, mobile_traits(b), 8)


def _classic(b: GraphBuilder, limit_s: float) -> None:
    name = b.choose(list(RESIDUAL_BLOCKS))
    traits = replace(classic_traits(b), group_width=b.choose([0, 4, 8], [3, 1, 1]))
    _images(b, limit_s, RESIDUAL_BLOCKS[name][0], traits, LEAST_WIDTH.get(name, 8))


def _tokens(b: GraphBuilder, limit_s: float) -> None:
    """A transformer of width 32-128 on a few dozen tokens, of words or patches."""
    text = b.chance(0.5)
    head_width = int(b.choose([8, 16, 32], [1, 3, 2]))
    heads = max(1, b.between(32, 128, 16) // head_width)
    a = replace(draw_attention(b, text), heads=heads, head_width=head_width, key_heads=0)
    start_s = b.estimated_s
    b.scope = "embed"
    if text:
        tokens = b.between(16, 64)
        x = b.op("Gather", b.weight((500, a.width), 0.5), b.input((1, tokens), "int64", 500), axis=0)
    else:
        side, patch = int(b.choose([4, 5, 6, 7, 8])), int(b.choose([4, 8]))
        x = convolution(
            b, b.input((1, 3, side * patch, side * patch)), a.width, patch, patch, norm=False, bias=True, padding=0
        )
        tokens = side * side
        x = transpose(b, reshape(b, x, (1, a.width, tokens)), (0, 2, 1))
        if b.chance(0.5):
            x, tokens = b.op("Concat", b.weight((1, 1, a.width), 0.5), x, axis=1), tokens + 1
    x = b.op("Add", x, b.weight((1, tokens, a.width), 0.5))
    for index in range(12):
        if index and (b.estimated_s - start_s > limit_s or len(b.nodes) > MOST_NODES):
            break
        b.scope = f"layers.{index}"
        x = encoder_layer(b, x, a)
    b.scope = "head"
    x = layer_norm(b, x)
    x = b.op("Gather", x, b.constant(0), axis=1) if b.chance(0.5) else reduce(b, "ReduceMean", x, [1], keepdims=False)
    linear(b, x, int(b.choose([2, 10, 100])))


def _recurrent(b: GraphBuilder, limit_s: float) -> None:
    """Narrow recurrent layers over few steps, each with its norm and its linear layers."""
    kind = b.choose(["LSTM", "GRU", "RNN"], [4, 3, 1])
    steps, width = b.between(4, 32), b.between(8, 64, 4)
    start_s = b.estimated_s
    x = b.op("Tanh", b.input((steps, 1, width)))
    for index in range(12):
        if index and (b.estimated_s - start_s > limit_s or len(b.nodes) > MOST_NODES):
            break
        b.scope = f"rnn.{index}"
        x = recurrent_layer(b, x, kind, int(b.choose([16, 24, 32, 48, 64])), int(b.choose([1, 2], [3, 1])))
        if b.chance(0.5):
            x = layer_norm(b, x)
        for _ in range(int(b.choose([0, 1, 3]))):
            x = activation(b, linear(b, x, b.between(16, 96, 8)), str(b.choose(["relu", "tanh", "gelu"])))
    b.scope = "head"
    linear(b, b.op("Gather", x, b.constant(-1), axis=0), 10)


def _features(b: GraphBuilder, limit_s: float) -> None:
    """Linear layers on one or few rows of features, with residuals, gates and joins."""
    rows, width = int(b.choose([1, 2, 4, 16])), b.between(16, 200, 4)
    act = b.choose(["relu", "silu", "tanh", "gelu", "elu", "hard_swish"])
    start_s = b.estimated_s
    x = b.input((rows, width))
    for index in range(60):
        if index and (b.estimated_s - start_s > limit_s or len(b.nodes) > MOST_NODES):
            break
        b.scope = f"layers.{index}"
        kind = b.choose(["plain", "residual", "gated", "join", "norm"], [4, 4, 2, 1, 1.5])
        if kind == "plain":
            x = activation(b, linear(b, x, b.between(16, 200, 4)), act)
        elif kind == "residual":
            y = linear(b, activation(b, linear(b, x, b.between(16, 256, 8)), act), x.shape[1])
            x = b.op("Add", x, y)
        elif kind == "gated":
            left, right = split(b, linear(b, x, 2 * x.shape[1]), [x.shape[1]] * 2, 1)
            x = b.op("Mul", left, b.op("Sigmoid", right))
        elif kind == "join":
            x = linear(b, b.op("Concat", x, b.input((rows, b.between(2, 40))), axis=1), x.shape[1])
        else:
            x = layer_norm(b, x)
    b.scope = "head"
    linear(b, x, int(b.choose([1, 2, 10])))


KINDS: tuple[tuple[Callable[[GraphBuilder, float], None], float], ...] = (
    (_mobile, 6),
    (_classic, 4),
    (_tokens, 3),
    (_recurrent, 0.7),
    (_features, 1),
)


def slim_network(b: GraphBuilder, limit_s: float) -> None:
    """One whole slim network."""
    b.choose([kind for kind, _ in KINDS], [weight for _, weight in KINDS])(b, limit_s)
