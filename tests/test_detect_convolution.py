"""Convolutions that keep the plain layout, and what is folded into them, against onnxruntime itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from runtime_oracle import detected, executed, graph, reasons

GROUPED = "float[32,8,3,3] w, float[32] b"  # 8 channels a group: never blocked


def grouped(body: str, inputs: str = "", constants: str = "") -> str:
    """A graph that starts with a convolution that the blocked layout does not take."""
    return f"""g (float[1,32,8,8] x{inputs}) => (float[N,M,H,W] y) <{GROUPED}{constants}> {{ {body} }}"""


CONV = "c = Conv<group=4>(x, w, b)"
SCALES = ", float[32] s, float[32] t, float[32] m, float[32] v"

GRAPHS = {
    "batch norm": grouped(f"{CONV} y = BatchNormalization(c, s, t, m, v)", constants=SCALES),
    "batch norm without bias": grouped(
        "c = Conv<group=4>(x, w) d = BatchNormalization(c, s, t, m, v) y = Relu(d)", constants=SCALES
    ),
    "batch norm of a value read twice": grouped(
        f"{CONV} d = BatchNormalization(c, s, t, m, v) y = Add(c, d)", constants=SCALES
    ),
    "factor a channel": grouped(f"{CONV} d = Mul(c, f) y = Relu(d)", constants=", float[1,32,1,1] f"),
    "factor a channel without batch": grouped(f"{CONV} y = Mul(c, f)", constants=", float[32,1,1] f"),
    "factor from the left": grouped(f"{CONV} y = Mul(f, c)", constants=", float[32,1,1] f"),
    "scalar factor": grouped(f"{CONV} y = Mul(c, f)", constants=", float f = {3}"),
    "factor of one element": grouped(f"{CONV} y = Mul(c, f)", constants=", float[1] f = {3}"),
    "factor a pixel": grouped(f"{CONV} y = Mul(c, f)", constants=", float[1,1,6,6] f"),
    "term a channel": grouped(f"{CONV} y = Add(c, f)", constants=", float[1,32,1,1] f"),
    "scalar term": grouped(f"{CONV} y = Add(c, f)", constants=", float f = {3}"),
    "chain of them": grouped(
        f"{CONV} d = BatchNormalization(c, s, t, m, v) e = Mul(d, f) h = Add(e, f) y = Relu(h)",
        constants=SCALES + ", float[32,1,1] f",
    ),
    "relu": grouped(f"{CONV} y = Relu(c)"),
    "sigmoid": grouped(f"{CONV} y = Sigmoid(c)"),
    "tanh": grouped(f"{CONV} y = Tanh(c)"),
    "leaky relu": grouped(f"{CONV} y = LeakyRelu<alpha=0.1>(c)"),
    "hard sigmoid": grouped(f"{CONV} y = HardSigmoid(c)"),
    "clip": grouped(f"{CONV} y = Clip(c, l, h)", constants=", float l = {0}, float h = {6}"),
    "clip by a computed bound": grouped(f"{CONV} y = Clip(c, l)", inputs=", float l"),
    "elu is not fused": grouped(f"{CONV} y = Elu(c)"),
    "silu is not fused": grouped(f"{CONV} d = Sigmoid(c) e = Mul(c, d) y = Neg(e)"),
    "relu of a value read twice": grouped(f"{CONV} d = Relu(c) y = Add(c, d)"),
    "residual": grouped(f"{CONV} y = Add(c, r)", inputs=", float[1,32,6,6] r"),
    "residual and relu": grouped(f"{CONV} d = Add(r, c) y = Relu(d)", inputs=", float[1,32,6,6] r"),
    "residual without bias": grouped("c = Conv<group=4>(x, w) y = Add(c, r)", inputs=", float[1,32,6,6] r"),
    "residual that is broadcast": grouped(f"{CONV} y = Add(c, r)", inputs=", float[1,32,1,1] r"),
    "residual behind an activation": grouped(f"{CONV} d = Relu(c) y = Add(d, r)", inputs=", float[1,32,6,6] r"),
    "pad": grouped("p = Pad(x, n) y = Conv<group=4>(p, w, b)", constants=", int64[8] n = {0,0,1,1,0,0,1,1}"),
    "pad to a conv that pads": grouped(
        "p = Pad(x, n) y = Conv<group=4, pads=[1,1,1,1]>(p, w, b)", constants=", int64[8] n = {0,0,1,2,0,0,1,0}"
    ),
    "pad with a value": grouped(
        "p = Pad(x, n, f) y = Conv<group=4>(p, w, b)", constants=", int64[8] n = {0,0,1,1,0,0,1,1}, float f = {2}"
    ),
    "pad by reflection": grouped(
        'p = Pad<mode="reflect">(x, n) y = Conv<group=4>(p, w, b)', constants=", int64[8] n = {0,0,1,1,0,0,1,1}"
    ),
    "pad of the batch": """g (float[1,32,8,8] x) => (float[N,M,H,W] y)
        <float[32,8,3,3] w, int64[8] n = {1,0,1,1,0,0,1,1}> { p = Pad(x, n) y = Conv<group=4>(p, w) }""",
    "pad that two read": grouped(
        "p = Pad(x, n) c = Conv<group=4>(p, w, b) d = Conv<group=4>(p, w2, b) y = Sub(c, d)",
        constants=", float[32,8,3,3] w2, int64[8] n = {0,0,1,1,0,0,1,1}",
    ),
    "pad and pooling": """g (float[1,12,8,8] x) => (float[N,M,H,W] y) <int64[8] n = {0,0,1,1,0,0,1,1}> {
        p = Pad(x, n) y = MaxPool<kernel_shape=[3,3]>(p) }""",
    "one-dimensional": """g (float[1,16,32] x) => (float[N,M,L] y) <float[32,16,3] w> {
        c = Conv<pads=[1,1]>(x, w) y = Relu(c) }""",
    "three-dimensional": """g (float[1,16,4,8,8] x) => (float[N,M,D,H,W] y)
        <float[32,16,3,3,3] w, float[32] s, float[32] t, float[32] m, float[32] v> {
        c = Conv(x, w) d = BatchNormalization(c, s, t, m, v) y = Relu(d) }""",
    "transposed": """g (float[1,16,8,8] x) => (float[N,M,H,W] y) <float[16,8,2,2] w> {
        c = ConvTranspose<strides=[2,2]>(x, w) y = Relu(c) }""",
    "weights that are computed at run time": """g (float[1,16,8,8] x, float[32,16,3,3] w) => (float[N,M,H,W] y) {
        c = Conv(x, w) y = Relu(c) }""",
}


@pytest.mark.parametrize("name", GRAPHS)
def test_as_executed(name: str, tmp_path: Path) -> None:
    model = graph(GRAPHS[name])
    assert detected(model) == executed(model, tmp_path)


@pytest.mark.parametrize(
    ("name", "rule", "reason"),
    [
        ("factor a pixel", "conv-mul", "the factor (1, 1, 6, 6) is not one a channel"),
        ("pad by reflection", "pad-conv", "the padding mode is reflect"),
        ("residual without bias", "conv-add-activation", "has no bias"),
        ("one-dimensional", "conv-nchwc", "its weights are 3-D float32, not 4-D float32"),
        (
            "relu",
            "conv-nchwc",
            "8 input and 8 output channels a group: not both multiples of the block 16",
        ),
    ],
)
def test_says_why_not(name: str, rule: str, reason: str) -> None:
    found = reasons(graph(GRAPHS[name]), rule)
    assert any(said.endswith(reason) for said in found), found
