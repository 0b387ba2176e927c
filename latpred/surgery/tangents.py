"""Derivatives by forward computation: a tail together with the directional derivatives of its output.

Every node of the tail gets a tangent beside it (forward-mode differentiation, or dual numbers: Griewank and Walther,
"Evaluating derivatives", 2nd ed., section 3.1). No pass goes backwards, nothing is divided by a small step: what comes
out is exact up to rounding. Values are computed once, tangents for many directions at a time.
"""

from __future__ import annotations

import onnx

from latpred.errors import SurgeryError
from latpred.reading.nodes import names_read
from latpred.surgery.expressions import Sheet
from latpred.surgery.tails import Tail
from latpred.surgery.tangent_rules import RULES
from latpred.surgery.tape import NoRuleError, Tape
from latpred.surgery.wiring import Wiring, assembled, declared, extracted, wired
from latpred.tensors import Spec

__all__ = ["DIRECTIONS", "TANGENTS", "tangent_model"]

DIRECTIONS, TANGENTS = "latpred:directions", "latpred:tangents"
OLDEST_OPSET = 9  # Where
DOMAINS = ("", "ai.onnx", "com.microsoft")
FLAT = frozenset({"Ceil", "Floor", "Round", "Sign"})  # floating results whose derivative is zero
STEPPED = frozenset({"DynamicQuantizeLinear", "QuantizeLinear"})  # so is theirs, but they stand for what has a slope
FLOATING = ("float16", "float32", "float64", "bfloat16")


def tangent_model(tail: Tail, count: int) -> onnx.ModelProto:
    """A model of directional derivatives of the tail's output with respect to its start.

    Parameters
    ----------
    tail : Tail
    count : int
        Directions in a run.

    Returns
    -------
    ModelProto
        It reads the start, what is held, and `DIRECTIONS` of shape (count, *start); it makes `TANGENTS` of shape
        (count, *output).

    Raises
    ------
    SurgeryError
        Where an op of the tail has no rule; the text names it.

    Examples
    --------
    >>> from onnx import helper
    >>> from latpred.surgery.tails import tail_at
    >>> x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 8]) for n in "xy")
    >>> model = helper.make_model(helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "g", [x], [y]))
    >>> [node.op_type for node in tangent_model(tail_at(wired(model), "x", "y"), 3).graph.node]
    ['Sigmoid', 'Sub', 'Mul', 'Mul', 'Identity']
    """
    wiring = tail.wiring
    start, end = wiring.spec(tail.start), wiring.spec(tail.output)
    if wiring.opset < OLDEST_OPSET:
        raise SurgeryError(f"an opset of at least {OLDEST_OPSET} is needed, but the model has {wiring.opset}: "
                           "convert it with onnx.version_converter")  # fmt: skip
    tape = Tape(wiring, Sheet(_free_prefix(wiring), wiring.opset, start.dtype), count)
    tape.tangents[tail.start] = tape.sheet.term(DIRECTIONS)
    nodes = [_written(tape, tail, index) for index in tail.nodes]
    if not tape.moves(tail.output):
        raise _lacking(f"{tail.output!r}, which changes by jumps only")
    last = onnx.helper.make_node("Identity", [tape.tangents[tail.output].name], [TANGENTS], f"{TANGENTS}/Identity")
    whole = assembled(
        wiring.model,
        f"tangents {tail.start} > {tail.output}",
        [node for group in nodes for node in group] + [last],
        [
            *(declared(name, wiring.spec(name)) for name in (tail.start, *tail.held)),
            declared(DIRECTIONS, Spec((count, *start.shape), start.dtype)),
        ],
        [declared(TANGENTS, Spec((count, *end.shape), start.dtype))],
        [*wiring.model.graph.initializer, *tape.sheet.stored],
        wiring.infos,
    )
    return _needed(whole)


def _free_prefix(wiring: Wiring) -> str:
    prefix = "tangent/"
    while any(name.startswith(prefix) for name in (*wiring.makers, *wiring.stored, *wiring.inputs)):
        prefix = f"~{prefix}"
    return prefix


def _written(tape: Tape, tail: Tail, index: int) -> list[onnx.NodeProto]:
    """The node itself, then those of its tangents."""
    node = tail.wiring.nodes[index]
    before = len(tape.sheet.nodes)
    moving = [name for name in node.output if name in tail.moving and _can_move(tail.wiring, node, name)]
    if moving and any(tape.moves(name) for name in tail.wiring.reads[index]):
        rule = RULES.get(node.op_type) if node.domain in DOMAINS else None
        try:
            if rule is None:
                raise NoRuleError(f"{node.op_type} {node.name!r}")
            found = rule(tape, node)
        except NoRuleError as error:
            raise _lacking(str(error)) from error
        results = found if isinstance(found, tuple) else (found,)
        for name, result in zip(node.output, results, strict=False):
            if name:
                tape.tangents[name] = result
        if any(name in tail.wiring.users and not tape.moves(name) for name in moving):
            raise _lacking(f"{node.op_type} {node.name!r} of several results")
    return [node, *tape.sheet.nodes[before:]]


def _lacking(what: str) -> SurgeryError:
    return SurgeryError(f"no rule gives the derivative of {what}: differences can stand in for it")


def _can_move(wiring: Wiring, node: onnx.NodeProto, name: str) -> bool:
    """Whether a result changes with what is read, by more than jumps."""
    if not name or node.op_type in FLAT:
        return False
    return node.op_type in STEPPED or name not in wiring.infos or wiring.spec(name).dtype in FLOATING


def _needed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without nodes that its output does not hang on."""
    wiring = wired(model)
    graph = model.graph
    kept = [wiring.nodes[index] for index in extracted(wiring, wiring.inputs, wiring.outputs)]
    read = {name for node in kept for name in names_read(node)}
    inputs = [value for value in graph.input if value.name in read]
    return assembled(model, graph.name, kept, inputs, graph.output, graph.initializer, wiring.infos)
