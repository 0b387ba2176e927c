"""Sequence models: recurrent layers, 1-D convolutions, temporal and speech blocks."""

from __future__ import annotations

from math import sqrt

from latpred.collect.blocks_attention import draw_attention, encoder_layer
from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import (
    activation,
    batch_norm,
    convolution,
    layer_norm,
    linear,
    pool,
    reduce,
    reshape,
    split,
    squeeze,
    transpose,
    window_slice,
)

__all__ = ["grouped_rows", "recurrent_network", "speech_network", "temporal_network"]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
OUTPUTS = {"LSTM": 3, "GRU": 2, "RNN": 2}


def recurrent_layer(b: GraphBuilder, x: Value, kind: str, hidden: int, directions: int) -> Value:
    """One recurrent layer over [steps, batch, width] -> [steps, batch, directions * hidden]."""
    steps, batch, width = x.shape
    gates = GATES[kind]
    scale = 1 / sqrt(hidden)
    operands: list[Value | None] = [
        b.weight((directions, gates * hidden, width), scale),
        b.weight((directions, gates * hidden, hidden), scale),
        b.weight((directions, 2 * gates * hidden), 0.1),
        None,
        b.weight((directions, batch, hidden), 0.1),
    ]
    if kind == "LSTM":
        operands.append(b.weight((directions, batch, hidden), 0.1))
    attributes: dict[str, object] = {"hidden_size": hidden}
    if directions == 2:
        attributes["direction"] = "bidirectional"
    if kind == "GRU":
        attributes["linear_before_reset"] = int(b.chance(0.9))
    outputs = b.multi(kind, x, *operands, outputs=OUTPUTS[kind], **attributes)
    y = transpose(b, outputs[0], (0, 2, 1, 3))
    return reshape(b, y, (steps, batch, directions * hidden)) if directions == 2 else squeeze(b, outputs[0], [1])


def recurrent_network(b: GraphBuilder, limit_s: float) -> None:
    """One to four small recurrent networks, of different kinds."""
    start_s = b.estimated_s
    for _ in range(int(b.choose([1, 2, 4]))):
        if b.estimated_s - start_s > limit_s:
            return
        _recurrent(b, limit_s / 2)


