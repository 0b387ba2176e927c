"""What goes into a convolution that keeps its plain layout: neighbours folded into weights, bias, pads, epilogue."""

# ruff: noqa: ARG001 - the functions of a table share one signature

from __future__ import annotations

from latpred.kernels.fusion import RuleBook
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["fuse_conv_activation", "fuse_conv_add_activation", "fuse_conv_weights", "fuse_pads"]

# Activations that a plain convolution carries out, and the name of the epilogue.
CONV_ACTIVATIONS = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "LeakyRelu": "leakyrelu",
    "HardSigmoid": "hardsigmoid",
    "Clip": "clip",
}


def fuse_conv_weights(graph: WorkingGraph, rules: RuleBook) -> None:
    """Fold Add, Mul and BatchNormalization by constants behind a Conv into its weights and bias."""
    for conv in graph.of_type("Conv", "ConvTranspose"):
        if not graph.alive(conv):
            continue
        while _fold_one(graph, rules, conv):
            pass


def _fold_one(graph: WorkingGraph, rules: RuleBook, conv: Node) -> bool:
    user = graph.sole_use(conv.outputs[0])
    if user is None:
        return False
    rule, refusal = WEIGHT_RULES.get(user.op_type, ("", None))
    if refusal is None or not rules.holds(rule):
        return False
    if conv.op_type == "ConvTranspose" and user.op_type != "BatchNormalization":
        graph.remark(user.ops, rule, False, "only a normalisation goes into a transposed convolution")
        return False
    if not all(graph.is_constant(name) for name in conv.inputs[1:] if name):
        graph.remark(user.ops, rule, False, f"the weights of {conv.name} are no constants")
        return False
    why_not = refusal(graph, conv, user)
    if why_not:
        graph.remark(user.ops, rule, False, why_not)
        return False
    if user.op_type != "Mul" and len(conv.inputs) < 3:
        channels = graph.shape(conv.outputs[0])[1]
        bias = graph.tensor(f"{conv.name}_bias", (channels,), graph.tensors[conv.inputs[1]].dtype, constant=True)
        graph.append_input(conv, bias)
    graph.remark(user.ops, rule, True, f"goes into the weights of {conv.name}")
    graph.absorb(conv, user)
    return True


def _batch_norm_refusal(graph: WorkingGraph, conv: Node, user: Node) -> str:
    if not all(graph.is_constant(name) for name in user.inputs[1:]):
        return "its statistics are no constants"
    return "its training outputs are asked for" if any(user.outputs[1:]) else ""


def _mul_refusal(graph: WorkingGraph, conv: Node, user: Node) -> str:
    if user.inputs[0] != conv.outputs[0] or not graph.is_constant(user.inputs[1]):
        return "its second input is no constant"
    factor = graph.shape(user.inputs[1])
    return "" if not factor or _per_channel(graph, conv, factor) else f"the factor {factor} is not one a channel"


def _add_refusal(graph: WorkingGraph, conv: Node, user: Node) -> str:
    if user.inputs[0] != conv.outputs[0] or not graph.is_constant(user.inputs[1]):
        return "its second input is no constant"
    term = graph.shape(user.inputs[1])
    return "" if _per_channel(graph, conv, term) else f"the term {term} is not one a channel"


def _per_channel(graph: WorkingGraph, conv: Node, shape: tuple[int, ...]) -> bool:
    """Shape (C, 1, 1) or (1, C, 1, 1) for weights (C, ., ., .)."""
    weights = graph.shape(conv.inputs[1])
    channels = (weights[0], *(1 for _ in weights[2:]))
    return shape in (channels, (1, *channels))


# op behind the convolution -> (rule, why it cannot be folded, or "")
WEIGHT_RULES = {
    "BatchNormalization": ("conv-bn", _batch_norm_refusal),
    "Mul": ("conv-mul", _mul_refusal),
    "Add": ("conv-add", _add_refusal),
}


def fuse_pads(graph: WorkingGraph, rules: RuleBook) -> None:
    """A Pad with zeros before a Conv or pooling becomes its own padding."""
    rule = "pad-conv"
    if not rules.holds(rule):
        return
    for pad in graph.of_type("Pad"):
        users = graph.uses.get(pad.outputs[0], [])
        why_not = _pad_refusal(graph, pad, users)
        if why_not:
            graph.remark(pad.ops, rule, False, why_not)
            continue
        pads = _pads(graph, pad) or ()
        half = len(pads) // 2
        user = users[0]
        own = user.attributes.get("pads")
        outer = (*pads[2:half], *pads[half + 2 :])
        before = [int(amount) for amount in own] if isinstance(own, tuple) else [0] * len(outer)
        user.attributes["pads"] = tuple(a + b for a, b in zip(before, outer, strict=True))
        user.ops = (*pad.ops, *user.ops)
        graph.remark(pad.ops, rule, True, f"became the padding of {user.name}")
        graph.remove(pad)
        graph.set_input(user, 0, pad.inputs[0])


