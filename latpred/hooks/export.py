"""A hooked model as one portable file: side networks and `If` nodes decide on skips and exits, without Python.

Deadlines stay behind: an option is taken where the side network alone says so, as in a run without a deadline.

- A region is left out where its score for `skip` is the largest of all options; where another option's is, it is kept.
- The network is left where the head's confidence is enough, or the exit's score is above that of going on.
- Points that nothing looks at, that are not worth deciding, and exits whose head nobody trained, are kept.

Behind an exit, all the rest lies in the branch that goes on, so that it does not run where the network is left. What
was decided is a tensor named ``<point>/taken``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, version_converter

from latpred.decide.points import EXIT
from latpred.errors import ArtefactError, HookError
from latpred.fingerprint import fingerprint
from latpred.hooks.endings import ending_nodes
from latpred.hooks.hooked import Hooked
from latpred.hooks.origin import weights_digest
from latpred.hooks.program import SKIP, Program, Station
from latpred.hooks.sides import GATE, HEAD, Side
from latpred.hooks.writing import write
from latpred.predictor import Model
from latpred.reading.nodes import copied, rename
from latpred.surgery.cuts import cuts
from latpred.surgery.exits import CONFIDENCE, LOGITS
from latpred.surgery.gates import SCORES
from latpred.surgery.tidy import tidied
from latpred.surgery.weights import constant
from latpred.surgery.wiring import declared, wired
from latpred.tensors import Array

__all__ = ["export", "gated"]

LEAST_IR = 8


def export(hooked: Hooked, path: str | os.PathLike[str], model: Model | None = None) -> None:
    """Write a gated model; a file that is there already is replaced at once.

    Parameters
    ----------
    hooked : Hooked
    path
    model : path, bytes or ModelProto, optional
        What the hooks were attached to; without it, the file that they were attached to is read again.

    Raises
    ------
    HookError
        Where the hooks were released, are of several models, or no model is at hand.
    ArtefactError
        Where the model is another one.
    """
    try:
        content = gated(hooked, model).SerializeToString()
    except ValueError as error:  # protobuf's limit
        raise HookError(f"a model below 2 GB is needed to be one file ({error}): export is not for this one") from error
    write(path, content)


def gated(hooked: Hooked, model: Model | None = None) -> onnx.ModelProto:
    """The model that `export` writes."""
    program, origin = hooked.program, hooked.origin
    if not isinstance(program, Program):
        raise HookError("one hooked model is needed to be exported, but the choice is among several: export each")
    source = model if model is not None else origin.path
    if source is None:
        raise HookError("the model itself is needed to be exported, and hooks do not keep it: give it again")
    whole = tidied(source, origin.dims, origin.shapes)
    key = fingerprint(source, origin.dims, origin.shapes).hex()
    if key != origin.identity.model or weights_digest(whole) != origin.weights:
        raise ArtefactError("the model that the hooks were attached to is needed to be exported, this is another one")
    return _Writer(hooked, program, whole).model()


class _Writer:
    """The gated model while it grows."""

    def __init__(self, hooked: Hooked, program: Program, whole: onnx.ModelProto) -> None:
        self.hooked = hooked
        self.program = program
        self.whole = whole
        self.wiring = wired(whole)
        self.last = cuts(whole)[-1]
        self.stored = list(whole.graph.initializer)
        self.opsets = {entry.domain: entry.version for entry in whole.opset_import}

    def model(self) -> onnx.ModelProto:
        nodes = self.rest(0, 0)
        graph = helper.make_graph(
            nodes, f"{self.whole.graph.name} gated", self.whole.graph.input, self.whole.graph.output, self.stored
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=max(LEAST_IR, self.whole.ir_version))

    def rest(self, number: int, position: int) -> list[onnx.NodeProto]:
        """All nodes from a place on, the stations from `number` on included."""
        nodes: list[onnx.NodeProto] = []
        for station in self.program.stations[number:]:
            span = station.span
            nodes += self.between(position, span.start.position)
            position = span.end.position
            region = self.between(span.start.position, position)
            if not self.decides(station):
                nodes += region
            elif span.is_exit:
                return nodes + self.leaving(station, self.rest(station.number + 1, position))
            else:
                nodes += self.skipping(station, region)
        return nodes + self.between(position, self.last.position)

    def between(self, start: int, end: int) -> list[onnx.NodeProto]:
        return [copied(node) for node in self.wiring.nodes[start:end]]

    def decides(self, station: Station) -> bool:
        """Whether anything but keeping is ever taken."""
        span = station.span
        if not span.looks or station.number in self.hooked.terms.not_worth:
            return False
        if span.is_exit:
            return self.hooked.sides[span.name, HEAD].current.trained
        return any(choice.level == SKIP for choice in span.choices)

    def skipping(self, station: Station, region: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        span = station.span
        skip = next(index for index, choice in enumerate(span.choices) if choice.level == SKIP)
        nodes, scores = self.side(self.hooked.sides[span.name, GATE], SCORES)
        nodes += self.best(span.name, scores, skip)
        start, end = span.start.tensor, span.end.tensor
        kept, skipped = f"{span.name}/kept", f"{span.name}/skipped"
        taken = helper.make_node("Identity", [start], [skipped], f"{span.name}/hand on")
        return [*nodes, self.branch(span.name, end, [taken], skipped, region, kept)]

    def leaving(self, station: Station, rest: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        span = station.span
        nodes, scores = self.side(self.hooked.sides[span.name, HEAD], LOGITS)
        made = f"{span.name}/answer"
        nodes += ending_nodes(self.program.ending, scores, made)
        stake = self.hooked.terms.stakes[station.number]
        if span.looks == HEAD:
            enough = np.nextafter(np.float32(stake.enough(self.hooked.tolerance)), np.float32(-np.inf))
            least, bar = f"{span.name}/least", self.constant(f"{span.name}/enough", enough)
            nodes += [
                helper.make_node("ReduceMin", [f"{span.name}/{HEAD}/{CONFIDENCE}"], [least], least, keepdims=0),
                helper.make_node("Cast", [least], [f"{least}/single"], f"{least}/single", to=TensorProto.FLOAT),
                helper.make_node("Greater", [f"{least}/single", bar], [f"{span.name}/taken"], f"{span.name}/decide"),
            ]
        else:
            more, own = self.side(self.hooked.sides[span.name, GATE], SCORES)
            leave = next(index for index, choice in enumerate(span.choices) if choice.level == EXIT)
            nodes += more + self.above(span.name, own, leave, stake.on)
        left, on = f"{span.name}/left", f"{span.name}/on"
        to = helper.np_dtype_to_tensor_dtype(np.dtype(self.wiring.spec(self.last.tensor).dtype))
        taken = helper.make_node("Cast", [made], [left], f"{span.name}/leave", to=to)
        return [*nodes, self.branch(span.name, self.last.tensor, [taken], left, rest, on)]

    def side(self, side: Side, output: str) -> tuple[list[onnx.NodeProto], str]:
        """Nodes of a side network, its inner names made its own, and the name of one of its outputs."""
        network = self.converted(side)
        graph = network.graph
        names = {name for node in graph.node for name in node.output if name}
        names |= {stored.name for stored in graph.initializer}
        rename(graph, {name: f"{side.point}/{side.role}/{name}" for name in names})
        for node in graph.node:
            node.name = f"{side.point}/{side.role}/{node.name}"
        self.stored += graph.initializer
        self.opsets |= {
            entry.domain: entry.version for entry in network.opset_import if entry.domain not in self.opsets
        }
        return [copied(node) for node in graph.node], f"{side.point}/{side.role}/{output}"

    def converted(self, side: Side) -> onnx.ModelProto:
        """A side network in the version of operators that the model is written in."""
        network = onnx.ModelProto()
        network.CopyFrom(side.current.model)
        own = next((entry.version for entry in network.opset_import if entry.domain in ("", "ai.onnx")), 0)
        if own in (0, self.wiring.opset):
            return network
        try:
            return version_converter.convert_version(network, self.wiring.opset)
        except Exception as error:  # the converter's own classes share no other base
            raise HookError(f"the {side.role} of {side.point!r} is of opset {own}, and cannot be written in "
                            f"{self.wiring.opset}, the model's ({error}): use a later one") from error  # fmt: skip

    def above(self, point: str, scores: str, option: int, margin: float) -> list[onnx.NodeProto]:
        """Whether an option's score lies above that of keeping and a margin, averaged over the batch."""
        nodes, mean = self.averaged(point, scores)
        weights = np.zeros((self.hooked.sides[point, GATE].width, 1), np.float32)
        weights[option], weights[0] = 1.0, -1.0
        return [
            *nodes,
            helper.make_node("MatMul", [mean, self.constant(f"{point}/difference", weights)],
                             [f"{point}/gain"], f"{point}/gain"),
            helper.make_node("Greater", [f"{point}/gain", self.constant(f"{point}/margin", np.float32(margin))],
                             [f"{point}/taken"], f"{point}/decide"),
        ]  # fmt: skip

    def best(self, point: str, scores: str, option: int) -> list[onnx.NodeProto]:
        """Whether an option's score is the largest, averaged over the batch."""
        nodes, mean = self.averaged(point, scores)
        return [
            *nodes,
            helper.make_node("ArgMax", [mean], [f"{point}/best"], f"{point}/best", axis=1, keepdims=0),
            helper.make_node("Equal", [f"{point}/best", self.constant(f"{point}/option", np.array([option]))],
                             [f"{point}/taken"], f"{point}/decide"),
        ]  # fmt: skip

    def averaged(self, point: str, scores: str) -> tuple[list[onnx.NodeProto], str]:
        """Scores over the batch, (1, width) in single precision."""
        side = self.hooked.sides[point, GATE]
        shape = self.constant(f"{point}/rows", np.array([side.cut.shape[0], side.width]))
        weights = self.constant(f"{point}/even", np.full((1, side.cut.shape[0]), 1.0 / side.cut.shape[0], np.float32))
        single, flat, mean = f"{point}/single", f"{point}/flat", f"{point}/mean"
        return [
            helper.make_node("Cast", [scores], [single], single, to=TensorProto.FLOAT),
            helper.make_node("Reshape", [single, shape], [flat], flat),
            helper.make_node("MatMul", [weights, flat], [mean], mean),
        ], mean

    def branch(
        self,
        point: str,
        output: str,
        taken: Sequence[onnx.NodeProto],
        taken_output: str,
        other: Sequence[onnx.NodeProto],
        other_output: str,
    ) -> onnx.NodeProto:
        """One `If`; nothing inside it is called as something outside is."""
        spec = self.wiring.spec(output)
        then = helper.make_graph(list(taken), f"{point}/then", [], [declared(taken_output, spec)])
        body = helper.make_graph(list(other), f"{point}/else", [], [declared(output, spec)])
        rename(body, {output: other_output})
        return helper.make_node(
            "If", [f"{point}/taken"], [output], f"{point}/if", then_branch=then, else_branch=body
        )  # fmt: skip

    def constant(self, name: str, values: Array | np.floating[Any]) -> str:
        self.stored.append(constant(name, np.asarray(values)))
        return name
