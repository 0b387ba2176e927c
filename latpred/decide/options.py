"""A choice at a point as a graph that runs: one home for what a choice is, is called, and is rewritten to."""

from __future__ import annotations

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
from latpred.surgery.wiring import wired

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
        Positions along each side of a patch; 0 elsewhere.

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

REFUSALS: Mapping[str, Callable[[onnx.ModelProto], str | None]] = {
    "skip": can_skip,
    "channels": can_narrow,
    "patches": can_patch,
    "int8": can_quantize,
}
REGION_LEVELS = tuple(REFUSALS)


def refusals(piece: onnx.ModelProto) -> dict[str, str | None]:
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
    >>> choice_of("channels 0.5"), choice_of("skip")
    (Choice(level='channels', share=0.5, granularity=0), Choice(level='skip', share=1.0, granularity=0))
    """
    word, _, number = text.partition(" ")
    level = word.rstrip("0123456789")
    try:
        choice = Choice(level, float(number) if number else 1.0, int(word[len(level) :] or 0))
    except ValueError:
        choice = KEPT
    if choice.level not in REGION_LEVELS or choice.name != text or not 0 < choice.share <= 1:
        raise InputError(
            f"an option such as 'skip', 'channels 0.5', 'patches14 0.25' or 'int8' is needed, got {text!r}: write one"
        )
    return choice


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
    if choice.level == "skip":
        return None
    if choice.level == "channels":
        return sliced(piece, choice.share)
    if choice.level == "patches":
        wiring = wired(piece)
        height, width = wiring.spec(wiring.inputs[0]).shape[2:]
        return computed_on(piece, choice.granularity, counts(height, width, choice.granularity, choice.share))
    if choice.level == "int8":
        return in_int8(piece)
    return piece


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
