"""The blocked channel layout, against onnxruntime itself with the block that this processor has."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_oracle import executed, graph, launches, reasons

from latpred.graph import read
from latpred.kernels.detect import detect
from latpred.kernels.fusion import Rule, RuleBook, default_rules


def blocked(body: str, channels: int = 16, constants: str = "", inputs: str = "") -> str:
    """A graph on an image of 8 x 8 with weights `w` (16 -> 32, 3x3) and `v` (32 -> 32, 1x1)."""
    return f"""g (float[1,{channels},8,8] x{inputs}) => (float[N,M,H,W] y)
        <float[32,{channels},3,3] w, float[32,32,1,1] v, float[32] b{constants}> {{ {body} }}"""


IN = "a = Conv<pads=[1,1,1,1]>(x, w)"
TWO = f"{IN} c = Conv(a, v)"

GRAPHS = {
    "one convolution": blocked("y = Conv(x, w)"),
    "two in a row": blocked(f"{IN} y = Conv(a, v)"),
    "few input channels are read in place": blocked("y = Conv(x, w)", channels=3),
    "20 input channels are padded": blocked("y = Conv(x, w)", channels=20),
    "18 input channels stay out": blocked("y = Conv(x, w)", channels=18),
    "output channels are padded": blocked(f"{IN} y = Conv(a, u)", constants=", float[20,32,1,1] u"),
    "depthwise": blocked(f"{IN} y = Conv<group=32>(a, u)", constants=", float[32,1,3,3] u"),
    "depthwise of 20": blocked(
        f"{IN} c = Conv(a, t) y = Conv<group=20>(c, u)", constants=", float[20,32,1,1] t, float[20,1,3,3] u"
    ),
    "depthwise of 18 stays out": blocked(
        f"{IN} c = Conv(a, t) y = Conv<group=18>(c, u)", constants=", float[18,32,1,1] t, float[18,1,3,3] u"
    ),
    "depthwise that widens stays out": blocked(f"{IN} y = Conv<group=32>(a, u)", constants=", float[64,1,3,3] u"),
    "groups of 16": blocked(f"{IN} y = Conv<group=2>(a, u)", constants=", float[32,16,3,3] u"),
    "groups of 8 stay out": blocked(f"{IN} y = Conv<group=4>(a, u)", constants=", float[32,8,3,3] u"),
    **{
        f"{op} is fused": blocked(f"{IN} c = {op}(a) y = Conv(c, v)")
        for op in ("Relu", "Sigmoid", "Tanh", "HardSigmoid", "LeakyRelu")
    },
    "clip is fused": blocked(f"{IN} c = Clip(a, l, h) y = Conv(c, v)", constants=", float l = {0}, float h = {6}"),
    "gelu runs on blocks": blocked(f"{IN} c = Gelu(a) y = Conv(c, v)"),
    "silu runs on blocks": blocked(f"{IN} s = Sigmoid(a) c = Mul(a, s) y = Conv(c, v)"),
    "elu leaves the blocks": blocked(f"{IN} c = Elu(a) y = Conv(c, v)"),
    "hard swish is fused": blocked(f"{IN} c = HardSwish(a) y = Conv(c, v)"),
    "hard swish at the end is not": blocked(f"{IN} y = HardSwish(a)"),
    "hard swish of a value read thrice is not": blocked(f"{IN} c = HardSwish(a) d = Add(a, c) y = Conv(d, v)"),
    "residual": blocked(f"{TWO} d = Add(a, c) y = Relu(d)"),
    "residual of two convolutions": blocked(
        f"{IN} c = Conv(a, v) d = Conv(a, u) y = Add(c, d)", constants=", float[32,32,1,1] u"
    ),
    "residual behind an activation": blocked(f"{TWO} d = Relu(c) e = Add(a, d) y = Conv(e, v)"),
    "residual, then an activation that is not fused": blocked(f"{TWO} d = Add(a, c) e = LeakyRelu(d) y = Conv(e, v)"),
    "residual, then hard swish": blocked(f"{TWO} d = Add(a, c) e = HardSwish(d) y = Conv(e, v)"),
    "residual of the plain input": blocked(
        "a = Conv<pads=[1,1,1,1]>(x, u) c = Add(a, x) y = Conv(c, w)", constants=", float[16,16,3,3] u"
    ),
    "residual that is broadcast": blocked(f"{IN} g = GlobalAveragePool(a) c = Conv(g, v) d = Add(a, c) y = Relu(d)"),
    "sum of three": blocked(f"{TWO} d = Conv(c, v) e = Sum(a, c, d) y = Relu(e)"),
    "product": blocked(f"{IN} c = Conv(a, v) s = Sigmoid(c) d = Mul(a, s) y = Conv(d, v)"),
    "squeeze and excite leaves the blocks": blocked(
        f"{IN} g = GlobalAveragePool(a) c = Conv(g, v) s = Sigmoid(c) d = Mul(a, s) y = Conv(d, v)"
    ),
    "factor a channel": blocked(f"{IN} r = Relu(a) c = Mul(r, f) y = Conv(c, v)", constants=", float[32,1,1] f"),
    "scalar factor leaves the blocks": blocked(
        f"{IN} r = Relu(a) c = Mul(r, f) y = Conv(c, v)", constants=", float f = {2}"
    ),
    "term a channel leaves the blocks": blocked(
        f"{IN} r = Relu(a) c = Add(r, f) y = Conv(c, v)", constants=", float[32,1,1] f"
    ),
    "batch norm": blocked(f"{TWO} d = Add(a, c) e = BatchNormalization(d, b, b, b, b) y = Relu(e)"),
    "concat": blocked(f"{TWO} d = Concat<axis=1>(a, c) y = Relu(d)"),
    "concat along rows": blocked(f"{TWO} d = Concat<axis=2>(a, c) y = Relu(d)"),
    "concat counted from behind": blocked(f"{TWO} d = Concat<axis=-3>(a, c) y = Relu(d)"),
    "concat of odd channels": blocked(
        f"{IN} c = Conv(a, u) d = Concat<axis=1>(a, c) y = Relu(d)", constants=", float[20,32,1,1] u"
    ),
    "max pool alone": blocked("r = Relu(x) y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)"),
    "max pool of 24 channels": blocked("r = Relu(x) y = MaxPool<kernel_shape=[2,2]>(r)", channels=24),
    "average pool": blocked(f"{IN} y = AveragePool<kernel_shape=[2,2]>(a)"),
    "average pool that rounds up and counts its padding": blocked(
        f"{IN} y = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1, count_include_pad=1>(a)"
    ),
    "global pool behind a convolution": blocked(f"{IN} y = GlobalAveragePool(a)"),
    "global pool of a plain tensor": blocked("r = Neg(x) y = GlobalMaxPool(r)"),
    "mean leaves the blocks": blocked(f"{IN} y = ReduceMean<keepdims=1>(a, n)", constants=", int64[2] n = {2,3}"),
    "to channels last": blocked(f"{IN} t = Transpose<perm=[0,2,3,1]>(a) y = Softmax(t)"),
    "from channels last": """g (float[1,8,8,16] x) => (float[N,M,H,W] y) <float[32,16,3,3] w> {
        n = Softmax(x) t = Transpose<perm=[0,3,1,2]>(n) y = Conv(t, w) }""",
    "from channels last, read twice": """g (float[1,8,8,16] x) => (float[N,M,H,W] y, float[A,B,C,D] z)
        <float[32,16,3,3] w, int32 k = {1}> {
        n = Softmax(x) t = Transpose<perm=[0,3,1,2]>(n) y = Conv(t, w) z = CumSum(t, k) }""",
    "from channels last to two convolutions": """g (float[1,8,8,16] x) => (float[N,M,H,W] y)
        <float[32,16,3,3] w, float[32,16,3,3] v> {
        n = Softmax(x) t = Transpose<perm=[0,3,1,2]>(n) a = Conv(t, w) b = Conv(t, v) y = Sub(a, b) }""",
    "upsample": blocked(
        f'{IN} c = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">(a, , s) y = Conv(c, v)',
        constants=", float[4] s = {1,1,2,2}",
    ),
    "upsample of half pixels": blocked(f"{IN} c = Resize(a, , s) y = Conv(c, v)", constants=", float[4] s = {1,1,2,2}"),
    "bilinear": blocked(f'{IN} c = Resize<mode="linear">(a, , s) y = Conv(c, v)', constants=", float[4] s = {1,1,2,2}"),
    "bilinear as PyTorch does it": blocked(
        f'{IN} c = Resize<mode="linear", coordinate_transformation_mode="pytorch_half_pixel">(a, , s) y = Conv(c, v)',
        constants=", float[4] s = {1,1,2,2}",
    ),
    "bilinear by a fraction": blocked(
        f'{IN} c = Resize<mode="linear">(a, , s) y = Conv(c, v)', constants=", float[4] s = {1,1,1.5,1.5}"
    ),
    "bilinear to sizes": blocked(
        f'{IN} c = Resize<mode="linear">(a, , , s) y = Conv(c, v)', constants=", int64[4] s = {1,32,16,16}"
    ),
    "split leaves the blocks": blocked(f"{IN} c, d = Split<axis=1, num_outputs=2>(a) e = Sub(c, d) y = Relu(e)"),
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> RuleBook:
    """The default book with the block of this processor: what 3 output channels are padded to."""
    model = graph("g (float[1,3,8,8] x) => (float[N,M,H,W] y) <float[3,3,1,1] w> { y = Conv(x, w) }")
    shapes = [shapes[0] for op_type, shapes in executed(model, tmp_path_factory.mktemp("block")) if op_type == "Conv"]
    block = shapes[0][1]
    holds = block > 3
    return default_rules().revised(
        {"conv-nchwc": Rule("conv-nchwc", holds=holds, parameters={"block": block if holds else 1})}
    )


@pytest.mark.parametrize("name", GRAPHS)
def test_as_executed(name: str, rules: RuleBook, tmp_path: Path) -> None:
    model = graph(GRAPHS[name], opset=20)
    assert launches(detect(read(model), rules)) == executed(model, tmp_path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    widths=st.lists(st.sampled_from((3, 8, 12, 16, 20, 24, 30, 32, 48)), min_size=2, max_size=4),
    group_sizes=st.lists(st.sampled_from((1, 4, 8, 16, 0)), min_size=3, max_size=3),
    steps=st.lists(
        st.sampled_from(("Relu", "Elu", "Sigmoid", "MaxPool", "Add", "Mul", "none")), min_size=3, max_size=3
    ),
)
def test_chains_of_any_width(
    widths: list[int], group_sizes: list[int], steps: list[str], rules: RuleBook, tmp_path: Path
) -> None:
    lines, weights = [], []
    name = "x"
    for i, (before, after) in enumerate(pairwise(widths)):
        size = group_sizes[i] or before
        groups = before // size if before % size == 0 and after % (before // size) == 0 else 1
        weights.append(f"float[{after},{before // groups},1,1] w{i}")
        lines.append(f"c{i} = Conv<group={groups}>({name}, w{i})")
        step = {
            "MaxPool": f"s{i} = MaxPool<kernel_shape=[2,2]>(c{i})",
            "Add": f"s{i} = Add(c{i}, {name if before == after else f'c{i}'})",
            "Mul": f"s{i} = Mul(c{i}, c{i})",
            "none": f"s{i} = Neg(c{i})",
        }.get(steps[i], f"s{i} = {steps[i]}(c{i})")
        lines.append(step)
        name = f"s{i}"
    text = f"g (float[1,{widths[0]},6,6] x) => (float[N,M,H,W] y) <{', '.join(weights)}> {{ "
    model = graph(text + " ".join(lines) + f" y = Neg({name}) }}")
    assert launches(detect(read(model), rules)) == executed(model, tmp_path)


@pytest.mark.parametrize("op", ["Upsample", "Resize"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_before_opset_11(op: str, mode: str, rules: RuleBook, tmp_path: Path) -> None:
    body = f'{IN} c = {op}<mode="{mode}">(a, s) y = Conv(c, v)'
    model = graph(blocked(body, constants=", float[4] s = {1,1,2,2}"), opset=9 if op == "Upsample" else 10)
    assert launches(detect(read(model), rules)) == executed(model, tmp_path)


@pytest.mark.parametrize(("channels", "kind"), [(3, "conv-stem"), (8, "conv-stem"), (12, "conv-stem"), (16, "conv")])
def test_kind_tells_how_the_input_is_read(channels: int, kind: str) -> None:
    kernels = detect(read(graph(blocked("y = Conv(x, w)", channels=channels))), default_rules()).kernels
    assert [kernel.kind for kernel in kernels if kernel.op_type == "Conv"] == [kind]


def test_padded_channels_are_work() -> None:
    kernels = detect(read(graph(GRAPHS["20 input channels are padded"])), default_rules()).kernels
    conv = next(kernel for kernel in kernels if kernel.op_type == "Conv")
    assert conv.work.macs == 32 * 6 * 6 * (32 * 3 * 3)  # 20 channels run as two blocks of 16
    assert conv.work.weight_bytes == 4 * 32 * 32 * 3 * 3


def test_epilogue_tells_what_was_fused() -> None:
    kernels = detect(read(graph(GRAPHS["residual"])), default_rules()).kernels
    labels = [kernel.label for kernel in kernels if kernel.op_type == "Conv"]
    assert labels == ["conv", "conv-pointwise+add+relu"]


def test_without_the_layout_everything_stays_plain() -> None:
    rules = default_rules().revised({"conv-nchwc": Rule("conv-nchwc", holds=False)})
    for text in GRAPHS.values():
        kernels = detect(read(graph(text, opset=20)), rules).kernels
        assert not Counter(kernel.domain for kernel in kernels)["com.microsoft.nchwc"]


def test_block_is_a_parameter_of_the_rule() -> None:
    rules = default_rules().revised({"conv-nchwc": Rule("conv-nchwc", parameters={"block": 8})})
    kernels = detect(read(graph(GRAPHS["groups of 8 stay out"])), rules).kernels
    assert [kernel.kind for kernel in kernels].count("conv-grouped") == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("18 input channels stay out", "18 input channels: no multiple of 4"),
        ("groups of 8 stay out", "8 input and 8 output channels a group: not both multiples of the block 16"),
        ("squeeze and excite leaves the blocks", "its inputs differ in shape"),
        ("upsample of half pixels", "only asymmetric with floor is done on blocks"),
    ],
)
def test_says_why_not(name: str, reason: str) -> None:
    found = reasons(graph(GRAPHS[name], opset=20), "conv-nchwc")
    assert any(said.endswith(reason) for said in found), found
