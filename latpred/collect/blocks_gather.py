"""Gather as networks use it beyond embeddings: short runs, many indices, along middle and last axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import reshape, split, squeeze, transpose, unsqueeze

__all__ = ["indexing"]

MAX_ELEMENTS = 1 << 20


def _fresh(b: GraphBuilder, shape: tuple[int, ...]) -> Value:
    """An activation that some kernel has just written."""
    return b.op("Neg", b.input(shape))


def _unfold(b: GraphBuilder) -> None:
    """Sliding windows of an image, by one Gather for its rows and one for its columns: six dims, then patches."""
    kernel = int(b.choose([2, 3, 4, 5, 7], [1, 6, 1, 1, 1]))
    stride = int(b.choose([1, 2, kernel], [5, 3, 2]))
    side = int(b.choose([8, 14, 16, 28, 32, 56, b.between(8, 64)]))
    positions = (side - kernel) // stride + 1
    channels = b.between(4, 384, 4)
    while channels > 1 and channels * (positions * kernel) ** 2 > MAX_ELEMENTS:
        channels //= 2
    x = _fresh(b, (int(b.choose([1, 1, 1, 2])), channels, side, side))
    index = np.arange(kernel)[:, None] + stride * np.arange(positions)
    y = b.op("Gather", x, b.constant(index), axis=2)
    y = b.op("Gather", y, b.constant(index), axis=4)
    y = transpose(b, y, (0, 1, 2, 4, 3, 5))
    reshape(b, y, (x.shape[0], channels * kernel * kernel, positions * positions))


def _position_bias(b: GraphBuilder) -> None:
    """A table of relative positions, looked up once a pair of tokens, heads brought to the front."""
    side = int(b.choose([4, 5, 6, 7, 8, 10, 12, 14, 16], [0.5, 0.5, 0.5, 5, 2, 1, 1.5, 2, 1]))
    tokens, heads = side * side, int(b.choose([1, 2, 3, 4, 6, 8, 12, 16, 24, 32]))
    entries = b.choose([(2 * side - 1) ** 2, (2 * side - 1) ** 2 + 3, tokens])
    picks = b.rng.integers(0, entries, tokens * tokens)
    if b.chance(0.35):  # a table a head: the lookup goes along the last axis
        y = b.op("Gather", _fresh(b, (heads, entries)), b.constant(picks.reshape(tokens, tokens)), axis=1)
    elif b.chance(0.6):
        y = reshape(b, b.op("Gather", _fresh(b, (entries, heads)), b.constant(picks), axis=0), (tokens, tokens, heads))
        y = transpose(b, y, (2, 0, 1))
    else:
        y = b.op("Gather", _fresh(b, (entries, heads)), b.constant(picks.reshape(tokens, tokens)), axis=0)
        y = transpose(b, y, (2, 0, 1))
    b.op("Mul", b.op("Sigmoid", unsqueeze(b, y, [0])), 16.0)


def _channel_shuffle(b: GraphBuilder) -> None:
    """Channels in another order: of an image, channels first or last, or of tokens."""
    channels = b.between(16, 512, 8)
    side = int(b.choose([7, 14, 16, 28, 32, 56]))
    while channels * side * side > MAX_ELEMENTS:
        side //= 2
    order = np.arange(channels).reshape(int(b.choose([2, 4, 8])), -1).T.ravel()
    order = order if b.chance(0.6) else b.rng.permutation(channels)
    order = order if b.chance(0.7) else order[: channels // 2]
    shape, axis = b.choose(
        [((1, channels, side, side), 1), ((1, side, side, channels), 3), ((1, side * side, channels), 2)], [4, 1.5, 1]
    )
    b.op("Neg", b.op("Gather", _fresh(b, shape), b.constant(order), axis=axis))


def _short_runs(b: GraphBuilder) -> None:
    """Many indices into a middle or the last axis, with 1-8 elements behind each."""
    run = int(b.choose([1, 2, 3, 4, 6, 8], [4, 2, 1, 2, 1, 1]))
    outer, length = b.between(1, 512), b.between(8, 2048)
    count = b.between(8, 4096)
    while outer * max(count, length) * run > MAX_ELEMENTS:
        outer, count, length = max(1, outer // 2), max(4, count // 2), max(4, length // 2)
    behind = () if run == 1 and b.chance(0.6) else (run,)
    ahead = (1, outer) if b.chance(0.4) else (outer,)
    picks = b.rng.integers(0, length, count)
    if count % 4 == 0 and b.chance(0.3):
        picks = picks.reshape(4, count // 4)
    indices = b.input(picks.shape, "int64", length) if b.chance(0.3) else b.constant(picks)
    b.op("Gather", _fresh(b, (*ahead, length, *behind)), indices, axis=len(ahead))


def _token_choice(b: GraphBuilder) -> None:
    """Some tokens of a sequence, or window positions of an image's rows, along the axis before the last."""
    tokens, width = int(b.choose([49, 64, 128, 196, 197, 256, 577, 785])), b.between(16, 768, 8)
    while tokens * width > MAX_ELEMENTS:
        width //= 2
    count = int(b.choose([1, tokens // 2, tokens - 1, tokens]))
    picks = np.sort(b.rng.permutation(tokens)[:count])
    batch = int(b.choose([1, 2, 3])) if 3 * tokens * width < MAX_ELEMENTS else 1
    b.op("Neg", b.op("Gather", _fresh(b, (batch, tokens, width)), b.constant(picks), axis=1))


def _axis_by_axis(b: GraphBuilder) -> None:
    """Rows, then columns of an image picked by index: a crop, a flip or a nearest resize."""
    channels, side = b.between(3, 256), int(b.choose([7, 14, 28, 56, 112]))
    out = int(b.choose([side, 2 * side, side // 2]))
    while channels > 1 and channels * max(out, side) ** 2 > MAX_ELEMENTS:
        channels //= 2
    index = np.arange(out) * side // out
    index = index[::-1].copy() if b.chance(0.3) else index
    shape = (1, channels, side, side) if b.chance(0.7) else (channels, side, side)
    y = b.op("Gather", _fresh(b, shape), b.constant(index), axis=len(shape) - 2)
    b.op("Gather", y, b.constant(index), axis=len(shape) - 1)


def _disentangled(b: GraphBuilder) -> None:
    """Scores against relative positions, brought to the pair of tokens that each is for: along the last axis."""
    heads, tokens = int(b.choose([2, 4, 6, 8, 12])), int(b.choose([16, 32, 48, 64, 96, 128, 192, 256]))
    spans = int(b.choose([2 * tokens, tokens, 128, 512]))
    while heads > 1 and heads * tokens * max(spans, tokens) > MAX_ELEMENTS:
        heads //= 2
    picks = np.clip(np.subtract.outer(np.arange(tokens), np.arange(tokens)) + spans // 2, 0, spans - 1)
    index = b.constant(np.broadcast_to(picks, (1, heads, tokens, tokens)).copy())
    y = b.op("GatherElements", _fresh(b, (1, heads, tokens, spans)), index, axis=3)
    if b.chance(0.5):
        transpose(b, y, (0, 1, 3, 2))


def _sampled_points(b: GraphBuilder) -> None:
    """Deformable attention: a few points a query and head, read out of image features, one level after another."""
    if b.style.opset < 16:
        return
    batch = int(b.choose([1, 4, 8, 8]))
    channels, side = int(b.choose([16, 32, 32, 64])), int(b.choose([16, 20, 32, 40, 64]))
    queries, points = int(b.choose([100, 300, side * side])), int(b.choose([1, 4, 4]))
    while queries > 8 and batch * channels * queries * points > MAX_ELEMENTS:
        queries //= 2
    mode = "bilinear" if b.style.opset < 20 else "linear"
    for level in range(int(b.choose([1, 3, 3]))):
        size = max(2, side >> level)
        grid = b.op("Tanh", b.input((batch, queries, points, 2)))
        y = b.op("GridSample", _fresh(b, (batch, channels, size, size)), grid, mode=mode, align_corners=0)
        b.op("Mul", y, b.op("Sigmoid", b.input((batch, 1, queries, points))))


def _unrolled(b: GraphBuilder) -> None:
    """A recurrence written out step by step: sequences cut into their steps, a state that each of them renews."""
    steps = int(b.choose([8, 16, 24, 32, 64]))
    width, states = int(b.choose([32, 64, 128, 256, 384, 768])), int(b.choose([1, 8, 16, 16]))
    while width > 8 and width * steps * states > MAX_ELEMENTS // 2:
        width //= 2
    decay, drive = _fresh(b, (1, width, steps, states)), _fresh(b, (1, width, steps, states))
    if b.chance(0.5):
        cut = [[squeeze(b, part, [2]) for part in split(b, x, [1] * steps, 2)] for x in (decay, drive)]
    else:
        cut = [[b.op("Gather", x, b.constant(i), axis=2) for i in range(steps)] for x in (decay, drive)]
    state = cut[1][0]
    seen = []
    for factor, term in zip(*cut, strict=True):
        state = b.op("Add", b.op("Mul", factor, state), term)
        seen.append(unsqueeze(b, b.op("MatMul", state, b.input((1, states, 1))), [2]) if b.chance(0.5) else state)
    same = [value for value in seen if value.shape == seen[-1].shape]
    b.op("Concat", *same, axis=1)


PATTERNS: tuple[tuple[Callable[[GraphBuilder], None], float], ...] = (
    (_unfold, 2.5),
    (_position_bias, 3),
    (_channel_shuffle, 2),
    (_short_runs, 3),
    (_token_choice, 1.5),
    (_axis_by_axis, 1),
    (_disentangled, 1.5),
    (_sampled_points, 1),
    (_unrolled, 0.7),
)


def indexing(b: GraphBuilder, limit_s: float) -> None:
    """Gathers of every pattern, one after another."""
    start_s = b.estimated_s
    for _ in range(12):
        if b.estimated_s - start_s > limit_s:
            return
        b.scope = "indexing"
        b.choose([pattern for pattern, _ in PATTERNS], [weight for _, weight in PATTERNS])(b)
