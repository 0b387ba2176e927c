"""Bodies of If, Loop and Scan: what goes in, how often they run, what comes out."""

# ruff: noqa: ARG001 - the functions of a table share one signature

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, cast

import onnx

from latpred.tensors import AttributeValue, Tensor

if TYPE_CHECKING:
    from latpred.graph import Graph

__all__ = ["CONTROL_FLOW", "Outcome"]

TRIP_LIMIT = 2**31 - 1  # exporters write a larger trip count for "no limit"

Attributes = Mapping[str, AttributeValue]
ReadBody = Callable[[onnx.GraphProto, Sequence[Tensor]], "Graph"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A control-flow node read: its bodies, their trip count, its outputs, and what was assumed."""

    bodies: tuple[Graph, ...]
    repeat: int | None
    outputs: tuple[Tensor | None, ...]  # None where a body's output stays unknown
    notices: tuple[str, ...] = ()


ReadNode = Callable[[Sequence["Tensor | None"], Attributes, Mapping[str, onnx.GraphProto], ReadBody], Outcome]


def _read_if(
    inputs: Sequence[Tensor | None], attributes: Attributes, graphs: Mapping[str, onnx.GraphProto], read_body: ReadBody
) -> Outcome:
    """Both branches; where their output shapes differ, the larger outputs count."""
    branches = (read_body(graphs["then_branch"], ()), read_body(graphs["else_branch"], ()))
    then_outputs, else_outputs = (_outputs(branch) for branch in branches)
    if _forms(then_outputs) == _forms(else_outputs):
        return Outcome(branches, 1, tuple(then_outputs))
    larger = max((then_outputs, else_outputs), key=lambda row: sum(prod(t.shape) for t in row if t is not None))
    name = "then" if larger is then_outputs else "else"
    notice = f"its branches give different shapes; what follows is sized for the {name} branch"
    return Outcome(branches, 1, tuple(larger), (notice,))


def _read_loop(
    inputs: Sequence[Tensor | None], attributes: Attributes, graphs: Mapping[str, onnx.GraphProto], read_body: ReadBody
) -> Outcome:
    limit = _integer(inputs[0]) if inputs else None
    if limit is not None and limit >= TRIP_LIMIT:
        limit = None
    graph = graphs["body"]
    count, going = (Tensor("", (), "int64"), Tensor("", (), "bool"))
    notices: list[str] = []

    def iteration(state: Sequence[Tensor]) -> tuple[Graph, list[Tensor | None], list[Tensor]]:
        body = read_body(graph, [count, going, *state])
        outputs = _outputs(body)
        return body, outputs, [new or old for old, new in zip(state, outputs[1 : 1 + len(state)], strict=True)]

    carried = [cast("Tensor", t) for t in inputs[2:]]
    body, outputs, final = iteration(carried)
    if _forms(final) != _forms(carried) and limit != 1:
        first = final
        body, outputs, second = iteration(first)
        final = second
        if limit is not None and _forms(second) != _forms(first):
            middle = [_after(old, new, max(0, (limit - 1) // 2 - 1)) for old, new in zip(first, second, strict=True)]
            body, outputs, _ = iteration(middle)
            final = [_after(old, new, limit - 1) for old, new in zip(first, second, strict=True)]
            notices.append(f"its carried values grow; all {limit} iterations are sized as the middle one")
    repeat = limit
    if not _goes_on(body):
        if _integer(outputs[0]) == 0:
            repeat = 1
        elif repeat is not None:
            notices.append(f"it may stop early; counted with its limit of {repeat} iterations")
    start = _integer(inputs[1]) if len(inputs) > 1 else None
    if start == 0:
        repeat = 0
    if repeat is None:
        notices.append("its trip count is not known; what it collects is sized for one iteration")
    trips = 1 if repeat is None else repeat
    collected = [t and replace(t, shape=(trips, *t.shape)) for t in outputs[1 + len(carried) :]]
    return Outcome((body,), repeat, (*final, *collected), tuple(notices))


def _forms(tensors: Sequence[Tensor | None]) -> list[object]:
    """What has to agree for two rows of tensors to be alike."""
    return [t and (t.shape, t.dtype, t.items and _forms(t.items)) for t in tensors]


def _after(old: Tensor, new: Tensor, iterations: int) -> Tensor:
    """What `old` becomes after that many steps of the kind that made `new` of it."""
    if new.items and old.items is not None:
        added = new.items[len(old.items) :]
        return replace(new, items=(*old.items, *added * iterations))
    if len(old.shape) != len(new.shape):
        return new
    sizes = (max(0, a + iterations * (b - a)) for a, b in zip(old.shape, new.shape, strict=True))
    return replace(new, shape=tuple(sizes))


def _goes_on(body: Graph) -> bool:
    """Whether the body's condition stays what it was: true, or handed through."""
    name = body.outputs[0]
    condition = body.tensors.get(name)
    if condition is not None and condition.value is not None:
        return bool(condition.value.reshape(-1)[0])
    handed = {op.outputs[0]: op.inputs[0] for op in body.ops if op.op_type in ("Identity", "Cast")}
    while name in handed:
        name = handed[name]
    return name == body.inputs[1]


def _read_scan(
    inputs: Sequence[Tensor | None], attributes: Attributes, graphs: Mapping[str, onnx.GraphProto], read_body: ReadBody
) -> Outcome:
    graph = graphs["body"]
    scanned_count = int(cast("int", attributes["num_scan_inputs"]))
    batched = len(inputs) == len(graph.input) + 1  # opset 8: sequence lengths first, and a batch dim everywhere
    given = [cast("Tensor", t) for t in inputs[1:]] if batched else [cast("Tensor", t) for t in inputs]
    states, scanned = given[: len(given) - scanned_count], given[len(given) - scanned_count :]
    batch: tuple[int, ...] = ()
    if batched:
        batch = given[0].shape[:1]
        states = [replace(t, shape=t.shape[1:]) for t in states]
        scanned = [replace(t, shape=t.shape[1:]) for t in scanned]
    axes = cast("tuple[int, ...]", attributes.get("scan_input_axes", (0,) * scanned_count))
    slices, length = [], 0
    for tensor, axis in zip(scanned, axes, strict=True):
        axis %= len(tensor.shape)
        length = tensor.shape[axis]
        slices.append(replace(tensor, shape=tensor.shape[:axis] + tensor.shape[axis + 1 :]))
    body = read_body(graph, [*states, *slices])
    outputs = _outputs(body)
    collected_count = len(outputs) - len(states)
    out_axes = cast("tuple[int, ...]", attributes.get("scan_output_axes", (0,) * collected_count))
    results: list[Tensor | None] = [t and replace(t, shape=(*batch, *t.shape)) for t in outputs[: len(states)]]
    for made, axis in zip(outputs[len(states) :], out_axes, strict=True):
        if made is None:
            results.append(None)
            continue
        axis %= len(made.shape) + 1
        results.append(replace(made, shape=(*batch, *made.shape[:axis], length, *made.shape[axis:])))
    return Outcome((body,), length * prod(batch), tuple(results))


def _outputs(body: Graph) -> list[Tensor | None]:
    return [body.tensors.get(name) for name in body.outputs]


def _integer(tensor: Tensor | None) -> int | None:
    if tensor is None or tensor.value is None or tensor.value.size != 1:
        return None
    return int(tensor.value.reshape(-1)[0])


CONTROL_FLOW: Mapping[str, ReadNode] = {"If": _read_if, "Loop": _read_loop, "Scan": _read_scan}
