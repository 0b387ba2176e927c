"""Derivatives of elementwise functions, written in terms of what they read and what they make.

Where a function has a corner (a ReLU at zero), the derivative there is that of the side where it is flat, as frameworks
take it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import pi, sqrt

from latpred.surgery.expressions import Operand, Term

__all__ = ["SLOPES"]

GELU_CUBIC = 0.044715  # Hendrycks and Gimpel, "Gaussian error linear units", 2016, section 2
SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875  # ONNX's defaults

Attributes = Mapping[str, object]
Slope = Callable[[Term, Term, Attributes], Operand]


def _number(attributes: Attributes, name: str, default: float) -> float:
    return float(str(attributes.get(name, default)))


def _steps(x: Term, above: Operand, otherwise: Operand, at: float = 0.0) -> Term:
    """One value where x is greater, another elsewhere."""
    return x.sheet.where(x.above(at), above, otherwise)


def _gelu(x: Term, _y: Term, attributes: Attributes) -> Operand:
    if attributes.get("approximate", "none") == "tanh":
        inner = sqrt(2 / pi) * (x + GELU_CUBIC * x * x * x)
        bent = inner.op("Tanh")
        rise = sqrt(2 / pi) * (1 + 3 * GELU_CUBIC * x * x)
        return 0.5 * (1 + bent) + 0.5 * x * (1 - bent * bent) * rise
    below = 0.5 * (1 + (x * sqrt(0.5)).op("Erf"))
    return below + x * (x * x * -0.5).op("Exp") * (1 / sqrt(2 * pi))


def _quick_gelu(x: Term, _y: Term, attributes: Attributes) -> Operand:
    alpha = _number(attributes, "alpha", 1.702)
    share = (alpha * x).op("Sigmoid")
    return share + alpha * x * share * (1 - share)


def _swish(x: Term, _y: Term, attributes: Attributes) -> Operand:
    return _quick_gelu(x, _y, {"alpha": _number(attributes, "alpha", 1.0)})


def _mish(x: Term, _y: Term, _attributes: Attributes) -> Operand:
    bent = x.op("Softplus").op("Tanh")
    return bent + x * (1 - bent * bent) * x.op("Sigmoid")


def _elu(x: Term, y: Term, attributes: Attributes) -> Operand:
    return _steps(x, 1.0, y + _number(attributes, "alpha", 1.0))


def _celu(x: Term, y: Term, attributes: Attributes) -> Operand:
    alpha = _number(attributes, "alpha", 1.0)
    return _steps(x, 1.0, y * (1 / alpha) + 1.0)


def _selu(x: Term, y: Term, attributes: Attributes) -> Operand:
    alpha, gamma = _number(attributes, "alpha", SELU_ALPHA), _number(attributes, "gamma", SELU_GAMMA)
    return _steps(x, gamma, y + alpha * gamma)


def _hard_sigmoid(_x: Term, y: Term, attributes: Attributes) -> Operand:
    return _steps(y * (1 - y), _number(attributes, "alpha", 0.2), 0.0)


def _hard_swish(x: Term, _y: Term, _attributes: Attributes) -> Operand:
    return _steps(x, 1.0, _steps(x, x * (1 / 3) + 0.5, 0.0, at=-3.0), at=3.0)


def _softsign(x: Term, _y: Term, _attributes: Attributes) -> Operand:
    share = 1 / (1 + x.op("Abs"))
    return share * share


SLOPES: Mapping[str, Slope] = {
    "Abs": lambda x, _y, _a: x.op("Sign"),
    "Celu": _celu,
    "Cos": lambda x, _y, _a: -x.op("Sin"),
    "Elu": _elu,
    "Erf": lambda x, _y, _a: (x * x * -1.0).op("Exp") * (2 / sqrt(pi)),
    "Exp": lambda _x, y, _a: y,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": lambda x, _y, a: _steps(x, 1.0, _number(a, "alpha", 0.01)),
    "Log": lambda x, _y, _a: 1 / x,
    "Mish": _mish,
    "Neg": lambda _x, _y, _a: -1.0,
    "QuickGelu": _quick_gelu,
    "Reciprocal": lambda _x, y, _a: -(y * y),
    "Relu": lambda x, _y, _a: _steps(x, 1.0, 0.0),
    "Selu": _selu,
    "Sigmoid": lambda _x, y, _a: y * (1 - y),
    "Sin": lambda x, _y, _a: x.op("Cos"),
    "Softplus": lambda x, _y, _a: x.op("Sigmoid"),
    "Softsign": _softsign,
    "Sqrt": lambda _x, y, _a: 0.5 / y,
    "Swish": _swish,
    "Tanh": lambda _x, y, _a: 1 - y * y,
    "ThresholdedRelu": lambda x, _y, a: _steps(x, 1.0, 0.0, at=_number(a, "alpha", 1.0)),
}
