"""Which patches are computed: those where a map says that it matters, the caller's or a mask head's."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from latpred.errors import HookError
from latpred.surgery.cuts import Cut
from latpred.surgery.patches import origins
from latpred.surgery.weights import constant
from latpred.surgery.wiring import declared
from latpred.tensors import Array, Spec

__all__ = ["MASK", "active", "checked_map", "mask_head", "pooled_over_patches"]

MASK = "mask_scores"
OPSET, IR_VERSION = 17, 8


def active(scores: Array, count: int) -> Array:
    """Indices of the patches that score most, ascending.

    Parameters
    ----------
    scores : ndarray, shape (patches,)
    count : int

    Examples
    --------
    >>> active(np.array([0.1, 0.9, 0.3, 0.7]), 2).tolist()
    [1, 3]
    """
    if count >= len(scores):
        return np.arange(len(scores))
    return np.sort(np.argpartition(-scores, count - 1)[:count])


def checked_map(saliency: object) -> Array:
    """A map as float64 of shape (H, W); raises HookError where it is none.

    Examples
    --------
    >>> checked_map([[[0, 1]]]).tolist()
    [[0.0, 1.0]]
    """
    try:
        found = np.asarray(saliency, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.ndim < 2 or any(size != 1 for size in found.shape[:-2]) or not found.size or not np.isfinite(found).all():
        raise HookError(f"a saliency map of shape (H, W) of finite numbers is needed, got {_told(saliency)}: give one "
                        "map of one image")  # fmt: skip
    return found.reshape(found.shape[-2:])


def _told(saliency: object) -> str:
    return f"{saliency.dtype}{list(saliency.shape)}" if isinstance(saliency, np.ndarray) else type(saliency).__name__


def pooled_over_patches(saliency: Array, height: int, width: int, granularity: int) -> Array:
    """Mean of a map over each patch of a feature map that covers the same image.

    Parameters
    ----------
    saliency : ndarray, shape (..., H', W')
        Leading dims of 1; of any size.
    height, width : int
        Of the feature map.
    granularity : int
        Positions along each side of a patch.

    Returns
    -------
    ndarray, shape (patches,)

    Raises
    ------
    HookError
        Where it is no map.

    Examples
    --------
    A map of 4 x 4 for a feature map of 2 x 2, patches of one position:

    >>> pooled_over_patches(np.kron([[1.0, 2.0], [3.0, 4.0]], np.ones((2, 2))), 2, 2, 1).tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    saliency = checked_map(saliency)
    rows, columns = saliency.shape
    sums = np.zeros((rows + 1, columns + 1))
    sums[1:, 1:] = saliency.cumsum(0).cumsum(1)
    tops, lefts = origins(height, width, granularity).T
    top, bottom = _window(tops, granularity, height, rows)
    left, right = _window(lefts, granularity, width, columns)
    total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return np.asarray(total / ((bottom - top) * (right - left)))


def _window(starts: Array, granularity: int, size: int, pixels: int) -> tuple[Array, Array]:
    """First and last pixel, exclusive, of positions along one side; at least one pixel."""
    first = np.minimum(starts * pixels // size, pixels - 1)
    return first, np.maximum(-((starts + granularity) * pixels // -size), first + 1)


def mask_head(cut: Cut, granularity: int, weights: tuple[Array, Array] | None = None) -> onnx.ModelProto:
    """A linear map of each position's channels, averaged over patches.

    Parameters
    ----------
    cut : Cut
        Where it reads one map, (1, C, H, W).
    granularity : int
    weights : pair of arrays, optional
        Matrix (C, 1) and bias (1,); without them the channels' mean, which is large where much is active.

    Returns
    -------
    ModelProto
        Its output is `MASK`, of shape (1, patches).

    Raises
    ------
    HookError
        Where the weights do not fit.

    Examples
    --------
    >>> model = mask_head(Cut("x", 0, (), (1, 8, 14, 14), "float32", 1), 4)
    >>> [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim]
    [1, 16]
    """
    _, channels, height, width = cut.shape
    dtype = np.dtype(cut.dtype)
    if weights is None:
        weights = np.full((channels, 1), 1.0 / channels), np.zeros(1)
    matrix, bias = (np.asarray(values, dtype) for values in weights)
    if matrix.shape != (channels, 1) or bias.shape != (1,):
        raise HookError(
            f"weights of shapes ({channels}, 1) and (1,) are needed, but {matrix.shape} and {bias.shape} came: train "
            "the mask head for this cut"
        )
    firsts = origins(height, width, granularity)
    steps = np.arange(granularity)
    places = (firsts[:, :1] + steps)[:, :, None] * width + (firsts[:, 1:] + steps)[:, None, :]
    pool = np.zeros((height * width, len(firsts)), dtype)
    np.put_along_axis(pool, places.reshape(len(firsts), -1).T, 1.0 / granularity**2, axis=0)
    nodes = [
        helper.make_node("Conv", [cut.tensor, f"{MASK}:matrix", f"{MASK}:bias"], [f"{MASK}:map"], f"{MASK}/map"),
        helper.make_node("Reshape", [f"{MASK}:map", f"{MASK}:shape"], [f"{MASK}:row"], f"{MASK}/row"),
        helper.make_node("MatMul", [f"{MASK}:row", f"{MASK}:pool"], [MASK], f"{MASK}/average"),
    ]
    graph = helper.make_graph(
        nodes,
        f"{cut.tensor} > {MASK}",
        [declared(cut.tensor, cut.spec)],
        [declared(MASK, Spec((1, len(firsts)), cut.dtype))],
        [
            constant(f"{MASK}:matrix", matrix.T.reshape(1, channels, 1, 1)),
            constant(f"{MASK}:bias", bias),
            constant(f"{MASK}:shape", np.array([1, height * width])),
            constant(f"{MASK}:pool", pool),
        ],
        value_info=[
            declared(f"{MASK}:map", Spec((1, 1, height, width), cut.dtype)),
            declared(f"{MASK}:row", Spec((1, height * width), cut.dtype)),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
