"""How a model makes its answer from class scores: an exit's head has to answer in the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import NodeProto, helper

from latpred.surgery.wiring import Wiring
from latpred.tensors import Array

__all__ = ["ENDINGS", "answered", "ending_nodes", "ending_of"]

ENDINGS: Mapping[str, Callable[[Array, Array], Array]] = {
    "": lambda scores, _: scores,
    "Softmax": lambda _, probabilities: probabilities,
    "LogSoftmax": lambda _, probabilities: np.log(np.maximum(probabilities, np.finfo(probabilities.dtype).tiny)),
    "Sigmoid": lambda scores, _: 1.0 / (1.0 + np.exp(-scores)),
}
"""Op that a model ends in, where it is one of these -> a head's scores and probabilities to what it answers."""


def ending_of(wiring: Wiring, last: str) -> str:
    """The op that makes the output `last`, where an exit has to do the same; else nothing."""
    maker = wiring.makers.get(last)
    op_type = "" if maker is None else wiring.nodes[maker].op_type
    return op_type if op_type in ENDINGS else ""


def answered(ending: str, scores: Array, probabilities: Array) -> Array:
    """What a head answers, (batch, classes).

    Examples
    --------
    >>> scores = np.array([[0.0, np.log(3.0)]])
    >>> [answered(ending, scores, np.array([[0.25, 0.75]])).round(2).tolist() for ending in ("Softmax", "Sigmoid")]
    [[[0.25, 0.75]], [[0.5, 0.75]]]
    """
    return ENDINGS[ending](scores, probabilities)


def ending_nodes(ending: str, scores: str, made: str) -> list[NodeProto]:
    """The same as nodes of a graph, from scores (batch, classes)."""
    if not ending:
        return [helper.make_node("Identity", [scores], [made], made)]
    node = helper.make_node(ending, [scores], [made], made)
    if ending != "Sigmoid":
        node.attribute.append(helper.make_attribute("axis", 1))
    return [node]
