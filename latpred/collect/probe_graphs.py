"""Small graphs that tell whether a runtime applies a fusion rule: one literal table, rule -> graph in ONNX's own text.

Tensors that the text declares without a value become random weights. What shows in the runtime's optimised graph
where the rule holds, and what is gone from it, stands beside the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

__all__ = ["PROBES", "Probe", "probe_model"]

OPSET = 17


@dataclass(frozen=True, slots=True)
class Probe:
    """A graph for one rule; op types carry their domain where it is not ONNX's."""

    text: str
    shows: tuple[str, ...] = ()  # op types of the optimised graph where the rule holds
    gone: tuple[str, ...] = ()  # op types that it has no more
    exactly: bool = False  # `shows` is all that is left, each as often as it stands there
    opset: int = OPSET


def probe_model(probe: Probe) -> onnx.ModelProto:
    """The graph with its weights, ready to run.

    Raises
    ------
    onnx.parser.ParseError
        Where the text of the probe is no ONNX graph.
    """
    graph = parser.parse_graph(probe.text)
    produced = {name for node in graph.node for name in node.output}
    rng = np.random.default_rng(0)
    for value in list(graph.value_info):
        if value.name not in produced:
            graph.initializer.append(_weights(value, rng))
            graph.value_info.remove(value)
    imports = [helper.make_opsetid("", probe.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def _weights(value: onnx.ValueInfoProto, rng: np.random.Generator) -> onnx.TensorProto:
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    if value.type.tensor_type.elem_type == TensorProto.FLOAT:
        weights = (np.abs(rng.standard_normal(shape)) * 0.1 + 0.01).astype(dtype)  # positive: some are variances
    else:
        weights = rng.integers(-60 if dtype.kind == "i" else 60, 60 if dtype.kind == "i" else 190, shape).astype(dtype)
    return numpy_helper.from_array(weights, value.name)


_GELU = """g (float[2,8] x) => (float[2,8] y) <float root = {1.41421356}, float one = {1.0}, float half = {0.5}>
{ d = Div (x, root)  e = Erf (d)  a = Add (e, one)  m = Mul (x, a)  y = Mul (m, half) }"""
_QDQ_IN = "float s = {0.1}, uint8 z = {128}, float t = {0.2}, uint8 u = {100}"
_QDQ_CONV = (
    "int8[8,4,3,3] w, float[1] ws = {0.02}, int8[1] wz = {0}, int32[8] b, float[1] bs = {0.002}, int32[1] bz = {0}"
)
_QDQ_CONV_OPS = """
  xq = QuantizeLinear (x, s, z)
  xd = DequantizeLinear (xq, s, z)
  wd = DequantizeLinear (w, ws, wz)
  bd = DequantizeLinear (b, bs, bz)
  c = Conv <kernel_shape=[3,3]> (xd, wd, bd)
  cq = QuantizeLinear (c, t, u)
  y = DequantizeLinear (cq, t, u)
"""

PROBES: Mapping[str, Probe] = {
    "eliminate-identity": Probe(
        "g (float[2,3] x) => (float[2,3] y) { i = Identity (x)  y = Relu (i) }", ("Relu",), ("Identity",)
    ),
    "eliminate-dropout": Probe(
        "g (float[2,3] x) => (float[2,3] y) { r = Relu (x)  d = Dropout (r)  y = Exp (d) }", ("Relu",), ("Dropout",)
    ),
    "eliminate-slice": Probe(
        """g (float[2,3] x) => (float[2,3] y)
        <int64[1] start = {0}, int64[1] end = {9223372036854775807}, int64[1] axes = {1}>
        { r = Relu (x)  d = Slice (r, start, end, axes)  y = Exp (d) }""",
        ("Relu",),
        ("Slice",),
    ),
    "eliminate-unsqueeze": Probe(
        """g (float[2,3] x) => (float[2,3] y) <float[3] w, int64[1] axes = {0}>
        { u = Unsqueeze (w, axes)  y = Sub (x, u) }""",
        ("Sub",),
        ("Unsqueeze",),
    ),
    "eliminate-expand": Probe(
        """g (float[2,3] x) => (float[2,3] y) <int64[2] shape = {1, 3}>
        { r = Relu (x)  e = Expand (r, shape)  y = Exp (e) }""",
        ("Relu",),
        ("Expand",),
    ),
    "eliminate-cast": Probe(
        "g (float[2,3] x) => (float[2,3] y) { r = Relu (x)  c = Cast <to=1> (r)  y = Exp (c) }", ("Relu",), ("Cast",)
    ),
    "eliminate-noop": Probe(
        "g (float[2,3] x) => (float[2,3] y) <float zero = {0.0}> { r = Relu (x)  a = Add (r, zero)  y = Exp (a) }",
        ("Relu",),
        ("Add",),
    ),
    "fold-constants": Probe(
        "g (float[2,3] x) => (float[2,3] y) <float[2,3] w> { e = Exp (w)  y = Add (x, e) }", ("Add",), ("Exp",)
    ),
    "share-subexpressions": Probe(
        "g (float[2,3] x) => (float[2,3] y) { a = Exp (x)  b = Exp (x)  c = Sin (b)  y = Sub (a, c) }",
        ("Exp", "Sin", "Sub"),
        exactly=True,
    ),
    "conv-bn": Probe(
        """g (float[1,3,8,8] x) => (float[1,16,6,6] y)
        <float[16,3,3,3] w, float[16] scale, float[16] bias, float[16] mean, float[16] variance>
        { c = Conv <kernel_shape=[3,3]> (x, w)
          y = BatchNormalization <epsilon=0.00001> (c, scale, bias, mean, variance) }""",
        (),
        ("BatchNormalization",),
    ),
    "conv-mul": Probe(
        """g (float[1,3,8,8] x) => (float[1,16,6,6] y) <float[16,3,3,3] w, float[16,1,1] scale>
        { c = Conv <kernel_shape=[3,3]> (x, w)  y = Mul (c, scale) }""",
        (),
        ("Mul",),
    ),
    "conv-add": Probe(
        """g (float[1,3,8,8] x) => (float[1,16,6,6] y) <float[16,3,3,3] w, float[16,1,1] bias>
        { c = Conv <kernel_shape=[3,3]> (x, w)  y = Add (c, bias) }""",
        (),
        ("Add",),
    ),
    "pad-conv": Probe(
        """g (float[1,3,8,8] x) => (float[1,16,8,8] y) <float[16,3,3,3] w, int64[8] pads = {0,0,1,1,0,0,1,1}>
        { p = Pad (x, pads)  y = Conv <kernel_shape=[3,3]> (p, w) }""",
        (),
        ("Pad",),
    ),
    "conv-activation": Probe(
        """g (float[1,3,8,8] x) => (float[1,16,6,6] y) <float[16,3,3,3] w>
        { c = Conv <kernel_shape=[3,3]> (x, w)  y = Relu (c) }""",
        (),
        ("Relu",),
    ),
    "conv-add-activation": Probe(
        """g (float[1,16,8,8] x) => (float[1,16,8,8] y) <float[16,16,1,1] w, float[16,16,1,1] v>
        { a = Conv <kernel_shape=[1,1]> (x, v)  c = Conv <kernel_shape=[1,1]> (a, w)  s = Add (c, a)  y = Relu (s) }""",
        (),
        ("Add", "Relu"),
    ),
    "inline-functions": Probe(
        "g (float[2,3] x) => (float[2,3] y) { y = HardSwish (x) }", ("HardSigmoid", "Mul"), ("HardSwish",)
    ),
    "conv-nchwc": Probe(
        """g (float[1,16,8,8] x) => (float[1,20,8,8] y) <float[32,16,1,1] w, float[20,32,1,1] v>
        { c = Conv <kernel_shape=[1,1]> (x, w)  y = Conv <kernel_shape=[1,1]> (c, v) }""",
        ("com.microsoft.nchwc.Conv", "com.microsoft.nchwc.ReorderOutput"),
        ("Conv",),
    ),
    "transpose-optimizer": Probe(
        """g (float[1,8,8,16] x) => (float[1,8,8,16] y)
        { t = Transpose <perm=[0,3,1,2]> (x)  e = Exp (t)  y = Transpose <perm=[0,2,3,1]> (e) }""",
        ("Exp",),
        ("Transpose",),
    ),
    "div-mul": Probe(
        """g (float[2,3] x, float[2,3] z) => (float[2,3] y) <float one = {1.0}> { d = Div (one, x)  y = Mul (d, z) }""",
        ("Div",),
        ("Mul",),
    ),
    "relu-clip": Probe(
        """g (float[2,3] x) => (float[2,3] y) <float low = {-1.0}, float high = {6.0}>
        { r = Relu (x)  y = Clip (r, low, high) }""",
        ("Clip",),
        ("Relu",),
    ),
    "gemm-sum": Probe(
        """g (float[4,8] x, float[4,16] z) => (float[4,16] y) <float[8,16] w> { m = Gemm (x, w)  y = Sum (m, z) }""",
        ("Gemm",),
        ("Sum",),
    ),
    "gemm-transpose": Probe(
        """g (float[8,4] x) => (float[4,16] y) <float[8,16] w, float[16] b>
        { t = Transpose <perm=[1,0]> (x)  y = Gemm (t, w, b) }""",
        ("Gemm",),
        ("Transpose",),
    ),
    "not-where": Probe(
        """g (bool[2,3] c, float[2,3] x, float[2,3] z) => (float[2,3] y) { n = Not (c)  y = Where (n, x, z) }""",
        ("Where",),
        ("Not",),
    ),
    "matmul-bn": Probe(
        """g (float[4,8] x) => (float[4,16] y)
        <float[8,16] w, float[16] scale, float[16] bias, float[16] mean, float[16] variance>
        { m = MatMul (x, w)  y = BatchNormalization <epsilon=0.00001> (m, scale, bias, mean, variance) }""",
        ("Gemm",),
        ("MatMul", "BatchNormalization"),
    ),
    "matmul-add": Probe(
        """g (float[2,4,8] x) => (float[2,4,16] y) <float[8,16] w, float[16] b>
        { m = MatMul (x, w)  y = Add (m, b) }""",
        ("Gemm", "Reshape"),
        ("MatMul", "Add"),
    ),
    "reshape-fusion": Probe(
        """g (float[2,4,8] x) => (float[1,8,8] y) <int64[2] flat = {8,8}, int64[1] axes = {0}>
        { e = Exp (x)  r = Reshape (e, flat)  u = Unsqueeze (r, axes)  y = Sin (u) }""",
        ("Reshape",),
        ("Unsqueeze",),
    ),
    "layer-norm": Probe(
        """g (float[2,4,8] x) => (float[2,4,8] y)
        <float[8] scale, float[8] bias, float two = {2.0}, float epsilon = {0.00001}>
        { m = ReduceMean <axes=[-1]> (x)  s = Sub (x, m)  p = Pow (s, two)  v = ReduceMean <axes=[-1]> (p)
          a = Add (v, epsilon)  r = Sqrt (a)  d = Div (s, r)  k = Mul (d, scale)  y = Add (k, bias) }""",
        ("LayerNormalization",),
        ("ReduceMean",),
    ),
    "simplified-layer-norm": Probe(
        """g (float[2,4,8] x) => (float[2,4,8] y) <float[8] scale, float two = {2.0}, float epsilon = {0.00001}>
        { p = Pow (x, two)  v = ReduceMean <axes=[-1]> (p)  a = Add (v, epsilon)  r = Sqrt (a)
          d = Div (x, r)  y = Mul (d, scale) }""",
        ("SimplifiedLayerNormalization",),
        ("ReduceMean",),
    ),
    "skip-layer-norm": Probe(
        """g (float[2,4,8] x, float[2,4,8] z) => (float[2,4,8] y) <float[8] scale, float[8] bias>
        { s = Add (x, z)  y = LayerNormalization (s, scale, bias) }""",
        ("com.microsoft.SkipLayerNormalization",),
        ("Add",),
    ),
    "bias-skip-layer-norm": Probe(
        """g (float[2,4,8] x, float[2,4,8] z) => (float[2,4,8] y)
        <float[2,8,8] w, float[8] b, float[8] scale, float[8] bias>
        { m = MatMul (x, w)  a = Add (b, m)  s = Add (a, z)  y = LayerNormalization (s, scale, bias) }""",
        ("com.microsoft.SkipLayerNormalization",),
        ("Add",),
    ),
    "gelu": Probe(_GELU, ("com.microsoft.Gelu",), ("Erf",)),
    "gelu-onnx": Probe(_GELU, ("Gelu",), ("Erf",), opset=20),
    "fast-gelu": Probe(
        """g (float[2,8] x) => (float[2,8] y)
        <float three = {3.0}, float c = {0.044715}, float root = {0.79788456}, float one = {1.0}, float half = {0.5}>
        { p = Pow (x, three)  m = Mul (p, c)  a = Add (x, m)  s = Mul (a, root)  t = Tanh (s)  b = Add (t, one)
          h = Mul (x, half)  g = Mul (h, b)  y = Neg (g) }""",
        ("com.microsoft.FastGelu",),
        ("Tanh",),
    ),
    "quick-gelu": Probe(
        "g (float[2,8] x) => (float[2,8] y) { s = Sigmoid (x)  y = Mul (x, s) }",
        ("com.microsoft.QuickGelu",),
        ("Sigmoid",),
    ),
    "bias-gelu": Probe(
        """g (float[2,8] x) => (float[2,8] y)
        <float[8] bias, float root = {1.41421356}, float one = {1.0}, float half = {0.5}>
        { z = Add (x, bias)  d = Div (z, root)  e = Erf (d)  a = Add (e, one)  m = Mul (z, a)  y = Mul (m, half) }""",
        ("com.microsoft.BiasGelu",),
        ("Add",),
    ),
    "gemm-activation": Probe(
        """g (float[4,8] x) => (float[4,16] y) <float[8,16] w, float[16] b> { m = Gemm (x, w, b)  y = Relu (m) }""",
        ("com.microsoft.FusedGemm",),
        ("Relu",),
    ),
    "matmul-transpose": Probe(
        """g (float[2,4,8] x, float[2,16,8] z) => (float[2,4,16] y)
        { t = Transpose <perm=[0,2,1]> (z)  y = MatMul (x, t) }""",
        ("com.microsoft.FusedMatMul",),
        ("Transpose",),
    ),
    "matmul-scale": Probe(
        """g (float[2,4,8] x, float[2,8,16] z) => (float[2,4,16] y) <float scale = {0.125}>
        { m = MatMul (x, z)  y = Mul (m, scale) }""",
        ("com.microsoft.FusedMatMul",),
        ("Mul",),
    ),
    "gather-split": Probe(
        """g (float[3,2,8] x) => (float[2,8] y) <int64 zero = {0}, int64 one = {1}, int64 two = {2}>
        { e = Exp (x)  a = Gather <axis=0> (e, zero)  b = Gather <axis=0> (e, one)  c = Gather <axis=0> (e, two)
          d = Sub (a, b)  y = Sub (d, c) }""",
        ("Split", "Squeeze"),
        ("Gather",),
    ),
    "space-to-depth": Probe(
        """g (float[1,3,8,8] x) => (float[1,12,4,4] y)
        <int64[2] a = {0,0}, int64[2] b = {1,0}, int64[2] c = {0,1}, int64[2] d = {1,1}, int64[2] axes = {2,3},
         int64[2] end = {9223372036854775807,9223372036854775807}, int64[2] steps = {2,2}>
        { p = Slice (x, a, end, axes, steps)  q = Slice (x, b, end, axes, steps)
          r = Slice (x, c, end, axes, steps)  s = Slice (x, d, end, axes, steps)
          y = Concat <axis=1> (p, q, r, s) }""",
        ("SpaceToDepth",),
        ("Slice", "Concat"),
    ),
    "packed-attention": Probe(
        """g (float[1,32,4,4] x) => (float[1,16,32] y)
        <float[32,96] w, float[32,32] p, float[32] b, float scale = {0.25}, int64[3] map = {1,32,16},
         int64[5] heads = {1,16,3,2,16}, int64[3] ones = {1,1,1}, int64[1] first = {0}, int64[3] flat = {1,16,32}>
        { r = Reshape (x, map)  t = Transpose <perm=[0,2,1]> (r)  m = MatMul (t, w)
          f = Reshape (m, heads)  h = Transpose <perm=[2,0,3,1,4]> (f)  i, j, k = Split <axis=0> (h, ones)
          q = Squeeze (i, first)  u = Squeeze (j, first)  v = Squeeze (k, first)
          s = Mul (q, scale)  z = Transpose <perm=[0,1,3,2]> (u)  a = MatMul (s, z)  e = Softmax <axis=-1> (a)
          o = MatMul (e, v)  c = Transpose <perm=[0,2,1,3]> (o)  l = Reshape (c, flat)
          n = MatMul (l, p)  g = Add (n, b)  y = Neg (g) }""",
        ("com.microsoft.MultiHeadAttention",),
        ("Softmax",),
    ),
    "double-qdq": Probe(
        f"""g (float[2,8] x) => (float[2,8] y) <{_QDQ_IN}>
        {{ a = QuantizeLinear (x, s, z)  b = DequantizeLinear (a, s, z)
           c = QuantizeLinear (b, t, u)  y = DequantizeLinear (c, t, u) }}""",
        ("QuantizeLinear", "DequantizeLinear"),
        exactly=True,
    ),
    "qdq-propagation": Probe(
        f"""g (float[1,4,8,8] x) => (float[1,8,6,6] y) <{_QDQ_IN}, {_QDQ_CONV}, int64[4] shape = {{1,4,8,8}}>
        {{ xq = QuantizeLinear (x, s, z)  d = DequantizeLinear (xq, s, z)
           xd = Transpose <perm=[0,1,3,2]> (d)
           wd = DequantizeLinear (w, ws, wz)  bd = DequantizeLinear (b, bs, bz)
           c = Conv <kernel_shape=[3,3]> (xd, wd, bd)
           cq = QuantizeLinear (c, t, u)  y = DequantizeLinear (cq, t, u) }}""",
        ("QLinearConv",),
        ("Conv",),
    ),
    "weight-bias-quantization": Probe(
        f"""g (float[1,4,8,8] x) => (float[1,8,6,6] y) <{_QDQ_IN}, float[8,4,3,3] w, float[8] b>
        {{ xq = QuantizeLinear (x, s, z)  xd = DequantizeLinear (xq, s, z)
           c = Conv <kernel_shape=[3,3]> (xd, w, b)
           cq = QuantizeLinear (c, t, u)  y = DequantizeLinear (cq, t, u) }}""",
        ("QLinearConv",),
        ("Conv",),
    ),
    "unique-dq": Probe(
        f"""g (float[2,8] x) => (float[2,8] y) <{_QDQ_IN}>
        {{ a = QuantizeLinear (x, s, z)  b = DequantizeLinear (a, s, z)  c = Exp (b)  d = Sin (b)  y = Sub (c, d) }}""",
        ("QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Exp", "Sin", "Sub"),
        exactly=True,
    ),
    "clip-quantize": Probe(
        f"""g (float[2,8] x) => (float[2,8] y) <{_QDQ_IN}, float low = {{-21.0}}, float high = {{40.0}}>
        {{ n = Neg (x)  c = Clip (n, low, high)  a = QuantizeLinear (c, t, u)
           b = DequantizeLinear (a, t, u)  y = Exp (b) }}""",
        ("QuantizeLinear",),
        ("Clip",),
    ),
    "relu-quantize": Probe(
        """g (float[2,8] x) => (float[2,8] y) <float s = {0.1}, uint8 z = {0}>
        { c = Relu (x)  a = QuantizeLinear (c, s, z)  b = DequantizeLinear (a, s, z)  y = Exp (b) }""",
        ("QuantizeLinear",),
        ("Relu",),
    ),
    "signed-to-unsigned": Probe(
        """g (float[1,4,8] x, float[1,8,4] v) => (float[1,4,4] y) <float s = {0.1}, int8 z = {3}>
        { a = QuantizeLinear (x, s, z)  b = DequantizeLinear (a, s, z)
          c = QuantizeLinear (v, s, z)  d = DequantizeLinear (c, s, z)
          m = MatMul (b, d)  e = QuantizeLinear (m, s, z)  y = DequantizeLinear (e, s, z) }""",
        ("QLinearMatMul",),
        ("MatMul",),
    ),
    "qdq-kernels": Probe(
        f"g (float[1,4,8,8] x) => (float[1,8,6,6] y) <{_QDQ_IN}, {_QDQ_CONV}> {{ {_QDQ_CONV_OPS} }}",
        ("QLinearConv",),
        ("Conv",),
    ),
    "qdq-cleanup": Probe(
        """g (uint8[2,8] x) => (uint8[4,16] y) <float s = {0.1}, uint8 z = {3}, int64[2] twice = {1,2}>
        { c = Concat <axis=0> (x, x)  a = DequantizeLinear (c, s, z)  b = QuantizeLinear (a, s, z)
          y = Tile (b, twice) }""",
        ("Concat", "Tile"),
        ("DequantizeLinear", "QuantizeLinear"),
    ),
    "matmul-integer-to-float": Probe(
        """g (uint8[4,8] x, float s, uint8 z) => (float[4,16] y)
        <int8[8,16] w, float t = {0.02}, int8 u = {0}, float[16] b>
        { m = MatMulInteger (x, w, z, u)  c = Cast <to=1> (m)  k = Mul (s, t)  p = Mul (c, k)  y = Add (p, b) }""",
        ("com.microsoft.MatMulIntegerToFloat",),
        ("MatMulInteger", "Add"),
    ),
    "dynamic-quantize-matmul": Probe(
        """g (float[4,8] x) => (float[4,16] y) <int8[8,16] w, float t = {0.02}, int8 u = {0}, float[16] b>
        { q, s, z = DynamicQuantizeLinear (x)
          m = MatMulInteger (q, w, z, u)  c = Cast <to=1> (m)  k = Mul (s, t)  p = Mul (c, k)  y = Add (p, b) }""",
        ("com.microsoft.DynamicQuantizeMatMul",),
        ("DynamicQuantizeLinear", "MatMulInteger"),
    ),
    "nhwc-quantized": Probe(
        f"g (float[1,4,8,8] x) => (float[1,8,6,6] y) <{_QDQ_IN}, {_QDQ_CONV}> {{ {_QDQ_CONV_OPS} }}",
        ("com.microsoft.QLinearConv", "Transpose"),
        ("Conv",),
    ),
}
