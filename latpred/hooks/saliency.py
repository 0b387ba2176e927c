"""Grad-CAM by forward computation only: where in an image the evidence for a class lies.

L = ReLU(sum_k alpha_k A^k), with A^k the k-th channel of a feature map and alpha_k its weight for the class (Selvaraju
et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV 2017, section 3,
equations 1 and 2). Weights are directional derivatives of the score before softmax, see
`latpred.hooks.channel_weights`: no pass goes backwards, and only what lies behind the feature map is run again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from latpred.errors import InputError
from latpred.hooks.channel_weights import weighing
from latpred.hooks.feature_maps import FeatureMap, chosen_map, class_scores, image_input, named_map
from latpred.hooks.model_session import ModelSession
from latpred.hooks.resampling import bilinear, min_max
from latpred.surgery.patches import counts, origins
from latpred.surgery.tails import tail_at, tail_model, trunk_model
from latpred.surgery.tidy import tidied
from latpred.surgery.wiring import wired
from latpred.tensors import Array

__all__ = ["GradCam", "Saliency", "saliency", "salient_patches"]

Source = str | os.PathLike[str] | bytes | onnx.ModelProto


@dataclass(frozen=True, slots=True, eq=False)
class Saliency:
    """Where the evidence for a class lies, for each image of a batch.

    Attributes
    ----------
    map : array of float32 (N, height, width)
        At the input's resolution, from 0 to 1; zeros where all evidence speaks against the class.
    evidence : array of float64 (N, rows, columns)
        L at the feature map's resolution, as it comes: in units of the score.
    weights : array of float64 (N, C)
        alpha, one a channel.
    classes : array of int64 (N,)
    scores : array of float64 (N,)
        Of these classes, before softmax.
    layer : str
        Tensor of the feature map.
    method : str
        ``closed form``, ``forward tangents`` (both exact up to rounding), or ``central differences``.
    error : float or None
        Estimated error of the weights over the largest of them; None where it is rounding alone.
    notices : tuple of str
        Why an earlier layer was taken, or why differences were.
    """

    map: Array
    evidence: Array
    weights: Array
    classes: Array
    scores: Array
    layer: str
    method: str
    error: float | None
    notices: tuple[str, ...]


class GradCam:
    """A model prepared once, that explains as many images as come; from several threads too.

    Parameters
    ----------
    model : path, bytes or ModelProto
        With its weights; it is not changed.
    layer : str, optional
        Tensor, or node that makes it: a feature map (N, C, H, W) or (N, H, W, C), or patch tokens (N, T, C). Without
        it, the last one with spatial resolution.
    score : str, optional
        Class scores (N, classes), where the model has several outputs.
    dims, shapes : mappings, optional
        As `latpred.predict` takes them.
    threads : int
        Of the runtime; 0 for as many as it thinks best.

    Attributes
    ----------
    image : ImageInput
    layer : FeatureMap
    score : str
        Tensor of the class scores.
    method : str
    notices : tuple of str
    tensors : tuple of str
        What `of` needs: the feature map, what goes past it, and the scores.

    Raises
    ------
    ModelError, DimensionError, ShapeError
        As `latpred.surgery.tidy.tidied` raises them, and where weights are missing.
    InputError
        Where no tensor has the layer's or the score's name.
    SurgeryError
        Where there is no image input, no class score, or no feature map.
    """

    def __init__(
        self,
        model: Source,
        layer: str | None = None,
        score: str | None = None,
        dims: Mapping[str, int] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        threads: int = 0,
    ) -> None:
        self._wiring = wired(tidied(model, dims, shapes))
        self._threads = threads
        self.image = image_input(self._wiring)
        self.score = class_scores(self._wiring, score)
        if layer is None:
            self.layer, notices = chosen_map(self._wiring, self.score, self.image, self._is_read)
        else:
            self.layer, notices = named_map(self._wiring, layer, self.score, self.image), ()
        tail = tail_at(self._wiring, self.layer.tensor, self.score)
        self._weighing, more = weighing(tail, self.layer, threads)
        self.method = self._weighing.method
        self.notices = (*notices, *more)
        self.tensors = (self.layer.tensor, *tail.held, self.score)
        made = [name for name in self.tensors if name in self._wiring.makers]
        self._trunk = ModelSession(trunk_model(self._wiring, made), threads)

    def _is_read(self, found: FeatureMap) -> bool:
        """Whether scores change, for drawn values, when what lies on the grid does."""
        tail = tail_at(self._wiring, found.tensor, self.score)
        session = ModelSession(tail_model(tail), self._threads)
        rng = np.random.default_rng(0)
        specs = {name: self._wiring.spec(name) for name in session.inputs}
        tensors = {name: rng.standard_normal(spec.shape).astype(spec.dtype) for name, spec in specs.items()}
        other = rng.standard_normal(found.shape).astype(np.float32)
        on_grid = np.ones(found.shape, np.float32)
        if found.extra_tokens:
            on_grid[:, : found.extra_tokens] = 0.0
        moved = (tensors[found.tensor] + other * on_grid).astype(specs[found.tensor].dtype)
        before, after = (session.run(feeds)[self.score] for feeds in (tensors, {**tensors, found.tensor: moved}))
        return not np.array_equal(before, after)

    def run(self, feeds: Mapping[str, Array], class_index: int | Sequence[int] | None = None) -> Saliency:
        """Explain a batch of images.

        Parameters
        ----------
        feeds : mapping of str to array
            The model's inputs, of the shapes that it was prepared for.
        class_index : int or sequence of int, optional
            One for all, or one an image; without it, the class of the largest score.

        Raises
        ------
        InputError
            Where an input is missing or of another shape, or there is no such class.
        """
        known = {name: self._checked(name, feeds) for name in self._trunk.inputs}
        return self.of(known | self._trunk.run(known), class_index)

    def of(self, tensors: Mapping[str, Array], class_index: int | Sequence[int] | None = None) -> Saliency:
        """Explain what ran already.

        Parameters
        ----------
        tensors : mapping of str to array
            Those named in `tensors`, as the model made them.
        class_index : int or sequence of int, optional
            As `run` takes it.

        Raises
        ------
        InputError
            Where there is no such class, or what comes out is not finite.
        """
        found = tensors[self.score].reshape(self.layer.shape[0], -1).astype(np.float64)
        classes = _classes(found, class_index)
        weights, error = self._weighing.weights(tensors, classes)
        channels = self.layer.arranged(tensors[self.layer.tensor]).astype(np.float64)
        evidence = np.maximum(np.einsum("nk,nkij->nij", weights, channels), 0)
        if not (np.isfinite(weights).all() and np.isfinite(evidence).all()):
            raise InputError("finite scores and feature maps are needed, but there are infinite ones or none at all: "
                             "check how the image was normalised")  # fmt: skip
        return Saliency(
            map=min_max(bilinear(evidence, *self.image.size)).astype(np.float32),
            evidence=evidence,
            weights=weights,
            classes=classes,
            scores=found[np.arange(len(classes)), classes],
            layer=self.layer.tensor,
            method=self.method,
            error=error,
            notices=self.notices,
        )

    def _checked(self, name: str, feeds: Mapping[str, Array]) -> Array:
        spec = self._wiring.spec(name)
        came = f"{feeds[name].dtype}{list(feeds[name].shape)}" if name in feeds else "nothing"
        if name not in feeds or feeds[name].shape != spec.shape:
            raise InputError(f"input {name!r} of {spec.dtype}{list(spec.shape)} is needed, but {came} came: prepare "
                             "the image, or the model, for that shape")  # fmt: skip
        return np.ascontiguousarray(feeds[name], np.dtype(spec.dtype))


def _classes(scores: Array, class_index: int | Sequence[int] | None) -> Array:
    samples, count = scores.shape
    classes = scores.argmax(axis=1) if class_index is None else np.asarray(class_index)
    fits = classes.dtype.kind in "iu" and classes.shape in ((), (samples,))
    if not fits or not np.isin(classes, np.arange(count)).all():
        raise InputError(f"a class from 0 to {count - 1} is needed, one for all or one for each of {samples} images, "
                         f"but {class_index} came: name one of these")  # fmt: skip
    return np.broadcast_to(classes, (samples,)).astype(np.int64)


def saliency(
    model: Source,
    feeds: Mapping[str, Array],
    class_index: int | Sequence[int] | None = None,
    layer: str | None = None,
    score: str | None = None,
) -> Saliency:
    """Explain one batch of images; for more than one, prepare a `GradCam`.

    Parameters
    ----------
    model : path, bytes or ModelProto
    feeds : mapping of str to array
        The model's inputs; their shapes bind its open dims.
    class_index : int or sequence of int, optional
        By default the class of the largest score.
    layer, score : str, optional
        As `GradCam` takes them.

    Raises
    ------
    InputError
        As `GradCam` raises it.

    Examples
    --------
    >>> from onnx import helper, numpy_helper
    >>> ends = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [1, 2, 2, 2]), ("y", [1, 2]))]
    >>> nodes = [
    ...     helper.make_node("Relu", ["x"], ["a"]), helper.make_node("GlobalAveragePool", ["a"], ["p"]),
    ...     helper.make_node("Flatten", ["p"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"]),
    ... ]
    >>> weight = numpy_helper.from_array(np.array([[4, 0], [0, -8]], np.float32), "w")
    >>> model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight]),
    ...                           opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    >>> x = np.array([[[[1, 3], [0, 0]], [[0, 0], [0, 1]]]], np.float32)
    >>> found = saliency(model, {"x": x}, class_index=0)
    >>> found.weights, found.evidence, found.layer  # 4 over 4 positions
    (array([[1., 0.]]), array([[[1., 3.],
            [0., 0.]]]), 'a')
    """
    shapes = {name: np.shape(values) for name, values in feeds.items()}
    return GradCam(model, layer, score, shapes=shapes).run(feeds, class_index)


def salient_patches(evidence: Array, height: int, width: int, granularity: int, rate: float) -> Array:
    """The patches of a map on which most of the evidence lies, for computing there only.

    Parameters
    ----------
    evidence : array (rows, columns)
        Of one image, at any resolution: `Saliency.evidence` or `Saliency.map`.
    height, width : int
        Of the map that is to be computed on patches.
    granularity : int
        Positions along each side of a patch.
    rate : float
        Share of the patches.

    Returns
    -------
    array of int64
        Indices as `latpred.surgery.patches.computed_on` reads them, the most salient first.

    Raises
    ------
    SurgeryError
        Where the rate does not lie in [0, 1], or the map cannot be divided.

    Examples
    --------
    >>> salient_patches(np.array([[0.0, 1.0], [0.0, 3.0]]), 4, 4, 2, 0.5)
    array([3, 1])
    """
    fine = bilinear(evidence, height, width)
    sums = [
        fine[row : row + granularity, column : column + granularity].sum()
        for row, column in origins(height, width, granularity)
    ]
    return np.argsort(np.negative(sums), kind="stable")[: counts(height, width, granularity, rate)]
