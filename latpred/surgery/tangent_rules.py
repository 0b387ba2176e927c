"""How each op hands a direction on: the tangent of its result from the tangents of what it reads.

With y = f(x), the tangent of y along a direction d of x is J_f(x) d (Griewank and Walther, "Evaluating derivatives",
2nd ed., section 3.1). All tangents have one more axis before the tensor's own: the directions. An op that is linear is
its own tangent, without its bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod
from operator import add
from string import ascii_letters
from typing import Any

import numpy as np
import onnx

from latpred.surgery.channels import attributes_of
from latpred.surgery.expressions import Term
from latpred.surgery.slopes import SLOPES
from latpred.surgery.tangent_moves import MOVES, Rule
from latpred.surgery.tape import NoRuleError, Result, Tape, axis_of, integers

__all__ = ["RULES"]

EPSILON = 1e-5  # ONNX's default of normalisations
SOFTMAX_OF_ONE_AXIS = 13  # before it, all axes from the given one on were one


def _slope(tape: Tape, node: onnx.NodeProto) -> Result:
    x, y = tape.value(node.input[0]), tape.value(node.output[0])
    if len(node.input) > 1:
        raise NoRuleError(f"{node.op_type} {node.name!r} of {len(node.input)} operands")
    return tape.tangent(node.input[0]) * SLOPES[node.op_type](x, y, attributes_of(node))


def _clip(tape: Tape, node: onnx.NodeProto) -> Result:
    tape.only_first_moves(node)
    x, attributes = tape.value(node.input[0]), attributes_of(node)
    found = tape.tangent(node.input[0])
    for place, (name, op_type) in enumerate((("min", "Greater"), ("max", "Less")), 1):
        bound = tape.value(node.input[place]) if len(node.input) > place and node.input[place] else None
        if bound is None and name in attributes:
            bound = tape.sheet.constant(attributes[name])
        if bound is not None:
            found = tape.sheet.where(x.op(op_type, bound), found, 0.0)
    return found


def _per_sample(tape: Tape, node: onnx.NodeProto) -> Result:
    """A linear op on a batch: directions join the samples."""
    tape.only_first_moves(node)
    samples, *rest = tape.shape(node.input[0])
    together = tape.tangent(node.input[0]).shaped([tape.directions * samples, *rest])
    weights = [tape.value(name) for name in node.input[1:2]]  # without a bias
    found = tape.sheet.op(node.op_type, together, *weights, domain=node.domain, **attributes_of(node))
    return tape.reshaped(found, tape.shape(node.output[0]))


def _channel_scale(tape: Tape, x: str, values: Term) -> Term:
    rank = len(tape.shape(x))
    return values.shaped([tape.shape(x)[1], *[1] * (rank - 2)])


def _batch_norm(tape: Tape, node: onnx.NodeProto) -> Result:
    tape.only_first_moves(node)
    x, scale, _, _, variance = node.input
    attributes = attributes_of(node)
    if attributes.get("training_mode", 0):
        raise NoRuleError(f"{node.op_type} {node.name!r} in training mode")
    spread = (tape.value(variance) + float(str(attributes.get("epsilon", EPSILON)))).op("Sqrt")
    return tape.tangent(x) * _channel_scale(tape, x, tape.value(scale) / spread)


def _normalised(tape: Tape, x: str, axes: Sequence[int], attributes: Mapping[str, object]) -> Term:
    """Of (x - mean) / sqrt(variance + epsilon), both over some axes."""
    behind = [axis + 1 for axis in axes]
    value, tangent, sheet = tape.value(x), tape.tangent(x), tape.sheet
    centred = value - sheet.reduced("ReduceMean", value, axes)
    variance = sheet.reduced("ReduceMean", centred * centred, axes)
    inverse = 1 / (variance + float(str(attributes.get("epsilon", EPSILON)))).op("Sqrt")
    shrunk = centred * (inverse * inverse)
    along = sheet.reduced("ReduceMean", centred * tangent, behind)
    return inverse * (tangent - sheet.reduced("ReduceMean", tangent, behind) - shrunk * along)


def _layer_norm(tape: Tape, node: onnx.NodeProto) -> Result:
    tape.only_first_moves(node)
    attributes, rank = attributes_of(node), len(tape.shape(node.input[0]))
    axes = range(axis_of(attributes, rank, -1), rank)
    return _normalised(tape, node.input[0], axes, attributes) * tape.value(node.input[1])


def _instance_norm(tape: Tape, node: onnx.NodeProto) -> Result:
    tape.only_first_moves(node)
    x = node.input[0]
    found = _normalised(tape, x, range(2, len(tape.shape(x))), attributes_of(node))
    return found * _channel_scale(tape, x, tape.value(node.input[1]))


def _summed(tape: Tape, node: onnx.NodeProto, signs: Sequence[float]) -> Result:
    """Moving operands added up; what does not move is lost."""
    whole = tape.shape(node.output[0])
    moving = [(name, sign) for name, sign in zip(node.input, signs, strict=True) if tape.moves(name)]
    tangents = [tape.tangent(name, len(whole)) for name, _ in moving]
    total = reduce(add, (-one if sign < 0 else one for one, (_, sign) in zip(tangents, moving, strict=True)))
    shape = np.broadcast_shapes(*(tape.shape(name) for name, _ in moving))
    return tape.filled(total, (*[1] * (len(whole) - len(shape)), *shape), whole)


def _multiply(tape: Tape, node: onnx.NodeProto) -> Result:
    a, b = node.input
    rank = len(tape.shape(node.output[0]))
    found = [tape.tangent(x, rank) * tape.value(y) for x, y in ((a, b), (b, a)) if tape.moves(x)]
    return reduce(add, found)


def _divide(tape: Tape, node: onnx.NodeProto) -> Result:
    a, b = node.input
    rank = len(tape.shape(node.output[0]))
    below = tape.value(b)
    found = [tape.tangent(a, rank) / below] if tape.moves(a) else []
    if tape.moves(b):
        found.append(tape.tangent(b, rank) * (-(tape.value(node.output[0]) / below)))
    return reduce(add, found)


def _power(tape: Tape, node: onnx.NodeProto) -> Result:
    tape.only_first_moves(node)
    exponent = tape.constant(node, 1).astype(tape.sheet.dtype)
    x = tape.value(node.input[0])
    found = tape.tangent(node.input[0], len(tape.shape(node.output[0])))
    return found * ((x ** (exponent - 1)) * exponent)


def _chosen(tape: Tape, node: onnx.NodeProto, condition: Term, taken: str, otherwise: str, seen: Sequence[int]) -> Term:
    """Of one operand where a condition of shape `seen` holds, else of the other."""
    whole = tape.shape(node.output[0])
    sides = [tape.tangent(name, len(whole)) if tape.moves(name) else 0.0 for name in (taken, otherwise)]
    shapes = [tape.shape(name) for name in (taken, otherwise) if tape.moves(name)]
    shape = np.broadcast_shapes(tuple(seen), *shapes)
    return tape.filled(tape.sheet.where(condition, *sides), (*[1] * (len(whole) - len(shape)), *shape), whole)


def _where(tape: Tape, node: onnx.NodeProto) -> Result:
    condition, taken, otherwise = node.input
    return _chosen(tape, node, tape.value(condition), taken, otherwise, tape.shape(condition))


def _extreme(tape: Tape, node: onnx.NodeProto) -> Result:
    if len(node.input) != 2:
        raise NoRuleError(f"{node.op_type} {node.name!r} of {len(node.input)} operands")
    a, b = node.input
    condition = tape.value(a).op("Greater" if node.op_type == "Max" else "Less", tape.value(b))
    return _chosen(tape, node, condition, a, b, tape.shape(node.output[0]))


def _prelu(tape: Tape, node: onnx.NodeProto) -> Result:
    tape.only_first_moves(node)
    slope = tape.sheet.where(tape.value(node.input[0]).above(0.0), 1.0, tape.value(node.input[1]))
    return tape.tangent(node.input[0]) * slope


def _matmul(tape: Tape, node: onnx.NodeProto) -> Result:
    a, b = node.input
    ranks = len(tape.shape(a)), len(tape.shape(b))
    if min(ranks) < 2:
        raise NoRuleError(f"MatMul {node.name!r} of a vector")
    found = []
    if tape.moves(a):
        found.append(tape.tangent(a, max(ranks)) @ tape.value(b))
    if tape.moves(b):
        found.append(tape.value(a) @ tape.tangent(b, max(ranks)))
    return reduce(add, found)


def _einsum(tape: Tape, node: onnx.NodeProto) -> Result:
    """Linear in each operand; the directions are one more letter."""
    equation = str(attributes_of(node)["equation"]).replace(" ", "")
    left, arrow, result = equation.partition("->")
    if not arrow or "." in equation:
        raise NoRuleError(f"Einsum {node.name!r} of {equation!r}")
    terms = left.split(",")
    letter = next(one for one in ascii_letters if one not in equation)
    found = []
    for place, name in enumerate(node.input):
        if tape.moves(name):
            written = ",".join(letter + term if at == place else term for at, term in enumerate(terms))
            operands = [tape.tangent(one) if at == place else tape.value(one) for at, one in enumerate(node.input)]
            found.append(tape.sheet.op("Einsum", *operands, equation=f"{written}->{letter}{result}"))
    return reduce(add, found)


def _gemm(tape: Tape, node: onnx.NodeProto) -> Result:
    attributes = attributes_of(node)
    a, b, *bias = node.input
    whole = tape.shape(node.output[0])
    turned = int(str(attributes.get("transA", 0))), int(str(attributes.get("transB", 0)))
    alpha, beta = (float(str(attributes.get(name, 1.0))) for name in ("alpha", "beta"))
    found = []
    if tape.moves(a):
        rows = tape.tangent(a).op("Transpose", perm=[0, 2, 1]) if turned[0] else tape.tangent(a)
        together = rows.shaped([tape.directions * whole[0], tape.shape(a)[1 - turned[0]]])
        columns = tape.value(b).op("Transpose", perm=[1, 0]) if turned[1] else tape.value(b)
        found.append(tape.reshaped((together @ columns) * alpha, whole))  # a Gemm needs a bias in early opsets
    if tape.moves(b):
        rows = tape.value(a).op("Transpose", perm=[1, 0]) if turned[0] else tape.value(a)
        columns = tape.tangent(b).op("Transpose", perm=[0, 2, 1]) if turned[1] else tape.tangent(b)
        found.append((rows @ columns) * alpha)
    if bias and bias[0] and tape.moves(bias[0]):
        found.append(tape.tangent(bias[0], 2).expanded([tape.directions, *whole]) * beta)
    return reduce(add, found)


def _max_pool(tape: Tape, node: onnx.NodeProto) -> Result:
    """The tangent at the largest element of each window."""
    x, whole = node.input[0], tape.shape(node.output[0])
    attributes: dict[str, Any] = attributes_of(node)
    attributes.pop("storage_order", None)  # the order of the indices: ours are row by row
    if node.op_type == "GlobalMaxPool":
        attributes["kernel_shape"] = tape.shape(x)[2:]
    places = tape.sheet.multi("MaxPool", tape.value(x), results=2, **attributes)[1]
    flat = tape.reshaped(tape.tangent(x), [prod(tape.shape(x))])
    return tape.reshaped(flat.op("Gather", places.shaped([-1]), axis=1), whole)


def _reduce(tape: Tape, node: onnx.NodeProto) -> Result:
    axes = _reduced_axes(tape, node)
    if not axes:
        return tape.tangent(node.input[0])
    kept = bool(attributes_of(node).get("keepdims", 1))
    return tape.sheet.reduced(node.op_type, tape.tangent(node.input[0]), [axis + 1 for axis in axes], kept)


def _reduced_axes(tape: Tape, node: onnx.NodeProto) -> list[int]:
    attributes, rank = attributes_of(node), len(tape.shape(node.input[0]))
    axes = attributes.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1]:
        axes = tape.constant(node, 1)
    listed = [axis % rank for axis in integers(axes)] if axes is not None else []
    return listed if listed or attributes.get("noop_with_empty_axes", 0) else list(range(rank))


def _reduced_extreme(tape: Tape, node: onnx.NodeProto) -> Result:
    """The tangent at the largest or least element; where there are several, their mean."""
    x, axes = node.input[0], _reduced_axes(tape, node)
    kept = [1 if axis in axes else size for axis, size in enumerate(tape.shape(x))]
    reached = tape.value(x).op("Equal", tape.value(node.output[0]).shaped(kept))
    share = tape.sheet.where(reached, 1.0, 0.0)
    share = share / tape.sheet.reduced("ReduceSum", share, axes)
    found = tape.sheet.reduced("ReduceSum", tape.tangent(x) * share, [axis + 1 for axis in axes])
    return tape.reshaped(found, tape.shape(node.output[0]))


def _softmax(tape: Tape, node: onnx.NodeProto) -> Result:
    rank, old = len(tape.shape(node.input[0])), tape.wiring.opset < SOFTMAX_OF_ONE_AXIS
    axis = axis_of(attributes_of(node), rank, 1 if old else -1)
    if old and axis != rank - 1:
        raise NoRuleError(f"{node.op_type} {node.name!r} over several axes")
    tangent, y = tape.tangent(node.input[0]), tape.value(node.output[0])
    shares = y.op("Exp") if node.op_type == "LogSoftmax" else y
    left = tangent - tape.sheet.reduced("ReduceSum", shares * tangent, [axis + 1])
    return left if node.op_type == "LogSoftmax" else y * left


RULES: Mapping[str, Rule] = {
    **MOVES,
    **dict.fromkeys(SLOPES, _slope),
    **dict.fromkeys(("AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool", "SpaceToDepth"),
                    _per_sample),
    **dict.fromkeys(("GlobalMaxPool", "MaxPool"), _max_pool),
    **dict.fromkeys(("Max", "Min"), _extreme),
    **dict.fromkeys(("ReduceMax", "ReduceMin"), _reduced_extreme),
    **dict.fromkeys(("ReduceMean", "ReduceSum"), _reduce),
    **dict.fromkeys(("LogSoftmax", "Softmax"), _softmax),
    "Add": lambda tape, node: _summed(tape, node, (1, 1)),
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Div": _divide,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "Mul": _multiply,
    "PRelu": _prelu,
    "Pow": _power,
    "Sub": lambda tape, node: _summed(tape, node, (1, -1)),
    "Sum": lambda tape, node: _summed(tape, node, [1] * len(node.input)),
    "Where": _where,
}  # fmt: skip
