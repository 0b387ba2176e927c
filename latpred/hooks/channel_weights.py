"""How much each channel of a feature map counts for a class, by forward computation only.

alpha_k = (1/Z) sum over positions of dy_c/dA^k (Selvaraju et al., "Grad-CAM", ICCV 2017, equation 1) is a directional
derivative: (1/Z) d/de y_c(A + e 1_k) at e = 0, with 1_k one at all Z positions of channel k. There are three ways to
it, and the first that serves is taken:

1. `ClosedForm`: behind average pooling and a linear map it is the map's weight over Z (section 3.1: CAM's weights).
2. `ForwardTangents`: tangents beside the tail's values, for many channels in a run; exact up to rounding.
3. `CentralDifferences`: where an op of the tail has no rule of its tangent.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Protocol

import numpy as np
import onnx

from latpred.errors import ModelError, SurgeryError
from latpred.hooks.feature_maps import FeatureMap
from latpred.hooks.model_session import ModelSession
from latpred.surgery.channels import attributes_of
from latpred.surgery.tails import Tail, tail_model
from latpred.surgery.tangents import DIRECTIONS, TANGENTS, tangent_model
from latpred.surgery.weights import values_of
from latpred.tensors import Array

__all__ = ["CentralDifferences", "ClosedForm", "ForwardTangents", "Weighing", "linear_weights", "weighing"]

SHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
RUN_BYTES = 1 << 25  # of the largest tangent: directions of a run are as many as fit
# Steps of differences, in units of the map's root mean square. Large ones serve smooth tails (the error is O(h^4) after
# extrapolation), small ones those with corners (O(h)), smaller ones drown in rounding (O(1/h)).
RATIO = 4
STEPS = tuple(float(RATIO) ** -k for k in range(1, 6))

Tensors = Mapping[str, Array]


class Weighing(Protocol):
    """A way to the weights of channels."""

    method: str

    def weights(self, tensors: Tensors, classes: Array) -> tuple[Array, float | None]:
        """Weights (N, C) in float64 for one class a sample, and their error.

        The error is estimated, relative to the largest weight; None where it is rounding alone.
        """


def weighing(tail: Tail, found: FeatureMap, threads: int = 0) -> tuple[Weighing, tuple[str, ...]]:
    """The way that serves for a tail, and what is to be said of it."""
    matrix = linear_weights(tail, found)
    if matrix is not None:
        return ClosedForm(matrix), ()
    try:
        return ForwardTangents(tail, found, threads), ()
    except (SurgeryError, ModelError) as error:  # an op without a rule, or a graph that this runtime does not take
        return CentralDifferences(tail, found, threads), (str(error),)


class ClosedForm:
    """Weights that hang on the class only.

    Parameters
    ----------
    matrix : array (classes, C)
    """

    method = "closed form"

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix

    def weights(self, tensors: Tensors, classes: Array) -> tuple[Array, float | None]:  # noqa: ARG002
        """As `Weighing.weights`."""
        return self.matrix[classes], None


class ForwardTangents:
    """Tangents of the scores along each channel."""

    method = "forward tangents"

    def __init__(self, tail: Tail, found: FeatureMap, threads: int = 0) -> None:
        self.found = found
        largest = max(tail.wiring.spec(name).size_bytes for name in _moving(tail))
        self.count = max(1, min(found.channels, RUN_BYTES // largest))
        self._session = ModelSession(tangent_model(tail, self.count), threads)

    def weights(self, tensors: Tensors, classes: Array) -> tuple[Array, float | None]:
        """As `Weighing.weights`."""
        slopes = []
        for first in range(0, self.found.channels, self.count):
            directions = self.found.directions(first, self.count).astype(tensors[self.found.tensor].dtype)
            made = self._session.run({**tensors, DIRECTIONS: directions})[TANGENTS]
            slopes.append(_of_classes(made, classes))
        total = np.concatenate(slopes)[: self.found.channels]
        return total.T / self.found.positions, None


class CentralDifferences:
    """(y(A + h) - y(A - h)) / 2h at several steps h, two neighbours of which are extrapolated to h = 0.

    Those two that differ least: what they differ by is the estimate of the error (Ridders, "Accurate computation of
    F'(x) and F'(x) F''(x)", Advances in Engineering Software 4, 1982; Press et al., "Numerical recipes", 3rd ed.,
    section 5.7).
    """

    method = "central differences"

    def __init__(self, tail: Tail, found: FeatureMap, threads: int = 0) -> None:
        self.found = found
        self.output = tail.output
        self._session = ModelSession(tail_model(tail), threads)

    def weights(self, tensors: Tensors, classes: Array) -> tuple[Array, float | None]:
        """As `Weighing.weights`."""
        values = tensors[self.found.tensor]
        size = float(np.sqrt(np.mean(np.square(self.found.arranged(values), dtype=np.float64)))) or 1.0
        slopes = [self._slopes(tensors, step * size, classes) for step in STEPS]
        # Of a tail that is quantized, small steps show nothing: two zeros that agree do not count.
        shown = [bool(slope.any()) for slope in slopes]
        apart = [float(np.abs(wide - narrow).max()) for wide, narrow in pairwise(slopes)]
        best = min(range(len(apart)), key=lambda place: (-shown[place] - shown[place + 1], apart[place]))
        total = (RATIO**2 * slopes[best + 1] - slopes[best]) / (RATIO**2 - 1) if shown[best + 1] else slopes[best]
        largest = float(np.abs(total).max())
        return total / self.found.positions, apart[best] / largest if largest else apart[best]

    def _slopes(self, tensors: Tensors, step: float, classes: Array) -> Array:
        """(N, C), summed over positions."""
        values = tensors[self.found.tensor]
        columns = []
        for channel in range(self.found.channels):
            direction = step * self.found.directions(channel, 1)[0]
            ahead, behind = (
                self._scores({**tensors, self.found.tensor: moved.astype(values.dtype)}, classes)
                for moved in (values + direction, values - direction)
            )
            columns.append((ahead - behind) / (2 * step))
        return np.stack(columns, axis=1)

    def _scores(self, tensors: Tensors, classes: Array) -> Array:
        found: Array = _of_classes(self._session.run(tensors)[self.output][None], classes)[0]
        return found


def _of_classes(scores: Array, classes: Array) -> Array:
    """(directions, N, classes, ...) -> (directions, N) in float64."""
    flat = scores.reshape(*scores.shape[:2], -1)
    return flat[:, np.arange(len(classes)), classes].astype(np.float64)


def _moving(tail: Tail) -> list[str]:
    made = [name for index in tail.nodes for name in tail.wiring.nodes[index].output if name in tail.moving]
    return [tail.start, *(name for name in made if name in tail.wiring.infos)]


def linear_weights(tail: Tail, found: FeatureMap) -> Array | None:
    """Weights (classes, C) where a tail is average pooling, then linear maps; None where it is anything else."""
    wiring, name = tail.wiring, tail.start
    pooled, matrix = False, np.ones(())
    while name != tail.output:
        readers = [index for index in wiring.users.get(name, ()) if index in tail.nodes]
        node = wiring.nodes[readers[0]]
        if len(readers) > 1 or list(node.input).count(name) != 1:
            return None
        if not pooled:
            if found.extra_tokens or not _averages(tail, node, found):
                return None
            pooled = True
        elif node.op_type in SHAPING:
            if not _is_vector(wiring.spec(node.output[0]).shape):
                return None
        else:
            step = _linear(tail, node, name)
            if step is None:
                return None
            matrix = step @ matrix if step.ndim and matrix.ndim else step * matrix
        name = node.output[0]
    if not pooled:
        return None
    whole = matrix if matrix.ndim else matrix * np.eye(found.channels)
    return whole / found.positions


def _is_vector(shape: tuple[int, ...]) -> bool:
    """Whether each sample's elements lie along one axis."""
    return prod(shape[1:]) == max(shape[1:], default=0)


