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
    blocks_elementwise,
    blocks_movement,
    blocks_product,
    blocks_reduction,
    blocks_sequence,
    blocks_window,
    networks_convolution,
    networks_dense,
)
from latpred.collect.graph_builder import GraphBuilder

__all__ = ["TEMPLATES", "Template"]


@dataclass(frozen=True, slots=True)
class Template:
    """Adds one section to a graph, of about `limit_s` seconds: `build(builder, limit_s)`."""

    build: Callable[[GraphBuilder, float], None]
    weight: float
    quantizable: bool = True  # whether quantized variants occur


TEMPLATES: dict[str, Template] = {
    "classic": Template(networks_convolution.classic, 18),
    "mobile": Template(networks_convolution.mobile, 20),
    "language_model": Template(blocks_attention.language_model, 14),
    "vision_transformer": Template(blocks_attention.vision_transformer, 10),
    "hybrid": Template(blocks_window.hybrid_network, 14),
    "mixer": Template(blocks_window.mixer_network, 3),
    "recurrent": Template(blocks_sequence.recurrent_network, 5, quantizable=False),
    "temporal": Template(blocks_sequence.temporal_network, 3, quantizable=False),
    "speech": Template(blocks_sequence.speech_network, 3),
    "decoder": Template(networks_dense.decoder_network, 3),
    "pyramid": Template(networks_dense.pyramid_network, 3),
    "super_resolution": Template(networks_dense.super_resolution, 1.5),
    "generator": Template(networks_dense.generator, 1.5, quantizable=False),
    "detector": Template(networks_dense.detector_head, 2, quantizable=False),
    "volume": Template(networks_dense.volume_network, 2, quantizable=False),
    "convolutions": Template(blocks_product.convolutions, 6),
    "products": Template(blocks_product.products, 6),
    "dense_layers": Template(blocks_product.dense_layers, 4),
    "convolution_chain": Template(blocks_chain.convolution_chain, 14),
    "linear_chain": Template(blocks_chain.linear_chain, 10),
    "elementwise": Template(blocks_elementwise.elementwise, 5),
    "broadcasts": Template(blocks_elementwise.broadcasts, 5),
    "reductions": Template(blocks_reduction.reductions, 5),
    "contractions": Template(blocks_reduction.contractions, 1.5, quantizable=False),
    "norms": Template(blocks_reduction.norms, 2.5, quantizable=False),
    "conversions": Template(blocks_elementwise.conversions, 1.5, quantizable=False),
    "transposes": Template(blocks_movement.transposes, 4),
    "joins": Template(blocks_movement.joins, 4),
    "lookups": Template(blocks_movement.lookups, 2.5, quantizable=False),
    "resampling": Template(blocks_movement.resampling, 4),
}
