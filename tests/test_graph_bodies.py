"""If, Loop, Scan and sequences: ONNX Runtime's own run says which shapes come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from latpred.errors import ModelError, ShapeError
from latpred.graph import Graph, read, walk

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def run_shapes(model: onnx.ModelProto, **feeds: Any) -> list[tuple[int, ...]]:
    """Output shapes of a run; inputs that are not fed are random floats."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    inputs = {i.name: feeds.get(i.name, random.random(list(i.shape), np.float32)) for i in session.get_inputs()}
    return [value.shape for value in session.run(None, inputs)]


def output_shapes(graph: Graph) -> list[tuple[int, ...]]:
    return [graph.tensors[name].shape for name in graph.outputs]


LOOP = (
    HEAD
    + """
net (float[3,4] x, float[2,4] start) => (float[m,4] last, float[a,b,c] all)
<int64 trips = {5}, bool go = {1}, float limit = {3}>
{
  last, all = Loop (trips, go, start) <
    body = once (int64 i, bool c, float[m,4] h) => (bool c2, float[m,4] h2, float[r,s] out)
      { c2 = Identity (c)  BODY }>
}"""
)


class TestLoop:
    def test_state_of_one_shape(self) -> None:
        model = parser.parse_model(
            LOOP.replace("BODY", "h2 = Relu (h) out = MatMul (h, xt)").replace(
                "last, all =", "xt = Transpose (x) last, all ="
            )
        )
        graph = read(model)
        assert output_shapes(graph) == run_shapes(model) == [(2, 4), (5, 2, 3)]
        loop = graph.ops[-1]
        assert loop.repeat == 5
        assert [op.op_type for op in loop.bodies[0].ops] == ["Identity", "Relu", "MatMul"]
        assert loop.bodies[0].tensors["xt"].shape == (4, 3)  # from the graph around it

    def test_state_that_grows(self) -> None:
        body = "h2 = Concat <axis = 0> (h, x) out = ReduceSum <keepdims = 0> (h)"
        model = parser.parse_model(
            LOOP.replace("BODY", body)
            .replace("float[a,b,c] all", "float[a] all")
            .replace("float[r,s] out", "float out")
        )
        graph = read(model)
        assert output_shapes(graph) == run_shapes(model) == [(17, 4), (5,)]  # 2 + 5 * 3
        assert graph.ops[0].bodies[0].tensors["h"].shape == (8, 4)  # the third of five: 2 + 2 * 3
        assert any("grow" in notice for notice in graph.notices)

    @pytest.mark.parametrize(
        ("trips", "condition", "repeat", "said"),
        [
            ("7", "c2 = Identity (c)", 7, None),
            ("9223372036854775807", "c2 = Identity (c)", None, "trip count is not known"),
            ("7", "z = Constant <value = bool {0}> () c2 = Identity (z)", 1, None),
            ("7", "s = ReduceMax <keepdims = 0> (h) c2 = Less (s, limit)", 7, "stop early"),
        ],
    )
    def test_trip_counts(self, trips: str, condition: str, repeat: int | None, said: str | None) -> None:
        text = LOOP.replace("c2 = Identity (c)", condition).replace("{5}", f"{{{trips}}}")
        graph = read(parser.parse_model(text.replace("BODY", "h2 = Relu (h) out = Tanh (h)")))
        assert graph.ops[-1].repeat == repeat
        assert (said is None and not graph.notices) or any(said in notice for notice in graph.notices)  # type: ignore

    def test_sequence_built_in_a_loop(self) -> None:
        model = parser.parse_model(
            HEAD
            + """
        net (float[3,4] x) => (float[a,b] y)
        <int64 trips = {6}, bool go = {1}>
        {
          none = SequenceEmpty ()
          parts = Loop (trips, go, none) <
            body = once (int64 i, bool c, seq(float[3,4]) s) => (bool c2, seq(float[3,4]) s2)
              { c2 = Identity (c)  s2 = SequenceInsert (s, x) }>
          y = ConcatFromSequence <axis = 1> (parts)
        }"""
        )
        assert output_shapes(read(model)) == run_shapes(model) == [(3, 24)]  # 6 * 4 columns


IF = (
    HEAD
    + """
net (float[2,6] x, bool flag) => (float y)
{
  CONDITION
  y = If (cond) <
    then_branch = yes () => (float a) { h = Relu (x)  a = Transpose (h) },
    else_branch = no () => (float a) { h = Tanh (x)  a = Identity (h) }>
}"""
)