def _pads(graph: WorkingGraph, pad: Node) -> tuple[int, ...] | None:
    if len(pad.inputs) < 2:
        own = pad.attributes.get("pads")
        return tuple(int(x) for x in own) if isinstance(own, tuple) else None
    value = graph.tensors[pad.inputs[1]].value if graph.is_constant(pad.inputs[1]) else None
    return None if value is None else tuple(int(x) for x in value.reshape(-1))


def _pad_refusal(graph: WorkingGraph, pad: Node, users: list[Node]) -> str:
    pads = _pads(graph, pad)
    if pad.attributes.get("mode", "constant") != "constant":
        return f"the padding mode is {pad.attributes['mode']}"
    if pads is None or (len(pad.inputs) > 3 and pad.inputs[3]):
        return "the amounts are not known ahead"
    if min(pads) < 0 or any(pads[:2]) or any(pads[len(pads) // 2 :][:2]):
        return "it crops, or pads batch or channels"
    if len(pad.inputs) > 2:
        if not pad.inputs[2]:
            return "its value is an input that is left out"
        if not graph.is_constant(pad.inputs[2]) or graph.scalar(pad.inputs[2]) != 0:
            return "its value is not zero"
    elif pad.attributes.get("value", 0) != 0:
        return "its value is not zero"
    if len(users) != 1 or pad.outputs[0] in graph.outputs:
        return "more than one op reads it"
    return _padded_user_refusal(users[0])


def _padded_user_refusal(user: Node) -> str:
    if user.op_type not in ("Conv", "AveragePool", "MaxPool"):
        return f"{user.op_type} behind it has no padding of its own"
    if user.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return f"{user.name} pads by itself"
    return f"{user.name} tells indices" if len(user.outputs) > 1 else ""


def fuse_conv_activation(graph: WorkingGraph, rules: RuleBook) -> None:
    """An activation that alone reads a Conv is carried out by it."""
    rule = "conv-activation"
    if not rules.holds(rule):
        return
    for conv in graph.of_type("Conv"):
        if conv.domain:
            continue
        user = graph.sole_use(conv.outputs[0])
        if user is None or not _is_activation(graph, rules, user):
            continue
        _take_activation(graph, conv, user, rule)
        graph.retype(conv, "FusedConv", "com.microsoft")


def _is_activation(graph: WorkingGraph, rules: RuleBook, node: Node) -> bool:
    seen = rules.parameters("conv-activation").get("activations", tuple(CONV_ACTIVATIONS))
    if node.domain or node.op_type not in CONV_ACTIVATIONS or not isinstance(seen, tuple) or node.op_type not in seen:
        return False
    return node.op_type != "Clip" or all(not name or graph.is_constant(name) for name in node.inputs[1:])


def _take_activation(graph: WorkingGraph, conv: Node, activation: Node, rule: str) -> None:
    conv.attributes["activation"] = activation.op_type
    conv.epilogue = (*conv.epilogue, CONV_ACTIVATIONS[activation.op_type])
    graph.remark(activation.ops, rule, True, f"carried out by {conv.name}")
    graph.absorb(conv, activation)


def fuse_conv_add_activation(graph: WorkingGraph, rules: RuleBook) -> None:
    """Behind a plain Conv with bias: a residual Add of the same shape, and the activation behind it."""
    rule = "conv-add-activation"
    if not rules.holds(rule):
        return
    for conv in graph.of_type("Conv"):
        if conv.domain or not graph.alive(conv) or graph.tensors[conv.inputs[0]].dtype != "float32":
            continue
        add = graph.sole_use(conv.outputs[0])
        if add is None or add.op_type != "Add" or add.domain:
            continue
        shapes = {graph.shape(name) for name in add.inputs}
        if len(shapes) != 1 or len(shapes.pop()) != 4:
            graph.remark(add.ops, rule, False, "only two tensors of the same 4-D shape are added by a Conv")
            continue
        if len(conv.inputs) < 3 or not conv.inputs[2]:
            graph.remark(add.ops, rule, False, f"{conv.name} has no bias")
            continue
        residual = add.inputs[1 - add.inputs.index(conv.outputs[0])]
        if residual == conv.outputs[0]:
            continue
        graph.append_input(conv, residual)
        conv.epilogue = (*conv.epilogue, "add")
        graph.remark(add.ops, rule, True, f"carried out by {conv.name}")
        graph.absorb(conv, add)
        conv.rank = add.rank
        activation = graph.sole_use(conv.outputs[0])
        if activation is not None and _is_activation(graph, rules, activation):
            _take_activation(graph, conv, activation, rule)
        graph.retype(conv, "FusedConv", "com.microsoft")
