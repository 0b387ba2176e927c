"""Saliency maps against torch's autograd, the closed form written out, and what must not happen."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from grad_cam_networks import CASES, Drawn, image, mobilenet, model, plain, residual, vision_transformer
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from surgery_oracle import NETWORKS, info, model_of, run, stored

from latpred.errors import InputError, ModelError, SurgeryError
from latpred.hooks.channel_weights import CentralDifferences, ForwardTangents, linear_weights
from latpred.hooks.resampling import bilinear, min_max
from latpred.hooks.saliency import GradCam, saliency, salient_patches
from latpred.surgery.patches import origins
from latpred.surgery.tails import tail_at
from latpred.surgery.tidy import tidied
from latpred.surgery.wiring import wired

VIT = "vision transformer, last attention"
RECORDED = np.load(Path(__file__).parent / "recorded" / "grad_cam.npz")
node = helper.make_node


def pooled(matrix: object, shape: tuple[int, ...] = (1, 3, 4, 5), opset: int = 17) -> onnx.ModelProto:
    """Average pooling and a linear map (channels, classes) behind a ReLU."""
    weight = stored("w", matrix)
    nodes = [
        node("Relu", ["x"], ["a"], "act"), node("GlobalAveragePool", ["a"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"], "flat"), node("Gemm", ["f", "w"], ["y"], "head"),
    ]  # fmt: skip
    return model_of(nodes, [info("x", shape)], [info("y", [shape[0], weight.dims[1]])], [weight], opset)


def largest_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", sorted(CASES))
def test_weights_are_those_of_autograd_in_double_precision(name: str) -> None:
    case = CASES[name]
    network = case.network()
    shape = tuple(dim.dim_value for dim in network.graph.input[0].type.tensor_type.shape.dim)
    cam = GradCam(network, None if case.chosen else case.layer)
    found = cam.run({cam.image.name: image(shape)})
    assert found.layer == case.layer
    assert cam.layer.extra_tokens == case.extra_tokens
    np.testing.assert_array_equal(found.classes, RECORDED[f"{name}/class"])
    assert largest_difference(found.scores, RECORDED[f"{name}/score"]) < 1e-5
    assert found.error is None
    assert largest_difference(found.weights, RECORDED[f"{name}/alpha"]) < 1e-4
    assert largest_difference(found.evidence, RECORDED[f"{name}/evidence"]) < 1e-4
    assert largest_difference(bilinear(found.evidence, 16, 16), RECORDED[f"{name}/16"]) < 1e-4


def test_methods_are_the_simplest_that_serve() -> None:
    found = {name: GradCam(case.network(), case.layer).method for name, case in CASES.items() if "mobile" not in name}
    assert set(found.values()) == {"forward tangents"}
    assert GradCam(mobilenet()).method == "closed form"


def test_closed_form_is_the_arithmetic_of_the_paper() -> None:
    matrix = np.array([[2.0, -1], [0, 3], [-4, 5]])
    x = image((1, 3, 4, 5))
    found = saliency(pooled(matrix), {"x": x}, class_index=1)
    alpha = matrix[:, 1] / 20
    np.testing.assert_allclose(found.weights, alpha[None], rtol=1e-7)
    expected = np.zeros((4, 5))
    for i in range(4):
        for j in range(5):
            expected[i, j] = max(0, sum(alpha[k] * max(0, x[0, k, i, j]) for k in range(3)))
    np.testing.assert_allclose(found.evidence[0], expected, rtol=1e-6)
    np.testing.assert_allclose(found.map[0], (expected - expected.min()) / np.ptp(expected), atol=1e-6)
    assert found.method == "closed form"
    assert found.map.shape == x.shape[:1] + x.shape[2:]


HEADS = {
    "gemm": ([node("Gemm", ["f", "w", "b"], ["y"], alpha=0.5)], {"w": (3, 4), "b": (4,)}),
    "turned": ([node("Gemm", ["f", "w"], ["y"], transB=1)], {"w": (4, 3)}),
    "product and bias": ([node("MatMul", ["f", "w"], ["m"]), node("Add", ["b", "m"], ["y"])], {"w": (3, 4), "b": (4,)}),
    "taken from": ([node("MatMul", ["f", "w"], ["m"]), node("Sub", ["b", "m"], ["y"])], {"w": (3, 4), "b": (4,)}),
    "two": ([node("Gemm", ["f", "w"], ["h"]), node("Gemm", ["h", "v"], ["y"])], {"w": (3, 5), "v": (5, 4)}),
    "none": ([node("Unsqueeze", ["f", "axis"], ["u"]), node("Squeeze", ["u", "axis"], ["y"])], {}),
}


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("pool", ["global", "window", "mean", "mean of opset 18", "convolved"])
def test_closed_form_agrees_with_tangents_and_differences(head: str, pool: str) -> None:
    w = Drawn(3)
    axes, behind = w.constant("axes", [2, 3], np.int64), w.constant("axis", [1], np.int64)
    assert behind
    pools = {
        "global": [node("GlobalAveragePool", ["a"], ["p"])],
        "window": [node("AveragePool", ["a"], ["p"], kernel_shape=[4, 4])],
        "mean": [node("ReduceMean", ["a"], ["p"], axes=[2, 3])],
        "mean of opset 18": [node("ReduceMean", ["a", axes], ["p"])],
        "convolved": [node("GlobalAveragePool", ["a"], ["q"]), node("Conv", ["q", w("k", 3, 3, 1, 1)], ["p"])],
    }
    nodes, weights = HEADS[head]
    for name, shape in weights.items():
        w(name, *shape)
    whole = [node("Tanh", ["x"], ["a"]), *pools[pool], node("Flatten", ["p"], ["f"]), *nodes]
    classes = 3 if head == "none" else 4
    network = model(whole, w, (2, 3, 4, 4), {"y": (2, classes)}, 18 if "18" in pool else 17)
    cam = GradCam(network, "a")
    assert cam.method == "closed form"
    tail = tail_at(wired(tidied(network)), "a", "y")
    x = image((2, 3, 4, 4))
    tensors, chosen = {"a": np.tanh(x)}, np.array([1, 2])
    expected = cam.run({"x": x}, [1, 2]).weights
    exact, _ = ForwardTangents(tail, cam.layer).weights(tensors, chosen)
    near, error = CentralDifferences(tail, cam.layer).weights(tensors, chosen)
    assert largest_difference(exact, expected) < 1e-5
    assert error is not None
    assert error < 1e-3
    assert largest_difference(near, expected) < 1e-3


def test_other_tails_have_no_closed_form() -> None:
    for name, case in CASES.items():
        cam = GradCam(case.network(), case.layer)
        tail = tail_at(wired(tidied(case.network())), case.layer, cam.score)
        assert (linear_weights(tail, cam.layer) is not None) == (name == "mobilenet, last map")


@pytest.mark.parametrize("name", ["plain, last map", "plain, first map", "residual, inside the branch", VIT])
def test_differences_come_near_and_say_how_near(name: str) -> None:
    case = CASES[name]
    network = case.network()
    cam = GradCam(network, case.layer)
    wiring = wired(tidied(network))
    shape = tuple(dim.dim_value for dim in network.graph.input[0].type.tensor_type.shape.dim)
    tensors = {cam.image.name: image(shape)}
    for one in cam.tensors:
        if one in wiring.makers:
            reached = onnx.ModelProto()
            reached.CopyFrom(wiring.model)
            reached.graph.output.append(helper.make_tensor_value_info(one, TensorProto.FLOAT, wiring.spec(one).shape))
            if one not in wiring.outputs:
                tensors[one] = run(reached, tensors)[one]
    tail = tail_at(wiring, case.layer, cam.score)
    near, error = CentralDifferences(tail, cam.layer).weights(tensors, RECORDED[f"{name}/class"])
    actual = largest_difference(near, RECORDED[f"{name}/alpha"])
    assert error is not None
    assert actual < 2e-3
    assert actual < 3 * error


def test_an_op_without_a_rule_falls_back_to_differences_and_says_so() -> None:
    w = Drawn(5)
    nodes = [
        node("Relu", ["x"], ["a"], "act"), node("LRN", ["a"], ["n"], "norm", size=3, alpha=0.5),
        node("GlobalAveragePool", ["n"], ["p"], "pool"), node("Flatten", ["p"], ["f"], "flat"),
        node("Gemm", ["f", w("w", 6, 4)], ["y"], "head"),
    ]  # fmt: skip
    network = model(nodes, w, (1, 6, 5, 5), {"y": (1, 4)})
    found = saliency(network, {"x": image((1, 6, 5, 5))}, 2, layer="a")
    assert found.method == "central differences"
    assert "LRN 'norm'" in found.notices[0]
    assert found.error is not None
    a, h = np.maximum(image((1, 6, 5, 5)), 0).astype(np.float64), 1e-6
    head = onnx.numpy_helper.to_array(w.tensors[0])[:, 2]
    expected = []
    for k in range(6):
        step = np.zeros_like(a)
        step[:, k] = h
        ahead, behind = (normalised(a + sign * step).mean((2, 3))[0] @ head for sign in (1, -1))
        expected.append((ahead - behind) / (2 * h) / 25)
    assert largest_difference(found.weights[0], np.array(expected)) < 1e-3
    assert found.error < 1e-2


def test_a_quantized_tail_is_told_by_steps_that_show_in_it() -> None:
    w = Drawn(6)
    nodes = [
        node("Tanh", ["x"], ["a"], "act"),
        node("QuantizeLinear", ["a", w.constant("scale", 0.05), w.constant("zero", 128, np.uint8)], ["q"], "quantize"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantize"),
        node("GlobalAveragePool", ["d"], ["p"], "pool"), node("Flatten", ["p"], ["f"], "flat"),
        node("Gemm", ["f", w("w", 6, 4)], ["y"], "head"),
    ]  # fmt: skip
    found = saliency(model(nodes, w, (1, 6, 9, 9), {"y": (1, 4)}), {"x": image((1, 6, 9, 9))}, 2, layer="a")
    assert found.method == "central differences"
    expected = onnx.numpy_helper.to_array(w.tensors[2])[:, 2] / 81
    assert found.error is not None
    assert 0 < largest_difference(found.weights[0], expected) < max(2 * found.error, 0.05) < 0.3


def normalised(a: np.ndarray) -> np.ndarray:
    """ONNX's LRN: over three channels, alpha 0.5, beta 0.75, bias 1."""
    around = np.pad(a**2, ((0, 0), (1, 1), (0, 0), (0, 0)))
    return a / (1 + 0.5 / 3 * (around[:, :-2] + around[:, 1:-1] + around[:, 2:])) ** 0.75


