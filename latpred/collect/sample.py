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

WEIGHT_BYTES = (3e6, 120e6)
SINGLE_SHARE = 0.5  # of composites with one section
MIXED_SHARE = 0.5  # of the others: sections of several templates
HEAVY_SHARE = 0.6  # of the others: they go on until their weights reach a drawn size
GOLDEN_RATIO = 0.6180339887498949

# The first composites are mixed, so that even a minute of measuring has seen nearly every kind of kernel.
EARLY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("none", ("classic", "elementwise", "resampling", "products", "token_moves")),
    ("none", ("language_model", "joins", "reductions", "convolutions", "contractions", "indexing")),
    ("none", ("mobile", "broadcasts", "transposes", "recurrent", "convolution_chain")),
    ("static", ("classic", "mobile", "separable_chain", "vision_transformer")),
    ("none", ("hybrid", "dense_layers", "lookups", "detector", "linear_chain", "axis_reductions")),
    ("none", ("vision_transformer", "pyramid", "conversions", "temporal", "norms", "resizes")),
    ("dynamic", ("language_model", "vision_transformer", "dense_layers")),
    ("none", ("mobile", "speech", "volume", "generator", "grouped_rows")),
    ("none", ("classic", "mixer", "decoder", "super_resolution", "slim")),
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
    opsets, shares = (
        ((11, 12, 13, 14, 16, 17), (0.1, 0.05, 0.15, 0.1, 0.1, 0.5)) if tracing else ((18, 20), (0.55, 0.45))
    )
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
    ('classic', 'elementwise', 'resampling', 'products', 'token_moves')
    """
    rng = np.random.default_rng((seed, index))
    style = draw_style(rng)
    within = rng.random()  # of the range of durations
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
        lead = names[int(np.searchsorted(shares, (GOLDEN_RATIO * index + GOLDEN_RATIO**2 * seed) % 1.0, side="right"))]
        single = TEMPLATES[lead].whole or bool(rng.random() < SINGLE_SHARE)
        mixed = not single and rng.random() < MIXED_SHARE
        others = rng.random(int(rng.integers(1, 4)) if mixed else 0)
        picks = [names[int(np.searchsorted(shares, u, side="right"))] for u in others]
        templates = tuple(dict.fromkeys([lead, *(name for name in picks if not TEMPLATES[name].whole)]))
        target_s = float(np.exp(np.interp(within, (0, 1), np.log(TEMPLATES[lead].target_s))))
        quantization = _quantization(templates, rng.random())
    if quantization != "none":
        # Quantizers are given graphs that were tidied up first: folded, products with their bias in one op.
        linear = "gemm" if quantization == "static" and rng.random() < 0.7 else style.linear
        style = replace(style, opset=max(13, style.opset), fold_batch_norm=True, identity_share=0.0, linear=linear)
    return Configuration(index, templates, (seed, index), target_s, weight_bytes, single, quantization, style)


def _quantization(templates: tuple[str, ...], drawn: float) -> str:
    """Whether and how templates occur quantized together: as often as the one that is so most rarely."""
    static = min(TEMPLATES[name].quantized.static for name in templates)
    dynamic = min(TEMPLATES[name].quantized.dynamic for name in templates)
    return "static" if drawn < static else "dynamic" if drawn < static + dynamic else "none"
