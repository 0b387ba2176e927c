"""Latency of a neural network, predicted kernel by kernel.

Names are imported when they are first used: ``import latpred`` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latpred import hooks as hooks
    from latpred.decide.declared import Declared
    from latpred.decide.gate import Gate
    from latpred.decide.identity import identity_of
    from latpred.decide.observation import Observation
    from latpred.decide.plan import Plan
    from latpred.decide.points import Grid
    from latpred.decide.table import Table
    from latpred.device import Device
    from latpred.errors import (
        ArtefactError,
        DeviceError,
        DimensionError,
        InputError,
        LatpredError,
        MeasurementError,
        ModelError,
        ShapeError,
        SurgeryError,
        UnsupportedError,
    )
    from latpred.prediction import KernelPrediction, Prediction
    from latpred.predictor import Predictor, load, predict

__all__ = [
    "ArtefactError",
    "Declared",
    "Device",
    "DeviceError",
    "DimensionError",
    "Gate",
    "Grid",
    "InputError",
    "KernelPrediction",
    "LatpredError",
    "MeasurementError",
    "ModelError",
    "Observation",
    "Plan",
    "Prediction",
    "Predictor",
    "ShapeError",
    "SurgeryError",
    "Table",
    "UnsupportedError",
    "identity_of",
    "load",
    "predict",
]

_HOMES = {
    "Declared": "latpred.decide.declared",
    "Device": "latpred.device",
    "Gate": "latpred.decide.gate",
    "Grid": "latpred.decide.points",
    "KernelPrediction": "latpred.prediction",
    "Observation": "latpred.decide.observation",
    "Plan": "latpred.decide.plan",
    "Prediction": "latpred.prediction",
    "Predictor": "latpred.predictor",
    "Table": "latpred.decide.table",
    "identity_of": "latpred.decide.identity",
    "load": "latpred.predictor",
    "predict": "latpred.predictor",
}


def __getattr__(name: str) -> Any:
    if name == "hooks":  # the one subpackage that is used by its own name
        return import_module("latpred.hooks")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "latpred.errors")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
