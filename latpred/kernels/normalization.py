"""Normalisations that are spelled out, and the residual Add before a LayerNormalization.

What the patterns in the rule file cannot say is checked here: over which axes the means are taken, and the shapes
of scale and bias.
"""

from __future__ import annotations

from latpred.kernels.fusion import RuleBook
from latpred.kernels.patterns import Match, matches, parse_pattern, spellings
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["bias_skip_layer_norm", "layer_norm", "onnx_layer_norm", "simplified_layer_norm", "skip_layer_norm"]

MICROSOFT = "com.microsoft"
SKIP_TYPES = frozenset({"float32", "float16", "bfloat16"})
DEFAULT_EPSILON = 1e-5
OPSET_WITH_LAYER_NORM = 17


def onnx_layer_norm(graph: WorkingGraph, rules: RuleBook) -> None:
    """A LayerNormalization over the last axis that is spelled out, with scale and bias, becomes one op.

    From opset 17 on, where ONNX has that op, the runtime does so before a provider takes the nodes.
    """
    if graph.opsets.get("", 0) >= OPSET_WITH_LAYER_NORM:
        _fuse_norm(graph, rules, "layer-norm", "LayerNormalization", ("scale", "bias"))


def layer_norm(graph: WorkingGraph, rules: RuleBook) -> None:
    """The same in earlier opsets, once a provider that has the kernel has taken the nodes."""
    if graph.opsets.get("", 0) < OPSET_WITH_LAYER_NORM:
        _fuse_norm(graph, rules, "layer-norm", "LayerNormalization", ("scale", "bias"))


def simplified_layer_norm(graph: WorkingGraph, rules: RuleBook) -> None:
    """The same without mean and bias: RMSNorm."""
    _fuse_norm(graph, rules, "simplified-layer-norm", "SimplifiedLayerNormalization", ("scale",))


def _fuse_norm(graph: WorkingGraph, rules: RuleBook, name: str, op_type: str, vectors: tuple[str, ...]) -> None:
    rule = rules.rule(name)
    if not rule.holds or not graph.by_type.get("ReduceMean"):
        return
    for text in spellings(rule.pattern):
        pattern = parse_pattern(text)
        for match in matches(graph, pattern, graph.of_type(pattern.calls[pattern.root].op_type), name):
            nodes = [match.nodes[key] for key in pattern.calls]
            reason = _refusal(graph, match, vectors)
            if reason:
                graph.remark(nodes[-1].ops, name, False, reason)
                continue
            inputs = [match.tensors[key] for key in ("x", *vectors)]
            epsilon = match.numbers.get("$epsilon", DEFAULT_EPSILON)
            outputs = list(nodes[-1].outputs)
            new = Node(op_type, "", nodes[-1].name, inputs, outputs, {"axis": -1, "epsilon": epsilon}, ())
            graph.replace(nodes, new)
            graph.remark(new.ops, name, True, f"becomes {op_type}")


def _refusal(graph: WorkingGraph, match: Match, vectors: tuple[str, ...]) -> str:
    """Why a normalisation cannot be fused; empty where it can."""
    rank = len(graph.shape(match.tensors["x"]))
    if graph.tensors[match.tensors["x"]].dtype == "float16":
        return "the runtime has no such kernel for float16"
    for node in match.nodes.values():
        if node.op_type == "ReduceMean" and reduced_axes(graph, node, rank) != (rank - 1,):
            return f"the mean is over axes {reduced_axes(graph, node, rank)}, not the last one alone"
    shapes = [graph.shape(match.tensors[key]) for key in vectors]
    if any(len(shape) != 1 for shape in shapes) or len(set(shapes)) > 1:
        return f"scale and bias are not vectors of one length: {shapes}"
    return ""


def reduced_axes(graph: WorkingGraph, node: Node, rank: int) -> tuple[int, ...]:
    """Axes of a reduction, counted from the front; empty where they are unknown or all are meant."""
    axes = node.attributes.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1]:
        value = graph.tensors[node.inputs[1]].value
        axes = tuple(int(axis) for axis in value.reshape(-1)) if value is not None else None
    return tuple(sorted(int(axis) % rank for axis in axes)) if isinstance(axes, tuple) else ()


