"""Small networks that look at the tensor where a point starts and score its options."""

from __future__ import annotations

import os

import onnx

from latpred.errors import SurgeryError
from latpred.reading.loading import load
from latpred.reading.nodes import rename
from latpred.surgery.cuts import Cut
from latpred.surgery.pooled import pooled_linear
from latpred.surgery.tidy import tidied
from latpred.surgery.wiring import wired
from latpred.tensors import DTYPE_NAMES, Array

__all__ = ["SCORES", "checked_gate", "gate_network"]

SCORES = "gate_scores"


def gate_network(
    cut: Cut, width: int, seed: int | None = 0, weights: tuple[Array, Array] | None = None
) -> onnx.ModelProto:
    """Average over positions, then a linear map to one score an option.

    Raises
    ------
    SurgeryError
        Where the tensor at the cut cannot be averaged, or the weights do not fit.

    Examples
    --------
    >>> model = gate_network(Cut("x", 0, (), (1, 197, 192), "float32", 2), width=3)
    >>> [node.op_type for node in model.graph.node], [value.name for value in model.graph.output]
    (['ReduceMean', 'Gemm'], ['gate_scores'])
    """
    return pooled_linear(cut, width, SCORES, weights=weights, seed=seed)


def checked_gate(source: str | os.PathLike[str] | bytes | onnx.ModelProto, cut: Cut, width: int) -> onnx.ModelProto:
    """A gate network that the caller wrote, tidied, its input named as the cut's tensor.

    Parameters
    ----------
    source : path, bytes or ModelProto
    cut : Cut
        What it will read.
    width : int
        Scores that it has to make, one an option.

    Raises
    ------
    SurgeryError
        Where it has another number of inputs or outputs than one each, reads another shape or dtype, or makes another
        number of scores.
    """
    given = load(source).graph
    stored = {tensor.name for tensor in given.initializer}
    inputs = [value for value in given.input if value.name not in stored]
    if len(inputs) != 1 or len(given.output) != 1:
        raise SurgeryError(
            f"a gate network with one input and one output is needed, but this one has {len(inputs)} and "
            f"{len(given.output)}: export it with one tensor in and one out"
        )
    reads = inputs[0].type.tensor_type
    sizes = [dim.dim_value for dim in reads.shape.dim]
    dtype = DTYPE_NAMES.get(reads.elem_type)
    fits = len(sizes) == len(cut.shape) and all(size in (0, is_) for size, is_ in zip(sizes, cut.shape, strict=True))
    if not fits or dtype != cut.dtype:
        raise SurgeryError(
            f"a gate network that reads {cut.tensor!r}, {cut.dtype}{list(cut.shape)}, is needed, but this one reads "
            f"{dtype}{[size or '?' for size in sizes]}: export it for this cut"
        )
    model = tidied(source, shapes={inputs[0].name: cut.shape})
    wiring = wired(model)
    scores = wiring.spec(wiring.outputs[0])
    if scores.elements != width * cut.shape[0]:
        raise SurgeryError(
            f"a gate network that makes {width} scores is needed, one an option, but this one makes "
            f"{list(scores.shape)}: give it that width"
        )
    return _named(model, cut.tensor)


def _named(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """The same with its input under another name, and nothing else under that name; in place."""
    graph = model.graph
    own = graph.input[0].name
    if own != tensor:
        taken = {tensor: f"{tensor}~gate"}
        for value in graph.value_info:
            value.name = taken.get(value.name, value.name)
        rename(graph, taken | {own: tensor})
        graph.input[0].name = tensor
    return model
