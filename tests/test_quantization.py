"""Quantized graphs: what becomes an integer kernel and what does not, as the runtime has it."""

import pytest
from runtime_oracle import detected, executed, graph, reasons

from latpred.graph import read
from latpred.kernels.detect import detect
from latpred.kernels.fusion import default_rules

SCALES = "float s = {0.1}, uint8 z = {128}, float t = {0.2}, uint8 u = {100}, int8 i = {3}, int8 j = {-5}"
WEIGHTS = "int8[8,4,3,3] w, float[1] ws = {0.02}, int8[1] wz = {0}"
BIAS = "int32[8] b, float[1] bs = {0.002}, int32[1] bz = {0}"
CONV = f"{SCALES}, {WEIGHTS}, {BIAS}"
X = "xq = QuantizeLinear (x, s, z)  xd = DequantizeLinear (xq, s, z)"
W = "wd = DequantizeLinear (w, ws, wz)"
Y = "cq = QuantizeLinear (c, t, u)  y = DequantizeLinear (cq, t, u)"


def conv(constants: str, body: str, shape: str = "1,8,6,6", source: str = "1,4,8,8") -> str:
    return f"g (float[{source}] x) => (float[{shape}] y) <{constants}> {{ {body} }}"


def unary(op: str, shape: str, out: str | None = None, constants: str = "", params: str = "t, u") -> str:
    body = f"{X}  c = {op}  cq = QuantizeLinear (c, {params})  y = DequantizeLinear (cq, {params})"
    return f"g (float[{shape}] x) => (float[{out or shape}] y) <{SCALES}{constants}> {{ {body} }}"


