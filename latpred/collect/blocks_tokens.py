"""Movement in attention: packed projections, heads, windows, cyclic shifts, class tokens, rotary halves, masks."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import reshape, split, squeeze, transpose, window_slice

__all__ = ["token_moves"]

MAX_ELEMENTS = 3 << 19
TOKENS = (16, 49, 50, 64, 77, 100, 128, 144, 196, 197, 198, 256, 257, 400, 577, 784, 785, 1024, 3136, 3137)
HEAD_WIDTHS = (16, 24, 32, 40, 48, 64, 64, 72, 80, 96)
HEADS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)


def _fresh(b: GraphBuilder, shape: tuple[int, ...]) -> Value:
    """An activation that some kernel has just written."""
    return b.op("Neg", b.input(shape))


def _heads(b: GraphBuilder, parts: int = 1) -> tuple[int, int, int, int]:
    """Batch, tokens, heads, width of a head; so few heads that `parts` such tensors stay small."""
    batch = int(b.choose([1, 2, 4, 16, 64], [10, 1, 1, 1, 0.5]))
    tokens = int(b.choose(TOKENS)) if batch <= 4 else int(b.choose([16, 49, 64]))
    heads, width = int(b.choose(HEADS)), int(b.choose(HEAD_WIDTHS))
    while parts * batch * tokens * heads * width > MAX_ELEMENTS:
        heads, batch = (heads // 2, batch) if heads > 1 else (heads, max(1, batch // 2))
        tokens = tokens if heads > 1 or batch > 1 else tokens // 2
    return batch, tokens, heads, width


def _packed(b: GraphBuilder) -> None:
    """Query, key and value out of one projection: cut first or transposed first."""
    batch, tokens, heads, width = _heads(b, 3)
    parts = int(b.choose([3, 2], [4, 1]))
    rows = _fresh(b, (batch, tokens, parts * heads * width))
    kind = b.choose(["front", "middle", "flat"], [4, 3, 1.5])
    if kind == "flat":
        for part in split(b, rows, [heads * width] * parts, 2):
            y = reshape(b, part, (batch, tokens, heads, width))
            b.op("Mul", transpose(b, y, b.choose([(0, 2, 1, 3), (0, 2, 3, 1)])), 0.5)
        return
    packed = reshape(b, rows, (batch, tokens, parts, heads, width))
    axis = 2
    if kind == "front":
        packed, axis = transpose(b, packed, b.choose([(2, 0, 3, 1, 4), (2, 0, 3, 4, 1), (2, 0, 1, 3, 4)], [5, 2, 1])), 0
    for part in _cut(b, packed, axis):
        if kind == "front":
            b.op("Mul", part, 0.5)
        else:
            b.op("Mul", transpose(b, part, b.choose([(0, 2, 1, 3), (0, 2, 3, 1)], [3, 1])), 0.5)


def _cut(b: GraphBuilder, x: Value, axis: int) -> list[Value]:
    """The entries of one axis, without it: by Split, by Slices or by Gathers."""
    count = x.shape[axis]
    way = b.choose(["gather", "split", "slice"], [4, 3, 1])
    if way == "gather":
        return [b.op("Gather", x, b.constant(i), axis=axis) for i in range(count)]
    if way == "split":
        return [squeeze(b, part, [axis]) for part in split(b, x, [1] * count, axis)]
    return [squeeze(b, window_slice(b, x, axis, i, i + 1), [axis]) for i in range(count)]


def _permuted(b: GraphBuilder) -> None:
    """Heads and tokens change places; keys are turned; images become tokens and back."""
    batch, tokens, heads, width = _heads(b)
    order = b.choose([(0, 2, 1, 3), (0, 2, 3, 1), (0, 1, 3, 2), (0, 3, 1, 2), (0, 3, 2, 1)], [4, 3, 3, 2, 0.7])
    shape = (batch, tokens, heads, width) if b.chance(0.6) else (batch, heads, tokens, width)
    y = b.op("Mul", transpose(b, _fresh(b, shape), order), 0.5)
    if b.chance(0.5):
        reshape(b, transpose(b, y, (0, 2, 1, 3)), (batch, y.shape[2], -1))
    rows = _fresh(b, (batch, tokens, heads * width))
    b.op("Sigmoid", transpose(b, rows, (0, 2, 1)))


def _windows(b: GraphBuilder) -> None:
    """A channels-last image is shifted cyclically, cut into windows, joined again and shifted back."""
    window = int(b.choose([7, 8, 14, 16, 4], [5, 2.5, 1, 0.7, 0.7]))
    side = window * int(b.choose([1, 2, 4, 8], [1, 2, 2, 2]))
    width = b.between(32, 512, 32) if b.chance(0.8) else b.between(24, 400)
    while side * side * width > MAX_ELEMENTS:
        side, width = (side // 2, width) if side > window and side > 32 else (side, max(8, width // 2))
    batch = int(b.choose([1, 1, 1, 2])) if 2 * side * side * width < MAX_ELEMENTS else 1
    x = _fresh(b, (batch, side, side, width))
    shifted = b.chance(0.6)
    if shifted:
        x = _rolled(b, _rolled(b, x, window // 2, 1), window // 2, 2)
    count = side // window
    y = transpose(b, reshape(b, x, (batch, count, window, count, window, width)), (0, 1, 3, 2, 4, 5))
    y = reshape(b, y, (batch * count * count, window * window, width))
    y = b.op("Add", y, b.weight((width,), 0.1))
    y = transpose(b, reshape(b, y, (batch, count, count, window, window, width)), (0, 1, 3, 2, 4, 5))
    y = reshape(b, y, (batch, side, side, width))
    if shifted:
        y = _rolled(b, _rolled(b, y, side - window // 2, 1), side - window // 2, 2)
    b.op("Add", reshape(b, y, (batch, side * side, width)), b.weight((width,), 0.1))


def _rolled(b: GraphBuilder, x: Value, cut: int, axis: int) -> Value:
    size = x.shape[axis]
    return b.op("Concat", window_slice(b, x, axis, cut, size), window_slice(b, x, axis, 0, cut), axis=axis)


def _class_token(b: GraphBuilder) -> None:
    """Tokens of their own before (or behind) those of the image; parted from them again."""
    batch, tokens, heads, head_width = _heads(b)
    width, extra = heads * head_width, int(b.choose([1, 2, 4, 5], [6, 1.5, 0.7, 1]))
    own = b.weight((1, extra, width), 0.5)
    if batch > 1:
        own = b.op("Expand", own, b.constant([batch, extra, width]))
    rows = _fresh(b, (batch, tokens, width))
    x = b.op("Concat", *([own, rows] if b.chance(0.85) else [rows, own]), axis=1)
    x = b.op("Add", x, b.weight((1, tokens + extra, width), 0.5))
    if b.chance(0.5):
        first, rest = split(b, x, [extra, tokens], 1)
    else:
        first, rest = window_slice(b, x, 1, 0, extra), window_slice(b, x, 1, extra, tokens + extra)
    side = round(tokens**0.5)
    if side * side == tokens and b.chance(0.5):
        rest = transpose(b, reshape(b, rest, (batch, side, side, width)), (0, 3, 1, 2))
    b.op("Neg", rest)
    b.op("Tanh", first)


def _rotary(b: GraphBuilder) -> None:
    """Halves, or every second element, change places and one its sign."""
    batch, tokens, heads, width = _heads(b)
    shape = (batch, heads, tokens, width) if b.chance(0.7) else (batch, tokens, heads, width)
    x = _fresh(b, shape)
    half = width // 2
    if b.chance(0.6):
        first, second = (
            split(b, x, [half, half], 3)
            if b.chance(0.4)
            else (window_slice(b, x, 3, 0, half), window_slice(b, x, 3, half, width))
        )
        turned = b.op("Concat", b.op("Neg", second), first, axis=3)
    else:
        even, odd = window_slice(b, x, 3, 0, width, 2), window_slice(b, x, 3, 1, width, 2)
        parts = [reshape(b, part, (*shape[:3], half, 1)) for part in (b.op("Neg", odd), even)]
        turned = reshape(b, b.op("Concat", *parts, axis=4), shape)
    table = (1, 1, tokens, width) if shape[2] == tokens else (1, tokens, 1, width)
    b.op("Add", b.op("Mul", x, b.weight(table, 0.5)), b.op("Mul", turned, b.weight(table, 0.5)))


def _expanded(b: GraphBuilder) -> None:
    """One row for a whole batch, one mask for all heads and queries, key heads for several query heads."""
    batch, tokens, heads, width = _heads(b)
    kind = b.choose(["queries", "mask", "heads"], [1, 2, 1])
    if kind == "queries":
        rows = _fresh(b, (1, int(b.choose([1, 100, tokens])), heads * width))
        b.op("Sigmoid", b.op("Expand", rows, b.constant([int(b.choose([2, 4])), *rows.shape[1:]])))
    elif kind == "mask":
        tokens = min(tokens, 577)
        while batch * heads * tokens * tokens > MAX_ELEMENTS:
            heads, batch = max(1, heads // 2), max(1, batch // 2)
            tokens = tokens if heads * batch > 1 else tokens // 2
        wide = (batch, b.choose([1, heads]), tokens, tokens)
        mask = b.op("Expand", b.input((batch, 1, 1, tokens), "bool"), b.constant(list(wide)))
        b.op("Where", mask, _fresh(b, (batch, heads, tokens, tokens)), b.constant(-1e4, "float32"))
    else:
        times = int(b.choose([2, 4]))
        while prod((batch, heads, times, tokens, width)) > MAX_ELEMENTS:
            tokens = max(4, tokens // 2)
        y = b.op(
            "Expand", _fresh(b, (batch, heads, 1, tokens, width)), b.constant([batch, heads, times, tokens, width])
        )
        b.op("Mul", reshape(b, y, (batch, heads * times, tokens, width)), 0.5)


PATTERNS: tuple[tuple[Callable[[GraphBuilder], None], float], ...] = (
    (_packed, 3),
    (_permuted, 3),
    (_windows, 2.5),
    (_class_token, 1.5),
    (_rotary, 1.2),
    (_expanded, 1),
)


def token_moves(b: GraphBuilder, limit_s: float) -> None:
    """Movement of every pattern, one after another."""
    start_s = b.estimated_s
    for _ in range(10):
        if b.estimated_s - start_s > limit_s:
            return
        b.scope = "token_moves"
        b.choose([pattern for pattern, _ in PATTERNS], [weight for _, weight in PATTERNS])(b)
