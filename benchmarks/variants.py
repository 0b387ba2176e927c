"""Networks at other batch sizes and resolutions, for `benchmarks/accuracy.py` to measure.

    python benchmarks/variants.py FOLDER_OR_MODEL... --out FOLDER [--each N] [--seed N]

Each network with one image for an input is rewritten to drawn sizes: 1 to 8 images of 96 to 384 pixels. Weights stay as
they are, or stay away. A network whose shapes do not follow (a Reshape to constant sizes, a table of positions) is left
out; how many were, is said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from coverage import models

from latpred.errors import LatpredError
from latpred.graph import read

SIZES = (
    (1, 96), (1, 128), (1, 160), (1, 192), (1, 256), (1, 288), (1, 320), (1, 384),
    (2, 128), (2, 192), (2, 224), (3, 160), (4, 128), (4, 160), (6, 96), (8, 96), (8, 128),
)  # fmt: skip


def image_input(model: onnx.ModelProto) -> onnx.ValueInfoProto | None:
    """The network's only input, where it is a batch of colour images."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        return None
    shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    return inputs[0] if len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] > 0 else None


def rewritten(model: onnx.ModelProto, batch: int, side: int) -> onnx.ModelProto:
    """A copy for other images; shapes that followed from the old ones are forgotten."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    value = image_input(other)
    assert value is not None
    for dim, size in zip(value.type.tensor_type.shape.dim, (batch, 3, side, side), strict=True):
        dim.dim_value = size
    del other.graph.value_info[:]
    for output in other.graph.output:
        output.type.tensor_type.ClearField("shape")
    return other


def follows(model: onnx.ModelProto, batch: int) -> bool:
    """Whether every shape can be worked out, and the results are of as many images."""
    try:
        graph = read(model)
    except LatpredError:
        return False
    shapes = [graph.tensors[name].shape for name in graph.outputs]
    return all(shape[:1] == (batch,) for shape in shapes) and all(0 not in t.shape for t in graph.tensors.values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=1, help="variants of each network (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    written = tried = 0
    for path in models(options.paths):
        model = onnx.load(path, load_external_data=False)
        value = image_input(model)
        if value is None:
            continue
        tried += 1
        old = value.type.tensor_type.shape.dim
        others = [size for size in SIZES if size != (old[0].dim_value, old[2].dim_value)]
        found = 0
        for index in rng.permutation(len(others)):
            if found == options.each:
                break
            batch, side = others[index]
            other = rewritten(model, batch, side)
            if follows(other, batch):
                onnx.save(other, options.out / f"{path.stem}-b{batch}r{side}.onnx")
                found += 1
        written += found
    print(f"{written} variants of {tried} networks with one image for an input; the others hold on to their sizes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
