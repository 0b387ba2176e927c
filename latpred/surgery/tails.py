"""Everything behind one tensor: what is left of a model when that tensor moves and all others are held fixed.

Unlike a region between cuts, a tail may begin at any tensor: what goes past it (a residual, a mask) is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from latpred.errors import SurgeryError
from latpred.surgery.wiring import Wiring, assembled, declared, descendants, extracted

__all__ = ["Tail", "tail_at", "tail_model", "trunk_model"]


@dataclass(frozen=True, slots=True)
class Tail:
    """The nodes of a tidied model that make `output` from `start`.

    Attributes
    ----------
    wiring : Wiring
        Of the whole model.
    start, output : str
    held : tuple of str
        Tensors that the nodes read, and that do not depend on `start`.
    nodes : tuple of int
        In order.
    moving : frozenset of str
        `start` and every tensor that is computed from it.
    """

    wiring: Wiring
    start: str
    output: str
    held: tuple[str, ...]
    nodes: tuple[int, ...]
    moving: frozenset[str]


def tail_at(wiring: Wiring, start: str, output: str) -> Tail:
    """What makes `output` from `start`.

    Raises
    ------
    SurgeryError
        Where the output does not depend on the tensor.

    Examples
    --------
    >>> from onnx import helper
    >>> from latpred.surgery.wiring import wired
    >>> x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 8]) for n in "xy")
    >>> nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Add", ["h", "x"], ["y"])]
    >>> found = tail_at(wired(helper.make_model(helper.make_graph(nodes, "g", [x], [y]))), "h", "y")
    >>> found.nodes, found.held
    ((1,), ('x',))
    """
    moving = descendants(wiring, [start])
    if output not in moving:
        raise SurgeryError(
            f"a tensor that {output!r} is computed from is needed, but {start!r} has no part in it: choose another one"
        )
    fixed = [name for name in (*wiring.inputs, *wiring.makers) if name not in moving]
    nodes = extracted(wiring, [start, *fixed], [output])
    read = dict.fromkeys(name for index in nodes for name in wiring.reads[index])
    held = tuple(name for name in read if name not in moving and name not in wiring.stored)
    return Tail(wiring, start, output, held, tuple(nodes), moving)


def tail_model(tail: Tail) -> onnx.ModelProto:
    """The tail as a model; its inputs are the start and what is held."""
    wiring = tail.wiring
    return assembled(
        wiring.model,
        f"{tail.start} > {tail.output}",
        [wiring.nodes[index] for index in tail.nodes],
        [declared(name, wiring.spec(name)) for name in (tail.start, *tail.held)],
        [declared(tail.output, wiring.spec(tail.output))],
        wiring.model.graph.initializer,
        wiring.infos,
    )


def trunk_model(wiring: Wiring, outputs: Sequence[str]) -> onnx.ModelProto:
    """What makes some tensors from the model's inputs."""
    nodes = extracted(wiring, wiring.inputs, outputs)
    read = {name for index in nodes for name in wiring.reads[index]}
    return assembled(
        wiring.model,
        f"> {', '.join(outputs)}",
        [wiring.nodes[index] for index in nodes],
        [wiring.infos[name] for name in wiring.inputs if name in read],
        [declared(name, wiring.spec(name)) for name in outputs],
        wiring.model.graph.initializer,
        wiring.infos,
    )
