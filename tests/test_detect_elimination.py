"""What onnxruntime computes ahead or drops, against onnxruntime itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from runtime_oracle import detected, executed, graph

from latpred.graph import read
from latpred.kernels.detect import detect
from latpred.kernels.fusion import default_rules

GRAPHS = {
    "identities vanish": """g (float[2,8] x) => (float[2,8] y) {
        a = Identity(x)
        b = Relu(a)
        c = Identity(b)
        y = Neg(c)
    }""",
    "an identity from input to output stays": "g (float[2,8] x) => (float[2,8] y) { y = Identity(x) }",
    "dropout vanishes at inference": """g (float[2,8] x) => (float[2,8] y) {
        a = Relu(x)
        b = Dropout(a)
        y = Neg(b)
    }""",
    "arithmetic that changes nothing": """g (float[2,8] x) => (float[2,8] y)
        <float zero = {0}, float one = {1}, float[1] one1 = {1}> {
        a = Relu(x)
        b = Add(a, zero)
        c = Mul(one, b)
        d = Div(c, one1)
        e = Sub(d, zero)
        y = Neg(e)
    }""",
    "subtracting from zero does something": """g (float[2,8] x) => (float[2,8] y) <float zero = {0}> {
        a = Relu(x)
        b = Sub(zero, a)
        y = Neg(b)
    }""",
    "adding a zero of higher rank broadcasts": """g (float[8] x) => (float[1,8] y) <float[1,1] zero = {0}> {
        a = Relu(x)
        b = Add(a, zero)
        y = Neg(b)
    }""",
    "a slice up to the largest integer": """g (float[2,8] x) => (float[2,8] y)
        <int64[1] zero = {0}, int64[1] end = {9223372036854775807}, int64[1] axis = {1}> {
        a = Relu(x)
        b = Slice(a, zero, end, axis)
        y = Neg(b)
    }""",
    "a slice that happens to take all": """g (float[2,8] x) => (float[2,8] y)
        <int64[1] zero = {0}, int64[1] end = {8}, int64[1] axis = {1}> {
        a = Relu(x)
        b = Slice(a, zero, end, axis)
        y = Neg(b)
    }""",
    "an expand to the same shape": """g (float[2,8] x) => (float[2,8] y) <int64[2] shape = {2, 8}> {
        a = Relu(x)
        b = Expand(a, shape)
        y = Neg(b)
    }""",
    "an expand that grows": """g (float[1,8] x) => (float[2,8] y) <int64[2] shape = {2, 8}> {
        a = Relu(x)
        b = Expand(a, shape)
        y = Neg(b)
    }""",
    "a cast to the same type": """g (float[2,8] x) => (float[2,8] y) {
        a = Relu(x)
        b = Cast<to=1>(a)
        y = Neg(b)
    }""",
    "a shape and what follows from it": """g (float[2,3,4] x) => (float[6,4] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] minus = {-1}, int64[1] axis = {0}> {
        a = Relu(x)
        s = Shape(a)
        n = Gather(s, zero)
        m = Gather(s, one)
        k = Mul(n, m)
        k1 = Unsqueeze(k, axis)
        shape = Concat<axis=0>(k1, minus)
        y = Reshape(a, shape)
    }""",
    "what only a shape has read": """g (float[2,8] x) => (float[2,8] y) {
        a = Neg(x)
        b = Relu(a)
        s = Shape(b)
        y = Expand(x, s)
    }""",
    "weights that are computed": """g (float[2,8] x) => (float[2,4] y) <float[4,8] w> {
        t = Transpose<perm=[1,0]>(w)
        y = MatMul(x, t)
    }""",
    "equal nodes are shared": """g (float[2,8] x) => (float[2,8] y) <float[1] k = {2}, float[1] l = {2}> {
        a = Mul(x, k)
        b = Mul(x, l)
        c = Sin(a)
        d = Cos(b)
        y = Sub(c, d)
    }""",
    "different attributes are not shared": """g (float[2,8] x) => (float[2,8] y) {
        a = Softmax<axis=0>(x)
        b = Softmax<axis=1>(x)
        y = Sub(a, b)
    }""",
    "chains of equal nodes are shared": """g (float[2,8] x) => (float[2,8] y, float[2,8] z) {
        a = Sin(x)
        b = Sin(x)
        c = Neg(a)
        d = Neg(b)
        y = Cos(c)
        z = Tan(d)
    }""",
    "equal shapes that are folded are not shared": """g (float[4,8] x, float[1,8] m) => (float[4,8] y) {
        a = Sin(x) b = Cos(x) n = Neg(m)
        s = Shape(a) t = Shape(b)
        c = Expand(n, s) d = Expand(n, t)
        e = Add(a, c) f = Sub(b, d) y = Mul(e, f)
    }""",
    "two equal outputs stay two": """g (float[2,8] x) => (float[2,8] y, float[2,8] z) {
        y = Sin(x)
        z = Sin(x)
    }""",
    "a hard swish that no kernel does": "g (float[2,8] x) => (float[2,8] y) { y = HardSwish(x) }",
    "a mish that no kernel does": "g (float[2,8] x) => (float[2,8] y) { y = Mish(x) }",
}


@pytest.mark.parametrize("name", GRAPHS)
def test_as_executed(name: str, tmp_path: Path) -> None:
    model = graph(GRAPHS[name], opset=18)
    assert detected(model) == executed(model, tmp_path)


def test_every_op_is_in_one_kernel_or_free() -> None:
    for name, text in GRAPHS.items():
        read_graph = read(graph(text, opset=18))
        found = detect(read_graph, default_rules())
        carried = [op for kernel in found.kernels for op in kernel.ops]
        assert len(carried) == len(set(carried)), name
        assert not set(carried) & set(found.free), name
        assert set(carried) | set(found.free) == {op.name for op in read_graph.ops}, name


def test_random_ops_are_never_shared_or_computed_ahead() -> None:
    text = """g () => (float[4] y) <int64[1] shape = {4}> {
        a = RandomNormal<shape=[4]>()
        b = RandomNormal<shape=[4]>()
        y = Sub(a, b)
    }"""
    found = detect(read(graph(text)), default_rules())
    assert [kernel.op_type for kernel in found.kernels] == ["RandomNormal", "RandomNormal", "Sub"]
