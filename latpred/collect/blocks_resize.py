"""Resize in every mode, by factors that are whole or not, of position embeddings, scores, images and feature maps."""

from __future__ import annotations

import numpy as np

from latpred.collect.graph_builder import GraphBuilder, Value
from latpred.collect.layers import convolution, reshape, transpose

__all__ = ["resizes"]

MAX_ELEMENTS = 1 << 20
MAX_CUBIC_ELEMENTS = 300_000  # of a result: cubic ones take a hundred times as long
COORDINATES = {
    "nearest": (("asymmetric", 6), ("half_pixel", 1), ("align_corners", 0.5)),
    "linear": (("half_pixel", 4), ("align_corners", 4), ("asymmetric", 2), ("pytorch_half_pixel", 2)),
    "cubic": (("half_pixel", 4), ("align_corners", 2), ("asymmetric", 1), ("pytorch_half_pixel", 1)),
}


def resizes(b: GraphBuilder, limit_s: float) -> None:
    """Resizes one after another, by scales and by sizes."""
    start_s = b.estimated_s
    for _ in range(10):
        if b.estimated_s - start_s > limit_s:
            return
        b.scope = "resizes"
        mode = b.choose(["cubic", "linear", "nearest"], [3, 5, 2])
        if mode == "cubic" and b.chance(0.7):  # position embeddings, for another number of patches
            side, channels = b.between(7, 24), b.between(16, 768, 8)
            height, width = b.between(5, 37), 0
            while channels * height * height > MAX_CUBIC_ELEMENTS:
                channels = max(1, channels // 2)
        elif b.chance(0.4):  # scores, depths and images: few channels, many positions
            side, channels = int(b.choose([14, 16, 28, 32, 56, 64, 96, 112, 128])), b.between(1, 32)
            height, width = round(side * b.between(15, 40) / 10), 0
        else:
            side, channels = int(b.choose([7, 8, 10, 13, 14, 16, 20, 28, 32, 40, 56])), b.between(16, 384, 8)
            factor = float(b.choose([2, 4, 0.5, 1.5, 3, 0, 8], [5, 2, 1.5, 0.7, 0.7, 3, 0.3]))
            height, width = round(side * factor) if factor else b.between(5, 3 * side), 0
        width = height if b.chance(0.85) else max(2, height * 3 // 4)
        most = MAX_CUBIC_ELEMENTS if mode == "cubic" else MAX_ELEMENTS
        while channels * max(height * width, side * side) > most and (channels > 1 or height > 8):
            channels, height, width = (channels // 2, height, width) if channels > 1 else (1, height // 2, width // 2)
        x = b.input((1, channels, side, side))
        if b.chance(0.3):
            rows = b.op("Neg", b.input((1, side * side, channels)))
            x = reshape(b, transpose(b, rows, (0, 2, 1)), (1, channels, side, side))
        elif channels >= 8 and mode != "cubic" and b.chance(0.4):
            x = convolution(b, x, channels, 1, norm=False, bias=True)
        else:
            x = b.op("Neg", x)
        _resize_to(b, x, (height, width), mode)


def _resize_to(b: GraphBuilder, x: Value, sides: tuple[int, int], mode: str) -> None:
    options = COORDINATES[mode]
    coordinates = b.choose([name for name, _ in options], [weight for _, weight in options])
    attributes: dict[str, object] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = "round_prefer_floor" if coordinates == "half_pixel" else "floor"
    if mode == "cubic":
        attributes["cubic_coeff_a"] = -0.75
    absent = b.constant(np.zeros(0), "float32") if b.style.opset < 13 else None
    if b.chance(0.5):
        no_scales = b.constant(np.zeros(0), "float32") if b.style.opset < 13 else None
        b.op("Resize", x, absent, no_scales, b.constant([*x.shape[:2], *sides]), **attributes)
    else:
        scales = [1.0, 1.0, *((out + 0.01) / n for out, n in zip(sides, x.shape[2:], strict=True))]
        whole = [round(scale) if abs(scale - round(scale)) < 0.02 else scale for scale in scales]
        b.op("Resize", x, absent, b.constant(whole, "float32"), **attributes)
