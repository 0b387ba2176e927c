"""Tangents against central differences of ONNX's own reference operators in double precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from random_graphs import network as random_network
from surgery_oracle import close, drawn, feeds_of, info, model_of, run, stored

from latpred.errors import SurgeryError
from latpred.surgery.cuts import cuts
from latpred.surgery.slopes import SLOPES
from latpred.surgery.tails import tail_at, tail_model, trunk_model
from latpred.surgery.tangent_rules import RULES
from latpred.surgery.tangents import DIRECTIONS, TANGENTS, tangent_model
from latpred.surgery.tidy import tidied
from latpred.surgery.wiring import wired

STEP = 1e-6
COUNT = 3
node = helper.make_node
ints = np.int64


class Erf(OpRun):
    """ONNX's own rounds to single precision."""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        from scipy.special import erf

        return (erf(x),)


class Gelu(OpRun):
    """ONNX's own calls the same single-precision function."""

    def _run(self, x: np.ndarray, approximate: str = "none") -> tuple[np.ndarray]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + Erf._run(self, x / np.sqrt(2))[0]),)


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with all that is float32 as float64."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for place, tensor in enumerate(copy.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            copy.graph.initializer[place].CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return copy


def differences(model: onnx.ModelProto, feeds: dict[str, np.ndarray], moved: str, along: np.ndarray) -> np.ndarray:
    reference = ReferenceEvaluator(in_double(model), new_ops=[Erf, Gelu])
    wide = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in feeds.items()}
    found = []
    for direction in along.astype(np.float64):
        ahead, behind = (
            reference.run(None, {**wide, moved: wide[moved] + sign * STEP * direction})[0] for sign in (1, -1)
        )
        found.append((ahead - behind) / (2 * STEP))
    return np.stack(found)


def checked(model: onnx.ModelProto, start: str, feeds: dict[str, np.ndarray], tolerance: float = 2e-5) -> None:
    wiring = wired(model)
    tail = tail_at(wiring, start, wiring.outputs[-1])
    names = [name for name in (start, *tail.held) if name in wiring.makers]
    known = dict(feeds)
    if names:
        known |= run(trunk_model(wiring, names), feeds)
    along = np.random.default_rng(1).standard_normal((COUNT, *known[start].shape)).astype(np.float32)
    expected = differences(tail_model(tail), {name: known[name] for name in (start, *tail.held)}, start, along)
    made = run(tangent_model(tail, COUNT), {**known, DIRECTIONS: along})[TANGENTS]
    assert made.shape == expected.shape
    scale = max(float(np.abs(expected).max()), 1e-3)
    np.testing.assert_allclose(made / scale, expected / scale, atol=tolerance, rtol=0)


def one_op(op_type: str, x: Sequence[int], y: Sequence[int], more: Sequence[TensorProto] = (), opset: int = 17,
           first: bool = True, **attributes: object) -> onnx.ModelProto:  # fmt: skip
    read = ["x", *(t.name for t in more)] if first else [*(t.name for t in more), "x"]
    return model_of([node(op_type, read, ["y"], "op", **attributes)], [info("x", x)], [info("y", y)], list(more), opset)