class TestIf:
    def test_constant_condition_leaves_one_branch(self) -> None:
        condition = """
          s = Shape (x)  i = Constant <value_ints = [1]> ()  d = Gather (s, i)  k = Constant <value_ints = [6]> ()
          e = Equal (d, k)  q = Constant <value_ints = [0]> ()  cond = Squeeze (e, q)"""
        model = parser.parse_model(IF.replace("CONDITION", condition).replace(", bool flag", ""))
        graph = read(model)
        assert output_shapes(graph) == run_shapes(model) == [(6, 2)]
        assert [op.op_type for op in graph.ops][-2:] == ["Relu", "Transpose"]
        assert not any(op.bodies for op in graph.ops)

    def test_two_constant_ifs_do_not_share_names(self) -> None:
        text = (
            HEAD
            + """
        net (float[2,6] x) => (float y)
        <bool cond = {1}>
        {
          z = If (cond) <then_branch = a () => (float o) { h = Relu (x)  o = Transpose (h) },
                         else_branch = b () => (float o) { o = Identity (x) }>
          y = If (cond) <then_branch = c () => (float o) { h = MatMul (x, z)  o = Tanh (h) },
                         else_branch = d () => (float o) { o = Identity (z) }>
        }"""
        )
        model = parser.parse_model(text)
        graph = read(model)
        assert output_shapes(graph) == run_shapes(model) == [(2, 2)]
        made = [name for op in graph.ops for name in op.outputs]
        assert len(made) == len(set(made))

    def test_branch_that_hands_an_outer_value_through(self) -> None:
        model = parser.parse_model(
            HEAD
            + """
        net (float[2,6] x) => (float y)
        <bool cond = {0}>
        { h = Relu (x)
          y = If (cond) <
            then_branch = a () => (float o) { o = Transpose (h) },
            else_branch = b () => (float h) { }>
        }"""
        )
        assert output_shapes(read(model)) == [(2, 6)]  # the runtime refuses it, exporters wrote it

    def test_live_condition_keeps_both_branches(self) -> None:
        text = IF.replace("CONDITION", "cond = Identity (flag)").replace("Transpose (h)", "Exp (h)")
        model = parser.parse_model(text)
        graph = read(model)
        assert output_shapes(graph) == run_shapes(model, flag=np.array(True)) == [(2, 6)]
        branches = [[op.op_type for op in body.ops] for body in graph.ops[-1].bodies]
        assert branches == [["Relu", "Exp"], ["Tanh", "Identity"]]
        assert len(list(walk(graph))) == 6  # Identity, If, and two ops a branch
        assert graph.notices == ()

    def test_branches_of_different_shapes_are_said(self) -> None:
        graph = read(parser.parse_model(IF.replace("CONDITION", "cond = Identity (flag)")))
        assert any("different shapes" in notice for notice in graph.notices)

    def test_unknown_shapes_inside_are_named(self) -> None:
        text = IF.replace("CONDITION", "cond = Identity (flag)").replace("Relu (x)", "Mystery (x)")
        with pytest.raises(ShapeError, match="Mystery"):
            read(parser.parse_model(text))


def test_nodes_that_do_not_fit_their_bodies_are_named() -> None:
    text = IF.replace("CONDITION", "cond = Identity (flag)").replace("else_branch", "other_branch")
    with pytest.raises(ModelError, match=r"If .* does not fit its bodies"):
        read(parser.parse_model(text))


class TestScan:
    @pytest.mark.parametrize(
        ("axes", "shape"), [("", [(4,), (5, 4)]), (", scan_input_axes = [1], scan_output_axes = [-1]", [(5,), (5, 4)])]
    )
    def test_running_sum(self, axes: str, shape: list[tuple[int, ...]]) -> None:
        width = shape[0][0]
        model = parser.parse_model(
            HEAD
            + f"""
        net (float[5,4] x) => (float[a] last, float[b,c] all)
        <float[{width}] zero = {{{", ".join(["0"] * width)}}}>
        {{
          last, all = Scan <num_scan_inputs = 1, body = once (float[k] s, float[k] v) => (float[k] s2, float[k] o)
            {{ s2 = Add (s, v)  o = Relu (s2) }}{axes}> (zero, x)
        }}"""
        )
        graph = read(model)
        assert output_shapes(graph) == run_shapes(model) == shape
        assert graph.ops[0].repeat == (4 if axes else 5)


class TestSequences:
    def test_split_and_take(self) -> None:
        model = parser.parse_model(
            HEAD
            + """
        net (float[2,10] x) => (float[a,b] y, float[c,d] z, int64 n)
        <int64 size = {4}, int64 third = {2}, int64 first = {0}>
        {
          parts = SplitToSequence <axis = 1> (x, size)
          y = SequenceAt (parts, third)
          fewer = SequenceErase (parts, first)
          z = ConcatFromSequence <axis = 1> (fewer)
          n = SequenceLength (parts)
        }"""
        )
        graph = read(model)
        assert output_shapes(graph) == run_shapes(model) == [(2, 2), (2, 6), ()]  # parts of 4, 4 and 2
        assert graph.tensors["n"].value == 3
