"""Heads that answer at a cut, in the place of everything behind it."""

from __future__ import annotations

import onnx
from onnx import helper

from latpred.surgery.cuts import Cut
from latpred.surgery.pooled import pooled_linear
from latpred.tensors import Array

__all__ = ["CONFIDENCE", "LOGITS", "PROBABILITIES", "head"]

LOGITS, PROBABILITIES, CONFIDENCE = "exit_logits", "exit_probabilities", "exit_confidence"


def head(
    cut: Cut, classes: int, seed: int | None = 0, weights: tuple[Array, Array] | None = None, confident: bool = False
) -> onnx.ModelProto:
    """Average over positions, a linear map to class scores, and their probabilities.

    Parameters
    ----------
    cut : Cut
        Where the head reads; the graph's input has its tensor's name.
    classes : int
    seed : int or None
        Of the random weights that stand in for trained ones; None leaves them out.
    weights : pair of arrays, optional
        Matrix (channels, classes) and bias (classes,).
    confident : bool
        Whether the largest probability is made too, of shape (batch, 1), so that one number decides on leaving.

    Raises
    ------
    SurgeryError
        Where the tensor at the cut cannot be averaged, or the weights do not fit.

    Examples
    --------
    >>> model = head(Cut("x", 0, (), (1, 64, 7, 7), "float32", 1), classes=10, confident=True)
    >>> [(value.name, value.type.tensor_type.shape.dim[1].dim_value) for value in model.graph.output]
    [('exit_logits', 10), ('exit_probabilities', 10), ('exit_confidence', 1)]
    """
    batch = cut.shape[0]
    behind = [helper.make_node("Softmax", [LOGITS], [PROBABILITIES], f"{PROBABILITIES}/softmax", axis=1)]
    more = [(PROBABILITIES, (batch, classes))]
    if confident:
        behind.append(
            helper.make_node("ReduceMax", [PROBABILITIES], [CONFIDENCE], f"{CONFIDENCE}/max", axes=[1], keepdims=1)
        )
        more.append((CONFIDENCE, (batch, 1)))
    return pooled_linear(cut, classes, LOGITS, behind, more, weights, seed)
