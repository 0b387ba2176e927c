"""Every error that latpred raises on purpose, as one tree.

`InputError` and what is below it is the caller's to mend (the command line exits with 2);
the rest is the world's doing (it exits with 1).
"""

from __future__ import annotations

__all__ = [
    "ArtefactError",
    "DeviceError",
    "DimensionError",
    "HookError",
    "InputError",
    "LatpredError",
    "MeasurementError",
    "ModelError",
    "ShapeError",
    "SurgeryError",
    "UnsupportedError",
]


class LatpredError(Exception):
    """Base of every error of latpred; its text is one line: required, came, what to do."""


class InputError(LatpredError):
    """What the caller gave cannot be used as it is."""


class ModelError(InputError):
    """The file or object is no ONNX model, or a broken one."""


class DimensionError(InputError):
    """A dimension is unbound, bound twice, or named but not there."""


class ShapeError(InputError):
    """A tensor's shape stays unknown after inference and constant propagation."""


class SurgeryError(InputError):
    """The graph cannot be rewritten as asked; the text says what stands in the way."""


class HookError(InputError):
    """A model cannot be hooked, or a hooked one used, as asked; the text says why."""


class DeviceError(InputError):
    """No such device, or no predictor for it; the text names the command that makes one."""


class ArtefactError(LatpredError):
    """A stored file does not match: schema, checksum, device, runtime or threads."""


class UnsupportedError(LatpredError):
    """A kernel that no regressor knows, where the caller asked to be strict."""


class MeasurementError(LatpredError):
    """The runtime failed, hung, or ran out of memory while it was measured."""
