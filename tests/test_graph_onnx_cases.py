"""ONNX's own test cases as an oracle: the shapes, dtypes and values that they expect are what `read` must say."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from latpred.errors import ShapeError
from latpred.graph import Graph, read
from latpred.tensors import dtype_of, stored_tensor

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"

# what a shape hangs on: inputs of these dtypes and sizes become initializers, as in an exported model
Chosen = Callable[[np.ndarray[Any, Any]], bool]


def nothing(value: np.ndarray[Any, Any]) -> bool:
    return False


def steering(value: np.ndarray[Any, Any]) -> bool:
    return (value.dtype.kind in "iub" and value.size <= 64) or (value.ndim < 2 and value.size <= 4)


def everything(value: np.ndarray[Any, Any]) -> bool:
    return True


# shapes that no reader can know: decoded images, split strings, sequences fed from outside
UNKNOWABLE = ("ImageDecoder", "StringSplit", "StringNormalizer", "sequence[]", "TfIdfVectorizer")


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases themselves overflow on purpose
        from onnx.backend.test.case.node import collect_testcases

        return collect_testcases(None)


def with_initializers(case: Any, chosen: Chosen) -> onnx.ModelProto:
    """The case's model with the chosen inputs as initializers that hold the case's data."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs = []
    for info, value in zip(case.model.graph.input, case.data_sets[0][0], strict=False):
        if isinstance(value, np.ndarray | np.generic) and chosen(np.asarray(value)):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), info.name))
        else:
            inputs.append(info)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def tensor_outputs(graph: Graph, expected: list[Any]) -> Iterator[tuple[Any, tuple[tuple[int, ...], str], Any]]:
    """What was read, what the case expects, and its data, for every output that is a tensor."""
    for name, value in zip(graph.outputs, expected, strict=False):
        if isinstance(value, onnx.TensorProto):  # dtypes that numpy lacks
            stored = stored_tensor("", value)
            yield graph.tensors[name], (stored.shape, stored.dtype), stored.value
        elif isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            yield graph.tensors[name], (array.shape, dtype_of(array)), array


@pytest.mark.parametrize(
    ("chosen", "least"), [(nothing, 1500), (steering, 1800), (everything, 1800)], ids=["live", "steered", "constant"]
)
def test_node_cases(cases: list[Any], chosen: Chosen, least: int) -> None:
    wrong, right = [], 0
    for case in cases:
        try:
            graph = read(with_initializers(case, chosen))
        except ShapeError as error:
            if chosen is not nothing and not any(word in str(error) for word in UNKNOWABLE):
                wrong.append(f"{case.name}: {error}")
            continue
        for tensor, expected, value in tensor_outputs(graph, case.data_sets[0][1]):
            if (tensor.shape, tensor.dtype) != expected and not graph.notices:
                wrong.append(f"{case.name}: {tensor.dtype}{tensor.shape} instead of {expected}")
            elif any("trip count" in notice for notice in graph.notices):
                continue
            elif graph.notices and any(a < b for a, b in zip(tensor.shape, expected[0], strict=True)):
                wrong.append(f"{case.name}: {tensor.shape} is no upper bound of {expected} ({graph.notices})")
            elif tensor.value is not None and expected[1] != "string" and not same_values(tensor.value, value):
                wrong.append(f"{case.name}: wrong value")
            else:
                right += 1
    assert not wrong, "\n".join(wrong)
    assert right >= least


def same_values(folded: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    if folded.dtype.kind == "c":
        return bool(np.allclose(folded, expected))
    tolerance = 1e-2 if expected.dtype.itemsize < 4 and expected.dtype.kind not in "iub" else 1e-4
    return bool(np.allclose(folded.astype(float), expected.astype(float), rtol=tolerance, atol=1e-3, equal_nan=True))


@pytest.mark.parametrize(("family", "least"), [("simple", 10), ("pytorch-converted", 40), ("pytorch-operator", 20)])
def test_stored_cases(family: str, least: int) -> None:
    wrong, right = [], 0
    for path in sorted((DATA / family).glob("*/model.onnx")):
        try:
            graph = read(path)
        except ShapeError as error:
            assert any(op in str(error) for op in (*UNKNOWABLE, "Expand", "SplitToSequence", "Gradient"))
            continue
        for name in graph.outputs:
            stored = path.parent / "test_data_set_0" / f"output_{graph.outputs.index(name)}.pb"
            tensor, proto = graph.tensors[name], onnx.TensorProto()
            if tensor.dtype == "sequence" or not stored.exists():
                continue
            proto.ParseFromString(stored.read_bytes())
            expected = stored_tensor("", proto)
            if (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype) or graph.notices:
                right += 1
            else:
                wrong.append(f"{path.parent.name}: {tensor.spec} instead of {expected.spec}")
    assert not wrong, "\n".join(wrong)
    assert right >= least
