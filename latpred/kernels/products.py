"""Fusions around matrix products: MatMul + Add -> Gemm, Gemm with sum, transpose or activation, scaled MatMul.

The conditions are those of ONNX Runtime's passes of similar names; each function is one pass over the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from latpred.graph import AttributeValue
from latpred.kernels.fusion import RuleBook
from latpred.kernels.working import Node, WorkingGraph

__all__ = [
    "gemm_activation",
    "gemm_sum",
    "gemm_transpose",
    "matmul_add",
    "matmul_add_in_attention",
    "matmul_bn",
    "matmul_scale",
    "matmul_transpose",
]

MICROSOFT = "com.microsoft"
GEMM_TYPES = frozenset({"float32", "float16", "bfloat16"})
SCALE_TYPES = frozenset({"float32", "float64"})
TRANSPOSE_TYPES = frozenset({"float32", "float16", "float64", "bfloat16"})


def matmul_add(graph: WorkingGraph, rules: RuleBook) -> None:
    """MatMul and the Add of a bias become a Gemm; what looks like an attention block is left for later."""
    _matmul_add(graph, rules, keep_attention=True)


def matmul_add_in_attention(graph: WorkingGraph, rules: RuleBook) -> None:
    """The same once no attention block has to be kept whole any more."""
    _matmul_add(graph, rules, keep_attention=False)


def _matmul_add(graph: WorkingGraph, rules: RuleBook, keep_attention: bool) -> None:
    rule = "matmul-add"
    if not rules.holds(rule):
        return
    kept: set[int] = set()
    for matmul in graph.of_type("MatMul"):
        add = graph.sole_use(matmul.outputs[0])
        if add is None or add.op_type != "Add" or graph.tensors[matmul.inputs[0]].dtype not in GEMM_TYPES:
            continue
        a, b = (graph.shape(name) for name in matmul.inputs)
        if len(b) != 2:
            graph.remark(matmul.ops, rule, False, f"the second matrix has rank {len(b)}, not 2")
            continue
        reshape = len(a) != 2
        if reshape and keep_attention and _opens_attention(graph, matmul, add, kept):
            continue
        bias = add.inputs[1 if add.inputs[0] == matmul.outputs[0] else 0]
        if not _fits_gemm(graph.shape(bias), a, b[1], reshape):
            graph.remark(matmul.ops, rule, False, f"a bias of shape {graph.shape(bias)} does not fit a Gemm")
            continue
        _to_gemm(graph, matmul, add, bias, reshape)
        graph.remark([*matmul.ops, *add.ops], rule, True, "MatMul and Add become a Gemm")


def _fits_gemm(bias: tuple[int, ...], a: tuple[int, ...], n: int, reshape: bool) -> bool:
    if len(bias) == 1:
        return bias[0] == n
    return not reshape and len(bias) == 2 and bias in ((1, n), (a[0], 1), (a[0], n))


def _to_gemm(graph: WorkingGraph, matmul: Node, add: Node, bias: str, reshape: bool) -> None:
    data, weight = matmul.inputs
    result = add.outputs[0]
    dtype = graph.tensors[data].dtype
    shape = graph.shape(data)
    k, n = graph.shape(weight)
    name = f"{matmul.name}/MatMulAddFusion"
    gemm_input, gemm_output = data, result
    if reshape:
        rows = prod(shape[:-1])
        gemm_input = graph.tensor("gemm_input", (rows, k), dtype)
        gemm_output = graph.tensor("gemm_output", (rows, n), dtype)
    attributes: dict[str, AttributeValue] = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}
    gemm = Node("Gemm", "", name, [gemm_input, weight, bias], [gemm_output], attributes, (), rank=matmul.rank)
    graph.replace([matmul, add], gemm)
    if reshape:
        add_reshape(graph, f"{name}/input", data, gemm_input, gemm.rank)
        add_reshape(graph, f"{name}/output", gemm_output, result, gemm.rank)


def add_reshape(graph: WorkingGraph, name: str, source: str, target: str, rank: float) -> Node:
    """Insert a Reshape to the shape of `target`, a registered tensor."""
    shape = np.array(graph.shape(target), np.int64)
    constant = graph.tensor("shape", (len(shape),), "int64", True, shape)
    return graph.add(Node("Reshape", "", name, [source, constant], [target], {}, (), rank=rank))


def _opens_attention(graph: WorkingGraph, matmul: Node, add: Node, kept: set[int]) -> bool:
    """Whether this is one of the four products of a BERT-like block: a norm read by three MatMul and one Add."""
    norm = graph.producers.get(matmul.inputs[0])
    if (norm is not None and id(norm) in kept) or id(add) in kept:
        return True
    if norm is None or norm.op_type != "LayerNormalization":
        return False
    users = graph.uses.get(norm.outputs[0], [])
    types = [user.op_type for user in users]
    if len(users) != 4 or types.count("Add") != 1 or types.count("MatMul") != 3:
        return False
    skip = users[types.index("Add")]
    last = graph.producers.get(skip.inputs[1 if skip.inputs[0] == norm.outputs[0] else 0])
    if last is None or last.op_type != "Add":
        return False
    kept.update((id(norm), id(last)))
    return True


def matmul_bn(graph: WorkingGraph, rules: RuleBook) -> None:
    """A BatchNormalization behind a MatMul, with Reshape and Transpose between, goes into the weights: a Gemm."""
    rule = "matmul-bn"
    if not rules.holds(rule):
        return
    for norm in graph.of_type("BatchNormalization"):
        path: list[Node] = []
        node = graph.producers.get(norm.inputs[0])
        while node is not None and node.op_type in ("Reshape", "Transpose") and graph.sole_use(node.outputs[0]):
            path.append(node)
            node = graph.producers.get(node.inputs[0])
        if node is None or node.op_type != "MatMul" or graph.sole_use(node.outputs[0]) is None:
            continue
        constants = [node.inputs[1], *norm.inputs[1:5]]
        columns = graph.shape(node.inputs[1])[-1]
        if not all(map(graph.is_constant, constants)) or len(graph.shape(node.inputs[1])) != 2:
            graph.remark(norm.ops, rule, False, "the matrix or the statistics are not constant")
            continue
        if graph.shape(norm.inputs[1]) != (columns,):
            graph.remark(norm.ops, rule, False, "the normalised channels are not the columns of the product")
            continue
        if len(graph.shape(node.inputs[0])) != 2:
            graph.remark(norm.ops, rule, False, "the product has more than two dims, which a Gemm cannot take")
            continue
        bias = graph.tensor("bias", (columns,), graph.tensors[norm.inputs[0]].dtype, True)
        attributes: dict[str, AttributeValue] = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}
        gemm = Node("Gemm", "", node.name, [*node.inputs, bias], list(node.outputs), attributes, norm.ops)
        if graph.bypass(norm, f"folded into the weights of {node.name}"):
            for op in norm.ops:
                graph.free.pop(op, None)
            gemm.outputs = list(node.outputs)
            graph.replace([node], gemm)
            graph.remark(gemm.ops, rule, True, "the normalisation goes into the weights")


def gemm_sum(graph: WorkingGraph, rules: RuleBook) -> None:
    """A two-input Sum behind a Gemm without bias becomes its bias."""
    rule = "gemm-sum"
    if not rules.holds(rule):
        return
    for gemm in graph.of_type("Gemm"):
        total = graph.sole_use(gemm.outputs[0])
        if total is None or total.op_type != "Sum" or len(total.inputs) != 2 or len(gemm.inputs) != 2:
            continue
        bias = total.inputs[1 if total.inputs[0] == gemm.outputs[0] else 0]
        rows, columns = graph.shape(gemm.outputs[0])
        if not _fits_gemm(graph.shape(bias), (rows,), columns, False):
            graph.remark(total.ops, rule, False, f"a bias of shape {graph.shape(bias)} does not fit a Gemm")
            continue
        attributes = {**gemm.attributes, "beta": 1.0}
        new = Node("Gemm", "", gemm.name, [*gemm.inputs, bias], list(total.outputs), attributes, ())
        graph.replace([gemm, total], new)
        graph.remark(new.ops, rule, True, "the Sum becomes the bias of the Gemm")


def gemm_transpose(graph: WorkingGraph, rules: RuleBook) -> None:
    """A matrix transpose at an input of a Gemm, or behind one without bias, becomes transA or transB."""
    rule = "gemm-transpose"
    if not rules.holds(rule):
        return
    for gemm in graph.of_type("Gemm"):
        if not graph.alive(gemm) or len(graph.uses.get(gemm.outputs[0], ())) > 1:
            continue
        for index, flag in ((0, "transA"), (1, "transB")):
            transpose = graph.producers.get(gemm.inputs[index])
            if transpose is None or not _is_matrix_transpose(graph, transpose):
                continue
            users = graph.uses[transpose.outputs[0]]
            if transpose.outputs[0] in graph.outputs or any(user.op_type != "Gemm" for user in users):
                graph.remark(transpose.ops, rule, False, "the transposed matrix is used elsewhere too")
                continue
            gemm.attributes[flag] = 1 - _flag(gemm, flag)
            graph.set_input(gemm, index, transpose.inputs[0])
            _absorb(graph, transpose, gemm)
            graph.remark(transpose.ops, rule, True, f"becomes {flag} of {gemm.name}")
        behind = graph.sole_use(gemm.outputs[0])
        if behind is not None and len(gemm.inputs) == 2 and _is_matrix_transpose(graph, behind):
            trans_a, trans_b = 1 - _flag(gemm, "transB"), 1 - _flag(gemm, "transA")
            attributes = {**gemm.attributes, "transA": trans_a, "transB": trans_b}
            new = Node("Gemm", "", gemm.name, gemm.inputs[::-1], list(behind.outputs), attributes, ())
            graph.replace([gemm, behind], new)
            graph.remark(behind.ops, rule, True, f"becomes the swapped matrices of {gemm.name}")


def _flag(node: Node, name: str) -> int:
    value = node.attributes.get(name, 0)
    return value if isinstance(value, int) else 0


def _is_matrix_transpose(graph: WorkingGraph, node: Node) -> bool:
    return node.op_type == "Transpose" and len(graph.shape(node.inputs[0])) == 2 and permutation(graph, node) == (1, 0)


def permutation(graph: WorkingGraph, transpose: Node) -> tuple[int, ...]:
    """The perm of a Transpose; reversed dims where it has none."""
    perm = transpose.attributes.get("perm")
    if isinstance(perm, tuple):
        return tuple(map(int, perm))
    return tuple(range(len(graph.shape(transpose.inputs[0]))))[::-1]


def _absorb(graph: WorkingGraph, absorbed: Node, into: Node) -> None:
    """Remove a node that nobody reads any more; its ops are carried out by `into`."""
    if not graph.uses.get(absorbed.outputs[0]) and absorbed.outputs[0] not in graph.outputs and graph.alive(absorbed):
        graph.remove(absorbed)
        into.ops = tuple(dict.fromkeys([*into.ops, *absorbed.ops]))


def gemm_activation(graph: WorkingGraph, rules: RuleBook) -> None:
    """An activation behind a Gemm is carried out by it."""
    rule = "gemm-activation"
    if not rules.holds(rule):
        return
    fusable = rules.parameters(rule).get("activations", ())
    for gemm in graph.of_type("Gemm"):
        behind = graph.sole_use(gemm.outputs[0])
        if behind is None or not isinstance(fusable, tuple) or behind.op_type not in fusable or behind.domain:
            continue
        attributes: dict[str, AttributeValue] = {**gemm.attributes, "activation": behind.op_type}
        attributes |= {f"activation_{key}": value for key, value in behind.attributes.items()}
        new = Node("FusedGemm", MICROSOFT, gemm.name, list(gemm.inputs), list(behind.outputs), attributes, ())
        new.epilogue = (*gemm.epilogue, behind.op_type.lower())
        graph.replace([gemm, behind], new)
        graph.remark(new.ops, rule, True, f"{behind.op_type} is carried out by the Gemm")


def matmul_transpose(graph: WorkingGraph, rules: RuleBook) -> None:
    """A Transpose before a MatMul becomes an attribute, where the innermost dim stays within the last two."""
    rule = "matmul-transpose"
    if not rules.holds(rule):
        return
    for matmul in graph.of_type("MatMul", "FusedMatMul"):
        if not all(graph.tensors[name].dtype in TRANSPOSE_TYPES for name in matmul.inputs):
            continue
        if matmul.inputs[0] == matmul.inputs[1]:
            continue  # the runtime does not take one Transpose in from both sides
        found: dict[int, tuple[Node, bool, bool]] = {}
        for index, side in ((0, "A"), (1, "B")):
            transpose = graph.producers.get(matmul.inputs[index])
            if transpose is None or transpose.op_type != "Transpose" or transpose.outputs[0] in graph.outputs:
                continue
            if _flag(matmul, f"transBatch{side}"):
                continue
            kind = _matmul_transpose_kind(permutation(graph, transpose))
            if kind is None:
                graph.remark(transpose.ops, rule, False, "the batch dims do not stay together")
                continue
            found[index] = (transpose, *kind)
        if len(graph.shape(matmul.inputs[0])) != len(graph.shape(matmul.inputs[1])):
            found = {index: entry for index, entry in found.items() if not entry[2]}
        if not found:
            continue
        if matmul.op_type == "MatMul":
            graph.retype(matmul, "FusedMatMul", MICROSOFT)
            matmul.attributes |= {"transA": 0, "transB": 0, "transBatchA": 0, "transBatchB": 0, "alpha": 1.0}
        for index, (transpose, swapped, batch) in found.items():
            side = "AB"[index]
            matmul.attributes[f"trans{side}"] = _flag(matmul, f"trans{side}") ^ int(swapped)
            matmul.attributes[f"transBatch{side}"] = _flag(matmul, f"transBatch{side}") ^ int(batch)
            graph.set_input(matmul, index, transpose.inputs[0])
            _absorb(graph, transpose, matmul)
            graph.remark(transpose.ops, rule, True, f"becomes trans{side} of {matmul.name}")


def _matmul_transpose_kind(perm: tuple[int, ...]) -> tuple[bool, bool] | None:
    """(last two dims swapped, first dim moved behind the batch dims) of a perm that MatMul can take, else None."""
    rank = len(perm)
    if rank < 2 or rank - 1 not in perm[-2:]:
        return None
    if rank >= 3 and (perm[0] not in (0, 1) or any(perm[i] + 1 != perm[i + 1] for i in range(rank - 3))):
        return None
    return perm[-2] == rank - 1, rank >= 3 and perm[0] == 1


def matmul_scale(graph: WorkingGraph, rules: RuleBook) -> None:
    """Products with a constant number before and behind a MatMul become its alpha."""
    rule = "matmul-scale"
    if not rules.holds(rule):
        return
    for matmul in graph.of_type("MatMul", "FusedMatMul"):
        if all(graph.tensors[name].dtype in SCALE_TYPES for name in matmul.inputs):
            scaled: Node | None = matmul
            while scaled is not None:
                scaled = _take_scales(graph, scaled, rule)


def _take_scales(graph: WorkingGraph, matmul: Node, rule: str) -> Node | None:
    """Take in the scalings next to a MatMul; what it has become, or None where there were none."""
    before = list(_scaled_inputs(graph, matmul))
    behind = graph.sole_use(matmul.outputs[0])
    after = _scale_of(graph, behind) if behind is not None else None
    if not before and after is None:
        return None
    if matmul.op_type == "MatMul":
        graph.retype(matmul, "FusedMatMul", MICROSOFT)
        matmul.attributes |= {"transA": 0, "transB": 0, "transBatchA": 0, "transBatchB": 0, "alpha": 1.0}
    given = matmul.attributes.get("alpha", 1.0)
    alpha = float(given) if isinstance(given, int | float) else 1.0
    for index, (scaling, data, factor) in before:
        alpha *= factor
        graph.set_input(matmul, index, data)
        _absorb(graph, scaling, matmul)
        graph.remark(scaling.ops, rule, True, f"becomes alpha of {matmul.name}")
    matmul.attributes["alpha"] = alpha
    if behind is None or after is None:
        return matmul
    attributes: dict[str, AttributeValue] = {**matmul.attributes, "alpha": alpha * after[1]}
    new = Node("FusedMatMul", MICROSOFT, matmul.name, list(matmul.inputs), list(behind.outputs), attributes, ())
    new.rank = matmul.rank
    graph.remark(behind.ops, rule, True, f"becomes alpha of {matmul.name}")
    return graph.replace([matmul, behind], new)


def _scaled_inputs(graph: WorkingGraph, matmul: Node) -> Iterator[tuple[int, tuple[Node, str, float]]]:
    for index, name in enumerate(matmul.inputs):
        node = graph.producers.get(name)
        found = _scale_of(graph, node) if node is not None else None
        if node is not None and found is not None and len(graph.shape(found[0])) > 0:
            yield index, (node, *found)


def _scale_of(graph: WorkingGraph, node: Node) -> tuple[str, float] | None:
    """(what is scaled, by how much) of a Mul or Div by a constant number that adds no dims, else None."""
    if node.op_type not in ("Mul", "Div") or node.domain:
        return None
    for index in (1,) if node.op_type == "Div" else (0, 1):
        factor = graph.scalar(node.inputs[index]) if graph.is_constant(node.inputs[index]) else None
        other = node.inputs[1 - index]
        if factor is None or len(graph.shape(node.inputs[index])) > len(graph.shape(other)):
            continue
        return other, factor if node.op_type == "Mul" else 1.0 / factor if factor else 0.0
    return None
