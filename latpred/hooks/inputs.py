"""What a caller hands in, held against what a model declares: it is read by address, so nothing is taken on trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from latpred.errors import HookError
from latpred.tensors import Array, Spec

__all__ = ["Accepted"]


class Accepted:
    """The inputs that a model takes.

    Parameters
    ----------
    specs : mapping of str to Spec

    Examples
    --------
    >>> Accepted({"x": Spec((2, 4))}).checked({"x": np.zeros((4, 2), np.float32).T})["x"].flags.c_contiguous
    True
    """

    __slots__ = ("_wanted",)

    def __init__(self, specs: Mapping[str, Spec]) -> None:
        # A dtype is compared faster with another one than with its name.
        self._wanted = [(name, np.dtype(spec.dtype), spec.shape) for name, spec in specs.items()]

    def checked(self, inputs: object) -> dict[str, Array]:
        """The inputs as arrays without gaps.

        Raises
        ------
        HookError
            Where one is missing, too many, or of another shape or dtype than declared.
        """
        if not isinstance(inputs, Mapping):
            raise HookError(f"inputs by name are needed, got {type(inputs).__name__}: give a mapping of arrays")
        values = {}
        for name, dtype, shape in self._wanted:
            value = inputs.get(name)
            if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
                raise HookError(f"input {name!r} must be an array of {dtype}{list(shape)}, got {_told(value)}: convert "
                                "it, or attach with other shapes")  # fmt: skip
            values[name] = value if value.flags.c_contiguous else np.ascontiguousarray(value)
        if len(inputs) > len(values):
            unknown = ", ".join(sorted(set(inputs) - set(values)))
            raise HookError(f"the inputs {', '.join(values)} are needed, but {unknown} came too: leave it out")
        return values


def _told(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
