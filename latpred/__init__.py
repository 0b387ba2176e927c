"""Latency of a neural network, predicted kernel by kernel.

Names are imported when they are first used: ``import latpred`` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latpred.decide.plan import Plan, plan
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
        UnsupportedError,
    )
    from latpred.prediction import KernelPrediction, Prediction
    from latpred.predictor import Predictor, load, predict

__all__ = [
    "ArtefactError",
    "Device",
    "DeviceError",
    "DimensionError",
    "InputError",
    "KernelPrediction",
    "LatpredError",
    "MeasurementError",
    "ModelError",
    "Plan",
    "Prediction",
    "Predictor",
    "ShapeError",
    "UnsupportedError",
    "load",
    "plan",
    "predict",
]

_HOMES = {
    "Device": "latpred.device",
    "KernelPrediction": "latpred.prediction",
    "Plan": "latpred.decide.plan",
    "Prediction": "latpred.prediction",
    "Predictor": "latpred.predictor",
    "load": "latpred.predictor",
    "plan": "latpred.decide.plan",
    "predict": "latpred.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "latpred.errors")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
