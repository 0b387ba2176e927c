"""Integer convolutions and poolings run channels-last: transposes around them are pushed on until they cancel."""

from __future__ import annotations

from latpred.kernels.fusion import RuleBook
from latpred.kernels.permutations import Permutation, inverse
from latpred.kernels.quantization import requantize_transposed
from latpred.kernels.transpose_handlers import Handler, broadcast
from latpred.kernels.transposes import Pusher
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["channels_last"]

RULE = "nhwc-quantized"
MICROSOFT = "com.microsoft"
EIGHT_BIT = frozenset({"int8", "uint8"})


def channels_last(graph: WorkingGraph, rules: RuleBook) -> None:
    """Turn every QLinearConv to channels-last, then push the transposes through what follows."""
    if not rules.holds(RULE) or not graph.by_type.get("QLinearConv"):
        return
    pusher = _QuantizedPusher(graph, provider=True)
    for conv in graph.of_type("QLinearConv"):
        rank = len(graph.shape(conv.inputs[0]))
        if conv.attributes.get("channels_last") or graph.tensors[conv.inputs[0]].dtype not in EIGHT_BIT:
            continue
        conv.attributes["channels_last"] = 1
        graph.retype(conv, "QLinearConv", MICROSOFT)
        pusher.heir = None
        pusher.push_through(conv, [0], _to_channels_first(rank))
        graph.remark(conv.ops, RULE, True, "runs channels-last, between transposes where its neighbours do not")
    order = list(graph.in_order())
    pusher.find_paths(order)
    for node in order:
        if graph.alive(node):
            pusher.visit(node)
    requantize_transposed(graph, rules)


def _to_channels_first(rank: int) -> Permutation:
    return (0, rank - 1, *range(1, rank - 1))


class _QuantizedPusher(Pusher):
    """A walk that also knows the integer kernels, and prefers channels-last pooling whatever it costs."""

    def __init__(self, graph: WorkingGraph, provider: bool) -> None:
        super().__init__(graph, provider)
        self.handlers = {**self.handlers, **QUANTIZED_HANDLERS}

    def _process(self, node: Node, index: int, transpose: Node, perm: Permutation) -> bool:
        if node.op_type == "MaxPool" and not node.domain:
            self.heir = None
            return _max_pool(self, node, transpose, perm, [0])
        return super()._process(node, index, transpose, perm)


def _max_pool(pusher: Pusher, node: Node, _: Node, perm: Permutation, inputs: list[int]) -> bool:
    graph = pusher.graph
    if perm != _to_channels_first(len(perm)) or graph.tensors[node.inputs[0]].dtype not in EIGHT_BIT:
        return False
    if len(node.outputs) > 1 or node.attributes.get("storage_order", 0):
        return False
    graph.retype(node, "NhwcMaxPool", MICROSOFT)
    pusher.push_through(node, inputs, perm)
    return True


def _pool(pusher: Pusher, node: Node, _: Node, perm: Permutation, inputs: list[int]) -> bool:
    """A pooling that does either layout: it changes over where the transpose is exactly that."""
    to_first = _to_channels_first(len(perm))
    last = bool(node.attributes.get("channels_last", 0))
    if perm != (inverse(to_first) if last else to_first):
        return False
    node.attributes["channels_last"] = int(not last)
    pusher.push_through(node, inputs, perm)
    return True


def _concat(pusher: Pusher, node: Node, _: Node, perm: Permutation, inputs: list[int]) -> bool:
    axis = node.attributes.get("axis")
    if not isinstance(axis, int):
        return False
    pusher.push_through(node, inputs, perm)
    node.attributes["axis"] = perm[axis]
    return True


def _unary(pusher: Pusher, node: Node, _: Node, perm: Permutation, inputs: list[int]) -> bool:
    pusher.push_through(node, inputs, perm)
    return True


def _first(graph: WorkingGraph, node: Node) -> list[int]:  # noqa: ARG001
    return [0]


def _both(graph: WorkingGraph, node: Node) -> list[int]:  # noqa: ARG001
    return [0, 3]  # a scalar too: it is given the rank of the other


def _every_third(graph: WorkingGraph, node: Node) -> list[int]:  # noqa: ARG001
    return list(range(2, len(node.inputs), 3))


# (domain, op type) -> handler; those of the standard domain are in `transpose_handlers`.
QUANTIZED_HANDLERS: dict[tuple[str, str], Handler] = {
    ("", "MaxPool"): Handler(_first, _max_pool),
    (MICROSOFT, "QLinearAdd"): Handler(_both, broadcast),
    (MICROSOFT, "QLinearMul"): Handler(_both, broadcast),
    (MICROSOFT, "QLinearAveragePool"): Handler(_first, _pool),
    (MICROSOFT, "QLinearGlobalAveragePool"): Handler(_first, _pool),
    (MICROSOFT, "QLinearConcat"): Handler(_every_third, _concat),
    (MICROSOFT, "QLinearLeakyRelu"): Handler(_first, _unary),
    (MICROSOFT, "QLinearSigmoid"): Handler(_first, _unary),
}
