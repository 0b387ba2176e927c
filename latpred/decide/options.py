"""A choice at a point as a graph that runs: one home for what a choice is, is called, and is rewritten to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from latpred.decide.costs import KEEP
from latpred.errors import InputError
from latpred.surgery.channels import can_narrow
from latpred.surgery.patches import can_patch, computed_on, counts
from latpred.surgery.quantize import can_quantize, in_int8
from latpred.surgery.skip import can_skip
from latpred.surgery.slicing import sliced
from latpred.surgery.wiring import Wiring, wired

__all__ = ["KEPT", "REGION_LEVELS", "Choice", "altered", "choice_of", "refusals", "work_share"]

INT8_WORTH = 0.99  # eight bits cost little of what a network knows


@dataclass(frozen=True, slots=True)
class Choice:
    """What is done at a point.

    Attributes
    ----------
    level : str
        One of `latpred.decide.costs.LEVELS`.
    share : float
        Of the channels that stay, or of the patches that are computed; 1 elsewhere.
    granularity : int
        Of patches, positions along each side; of channels, the device's block of them (no part of the name), 0 where
        it has none.

    Examples
    --------
    >>> Choice("channels", 0.5).name, Choice("patches", 0.25, 14).name
    ('channels 0.5', 'patches14 0.25')
    """

    level: str
    share: float = 1.0
    granularity: int = 0

    @property
    def name(self) -> str:
        """As tables and people call it."""
        if self.level == "channels":
            return f"channels {self.share:g}"
        if self.level == "patches":
            return f"patches{self.granularity} {self.share:g}"
        return self.level


KEPT = Choice(KEEP)
WRITTEN = re.compile(r"(?P<level>skip|int8|channels(?= )|patches(?=\d+ ))(?P<side>[1-9]\d*)?( (?P<share>\d*\.?\d+))?")

REFUSALS: Mapping[str, Callable[[Wiring], str | None]] = {
    "skip": can_skip,
    "channels": can_narrow,
    "patches": can_patch,
    "int8": can_quantize,
}
REGION_LEVELS = tuple(REFUSALS)


def refusals(piece: Wiring) -> dict[str, str | None]:
    """Level -> why a region cannot be altered so; None where it can."""
    return {level: refusal(piece) for level, refusal in REFUSALS.items()}


def choice_of(text: str) -> Choice:
    """A choice from its name.

    Raises
    ------
    InputError
        When it names no choice at a region.

    Examples
    --------
    >>> choice_of("channels 0.5").share, choice_of("patches14 0.25").granularity, choice_of("int8").level
    (0.5, 14, 'int8')
    """
    match = WRITTEN.fullmatch(text)
    if match is not None:
        choice = Choice(match["level"], float(match["share"] or 1), int(match["side"] or 0))
        if choice.name == text and 0 < choice.share <= 1:
            return choice
    raise InputError(
        f"an option such as 'skip', 'channels 0.5', 'patches14 0.25' or 'int8' is needed, got {text!r}: write one"
    )


def altered(piece: onnx.ModelProto, choice: Choice) -> onnx.ModelProto | None:
    """The graph that runs in a region's place; None where nothing does.

    Raises
    ------
    SurgeryError
        Where the region cannot be altered so.

    Examples
    --------
    >>> x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 8]) for n in "xy")
    >>> graph = onnx.helper.make_graph([onnx.helper.make_node("Softmax", ["x"], ["y"])], "g", [x], [y])
    >>> altered(onnx.helper.make_model(graph), Choice("skip")) is None
    True
    """
    return REWRITES[choice.level](piece, choice)


def _on_patches(piece: onnx.ModelProto, choice: Choice) -> onnx.ModelProto:
    wiring = wired(piece)
    height, width = wiring.spec(wiring.inputs[0]).shape[2:]
    return computed_on(piece, choice.granularity, counts(height, width, choice.granularity, choice.share))


REWRITES: Mapping[str, Callable[[onnx.ModelProto, Choice], onnx.ModelProto | None]] = {
    KEEP: lambda piece, _: piece,
    "skip": lambda piece, _: None,  # noqa: ARG005
    "channels": lambda piece, choice: sliced(piece, choice.share, block=choice.granularity),
    "patches": _on_patches,
    "int8": lambda piece, _: in_int8(piece),
}


def work_share(choice: Choice) -> float:
    """How much of the region's work is done: what an option is worth while nothing better is known.

    Examples
    --------
    >>> work_share(Choice("skip")), work_share(Choice("channels", 0.5)), work_share(KEPT)
    (0.0, 0.5, 1.0)
    """
    if choice.level == "skip":
        return 0.0
    return INT8_WORTH if choice.level == "int8" else choice.share
