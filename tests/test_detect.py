"""The detector as a whole: order, place, bodies, unknown ops, speed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from runtime_oracle import detected as detect_as_executed
from runtime_oracle import executed, graph

from latpred.graph import Graph, read
from latpred.kernels.detect import Detection, detect
from latpred.kernels.fusion import default_rules
from latpred.kernels.kernel import Work
from latpred.kernels.kinds import KIN, KINDS, kind_of
from latpred.kernels.work import COUNTED, FREE

NETWORKS = Path(__file__).parent / "networks"


def detected(text: str, opset: int = 17) -> Detection:
    return detect(read(graph(text, opset=opset)), default_rules())


def test_launch_order_is_the_runtimes(tmp_path: Path) -> None:
    # Two branches: the runtime walks back from the last node and takes the younger branch first.
    model = graph("""g (float[2,8] x) => (float[2,8] y) {
        a = Sin(x) b = Cos(a) c = Tan(x) d = Erf(c) e = Sub(b, d) y = Neg(e)
    }""")
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones((2, 8), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    launched = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
    assert [kernel.op_type for kernel in detect(read(model), default_rules()).kernels] == launched


def test_context_tells_what_moved_in_between() -> None:
    kernels = detected("""g (float[4,8] x) => (float[4,8] y) {
        a = Sin(x) b = Cos(a) c = Tan(b) y = Sub(a, c)
    }""").kernels
    size = 4 * 4 * 8  # bytes of 4 x 8 floats; x, a, b, c and y lie apart, for all are alive when the next is written
    assert [kernel.context.position for kernel in kernels] == [0, 1, 2, 3]
    assert {kernel.context.cycle_bytes for kernel in kernels} == {5 * size}
    # x was read a whole inference ago, a and b are just written; Sub reads a (beneath b and c), then c (beneath a)
    assert [kernel.context.reuse_bytes for kernel in kernels] == [5 * size, size, size, (3 + 2) * size // 2]
    # since Sub read a, it read c and wrote y, then Sin read x; the others were touched earlier
    assert [kernel.context.rewrite_bytes for kernel in kernels] == [4 * size, 5 * size, 5 * size, 5 * size]


def test_work_of_a_graph_is_the_sum() -> None:
    found = detected("g (float[4,8] x) => (float[4,2] y) <float[8,2] w> { a = Relu(x) y = MatMul(a, w) }")
    assert found.work == Work(
        macs=4 * 8 * 2,
        flops=4 * 8 + 2 * 4 * 8 * 2,
        read_bytes=4 * (4 * 8 + 4 * 8),
        write_bytes=4 * (4 * 8 + 4 * 2),
        weight_bytes=4 * 8 * 2,
    )


LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[2,8] x, bool go) => (float[2,8] y) <int64 n = {5}> {
    y = Loop(n, go, x) <body = inner (int64 i, bool c, float[2,8] s) => (bool d, float[2,8] t) {
        d = Identity(c)
        u = Exp(s)
        t = Add(u, x)
    }>
}"""
BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[2,8] x, bool c) => (float[2,8] y) {
    a = Relu(x)
    y = If(c) <then_branch = cheap () => (float[2,8] p) { p = Neg(a) },
               else_branch = costly () => (float[2,8] q) { r = Exp(a) q = Erf(r) }>
}"""


def parsed(text: str) -> Graph:
    return read(onnx.parser.parse_model(text))


def test_a_loop_repeats_its_body() -> None:
    found = detect(parsed(LOOP), default_rules())
    assert {(kernel.op_type, kernel.repeat) for kernel in found.kernels} >= {("Loop", 1), ("Exp", 5), ("Add", 5)}
    flops = {kernel.op_type: kernel.work.flops for kernel in found.kernels}
    assert found.work.flops == 5 * (flops["Exp"] + flops["Add"])


def test_the_costlier_branch_counts_and_is_said() -> None:
    found = detect(parsed(BRANCHES), default_rules())
    assert [kernel.op_type for kernel in found.kernels] == ["Relu", "If", "Exp", "Erf"]
    assert any("costlier branch" in notice for notice in found.notices)
    assert "branch not taken" in found.free.values()


def test_what_a_branch_reads_is_not_fused_away() -> None:
    text = BRANCHES.replace("a = Relu(x)", "b = Identity(x) a = Identity(b)")
    found = detect(parsed(text), default_rules())
    assert [kernel.op_type for kernel in found.kernels if kernel.op_type != "Identity"] == ["If", "Exp", "Erf"]


def test_an_op_without_a_row_is_named_and_costs_its_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dict(COUNTED)
    del rows["Erf"]
    monkeypatch.setattr("latpred.kernels.detect.COUNTED", rows)
    found = detected("g (float[4,8] x) => (float[4,8] y) { y = Erf(x) }")
    assert found.unsupported == ("Erf",)
    assert found.kernels[0].work == Work(read_bytes=4 * 4 * 8, write_bytes=4 * 4 * 8)


def test_every_counted_op_has_a_kind_and_every_kind_a_kin() -> None:
    convolutions = {"Conv", "FusedConv", "NhwcFusedConv"}
    named = {op_type for op_types in KINDS.values() for op_type in op_types} | convolutions
    assert set(COUNTED) - set(FREE) <= named
    for kind in KINDS:
        assert KIN[kind] in {*KIN, *KINDS}
    assert kind_of("NobodyKnows", "", [], {}) == "other"


def test_kernels_of_real_networks_survive_json() -> None:
    for path in sorted(NETWORKS.glob("*.onnx")):
        for kernel in detect(read(path), default_rules()).kernels:
            row = json.loads(json.dumps(kernel.to_dict()))
            assert type(kernel).from_dict(row) == kernel


def test_detection_does_not_touch_the_graph() -> None:
    given = read(NETWORKS / "mobilenet_v2.onnx")
    before = (given.ops, dict(given.tensors), given.outputs)
    detect(given, default_rules())
    assert before == (given.ops, dict(given.tensors), given.outputs)


def chain(length: int) -> Graph:
    steps = ["Relu", "Sigmoid", "Neg", "Softmax"]
    body = " ".join(f"t{i + 1} = {steps[i % 4]}(t{i})" for i in range(length))
    return read(graph(f"g (float[2,8] t0) => (float[2,8] t{length}) {{ {body} }}"))


@pytest.mark.measure
def test_time_grows_with_the_graph_and_no_faster() -> None:
    seconds = {}
    for length in (500, 4000):
        given = chain(length)
        best = []
        for _ in range(5):
            start = time.perf_counter()
            detect(given, default_rules())
            best.append(time.perf_counter() - start)
        seconds[length] = min(best)
    assert seconds[4000] < 3 * (4000 / 500) * seconds[500]


def channels_last_network() -> onnx.ModelProto:
    """What converters from channels-last frameworks write: a transpose before and behind every convolution."""
    return graph(
        """g (float[1,16,16,3] x) => (float[N,C] y)
        <float[16,3,3,3] w, float[16,1,3,3] d, float[24,16,1,1] p, float[16] s, float[24] u,
         int64[8] n = {0,0,0,0,0,1,1,0}, float[24,10] k, float[10] l, float zero = {0}, float six = {6}> {
        a = Transpose<perm=[0,3,1,2]>(x)
        b = Conv<auto_pad="SAME_UPPER", kernel_shape=[3,3]>(a, w)
        c = Transpose<perm=[0,2,3,1]>(b)
        e = Mul(c, s)
        f = Add(e, s)
        h = Clip(f, zero, six)
        q = Pad(h, n)
        i = Transpose<perm=[0,3,1,2]>(q)
        j = Conv<group=16, strides=[2,2]>(i, d)
        m = Transpose<perm=[0,2,3,1]>(j)
        o = Sigmoid(m)
        r = Mul(m, o)
        t = Transpose<perm=[0,3,1,2]>(r)
        v = Conv(t, p)
        z = Transpose<perm=[0,2,3,1]>(v)
        aa = Add(z, u)
        bb = ReduceMean<axes=[1,2], keepdims=0>(aa)
        cc = MatMul(bb, k)
        dd = Add(cc, l)
        y = Softmax(dd)
    }""",
        opset=13,
    )


def test_channels_last_networks_lose_their_transposes(tmp_path: Path) -> None:
    model = channels_last_network()
    assert detect_as_executed(model) == executed(model, tmp_path)
    kernels = detect(read(model), default_rules()).kernels
    assert [kernel.name for kernel in kernels if kernel.op_type == "Transpose"] == ["Transpose_0"]  # of the image