def test_all_negative_evidence_is_a_map_of_zeros() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = saliency(pooled(-np.ones((3, 2))), {"x": np.abs(image((1, 3, 4, 5)))})
    assert not found.map.any()
    assert not found.evidence.any()
    assert (found.weights < 0).all()


def test_even_evidence_is_a_map_of_ones() -> None:
    found = saliency(pooled(np.ones((3, 2))), {"x": np.full((1, 3, 4, 5), 0.3, np.float32)})
    assert (found.map == 1).all()


@pytest.mark.parametrize("which", ["w2", "w3", "w4"])
def test_randomised_weights_change_the_map(which: str) -> None:
    """Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, section 4."""
    network, feeds = plain(batch=1), {"x": image((1, 3, 16, 16))}
    before = saliency(network, feeds)
    rng = np.random.default_rng(11)
    for tensor in network.graph.initializer:
        if tensor.name == which:
            values = onnx.numpy_helper.to_array(tensor)
            drawn = (rng.standard_normal(values.shape) * values.std()).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(drawn, which))
    after = saliency(network, feeds, before.classes)
    assert before.map.max() == 1
    assert np.abs(before.map - after.map).max() > 0.2
    assert largest_difference(after.weights, before.weights) > 0.2
    assert not after.map.any() or np.corrcoef(before.map.ravel(), after.map.ravel())[0, 1] < 0.9


