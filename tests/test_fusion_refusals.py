"""Near misses: a rule that does not apply says why, and the runtime does not apply it either."""

import pytest
from runtime_oracle import detected, executed, graph, reasons

LAYER_NORM = """m = ReduceMean <axes={axes}> (x)  s = Sub (x, m)  p = Pow (s, two)  v = ReduceMean <axes={axes}> (p)
a = Add (v, epsilon)  r = Sqrt (a)  d = Div (s, r)  k = Mul (d, scale)  y = Add (k, bias)"""
NORM_CONSTANTS = "float two = {2.0}, float epsilon = {0.00001}"
GELU_CONSTANTS = "float root = {1.41421356}, float one = {1.0}, float half = {0.5}"

# what is missed: (rule, part of the reason, graph)
MISSES = {
    "norm over the first axis": (
        "layer-norm",
        "the mean is over axes (0,), not the last one alone",
        f"""g (float[4,8] x) => (float[4,8] y) <float[8] scale, float[8] bias, {NORM_CONSTANTS}>
        {{ {LAYER_NORM.format(axes="[0]")} }}""",
    ),
    "norm with a matrix as scale": (
        "layer-norm",
        "scale and bias are not vectors of one length",
        f"""g (float[4,8] x) => (float[4,8] y) <float[4,8] scale, float[8] bias, {NORM_CONSTANTS}>
        {{ {LAYER_NORM.format(axes="[1]")} }}""",
    ),
    "bias of another shape": (
        "matmul-add",
        "a bias of shape (4, 16) does not fit a Gemm",
        """g (float[2,4,8] x) => (float[2,4,16] y) <float[8,16] w, float[4,16] b>
        { m = MatMul (x, w)  y = Add (m, b) }""",
    ),
    "weights of rank 3": (
        "matmul-add",
        "the second matrix has rank 3, not 2",
        """g (float[2,4,8] x) => (float[2,4,16] y) <float[2,8,16] w, float[16] b>
        { m = MatMul (x, w)  y = Add (m, b) }""",
    ),
    "residual that is read twice": (
        "skip-layer-norm",
        "the sum is used elsewhere too",
        """g (float[2,4,8] x, float[2,4,8] z) => (float[2,4,8] y) <float[8] scale, float[8] bias>
        { s = Add (x, z)  n = LayerNormalization (s, scale, bias)  y = Sub (n, s) }""",
    ),
    "residual with broadcast": (
        "skip-layer-norm",
        "the summands are not of one shape with three dims",
        """g (float[2,4,8] x, float[1,4,8] z) => (float[2,4,8] y) <float[8] scale, float[8] bias>
        { s = Add (x, z)  y = LayerNormalization (s, scale, bias) }""",
    ),
    "view with allowzero": (
        "reshape-fusion",
        "it has allowzero=1",
        """g (float[2,4,8] x) => (float[8,8] y) <int64[1] a = {64}, int64[2] b = {8,8}>
        { e = Exp (x)  r = Reshape <allowzero=1> (e, a)  y = Reshape (r, b) }""",
    ),
    "batch dims that a transpose pulls apart": (
        "matmul-transpose",
        "the batch dims do not stay together",
        """g (float[2,3,4,8] x, float[2,3,8,16] z) => (float[3,2,4,16] y) <int64[4] shape = {3,2,8,16}>
        { t = Transpose <perm=[1,0,2,3]> (x)  r = Reshape (z, shape)  y = MatMul (t, r) }""",
    ),
    "gathers that leave a row out": (
        "gather-split",
        "they do not make up a whole axis",
        """g (float[3,2,8] x) => (float[2,8] y) <int64 zero = {0}, int64 two = {2}>
        { e = Exp (x)  a = Gather <axis=0> (e, zero)  b = Gather <axis=0> (e, two)  y = Sub (a, b) }""",
    ),
    "a Not that something else reads": (
        "not-where",
        "something else than the condition of a Where reads it",
        """g (bool[2,3] c, float[2,3] x, float[2,3] z) => (float[2,3] y, bool[2,3] b)
        { n = Not (c)  y = Where (n, x, z)  b = And (n, c) }""",
    ),
    "a GELU behind a gate": (
        "gelu",
        "comes from a Mul",
        f"""g (float[2,8] x, float[2,8] z) => (float[2,8] y) <{GELU_CONSTANTS}>
        {{ w = Mul (x, z)  d = Div (w, root)  e = Erf (d)  a = Add (e, one)  m = Mul (w, a)  y = Mul (m, half) }}""",
    ),
    "a GELU with Tanh that is an output": (
        "fast-gelu",
        "the result is an output of the graph",
        """g (float[2,8] x) => (float[2,8] y)
        <float three = {3.0}, float c = {0.044715}, float root = {0.79788456}, float one = {1.0}, float half = {0.5}>
        { p = Pow (x, three)  m = Mul (p, c)  a = Add (x, m)  s = Mul (a, root)  t = Tanh (s)  b = Add (t, one)
          h = Mul (x, half)  y = Mul (h, b) }""",
    ),
    "a GELU bias that is a matrix": (
        "bias-gelu",
        "none of the summands is a vector as long as the last dim",
        f"""g (float[2,8] x, float[2,8] z) => (float[2,8] y) <{GELU_CONSTANTS}>
        {{ w = Add (x, z)  d = Div (w, root)  e = Erf (d)  a = Add (e, one)  m = Mul (w, a)  y = Mul (m, half) }}""",
    ),
    "normalised channels that are not the columns": (
        "matmul-bn",
        "the normalised channels are not the columns of the product",
        """g (float[2,4,8] x) => (float[2,4,16] y)
        <float[8,16] w, float[4] scale, float[4] bias, float[4] mean, float[4] variance>
        { m = MatMul (x, w)  y = BatchNormalization <epsilon=0.00001> (m, scale, bias, mean, variance) }""",
    ),
    "slices of every second row that are used elsewhere": (
        "space-to-depth",
        "the slices do not take every second row and column, each offset once",
        """g (float[1,3,8,8] x) => (float[1,12,4,4] y, float[1,3,4,4] z)
        <int64[2] a = {0,0}, int64[2] b = {0,1}, int64[2] c = {1,0}, int64[2] d = {1,1}, int64[2] axes = {2,3},
         int64[2] end = {8,8}, int64[2] steps = {2,2}>
        { p = Slice (x, a, end, axes, steps)  q = Slice (x, b, end, axes, steps)
          r = Slice (x, c, end, axes, steps)  s = Slice (x, d, end, axes, steps)
          y = Concat <axis=1> (p, q, r, s)  z = Exp (p) }""",
    ),
    "a transposed matrix that is read twice": (
        "gemm-transpose",
        "the transposed matrix is used elsewhere too",
        """g (float[8,4] x) => (float[4,16] y, float[4,8] z) <float[8,16] w, float[16] b>
        { t = Transpose <perm=[1,0]> (x)  y = Gemm (t, w, b)  z = Exp (t) }""",
    ),
}


@pytest.mark.parametrize("name", MISSES)
def test_says_why_and_agrees_with_the_runtime(name, tmp_path):
    rule, reason, text = MISSES[name]
    model = graph(text)
    assert detected(model) == executed(model, tmp_path)
    assert any(reason in said for said in reasons(model, rule)), reasons(model, rule)