GRAPHS = {
    "conv": conv(CONV, f"{X}  {W}  bd = DequantizeLinear (b, bs, bz)  c = Conv <kernel_shape=[3,3]> (xd, wd, bd)  {Y}"),
    "conv without bias": conv(f"{SCALES}, {WEIGHTS}", f"{X}  {W}  c = Conv <kernel_shape=[3,3]> (xd, wd)  {Y}"),
    "conv with float weights": conv(
        f"{SCALES}, float[8,4,3,3] w, float[8] b", f"{X}  c = Conv <kernel_shape=[3,3]> (xd, w, b)  {Y}"
    ),
    "conv with float bias": conv(
        f"{SCALES}, {WEIGHTS}, float[8] b", f"{X}  {W}  c = Conv <kernel_shape=[3,3]> (xd, wd, b)  {Y}"
    ),
    "conv on int8": conv(
        CONV,
        f"""xq = QuantizeLinear (x, s, i)  xd = DequantizeLinear (xq, s, i)  {W}  bd = DequantizeLinear (b, bs, bz)
        c = Conv <kernel_shape=[3,3]> (xd, wd, bd)  cq = QuantizeLinear (c, t, j)  y = DequantizeLinear (cq, t, j)""",
    ),
    "conv with a bias of another scale": conv(
        f"{SCALES}, {WEIGHTS}, int32[8] b, float[1] bs = {{0.7}}, int32[1] bz = {{0}}",
        f"{X}  {W}  bd = DequantizeLinear (b, bs, bz)  c = Conv <kernel_shape=[3,3]> (xd, wd, bd)  {Y}",
    ),
    "conv with a shifted bias": conv(
        f"{SCALES}, {WEIGHTS}, int32[8] b, float[1] bs = {{0.002}}, int32[1] bz = {{4}}",
        f"{X}  {W}  bd = DequantizeLinear (b, bs, bz)  c = Conv <kernel_shape=[3,3]> (xd, wd, bd)  {Y}",
    ),
    "conv without a quantized output": conv(CONV, f"{X}  {W}  c = Conv <kernel_shape=[3,3]> (xd, wd)  y = Exp (c)"),
    "conv, clip within the range": conv(
        f"{CONV}, float low = {{-30.0}}, float high = {{60.0}}",
        f"{X}  {W}  d = Conv <kernel_shape=[3,3]> (xd, wd)  c = Clip (d, low, high)  {Y}",
    ),
    "conv, clip that cuts": conv(
        f"{CONV}, float low = {{0.0}}, float high = {{6.0}}",
        f"{X}  {W}  d = Conv <kernel_shape=[3,3]> (xd, wd)  c = Clip (d, low, high)  {Y}",
    ),
    "conv, relu, conv": conv(
        f"{CONV}, uint8 zero = {{0}}, int8[8,8,1,1] v",
        f"""{X}  {W}  d = Conv <kernel_shape=[3,3]> (xd, wd)  e = Relu (d)
        eq = QuantizeLinear (e, t, zero)  ed = DequantizeLinear (eq, t, zero)
        vd = DequantizeLinear (v, ws, wz)  c = Conv <kernel_shape=[1,1]> (ed, vd)  {Y}""",
    ),
    "residual sum": conv(
        f"{SCALES}, int8[4,4,1,1] v, {WEIGHTS}",
        f"""{X}  vd = DequantizeLinear (v, ws, wz)  d = Conv <kernel_shape=[1,1]> (xd, vd)
        dq = QuantizeLinear (d, t, u)  dd = DequantizeLinear (dq, t, u)  c = Add (dd, xd)  {Y}""",
        shape="1,4,8,8",
    ),
    "concat of two scales": conv(
        f"{SCALES}, int8[4,4,1,1] v, {WEIGHTS}",
        f"""{X}  vd = DequantizeLinear (v, ws, wz)  d = Conv <kernel_shape=[1,1]> (xd, vd)
        dq = QuantizeLinear (d, t, u)  dd = DequantizeLinear (dq, t, u)  c = Concat <axis=1> (dd, xd)  {Y}""",
        shape="1,8,8,8",
    ),
    "conv, max pool": conv(
        CONV,
        f"""{X}  {W}  d = Conv <kernel_shape=[3,3]> (xd, wd)
        dq = QuantizeLinear (d, t, u)  dd = DequantizeLinear (dq, t, u)
        c = MaxPool <kernel_shape=[2,2], strides=[2,2]> (dd)  {Y}""",
        shape="1,8,3,3",
    ),
    "conv, average pool, flatten": conv(
        f"{CONV}, int64[2] flat = {{1, 8}}",
        f"""{X}  {W}  d = Conv <kernel_shape=[3,3]> (xd, wd)
        dq = QuantizeLinear (d, t, u)  dd = DequantizeLinear (dq, t, u)
        e = GlobalAveragePool (dd)  eq = QuantizeLinear (e, t, u)  ed = DequantizeLinear (eq, t, u)
        c = Flatten <axis=1> (ed)  {Y}""",
        shape="1,8",
    ),
    "average pool": unary("AveragePool <kernel_shape=[2,2], strides=[2,2]> (xd)", "1,4,8,8", "1,4,4,4"),
    "sigmoid": unary("Sigmoid (xd)", "2,8"),
    "leaky relu": unary("LeakyRelu <alpha=0.1> (xd)", "2,8"),
    "softmax": unary("Softmax <axis=-1> (xd)", "2,8"),
    "tanh has no integer kernel": unary("Tanh (xd)", "2,8"),
    "reshape": unary("Reshape (xd, shape)", "2,8", "4,4", ", int64[2] shape = {4, 4}", "s, z"),
    "reshape that requantizes": unary("Reshape (xd, shape)", "2,8", "4,4", ", int64[2] shape = {4, 4}"),
    "transpose": unary("Transpose <perm=[1,0]> (xd)", "2,8", "8,2", params="s, z"),
    "resize": unary(
        'Resize <mode="nearest"> (xd, , f)', "1,2,4,4", "1,2,8,8", ", float[4] f = {1.0,1.0,2.0,2.0}", "s, z"
    ),
    "split": f"""g (float[2,8] x) => (float[2,4] y) <{SCALES}, int64[2] halves = {{4, 4}}>
    {{ {X}  a, b = Split <axis=1> (xd, halves)
       aq = QuantizeLinear (a, s, z)  ad = DequantizeLinear (aq, s, z)
       bq = QuantizeLinear (b, s, z)  bd = DequantizeLinear (bq, s, z)  y = Sub (ad, bd) }}""",
    "product": f"""g (float[4,8] x) => (float[4,16] y) <{SCALES}, int8[8,16] w, float ws = {{0.02}}, int8 wz = {{0}}>
    {{ {X}  {W}  c = MatMul (xd, wd)  {Y} }}""",
    "product without a quantized output": f"""g (float[4,8] x) => (float[4,16] y)
    <{SCALES}, int8[8,16] w, float ws = {{0.02}}, int8 wz = {{0}}> {{ {X}  {W}  c = MatMul (xd, wd)  y = Exp (c) }}""",
    "product with bias": f"""g (float[4,8] x) => (float[4,16] y)
    <{SCALES}, int8[8,16] w, float ws = {{0.02}}, int8 wz = {{0}}, int32[16] b, float bs = {{0.002}}>
    {{ {X}  {W}  bd = DequantizeLinear (b, bs)  c = Gemm (xd, wd, bd)  {Y} }}""",
    "where": f"""g (float[2,8] x, bool[2,8] p) => (float[2,8] y) <{SCALES}, uint8[2,8] v>
    {{ {X}  vd = DequantizeLinear (v, t, u)  c = Where (p, xd, vd)  {Y} }}""",
    "input that two ops read": f"""g (float[2,8] x) => (float[2,8] y) <{SCALES}>
    {{ {X}  c = Sigmoid (xd)  cq = QuantizeLinear (c, t, u)  cd = DequantizeLinear (cq, t, u)
       d = Mul (xd, cd)  dq = QuantizeLinear (d, t, u)  y = DequantizeLinear (dq, t, u) }}""",
    "dynamic product": """g (float[1,4,8] x) => (float[1,4,16] y)
    <int8[8,16] w, float t = {0.02}, int8 u = {0}, float[16] b>
    { q, s, z = DynamicQuantizeLinear (x)
      m = MatMulInteger (q, w, z, u)  c = Cast <to=1> (m)  k = Mul (s, t)  p = Mul (c, k)  y = Add (b, p) }""",
    "two dynamic products of one tensor": """g (float[1,4,8] x) => (float[1,4,16] y)
    <int8[8,16] w, int8[8,16] v, float t = {0.02}, float f = {0.03}, int8 u = {0}>
    { q, s, z = DynamicQuantizeLinear (x)
      m = MatMulInteger (q, w, z, u)  c = Cast <to=1> (m)  k = Mul (s, t)  p = Mul (c, k)
      n = MatMulInteger (q, v, z, u)  d = Cast <to=1> (n)  l = Mul (s, f)  r = Mul (d, l)  y = Sub (p, r) }""",
}


