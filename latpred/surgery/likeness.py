"""Which regions of a model are equal but for names and weights, so that what one costs the other costs too."""

from __future__ import annotations

from collections.abc import Hashable
from math import prod

import onnx

from latpred.reading.nodes import graphs_of
from latpred.surgery.pieces import Region
from latpred.surgery.weights import values_of
from latpred.surgery.wiring import Wiring
from latpred.tensors import VALUE_LIMIT

__all__ = ["Likeness"]

STEERING_TYPES = frozenset({int(onnx.TensorProto.INT64), int(onnx.TensorProto.BOOL)})  # shapes, axes, masks
COMPARED_ELEMENTS = 16  # of other types, all are compared: scales, bounds, zero points


class Likeness:
    """Keys of one model's regions.

    Parameters
    ----------
    wiring : Wiring
        Of the whole tidied model.

    Examples
    --------
    Two products of 8 channels are alike, the activation behind them is not.

    >>> import numpy as np
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> from latpred.surgery.cuts import cuts
    >>> from latpred.surgery.pieces import region
    >>> from latpred.surgery.wiring import wired
    >>> infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8]) for n in "xtuy"]
    >>> nodes = [helper.make_node("MatMul", ["x", "v"], ["t"]), helper.make_node("MatMul", ["t", "w"], ["u"]),
    ...          helper.make_node("Softmax", ["u"], ["y"])]
    >>> weights = [numpy_helper.from_array(np.full((8, 8), i, np.float32), n) for i, n in enumerate("vw")]
    >>> model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[3:], weights, value_info=infos[1:3]))
    >>> wiring, places = wired(model), cuts(model)
    >>> likeness = Likeness(wiring)
    >>> first, second, third = (likeness.key(region(wiring, *ends)) for ends in zip(places, places[1:]))
    >>> first == second, second == third
    (True, False)
    """

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._nodes: dict[int, int] = {}
        self._tensors: dict[str, int] = {}
        self._known: dict[Hashable, int] = {}  # what a node or a tensor is -> its number

    def key(self, region: Region) -> Hashable:
        """Equal for regions of equal nodes in one order, with equal shapes, dtypes and constants that steer them."""
        numbers: dict[str, int] = {}
        written: list[int] = []

        def note(name: str) -> None:
            number = numbers.get(name)
            if number is not None:
                written.append(number)
            else:
                numbers[name] = len(numbers)
                written.append(-1 - self._tensor(name))

        for name in region.inputs:
            note(name)
        for index in region.nodes:
            node = self._wiring.nodes[index]
            written.append(self._node(index))
            for name in node.input:
                note(name)
            for name in node.output:
                note(name)
        for name in region.outputs:
            note(name)
        return tuple(written)

    def _node(self, index: int) -> int:
        number = self._nodes.get(index)
        if number is None:
            node = self._wiring.nodes[index]
            # What a body reads from around it is read by name, so that such a node is like itself alone.
            own = index if any(True for _ in graphs_of(node)) else -1
            attributes = b"".join(sorted(attribute.SerializeToString() for attribute in node.attribute))
            what = (node.op_type, node.domain, len(node.input), len(node.output), attributes, own)
            number = self._nodes[index] = self._known.setdefault(what, len(self._known))
        return number

    def _tensor(self, name: str) -> int:
        number = self._tensors.get(name)
        if number is None:
            number = self._tensors[name] = self._known.setdefault(self._what(name), len(self._known))
        return number

    def _what(self, name: str) -> Hashable:
        stored = self._wiring.stored.get(name)
        if stored is not None:
            return (*_constant(stored), tuple(stored.dims), stored.data_type)
        info = self._wiring.infos.get(name)
        return None if info is None else info.type.SerializeToString()


def _constant(stored: onnx.TensorProto) -> tuple[Hashable, ...]:
    """What a stored tensor's values say: all of a small one, of a larger one of integers whether they differ."""
    elements = prod(stored.dims)
    values = values_of(stored) if elements <= VALUE_LIMIT else None
    if values is None:
        return ("missing",)
    if elements <= COMPARED_ELEMENTS or stored.data_type in STEERING_TYPES:
        return "all", values.tobytes() if values.dtype != object else tuple(values.reshape(-1))
    if values.dtype.kind in "iu":
        first = values.reshape(-1)[0]
        return ("equal", int(first)) if (values == first).all() else ("differ",)
    return ("many",)