def _averages(tail: Tail, node: onnx.NodeProto, found: FeatureMap) -> bool:
    """Whether a node averages over all positions and nothing else."""
    axes = {axis for axis in range(1, len(found.shape)) if axis != found.channel_axis}
    attributes = attributes_of(node)
    if node.op_type == "GlobalAveragePool":
        return axes == {2, 3}
    if node.op_type == "AveragePool":
        pads = np.asarray(attributes.get("pads", ()))
        single = prod(tail.wiring.spec(node.output[0]).shape[2:]) == 1
        return axes == {2, 3} and single and attributes["kernel_shape"] == found.grid and not pads.any()
    if node.op_type != "ReduceMean":
        return False
    listed = attributes.get("axes")
    if listed is None and len(node.input) > 1 and node.input[1] in tail.wiring.stored:
        listed = values_of(tail.wiring.stored[node.input[1]])
    return listed is not None and {int(axis) % len(found.shape) for axis in np.asarray(listed)} == axes


def _linear(tail: Tail, node: onnx.NodeProto, moving: str) -> Array | None:
    """The matrix (out, in) of a node that maps a vector linearly; a number where it only adds something constant."""
    stored, shape = tail.wiring.stored, tail.wiring.spec(moving).shape
    others = [name for name in node.input if name and name != moving]
    known = [values for name in others if name in stored and (values := values_of(stored[name])) is not None]
    if not others or len(known) < len(others):
        return None
    attributes = attributes_of(node)
    if node.op_type in ("Add", "Sub"):
        same = tail.wiring.spec(node.output[0]).shape == shape
        return np.asarray(-1.0 if node.op_type == "Sub" and node.input[1] == moving else 1.0) if same else None
    weight = np.asarray(known[0], np.float64)
    if node.input[0] != moving:
        return None
    if node.op_type == "Gemm" and not attributes.get("transA", 0):
        return (weight if attributes.get("transB", 0) else weight.T) * float(str(attributes.get("alpha", 1.0)))
    if node.op_type == "MatMul" and weight.ndim == 2 and shape[-1] == prod(shape[1:]):
        return weight.T
    if node.op_type == "Conv" and attributes.get("group", 1) == 1 and prod(weight.shape[2:]) == 1:
        return weight.reshape(weight.shape[:2])
    return None