MAP = (2, 4, 5, 6)
ONE_OP = {
    "Conv": one_op("Conv", MAP, (2, 6, 3, 3), [drawn("w", 6, 2, 3, 3), drawn("b", 6)], group=2, strides=[2, 2],
                   pads=[1, 1, 1, 1]),
    "ConvTranspose": one_op("ConvTranspose", MAP, (2, 3, 7, 8), [drawn("w", 4, 3, 3, 3), drawn("b", 3)]),
    "AveragePool": one_op("AveragePool", MAP, (2, 4, 5, 6), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "GlobalAveragePool": one_op("GlobalAveragePool", MAP, (2, 4, 1, 1)),
    "MaxPool": one_op("MaxPool", MAP, (2, 4, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
    "GlobalMaxPool": one_op("GlobalMaxPool", MAP, (2, 4, 1, 1)),
    "DepthToSpace": one_op("DepthToSpace", MAP, (2, 1, 10, 12), blocksize=2),
    "SpaceToDepth": one_op("SpaceToDepth", (2, 4, 4, 6), (2, 16, 2, 3), blocksize=2),
    "BatchNormalization": one_op("BatchNormalization", MAP, MAP, [drawn("s", 4), drawn("b", 4), drawn("m", 4),
                                                                  stored("v", [0.5, 1, 2, 3])], epsilon=0.01),
    "InstanceNormalization": one_op("InstanceNormalization", MAP, MAP, [drawn("s", 4), drawn("b", 4)]),
    "LayerNormalization": one_op("LayerNormalization", (2, 3, 8), (2, 3, 8), [drawn("s", 8), drawn("b", 8)]),
    "LayerNormalization, two axes": one_op("LayerNormalization", (2, 3, 8), (2, 3, 8), [drawn("s", 3, 8)], axis=1),
    "Add": one_op("Add", (3, 1), (2, 3, 4), [drawn("c", 2, 3, 4)]),
    "Sub, first": one_op("Sub", (2, 3, 4), (2, 3, 4), [drawn("c", 4)], first=False),
    "Sub": one_op("Sub", (4,), (2, 3, 4), [drawn("c", 2, 3, 4)], first=False),
    "Mul": one_op("Mul", (3, 1), (2, 3, 4), [drawn("c", 2, 3, 4)]),
    "Div": one_op("Div", (3, 4), (2, 3, 4), [stored("c", np.full((2, 1, 4), 3))]),
    "Max": one_op("Max", (3, 4), (2, 3, 4), [drawn("c", 2, 1, 4)]),
    "Min": one_op("Min", (3, 4), (2, 3, 4), [drawn("c", 2, 1, 4)]),
    "Sum": one_op("Sum", (3, 4), (2, 3, 4), [drawn("c", 2, 1, 4), drawn("d", 4)]),
    "PRelu": one_op("PRelu", (2, 3, 4), (2, 3, 4), [drawn("c", 3, 1)]),
    "Pow": one_op("Pow", (3, 4), (3, 4), [stored("p", 3.0)]),
    "MatMul": one_op("MatMul", (2, 3, 4), (2, 3, 5), [drawn("w", 4, 5)]),
    "MatMul, second": one_op("MatMul", (4, 5), (2, 3, 5), [drawn("w", 2, 3, 4)], first=False),
    "Einsum": one_op("Einsum", (2, 3, 4), (2, 5, 3), [drawn("w", 5, 4)], equation="btc, kc -> bkt"),
    "Einsum, twice": model_of([node("Einsum", ["x", "x"], ["y"], "e", equation="bic,bjc->bij")],
                              [info("x", (2, 3, 4))], [info("y", (2, 3, 3))]),
    "Gemm": one_op("Gemm", (4, 3), (3, 5), [drawn("w", 5, 4), drawn("c", 5)], transA=1, transB=1, alpha=0.7, beta=2.0),
    "Gemm, second": one_op("Gemm", (4, 5), (3, 5), [drawn("w", 3, 4)], first=False),
    "ReduceMean": one_op("ReduceMean", MAP, (2, 5, 6), axes=[1], keepdims=0),
    "ReduceMean, 18": one_op("ReduceMean", MAP, (2, 4, 1, 1), [stored("a", [-1, 2], ints)], opset=18),
    "ReduceSum": one_op("ReduceSum", MAP, (1, 1, 1, 1)),
    "ReduceMax": one_op("ReduceMax", MAP, (2, 5, 6), axes=[-3], keepdims=0),
    "ReduceMin": one_op("ReduceMin", MAP, (2, 4, 1, 1), [stored("a", [2, 3], ints)], opset=18),
    "Softmax": one_op("Softmax", (2, 5, 3), (2, 5, 3), axis=1),
    "Softmax, 12": one_op("Softmax", (2, 5), (2, 5), opset=12),
    "LogSoftmax": one_op("LogSoftmax", (2, 5), (2, 5)),
    "Clip": one_op("Clip", MAP, MAP, [stored("a", -0.5), stored("b", 0.7)]),
    "Clip, 6": one_op("Clip", MAP, MAP, opset=10, min=-0.5, max=0.5),
    "Reshape": one_op("Reshape", MAP, (2, 12, 10), [stored("s", [0, -1, 10], ints)]),
    "Flatten": one_op("Flatten", MAP, (8, 30), axis=2),
    "Squeeze": one_op("Squeeze", (2, 1, 4), (2, 4), [stored("a", [1], ints)]),
    "Unsqueeze": one_op("Unsqueeze", (2, 4), (2, 1, 4), [stored("a", [1], ints)]),
    "Transpose": one_op("Transpose", MAP, (5, 2, 6, 4), perm=[2, 0, 3, 1]),
    "Transpose, reversed": one_op("Transpose", (2, 3, 4), (4, 3, 2)),
    "Concat": one_op("Concat", (2, 3), (2, 5), [drawn("c", 2, 2)], axis=-1, first=False),
    "Slice": one_op("Slice", MAP, (2, 4, 2, 3), [stored("s", [4, 0], ints), stored("e", [0, 3], ints),
                                                 stored("a", [2, -1], ints), stored("t", [-2, 1], ints)]),
    "Slice, all axes": one_op("Slice", (3, 4), (2, 2), [stored("s", [1, 2], ints), stored("e", [3, 4], ints)]),
    "Gather": one_op("Gather", (2, 5, 3), (2, 3), [stored("i", 1, ints)], axis=1),
    "Gather, several": one_op("Gather", (2, 5, 3), (2, 2, 2, 3), [stored("i", [[0, 4], [-1, 4]], ints)], axis=-2),
    "Expand": one_op("Expand", (3, 1), (2, 3, 4), [stored("s", [2, 3, 4], ints)]),
    "Tile": one_op("Tile", (2, 3), (4, 3), [stored("r", [2, 1], ints)]),
    "Pad": one_op("Pad", (2, 3), (2, 6), [stored("p", [0, 1, 0, 2], ints), stored("v", 5.0)]),
    "Pad, reflected": one_op("Pad", (2, 3), (2, 6), [stored("p", [0, 1, 0, 2], ints)], mode="reflect"),
    "Where": model_of([node("Greater", ["x", "c"], ["b"], "g"), node("Where", ["b", "d", "x"], ["y"], "w")],
                      [info("x", (3, 4))], [info("y", (2, 3, 4))], [drawn("c", 4), drawn("d", 2, 1, 4)]),
    "Split": model_of([node("Split", ["x", "s"], ["a", "b"], "s", axis=1), node("Mul", ["a", "b"], ["y"], "m")],
                      [info("x", (2, 6))], [info("y", (2, 3))], [stored("s", [3, 3], ints)]),
    "Split, 11": model_of([node("Split", ["x"], ["a", "b"], "s", axis=1, split=[3, 3]),
                           node("Div", ["a", "b"], ["y"], "m")], [info("x", (2, 6))], [info("y", (2, 3))], (), 11),
    "square": model_of([node("Mul", ["x", "x"], ["y"], "m")], [info("x", (2, 6))], [info("y", (2, 6))]),
    "scores": model_of([node("Transpose", ["x"], ["t"], "t", perm=[0, 2, 1]), node("MatMul", ["x", "t"], ["y"], "m")],
                       [info("x", (2, 6, 3))], [info("y", (2, 6, 6))]),
    "bias": model_of([node("Gemm", ["w", "v", "x"], ["y"], "g", beta=0.3)], [info("x", (4,))], [info("y", (2, 4))],
                     [drawn("w", 2, 3), drawn("v", 3, 4)]),
    "Gelu, tanh": one_op("Gelu", (3, 4), (3, 4), opset=20, approximate="tanh"),
    "Elu, alpha": one_op("Elu", (3, 4), (3, 4), alpha=0.4),
    "Celu, alpha": one_op("Celu", (3, 4), (3, 4), alpha=0.4),
}  # fmt: skip

POSITIVE = {"Log", "Sqrt", "Reciprocal"}
NEWER = {"Gelu": 20, "Mish": 18, "Swish": 24}
NOT_IN_REFERENCE = {"QuickGelu"}  # an op of ONNX Runtime


@pytest.mark.parametrize("name", sorted(ONE_OP))
def test_one_op(name: str) -> None:
    model = tidied(ONE_OP[name])
    checked(model, "x", feeds_of(model, 3))


@pytest.mark.parametrize("op_type", sorted(SLOPES.keys() - NOT_IN_REFERENCE))
def test_elementwise_functions(op_type: str) -> None:
    model = one_op(op_type, (3, 40), (3, 40), opset=NEWER.get(op_type, 17))
    x = 3 * feeds_of(model, 5)["x"]
    checked(model, "x", {"x": np.abs(x) + 0.2 if op_type in POSITIVE else x})


def test_quick_gelu() -> None:
    """x s(1.7 x) has the slope s(1.7 x) + 1.7 x s'(1.7 x)."""
    model = one_op("QuickGelu", (9,), (9,), alpha=1.7, domain="com.microsoft")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    x = np.linspace(-3, 3, 9, dtype=np.float32)
    share = 1 / (1 + np.exp(-1.7 * x))
    made = run(tangent_model(tail_at(wired(tidied(model)), "x", "y"), 1), {"x": x, DIRECTIONS: np.ones((1, 9), "f")})
    close(made[TANGENTS][0], share + 1.7 * x * share * (1 - share))


def test_every_rule_is_tested() -> None:
    seen = {one.op_type for model in ONE_OP.values() for one in model.graph.node}
    assert set(RULES) - set(SLOPES) - seen == {"Cast", "Identity"}  # these go, or change nothing


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_tails_of_random_networks(seed: int, data: st.DataObject) -> None:
    model = tidied(random_network(seed))
    start = data.draw(st.sampled_from([*wired(model).makers][:-1] or ["x"]))
    place = data.draw(st.sampled_from([start, cuts(model)[-2].tensor]))
    checked(model, place, feeds_of(model, seed), tolerance=2e-4)


def test_what_goes_past_is_held() -> None:
    """y = relu(x) * a + x with a = 2 x: along a, dy/da = relu(x), though x and a hang together."""
    nodes = [
        node("Relu", ["x"], ["r"], "r"), node("Mul", ["x", "two"], ["a"], "a"), node("Mul", ["r", "a"], ["p"], "p"),
        node("Add", ["p", "x"], ["y"], "y"),
    ]  # fmt: skip
    model = tidied(model_of(nodes, [info("x", [4])], [info("y", [4])], [stored("two", 2.0)]))
    tail = tail_at(wired(model), "a", "y")
    assert sorted(tail.held) == ["r", "x"]
    x = np.array([-1, 2, 3, -4], np.float32)
    feeds = {"a": 2 * x, "r": np.maximum(x, 0), "x": x, DIRECTIONS: np.ones((1, 4), np.float32)}
    close(run(tangent_model(tail, 1), feeds)[TANGENTS], np.maximum(x, 0)[None])


def test_flat_functions_have_no_slope() -> None:
    nodes = [node("Floor", ["x"], ["f"], "f"), node("Add", ["f", "x"], ["y"], "y")]
    model = tidied(model_of(nodes, [info("x", [4])], [info("y", [4])]))
    along = np.arange(8, dtype=np.float32).reshape(2, 4)
    made = run(tangent_model(tail_at(wired(model), "x", "y"), 2), {"x": along[0] + 0.5, DIRECTIONS: along})
    close(made[TANGENTS], along)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (one_op("LRN", MAP, MAP, size=3), "LRN 'op'"),
        (one_op("Floor", (4,), (4,)), "by jumps only"),
        (one_op("Clip", (), (4,), [drawn("c", 4)], first=False), "more than one moving"),
        (one_op("Pow", (4,), (4,), [stored("b", 2.0)], first=False), "more than one moving"),
        (one_op("MatMul", (4,), (3,), [drawn("w", 4, 3)]), "of a vector"),
        (one_op("Max", (4,), (4,), [drawn("a", 4), drawn("b", 4)]), "3 operands"),
        (one_op("Softmax", (2, 3, 4), (2, 3, 4), opset=12), "several axes"),
        (one_op("Einsum", (2, 3), (2, 3), equation="...i->...i"), "Einsum"),
        (model_of([node("QuantizeLinear", ["x", "s"], ["q"], "q"), node("DequantizeLinear", ["q", "s"], ["y"], "d")],
                  [info("x", (4,))], [info("y", (4,))], [stored("s", 0.1)]), "QuantizeLinear"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_has_no_rule_is_named(model: onnx.ModelProto, said: str) -> None:
    tidy = tidied(model)
    with pytest.raises(SurgeryError, match=said):
        tangent_model(tail_at(wired(tidy), "x", "y"), 2)


def test_a_tail_that_hangs_on_something_else_is_refused() -> None:
    nodes = [node("Relu", ["x"], ["a"], "a"), node("Abs", ["x"], ["y"], "y")]
    model = model_of(nodes, [info("x", [4])], [info("y", [4]), info("a", [4])])
    with pytest.raises(SurgeryError, match="has no part in it"):
        tail_at(wired(tidied(model)), "a", "y")
