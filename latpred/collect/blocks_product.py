"""Matrix products and convolutions of unusual shapes, one after another: what no network template reaches."""

from __future__ import annotations

from math import prod, sqrt

from latpred.collect.graph_builder import MAX_WEIGHT_BYTES, GraphBuilder, Value
from latpred.collect.layers import activation, convolution, linear, reshape, transpose

__all__ = ["convolutions", "dense_layers", "products"]

MAX_ELEMENTS = 1 << 21


def _fresh(b: GraphBuilder, shape: tuple[int, ...]) -> Value:
    return b.op("Neg", b.input(shape))


def products(b: GraphBuilder, limit_s: float) -> None:
    """MatMul and Gemm: batched, broadcast, transposed, scaled, thin and flat ones."""
    start_s = b.estimated_s
    for _ in range(12):
        if b.estimated_s - start_s > limit_s:
            return
        b.scope = "products"
        m = b.choose([1, 2, 4, b.between(8, 1024), b.between(8, 1024, 8)], [2, 0.5, 0.5, 3, 3])
        k, n = b.between(4, 2048, 4), b.between(4, 2048, 4)
        if b.chance(0.15):
            k, n = b.between(1, 300), b.between(1, 300)
        while m * k * n > 600_000_000:
            k, n, m = k // 2, n // 2, max(1, m // 2)
        batch = b.choose([1, 2, 4, 8, 12, 16, 36, 64, 144], [3, 1, 1, 2, 2, 1, 1, 1, 0.5])
        kind = b.choose(
            ["weights", "batched", "heads", "shared", "stack", "scaled", "gemm", "vector", "transposed"],
            [2, 3, 4, 1.5, 1, 1.5, 3, 0.7, 2],
        )
        if kind == "weights":
            b.op("MatMul", _fresh(b, (int(b.choose([1, 2, 4])), m, k)), b.weight((k, n)))
            continue
        if kind == "gemm":
            _gemm(b, m, k, n)
            continue
        if kind == "vector":
            b.op("MatMul", _fresh(b, (m, k)), b.op("Neg", b.input((k,))))
            continue
        while batch * m * k * n > 600_000_000 or batch * max(m * k, k * n, m * n) > MAX_ELEMENTS:
            m, k, n = max(1, m // 2), max(4, k // 2), max(4, n // 2)
            if batch > 1 and m == 1:
                batch //= 2
        if kind == "heads":
            tokens = b.choose([16, 32, 49, 64, 100, 128, 196, 197, 256])
            head = b.choose([8, 16, 24, 32, 48, 64, 80, 96, 128])
            shape = (1, min(batch, 16), tokens, head)
            scores = b.op("MatMul", _fresh(b, shape), transpose(b, _fresh(b, shape), (0, 1, 3, 2)))
            scores = b.op("Softmax", scores, axis=-1 if b.style.opset >= 13 else 3)
            b.op("MatMul", scores, _fresh(b, shape))
        elif kind == "shared":
            b.op("MatMul", _fresh(b, (batch, m, k)), b.op("Neg", b.input((k, n))))
        elif kind == "stack":
            b.op("MatMul", _fresh(b, (batch, m, k)), b.weight((batch, k, n), 1 / sqrt(k)))
        elif kind == "scaled":
            y = b.op("MatMul", b.op("Mul", _fresh(b, (batch, m, k)), 1 / sqrt(k)), _fresh(b, (batch, k, n)))
            b.op("Mul", y, 0.5)
        elif kind == "transposed":
            y = b.op("MatMul", transpose(b, _fresh(b, (batch, k, m)), (0, 2, 1)), _fresh(b, (batch, k, n)))
            if b.chance(0.4):
                b.op("MatMul", y, transpose(b, _fresh(b, (batch, int(b.choose([8, 32, 64])), n)), (0, 2, 1)))
        else:
            b.op("MatMul", _fresh(b, (batch, m, k)), _fresh(b, (batch, k, n)))


def _gemm(b: GraphBuilder, m: int, k: int, n: int) -> None:
    turned, packed = b.chance(0.2), b.chance(0.6)
    x = _fresh(b, (k, m) if turned else (m, k))
    weights = (
        b.weight((n, k) if packed else (k, n), 1 / sqrt(k))
        if b.chance(0.85)
        else _fresh(b, (n, k) if packed else (k, n))
    )
    operands = [x, weights]
    if b.chance(0.85):
        operands.append(b.weight(b.choose([(n,), (1, n), (m, n)], [6, 0.5, 0.5]), 0.1))
    scales = {} if b.chance(0.8) else {"alpha": 0.5, "beta": 0.5}
    y = b.op("Gemm", *operands, transA=int(turned), transB=int(packed), **scales)
    if b.chance(0.3):
        activation(b, y, str(b.choose(["relu", "tanh", "sigmoid", "leaky_relu"])))


def dense_layers(b: GraphBuilder, limit_s: float) -> None:
    """Stacks of large linear layers on one or few rows: weights stream from memory, or stay in a large cache.

    All weights together have a drawn size that lies on either side of what a last-level cache holds.
    """
    rows = b.choose([1, 2, 4, 8, 16, 64], [9, 2, 2, 1, 0.7, 0.5])
    most_s = max(limit_s, 0.012) if rows <= 4 else limit_s  # such kernels are limited by memory: they take few ms
    wanted_bytes = min(float(b.between(2_000_000, 150_000_000)), MAX_WEIGHT_BYTES - b.weight_bytes)
    layers = int(b.choose([1, 2, 3, 4, 6], [1, 2, 3, 3, 2]))
    start_s, start_bytes = b.estimated_s, b.weight_bytes
    typical = sqrt(max(wanted_bytes, 400_000) / layers / 4)
    width = b.between(typical * 0.5, typical * 2, 32) if b.chance(0.85) else b.between(typical * 0.3, typical * 3)
    x = b.input((rows, width))
    act = b.choose(["relu", "gelu", "tanh", "silu", "sigmoid"])
    for index in range(layers):
        left = wanted_bytes - (b.weight_bytes - start_bytes)
        if left < 100_000 or (index and b.estimated_s - start_s > most_s):
            break
        b.scope = f"fc.{index}"
        share = left / (layers - index) * (1 if index == layers - 1 else float(b.choose([0.4, 0.7, 1, 1.4])))
        out = max(8, int(share / 4 / x.shape[1]))
        x = activation(b, linear(b, x, out // 8 * 8 if b.chance(0.9) else out), act)
    if b.chance(0.3):
        linear(b, x, int(b.choose([10, 100, 1000])))


def convolutions(b: GraphBuilder, limit_s: float) -> None:
    """Convolutions with odd channels, kernels, strides, groups, dilations, paddings, ranks; transposed ones."""
    start_s = b.estimated_s
    for _ in range(10):
        if b.estimated_s - start_s > limit_s:
            return
        b.scope = "convolutions"
        rank = int(b.choose([1, 2, 3], [2, 8, 0.7]))
        channels = b.choose([b.between(1, 8), b.between(8, 512, 8), b.between(9, 400)], [1.5, 4, 3])
        out = b.choose([b.between(1, 16), b.between(8, 512, 8), b.between(9, 400)], [1, 4, 3])
        side = b.choose([7, 8, 14, 16, 20, 28, 32, 56, 64, 112])
        sides: tuple[int, ...] = {1: (side * 8,), 2: (side, side), 3: (8, min(side, 28), min(side, 28))}[rank]
        kernel = int(b.choose([1, 2, 3, 4, 5, 7, 9, 11], [4, 0.7, 6, 0.7, 2, 1.5, 0.5, 0.3]))
        stride = int(b.choose([1, 2, 3, 4], [6, 3, 0.2, 0.5]))
        dilation = int(b.choose([1, 2, 3], [8, 1, 0.3]))
        groups = 1
        most_macs = b.between(100_000_000, 2_500_000_000)
        kind = b.choose(["dense", "depthwise", "grouped", "multiplier", "transposed", "flat"], [5, 3, 3, 0.7, 2, 1])
        if kind == "depthwise":
            out, groups = channels, channels
        elif kind == "multiplier":
            out, groups = 2 * channels, channels
        elif kind == "grouped":
            groups = int(b.choose([2, 4, 8, 16, 32]))
            width, deep = max(1, channels // groups), max(1, out // groups)
            channels, out = groups * width, groups * deep
        if rank == 3 and (kernel > 3 or dilation > 1):
            kernel, dilation = 3, 1
        while (
            prod(sides) * (channels // groups) * out * kernel**rank > most_macs
            or prod(sides) * max(channels, out) > MAX_ELEMENTS
        ):
            sides = tuple(max(4, n // 2) for n in sides)
            if max(sides) <= 8:
                out = out // 2 if kind == "dense" else out
                break
        if dilation * (kernel - 1) >= min(sides):
            kernel, dilation = 1, 1
        x = _fresh(b, (int(b.choose([1, 2, 4], [8, 1, 0.5])), channels, *sides))
        if kind == "transposed":
            size = int(b.choose([2, 3, 4]))
            b.op(
                "ConvTranspose",
                x,
                b.weight((channels, max(1, out), *[size] * rank), 1 / sqrt(channels * size)),
                kernel_shape=[size] * rank,
                strides=[int(b.choose([1, 2, 2]))] * rank,
                pads=[(size - 1) // 2] * (2 * rank),
            )
            continue
        sizes: int | tuple[int, ...] = (1, kernel) if kind == "flat" and rank == 2 else kernel
        y = convolution(
            b,
            x,
            max(1, out),
            sizes,
            stride,
            groups,
            dilation,
            norm=False,
            bias=b.chance(0.8),
            act=b.choose(
                ["none", "relu", "silu", "sigmoid", "tanh", "leaky_relu", "hard_swish"], [6, 3, 1, 0.5, 0.3, 0.5, 0.5]
            ),
            same_upper=b.chance(0.08) and dilation == 1,
        )
        if b.chance(0.3):
            y = b.op("Add", y, b.input(y.shape))
        if b.chance(0.2):
            reshape(b, y, (y.shape[0], -1))
