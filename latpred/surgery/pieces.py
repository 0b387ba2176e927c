"""The region between two cuts as a model of its own; run one after another, pieces make the whole.

An initializer of a piece, or of what a piece is rewritten to, that has the name of one of the tidied model has its
values too, so that a runtime can hold it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import onnx

from latpred.errors import SurgeryError
from latpred.surgery.cuts import Cut
from latpred.surgery.wiring import Wiring, assembled, extracted, wired

__all__ = ["chain", "piece"]


def piece(model: onnx.ModelProto | Wiring, start: Cut, end: Cut) -> onnx.ModelProto:
    """What lies between two cuts of a tidied model, or of its wiring, where many pieces are wanted.

    Its inputs are the start's main tensor and those carried ones that it reads; its outputs the end's main tensor,
    then the carried ones and the model's outputs that are made in it.

    Raises
    ------
    SurgeryError
        Where the end does not lie behind the start.

    Examples
    --------
    >>> from onnx import TensorProto, helper
    >>> x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 4, 4]) for n in "xy")
    >>> nodes = [helper.make_node("Softmax", ["x"], ["t"]), helper.make_node("Softmax", ["t"], ["y"])]
    >>> info = helper.make_tensor_value_info("t", TensorProto.FLOAT, [1, 2, 4, 4])
    >>> model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], value_info=[info]))
    >>> from latpred.surgery.cuts import cuts
    >>> first, middle, last = cuts(model)
    >>> [value.name for value in piece(model, middle, last).graph.input]
    ['t']
    """
    return _piece(model if isinstance(model, Wiring) else wired(model), start, end)


def chain(model: onnx.ModelProto, places: Sequence[Cut]) -> tuple[onnx.ModelProto, ...]:
    """The pieces between each cut of `places` and the next.

    Raises
    ------
    SurgeryError
        Where the cuts are not in order.
    """
    wiring = wired(model)
    return tuple(_piece(wiring, start, end) for start, end in pairwise(places))


def _piece(wiring: Wiring, start: Cut, end: Cut) -> onnx.ModelProto:
    if start.position >= end.position:
        raise SurgeryError(
            f"a piece needs an end behind its start, but {end.tensor!r} (position {end.position}) does not lie behind "
            f"{start.tensor!r} (position {start.position}): swap them"
        )
    between = range(start.position, end.position)
    more = [name for name in (*end.carried, *wiring.outputs) if wiring.makers.get(name, -1) in between]
    outputs = list(dict.fromkeys([end.tensor, *more]))
    inputs = [start.tensor, *start.carried]
    needed = extracted(wiring, inputs, outputs)
    read = {name for index in needed for name in wiring.reads[index]}
    return assembled(
        wiring.model,
        f"{start.tensor} > {end.tensor}",
        [wiring.nodes[index] for index in needed],
        [wiring.infos[name] for name in inputs if name == start.tensor or name in read],
        [wiring.infos[name] for name in outputs],
        wiring.model.graph.initializer,
        wiring.infos,
    )