@pytest.mark.parametrize("name", GRAPHS)
def test_detects_what_the_runtime_executes(name, tmp_path):
    model = graph(GRAPHS[name])
    assert detected(model) == executed(model, tmp_path)


@pytest.mark.parametrize(
    ("name", "rule", "reason"),
    [
        ("conv with a bias of another scale", "qdq-kernels", "the scale of the bias is not known to be that"),
        ("conv without a quantized output", "qdq-kernels", "not all outputs go to one QuantizeLinear each"),
        ("reshape that requantizes", "qdq-kernels", "input and output are quantized differently"),
        ("conv, clip that cuts", "clip-quantize", "the quantized range is wider than what it lets through"),
        ("two dynamic products of one tensor", "dynamic-quantize-matmul", "several products read the quantized tensor"),
    ],
)
def test_says_why_an_op_stays_in_floating_point(name, rule, reason):
    assert any(reason in said for said in reasons(graph(GRAPHS[name]), rule))


@pytest.mark.parametrize(
    ("group", "points", "kind"),
    [(4, "0, 0, 0, 0", "grouped"), (4, "0, 0, 3, 0", "by-group"), (2, "0, 0, 3, 0", "grouped"), (1, "0, 3, 3, 0", "")],
)
def test_a_depthwise_convolution_whose_zero_points_differ_is_another_kernel(group, points, kind):
    """On one core, 37 x 37 x 128, 3x3: 8.2 ms where they differ, 0.12 ms where they are all zero."""
    model = graph(f"""g (float[1,4,8,8] x) => (float[1,4,6,6] y)
        <{SCALES}, int8[4,{4 // group},3,3] w, float[4] ws = {{0.02, 0.02, 0.02, 0.02}}, int8[4] wz = {{{points}}}>
        {{ {X}  wd = DequantizeLinear <axis=0> (w, ws, wz)
        c = Conv <kernel_shape=[3,3], group={group}> (xd, wd)  {Y} }}""")
    kinds = [kernel.kind for kernel in detect(read(model), default_rules()).kernels]
    assert "-".join(filter(None, ["conv-quantized", kind])) in kinds
