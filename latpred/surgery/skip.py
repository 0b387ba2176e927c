"""Leaving a region out: no graph runs at all, its input is handed on as its output."""

from __future__ import annotations

import onnx

from latpred.surgery.wiring import Wiring, wired

__all__ = ["can_skip"]


def can_skip(piece: onnx.ModelProto | Wiring) -> str | None:
    """Why a piece cannot be left out; None where its input can stand for its output.

    Carried tensors may be read, but not made.

    Examples
    --------
    >>> from onnx import TensorProto, helper
    >>> x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s]) for n, s in (("x", 8), ("y", 16)))
    >>> node = helper.make_node("Concat", ["x", "x"], ["y"], axis=1)
    >>> can_skip(helper.make_model(helper.make_graph([node], "g", [x], [y])))
    "its output 'y' is float32[1, 16], its input 'x' is float32[1, 8]"
    """
    wiring = wired(piece)
    if len(wiring.outputs) != 1:
        return f"it also makes {', '.join(map(repr, wiring.outputs[1:]))}, which is read elsewhere"
    start, end = wiring.inputs[0], wiring.outputs[0]
    before, after = wiring.spec(start), wiring.spec(end)
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return (
            f"its output {end!r} is {after.dtype}{list(after.shape)}, "
            f"its input {start!r} is {before.dtype}{list(before.shape)}"
        )
    return None
