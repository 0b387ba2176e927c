"""Maps at another resolution, and on a scale from 0 to 1."""

from __future__ import annotations

import numpy as np

from latpred.tensors import Array

__all__ = ["bilinear", "min_max"]

FLATNESS = 1e-6  # a range below this share of the largest value is rounding, not a difference


def bilinear(maps: Array, height: int, width: int) -> Array:
    """Maps resampled linearly along both axes, positions being centres of pixels; beyond the border, the nearest.

    As ONNX's Resize with `half_pixel` coordinates.

    Parameters
    ----------
    maps : array (..., h, w)
    height, width : int

    Returns
    -------
    array of float64, shape (..., height, width)

    Examples
    --------
    >>> bilinear(np.array([[0.0, 4.0]]), 1, 4)
    array([[0., 1., 3., 4.]])
    """
    rows, columns = (_matrix(before, after) for before, after in zip(maps.shape[-2:], (height, width), strict=True))
    resampled: Array = rows @ maps.astype(np.float64) @ columns.T
    return resampled


def _matrix(before: int, after: int) -> Array:
    """Weights (after, before) of the old positions in each new one."""
    places = ((np.arange(after) + 0.5) * before / after - 0.5).clip(0, before - 1)
    lower = np.floor(places).astype(int)
    share = places - lower
    matrix = np.zeros((after, before))
    matrix[np.arange(after), lower] = 1 - share
    matrix[np.arange(after), np.minimum(lower + 1, before - 1)] += share
    return matrix


def min_max(maps: Array) -> Array:
    """Each map's least value moved to 0 and its largest to 1.

    A map of zeros stays as it is, and one that is positive and the same everywhere becomes ones.

    Parameters
    ----------
    maps : array (..., h, w)
        Of no negative values.

    Examples
    --------
    >>> min_max(np.array([[[1.0, 2.0, 5.0]], [[0.0, 0.0, 0.0]], [[3.0, 3.0, 3.0]]]))
    array([[[0.  , 0.25, 1.  ]],
    <BLANKLINE>
           [[0.  , 0.  , 0.  ]],
    <BLANKLINE>
           [[1.  , 1.  , 1.  ]]])
    """
    least, largest = (extreme(axis=(-2, -1), keepdims=True) for extreme in (maps.min, maps.max))
    flat = largest - least <= FLATNESS * largest
    scaled: Array = (maps - least) / np.where(flat, 1, largest - least)
    return np.where(flat, np.where(largest > 0, 1.0, 0.0), scaled)
