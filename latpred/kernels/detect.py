"""Graph -> kernels: rewrites the graph as the runtime's optimiser would, then names what is left.

`PASSES` is the optimiser's own order. A pass reads its rules from the book, rewrites the working graph in place,
and leaves remarks on the ops that it took or, where that is of interest, left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from latpred.graph import Graph, Spec
from latpred.kernels import activations, integer_kernels, normalization, products, quantization, rearrangement
from latpred.kernels.attention import packed_attention
from latpred.kernels.blocked import block_channels
from latpred.kernels.channels_last import channels_last
from latpred.kernels.convolution import fuse_conv_activation, fuse_conv_add_activation, fuse_conv_weights, fuse_pads
from latpred.kernels.elimination import drop_no_ops, fold_constants, share_subexpressions, store_constants
from latpred.kernels.functions import inline_functions
from latpred.kernels.fusion import RuleBook
from latpred.kernels.kernel import Context, Kernel, Work
from latpred.kernels.kinds import kind_of
from latpred.kernels.transposes import push_transposes, push_transposes_on_cpu
from latpred.kernels.work import ABSENT, COUNTED, FREE, traffic_of, work_of
from latpred.kernels.working import Node, Remark, WorkingGraph

__all__ = ["PASSES", "Detection", "detect"]

Pass = Callable[[WorkingGraph, RuleBook], None]

# In ONNX Runtime's order: rewrites that hold for any provider, functions without a kernel inlined, fusions for the
# CPU provider, layout. What it repeats until nothing changes stands here as often as networks need it.
PASSES: tuple[tuple[str, Pass], ...] = (
    ("level 0", quantization.unique_dq),
    ("level 0", store_constants),
    ("level 1", drop_no_ops),
    ("level 1", share_subexpressions),
    ("level 1", fold_constants),
    ("level 1", drop_no_ops),
    ("level 1", activations.algebra),
    ("level 1", activations.relu_clip),
    ("level 1", products.gemm_sum),
    ("level 1", products.gemm_transpose),
    ("level 1", fuse_conv_weights),
    ("level 1", fuse_pads),
    ("level 1", products.matmul_bn),
    ("level 1", quantization.double_qdq),
    ("level 1", share_subexpressions),
    ("level 1", products.matmul_add),
    ("level 1", rearrangement.reshape_fusion),
    ("level 1", rearrangement.space_to_depth),
    ("level 1", activations.onnx_gelu),
    ("level 1", normalization.onnx_layer_norm),
    ("level 1", quantization.qdq_propagation),
    ("level 1", quantization.weight_bias_quantization),
    ("level 1", quantization.unique_dq),
    ("level 1", products.gemm_transpose),
    ("level 1", push_transposes),
    ("level 1", fold_constants),
    ("level 1", rearrangement.reshape_fusion),
    ("level 1", push_transposes),
    ("level 1", fold_constants),
    ("level 1", quantization.qdq_propagation),
    ("level 1", quantization.unique_dq),
    ("functions", inline_functions),
    ("level 2", push_transposes_on_cpu),
    ("level 2", quantization.requantize_transposed),
    ("level 2", quantization.clip_quantize),
    ("level 2", quantization.signed_to_unsigned),
    ("level 2", integer_kernels.qdq_kernels),
    ("level 2", products.gemm_activation),
    ("level 2", integer_kernels.matmul_integer_to_float),
    ("level 2", integer_kernels.dynamic_quantize_matmul),
    ("level 2", fuse_conv_activation),
    ("level 2", activations.gelu),
    ("level 2", normalization.layer_norm),
    ("level 2", normalization.simplified_layer_norm),
    ("level 2", packed_attention),
    ("level 2", rearrangement.gather_split),
    ("level 2", products.matmul_transpose),
    ("level 2", activations.bias_gelu),
    ("level 2", products.matmul_add_in_attention),
    ("level 2", normalization.skip_layer_norm),
    ("level 2", normalization.bias_skip_layer_norm),
    ("level 2", activations.fast_gelu),
    ("level 2", activations.quick_gelu),
    ("level 2", products.matmul_scale),
    ("level 2", quantization.qdq_cleanup),
    ("level 2", activations.gelu),
    ("level 2", products.matmul_transpose),
    ("level 2", activations.bias_gelu),
    ("level 2", products.matmul_scale),
    ("layout", block_channels),
    ("layout", channels_last),
    ("layout", fuse_conv_add_activation),
)


@dataclass(frozen=True, slots=True)
class Detection:
    """What a graph is executed as. Each op is in one kernel, in `free`, or in a kernel named in `unsupported`."""

    kernels: tuple[Kernel, ...]  # in launch order
    free: Mapping[str, str]  # op name -> why it costs nothing
    unsupported: tuple[str, ...]  # op types that no table counts; their kernels carry traffic only
    remarks: Mapping[str, list[Remark]] = field(default_factory=dict)  # op name -> what the rules said
    notices: tuple[str, ...] = ()  # what was assumed, for a person

    @property
    def work(self) -> Work:
        """Work of one inference: every launch as often as it is repeated."""
        return Work(*(sum(column) for column in zip(*map(_repeated, self.kernels), strict=True)))


def _repeated(kernel: Kernel) -> tuple[int, int, int, int, int]:
    work, times = kernel.work, kernel.repeat
    return (
        work.macs * times,
        work.flops * times,
        work.read_bytes * times,
        work.write_bytes * times,
        work.weight_bytes * times,
    )


def detect(graph: Graph, rules: RuleBook) -> Detection:
    """The kernels that the runtime launches for a graph.

    Parameters
    ----------
    graph
        As `latpred.graph.read` gives it: every shape and dtype known.
    rules
        What the runtime fuses, reorders and drops.

    Returns
    -------
    Detection
        Kernels in launch order, ops that are free, and what the rules remarked.
    """
    launches, summary = _walk(graph, rules, scope="", repeat=1)
    return replace(summary, kernels=_with_context(launches))


@dataclass(slots=True)
class _Launch:
    """A kernel before its place in the stream of traffic is known."""

    node: Node
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    work: Work
    repeat: int
    scope: str  # prefix that makes the names of tensors unique over bodies


def _walk(graph: Graph, rules: RuleBook, scope: str, repeat: int) -> tuple[list[_Launch], Detection]:
    """Launches of a graph and of the bodies inside, and what is to be said about them."""
    working = WorkingGraph.of(graph)
    for _, rewrite in PASSES:
        rewrite(working, rules)
    launches: list[_Launch] = []
    free = dict(working.free)
    remarks = dict(working.remarks)
    unsupported: dict[str, None] = {}
    notices: list[str] = []
    for node in working.in_order():
        if node.op_type in FREE:
            free.update(dict.fromkeys(node.ops, FREE[node.op_type]))
            continue
        launches.append(_launch(node, working, scope, repeat))
        if node.op_type not in COUNTED:
            unsupported[node.op_type] = None
        for inner, said in _bodies(node, working, rules, scope, repeat, notices):
            launches += inner
            free.update(said.free)
            remarks.update(said.remarks)
            unsupported.update(dict.fromkeys(said.unsupported))
            notices += said.notices
    return launches, Detection((), free, tuple(unsupported), remarks, tuple(notices))


def _bodies(
    node: Node, working: WorkingGraph, rules: RuleBook, scope: str, repeat: int, notices: list[str]
) -> Iterator[tuple[list[_Launch], Detection]]:
    """What the bodies of a control-flow node launch: the costlier branch of an If, the rounds of a Loop or Scan."""
    if node.source is None:
        return
    trips = node.source.repeat
    if trips is None:
        trips = 1
        notices.append(f"{node.op_type} '{node.name}': the trip count is unknown, counted once")
    found = [
        _walk(
            replace(body, tensors={**working.tensors, **body.tensors}),
            rules,
            f"{scope}{node.name}/{index}/",
            repeat * trips,
        )
        for index, body in enumerate(node.source.bodies)
    ]
    if node.op_type == "If" and len(found) > 1:
        costs = [_rough_cost(launches) for launches, _ in found]
        taken = costs.index(max(costs))
        notices.append(f"If '{node.name}': the costlier branch is counted (body {taken})")
        for index, (launches, said) in enumerate(found):
            if index != taken:
                skipped = dict.fromkeys((op for launch in launches for op in launch.node.ops), "branch not taken")
                yield [], replace(said, free={**said.free, **skipped}, unsupported=(), notices=())
        found = [found[taken]]
    yield from found


def _rough_cost(launches: Iterable[_Launch]) -> int:
    """FLOPs, with each byte worth ten of them and each launch ten thousand: enough to tell two branches apart."""
    return sum((launch.work.flops + 10 * launch.work.traffic_bytes + 10_000) * launch.repeat for launch in launches)


def _launch(node: Node, working: WorkingGraph, scope: str, repeat: int) -> _Launch:
    inputs = tuple([_spec(working, name) for name in node.inputs])
    outputs = tuple([_spec(working, name) for name in node.outputs if name])
    work = (
        work_of(node.op_type, node.domain, inputs, outputs, node.attributes, node.epilogue)
        if node.op_type in COUNTED
        else traffic_of(inputs, outputs)
    )
    return _Launch(node, inputs, outputs, work, repeat, scope)


def _spec(working: WorkingGraph, name: str) -> Spec:
    tensor = working.tensors.get(name)
    if tensor is None:
        return ABSENT
    return Spec(tensor.shape, tensor.dtype, tensor.constant and name not in working.producers)


def _with_context(launches: list[_Launch]) -> tuple[Kernel, ...]:
    """Kernels with their place in the stream of traffic."""
    cycle_bytes = sum(launch.work.traffic_bytes * launch.repeat for launch in launches)
    written_at: dict[str, int] = {}  # tensor -> bytes that had moved once it was written
    moved = 0
    kernels: list[Kernel] = []
    for position, launch in enumerate(launches):
        node, scope = launch.node, launch.scope
        largest, size = "", -1
        for spec, name in zip(launch.inputs, node.inputs, strict=True):
            if not spec.constant and spec.size_bytes > size:
                largest, size = name, spec.size_bytes
        reuse_bytes = moved - written_at.get(scope + largest, 0)
        moved += launch.work.traffic_bytes * launch.repeat
        for name in node.outputs:
            written_at[scope + name] = moved
        kernels.append(
            Kernel(
                kind=kind_of(node.op_type, node.domain, launch.inputs, node.attributes),
                op_type=node.op_type,
                domain=node.domain,
                name=node.name,
                ops=node.ops,
                inputs=launch.inputs,
                outputs=launch.outputs,
                attributes=node.attributes,
                epilogue=node.epilogue,
                work=launch.work,
                context=Context(reuse_bytes, cycle_bytes, position),
                repeat=launch.repeat,
            )
        )
    return tuple(kernels)
