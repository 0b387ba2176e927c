"""The region between two cuts as a model of its own; run one after another, pieces make the whole.

An initializer of a piece, or of what a piece is rewritten to, that has the name of one of the tidied model has its
values too, so that a runtime can hold it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx

from latpred.errors import SurgeryError
from latpred.surgery.cuts import Cut
from latpred.surgery.wiring import Wiring, assembled, extracted, wired, within

__all__ = ["Region", "chain", "cut_out", "piece", "region"]


@dataclass(frozen=True, slots=True)
class Region:
    """What lies between two cuts, as a part of the whole model.

    Attributes
    ----------
    nodes : tuple of int
        Of the whole, in order.
    inputs, outputs : tuple of str
        The main tensor first.
    wiring : Wiring
        The nodes as if they were a model of their own.
    """

    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    wiring: Wiring


def region(wiring: Wiring, start: Cut, end: Cut) -> Region:
    """What lies between two cuts of a tidied model; nothing is copied.

    Its inputs are the start's main tensor and those carried ones that it reads; its outputs the end's main tensor,
    then the carried ones and the model's outputs that are made in it, in the last region those that are constant too.

    Raises
    ------
    SurgeryError
        Where the end does not lie behind the start.
    """
    if start.position >= end.position:
        raise SurgeryError(
            f"a piece needs an end behind its start, but {end.tensor!r} (position {end.position}) does not lie behind "
            f"{start.tensor!r} (position {start.position}): swap them"
        )
    between = range(start.position, end.position)
    more = [name for name in (*end.carried, *wiring.outputs) if wiring.makers.get(name, -1) in between]
    if end.position == len(wiring.nodes):
        more += [name for name in wiring.outputs if name in wiring.stored]
    outputs = tuple(dict.fromkeys([end.tensor, *more]))
    needed = tuple(extracted(wiring, [start.tensor, *start.carried], outputs))
    read = {name for index in needed for name in wiring.reads[index]}
    inputs = (start.tensor, *(name for name in start.carried if name in read))
    return Region(needed, inputs, outputs, within(wiring, needed, inputs, outputs))


def piece(model: onnx.ModelProto | Wiring, start: Cut, end: Cut) -> onnx.ModelProto:
    """`region` as a model of its own, of a tidied model, or of its wiring where many pieces are wanted.

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
    return cut_out(region(wired(model), start, end))


def chain(model: onnx.ModelProto, places: Sequence[Cut]) -> tuple[onnx.ModelProto, ...]:
    """The pieces between each cut of `places` and the next.

    Raises
    ------
    SurgeryError
        Where the cuts are not in order.
    """
    wiring = wired(model)
    return tuple(cut_out(region(wiring, start, end)) for start, end in pairwise(places))


def cut_out(found: Region) -> onnx.ModelProto:
    """A region as a model of its own."""
    wiring = found.wiring
    return assembled(
        wiring.model,
        f"{found.inputs[0]} > {found.outputs[0]}",
        wiring.nodes,
        [wiring.infos[name] for name in found.inputs],
        [wiring.infos[name] for name in found.outputs],
        wiring.model.graph.initializer,
        wiring.infos,
    )