def test_a_batch_is_its_images_one_by_one() -> None:
    x = image((2, 3, 16, 16))
    both = saliency(plain(batch=2), {"x": x}, [4, 1])
    for i, k in enumerate([4, 1]):
        one = saliency(plain(batch=1), {"x": x[i : i + 1]}, k)
        np.testing.assert_allclose(both.map[i], one.map[0], atol=1e-5)
        np.testing.assert_allclose(both.weights[i], one.weights[0], atol=1e-6)
        assert both.scores[i] == pytest.approx(one.scores[0], rel=1e-5)
    assert both.classes.tolist() == [4, 1]


def test_what_ran_already_need_not_run_again() -> None:
    cam = GradCam(residual(), "branch/relu")
    assert cam.layer.tensor == "inner"
    assert cam.tensors == ("inner", "stem", "y")
    x = image((1, 3, 16, 16))
    whole = residual()
    for name in ("inner", "stem"):
        whole.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 8, 8]))
    np.testing.assert_allclose(cam.of(run(whole, {"x": x}), 2).map, cam.run({"x": x}, 2).map, atol=1e-5)


def test_the_score_is_taken_before_softmax_whatever_follows() -> None:
    for behind in ("Softmax", "LogSoftmax", "Sigmoid"):
        network = pooled(np.eye(3))
        del network.graph.output[:]
        network.graph.node.append(node(behind, ["y"], ["s"], "squash"))
        network.graph.node.append(node("Unsqueeze", ["s", "axis"], ["u"], "unsqueeze"))
        network.graph.initializer.append(stored("axis", [2], np.int64))
        network.graph.output.append(info("u", [1, 3, 1]))
        assert GradCam(network).score == "y"


