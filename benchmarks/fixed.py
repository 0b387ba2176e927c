"""Networks that do less, and always the same: what a hooked model has to be better than.

Each is one graph, cut nowhere, with the weights of the tidied model that it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

from latpred.reading.nodes import copied, rename
from latpred.surgery.cuts import Cut, cuts
from latpred.surgery.exits import LOGITS, head
from latpred.surgery.pieces import piece
from latpred.surgery.quantize import calibrated, in_int8
from latpred.surgery.slicing import sliced
from latpred.surgery.tidy import tidied
from latpred.surgery.wiring import assembled, wired
from latpred.tensors import Array

__all__ = ["in_integers", "left_at", "narrowed", "without"]


def in_integers(model: onnx.ModelProto, samples: Iterable[Mapping[str, Array]]) -> onnx.ModelProto:
    """All of it in int8, calibrated on samples of its inputs."""
    return in_int8(model, calibrated(model, samples))


def left_at(model: onnx.ModelProto, cut: Cut, weights: tuple[Array, Array]) -> onnx.ModelProto:
    """What lies before a cut, and a head there.

    Parameters
    ----------
    model : ModelProto
    cut : Cut
        Behind the first one.
    weights : pair of arrays
        Matrix (channels, classes) and bias (classes,).
    """
    before = piece(model, cuts(model)[0], cut)
    answer = head(cut, len(weights[1]), weights=weights).graph
    nodes = [copied(node) for node in (*before.graph.node, *answer.node)]
    outputs = [value for value in answer.output if value.name == LOGITS]
    stored = [*before.graph.initializer, *answer.initializer]
    infos = {info.name: info for info in (*before.graph.value_info, *before.graph.output)}
    name = f"{before.graph.name}, a head"
    return tidied(assembled(before, name, nodes, before.graph.input, outputs, stored, infos))  # heads declare little


def narrowed(model: onnx.ModelProto, regions: Sequence[tuple[Cut, Cut]], share: float) -> onnx.ModelProto:
    """Some regions at that share of their inner channels; none overlaps another."""
    wiring = wired(model)
    parts = {start.position: (end, sliced(piece(wiring, start, end), share)) for start, end in regions}
    nodes, infos, stored = [], dict(wiring.infos), [*model.graph.initializer]
    index = 0
    while index < len(model.graph.node):
        if index not in parts:
            nodes.append(copied(model.graph.node[index]))
            index += 1
            continue
        end, part = parts[index]
        nodes += part.graph.node
        stored += [tensor for tensor in part.graph.initializer if tensor.name not in wiring.stored]
        infos |= {info.name: info for info in part.graph.value_info}
        index = end.position
    graph = model.graph
    return assembled(model, f"{graph.name} x {share:g}", nodes, graph.input, graph.output, stored, infos)


def without(model: onnx.ModelProto, regions: Sequence[tuple[Cut, Cut]]) -> onnx.ModelProto:
    """Some regions left out, each of which keeps its shape; none overlaps another."""
    graph = model.graph
    dropped = {index for start, end in regions for index in range(start.position, end.position)}
    nodes = [copied(node) for index, node in enumerate(graph.node) if index not in dropped]
    name = f"{graph.name} without {len(regions)} regions"
    found = assembled(model, name, nodes, graph.input, graph.output, graph.initializer, wired(model).infos)
    # From the last one on: what stands for a region's output may itself be the output of one before it.
    for start, end in sorted(regions, key=lambda ends: -ends[0].position):
        rename(found.graph, {end.tensor: start.tensor})
    return found
