"""Symbolic dims: bound by name, by input, or batch-like and open."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from latpred.errors import DimensionError
from latpred.graph import read


def tokens(*shapes: list[int | str | None] | None) -> onnx.ModelProto:
    """Inputs a, b, ... of the given shapes, each through a Relu."""
    names = "abcd"[: len(shapes)]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(names, shapes, strict=True)]
    outputs = [helper.make_empty_tensor_value_info(n + n) for n in names]
    nodes = [helper.make_node("Relu", [n], [n + n]) for n in names]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs))


def test_a_name_is_bound_everywhere() -> None:
    graph = read(tokens(["batch", "tokens"], ["tokens", "batch"]), dims={"batch": 4, "tokens": 7})
    assert (graph.tensors["aa"].shape, graph.tensors["bb"].shape) == ((4, 7), (7, 4))
    assert graph.notices == ()


def test_a_shape_binds_the_names_that_it_fills() -> None:
    graph = read(tokens(["batch", "tokens"], ["batch", 3, "tokens"]), shapes={"a": (2, 9)})
    assert graph.tensors["bb"].shape == (2, 3, 9)


def test_a_shape_goes_before_fixed_dims() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 112, 112])  # stale once x is larger
    pool = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    graph = read(helper.make_model(helper.make_graph([pool], "g", [x], [y])), shapes={"x": (8, 3, 64, 32)})
    assert graph.tensors["y"].shape == (8, 3, 32, 16)


@pytest.mark.parametrize("first", ["batch", "N", "unk__613", None, -1])
def test_an_open_first_dim_becomes_one_and_is_said(first: str | int | None) -> None:
    graph = read(tokens([first, 5]))
    assert graph.tensors["aa"].shape == (1, 5)
    assert len(graph.notices) == 1
    assert "'a'" in graph.notices[0]
    assert ("--dim" if isinstance(first, str) else "--shape a=") in graph.notices[0]


def test_a_first_dim_whose_name_stands_inside_too_is_no_batch() -> None:
    with pytest.raises(DimensionError, match="'tokens'"):
        read(tokens(["tokens"], ["batch", "tokens"]))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([1, "height", 3], ["'height'", "dim 1", "'a'", "--dim height=N", "--shape a="]),
        ([1, None, 3], ["dim 1", "'a'", "1x?x3", "--shape a="]),
    ],
)
def test_another_open_dim_is_an_error(shape: list[int | str | None], said: list[str]) -> None:
    with pytest.raises(DimensionError) as caught:
        read(tokens(shape))
    assert all(part in str(caught.value) for part in said)
    assert "\n" not in str(caught.value)


def test_all_open_dims_are_named_at_once() -> None:
    with pytest.raises(DimensionError) as caught:
        read(tokens([1, "height", "width"], ["batch", "tokens"]))
    assert all(f"--dim {name}=N" in str(caught.value) for name in ("height", "width", "tokens"))
    assert "--dim batch" not in str(caught.value)  # taken as 1


def test_sums_and_products_of_bound_dims_are_reckoned() -> None:
    model = tokens(["batch", "past + new", 3], ["2*batch", "past", 3], ["batch", "new", 3])
    graph = read(model, dims={"past": 6, "new": 2})
    assert [graph.tensors[name].shape for name in ("aa", "bb", "cc")] == [(1, 8, 3), (2, 6, 3), (1, 2, 3)]


def test_other_expressions_are_names() -> None:
    with pytest.raises(DimensionError, match="height at run time"):
        read(tokens([1, "height at run time"]))
    with pytest.raises(DimensionError, match="__import__"):
        read(tokens([1, "__import__('os').getpid()"]))
    assert read(tokens([1, "n**2"]), dims={"n**2": 9}).tensors["aa"].shape == (1, 9)


def test_an_input_without_a_rank_needs_a_shape() -> None:
    with pytest.raises(DimensionError, match="--shape a="):
        read(tokens(None))
    assert read(tokens(None), shapes={"a": (2, 3)}).tensors["aa"].shape == (2, 3)


@pytest.mark.parametrize(
    ("dims", "shapes", "said"),
    [
        ({"batchh": 1}, {}, r"no symbolic dim 'batchh'; it has: batch, tokens"),
        ({}, {"z": (1, 2)}, r"no input 'z'; it has: a, b"),
        ({}, {"a": (1, 2, 3)}, r"rank 2 \(batchxtokens\).*rank 3"),
        ({"batch": 2}, {"a": (3, 4)}, r"'batch' is bound to 2 and.*to 3"),
        ({}, {"a": (3, 4), "b": (5, 4)}, r"'batch' is bound to 3 and.*to 5"),
        ({"batch": 0}, {}, r"at least 1; got 0"),
        ({"batch": True}, {}, r"at least 1; got True"),
        ({"batch": 2.0}, {}, r"at least 1; got 2\.0"),
        ({}, {"a": (3, -1)}, r"dim 1 of input 'a'.*got -1"),
    ],
)
def test_wrong_bindings(dims: dict[str, int], shapes: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(DimensionError, match=said):
        read(tokens(["batch", "tokens"], ["batch", "tokens"]), dims=dims, shapes=shapes)


@given(
    sizes=st.dictionaries(st.sampled_from(["n", "c", "h", "w"]), st.integers(1, 64), min_size=4),
    layout=st.permutations(["n", "c", "h", "w", 5]),
)
def test_dims_and_shapes_say_the_same(sizes: dict[str, int], layout: list[str | int]) -> None:
    shape = tuple(sizes[d] if isinstance(d, str) else d for d in layout)
    by_name = read(tokens(list(layout)), dims=sizes)
    by_input = read(tokens(list(layout)), shapes={"a": shape})
    assert by_name.tensors["aa"].shape == by_input.tensors["aa"].shape == shape
