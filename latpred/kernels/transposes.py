"""Transposes are pushed through the ops behind them, as long as that is likely to cancel some.

One walk over the graph in launch order. Where an op reads a Transpose, the cost of pushing it is estimated as the
dims (other than 1) that have to be transposed before and behind the op; where it falls, the op is rewritten to work
on the tensor before the Transpose, and a new Transpose stands behind it. Two in a row cancel or merge.
"""

from __future__ import annotations

from dataclasses import replace

from latpred.graph import AttributeValue
from latpred.kernels.fusion import RuleBook
from latpred.kernels.permutations import Permutation, compose, identity, inverse, permuted, unsqueezed
from latpred.kernels.working import Node, WorkingGraph

__all__ = ["Pusher", "push_transposes", "push_transposes_on_cpu"]

RULE = "transpose-optimizer"


def push_transposes(graph: WorkingGraph, rules: RuleBook) -> None:
    """Push transposes through ops of the standard domain, before a provider has taken them."""
    _push(graph, rules, provider=False)


def push_transposes_on_cpu(graph: WorkingGraph, rules: RuleBook) -> None:
    """The same once the CPU provider has taken the nodes: it also resizes channels-last."""
    _push(graph, rules, provider=True)


def _push(graph: WorkingGraph, rules: RuleBook, provider: bool) -> None:
    if not rules.holds(RULE) or not graph.by_type.get("Transpose"):
        return
    pusher = Pusher(graph, provider)
    order = list(graph.in_order())
    pusher.find_paths(order)
    for node in order:
        if graph.alive(node):
            pusher.visit(node)


