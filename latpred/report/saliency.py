"""What a saliency map is of, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latpred.hooks.saliency import Saliency

__all__ = ["saliency_object", "saliency_text"]


def saliency_object(found: Saliency, layer_shape: Sequence[int], target: Path) -> dict[str, Any]:
    """The first image's class, score, layer and weights, ready for JSON."""
    return {
        "class": int(found.classes[0]),
        "score": float(found.scores[0]),
        "layer": found.layer,
        "layer_shape": list(layer_shape),
        "method": found.method,
        "error": found.error,
        "evidence": found.evidence[0].tolist(),
        "weights": found.weights[0].tolist(),
        "notices": list(found.notices),
        "overlay": str(target),
    }


def saliency_text(described: Mapping[str, Any]) -> str:
    """A few lines for a person."""
    shape = " x ".join(map(str, described["layer_shape"][1:]))
    error = "" if described["error"] is None else f", estimated error {described['error']:.1e} of the largest"
    silent = []
    if not any(described["weights"]):
        silent = ["this class's score does not hang on this layer: the map is zero"]
    elif not any(map(any, described["evidence"])):
        silent = ["all evidence speaks against this class: the map is zero"]
    return "\n".join(
        [
            f"class    {described['class']}, score {described['score']:.4g} before softmax",
            f"layer    {described['layer']} ({shape})",
            f"weights  by {described['method']}{error}",
            *(f"notice   {text}" for text in [*described["notices"], *silent]),
            f"written  {described['overlay']}",
        ]
    )