def test_a_softmax_over_the_only_long_axis_is_before_the_scores() -> None:
    network = pooled(np.eye(3))
    del network.graph.output[:]
    network.graph.initializer.append(stored("across", [1, 1, 1, 3], np.int64))
    network.graph.initializer.append(stored("row", [1, 3], np.int64))
    network.graph.node.append(node("Reshape", ["y", "across"], ["wide"], "across"))
    network.graph.node.append(node("Softmax", ["wide"], ["s"], "squash", axis=-1))
    network.graph.node.append(node("Reshape", ["s", "row"], ["u"], "row"))
    network.graph.output.append(info("u", [1, 3]))
    cam = GradCam(network)
    assert cam.score == "wide"
    x = image((1, 3, 4, 5))
    np.testing.assert_allclose(cam.run({"x": x}, 2).weights, GradCam(pooled(np.eye(3))).run({"x": x}, 2).weights)


@pytest.mark.parametrize("opset", [10, 17])
def test_maps_that_another_framework_flattens_are_told_by_their_transpose(opset: int) -> None:
    """Convolution, ReLU, transposed to channels last, flattened, a matrix: weights by hand are the matrix's means."""
    rng = np.random.default_rng(4)
    matrix = rng.standard_normal((8 * 8 * 4, 5)).astype(np.float32)
    weights = [
        stored("k", rng.standard_normal((4, 3, 3, 3))), stored("w", matrix), stored("flat", [1, 256], np.int64),
        stored("bias", np.zeros(5)),
    ]  # fmt: skip
    nodes = [
        node("Conv", ["x", "k"], ["c"], "conv", pads=[1, 1, 1, 1]), node("Relu", ["c"], ["r"], "act"),
        node("Transpose", ["r"], ["t"], "last", perm=[0, 2, 3, 1]), node("Reshape", ["t", "flat"], ["f"], "flatten"),
        node("Gemm", ["f", "w", "bias"], ["y"], "head"),
    ]  # fmt: skip
    network = model_of(nodes, [info("x", (1, 3, 8, 8))], [info("y", [1, 5])], weights, opset)
    found = GradCam(network).run({"x": image((1, 3, 8, 8))}, 2)
    assert found.method != "central differences"
    np.testing.assert_allclose(found.weights[0], matrix.reshape(8, 8, 4, 5)[..., 2].mean(axis=(0, 1)), rtol=1e-4)


