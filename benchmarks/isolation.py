"""How far the timing of a kernel alone is off from its timing inside a network.

Composite graphs are profiled; kernels of many kinds are drawn from them, each is built anew as a graph of its own
(the op that the kernel carries out, with the same shapes and constants) and profiled again, all in one process and
close in time. Run: ``python benchmarks/isolation.py [--count 20] [--seed 0] [--json]``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from latpred.collect.matching import match
from latpred.collect.ort import OrtRunner
from latpred.collect.runner import ProfiledKernel, RunPlan
from latpred.collect.sample import EARLY, configuration
from latpred.collect.synthesize import synthesize
from latpred.errors import MeasurementError
from latpred.graph import Graph, Op, read
from latpred.kernels.detect import detect
from latpred.kernels.fusion import default_rules
from latpred.kernels.kernel import Kernel

LEAST_S = 20e-6  # smaller kernels are below the profiler's resolution when they are alone
EXCLUDED = {"view", "reorder", "quantize"}  # they are what a lone kernel gets in addition


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel, both ways."""

    kernel: str
    shapes: str
    in_network_s: float
    isolated_s: float  # the kernel's own time in a graph of its own
    isolated_with_company_s: float  # with the reorders and views that the lone graph needs

    @property
    def off(self) -> float:
        """Relative difference of the lone kernel's whole graph to the kernel in its network."""
        return self.isolated_with_company_s / self.in_network_s - 1.0


def lone_graph(model: onnx.ModelProto, graph: Graph, kernel: Kernel) -> bytes | None:
    """The ops of one kernel as a model: activations become inputs, constants stay; None where ops are missing."""
    by_name = {op.name: op for op in graph.ops}
    if not all(name in by_name for name in kernel.ops):
        return None
    ops: list[Op] = [by_name[name] for name in kernel.ops]
    nodes = {node.output[0]: node for node in model.graph.node}
    chosen = [nodes[op.outputs[0]] for op in graph.ops if op in ops and op.outputs[0] in nodes]
    constants = {t.name: t for t in model.graph.initializer}
    constants.update(
        (node.output[0], numpy_helper.from_array(numpy_helper.to_array(node.attribute[0].t), node.output[0]))
        for node in model.graph.node
        if node.op_type == "Constant"
    )
    made = {name for node in chosen for name in node.output}
    needed = dict.fromkeys(name for node in chosen for name in node.input if name and name not in made)
    read_inside = {name for node in chosen for name in node.input}
    inputs = [name for name in needed if name not in constants]
    outputs = [name for node in chosen for name in node.output if name and name not in read_inside]
    if any(name not in graph.tensors or graph.tensors[name].constant for name in inputs):
        return None

    def described(names: list[str]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                n, helper.np_dtype_to_tensor_dtype(np.dtype(graph.tensors[n].dtype)), graph.tensors[n].shape
            )
            for n in names
        ]

    lone = helper.make_graph(
        chosen, "lone", described(inputs), described(outputs), [constants[n] for n in needed if n in constants]
    )
    return helper.make_model(lone, opset_imports=model.opset_import, ir_version=model.ir_version).SerializeToString()


def candidates(runner: OrtRunner, seed: int) -> Iterator[tuple[Kernel, ProfiledKernel, onnx.ModelProto, Graph]]:
    """Kernels of composites of all templates, measured in their networks; each label at most twice a composite."""
    rules = default_rules()
    for index, (quantization, _) in enumerate(EARLY):
        if quantization != "none":
            continue
        composite = synthesize(configuration(seed, index))
        model = onnx.load_from_string(composite.model)
        graph = read(composite.model)
        plan = RunPlan(integer_limits=composite.integer_limits, profile_budget_s=1.0)
        pairs = match(detect(graph, rules).kernels, runner.measure(composite.model, plan).kernels).matched
        seen: dict[str, int] = {}
        for kernel, event in sorted(pairs, key=lambda pair: -pair[1].latency_s):
            seen[kernel.label] = seen.get(kernel.label, 0) + 1
            if event.latency_s >= LEAST_S and kernel.kind not in EXCLUDED and seen[kernel.label] <= 2:
                yield kernel, event, model, graph


def compare(count: int, seed: int) -> list[Row]:
    """Rows for `count` kernels of as many kinds as there are."""
    rows: list[Row] = []
    taken: dict[str, int] = {}
    with OrtRunner(runs_per_process=10_000) as runner:
        for kernel, event, model, graph in candidates(runner, seed):
            if len(rows) == count:
                break
            if taken.get(kernel.kind, 0) >= max(1, count // 10):
                continue
            lone = lone_graph(model, graph, kernel)
            if lone is None:
                continue
            try:
                result = runner.measure(lone, RunPlan(profile_budget_s=0.3))
            except MeasurementError as error:
                print(f"left out {kernel.label} {kernel.name}: {error}", file=sys.stderr)
                continue
            same = [e for e in result.kernels if e.op_type == event.op_type]
            if not same:
                continue
            taken[kernel.kind] = taken.get(kernel.kind, 0) + 1
            shapes = " ".join("x".join(map(str, spec.shape)) for spec in kernel.inputs[:2] if spec.shape)
            alone_s = max(e.latency_s for e in same)
            label = f"{kernel.label} ({kernel.op_type})"
            rows.append(Row(label, shapes, event.latency_s, alone_s, sum(e.latency_s for e in result.kernels)))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20, help="kernels to compare (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the composites")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    rows = compare(arguments.count, arguments.seed)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    print(f"{'kernel':<28} {'inputs':<34} {'in network':>11} {'alone':>11} {'its graph':>11} {'off':>8}")
    for row in sorted(rows, key=lambda row: -abs(row.off)):
        print(
            f"{row.kernel[:28]:<28} {row.shapes[:34]:<34} {row.in_network_s * 1e6:>8.1f} us"
            f" {row.isolated_s * 1e6:>8.1f} us {row.isolated_with_company_s * 1e6:>8.1f} us {row.off:>+8.1%}"
        )
    alone = [abs(row.isolated_s / row.in_network_s - 1) for row in rows]
    whole = [abs(row.off) for row in rows]
    for name, of in (("median", statistics.median), ("largest", max)):
        print(f"{name} |off|: the kernel itself {of(alone):.1%}, its whole graph {of(whole):.1%}")


if __name__ == "__main__":
    main()
