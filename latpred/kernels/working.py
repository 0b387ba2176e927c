"""A graph that fusion passes rewrite in place; every node remembers which ONNX ops it carries out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from latpred.graph import AttributeValue, Graph, Op, Tensor, captured

__all__ = ["Node", "Remark", "WorkingGraph"]


@dataclass(slots=True, eq=False)
class Node:
    """A node under rewriting. `ops` are the names of the ONNX ops that it stands for."""

    op_type: str
    domain: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, AttributeValue]
    ops: tuple[str, ...]
    epilogue: tuple[str, ...] = ()
    source: Op | None = None  # set where bodies have to be walked
    rank: float = -1.0  # place in the file; the graph gives one where none is set
    age: int = 0  # counts the nodes that were added to a graph
    captured: tuple[str, ...] = ()  # what its bodies read from around them


@dataclass(frozen=True, slots=True)
class Remark:
    """Why a rule applied to an op, or did not."""

    rule: str
    applied: bool
    reason: str


@dataclass(slots=True)
class WorkingGraph:
    """Nodes with producer and consumer lookups kept up to date by `add`, `remove` and `set_input`."""

    tensors: dict[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opsets: Mapping[str, int]
    nodes: dict[int, Node] = field(default_factory=dict)  # id -> node, in insertion order
    producers: dict[str, Node] = field(default_factory=dict)
    uses: dict[str, list[Node]] = field(default_factory=dict)  # one entry a use: a node may stand twice
    free: dict[str, str] = field(default_factory=dict)  # ONNX op name -> why it costs nothing
    remarks: dict[str, list[Remark]] = field(default_factory=dict)  # ONNX op name -> what rules said
    derived: set[str] = field(default_factory=set)  # constants that were not in the file: folded or made by a pass
    fresh: int = 0
    by_type: dict[str, dict[int, Node]] = field(default_factory=dict)  # op type -> nodes, so that rules need no scan
    edits: int = 0  # counts the changes of nodes and edges
    order: tuple[int, list[Node]] = (-1, [])  # what `in_order` found, and after how many edits

    @classmethod
    def of(cls, graph: Graph) -> WorkingGraph:
        """A rewritable copy; the graph itself is never touched."""
        # Bodies read these by name, so that they have to keep it.
        outer = {op.name: tuple(sorted(set().union(*map(captured, op.bodies)))) for op in graph.ops if op.bodies}
        kept = dict.fromkeys(name for names in outer.values() for name in names)
        outputs = (*graph.outputs, *(name for name in kept if name not in graph.outputs))
        working = cls(dict(graph.tensors), graph.inputs, outputs, graph.opsets)
        for op in graph.ops:
            working.add(
                Node(
                    op.op_type,
                    op.domain,
                    op.name,
                    list(op.inputs),
                    list(op.outputs),
                    dict(op.attributes),
                    (op.name,),
                    source=op if op.bodies else None,
                    captured=outer.get(op.name, ()),
                )
            )
        return working

    def add(self, node: Node) -> Node:
        """Insert a node (order is restored by `in_order`); a node without a rank goes last."""
        self.edits += 1
        self.fresh += 1
        node.age = self.fresh
        if node.rank < 0:
            node.rank = float(self.fresh)
        self.nodes[id(node)] = node
        self.by_type.setdefault(node.op_type, {})[id(node)] = node
        for name in node.outputs:
            if name:
                self.producers[name] = node
        for name in node.inputs:
            if name:
                self.uses.setdefault(name, []).append(node)
        return node

    def remove(self, node: Node) -> None:
        """Take a node out; its outputs lose their producer."""
        self.edits += 1
        del self.nodes[id(node)]
        del self.by_type[node.op_type][id(node)]
        for name in node.outputs:
            if name and self.producers.get(name) is node:
                del self.producers[name]
        for name in node.inputs:
            if name:
                self.uses[name].remove(node)

    def retype(self, node: Node, op_type: str, domain: str | None = None) -> None:
        """Change a node's op type (and domain) where it stands."""
        del self.by_type[node.op_type][id(node)]
        node.op_type = op_type
        node.domain = node.domain if domain is None else domain
        self.by_type.setdefault(op_type, {})[id(node)] = node

    def of_type(self, *op_types: str) -> list[Node]:
        """Nodes of these op types in the order of the file (a snapshot: rewriting while iterating is safe).

        A node may have been removed by the time it is reached; `alive` tells.
        """
        found = [node for op_type in op_types for node in self.by_type.get(op_type, {}).values()]
        found.sort(key=lambda node: node.rank)
        return found

    def alive(self, node: Node) -> bool:
        """Whether a node of a snapshot is still in the graph."""
        return id(node) in self.nodes

    def set_input(self, node: Node, index: int, name: str) -> None:
        """Rewire one input."""
        self.edits += 1
        old = node.inputs[index]
        if old:
            self.uses[old].remove(node)
        node.inputs[index] = name
        if name:
            self.uses.setdefault(name, []).append(node)

    def append_input(self, node: Node, name: str) -> None:
        """Give a node one more input."""
        self.edits += 1
        node.inputs.append(name)
        if name:
            self.uses.setdefault(name, []).append(node)

    def replace_uses(self, old: str, new: str) -> None:
        """Every consumer of `old` reads `new` instead (graph outputs are not renamed)."""
        for node in list(self.uses.get(old, ())):
            for index, name in enumerate(node.inputs):
                if name == old:
                    self.set_input(node, index, new)

    def bypass(self, node: Node, why: str, index: int = 0) -> bool:
        """Drop a node that passes input `index` through; False where it makes a graph output from a graph input.

        Its ops are declared free with the reason `why`.
        """
        source, target = node.inputs[index], node.outputs[0]
        if target in self.outputs:
            producer = self.producers.get(source)
            if producer is None or len(self.uses.get(source, ())) > 1 or source in self.outputs:
                return False
            self.remove(node)
            producer.outputs[producer.outputs.index(source)] = target
            del self.producers[source]
            self.producers[target] = producer
            self.tensors[target] = Tensor(
                target, self.tensors[target].shape, self.tensors[target].dtype, self.tensors[target].constant
            )
        else:
            self.remove(node)
            self.replace_uses(target, source)
        for op in node.ops:
            self.free[op] = why
        return True

    def replace(self, old: Sequence[Node], new: Node) -> Node:
        """Swap nodes for one that carries all their ops."""
        for node in old:
            self.remove(node)
        if new.rank < 0:
            new.rank = max(node.rank for node in old)
        new.ops = tuple(dict.fromkeys([*(op for node in old for op in node.ops), *new.ops]))
        return self.add(new)

    def absorb(self, node: Node, follower: Node) -> None:
        """Let a node carry out the one that reads its only output: the follower's output becomes its own."""
        self.remove(follower)
        self.producers.pop(node.outputs[0], None)
        node.outputs[0] = follower.outputs[0]
        self.producers[node.outputs[0]] = node
        node.ops = (*node.ops, *follower.ops)

    def tensor(
        self, stem: str, shape: tuple[int, ...], dtype: str, constant: bool = False, value: np.ndarray | None = None
    ) -> str:
        """Register a new tensor and return its unique name."""
        self.fresh += 1
        name = f"{stem}~{self.fresh}"
        self.tensors[name] = Tensor(name, shape, dtype, constant, value)
        if constant:
            self.derived.add(name)
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.tensors[name].shape

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is known before the first inference (an initializer or folded from them)."""
        tensor = self.tensors.get(name)
        return tensor is not None and tensor.constant and name not in self.producers

    def scalar(self, name: str) -> float | None:
        """The value of a one-element constant, else None."""
        tensor = self.tensors.get(name)
        if tensor is None or tensor.value is None or tensor.value.size != 1:
            return None
        return float(tensor.value.reshape(-1)[0])

    def values(self, name: str) -> list[float] | None:
        """All values of a small constant, else None."""
        tensor = self.tensors.get(name)
        return None if tensor is None or tensor.value is None else tensor.value.reshape(-1).tolist()

    def sole_use(self, name: str) -> Node | None:
        """The only consumer of a tensor that is no graph output, else None."""
        users = self.uses.get(name, ())
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def remark(self, ops: Iterable[str], rule: str, applied: bool, reason: str) -> None:
        """Keep, for `--explain`, why a rule applied or did not."""
        for op in ops:
            self.remarks.setdefault(op, []).append(Remark(rule, applied, reason))

    def in_order(self) -> Iterator[Node]:
        """Nodes in the runtime's launch order (a snapshot: rewriting while iterating is safe).

        ONNX Runtime walks backwards from the nodes that nobody reads, the youngest first, and launches a node once
        all its inputs are there; of several inputs, the youngest node's branch goes first.
        """
        if self.order[0] != self.edits:
            self.order = (self.edits, self._sorted())
        return iter(list(self.order[1]))

    def _sorted(self) -> list[Node]:
        uses, producers = self.uses, self.producers
        ends = [node for node in self.nodes.values() if not any(map(uses.get, node.outputs))]
        stack: list[tuple[Node, bool]] = [(node, False) for node in sorted(ends, key=_age)]
        seen: set[int] = set()
        order: list[Node] = []
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
                continue
            if node.age in seen:
                continue
            seen.add(node.age)
            stack.append((node, True))
            before = [producers[name] for name in (*node.inputs, *node.captured) if name in producers]
            if len(before) > 1:
                before.sort(key=_age)
            stack += [(other, False) for other in before if other.age not in seen]
        return order


def _age(node: Node) -> int:
    return node.age
