"""Real images that need no network: scikit-learn's handwritten digits, enlarged so that maps have resolution.

They come in three parts that share no image, in the order of scikit-learn's file, which keeps a writer's images
together: what is held out was mostly written by people whose hand the network has never seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASSES", "SIDE", "Digits", "digits", "enlarged", "shifted"]

Floats = NDArray[np.float32]

CLASSES, SIDE = 10, 32
WHITE = 16.0  # of a pixel
ENDS = {"learned": (0, 900), "tuned": (900, 1200), "held_out": (1200, 1797)}


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """Some images, float32 of shape (n, 1, 32, 32), 0 to 1, and what they show."""

    images: Floats
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)


def digits(part: str) -> Digits:
    """One part: ``learned`` by the network, ``tuned`` for whatever is chosen afterwards, or ``held_out``."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    rows = slice(*ENDS[part])
    return Digits(enlarged(found.images[rows] / WHITE), found.target[rows].astype(np.int64))


def enlarged(images: NDArray[Any]) -> Floats:
    """Images of shape (n, h, h), drawn anew at 32 x 32 by bilinear interpolation between the centres of pixels.

    Examples
    --------
    >>> found = enlarged(np.array([[[0.0, 1.0], [0.0, 1.0]]]))
    >>> found.shape, found[0, 0, 0, [0, 8, 15, 16, 31]].tolist()
    ((1, 1, 32, 32), [0.0, 0.03125, 0.46875, 0.53125, 1.0])
    """
    size = images.shape[-1]
    places = np.clip((np.arange(SIDE) + 0.5) * size / SIDE - 0.5, 0, size - 1)
    weights = np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(size)))
    return (weights @ images @ weights.T)[:, None].astype(np.float32)


def shifted(images: Floats, most: int, rng: np.random.Generator) -> Floats:
    """Each image moved by up to so many pixels in both directions, black where nothing was.

    Examples
    --------
    >>> found = shifted(np.ones((1, 1, 32, 32), np.float32), 4, np.random.default_rng(0))
    >>> float(found.sum())  # 3 pixels one way, 1 the other
    899.0
    """
    room = np.pad(images, ((0, 0), (0, 0), (most, most), (most, most)))
    firsts = rng.integers(0, 2 * most + 1, (len(images), 2))
    pairs = zip(room, firsts, strict=True)
    return np.stack([one[:, down : down + SIDE, across : across + SIDE] for one, (down, across) in pairs])
