"""Transposes that are pushed, merged and cancelled, against onnxruntime itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_oracle import detected, executed, graph

from latpred.graph import read
from latpred.kernels.detect import detect
from latpred.kernels.fusion import Rule, default_rules
from latpred.kernels.permutations import compose, identity, inverse, permuted, squeezed, unsqueezed


def fenced(body: str, shape: str = "2,3,4,5", constants: str = "", inputs: str = "") -> str:
    """A graph between two CumSums, through which no transpose can be pushed."""
    return f"""g (float[{shape}] x{inputs}) => (float[N] y) <int32 k = {{0}}{constants}> {{
        s = CumSum(x, k)  {body}  y = CumSum(e, k) }}"""


TO = "t = Transpose<perm=[0,2,3,1]>(s)"
BACK = "e = Transpose<perm=[0,3,1,2]>(u)"

GRAPHS = {
    "two cancel": fenced(f"{TO} u = Neg(t) {BACK}"),
    "two merge": fenced(f"{TO} u = Neg(t) e = Transpose<perm=[0,1,3,2]>(u)"),
    "one is left alone": fenced(f"{TO} e = Neg(t)"),
    "through a broadcast": fenced(f"{TO} u = Add(t, c) {BACK}", constants=", float[3] c"),
    "through a scalar": fenced(f"{TO} u = Mul(t, c) {BACK}", constants=", float c"),
    "another input would need one": fenced(f"{TO} u = Add(t, z) {BACK}", inputs=", float[2,4,5,3] z"),
    "another input has one": fenced(
        f"{TO} w = Transpose<perm=[0,2,3,1]>(z) u = Add(t, w) {BACK}", inputs=", float[2,3,4,5] z"
    ),
    "softmax moves its axis": fenced(f"{TO} u = Softmax<axis=-1>(t) {BACK}"),
    "reduction moves its axes": fenced(f"{TO} u = ReduceMean<keepdims=1>(t, a) {BACK}", constants=", int64[1] a = {3}"),
    "reduction that drops an axis": fenced(f"{TO} e = ReduceMax<keepdims=0>(t, a)", constants=", int64[1] a = {3}"),
    "concat": fenced(f"{TO} w = Neg(t) v = Abs(t) u = Concat<axis=3>(w, v) {BACK}"),
    "split": fenced(
        "t = Transpose<perm=[0,2,3,1]>(s) p, q = Split<axis=1, num_outputs=2>(t) u = Sub(p, q) "
        "e = Transpose<perm=[0,3,1,2]>(u)"
    ),
    "slice": fenced(
        f"{TO} u = Slice(t, f, l, a) {BACK}", constants=", int64[1] f = {1}, int64[1] l = {3}, int64[1] a = {2}"
    ),
    "pad": fenced(f"{TO} u = Pad(t, p) {BACK}", constants=", int64[8] p = {0,1,0,0,0,1,0,2}"),
    "squeeze": fenced("t = Transpose<perm=[1,0,3,2]>(s) e = Squeeze(t, a)", "2,1,4,5", ", int64[1] a = {0}"),
    "unsqueeze": fenced(f"{TO} v = Unsqueeze(t, a) e = Neg(v)", constants=", int64[1] a = {1}"),
    "one index of an axis": fenced(f"{TO} v = Gather<axis=1>(t, i) e = Neg(v)", constants=", int64 i = {1}"),
    "some indices of an axis": fenced(f"{TO} u = Gather<axis=1>(t, i) {BACK}", constants=", int64[2] i = {1, 0}"),
    "reshape that splits": fenced(
        "t = Transpose<perm=[0,2,1]>(s) e = Reshape(t, r)", "2,12,8", ", int64[4] r = {2,8,3,4}"
    ),
    "reshape that merges": fenced(f"{TO} e = Reshape(t, r)", constants=", int64[3] r = {2,20,3}"),
    "reshape that only moves a one": fenced(
        "t = Transpose<perm=[0,2,1,3]>(s) e = Reshape(t, r)", "1,4,1,6", ", int64[4] r = {1,4,1,6}"
    ),
    "merge, transpose, split": fenced(
        "t = Transpose<perm=[0,2,1,3]>(s) m = Reshape(t, a) n = Transpose<perm=[0,2,1]>(m) e = Reshape(n, b)",
        "2,8,3,5",
        ", int64[3] a = {6,8,5}, int64[4] b = {2,3,5,8}",
    ),
    "layer norm stops it": fenced(f"{TO} u = LayerNormalization(t, c, c) {BACK}", constants=", float[3] c"),
    "matmul stops it": fenced(f"{TO} u = MatMul(t, c) {BACK}", constants=", float[3,3] c"),
    "gelu": fenced(f"{TO} u = Gelu(t) {BACK}"),
    "clip": fenced(f"{TO} u = Clip(t, c) {BACK}", constants=", float c = {0}"),
    "where": fenced(f"{TO} q = Less(t, c) u = Where(q, t, c) {BACK}", constants=", float c = {0}"),
    "a fork with one that cancels": fenced(f"{TO} u = Neg(t) {BACK} y2 = CumSum(u, k)"),
    "a fork with none that cancels": fenced(f"{TO} u = Neg(t) e = Transpose<perm=[0,1,3,2]>(u) y2 = CumSum(u, k)"),
    "a fork right behind it": fenced(f"{TO} v = Neg(t) w = Abs(t) u = Sub(v, w) {BACK}"),
    "a shared constant": fenced(
        f"{TO} u = Add(t, c) {BACK} v = Add(t, c) y2 = CumSum(v, k)", constants=", float[4,5,3] c"
    ),
    "a constant that is transposed": fenced("t = Transpose<perm=[1,0]>(c) e = MatMul(s, t)", "2,5", ", float[4,5] c"),
    "a resize channels-last": fenced(f"{TO} u = Resize(t, , f) {BACK}", constants=", float[4] f = {1,2,2,1}"),
    "rotary positions": fenced(
        "t = Transpose<perm=[0,2,1,3]>(s) h, l = Split<axis=3, num_outputs=2>(t) n = Neg(l) r = Concat<axis=3>(n, h) "
        "p = Mul(t, c) q = Mul(r, d) w = Add(p, q) e = Transpose<perm=[0,1,3,2]>(w)",
        "1,6,2,8",
        ", float[6,8] c, float[6,8] d",
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_as_executed(name: str, tmp_path: Path) -> None:
    model = graph(GRAPHS[name], opset=20)
    assert detected(model) == executed(model, tmp_path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    perms=st.lists(st.permutations(range(4)), min_size=2, max_size=3),
    ops=st.lists(
        st.sampled_from(("Neg", "Softmax", "Add", "Mul", "Gelu", "Erf", "CumSum", "fork")), min_size=3, max_size=3
    ),
    ones=st.sets(st.integers(0, 3), max_size=2),
)
def test_any_chain(perms: list[list[int]], ops: list[str], ones: set[int], tmp_path: Path) -> None:
    shape = [1 if axis in ones else size for axis, size in enumerate((2, 3, 4, 5))]
    lines, name = [], "x"
    for i, perm in enumerate(perms):
        lines.append(f"t{i} = Transpose<perm=[{','.join(map(str, perm))}]>({name})")
        lines.append(
            {
                "Add": f"o{i} = Add(t{i}, c)",
                "Mul": f"o{i} = Mul(t{i}, t{i})",
                "Softmax": f"o{i} = Softmax<axis=1>(t{i})",
                "CumSum": f"o{i} = CumSum(t{i}, k)",
                "fork": f"f{i} = Sin(t{i}) g{i} = Cos(t{i}) o{i} = Sub(f{i}, g{i})",
            }.get(ops[i], f"o{i} = {ops[i]}(t{i})")
        )
        name = f"o{i}"
    text = f"g (float[{','.join(map(str, shape))}] x) => (float[A,B,C,D] y) <int32 k = {{0}}, float c = {{2}}> {{ "
    model = graph(text + " ".join(lines) + f" y = CumSum({name}, k) }}", opset=20)
    assert detected(model) == executed(model, tmp_path)


def test_pushed_nodes_stay_accounted_for() -> None:
    for name, text in GRAPHS.items():
        given_graph = read(graph(text, opset=20))
        found = detect(given_graph, default_rules())
        carried = [op for kernel in found.kernels for op in kernel.ops]
        assert len(carried) == len(set(carried)), name
        assert set(carried) | set(found.free) == {op.name for op in given_graph.ops}, name
        assert not set(carried) & set(found.free), name


def test_shapes_fit_together_after_pushing() -> None:
    rules = default_rules().revised({"transpose-optimizer": Rule("transpose-optimizer", holds=False)})
    for name, text in GRAPHS.items():
        model = read(graph(text, opset=20))
        last = [detect(model, book).kernels[-1].outputs[0].shape for book in (default_rules(), rules)]
        assert last[0] == last[1], name


@given(st.permutations(range(5)), st.permutations(range(5)))
def test_permutations_compose(first: list[int], second: list[int]) -> None:
    shape = (2, 3, 4, 5, 6)
    both = compose(tuple(first), tuple(second))
    assert permuted(shape, both) == permuted(permuted(shape, tuple(first)), tuple(second))
    assert compose(tuple(first), inverse(tuple(first))) == identity(5)


@given(st.permutations(range(5)), st.sets(st.integers(0, 4), min_size=1, max_size=2))
def test_squeezing_commutes_with_transposing(perm: list[int], axes: set[int]) -> None:
    shape = tuple(1 if axis in axes else 10 + axis for axis in range(5))
    left = tuple(size for size in permuted(shape, tuple(perm)) if size != 1)
    assert permuted(tuple(size for size in shape if size != 1), squeezed(sorted(axes), tuple(perm))) == left


def test_unsqueezed_axes_stay_in_place() -> None:
    perm = unsqueezed([0, 3], (2, 0, 1))
    assert permuted((1, 7, 8, 1, 9), perm) == (1, 9, 7, 1, 8)
