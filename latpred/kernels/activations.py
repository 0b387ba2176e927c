"""Activations that are spelled out with several ops, and plain algebra on neighbours.

All of them are patterns in the rule file; only the bias of a GELU needs a look at shapes.
"""

from __future__ import annotations

from latpred.kernels.fusion import RuleBook
from latpred.kernels.patterns import apply_patterns
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["algebra", "bias_gelu", "fast_gelu", "gelu", "onnx_gelu", "quick_gelu", "relu_clip"]

MICROSOFT = "com.microsoft"
OPSET_WITH_GELU = 20


def algebra(graph: WorkingGraph, rules: RuleBook) -> None:
    """1 / x * y, and Not before Where."""
    apply_patterns(graph, rules, ("div-mul",))
    _not_where(graph, rules)


def _not_where(graph: WorkingGraph, rules: RuleBook) -> None:
    rule = "not-where"
    if not rules.holds(rule):
        return
    for node in graph.of_type("Not"):
        users = graph.uses.get(node.outputs[0], [])
        if node.outputs[0] in graph.outputs or not users:
            continue
        if any(user.op_type != "Where" or user.inputs[0] != node.outputs[0] for user in users):
            graph.remark(node.ops, rule, False, "something else than the condition of a Where reads it")
            continue
        where = users[0]
        for user in list(users):
            first, second = user.inputs[1:3]
            graph.set_input(user, 0, node.inputs[0])
            graph.set_input(user, 1, second)
            graph.set_input(user, 2, first)
        graph.remove(node)
        where.ops = (*where.ops, *node.ops)
        graph.remark(node.ops, rule, True, "the branches of the Where are swapped instead")


def relu_clip(graph: WorkingGraph, rules: RuleBook) -> None:
    """A Relu before a Clip with constant bounds goes into the lower bound."""
    rule = "relu-clip"
    if not rules.holds(rule):
        return
    for relu in graph.of_type("Relu"):
        clip = graph.sole_use(relu.outputs[0])
        if clip is None or clip.op_type != "Clip":
            continue
        if len(clip.inputs) > 1 and clip.inputs[1] and graph.scalar(clip.inputs[1]) is None:
            graph.remark(relu.ops, rule, False, "the lower bound is no constant")
            continue
        graph.set_input(clip, 0, relu.inputs[0])
        graph.remove(relu)
        clip.ops = (*relu.ops, *clip.ops)
        graph.remark(relu.ops, rule, True, "becomes the lower bound of the Clip")


def onnx_gelu(graph: WorkingGraph, rules: RuleBook) -> None:
    """The GELU x * 0.5 * (1 + Erf(x / sqrt 2)), where ONNX has an op for it: before a provider takes the nodes."""
    if graph.opsets.get("", 0) >= OPSET_WITH_GELU:
        apply_patterns(graph, rules, ("gelu-onnx",))


def gelu(graph: WorkingGraph, rules: RuleBook) -> None:
    """The same in earlier opsets, once a provider that has the kernel has taken the nodes."""
    if graph.opsets.get("", 0) < OPSET_WITH_GELU:
        apply_patterns(graph, rules, ("gelu",))


def fast_gelu(graph: WorkingGraph, rules: RuleBook) -> None:
    """The same with Tanh."""
    apply_patterns(graph, rules, ("fast-gelu",))


def quick_gelu(graph: WorkingGraph, rules: RuleBook) -> None:
    """The product x * Sigmoid(alpha x); SiLU has alpha 1."""
    apply_patterns(graph, rules, ("quick-gelu",))


def bias_gelu(graph: WorkingGraph, rules: RuleBook) -> None:
    """The Add of a vector before a GELU is carried out by it."""
    rule = "bias-gelu"
    if not rules.holds(rule):
        return
    for act in graph.of_type("Gelu", "FastGelu"):
        add = graph.producers.get(act.inputs[0])
        if act.domain != MICROSOFT or len(act.inputs) > 1 or add is None or add.op_type != "Add":
            continue
        if graph.sole_use(add.outputs[0]) is None:
            graph.remark(add.ops, rule, False, "the sum is used elsewhere too")
            continue
        shapes = [graph.shape(name) for name in add.inputs]
        if not all(shapes) or shapes[0][-1] != shapes[1][-1] or 1 not in map(len, shapes):
            graph.remark(add.ops, rule, False, f"none of the summands is a vector as long as the last dim: {shapes}")
            continue
        vector = 0 if len(shapes[0]) == 1 else 1
        op_type = "FastGelu" if act.op_type == "FastGelu" else "BiasGelu"
        inputs = [add.inputs[1 - vector], add.inputs[vector]]
        new = graph.replace([add, act], Node(op_type, MICROSOFT, act.name, inputs, list(act.outputs), {}, ()))
        graph.remark(new.ops, rule, True, "the bias is added by the GELU")
