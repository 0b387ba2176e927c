"""Which tensor of a model is looked at as a picture: the image it reads, its class scores, its feature maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isqrt, prod

import numpy as np

from latpred.errors import InputError, SurgeryError
from latpred.surgery.channels import attributes_of
from latpred.surgery.cuts import channel_axis, cuts
from latpred.surgery.wiring import Wiring, descendants
from latpred.tensors import Array

__all__ = ["FeatureMap", "ImageInput", "chosen_map", "class_scores", "feature_map", "image_input", "named_map"]

FLOATING = ("float32", "float16", "float64")
COLOURS = (1, 3, 4)  # what the last axis of an image has to be for it to be the channels
MOST_EXTRA_TOKENS = 8  # class, distillation and register tokens before those of the patches
# What class scores pass on their way to an output, and what only writes them in another shape.
SQUASHING = frozenset({"LogSoftmax", "Sigmoid", "Softmax"})
RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
SOFTMAX_OF_ONE_AXIS = 13  # the opset since which its axis is the last one by default
LISTED = 3


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The input of a model that is an image."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    channel_axis: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = (size for axis, size in enumerate(self.shape) if axis not in (0, self.channel_axis))
        return height, width

    @property
    def channels(self) -> int:
        """3 for a coloured image."""
        return self.shape[self.channel_axis]


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """A tensor that holds a vector of channels for each position of a grid over the image.

    Attributes
    ----------
    tensor : str
    shape : tuple of int
        (N, C, H, W), (N, H, W, C), or (N, tokens, C).
    channel_axis : int
    grid : tuple of int
        Rows and columns.
    extra_tokens : int
        Tokens that stand before those of the grid.
    """

    tensor: str
    shape: tuple[int, ...]
    channel_axis: int
    grid: tuple[int, int]
    extra_tokens: int = 0

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.channel_axis]

    @property
    def positions(self) -> int:
        """Positions of the grid: Z in the formulas of Grad-CAM."""
        return prod(self.grid)

    def arranged(self, values: Array) -> Array:
        """The tensor's values as (N, C, rows, columns), without extra tokens."""
        first = np.moveaxis(values, self.channel_axis, 1)[..., self.extra_tokens :]
        return first.reshape(*first.shape[:2], *self.grid)

    def directions(self, first: int, count: int) -> Array:
        """One channel each: 1 at all of its positions, 0 elsewhere; zeros only beyond the last channel.

        Returns
        -------
        array of float32, shape (count, *shape)

        Examples
        --------
        >>> FeatureMap("t", (1, 5, 2), 2, (2, 2), extra_tokens=1).directions(1, 1)[0, 0].tolist()
        [[0.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
        """
        made = np.zeros((count, *self.shape), np.float32)
        by_channel = np.moveaxis(made, self.channel_axis + 1, 1)
        for place in range(min(count, self.channels - first)):
            by_channel[place, first + place, ..., self.extra_tokens :] = 1
        return made


def image_input(wiring: Wiring) -> ImageInput:
    """The largest input that can be an image.

    Raises
    ------
    SurgeryError
        Where no input has floating values and four dims.
    """
    specs = {name: wiring.spec(name) for name in wiring.inputs if name in wiring.users}
    images = [name for name, spec in specs.items() if len(spec.shape) == 4 and spec.dtype in FLOATING]
    if not images:
        listed = ", ".join(f"{name} {spec.dtype}{list(spec.shape)}" for name, spec in specs.items())
        raise SurgeryError(f"an input of floating values (N, C, H, W) is needed, but the model reads {listed}: "
                           "saliency maps are for models of images")  # fmt: skip
    name = max(images, key=lambda one: specs[one].elements)
    shape = specs[name].shape
    last = shape[1] not in COLOURS and shape[3] in COLOURS
    return ImageInput(name, shape, specs[name].dtype, 3 if last else 1)


def class_scores(wiring: Wiring, name: str | None = None) -> str:
    """The tensor of class scores before softmax or sigmoid, (N, classes) and perhaps more axes of size 1.

    Parameters
    ----------
    wiring : Wiring
        Of a tidied model.
    name : str, optional
        A tensor or an output; without it, the only output that comes into question.

    Raises
    ------
    InputError
        Where there is no such tensor, or several outputs come into question.
    SurgeryError
        Where what is named, or every output, is no class score.
    """
    if name is not None and name not in wiring.makers:
        raise _unknown("score", name, wiring.outputs)
    asked = [name] if name is not None else [one for one in wiring.outputs if one in wiring.makers]
    found = [before for one in asked if _is_score(wiring, before := _before_squashing(wiring, one))]
    if not found:
        listed = ", ".join(f"{one!r} {wiring.spec(one).dtype}{list(wiring.spec(one).shape)}" for one in asked)
        raise SurgeryError(f"class scores (N, classes) with two classes or more are needed, but there is {listed}: "
                           "name a tensor that holds them as `score`")  # fmt: skip
    if len(set(found)) > 1:
        raise InputError(f"one tensor of class scores is needed, but {', '.join(map(repr, found))} come into question: "
                         "name one as `score`")  # fmt: skip
    return found[0]


def _is_score(wiring: Wiring, name: str) -> bool:
    spec = wiring.spec(name)
    classes = max(spec.shape[1:], default=1)
    return spec.dtype in FLOATING and classes > 1 and prod(spec.shape[1:]) == classes


