"""How ops that only move elements about hand a direction on: as they hand on the elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
import onnx

from latpred.surgery.channels import attributes_of
from latpred.surgery.tape import NoRuleError, Result, Tape, axis_of, integers

__all__ = ["MOVES", "Rule"]

SLICES_BY_INPUT = 10
PADS_BY_INPUT = 11

Rule = Callable[[Tape, onnx.NodeProto], Result]


def _same_elements(tape: Tape, node: onnx.NodeProto) -> Result:
    return tape.reshaped(tape.tangent(node.input[0]), tape.shape(node.output[0]))


def _cast(tape: Tape, node: onnx.NodeProto) -> Result:
    if tape.wiring.spec(node.input[0]).dtype != tape.wiring.spec(node.output[0]).dtype:
        raise NoRuleError(f"Cast {node.name!r} to another dtype")
    return tape.tangent(node.input[0])


def _transpose(tape: Tape, node: onnx.NodeProto) -> Result:
    rank = len(tape.shape(node.input[0]))
    order = integers(attributes_of(node).get("perm", range(rank)[::-1]))
    return tape.tangent(node.input[0]).op("Transpose", perm=[0, *(axis + 1 for axis in order)])


def _concat(tape: Tape, node: onnx.NodeProto) -> Result:
    axis = axis_of(attributes_of(node), len(tape.shape(node.output[0])))
    parts = [tape.tangent(name) if tape.moves(name) else tape.zeros(name) for name in node.input]
    return tape.sheet.op("Concat", *parts, axis=axis + 1)


def _split(tape: Tape, node: onnx.NodeProto) -> Result:
    axis = axis_of(attributes_of(node), len(tape.shape(node.input[0])))
    sizes = [tape.shape(name)[axis] for name in node.output]
    return tape.sheet.parts(tape.tangent(node.input[0]), sizes, axis + 1)


def _slice(tape: Tape, node: onnx.NodeProto) -> Result:
    if tape.wiring.opset < SLICES_BY_INPUT:
        raise NoRuleError(f"Slice {node.name!r} of opset {tape.wiring.opset}")
    starts, ends = (tape.value(name) for name in node.input[1:3])
    rank = len(tape.shape(node.input[0]))
    if len(node.input) > 3 and node.input[3]:
        axes = [axis % rank for axis in integers(tape.constant(node, 3))]
    else:
        axes = list(range(prod(tape.shape(node.input[1]))))
    dtype = tape.wiring.spec(node.input[1]).dtype
    behind = tape.sheet.constant([axis + 1 for axis in axes], dtype)
    steps = [tape.value(node.input[4])] if len(node.input) > 4 and node.input[4] else []
    return tape.tangent(node.input[0]).op("Slice", starts, ends, behind, *steps)


def _gather(tape: Tape, node: onnx.NodeProto) -> Result:
    axis = axis_of(attributes_of(node), len(tape.shape(node.input[0])))
    return tape.tangent(node.input[0]).op("Gather", tape.value(node.input[1]), axis=axis + 1)


def _expand(tape: Tape, node: onnx.NodeProto) -> Result:
    whole = tape.shape(node.output[0])
    return tape.tangent(node.input[0], len(whole)).expanded([tape.directions, *whole])


def _tile(tape: Tape, node: onnx.NodeProto) -> Result:
    repeats = tape.sheet.constant([1, *integers(tape.constant(node, 1))], np.int64)
    return tape.tangent(node.input[0]).op("Tile", repeats)


def _pad(tape: Tape, node: onnx.NodeProto) -> Result:
    tape.only_first_moves(node)
    if tape.wiring.opset < PADS_BY_INPUT or (len(node.input) > 3 and node.input[3]):
        raise NoRuleError(f"Pad {node.name!r} of opset {tape.wiring.opset}, or along named axes")
    pads = integers(tape.constant(node, 1))
    half = len(pads) // 2
    around = tape.sheet.constant([0, *pads[:half], 0, *pads[half:]], np.int64)
    mode = attributes_of(node).get("mode", "constant")
    return tape.tangent(node.input[0]).op("Pad", around, mode=mode)


MOVES: Mapping[str, Rule] = {
    **dict.fromkeys(("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"), _same_elements),
    "Cast": _cast,
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Tile": _tile,
    "Transpose": _transpose,
}
