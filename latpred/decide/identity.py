"""What a table of decisions is of: which model, with which shapes, on which device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

from latpred.errors import InputError
from latpred.fingerprint import fingerprint
from latpred.predictor import Model, Predictor

__all__ = ["Identity", "Shapes", "identity_of", "paired"]

Shapes = Mapping[str, Sequence[int]]  # input -> shape


class Identity(NamedTuple):
    """What a table and its file say that they are of.

    Attributes
    ----------
    model : str
        Fingerprint, hexadecimal: another one for other nodes, names, shapes or bound dims, the same for other weights.
    device : str
        Name, processor, runtime with its version, and threads: ``local`` is another device on another machine.
    """

    model: str
    device: str


def identity_of(
    predictor: Predictor,
    model: Model | Sequence[Model],
    dims: Mapping[str, int] | None = None,
    shapes: Shapes | Sequence[Shapes | None] | None = None,
) -> Identity:
    """Identity of the table that `latpred.plan` makes of the same arguments; costs no prediction.

    Raises
    ------
    InputError
        When the model cannot be read, or shapes are not given as `latpred.plan` takes them.

    Examples
    --------
    ``Table.load(path, *identity_of(predictor, model))`` refuses a table of another model or device.

    >>> import latpred, onnx
    >>> x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 8]) for n in "xy")
    >>> graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    >>> model, predictor = onnx.helper.make_model(graph), latpred.load("jetson-nano")
    >>> identity_of(predictor, model).device
    'jetson-nano (NVIDIA Jetson Nano (Maxwell GM20B), onnxruntime, threads: 1)'
    >>> identity_of(predictor, model, {"N": 1}).model == identity_of(predictor, model, {"N": 4}).model
    False
    """
    device = predictor.estimator.device
    runtime = f"{device.runtime} {device.runtime_version}".strip()
    told = ", ".join(part for part in (device.processor, runtime, f"threads: {device.threads}") if part)
    keys = [fingerprint(one, dims, own) for one, own in paired(model, shapes)]
    key = keys[0] if len(keys) == 1 else blake2b(b"".join(keys), digest_size=len(keys[0])).digest()
    return Identity(key.hex(), f"{predictor.device} ({told})")


def paired(
    model: Model | Sequence[Model], shapes: Shapes | Sequence[Shapes | None] | None
) -> list[tuple[Model, Shapes | None]]:
    """Each model with its shapes; one pair for one model.

    Raises
    ------
    InputError
        When several shapes are given for one model, one model for several, or another number of shapes than of models.
    """
    if isinstance(model, str | bytes) or not isinstance(model, Sequence):
        if shapes is not None and not isinstance(shapes, Mapping):
            raise InputError(
                f"shapes of one model are a mapping of inputs, got {len(shapes)}: give one, or several models"
            )
        return [(model, shapes)]
    listed = [shapes] * len(model) if shapes is None or isinstance(shapes, Mapping) else list(shapes)
    if len(model) < 2 or len(listed) != len(model):
        raise InputError(
            f"a choice needs two models or more, and shapes of each, got {len(model)} and {len(listed)}: name them all"
        )
    return list(zip(model, listed, strict=True))