class Pusher:
    """One walk over a graph."""

    def __init__(self, graph: WorkingGraph, provider: bool) -> None:
        from latpred.kernels.transpose_handlers import HANDLERS, PROVIDER_HANDLERS

        self.graph = graph
        self.handlers = {**HANDLERS, **PROVIDER_HANDLERS} if provider else HANDLERS
        self.leading: dict[str, set[Permutation]] = {}  # tensor -> transposes to which supported ops lead from it
        self.heir: Node | None = None  # takes over the ONNX node of a Transpose that was pushed

    def find_paths(self, order: list[Node]) -> None:
        """Walk backwards from the transposes that are there."""
        for node in reversed(order):
            if node.op_type == "Transpose":
                perm = permutation(node)
                self.leading.setdefault(node.inputs[0], set()).update((perm,) if perm else ())
                continue
            reached = [self.leading[name] for name in node.outputs if name in self.leading]
            handler = self.handlers.get((node.domain, node.op_type)) if reached else None
            if handler is not None and handler.transposes_outputs:
                for index in handler.inputs(self.graph, node):
                    self.leading.setdefault(node.inputs[index], set()).update(*reached)

    def _leads_on(self, name: str, perm: Permutation) -> bool:
        """Whether a Transpose behind a tensor is likely to meet another: the one that reads it, or its inverse."""
        if name not in self.leading or name in self.graph.outputs:
            return False
        return len(self.graph.uses.get(name, ())) == 1 or inverse(perm) in self.leading[name]

    def visit(self, node: Node) -> None:
        """Push the first Transpose that feeds the node and is worth it."""
        for index, name in enumerate(node.inputs):
            transpose = self.graph.producers.get(name)
            if transpose is None or transpose.op_type != "Transpose":
                continue
            perm = permutation(transpose)
            if perm is not None and self._process(node, index, transpose, perm):
                return

    def _process(self, node: Node, index: int, transpose: Node, perm: Permutation) -> bool:
        handler = self.handlers.get((node.domain, node.op_type))
        if handler is None:
            return False
        inputs = handler.inputs(self.graph, node)
        if index not in inputs:
            return False
        if node.op_type != "Transpose":
            cost = sum(self._input_cost(node.inputs[i], perm) for i in inputs)
            if cost < 0 and handler.transposes_outputs and not any(self._leads_on(name, perm) for name in node.outputs):
                cost += max(self._dims(name) for name in node.outputs if name)
            if cost >= 0:
                self.graph.remark(
                    transpose.ops, RULE, False, f"pushing it through {node.name} would not save transposes"
                )
                return False
        self.heir = None
        return handler.push(self, node, transpose, perm, inputs)

    def _dims(self, name: str) -> int:
        return sum(dim != 1 for dim in self.graph.shape(name))

    def _input_cost(self, name: str, perm: Permutation) -> int:
        if self.graph.is_constant(name) or self._restores_constant(name) is not None:
            return 0
        producer = self.graph.producers.get(name)
        if producer is not None and producer.op_type == "Transpose":
            own = permutation(producer)
            if own is not None:
                return -self._dims(name) if own == perm and self._likely_removed(producer) else 0
        return self._dims(name)

    def _likely_removed(self, transpose: Node) -> bool:
        name = transpose.outputs[0]
        return name not in self.graph.outputs and all(
            (user.domain, user.op_type) in self.handlers for user in self.graph.uses.get(name, ())
        )

    def _restores_constant(self, name: str) -> Node | None:
        """The DequantizeLinear of a constant that a single op reads: to transpose it costs nothing."""
        node = self.graph.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear" or self.graph.sole_use(name) is None:
            return None
        return node if self.graph.is_constant(node.inputs[0]) else None

    # -- rewriting ----------------------------------------------------------------------------------------

    def push_through(
        self, node: Node, inputs: list[int], perm: Permutation, outputs: Permutation | None = None
    ) -> None:
        """Undo the transpose on the inputs and redo it on the outputs (by `outputs` where it differs)."""
        behind = perm if outputs is None else outputs
        gone = [self.transpose_input(node, index, inverse(perm)) for index in inputs]
        self.transpose_outputs(node, behind)
        for transpose in gone:
            if transpose is not None:
                self.drop(transpose)

    def transpose_input(self, node: Node, index: int, perm: Permutation) -> Node | None:
        """Let an input be read through `perm`; the Transpose that it came from is returned for removal."""
        graph = self.graph
        name = node.inputs[index]
        tensor = graph.tensors[name]
        if graph.is_constant(name):
            if tensor.spec.elements > 1 and len(tensor.shape) == len(perm):
                value = None if tensor.value is None else tensor.value.transpose(perm)
                stored = graph.tensor(name, permuted(tensor.shape, perm), tensor.dtype, True, value)
                self._restore(node, index, stored, "Transpose", {"perm": inverse(perm)})
            return None
        restoring = self._restores_constant(name)
        if restoring is not None and len(tensor.shape) == len(perm):
            self.transpose_input(restoring, 0, perm)
            if len(graph.shape(restoring.inputs[1])) == 1:
                axis = int(restoring.attributes.get("axis", 1))  # type: ignore[arg-type]
                restoring.attributes["axis"] = perm.index(axis % len(perm))
            graph.tensors[name] = replace(tensor, shape=permuted(tensor.shape, perm))
            return None
        producer = graph.producers.get(name)
        own = permutation(producer) if producer is not None and producer.op_type == "Transpose" else None
        if producer is not None and own is not None and len(own) == len(perm):
            if own == inverse(perm):
                graph.set_input(node, index, producer.inputs[0])
            else:
                graph.set_input(node, index, self.add(producer.inputs[0], compose(own, perm), node))
            return producer
        for user in graph.uses.get(name, ()):
            if user.op_type == "Transpose" and permutation(user) == perm:
                graph.set_input(node, index, user.outputs[0])
                return None
        graph.set_input(node, index, self.add(name, perm, node))
        return None

    def _restore(
        self, node: Node, index: int, stored: str, op_type: str, attributes: dict[str, AttributeValue]
    ) -> None:
        """Let a node read a constant in its new form; what else reads it gets the old form back by a node.

        Such a Transpose of a constant counts like any other while the walk goes on, and is folded later.
        """
        graph = self.graph
        name = node.inputs[index]
        graph.set_input(node, index, stored)
        if graph.uses.get(name):
            graph.add(Node(op_type, "", f"{name}_restored", [stored], [name], attributes, (), rank=node.rank))

    def transpose_outputs(self, node: Node, perm: Permutation) -> None:
        """Put a Transpose behind each output; the node itself writes the tensor before it."""
        if perm == identity(len(perm)):
            return
        graph = self.graph
        for index, name in enumerate(node.outputs):
            if not name:
                continue
            tensor = graph.tensors[name]
            before = graph.tensor(name, permuted(tensor.shape, inverse(perm)), tensor.dtype)
            node.outputs[index] = before
            graph.producers[before] = node
            behind = Node("Transpose", "", f"{name}_transpose", [before], [name], {"perm": perm}, (), rank=node.rank)
            del graph.producers[name]
            graph.add(behind)
            self.heir = self.heir or behind

    def add(self, source: str, perm: Permutation, before: Node) -> str:
        """A new Transpose in front of a node; returns what it writes."""
        graph = self.graph
        tensor = graph.tensors[source]
        target = graph.tensor(source, permuted(tensor.shape, perm), tensor.dtype)
        name = f"{before.name}_transpose"
        node = graph.add(Node("Transpose", "", name, [source], [target], {"perm": perm}, (), rank=before.rank))
        self.heir = self.heir or node
        return target

    def drop(self, transpose: Node) -> None:
        """Remove a node that nobody reads any more; its ONNX node lives on where it was pushed to."""
        graph = self.graph
        name = transpose.outputs[0]
        if not graph.alive(transpose) or graph.uses.get(name) or name in graph.outputs:
            return
        graph.remove(transpose)
        if self.heir is not None:
            self.heir.ops = (*self.heir.ops, *transpose.ops)
            graph.remark(transpose.ops, RULE, True, f"moved to {self.heir.name}")
        else:
            self.free(transpose)

    def free(self, node: Node) -> None:
        """Declare the ONNX nodes of a cancelled Transpose free."""
        for op in node.ops:
            self.graph.free[op] = "cancels against another Transpose"
        self.graph.remark(node.ops, RULE, True, "cancels against another Transpose")

    def unsqueeze_input(self, node: Node, index: int, missing: int) -> None:
        """Give an input leading dims of 1, so that it has the rank of the others."""
        graph = self.graph
        name = node.inputs[index]
        tensor = graph.tensors[name]
        shape = (1,) * missing + tensor.shape
        axes = tuple(range(missing))
        if graph.is_constant(name):
            value = None if tensor.value is None else tensor.value.reshape(shape)
            stored = graph.tensor(name, shape, tensor.dtype, True, value)
            self._restore(node, index, stored, "Squeeze", {"axes": axes})
            return
        restoring = self._restores_constant(name)
        if restoring is not None:
            self.unsqueeze_input(restoring, 0, missing)
            if len(graph.shape(restoring.inputs[1])) == 1:
                axis = int(restoring.attributes.get("axis", 1))  # type: ignore[arg-type]
                restoring.attributes["axis"] = axis % len(tensor.shape) + missing
            graph.tensors[name] = replace(tensor, shape=shape)
            return
        squeeze = graph.producers.get(name)
        if squeeze is not None and squeeze.op_type == "Squeeze" and _squeezed_axes(graph, squeeze) == axes:
            graph.set_input(node, index, squeeze.inputs[0])
            self.drop(squeeze)
            return
        target = graph.tensor(name, shape, tensor.dtype)
        view = Node("Unsqueeze", "", f"{node.name}_view", [name], [target], {"axes": axes}, (), rank=node.rank)
        graph.add(view)
        graph.set_input(node, index, target)
        producer = graph.producers.get(name)
        perm = permutation(producer) if producer is not None and producer.op_type == "Transpose" else None
        if perm is not None:
            self.push_through(view, [0], perm, unsqueezed(axes, perm))


def permutation(transpose: Node) -> Permutation | None:
    """The `perm` of a Transpose; None where it is left to the default, which the runtime leaves alone."""
    perm = transpose.attributes.get("perm")
    return tuple(int(axis) for axis in perm) if isinstance(perm, tuple) else None


def _squeezed_axes(graph: WorkingGraph, squeeze: Node) -> tuple[int, ...] | None:
    axes = squeeze.attributes.get("axes")
    if axes is None and len(squeeze.inputs) > 1:
        value = graph.tensors[squeeze.inputs[1]].value
        axes = None if value is None else tuple(value.reshape(-1).tolist())
    return tuple(int(axis) for axis in axes) if isinstance(axes, tuple) else None