def skip_layer_norm(graph: WorkingGraph, rules: RuleBook) -> None:
    """The residual Add before a LayerNormalization, and the Add of a bias before that, go into one kernel."""
    rule = "skip-layer-norm"
    if not rules.holds(rule):
        return
    for norm in graph.of_type("LayerNormalization"):
        add = graph.producers.get(norm.inputs[0])
        if add is None or add.op_type != "Add" or norm.domain:
            continue
        reason = _unfit_for_skip(graph, norm, add)
        if reason:
            graph.remark(add.ops, rule, False, reason)
            continue
        inputs = [*add.inputs, norm.inputs[1], norm.inputs[2] if len(norm.inputs) > 2 else ""]
        old = [add, norm]
        for side in (0, 1):
            inner = graph.producers.get(add.inputs[side])
            if inner is not None and _adds_bias(graph, inner):
                inputs[side] = inner.inputs[0]
                inputs.append(inner.inputs[1])
                old.insert(0, inner)
                break
        new = Node("SkipLayerNormalization", MICROSOFT, norm.name, inputs, norm.outputs[:1], dict(norm.attributes), ())
        new.attributes.pop("axis", None)
        new.epilogue = ()
        graph.replace(old, new)
        graph.remark(new.ops, rule, True, "the Add is carried out by the normalisation")


def _unfit_for_skip(graph: WorkingGraph, norm: Node, add: Node) -> str:
    if graph.sole_use(add.outputs[0]) is None:
        return "the sum is used elsewhere too"
    shapes = [graph.shape(name) for name in add.inputs]
    if len(shapes[0]) != 3 or shapes[0] != shapes[1]:
        return f"the summands are not of one shape with three dims: {shapes}"
    if any(graph.tensors[name].dtype not in SKIP_TYPES for name in [*add.inputs, *filter(None, norm.inputs)]):
        return "the runtime has no such kernel for this element type"
    if any(norm.outputs[1:]):
        return "mean or deviation are asked for too"
    return ""


def _adds_bias(graph: WorkingGraph, add: Node) -> bool:
    """Whether a node adds a constant vector to its first input, for one consumer."""
    if add.op_type != "Add" or graph.sole_use(add.outputs[0]) is None or not graph.is_constant(add.inputs[1]):
        return False
    data, bias = (graph.shape(name) for name in add.inputs)
    return len(data) == 3 and bias == data[2:]


def bias_skip_layer_norm(graph: WorkingGraph, rules: RuleBook) -> None:
    """The bias of a MatMul before a SkipLayerNormalization, on either side, goes into it."""
    rule = "bias-skip-layer-norm"
    if not rules.holds(rule):
        return
    for norm in graph.of_type("SkipLayerNormalization"):
        if len(norm.inputs) != 4:
            continue
        for side in (0, 1):
            add = graph.producers.get(norm.inputs[side])
            if add is None or add.op_type != "Add" or graph.sole_use(add.outputs[0]) is None:
                continue
            product = next((n for n in add.inputs if _is_product(graph, n)), None)
            bias = add.inputs[1 if add.inputs[0] == product else 0]
            if product is None or not graph.is_constant(bias) or graph.shape(bias) != graph.shape(norm.inputs[2]):
                continue
            inputs = [product, norm.inputs[1 - side], norm.inputs[2], norm.inputs[3], bias]
            new = Node(norm.op_type, norm.domain, norm.name, inputs, list(norm.outputs), dict(norm.attributes), ())
            graph.replace([add, norm], new)
            graph.remark(add.ops, rule, True, "the bias is added by the normalisation")
            break


def _is_product(graph: WorkingGraph, name: str) -> bool:
    node = graph.producers.get(name)
    if node is not None and node.op_type == "Cast":
        node = graph.producers.get(node.inputs[0])
    return node is not None and node.op_type == "MatMul"
