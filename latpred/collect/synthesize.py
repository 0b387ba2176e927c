"""Configuration -> composite ONNX graph: sections of its templates, one after another, until it is large enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from latpred.collect.graph_builder import MAX_WEIGHT_BYTES, GraphBuilder, Style
from latpred.collect.quantise_dynamic import quantise_dynamic
from latpred.collect.quantise_static import quantise_static
from latpred.collect.sample import Configuration
from latpred.collect.templates import TEMPLATES

__all__ = ["Composite", "reference", "synthesize"]

MAX_NODES = 400
MAX_SECTIONS = 12
OVERTIME = 2.0  # how far beyond its target a heavy composite may go


@dataclass(frozen=True, slots=True)
class Composite:
    """A graph that is ready to be run."""

    model: bytes
    integer_limits: Mapping[str, int] = field(default_factory=dict)  # of integer inputs
    estimated_s: float = 0.0
    weight_bytes: int = 0
    nodes: int = 0


def synthesize(configuration: Configuration) -> Composite:
    """The graph of a configuration: equal configurations give equal bytes.

    Examples
    --------
    >>> from latpred.collect.sample import configuration
    >>> composite = synthesize(configuration(0, 30))
    >>> composite.nodes > 5 and composite.weight_bytes < 200e6
    True
    """
    rng = np.random.default_rng((*configuration.seed, 1))
    builder = GraphBuilder(rng, configuration.style)
    parts = len(configuration.templates) if len(configuration.templates) > 1 else 1 if configuration.single else 2
    for section in range(1 if configuration.single else MAX_SECTIONS):
        spent_s = builder.estimated_s
        hungry = builder.weight_bytes < configuration.weight_bytes and spent_s < OVERTIME * configuration.target_s
        if section >= len(configuration.templates) and not hungry and spent_s > 0.7 * configuration.target_s:
            break
        too_long = spent_s > 3 * configuration.target_s
        if builder.weight_bytes > MAX_WEIGHT_BYTES or len(builder.nodes) > MAX_NODES or too_long:
            break
        name = configuration.templates[section % len(configuration.templates)]
        TEMPLATES[name].build(builder, configuration.target_s / parts)
    model = builder.model(f"composite_{configuration.index}")
    if configuration.quantization == "static":
        model = quantise_static(model, rng)
    elif configuration.quantization == "dynamic":
        model = quantise_dynamic(model, rng)
    return Composite(
        model.SerializeToString(),
        dict(builder.integer_limits),
        builder.estimated_s,
        builder.weight_bytes,
        len(model.graph.node),
    )


def reference() -> Composite:
    """The same small graph always: convolutions, products and elementwise ops, a few milliseconds."""
    builder = GraphBuilder(np.random.default_rng(7), Style())
    x = builder.input((1, 32, 56, 56))
    for _ in range(4):
        x = builder.op("Relu", builder.op("Conv", x, builder.weight((32, 32, 3, 3)), pads=[1, 1, 1, 1]))
    rows = builder.op("Reshape", x, builder.constant([784, 128]))
    for _ in range(4):
        rows = builder.op("Tanh", builder.op("MatMul", rows, builder.weight((128, 128))))
    return Composite(builder.model("reference").SerializeToString(), {}, builder.estimated_s, builder.weight_bytes)
