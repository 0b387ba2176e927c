"""A finished graph that is being rewritten: nodes in order, constants by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["GraphRewriter"]


class GraphRewriter:
    """Nodes and initializers of a graph that is being rewritten.

    Parameters
    ----------
    model
        The graph to be rewritten, in place; its Constant nodes become initializers at once.
    rng
        Source of every random choice.
    """

    def __init__(self, model: onnx.ModelProto, rng: np.random.Generator) -> None:
        self.model = model
        self.rng = rng
        graph = model.graph
        constants = [node for node in graph.node if node.op_type == "Constant"]
        for node in constants:  # a quantizer is given a graph that was tidied up: constants are initializers
            graph.initializer.add().CopyFrom(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
            graph.node.remove(node)
        self.initializers = {t.name: t for t in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.added: list[onnx.TensorProto] = []
        self.count = 0

    def constant(self, array: np.ndarray | np.generic, stem: str) -> str:
        """Name of a new initializer."""
        name = f"{stem}_{self.count}"
        self.count += 1
        self.added.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op_type: str, inputs: list[str], outputs: list[str], stem: str, **attributes: Any) -> None:
        """Add a node behind those that are there."""
        self.nodes.append(helper.make_node(op_type, inputs, outputs, f"{stem}_{op_type}_{self.count}", **attributes))
        self.count += 1

    def float_initializer(self, name: str) -> onnx.TensorProto | None:
        """The float32 initializer of that name, if it is one."""
        tensor = self.initializers.get(name)
        return tensor if tensor is not None and tensor.data_type == TensorProto.FLOAT else None

    def finish(self) -> onnx.ModelProto:
        """The model with the new nodes, and the initializers that they read."""
        graph = self.model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [t for t in (*graph.initializer, *self.added) if t.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return self.model
