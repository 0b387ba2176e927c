"""What does the installed runtime do with small graphs? The answer is a rule book.

Each rule of the catalogue has a graph in `latpred.collect.probe_graphs`. The graph is loaded and run once; the
runtime's own optimised graph tells what was fused, folded, reordered or dropped, its profile what was executed.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import numpy_helper

from latpred.collect.ort import OrtRunner
from latpred.collect.probe_graphs import PROBES, Probe, probe_model
from latpred.collect.runner import Runner, RunPlan
from latpred.errors import MeasurementError
from latpred.kernels.fusion import Parameter, Rule, RuleBook, default_rules

__all__ = ["observe", "probe"]

ACTIVATIONS = (
    "Elu", "HardSigmoid", "LeakyRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
    "Clip", "Exp", "Gelu", "Mish",
)  # fmt: skip
# Rule -> a graph that ends in an activation, and what carries it out where it is taken in. The convolution is 1-D:
# it stays in the plain layout.
CARRIERS: Mapping[str, tuple[str, str]] = {
    "gemm-activation": (
        "g (float[4,8] x) => (float[4,16] y) <float[8,16] w, float[16] b> {{ m = Gemm (x, w, b)  y = {} (m) }}",
        "com.microsoft.FusedGemm",
    ),
    "conv-activation": (
        "g (float[1,4,8] x) => (float[1,8,6] y) <float[8,4,3] w> {{ m = Conv <kernel_shape=[3]> (x, w)  y = {} (m) }}",
        "com.microsoft.FusedConv",
    ),
}
BLOCKED_CONV = "com.microsoft.nchwc.Conv"
PROBE_TIMEOUT_S = 20.0


def probe(threads: int = 1, provider: str = "CPUExecutionProvider", runner: Runner | None = None) -> RuleBook:
    """Ask the installed runtime about every rule of the catalogue.

    Parameters
    ----------
    threads
        Threads of the runtime; the rules do not depend on them, the sessions are made as they will be later.
    provider
        Execution provider of the runtime.
    runner
        What runs the graphs; ONNX Runtime in a child process where none is given.

    Returns
    -------
    RuleBook
        The default book with `holds`, `observed` and `parameters` as this runtime showed them. A rule whose graph
        failed is marked as not holding, with the reason.
    """
    known = default_rules()
    graphs = len(PROBES) + len(CARRIERS) * len(ACTIVATIONS) + 1
    own = runner if runner is not None else OrtRunner(runs_per_process=graphs)
    try:
        rules = {name: observe(rule, own, threads, provider) for name, rule in known.rules.items()}
        version = ".".join(own.runtime_version.split(".")[:2])
        runtime = own.runtime
        if rules["conv-nchwc"].holds:
            rules["conv-nchwc"] = _with(rules["conv-nchwc"], _block(own, threads, provider))
        for name in CARRIERS:
            if rules[name].holds:
                rules[name] = _with(rules[name], _activations(name, own, threads, provider))
    finally:
        if runner is None:
            own.close()
    return RuleBook(runtime, version, rules, provider, f"Observed on this machine with {runtime} {version}.")


def observe(rule: Rule, runner: Runner, threads: int = 1, provider: str = "CPUExecutionProvider") -> Rule:
    """The rule with `holds` and `observed` as a runtime showed them; unchanged where no graph tells."""
    test = PROBES.get(rule.name)
    if test is None:
        return replace(rule, observed="no small graph tells; taken over from the default book")
    before = Counter(_name(node) for node in probe_model(test).graph.node)
    try:
        optimised = _optimised(test, runner, threads, provider)
    except MeasurementError as error:
        return replace(rule, holds=False, observed=f"not observed: {error}")
    after = Counter(_name(node) for node in optimised.graph.node)
    bare = {name.rpartition(".")[2] for name in after}
    holds = set(test.shows) <= after.keys() | bare and not after.keys() & set(test.gone)
    if test.exactly:
        holds = after == Counter(test.shows)
    if before == after:
        return replace(rule, holds=False, observed=f"{_list(before)} stay as they are")
    shown = Counter(_with_activation(node) for node in optimised.graph.node)
    return replace(rule, holds=holds, observed=f"{_list(before)} -> {_list(shown)}")


def _optimised(test: Probe, runner: Runner, threads: int, provider: str) -> onnx.ModelProto:
    """The runtime's own optimised graph, after the graph has run once.

    Raises
    ------
    MeasurementError
        Where the runtime fails on the graph or leaves no optimised graph.
    """
    with tempfile.TemporaryDirectory(prefix="latpred-") as folder:
        path = Path(folder) / "optimised.onnx"
        plan = RunPlan(
            threads=threads,
            provider=provider,
            options={"optimized_model_filepath": str(path)},
            cores=(),
            warmup_runs=1,
            profile=False,
            min_latency_runs=1,
            max_latency_runs=1,
            latency_budget_s=0.0,
            timeout_s=PROBE_TIMEOUT_S,
        )
        runner.measure(probe_model(test).SerializeToString(), plan)
        if not path.exists():
            raise MeasurementError("the runtime ran the graph and wrote no optimised one")
        return onnx.load(path)


def _name(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _with_activation(node: onnx.NodeProto) -> str:
    """The op type, and what it carries out beside its own work."""
    for attribute in node.attribute:
        if attribute.name == "activation" and attribute.s:
            return f"{_name(node)} with {attribute.s.decode()}"
    return _name(node)


def _list(counts: Mapping[str, int]) -> str:
    """Op types with their number, as a person reads them."""
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.items())


def _with(rule: Rule, found: Mapping[str, Parameter]) -> Rule:
    extra = "; ".join(
        f"{key}: {', '.join(map(str, value)) if isinstance(value, tuple) else value}" for key, value in found.items()
    )
    return replace(rule, parameters={**rule.parameters, **found}, observed=f"{rule.observed}; {extra}")


def _block(runner: Runner, threads: int, provider: str) -> dict[str, Parameter]:
    """Channels of a block: the least that the weights of one output channel are padded to."""
    test = Probe(
        """g (float[1,3,8,8] x) => (float[1,1,6,6] y) <float[1,3,3,3] w> { y = Conv <kernel_shape=[3,3]> (x, w) }"""
    )
    try:
        model = _optimised(test, runner, threads, provider)
    except MeasurementError:
        return {}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if _name(node) == BLOCKED_CONV:
            return {"block": int(weights[node.input[1]].shape[0])}
    return {}


def _activations(rule: str, runner: Runner, threads: int, provider: str) -> dict[str, Parameter]:
    """Which activations a Gemm or Conv carries out."""
    text, carrier = CARRIERS[rule]
    taken = []
    for activation in ACTIVATIONS:
        test = Probe(text.format(activation), opset=20)
        try:
            nodes = _optimised(test, runner, threads, provider).graph.node
        except MeasurementError:
            continue
        if [_name(node) for node in nodes] == [carrier]:
            taken.append(activation)
    return {"activations": tuple(taken)}