@pytest.mark.parametrize("shown", [1, 2, 5])
def test_steps_that_show_nothing_do_not_count(shown: int) -> None:
    """As of a quantized tail: two zeros agree best of all, and say nothing."""
    true = np.array([[0.5, -2.0]])

    class Stepped(CentralDifferences):
        def __init__(self) -> None:
            self.found = SimpleNamespace(tensor="a", arranged=lambda values: values, positions=4)  # type: ignore[assignment]
            self.steps: list[float] = []

        def _slopes(self, tensors: object, step: float, classes: object) -> np.ndarray:
            self.steps.append(step)
            return true * (1 + step**2) if len(self.steps) <= shown else 0.0 * true

    weights, error = Stepped().weights({"a": np.ones((1, 2, 2, 2))}, np.array([0]))
    np.testing.assert_allclose(weights, true / 4, rtol=0.1)
    assert error is not None
    assert error > 0.5 or shown > 1


def test_a_collapsed_map_is_passed_over_with_a_message() -> None:
    cam = GradCam(mobilenet())
    assert cam.layer.shape == (1, 1280, 7, 7)
    (said,) = cam.notices
    assert "GlobalAveragePool" in said
    assert "collapsed" in said
    assert GradCam(plain()).notices == ()
    (said,) = GradCam(vision_transformer()).notices
    assert "extra tokens" in said


def channels_last(behind: list[onnx.NodeProto], w: Drawn) -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", w("w1", 6, 3, 2, 2)], ["c"], "patches", strides=[2, 2]),
        node("Transpose", ["c"], ["t"], "last", perm=[0, 2, 3, 1]),
        node("LayerNormalization", ["t", w("s", 6, around=1)], ["n"], "norm"),
        *behind,
        node("Gemm", ["p", w("w2", 6, 4)], ["y"], "head"),
    ]
    return model(nodes, w, (1, 3, 8, 12), {"y": (1, 4)})


def test_channels_may_be_last_and_tokens_in_the_image_s_aspect() -> None:
    w = Drawn(2)
    mean = [node("ReduceMean", ["n"], ["p"], "pool", axes=[1, 2], keepdims=0)]
    tokens = [
        node("Reshape", ["n", w.constant("shape", [1, 24, 6], np.int64)], ["k"], "tokens"),
        node("ReduceMean", ["k"], ["p"], "pool", axes=[1], keepdims=0),
    ]
    x = image((1, 3, 8, 12))
    maps = GradCam(channels_last(mean, Drawn(2)))
    assert (maps.layer.tensor, maps.layer.channel_axis, maps.layer.grid) == ("n", 3, (4, 6))
    w = Drawn(2)
    w.constant("shape", [1, 24, 6], np.int64)
    grid = GradCam(channels_last(tokens, w))
    assert (grid.layer.tensor, grid.layer.channel_axis, grid.layer.grid) == ("k", 2, (4, 6))
    assert maps.method == grid.method == "closed form"
    first, second = maps.run({"x": x}, 1), grid.run({"x": x}, 1)
    np.testing.assert_allclose(first.map, second.map, atol=1e-6)
    earlier = GradCam(channels_last(mean, Drawn(2)), "t").run({"x": x}, 1)
    assert earlier.method == "forward tangents"


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    network = plain()
    path = tmp_path / "plain.onnx"
    onnx.save(network, path)
    before = path.read_bytes(), network.SerializeToString(deterministic=True)
    GradCam(path).run({"x": image((2, 3, 16, 16))})
    GradCam(network).run({"x": image((2, 3, 16, 16))})
    assert (path.read_bytes(), network.SerializeToString(deterministic=True)) == before


def two_heads() -> onnx.ModelProto:
    network = pooled(np.eye(3))
    network.graph.node.append(node("Neg", ["y"], ["z"], "other"))
    network.graph.output.append(info("z", [1, 3]))
    return network


