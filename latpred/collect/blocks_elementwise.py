"""Single ops one after another: unary, binary with every broadcast, comparisons, conversions.

These are the ops between the large kernels. Shapes are those of tokens, images, attention scores and small vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import ACTIVATIONS, activation

__all__ = ["STEPS", "broadcasts", "conversions", "draw_shape", "elementwise"]

STEPS = 10
MAX_ELEMENTS = 1 << 21


def draw_shape(b: GraphBuilder, rank: int = 0) -> tuple[int, ...]:
    """A plausible activation shape of rank 2-6 (0: any): tokens, images, heads, windows, vectors."""
    rank = rank or int(b.choose([2, 3, 4, 5, 6], [1, 4, 6, 1, 0.4]))
    batch = int(b.choose([1, 2, 4, 8], [9, 1, 1, 0.5]))
    channels = b.between(8, 1024, 8) if b.chance(0.9) else b.between(3, 700)
    side = int(b.choose([1, 4, 7, 8, 10, 14, 16, 20, 28, 32, 40, 56, 64, 80, 112]))
    tokens = int(b.choose([16, 32, 49, 64, 100, 128, 144, 196, 197, 256, 384, 512, 785]))
    head = int(b.choose([16, 24, 32, 48, 64, 80, 96, 128]))
    heads = int(b.choose([1, 2, 3, 4, 6, 8, 12, 16]))
    shape: tuple[int, ...]
    if rank == 2:
        shape = (batch * int(b.choose([1, 1, 1, 16, 197])), channels)
    elif rank == 3:
        shape = b.choose([(batch, tokens, channels), (batch, channels, tokens), (batch, tokens, tokens)])
    elif rank == 4:
        shape = b.choose(
            [
                (batch, channels, side, side),
                (batch, side, side, channels),
                (batch, heads, tokens, head),
                (batch, heads, tokens, tokens),
                (batch, tokens, heads, head),
                (batch * 16, heads, 49, 49),
            ],
            [5, 2.5, 2, 1.5, 1, 0.7],
        )
    elif rank == 5:
        shape = b.choose(
            [
                (batch, tokens, 3, heads, head),
                (3, batch, heads, tokens, head),
                (batch, heads, 4, side, side),
                (batch, 2, max(1, channels // 2), side, side),
            ]
        )
    else:
        shape = (batch, 4, 7, 4, 7, channels)
    sizes = list(shape)
    while prod(sizes) > MAX_ELEMENTS:
        largest = int(np.argmax(sizes))
        sizes[largest] = max(1, sizes[largest] // 2)
    return tuple(sizes)


def _positive(b: GraphBuilder, x: Value) -> Value:
    return b.op("Add", b.op("Abs", x), 0.5)


# Each maps values of a moderate size to values of a moderate size, so that any order of them stays finite.
UNARY: dict[str, tuple[Callable[[GraphBuilder, Value], Value], float]] = {
    "Sigmoid": (lambda b, x: b.op("Sigmoid", x), 3),
    "Tanh": (lambda b, x: b.op("Tanh", x), 3),
    "Erf": (lambda b, x: b.op("Erf", x), 3),
    "Relu": (lambda b, x: b.op("Relu", x), 2),
    "Clip": (lambda b, x: b.op("Clip", x, -2.0, 2.0), 2),
    "Neg": (lambda b, x: b.op("Neg", x), 1),
    "Abs": (lambda b, x: b.op("Abs", x), 1),
    "Sqrt": (lambda b, x: b.op("Sqrt", _positive(b, x)), 2),
    "Exp": (lambda b, x: b.op("Exp", b.op("Clip", x, -3.0, 2.0)), 2),
    "Log": (lambda b, x: b.op("Log", _positive(b, x)), 1),
    "Reciprocal": (lambda b, x: b.op("Reciprocal", _positive(b, x)), 1),
    "Square": (lambda b, x: b.op("Pow", b.op("Tanh", x), 2.0), 2),
    "Cube": (lambda b, x: b.op("Pow", b.op("Sin", x), 3.0), 1),
    "Root": (lambda b, x: b.op("Pow", _positive(b, x), 0.5), 0.7),
    "Power": (lambda b, x: b.op("Pow", _positive(b, x), 0.73), 0.5),
    "Sin": (lambda b, x: b.op("Sin", x), 0.7),
    "Cos": (lambda b, x: b.op("Cos", x), 0.7),
    "Atan": (lambda b, x: b.op("Atan", x), 0.2),
    "Floor": (lambda b, x: b.op("Floor", x), 0.5),
    "Ceil": (lambda b, x: b.op("Ceil", x), 0.2),
    "Round": (lambda b, x: b.op("Round", x), 0.3),
    "Sign": (lambda b, x: b.op("Sign", x), 0.3),
    "Softplus": (lambda b, x: b.op("Softplus", x), 0.7),
    "Softsign": (lambda b, x: b.op("Softsign", x), 0.3),
    "ThresholdedRelu": (lambda b, x: b.op("ThresholdedRelu", x, alpha=0.5), 0.1),
    "HardSigmoid": (lambda b, x: b.op("HardSigmoid", x), 0.7),
    "Identity": (lambda b, x: b.op("Mul", x, x), 1),
}


def elementwise(b: GraphBuilder, limit_s: float) -> None:
    """Activations and unary functions over one tensor, chained."""
    start_s = b.estimated_s
    while b.estimated_s - start_s < limit_s:
        b.scope = "elementwise"
        x = b.op("Neg", b.input(draw_shape(b)))
        for _ in range(STEPS):
            if b.chance(0.45) and len(x.shape) >= 3:
                x = activation(b, x, b.choose([name for name in ACTIVATIONS if name not in ("none", "prelu")]))
                x = b.op("Clip", x, -4.0, 4.0) if b.chance(0.3) else x
            else:
                names = list(UNARY)
                x = UNARY[b.choose(names, [UNARY[n][1] for n in names])][0](b, x)
        if b.chance(0.5):
            return


def _other(b: GraphBuilder, x: Value) -> Value:
    """A second operand that broadcasts against `x` in one of the ways that networks use; bounded away from zero."""
    rank = len(x.shape)
    patterns: dict[str, tuple[int, ...]] = {
        "last": x.shape[-1:],
        "channel": (x.shape[1], *[1] * (rank - 2)) if rank > 2 else x.shape[-1:],
        "row": (*x.shape[:-1], 1),
        "spatial": (1, 1, *x.shape[2:]) if rank > 3 else (1, *x.shape[1:]),
        "batch": (x.shape[0], *[1] * (rank - 1)),
        "per_map": (*x.shape[:2], *[1] * (rank - 2)),
        "middle": tuple(1 if i == rank // 2 else n for i, n in enumerate(x.shape)),
        "same": x.shape,
    }
    kind = b.choose(["scalar", *patterns], [3, 4, 3, 2.5, 1.5, 0.5, 2, 1, 2])
    if kind == "scalar":
        return b.constant(1.25, "float32")
    shape = patterns[kind]
    if b.chance(0.45) and prod(shape) < MAX_ELEMENTS:
        return b.weight(shape, 0.1, 1.5)
    return b.op("Add", b.op("Sigmoid", b.input(shape)), 1.0)


def broadcasts(b: GraphBuilder, limit_s: float) -> None:
    """Binary ops and comparisons with every pattern of broadcasting."""
    start_s = b.estimated_s
    while b.estimated_s - start_s < limit_s:
        b.scope = "broadcasts"
        x = b.op("Sigmoid", b.input(draw_shape(b)))
        for _ in range(STEPS):
            kind = b.choose(["arithmetic", "compare", "where", "outer", "extreme", "logic"], [10, 1, 2, 1, 1.5, 0.4])
            if kind == "arithmetic":
                op_type = str(b.choose(["Add", "Mul", "Sub", "Div", "Pow"], [5, 5, 2.5, 2.5, 0.3]))
                other = _other(b, x)
                y = (
                    b.op(op_type, other, x)
                    if op_type in ("Add", "Mul", "Sub") and b.chance(0.2)
                    else (b.op(op_type, b.op("Abs", x) if op_type == "Pow" else x, other))
                )
                x = b.op("Clip", y, -8.0, 8.0) if op_type in ("Pow", "Mul") and b.chance(0.4) else y
            elif kind == "compare":
                mask = b.op(
                    str(b.choose(["Greater", "Less", "GreaterOrEqual"]) if b.style.opset >= 12 else "Less"),
                    x,
                    _other(b, x),
                )
                x = b.op("Mul", x, b.op("Cast", mask, to=1))
            elif kind == "where":
                shape = b.choose([x.shape, (*[1] * (len(x.shape) - 2), *x.shape[-2:]), (*x.shape[:-1], 1)])
                mask = b.initializer(b.rng.random(shape) < 0.7) if b.chance(0.5) else b.input(shape, "bool")
                x = b.op("Where", mask, x, 0.5 if b.chance(0.6) else _other(b, x))
            elif kind == "extreme":
                x = b.op(str(b.choose(["Max", "Min"])), x, _other(b, x))
            elif kind == "logic":
                masks = [b.op("Less", x, 0.3 * i) for i in (1, 2)]
                x = b.op("Where", b.op("Not", b.op(str(b.choose(["And", "Or", "Xor"])), *masks)), x, 0.5)
            else:
                size, other_size = b.between(8, 512), b.between(8, 512)
                b.op(
                    str(b.choose(["Sub", "Mul"])),
                    b.op("Neg", b.input((size, 1))),
                    b.op("Neg", b.input((1, other_size))),
                )
        if b.chance(0.5):
            return


CODES = {"float32": 1, "float16": 10, "float64": 11, "int64": 7, "int32": 6, "bool": 9, "uint8": 2, "int8": 3}


def conversions(b: GraphBuilder, limit_s: float) -> None:
    """Casts to and fro, integer arithmetic, predicates."""
    start_s = b.estimated_s
    while b.estimated_s - start_s < limit_s:
        b.scope = "conversions"
        shape = draw_shape(b)
        x = b.op("Sigmoid", b.input(shape))
        for _ in range(STEPS // 2):
            target = b.choose(list(CODES), [0, 3, 1, 4, 3, 3, 1, 1])
            y = b.op("Cast", x, to=CODES[target])
            if target in ("int64", "int32"):
                y = b.op(str(b.choose(["Add", "Mul", "Sub"])), y, int(b.choose([1, 3])))
                if b.chance(0.3):
                    y = b.op("Cast", b.op(str(b.choose(["Equal", "Greater"])), y, 1), to=CODES[target])
                if b.chance(0.3):
                    y = b.op("Mod", y, 7)
            elif target == "bool" and b.chance(0.5):
                y = b.op("Not", y)
            x = b.op("Sigmoid", b.op("Cast", y, to=1))
            if b.chance(0.25):
                x = b.op("Where", b.op("IsNaN", x), b.constant(0.0, "float32"), x)
        if b.chance(0.5):
            return
