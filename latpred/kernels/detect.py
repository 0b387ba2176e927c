"""Graph -> kernels: rewrites the graph as the runtime's optimiser would, then names what is left.

`STAGES` is the optimiser's own order. A pass reads its rules from the book, rewrites the working graph in place,
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
from latpred.kernels.kinds import KINDS, kind_of, runtime_attributes
from latpred.kernels.residency import IN_PLACE, Touch, distances
from latpred.kernels.transposes import push_transposes, push_transposes_on_cpu
from latpred.kernels.work import ABSENT, COUNTED, FREE, traffic_of, work_of
from latpred.kernels.working import Node, Remark, WorkingGraph

__all__ = ["STAGES", "Detection", "Stage", "detect"]

Pass = Callable[[WorkingGraph, RuleBook], None]


SHAPE_ONLY = frozenset({"Shape", "Size"})
VIEWS = frozenset(KINDS["view"]) - SHAPE_ONLY  # their result is their input's memory


@dataclass(frozen=True, slots=True)
class Stage:
    """Passes that run one after the other."""

    name: str
    passes: tuple[Pass, ...]
    rounds: int = 1


# The stages of ONNX Runtime's optimiser and the passes of each, in its order. A stage is repeated while its passes
# change something, as often as `rounds` allows.
STAGES: tuple[Stage, ...] = (
    Stage("load", (quantization.unique_dq, store_constants)),
    Stage(
        "any provider",
        (
            drop_no_ops,
            activations.algebra,
            activations.relu_clip,
            products.gemm_sum,
            products.gemm_transpose,
            fuse_conv_weights,
            fuse_pads,
            products.matmul_bn,
            quantization.double_qdq,
            share_subexpressions,
            fold_constants,
            products.matmul_add,
            rearrangement.reshape_fusion,
            rearrangement.space_to_depth,
            activations.onnx_gelu,
            normalization.onnx_layer_norm,
            quantization.qdq_propagation,
            quantization.weight_bias_quantization,
            quantization.unique_dq,
            push_transposes,
        ),
        rounds=10,
    ),
    Stage("functions", (inline_functions,)),
    Stage(
        "CPU provider",
        (
            push_transposes_on_cpu,
            quantization.requantize_transposed,
            quantization.clip_quantize,
            quantization.signed_to_unsigned,
            integer_kernels.qdq_kernels,
            products.gemm_activation,
            integer_kernels.matmul_integer_to_float,
            integer_kernels.dynamic_quantize_matmul,
            fuse_conv_activation,
            activations.gelu,
            normalization.layer_norm,
            normalization.simplified_layer_norm,
            packed_attention,
            rearrangement.gather_split,
            products.matmul_transpose,
            activations.bias_gelu,
            products.matmul_add_in_attention,
            normalization.skip_layer_norm,
            normalization.bias_skip_layer_norm,
            activations.fast_gelu,
            activations.quick_gelu,
            products.matmul_scale,
            quantization.qdq_cleanup,
            activations.gelu,
            products.matmul_transpose,
            activations.bias_gelu,
            products.matmul_scale,
        ),
    ),
    Stage("layout", (block_channels, channels_last, fuse_conv_add_activation)),
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


def detect(graph: Graph, rules: RuleBook, cycle_bytes: int = 0) -> Detection:
    """The kernels that the runtime launches for a graph.

    Parameters
    ----------
    graph
        As `latpred.graph.read` gives it: every shape and dtype known.
    rules
        What the runtime fuses, reorders and drops.
    cycle_bytes
        Bytes that pass from one inference to the next at least, where other graphs run in between.

    Returns
    -------
    Detection
        Kernels in launch order, ops that are free, and what the rules remarked.
    """
    launches, summary = _walk(graph, rules, scope="", repeat=1)
    return replace(summary, kernels=_with_context(launches, cycle_bytes))


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
    for stage in STAGES:
        for _ in range(stage.rounds):
            before = working.edits
            for rewrite in stage.passes:
                rewrite(working, rules)
            if working.edits == before:
                break
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
    opset = working.opsets.get("", 1)
    named = dict(enumerate(node.inputs))
    more = runtime_attributes(node.op_type, node.domain, opset, lambda index: working.values(named.get(index, "")))
    if more:
        node.attributes = {**node.attributes, **more}
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


def _with_context(launches: list[_Launch], least_cycle_bytes: int) -> tuple[Kernel, ...]:
    """Kernels with where their operands lie when they start."""
    found, cycle_bytes = distances(_touches(launches), least_cycle_bytes)
    return tuple(
        Kernel(
            kind=kind_of(launch.node.op_type, launch.node.domain, launch.inputs, launch.node.attributes),
            op_type=launch.node.op_type,
            domain=launch.node.domain,
            name=launch.node.name,
            ops=launch.node.ops,
            inputs=launch.inputs,
            outputs=launch.outputs,
            attributes=launch.node.attributes,
            epilogue=launch.node.epilogue,
            work=launch.work,
            context=Context(distance.read_bytes, distance.write_bytes, cycle_bytes, position),
            repeat=launch.repeat,
        )
        for position, (launch, distance) in enumerate(zip(launches, found, strict=True))
    )


def _touches(launches: list[_Launch]) -> list[Touch]:
    known: set[str] = set()  # names with the scope of the body that writes them
    touches = []
    for launch in launches:
        node, scope = launch.node, launch.scope
        names = [scope + name if scope + name in known else name for name in node.inputs]
        unread = node.op_type in SHAPE_ONLY
        taken = IN_PLACE.get(node.op_type, ())
        outputs = [scope + name for name in node.outputs if name]
        known.update(outputs)
        touches.append(
            Touch(
                tuple(
                    (name, 0 if unread else spec.size_bytes)
                    for name, spec in zip(names, launch.inputs, strict=True)
                    if name and not spec.constant
                ),
                tuple((name, spec.size_bytes, spec.shape) for name, spec in zip(outputs, launch.outputs, strict=True)),
                launch.work.weight_bytes,
                node.op_type in VIEWS and not launch.inputs[0].constant,
                tuple(names[i] for i in taken if i < len(names) and names[i] and not launch.inputs[i].constant),
            )
        )
    return touches