def _recurrent(b: GraphBuilder, limit_s: float) -> None:
    """Embeddings or features -> one to three recurrent layers -> classifier."""
    kind = b.choose(["LSTM", "GRU", "RNN"], [5, 3, 1])
    batch = int(b.choose([1, 2, 4, 8, 16], [8, 1, 1, 1, 0.5]))
    steps = b.between(8, 256)
    width = b.choose([16, 40, 64, 80, 128, 256, 300, 512])
    hidden = b.choose(
        [32, 64, 100, 128, 200, 256, 320, 384, 512, 768, 1024], [1, 2, 0.7, 3, 1, 4, 0.7, 0.7, 3, 0.5, 0.7]
    )
    directions = int(b.choose([1, 2]))
    start_s = b.estimated_s
    b.scope = "encoder"
    batch_first = b.chance(0.6)
    if b.chance(0.4):
        vocabulary = b.between(500, 12000)
        ids = b.input((batch, steps) if batch_first else (steps, batch), "int64", vocabulary)
        x = b.op("Gather", b.weight((vocabulary, width), 0.5), ids)
    else:
        x = b.input((batch, steps, width) if batch_first else (steps, batch, width))
    if batch_first:
        x = transpose(b, x, (1, 0, 2))
    while steps * hidden * (hidden + width) * GATES[kind] * directions > 2e10 * limit_s * 8:
        hidden = max(16, hidden // 2)
        if hidden == 16:
            break
    for index in range(int(b.choose([1, 2, 3]))):
        if index and b.estimated_s - start_s > limit_s:
            break
        b.scope = f"rnn.{index}"
        if index and b.chance(0.3):
            hidden = max(16, hidden // 2)
        x = recurrent_layer(b, x, kind, hidden, directions)
    b.scope = "head"
    if b.chance(0.5):
        x = transpose(b, x, (1, 0, 2))
        linear(b, activation(b, linear(b, x, int(b.choose([64, 128, 256]))), "relu"), int(b.choose([10, 29, 100])))
    elif b.chance(0.5):
        linear(b, b.op("Gather", x, b.constant(-1), axis=0), 10)
    else:
        linear(b, reduce(b, "ReduceMean" if b.chance(0.6) else "ReduceMax", x, [0], keepdims=False), 10)


def temporal_network(b: GraphBuilder, limit_s: float) -> None:
    """1-D convolutions: residual stacks with growing dilation, gated WaveNet layers, separable ones, plain encoders."""
    batch = int(b.choose([1, 2, 4, 8], [8, 1, 1, 0.5]))
    length = b.choose([64, 100, 128, 200, 256, 400, 512, 800, 1000, 1024, 2000, 4000])
    channels = b.choose([16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512])
    while length * channels * channels > 60_000_000:
        length //= 2
    act = b.choose(["relu", "leaky_relu", "elu", "silu", "gelu", "prelu"], [5, 1.5, 0.7, 1, 1, 0.5])
    kind = b.choose(["residual", "gated", "separable", "strided"])
    start_s = b.estimated_s
    b.scope = "stem"
    x = b.input((batch, int(b.choose([1, 2, 12, 40, 80])), length))
    x = convolution(b, x, channels, int(b.choose([3, 5, 7, 10, 15])), int(b.choose([1, 1, 2])), act=act)
    for index in range(int(b.choose([2, 3, 4, 6]))):
        if index and b.estimated_s - start_s > limit_s:
            break
        b.scope = f"blocks.{index}"
        kernel = int(b.choose([3, 3, 5, 7, 9]))
        dilation = 2**index if kind != "strided" else 1
        if dilation * (kernel - 1) >= x.shape[2]:
            break
        if kind == "residual":
            y = convolution(b, x, channels, kernel, dilation=dilation, act=act)
            x = b.op("Add", x, convolution(b, y, channels, kernel, dilation=dilation))
        elif kind == "gated":
            margin = dilation * (kernel - 1)
            y = b.op("Pad", x, b.constant([0, 0, margin, 0, 0, 0]), b.constant(0.0, "float32"))
            y = convolution(b, y, 2 * channels, kernel, dilation=dilation, norm=False, bias=True, padding=0)
            left, right = split(b, y, [channels] * 2, 1)
            y = b.op("Mul", b.op("Tanh", left), b.op("Sigmoid", right))
            x = b.op("Add", x, convolution(b, y, channels, 1, norm=False, bias=True))
        elif kind == "separable":
            y = convolution(b, x, channels, kernel, groups=channels)
            x = b.op("Add", x, convolution(b, y, channels, 1, act=act))
        else:
            channels = min(512, channels * 2 if b.chance(0.6) else channels)
            x = convolution(b, x, channels, kernel, 2 if x.shape[2] > 32 else 1, act=act)
            if b.chance(0.4) and x.shape[2] > 16:
                x = pool(b, x, str(b.choose(["MaxPool", "AveragePool"])), int(b.choose([2, 3])), 2)
    b.scope = "head"
    if b.chance(0.4):
        b.op(
            "ConvTranspose",
            x,
            b.weight((x.shape[1], max(8, x.shape[1] // 2), 4)),
            kernel_shape=[4],
            strides=[2],
            pads=[1, 1],
        )
    linear(b, reduce(b, "ReduceMean", x, [2], keepdims=False), 10)


def grouped_rows(b: GraphBuilder, limit_s: float) -> None:
    """Grouped 1-D convolutions: linear layers in groups (kernel 1), local mixing (grouped or depthwise), with gates."""
    start_s = b.estimated_s
    tokens = b.choose([16, 32, 49, 64, 77, 100, 128, 196, 197, 256, 384, 512, b.between(16, 512)])
    groups = int(b.choose([2, 4, 8, 3, 6, 12], [3, 4, 2, 0.5, 0.5, 0.5]))
    channels = max(1, b.between(128, 1024, 8) // groups) * groups
    x = b.op("Neg", b.input((int(b.choose([1, 1, 1, 2, 4])), channels, tokens)))
    for index in range(8):
        if index and b.estimated_s - start_s > limit_s:
            return
        b.scope = f"rows.{index}"
        act = b.choose(["none", "relu", "gelu", "silu"], [3, 2, 2, 1])
        kind = b.choose(["linear", "grouped", "depthwise", "dense"], [4, 2, 2, 0.7])
        if kind == "linear":
            out = channels * int(b.choose([1, 2, 4], [5, 2, 2]))
            y = convolution(b, x, out, 1, groups=groups, norm=False, bias=b.chance(0.8), act=act)
            back = y.shape[1] == channels or b.chance(0.3)
            y = y if back else convolution(b, y, channels, 1, groups=groups, norm=False, bias=True)
        elif kind == "dense":
            y = convolution(b, x, channels, int(b.choose([1, 3])), norm=False, bias=True, act=act)
        else:
            taps = int(b.choose([3, 5, 7, 9, 15, 31, 127], [4, 2, 2, 1, 1, 1, 0.3]))
            taps = taps if taps < tokens else 3
            count = channels if kind == "depthwise" else groups * (2 if channels // groups % 2 == 0 else 1)
            y = convolution(b, x, channels, taps, groups=count, norm=b.chance(0.3), bias=b.chance(0.7), act=act)
        x = b.op("Add", x, y) if y.shape == x.shape and b.chance(0.5) else y
        if x.shape[1] != channels:
            x = convolution(b, x, channels, 1, groups=groups, norm=False, bias=True)


def speech_network(b: GraphBuilder, limit_s: float) -> None:
    """Spectrogram or waveform -> convolutional front end -> conformer or transformer layers."""
    a = draw_attention(b, text=False)
    while a.width > 768:
        a = draw_attention(b, text=False)
    steps = b.choose([48, 64, 100, 128, 200, 256, 320, 400])
    start_s = b.estimated_s
    b.scope = "subsampling"
    if b.chance(0.5):
        x = b.input((1, 1, 4 * steps, 80))
        x = convolution(b, x, 32, 3, 2, norm=False, bias=True, act="relu")
        x = convolution(b, x, 32, 3, 2, norm=False, bias=True, act="relu")
        _, channels, steps, bands = x.shape
        x = linear(b, reshape(b, transpose(b, x, (0, 2, 1, 3)), (1, steps, channels * bands)), a.width)
    else:
        x = b.input((1, 80, 2 * steps))
        x = convolution(b, x, a.width, 3, norm=False, bias=True, act="gelu")
        x = convolution(b, x, a.width, 3, 2, norm=False, bias=True, act="gelu")
        x = transpose(b, x, (0, 2, 1))
    conformer = b.chance(0.6)
    for index in range(int(b.choose([1, 2, 3]))):
        if index and b.estimated_s - start_s > limit_s:
            break
        b.scope = f"layers.{index}"
        if conformer:
            half = linear(b, activation(b, linear(b, layer_norm(b, x), 4 * a.width), "silu"), a.width)
            x = b.op("Add", x, b.op("Mul", half, 0.5))
        x = encoder_layer(b, x, a)
        if conformer:
            y = transpose(b, layer_norm(b, x), (0, 2, 1))
            y = convolution(b, y, 2 * a.width, 1, norm=False, bias=True)
            left, right = split(b, y, [a.width] * 2, 1)
            y = b.op("Mul", left, b.op("Sigmoid", right))
            y = convolution(b, y, a.width, int(b.choose([7, 15, 31])), groups=a.width, norm=False, bias=True)
            y = activation(b, batch_norm(b, y), "silu")
            x = b.op("Add", x, transpose(b, convolution(b, y, a.width, 1, norm=False, bias=True), (0, 2, 1)))
    b.scope = "head"
    scores = linear(
        b, window_slice(b, x, 1, 0, x.shape[1] // 2) if b.chance(0.3) else x, int(b.choose([32, 128, 1024]))
    )
    b.op("LogSoftmax", scores, axis=-1 if b.style.opset >= 13 else 2)
