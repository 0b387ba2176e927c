"""The table of templates: what a section of a composite graph can be, and how much of real networks it stands for.

The weights are priors from the literature: how much of the inference time of deployed networks is spent in networks
of that sort. They decide how the first part of a campaign divides its time; measured errors decide the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from latpred.collect import (
    blocks_attention,
    blocks_chain,
    blocks_contraction,
    blocks_elementwise,
    blocks_gather,
    blocks_movement,
    blocks_product,
    blocks_reduction,
    blocks_resize,
    blocks_sequence,
    blocks_tokens,
    blocks_window,
    networks_convolution,
    networks_dense,
    networks_slim,
)
from latpred.collect.graph_builder import GraphBuilder

__all__ = ["TEMPLATES", "Quantized", "Template"]


@dataclass(frozen=True, slots=True)
class Quantized:
    """Which shares of a template's composites are quantized."""

    static: float  # with QDQ pairs
    dynamic: float  # with integer products, whose input is quantized as it arrives


@dataclass(frozen=True, slots=True)
class Template:
    """Adds one section to a graph, of about `limit_s` seconds: `build(builder, limit_s)`."""

    build: Callable[[GraphBuilder, float], None]
    weight: float
    quantized: Quantized = Quantized(0.15, 0.1)
    target_s: tuple[float, float] = (0.0015, 0.06)  # of one inference of the composites that it leads
    whole: bool = False  # a network of its own: never beside other sections
    network: bool = False  # blocks in the order of a network, not kernels in every shape


_IMAGES = Quantized(0.3, 0.02)
_TOKENS = Quantized(0.13, 0.15)
_FLOAT = Quantized(0.0, 0.0)

TEMPLATES: dict[str, Template] = {
    "classic": Template(networks_convolution.classic, 18, _IMAGES, network=True),
    "mobile": Template(networks_convolution.mobile, 20, _IMAGES, network=True),
    "slim": Template(networks_slim.slim_network, 20, Quantized(0.25, 0.05), (0.0006, 0.004), whole=True, network=True),
    "language_model": Template(blocks_attention.language_model, 14, _TOKENS, network=True),
    "vision_transformer": Template(blocks_attention.vision_transformer, 10, _TOKENS, network=True),
    "hybrid": Template(blocks_window.hybrid_network, 14, network=True),
    "mixer": Template(blocks_window.mixer_network, 3, network=True),
    "recurrent": Template(blocks_sequence.recurrent_network, 5, _FLOAT, network=True),
    "temporal": Template(blocks_sequence.temporal_network, 3, _FLOAT, network=True),
    "speech": Template(blocks_sequence.speech_network, 3, network=True),
    "grouped_rows": Template(blocks_sequence.grouped_rows, 2, _FLOAT),
    "decoder": Template(networks_dense.decoder_network, 3, network=True),
    "pyramid": Template(networks_dense.pyramid_network, 3, network=True),
    "super_resolution": Template(networks_dense.super_resolution, 1.5, network=True),
    "generator": Template(networks_dense.generator, 1.5, _FLOAT, network=True),
    "detector": Template(networks_dense.detector_head, 2, _FLOAT),
    "volume": Template(networks_dense.volume_network, 2, _FLOAT, network=True),
    "convolutions": Template(blocks_product.convolutions, 6, _IMAGES),
    "products": Template(blocks_product.products, 6),
    "dense_layers": Template(blocks_product.dense_layers, 6, _TOKENS),
    "convolution_chain": Template(blocks_chain.convolution_chain, 14, _IMAGES),
    "separable_chain": Template(blocks_chain.separable_chain, 6, Quantized(0.5, 0.02)),
    "linear_chain": Template(blocks_chain.linear_chain, 10, _TOKENS),
    "elementwise": Template(blocks_elementwise.elementwise, 5),
    "broadcasts": Template(blocks_elementwise.broadcasts, 5),
    "reductions": Template(blocks_reduction.reductions, 5),
    "axis_reductions": Template(blocks_reduction.axis_reductions, 2.5, _FLOAT),
    "contractions": Template(blocks_contraction.contractions, 4, _FLOAT),
    "norms": Template(blocks_reduction.norms, 2.5, _FLOAT),
    "conversions": Template(blocks_elementwise.conversions, 2, _FLOAT),
    "transposes": Template(blocks_movement.transposes, 4),
    "joins": Template(blocks_movement.joins, 4),
    "token_moves": Template(blocks_tokens.token_moves, 4, Quantized(0.1, 0.0)),
    "lookups": Template(blocks_movement.lookups, 3.5, _FLOAT),
    "indexing": Template(blocks_gather.indexing, 3, _FLOAT),
    "resampling": Template(blocks_movement.resampling, 4),
    "resizes": Template(blocks_resize.resizes, 3, Quantized(0.1, 0.0)),
}
