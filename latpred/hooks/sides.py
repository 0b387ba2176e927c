"""The small networks beside the main one: what looks where a point starts. Each can be replaced while others run.

Roles: ``gate`` scores a point's options, ``head`` answers at an exit, ``mask14`` says for patches of 14 positions along
each side where it matters. A stream reads `Side.current` once a look: it sees a replacement whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from latpred.chained import CPU, opened
from latpred.errors import HookError
from latpred.hooks.masks import mask_head
from latpred.hooks.program import PATCHES, Span
from latpred.predictor import Model
from latpred.reading.nodes import rename
from latpred.surgery.cuts import Cut
from latpred.surgery.exits import LOGITS, head
from latpred.surgery.gates import SCORES, checked_gate, gate_network
from latpred.surgery.pooled import channels_of
from latpred.surgery.wiring import declared
from latpred.tensors import Array, Spec

__all__ = [
    "GATE", "HEAD", "MASK_PREFIX", "POOLED", "Network", "Side", "SideSource", "Weights", "first_network", "mask_role",
    "network_of", "roles_of",
]  # fmt: skip

GATE, HEAD, MASK_PREFIX = "gate", "head", "mask"
POOLED = ":pooled"  # behind the name of what is made from it: the averages that a linear map reads

Weights = tuple[Array, Array]  # matrix (channels, width), bias (width,)
SideSource = Weights | Model


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A side network that is ready to run.

    Attributes
    ----------
    trained : bool
        Whether anybody gave its weights: what an untrained head says is never an answer.
    """

    model: onnx.ModelProto
    session: Any
    trained: bool


class Side:
    """The place of one side network.

    Parameters
    ----------
    point, role : str
    cut : Cut
        Where it reads.
    width : int
        How many numbers it makes: options, classes or patches.
    network : ModelProto
    trained : bool
    providers : sequence of str

    Attributes
    ----------
    current : Network
        What runs from now on.
    """

    __slots__ = ("_providers", "current", "cut", "point", "role", "width")

    def __init__(
        self,
        point: str,
        role: str,
        cut: Cut,
        width: int,
        network: onnx.ModelProto,
        trained: bool = False,
        providers: Sequence[str] = CPU,
    ) -> None:
        self.point = point
        self.role = role
        self.cut = cut
        self.width = width
        self._providers = tuple(providers)
        self.current = Network(network, opened(network, 1, self._providers), trained)

    @property
    def weights(self) -> Weights | None:
        """Matrix and bias of a gate or a head that runs now; None where it is a graph of the caller's own."""
        output = LOGITS if self.role == HEAD else SCORES
        graph = self.current.model.graph
        if all(value.name != f"{output}{POOLED}" for value in graph.output):
            return None
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        return stored[f"{output}:matrix"], stored[f"{output}:bias"]

    def replace(self, source: SideSource) -> None:
        """Put trained weights, or for a gate another network, in its place, at once for all looks that follow.

        Parameters
        ----------
        source : pair of arrays, or path, bytes or ModelProto
            Matrix (channels, width) and bias (width,); or a graph that reads the tensor at the cut and makes scores.

        Raises
        ------
        InputError
            Where it does not fit.
        """
        network = self.made(source)
        self.current = Network(network, opened(network, 1, self._providers), trained=True)

    def made(self, source: SideSource) -> onnx.ModelProto:
        """The graph of weights, or a given one, checked; raises InputError where it does not fit."""
        if isinstance(source, tuple):
            return network_of(self.role, self.cut, self.width, source)
        if self.role != GATE:
            raise HookError(f"weights (matrix, bias) are needed for the {self.role} of {self.point!r}, but a graph "
                            "came: give a pair of arrays")  # fmt: skip
        return _scoring(checked_gate(source, self.cut, self.width))


def network_of(role: str, cut: Cut, width: int, weights: Weights | None) -> onnx.ModelProto:
    """The graph of a role; raises InputError where the weights do not fit."""
    if role == HEAD:
        return _with_average(head(cut, width, weights=weights, confident=True), cut, LOGITS)
    if role == GATE:
        return _with_average(gate_network(cut, width, weights=weights), cut, SCORES)
    return mask_head(cut, int(role.removeprefix(MASK_PREFIX)), weights)


def first_network(role: str, cut: Cut, width: int, utilities: Sequence[float] = ()) -> onnx.ModelProto:
    """What stands in until something was trained: a gate that says `utilities` whatever it reads, an undecided head."""
    if role in (GATE, HEAD):
        bias = np.array(utilities) if role == GATE else np.zeros(width)
        return network_of(role, cut, width, (np.zeros((channels_of(cut), width)), bias))
    return network_of(role, cut, width, None)


def mask_role(granularity: int) -> str:
    """The role of a mask head for patches of that many positions along each side."""
    return f"{MASK_PREFIX}{granularity}"


def roles_of(span: Span, classes: int) -> dict[str, int]:
    """Side networks that a point needs: role -> width."""
    roles = {GATE: len(span.choices)} if span.looks == GATE else {}
    if span.is_exit:
        roles[HEAD] = classes
    for choice in span.choices:
        if choice.level == PATCHES:
            height, width = span.start.shape[2:]
            roles[mask_role(choice.granularity)] = -(-height // choice.granularity) * -(-width // choice.granularity)
    return roles


def _with_average(model: onnx.ModelProto, cut: Cut, output: str) -> onnx.ModelProto:
    """The same that hands out the averages too: what its successor is trained on; in place."""
    model.graph.output.append(declared(f"{output}{POOLED}", Spec((cut.shape[0], channels_of(cut)), cut.dtype)))
    return model


def _scoring(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with its output named as gate networks name theirs; in place."""
    rename(model.graph, {model.graph.output[0].name: SCORES})
    return model
