"""Ops that ONNX defines by other ops and for which the runtime has no kernel: it runs their definition."""

from __future__ import annotations

from collections.abc import Callable

from latpred.graph import AttributeValue
from latpred.kernels.fusion import RuleBook
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["inline_functions"]


def inline_functions(graph: WorkingGraph, rules: RuleBook) -> None:
    """Replace each function op by the ops of its definition; the last of them carries the ONNX node."""
    if not rules.holds("inline-functions"):
        return
    for op_type, inline in DEFINITIONS.items():
        for node in graph.of_type(op_type):
            if node.domain == "":
                graph.remark(node.ops, "inline-functions", True, "the runtime has no kernel for it")
                graph.remove(node)
                inline(graph, node)


def _step(
    graph: WorkingGraph, node: Node, op_type: str, inputs: list[str], attributes: dict[str, AttributeValue]
) -> str:
    """One op of a definition, with the shape and dtype of the node's result."""
    tensor = graph.tensors[node.outputs[0]]
    output = graph.tensor(node.outputs[0], tensor.shape, tensor.dtype)
    graph.add(Node(op_type, "", f"{node.name}/{op_type}", inputs, [output], attributes, (), rank=node.rank))
    return output


def _last(graph: WorkingGraph, node: Node, op_type: str, inputs: list[str]) -> None:
    name = f"{node.name}/{op_type}"
    graph.add(Node(op_type, "", name, inputs, list(node.outputs), {}, node.ops, rank=node.rank))


def _hard_swish(graph: WorkingGraph, node: Node) -> None:
    gate = _step(graph, node, "HardSigmoid", [node.inputs[0]], {"alpha": 1 / 6, "beta": 0.5})
    _last(graph, node, "Mul", [node.inputs[0], gate])


def _mish(graph: WorkingGraph, node: Node) -> None:
    gate = _step(graph, node, "Tanh", [_step(graph, node, "Softplus", [node.inputs[0]], {})], {})
    _last(graph, node, "Mul", [node.inputs[0], gate])


def _cast_like(graph: WorkingGraph, node: Node) -> None:
    _last(graph, node, "Cast", [node.inputs[0]])


DEFINITIONS: dict[str, Callable[[WorkingGraph, Node], None]] = {
    "HardSwish": _hard_swish,
    "Mish": _mish,
    "CastLike": _cast_like,
}
