"""What hooks were made for: model, weights, device and runtime, so that they are never put on another one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import onnx
from onnx import numpy_helper

from latpred.decide.identity import Identity
from latpred.surgery.quantize import Range
from latpred.surgery.weights import has_data

__all__ = ["Origin", "weights_digest"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a hooked model comes from.

    Attributes
    ----------
    path : str or None
        Of the model's file; None where it was given as an object, which is not kept.
    identity : Identity
        Structure of the model, and the device that predictions are of.
    weights : str
        Digest of the model's values.
    runtime : str
        Version of the runtime that runs.
    threads : int
    providers : tuple of str
    outside : str
        What regions that are computed on patches hand on elsewhere.
    dims, shapes : mappings
        As the model was bound.
    ranges : mapping
        Of regions that may run in int8: point -> tensor -> (least, largest).
    """

    path: str | None
    identity: Identity
    weights: str
    runtime: str
    threads: int
    providers: tuple[str, ...]
    outside: str
    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ranges: Mapping[str, Mapping[str, Range]] = field(default_factory=dict)


def weights_digest(model: onnx.ModelProto) -> str:
    """A number that stands for all stored values of a model, by name.

    Examples
    --------
    >>> import numpy as np
    >>> stored = [numpy_helper.from_array(np.full(9, value, np.float32), "w") for value in (1, 2)]
    >>> one, other = (onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor])) for tensor in stored)
    >>> weights_digest(one) == weights_digest(other)
    False
    """
    digest = blake2b(digest_size=16)
    for stored in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        digest.update(repr((stored.name, stored.data_type, tuple(stored.dims))).encode())
        if stored.raw_data:
            digest.update(stored.raw_data)
        elif has_data(stored):
            digest.update(numpy_helper.to_array(stored).tobytes())
    return digest.hexdigest()


def path_of(source: object) -> str | None:
    """The file that a model is read from, where it is one."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else None