def _before_squashing(wiring: Wiring, name: str) -> str:
    """What a softmax over classes or a sigmoid makes a tensor from; the tensor itself where there is none."""
    elements, found = wiring.spec(name).elements, name
    while found in wiring.makers:
        node = wiring.nodes[wiring.makers[found]]
        source = node.input[0] if node.input else ""
        if node.op_type == "Sigmoid":
            return source
        if node.op_type in SQUASHING:
            shape = wiring.spec(found).shape
            default = 1 if wiring.opset < SOFTMAX_OF_ONE_AXIS else -1
            axis = int(str(attributes_of(node).get("axis", default)))
            return source if len(shape) > 1 and shape[0] * shape[axis] == elements else name
        if node.op_type not in RESHAPING or wiring.spec(source).elements != elements:
            return name
        found = source
    return name


def feature_map(wiring: Wiring, tensor: str, image: ImageInput) -> FeatureMap | None:
    """How a tensor is a grid over the image; None where it is none.

    Tokens are taken to be patches row by row, in the image's aspect ratio, behind at most eight extra tokens.
    """
    spec = wiring.spec(tensor)
    if spec.dtype not in FLOATING or len(spec.shape) not in (3, 4):
        return None
    axis = channel_axis(wiring, tensor)
    if len(spec.shape) == 4:
        if axis not in (1, 3):
            return None
        rows, columns = spec.shape[2:] if axis == 1 else spec.shape[1:3]
        return FeatureMap(tensor, spec.shape, axis, (rows, columns))
    if axis != 2:
        return None
    height, width = image.size
    for extra in range(min(MOST_EXTRA_TOKENS, spec.shape[1] - 1) + 1):
        patches = spec.shape[1] - extra
        rows = isqrt(patches * height // width)
        if rows and patches % rows == 0 and rows * width == patches // rows * height:
            return FeatureMap(tensor, spec.shape, axis, (rows, patches // rows), extra)
    return None


def named_map(wiring: Wiring, layer: str, score: str, image: ImageInput) -> FeatureMap:
    """The feature map of a name: a tensor, or a node that makes one.

    Raises
    ------
    InputError
        Where nothing has that name.
    SurgeryError
        Where it is no feature map with more than one position, or of another batch than the scores.
    """
    by_node = {node.name: node.output[0] for node in wiring.nodes}
    tensor = layer if layer in wiring.makers or layer in wiring.inputs else by_node.get(layer, "")
    if not tensor:
        raise _unknown("layer", layer, [*wiring.makers, *by_node])
    found = feature_map(wiring, tensor, image)
    spec = wiring.spec(tensor)
    if found is None or found.positions < 2:
        raise SurgeryError(f"a feature map (N, C, H, W) of more than one position, or tokens (N, T, C) of a grid of "
                           f"patches, are needed, but {layer!r} is {spec.dtype}{list(spec.shape)}: name a layer before "
                           "it is pooled")  # fmt: skip
    if found.shape[0] != wiring.spec(score).shape[0]:
        raise SurgeryError(f"a feature map of the scores' batch of {wiring.spec(score).shape[0]} is needed, but "
                           f"{layer!r} is {list(spec.shape)}: name a layer that no windows are cut in")  # fmt: skip
    return found


def chosen_map(
    wiring: Wiring, score: str, image: ImageInput, is_read: Callable[[FeatureMap], bool]
) -> tuple[FeatureMap, tuple[str, ...]]:
    """The last feature map with spatial resolution that all later computation passes, and why not a later one.

    Parameters
    ----------
    wiring : Wiring
    score : str
    image : ImageInput
    is_read : function of FeatureMap
        Whether the scores hang on what lies on the grid: behind the last attention, it may be a class token alone.

    Raises
    ------
    SurgeryError
        Where there is none.
    """
    passed: list[str] = []
    for found in _maps_from_last(wiring, score, image):
        shape = " x ".join(map(str, found.shape[1:]))
        if found.positions < 2:
            passed.append(f"{found.tensor!r} ({shape}) has collapsed to one position")
        elif found.extra_tokens and not is_read(found):
            passed.append(f"of {found.tensor!r} ({shape}) only extra tokens are read")
        else:
            return found, tuple(f"{why}: {found.tensor!r} ({shape}) before it is taken" for why in passed[:1])
    raise SurgeryError("a feature map of more than one position that all later computation passes is needed, but the "
                       "model has none: name a tensor as `layer`")  # fmt: skip


def _maps_from_last(wiring: Wiring, score: str, image: ImageInput) -> Iterator[FeatureMap]:
    for cut in reversed(cuts(wiring.model)[1:]):
        found = feature_map(wiring, cut.tensor, image)
        if found is None or found.shape[0] != wiring.spec(score).shape[0]:
            continue
        if cut.tensor != score and score in descendants(wiring, [cut.tensor]):
            yield found


def _unknown(what: str, name: str, known: Sequence[str]) -> InputError:
    close = get_close_matches(name, known, LISTED) or list(known)[-LISTED:]
    return InputError(f"a tensor of the tidied model is needed as {what}, but it has no {name!r}: "
                      f"{', '.join(map(repr, close))} would do")  # fmt: skip
