"""Points that a person declares: between which tensors, which options, which gate network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from latpred.decide.options import Choice, choice_of, refusals
from latpred.decide.points import EXIT, Point, classes_of
from latpred.errors import InputError
from latpred.surgery.cuts import Cut
from latpred.surgery.gates import checked_gate
from latpred.surgery.pieces import region
from latpred.surgery.wiring import Wiring, wired

__all__ = ["Declared", "gate_of", "point_of"]


@dataclass(frozen=True, slots=True)
class Declared:
    """A point by hand.

    Attributes
    ----------
    name : str
        What the point will be called.
    start, end : str
        Names of the tensors that the region reads and makes; the same twice for an exit.
    options : tuple of str
        Such as ``skip``, ``channels 0.5``, ``patches14 0.25``, ``int8``; ``exit`` alone where start and end are the same.
    gate : path, bytes, ModelProto or None
        Its gate network, which reads the start and makes one score an option, `keep` included; None takes the plan's.

    Examples
    --------
    ``latpred.plan(predictor, model, declared=[stage])`` mounts it before any point that was found.

    >>> stage = Declared("stage 3", start="/layer2/Relu_output_0", end="/layer3/Relu_output_0", options=("int8",))
    """  # noqa: E501

    name: str
    start: str
    end: str
    options: tuple[str, ...]
    gate: str | os.PathLike[str] | bytes | onnx.ModelProto | None = None


def point_of(declared: Declared, model: onnx.ModelProto | Wiring, places: Sequence[Cut], block: int = 0) -> Point:
    """The point that is meant.

    Parameters
    ----------
    declared : Declared
    model : ModelProto or Wiring
        Tidied.
    places : sequence of Cut
        Of the model.
    block : int
        Channels that convolutions on the device work on at once.

    Raises
    ------
    InputError
        Where a tensor is no cut, there are no options, or one is not possible there.

    Examples
    --------
    >>> x, t, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2, 4, 4]) for n in "xty")
    >>> nodes = [onnx.helper.make_node("Softmax", ["x"], ["t"]), onnx.helper.make_node("Softmax", ["t"], ["y"])]
    >>> model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y], value_info=[t]))
    >>> from latpred.surgery.cuts import cuts
    >>> point_of(Declared("mine", "x", "t", ("skip",)), model, cuts(model)).levels
    ('skip',)
    """
    wiring = wired(model)
    start, end = _cut(declared, declared.start, places), _cut(declared, declared.end, places)
    what = f"point {declared.name!r}"
    if not declared.options:
        raise InputError(f"{what} needs options beside keeping the region, got none: name some")
    if len(set(declared.options)) < len(declared.options):
        raise InputError(f"{what} needs options that differ, got {', '.join(declared.options)}: leave one out")
    if start.position == end.position:
        if declared.options != (EXIT,) or start in (places[0], places[-1]) or classes_of(wiring) is None:
            raise InputError(
                f"{what} starts and ends at {declared.start!r}, where only an exit from inside a network that makes "
                f"class scores can be, got {', '.join(declared.options)}: name another end"
            )
        return Point(declared.name, start, start, (Choice(EXIT),), {})
    named = [choice_of(option) for option in declared.options]
    choices = tuple(replace(one, granularity=block) if one.level == "channels" else one for one in named)
    reasons = refusals(region(wiring, start, end).wiring)
    for choice in choices:
        if reasons[choice.level] is not None:
            raise InputError(f"{what} cannot have the option {choice.name!r}: {reasons[choice.level]}; leave it out")
    return Point(declared.name, start, end, choices, {level: why for level, why in reasons.items() if why})


def gate_of(declared: Declared, point: Point) -> onnx.ModelProto | None:
    """Its own gate network, checked; None where the plan's is meant.

    Raises
    ------
    SurgeryError
        Where the network does not fit the point.
    """
    return None if declared.gate is None else checked_gate(declared.gate, point.start, 1 + len(point.choices))


def _cut(declared: Declared, tensor: str, places: Sequence[Cut]) -> Cut:
    found = next((cut for cut in places if cut.tensor == tensor), None)
    if found is None:
        known = ", ".join(cut.tensor for cut in places)
        raise InputError(
            f"point {declared.name!r} needs tensors where the network can be cut, {tensor!r} is none: "
            f"take two of {known}"
        )
    return found
