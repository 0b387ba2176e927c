"""Image files to what a network reads, and maps laid over images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latpred.errors import InputError, SurgeryError
from latpred.hooks.feature_maps import ImageInput
from latpred.hooks.resampling import bilinear
from latpred.tensors import Array

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "checked_target", "load_image", "overlaid", "prepared", "save_image"]

# Of the training images of ImageNet, by colour, on a scale from 0 to 1: what torchvision's and timm's networks expect.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# From the least to the most salient: dark blue, blue, cyan, yellow, red.
HEAT = np.array([(0, 0, 128), (0, 0, 255), (0, 255, 255), (255, 255, 0), (255, 0, 0)], np.float64)
STRENGTH = 0.6
MODES = {1: "L", 3: "RGB"}


def load_image(path: str | os.PathLike[str]) -> Array:
    """An image file as uint8 (height, width, 3), turned as its camera noted.

    Raises
    ------
    InputError
        Where it is no image that Pillow reads.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            turned = ImageOps.exif_transpose(file)
            if turned.mode.startswith("I;16"):  # Pillow would clip what is above 255
                turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
            if turned.mode in ("I", "F"):
                raise ValueError(f"its pixels are of mode {turned.mode}, whose white nobody knows")
            return np.asarray(turned.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"an image file is needed, but {os.fspath(path)} cannot be read as one ({error}): give a PNG "
                         "or JPEG file") from error  # fmt: skip


def prepared(
    image: Array,
    target: ImageInput,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Array:
    """An image as a network's input: resized to its height and width as a whole, from 0 to 1, then normalised.

    Nothing is cropped, so that a map at the input's resolution covers the whole image. For a grey input, colours and
    what they are normalised by are averaged.

    Parameters
    ----------
    image : array of uint8 (height, width, 3)
    target : ImageInput
        Every image of its batch will be this one.
    mean, std : sequences of float
        By colour, or one for all.

    Raises
    ------
    InputError
        Where mean or std have another length, or std is not positive.
    SurgeryError
        Where the input has neither one nor three channels.

    Examples
    --------
    >>> white = np.full((2, 2, 3), 255, np.uint8)
    >>> prepared(white, ImageInput("x", (1, 3, 4, 4), "float32", 1), mean=[0.5], std=[0.25])[0, :, 0, 0].tolist()
    [2.0, 2.0, 2.0]
    """
    from PIL import Image

    if target.channels not in MODES:
        raise SurgeryError(f"an input of 1 or 3 channels is needed, but {target.name!r} has {target.channels}: call "
                           "latpred.hooks.saliency.saliency with an array of your own")  # fmt: skip
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, 3) or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
            raise InputError(f"a {name} of one value or three, by colour, is needed (above 0 for std), but "
                             f"{list(values)} came: give the ones that the network was trained with")  # fmt: skip
    height, width = target.size
    resized = Image.fromarray(image).convert(MODES[target.channels]).resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, np.float64).reshape(height, width, target.channels) / 255
    centre, spread = (np.asarray(values) if target.channels > 1 else np.mean(values) for values in (mean, std))
    normal = np.moveaxis((pixels - centre) / spread, -1, target.channel_axis - 1)
    return np.repeat(normal[None], target.shape[0], axis=0).astype(target.dtype)


def overlaid(image: Array, salient: Array, strength: float = STRENGTH) -> Array:
    """An image with a map over it: as it is where the map is 0, blue to red where it rises to 1.

    Parameters
    ----------
    image : array of uint8 (height, width, 3)
    salient : array (h, w)
        From 0 to 1, at any resolution.
    strength : float
        Share of the colour where the map is 1.

    Returns
    -------
    array of uint8 (height, width, 3)

    Examples
    --------
    >>> overlaid(np.zeros((1, 2, 3), np.uint8), np.array([[0.0, 1.0]]), strength=1.0).tolist()
    [[[0, 0, 0], [255, 0, 0]]]
    """
    heights = bilinear(salient, *image.shape[:2]).clip(0, 1)
    stops = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(heights, stops, HEAT[:, channel]) for channel in range(3)], axis=-1)
    share = strength * heights[..., None]
    blended: Array = np.rint((1 - share) * image + share * colours).astype(np.uint8)
    return blended


def checked_target(path: str | os.PathLike[str]) -> Path:
    """Where an image is to be written.

    Raises
    ------
    InputError
        Where there is no such folder, or no image format has that ending.
    """
    from PIL import Image

    target = Path(path)
    if not target.parent.is_dir() or target.is_dir():
        raise InputError(f"a file in a folder that is there is needed, but {target} came: make the folder, or name a "
                         "file in another one")  # fmt: skip
    if Image.registered_extensions().get(target.suffix.lower()) not in Image.SAVE:
        raise InputError(f"the ending of an image format is needed, but {target.name} came: end it in .png")
    return target


def save_image(pixels: Array, path: str | os.PathLike[str]) -> None:
    """Write uint8 (height, width, 3) as a file of the format that its ending names.

    Raises
    ------
    InputError
        Where it cannot be written.
    """
    from PIL import Image

    try:
        Image.fromarray(pixels).save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{os.fspath(path)} cannot be written ({error}): name another file") from error
