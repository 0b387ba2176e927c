"""The blocked channel layout (NCHWc): which kernels run in it, and the reorders at its borders.

Convolutions and poolings lead into the layout. What reads their results follows where it can work on channel
blocks; for every reader that cannot, a ReorderOutput restores the plain layout. A blocked tensor has its channels
rounded up to the block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isclose

from latpred.graph import AttributeValue
from latpred.kernels.fusion import RuleBook
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["block_channels", "channel_block"]

RULE = "conv-nchwc"
DOMAIN = "com.microsoft.nchwc"
CHANNEL_ALIGNMENT = 4  # channels; reorders move them in fours
# Activations that a blocked convolution carries out, and those that only run on blocks as they are.
FUSED = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "HardSigmoid": "hardsigmoid"}
KEPT = ("Gelu", "QuickGelu")
TO_CHANNELS_LAST = (0, 2, 3, 1)
TO_CHANNELS_FIRST = (0, 3, 1, 2)
LINEAR_MODES = ("half_pixel", "asymmetric", "align_corners")


@dataclass(slots=True)
class _Blocked:
    """A plain tensor that also exists in blocks."""

    node: Node  # that writes it
    name: str
    uses: int  # of the plain tensor when it was blocked; a graph output counts as one
    channels: int


def channel_block(rules: RuleBook) -> int:
    """Channels that a convolution in the blocked layout works on at once; 0 where the runtime has no such layout."""
    return int(rules.parameters(RULE).get("block", 16)) if rules.holds(RULE) else 0  # type: ignore[arg-type]


def block_channels(graph: WorkingGraph, rules: RuleBook) -> None:
    """Move to the blocked layout what the runtime runs in it, and put reorders at the borders."""
    block = channel_block(rules)
    if block <= 1 or not any(graph.by_type.get(op_type) for op_type in ENTRIES):
        return
    transformer = _Transformer(graph, block)
    for node in graph.in_order():
        transform = TRANSFORMS.get((node.domain, node.op_type))
        if transform is not None:
            transform(transformer, node)
    transformer.finish()


class _Transformer:
    def __init__(self, graph: WorkingGraph, block: int) -> None:
        self.graph = graph
        self.block = block
        self.blocked: dict[str, _Blocked] = {}  # plain tensor -> its blocks
        self.reordered: dict[str, Node] = {}  # plain tensor -> what reorders it
        self.read_once: set[str] = set()  # plain tensors that only the node behind their reorder has read

    def padded(self, channels: int) -> int:
        return -(-channels // self.block) * self.block

    def refuse(self, node: Node, why: str) -> None:
        self.graph.remark(node.ops, RULE, False, why)

    def plain_uses(self, name: str) -> int:
        return len(self.graph.uses.get(name, ())) + (name in self.graph.outputs)

    def blocked_tensor(self, plain: str, channels: int) -> str:
        shape = self.graph.shape(plain)
        dtype = self.graph.tensors[plain].dtype
        return self.graph.tensor(f"{plain}_blocked", (shape[0], self.padded(channels), *shape[2:]), dtype)

    def replace(self, node: Node, new: Node, channels: int) -> None:
        """Put `new` in the place of `node`; its output is the blocked form of node's output."""
        plain = node.outputs[0]
        uses = self.plain_uses(plain)
        new.outputs = [self.blocked_tensor(plain, channels)]
        new.ops = node.ops
        new.rank = node.rank
        new.epilogue = node.epilogue
        self.graph.remove(node)
        self.graph.add(new)
        self.blocked[plain] = _Blocked(new, new.outputs[0], uses, channels)
        self.graph.remark(new.ops, RULE, True, f"runs on blocks of {self.block} channels")

    def enter(self, node: Node, plain: str) -> str:
        """The blocked form of an input; a ReorderInput makes it where there is none."""
        known = self.blocked.get(plain)
        if known is not None:
            return known.name
        if plain not in self.reordered:
            if self.plain_uses(plain) == 1:
                self.read_once.add(plain)
            name = self.blocked_tensor(plain, self.graph.shape(plain)[1])
            reorder = Node("ReorderInput", DOMAIN, f"{node.name}_reorder", [plain], [name], {}, (), rank=node.rank)
            reorder.attributes["channels_last"] = 0
            self.graph.add(reorder)
            self.reordered[plain] = reorder
        return self.reordered[plain].outputs[0]

    # -- entries to the layout ----------------------------------------------------------------------------

    def convolution(self, node: Node) -> None:
        graph, block = self.graph, self.block
        weights = graph.tensors[node.inputs[1]]
        if not all(graph.is_constant(name) for name in node.inputs[1:3] if name):
            return self.refuse(node, "its weights or bias are no constants")
        if weights.dtype != "float32" or len(weights.shape) != 4:
            return self.refuse(node, f"its weights are {len(weights.shape)}-D {weights.dtype}, not 4-D float32")
        out_channels, in_channels = weights.shape[:2]
        groups = int(node.attributes.get("group", 1))  # type: ignore[arg-type]
        direct = False  # reads the plain layout
        if groups > 1:
            if in_channels == 1 and out_channels == groups:
                if out_channels % CHANNEL_ALIGNMENT:
                    return self.refuse(node, f"{out_channels} channels: no multiple of {CHANNEL_ALIGNMENT}")
            elif in_channels % block or (out_channels // groups) % block:
                return self.refuse(
                    node,
                    f"{in_channels} input and {out_channels // groups} output channels a group: "
                    f"not both multiples of the block {block}",
                )
        elif in_channels < block:
            direct = True
        elif in_channels % CHANNEL_ALIGNMENT:
            return self.refuse(node, f"{in_channels} input channels: no multiple of {CHANNEL_ALIGNMENT}")
        depthwise = groups > 1 and in_channels == 1 and out_channels == groups
        padded_in = in_channels if direct or groups > 1 else self.padded(in_channels)
        attributes: dict[str, AttributeValue] = dict(node.attributes)
        if depthwise:
            attributes["group"] = self.padded(out_channels)
        if direct:
            attributes["plain_input"] = 1  # not of ONNX: tells a kernel that gathers its input from plain channels
        inputs = [
            node.inputs[0] if direct else self.enter(node, node.inputs[0]),
            graph.tensor(node.inputs[1], (self.padded(out_channels), padded_in, *weights.shape[2:]), "float32", True),
        ]
        if len(node.inputs) > 2 and node.inputs[2]:
            inputs.append(graph.tensor(node.inputs[2], (self.padded(out_channels),), "float32", True))
        self.replace(node, Node("Conv", DOMAIN, node.name, inputs, [], attributes, ()), out_channels)
        return None

    def pool(self, node: Node) -> None:
        tensor = self.graph.tensors[node.inputs[0]]
        if len(node.outputs) > 1 or tensor.dtype != "float32" or len(tensor.shape) != 4:
            return self.refuse(node, "only 4-D float32 pooling without indices runs on blocks")
        if node.op_type.startswith("Global") and node.inputs[0] in self.graph.producers:
            return self.refuse(node, "its input is in the plain layout")
        if node.attributes.get("ceil_mode") and node.attributes.get("count_include_pad"):
            return self.refuse(node, "rounding up and counting the padding do not go together on blocks")
        channels = tensor.shape[1]
        if channels % self.block:
            return self.refuse(node, f"{channels} channels: no multiple of the block {self.block}")
        new = Node(node.op_type, DOMAIN, node.name, [self.enter(node, node.inputs[0])], [], dict(node.attributes), ())
        self.replace(node, new, channels)
        return None

    # -- what follows -------------------------------------------------------------------------------------

    def follow(self, node: Node, sources: list[_Blocked], channels: int) -> None:
        """The same node on blocked inputs."""
        inputs = [source.name for source in sources]
        self.replace(node, Node(node.op_type, node.domain, node.name, inputs, [], dict(node.attributes), ()), channels)

    def hand_over(self, node: Node, source: _Blocked, step: str) -> None:
        """Let the convolution behind `source` carry out `node`."""
        plain = node.outputs[0]
        uses = self.plain_uses(plain)
        self.graph.remove(node)
        conv = source.node
        conv.ops = (*conv.ops, *node.ops)
        conv.epilogue = (*conv.epilogue, step)
        self.blocked[plain] = _Blocked(conv, source.name, uses, source.channels)
        self.graph.remark(node.ops, RULE, True, f"carried out by {conv.name}")

    def may_fuse(self, source: _Blocked, uses: int = 1) -> bool:
        conv = source.node
        return conv.op_type == "Conv" and conv.domain == DOMAIN and source.uses == uses and not _activated(conv)

    def sources(self, node: Node) -> list[_Blocked] | None:
        found = [self.blocked.get(name) for name in node.inputs]
        return [f for f in found if f is not None] if all(f is not None for f in found) else None

    def binary(self, node: Node) -> None:
        sources = self.sources(node)
        if sources is None:
            if node.op_type == "Mul" and self.scale(node):
                return None
            if any(name in self.blocked for name in node.inputs):
                self.refuse(node, "one of its inputs is in the plain layout")
            return None
        if len({source.channels for source in sources}) > 1:
            return self.refuse(node, "its inputs differ in channels")
        adds = node.op_type in ("Add", "Sum")
        if len({self.graph.shape(name) for name in node.inputs}) > 1:
            return self.broadcast_add(node, sources) if adds else self.refuse(node, "its inputs differ in shape")
        if adds and len(sources) == 2:
            for index, source in enumerate(sources):
                if self.may_fuse(source) and len(source.node.inputs) < 4:
                    conv = source.node
                    conv.inputs += [""] * (3 - len(conv.inputs))
                    self.graph.append_input(conv, sources[1 - index].name)
                    conv.rank = node.rank
                    return self.hand_over(node, source, "add")
        if node.op_type == "Mul" and self.hard_swish(node):
            return None
        return self.follow(node, sources, sources[0].channels)

    def scale(self, node: Node) -> bool:
        """A factor a channel, known ahead, is the weight of a depthwise convolution of size 1."""
        for index, name in enumerate(node.inputs):
            source = self.blocked.get(node.inputs[1 - index])
            if source is None or not self.graph.is_constant(name):
                continue
            if self.graph.shape(name) not in ((source.channels, 1, 1), (1, source.channels, 1, 1)):
                continue
            channels = self.padded(source.channels)
            weights = self.graph.tensor(name, (channels, 1, 1, 1), "float32", True)
            new = Node("Conv", DOMAIN, node.name, [source.name, weights], [], {"group": channels}, ())
            self.replace(node, new, source.channels)
            return True
        return False

    def broadcast_add(self, node: Node, sources: list[_Blocked]) -> None:
        """Views that show the block as a fifth dim let the Add broadcast over the others."""
        channels = sources[0].channels
        inputs = [self.view(node, source.name) for source in sources]
        inner = Node(node.op_type, node.domain, node.name, inputs, [], dict(node.attributes), node.ops, rank=node.rank)
        shape = self.graph.shape(node.outputs[0])
        folded = (shape[0], self.padded(channels) // self.block, *shape[2:], self.block)
        inner.outputs = [self.graph.tensor(node.outputs[0], folded, "float32")]
        view = Node("Reshape", "", f"{node.name}_view", [inner.outputs[0]], [], {}, ())
        self.replace(node, view, channels)
        view.ops = ()
        self.graph.add(inner)

    def view(self, node: Node, name: str) -> str:
        shape = self.graph.shape(name)
        folded = (shape[0], shape[1] // self.block, *shape[2:], self.block)
        view = self.graph.tensor(name, folded, "float32")
        self.graph.add(Node("Reshape", "", f"{node.name}_view", [name], [view], {}, (), rank=node.rank))
        return view

    def hard_swish(self, node: Node) -> bool:
        """X * HardSigmoid(x) with slope 1/6 behind a convolution that nothing else reads."""
        for gate, through in ((node.inputs[1], node.inputs[0]), (node.inputs[0], node.inputs[1])):
            sigmoid, source = self.blocked[gate].node, self.blocked[through]
            if (
                sigmoid.op_type == "HardSigmoid"
                and sigmoid.inputs[0] == source.name
                and self.blocked[gate].uses == 1
                and isclose(float(sigmoid.attributes.get("alpha", 0.2)), 1 / 6, rel_tol=1e-5)  # type: ignore[arg-type]
                and float(sigmoid.attributes.get("beta", 0.5)) == 0.5  # type: ignore[arg-type]
                and node.outputs[0] not in self.graph.outputs
                and self.may_fuse(source, uses=2)
            ):
                self.graph.remove(sigmoid)
                node.ops = (*sigmoid.ops, *node.ops)
                source.node.attributes["activation"] = "HardSwish"
                self.hand_over(node, source, "hardswish")
                return True
        return False

    def concat(self, node: Node) -> None:
        sources = self.sources(node)
        if sources is None or node.attributes.get("axis") != 1:
            if any(name in self.blocked for name in node.inputs):
                self.refuse(node, "not every input is blocked, or the axis is not 1")
            return None
        if any(source.channels % self.block for source in sources):
            return self.refuse(node, f"an input's channels are no multiple of the block {self.block}")
        return self.follow(node, sources, sum(source.channels for source in sources))

    def activation(self, node: Node) -> None:
        source = self.blocked.get(node.inputs[0])
        if source is None:
            return
        if node.op_type in FUSED and self.may_fuse(source):
            source.node.attributes["activation"] = node.op_type
            self.hand_over(node, source, FUSED[node.op_type])
            return
        self.follow(node, [source], source.channels)

    def batch_norm(self, node: Node) -> None:
        source = self.blocked.get(node.inputs[0])
        if source is None or len(node.outputs) > 1:
            return None
        if not all(self.graph.is_constant(name) for name in node.inputs[1:]):
            return self.refuse(node, "its statistics are no constants")
        channels = self.padded(source.channels)
        inputs = [
            source.name,
            self.graph.tensor(node.inputs[1], (channels, 1, 1, 1), "float32", True),
            self.graph.tensor(node.inputs[2], (channels,), "float32", True),
        ]
        self.replace(node, Node("Conv", DOMAIN, node.name, inputs, [], {"group": channels}, ()), source.channels)
        return None

    def transpose(self, node: Node) -> None:
        source = self.blocked.get(node.inputs[0])
        if source is None or node.attributes.get("perm") != TO_CHANNELS_LAST:
            return
        attributes: dict[str, AttributeValue] = {"channels": source.channels, "channels_last": 1}
        new = Node("ReorderOutput", DOMAIN, node.name, [source.name], list(node.outputs), attributes, ())
        self.graph.replace([node], new)
        self.graph.remark(node.ops, RULE, True, "done by the reorder out of the blocked layout")

    def resize(self, node: Node) -> None:
        source = self.blocked.get(node.inputs[0])
        if source is None:
            return None
        why_not = _resize_refusal(self.graph, node)
        if why_not:
            return self.refuse(node, why_not)
        before, after = self.graph.shape(node.inputs[0]), self.graph.shape(node.outputs[0])
        attributes = {**node.attributes, "scales": tuple(b // a for a, b in zip(before, after, strict=True))}
        self.replace(node, Node("Upsample", DOMAIN, node.name, [source.name], [], attributes, ()), source.channels)
        return None

    # -- borders ------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Reorders out where plain readers remain; a transpose before a reorder in is done by it."""
        graph = self.graph
        for plain, source in self.blocked.items():
            if self.plain_uses(plain):
                attributes: dict[str, AttributeValue] = {"channels": source.channels, "channels_last": 0}
                rank = source.node.rank
                graph.add(
                    Node("ReorderOutput", DOMAIN, f"{plain}_reorder", [source.name], [plain], attributes, (), rank=rank)
                )
        for plain, reorder in self.reordered.items():
            transpose = graph.producers.get(plain)
            if (
                transpose is not None
                and transpose.op_type == "Transpose"
                and transpose.attributes.get("perm") == TO_CHANNELS_FIRST
                and plain in self.read_once
            ):
                graph.remove(transpose)
                graph.set_input(reorder, 0, transpose.inputs[0])
                reorder.ops = transpose.ops
                reorder.attributes["channels_last"] = 1
                graph.remark(transpose.ops, RULE, True, "done by the reorder into the blocked layout")


def _activated(conv: Node) -> bool:
    return "activation" in conv.attributes


def _resize_refusal(graph: WorkingGraph, node: Node) -> str:
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if len(before) != 4 or before[:2] != after[:2] or any(b % a for a, b in zip(before, after, strict=True)):
        return "only height and width by whole factors are resized on blocks"
    mode = node.attributes.get("mode", "nearest")
    if graph.opsets.get("", 11) < 11:  # before opset 11 there was one way to place and to round
        return "" if mode in ("nearest", "linear") else f"mode {mode} is not done on blocks"
    place = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        rounding = node.attributes.get("nearest_mode", "round_prefer_floor")
        plain = place == "asymmetric" and rounding == "floor"
        return "" if plain else f"nearest with {place} and {rounding}: only asymmetric with floor is done on blocks"
    if mode == "linear" and place in LINEAR_MODES:
        return ""
    return f"mode {mode} with {place} is not done on blocks"


ENTRIES = ("Conv", "FusedConv", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
TRANSFORMS: dict[tuple[str, str], Callable[[_Transformer, Node], None]] = {
    ("", "Conv"): _Transformer.convolution,
    ("com.microsoft", "FusedConv"): _Transformer.convolution,
    **{("", op_type): _Transformer.pool for op_type in ENTRIES[2:]},
    **{("", op_type): _Transformer.binary for op_type in ("Add", "Sum", "Mul")},
    ("", "Concat"): _Transformer.concat,
    **{("", op_type): _Transformer.activation for op_type in (*FUSED, "Gelu")},
    **{("com.microsoft", op_type): _Transformer.activation for op_type in KEPT},
    ("", "BatchNormalization"): _Transformer.batch_norm,
    ("", "Transpose"): _Transformer.transpose,
    ("", "Resize"): _Transformer.resize,
    ("", "Upsample"): _Transformer.resize,
}
