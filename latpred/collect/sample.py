"""The stream of configurations: a pure function of seed and index, so that a campaign that stopped goes on.

A configuration says which templates a composite graph is made of, how long it may run, how heavy it is, which
exporter's style it imitates and whether it is quantized; with its seed, everything in its graph follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from latpred.collect.graph_builder import Style
from latpred.collect.templates import TEMPLATES

__all__ = ["EARLY", "Configuration", "configuration", "draw_style"]

TARGET_S = (0.0015, 0.06)  # of one inference
WEIGHT_BYTES = (1e6, 120e6)
SINGLE_SHARE = 0.5  # of composites with one section
MIXED_SHARE = 0.5  # of the others: sections of several templates
HEAVY_SHARE = 0.6  # of the others: they go on until their weights reach a drawn size
QUANTIZED_SHARE = 0.22  # of composites whose templates occur quantized
GOLDEN_RATIO = 0.6180339887498949

# The first composites are mixed, so that even a minute of measuring has seen nearly every kind of kernel.
EARLY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("none", ("classic", "elementwise", "resampling", "products")),
    ("none", ("language_model", "joins", "reductions", "convolutions", "contractions")),
    ("none", ("mobile", "broadcasts", "transposes", "recurrent", "convolution_chain")),
    ("static", ("classic", "mobile", "vision_transformer")),
    ("none", ("hybrid", "dense_layers", "lookups", "detector", "linear_chain")),
    ("none", ("vision_transformer", "pyramid", "conversions", "temporal", "norms")),
    ("dynamic", ("language_model", "vision_transformer", "dense_layers")),
    ("none", ("mobile", "speech", "volume", "generator")),
    ("none", ("classic", "mixer", "decoder", "super_resolution")),
    ("none", ("recurrent", "hybrid", "elementwise", "resampling")),
    ("static", ("convolution_chain", "hybrid", "linear_chain", "mobile")),
    ("none", ("language_model", "lookups", "broadcasts", "products")),
)


@dataclass(frozen=True, slots=True)
class Configuration:
    """One composite graph to be made."""

    index: int
    templates: tuple[str, ...]  # sections take turns among them
    seed: tuple[int, int]  # of the stream, and the index
    target_s: float  # of one inference, roughly
    weight_bytes: int = 0  # sections are added until the weights reach this, if time allows
    single: bool = False  # one section and no more: a small network, whose weights may stay in the caches
    quantization: str = "none"  # or "static", "dynamic"
    style: Style = field(default_factory=Style)

    def to_dict(self) -> dict[str, Any]:
        """What a record keeps of it."""
        return {
            "index": self.index,
            "templates": list(self.templates),
            "seed": list(self.seed),
            "single": self.single,
            "quantization": self.quantization,
            "opset": self.style.opset,
        }


def draw_style(rng: np.random.Generator) -> Style:
    """An exporter's habits, as they occur together.

    Examples
    --------
    >>> draw_style(np.random.default_rng(0)).opset in (11, 12, 13, 14, 16, 17, 18, 20)
    True
    """
    tracing = bool(rng.random() < 0.65)
    opsets, shares = ((11, 12, 13, 14, 16, 17), (0.1, 0.05, 0.15, 0.1, 0.1, 0.5)) if tracing else ((18, 20), (0.7, 0.3))
    return Style(
        opset=int(rng.choice(opsets, p=shares)),
        linear=str(rng.choice(["matmul", "gemm"], p=[0.85, 0.15] if tracing else [0.55, 0.45])),
        fold_batch_norm=bool(rng.random() < 0.75),
        constant_nodes=tracing and bool(rng.random() < 0.8),
        layer_norm=str(rng.choice(["operator", "decomposed"], p=[0.8, 0.2])),
        gelu=str(rng.choice(["erf", "operator"], p=[0.6, 0.4])),
        identity_share=0.15 if tracing and rng.random() < 0.1 else 0.0,
        layer_names=tracing,
    )


def configuration(seed: int, index: int, weights: Mapping[str, float] | None = None) -> Configuration:
    """The configuration at an index of the stream of a seed.

    Parameters
    ----------
    weights
        How often each template leads a composite; by default its weight in `TEMPLATES`. Any run of successive
        indices keeps to these shares closely (multiples of the golden ratio fill the unit interval evenly).

    Examples
    --------
    >>> configuration(1, 40) == configuration(1, 40)
    True
    >>> configuration(0, 0).templates
    ('classic', 'elementwise', 'resampling', 'products')
    """
    rng = np.random.default_rng((seed, index))
    style = draw_style(rng)
    target_s = float(np.exp(rng.uniform(*np.log(TARGET_S))))
    heavy = rng.random() < HEAVY_SHARE
    weight_bytes = int(np.exp(rng.uniform(*np.log(WEIGHT_BYTES)))) if heavy else 0
    single = False
    if index < len(EARLY):
        quantization, templates = EARLY[index]
        weight_bytes = 0
        target_s = 0.04
    else:
        names = list(weights or TEMPLATES)
        shares = np.cumsum([(weights or {n: TEMPLATES[n].weight for n in names})[n] for n in names])
        shares /= shares[-1]
        lead = (GOLDEN_RATIO * index + GOLDEN_RATIO**2 * seed) % 1.0
        single = bool(rng.random() < SINGLE_SHARE)
        mixed = not single and rng.random() < MIXED_SHARE
        picks = [lead, *(rng.random(int(rng.integers(1, 4))) if mixed else [])]
        templates = tuple(dict.fromkeys(names[int(np.searchsorted(shares, u, side="right"))] for u in picks))
        quantization = "none"
        if rng.random() < QUANTIZED_SHARE and all(TEMPLATES[name].quantizable for name in templates):
            quantization = str(rng.choice(["static", "dynamic"], p=[0.65, 0.35]))
    if quantization != "none":
        style = replace(style, opset=max(13, style.opset))
    return Configuration(index, templates, (seed, index), target_s, weight_bytes, single, quantization, style)