X = {"x": np.ones((1, 3, 4, 5), np.float32)}
WRONG = {
    "unknown layer": (lambda: saliency(pooled(np.eye(3)), X, layer="Act"), InputError, "'act' would do"),
    "a layer of one position": (lambda: saliency(pooled(np.eye(3)), X, layer="p"), SurgeryError, "before it is pooled"),
    "a layer that is no map": (lambda: saliency(pooled(np.eye(3)), X, layer="f"), SurgeryError, "feature map"),
    "no such class": (lambda: saliency(pooled(np.eye(3)), X, 3), InputError, "from 0 to 2"),
    "a negative class": (lambda: saliency(pooled(np.eye(3)), X, -1), InputError, "from 0 to 2"),
    "classes of other images": (lambda: saliency(pooled(np.eye(3)), X, [0, 1]), InputError, "each of 1 images"),
    "a class by name": (lambda: saliency(pooled(np.eye(3)), X, "cat"), InputError, "cat"),
    "no such score": (lambda: saliency(pooled(np.eye(3)), X, score="logits"), InputError, "logits"),
    "a score that is a map": (lambda: saliency(pooled(np.eye(3)), X, score="a"), SurgeryError, "class scores"),
    "two scores": (lambda: saliency(two_heads(), X), InputError, "'y', 'z'"),
    "one class": (lambda: saliency(pooled(np.ones((3, 1))), X), SurgeryError, "two classes or more"),
    "no input": (lambda: GradCam(pooled(np.eye(3))).run({}), InputError, "nothing came"),
    "another shape": (
        lambda: GradCam(pooled(np.eye(3))).run({"x": np.ones((1, 3, 5, 4))}), InputError, r"float64\[1, 3, 5, 4\] came",
    ),
    "not finite": (lambda: saliency(pooled(np.eye(3)), {"x": X["x"] * np.inf}), InputError, "finite"),
    "no weights": (lambda: GradCam(NETWORKS / "mobilenet_v2.onnx"), ModelError, "with its weights"),
    "a map of pixels as output": (lambda: GradCam(NETWORKS / "unet_c32r96.onnx"), SurgeryError, "class scores"),
    "no image": (lambda: GradCam(NETWORKS / "gpt2_s64.onnx"), SurgeryError, "models of images"),
    "no map at all": (
        lambda: GradCam(model_of([node("Flatten", ["x"], ["f"], "f"), node("Gemm", ["f", "w"], ["y"], "g")],
                                 [info("x", [1, 3, 4, 5])], [info("y", [1, 2])], [stored("w", np.ones((60, 2)))])),
        SurgeryError, "name a tensor as `layer`",
    ),
    "no model": (lambda: GradCam(Path(__file__)), ModelError, "not an ONNX file"),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(WRONG))
def test_what_is_wrong_is_one_typed_error(what: str) -> None:
    call, error, said = WRONG[what]
    with pytest.raises(error, match=said) as raised:
        call()
    assert "\n" not in str(raised.value)


@settings(max_examples=40, deadline=None)
@given(before=st.tuples(st.integers(1, 9), st.integers(1, 9)), after=st.tuples(st.integers(1, 20), st.integers(1, 20)),
       seed=st.integers(0, 99))  # fmt: skip
def test_resampling_is_the_runtime_s(before: tuple[int, int], after: tuple[int, int], seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((1, 1, *before)).astype(np.float32)
    sizes = stored("sizes", [1, 1, *after], np.int64)
    nodes = [node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel")]
    expected = run(model_of(nodes, [info("x", [1, 1, *before])], [info("y", [1, 1, *after])], [sizes]), {"x": x})["y"]
    np.testing.assert_allclose(bilinear(x, *after), expected, atol=1e-5)


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=3, max_size=3), min_size=1, max_size=4))
def test_scaled_maps_lie_between_0_and_1(values: list[list[float]]) -> None:
    with np.errstate(all="raise", under="ignore"):
        scaled = min_max(np.array(values)[None])[0]
    assert (scaled >= 0).all()
    assert (scaled <= 1).all()
    if np.ptp(values) > 1e-3 * np.max(values):
        assert scaled.min() == 0
        assert scaled.max() == 1


@given(st.integers(1, 4), st.floats(0, 1), st.integers(0, 99))
def test_salient_patches_hold_more_than_all_others(granularity: int, rate: float, seed: int) -> None:
    evidence = np.random.default_rng(seed).random((7, 6)) ** 4
    chosen = salient_patches(evidence, 7, 6, granularity, rate)
    firsts = origins(7, 6, granularity)
    sums = [evidence[r : r + granularity, c : c + granularity].sum() for r, c in firsts]
    assert len(chosen) == int(np.ceil(rate * len(firsts) - 1e-9))
    others = set(range(len(firsts))) - set(chosen.tolist())
    assert min((sums[i] for i in chosen), default=np.inf) >= max((sums[i] for i in others), default=0) - 1e-9
