"""Networks to hook, and what they compute with some of it altered, by ONNX Runtime's own sessions one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from counting_predictor import info, residual_network
from onnx import TensorProto, helper, numpy_helper
from surgery_oracle import run

from latpred.decide.options import altered, choice_of
from latpred.surgery.cuts import cuts
from latpred.surgery.pieces import piece
from latpred.surgery.tidy import tidied

Array = np.ndarray


def drawn_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """The same with random weights, in place."""
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        values = rng.standard_normal(list(tensor.dims)) / np.sqrt(max(1.0, np.prod(tensor.dims[1:])))
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model


def blocks(count: int = 3, width: int = 8, inner: int = 32) -> onnx.ModelProto:
    """A stem, residual blocks, a classifier, with random weights."""
    return drawn_weights(residual_network(count, width, inner))


def spatial_blocks(count: int = 2, width: int = 8, side: int = 16, classes: int = 4) -> onnx.ModelProto:
    """The same with convolutions of 3 x 3 and their activations, which patches need a halo for."""
    nodes, stored, infos = [], [], []
    rng = np.random.default_rng(1)

    def conv(name: str, x: str, y: str, relu: bool) -> None:
        weight = (rng.standard_normal((width, width, 3, 3)) / np.sqrt(9 * width)).astype(np.float32)
        bias = (rng.standard_normal(width) / 4).astype(np.float32)
        stored.extend(
            [numpy_helper.from_array(weight, f"{name}.weight"), numpy_helper.from_array(bias, f"{name}.bias")]
        )
        made = f"{y}.c" if relu else y
        path = f"/{name.replace('.', '/')}"
        reads = [x, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", reads, [made], f"{path}/Conv", pads=[1, 1, 1, 1]))
        infos.append(info(made, (1, width, side, side)))
        if relu:
            nodes.append(helper.make_node("Relu", [made], [y], f"{path}/Relu"))
            infos.append(info(y, (1, width, side, side)))

    conv("stem", "x", "t0", relu=True)
    for block in range(count):
        x, y = f"t{block}", f"t{block + 1}"
        conv(f"layer.{block}.first", x, f"{y}.h", relu=True)
        conv(f"layer.{block}.second", f"{y}.h", f"{y}.d", relu=False)
        nodes.append(helper.make_node("Add", [x, f"{y}.d"], [f"{y}.a"], f"/layer/{block}/Add"))
        nodes.append(helper.make_node("Relu", [f"{y}.a"], [y], f"/layer/{block}/Relu"))
        infos.extend(info(name, (1, width, side, side)) for name in (f"{y}.a", y))
    stored.append(numpy_helper.from_array(rng.standard_normal((width, classes)).astype(np.float32), "fc.weight"))
    nodes += [
        helper.make_node("GlobalAveragePool", [f"t{count}"], ["pooled"], "/pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "/flat/Flatten"),
        helper.make_node("Gemm", ["flat", "fc.weight"], ["scores"], "/fc/Gemm"),
        helper.make_node("Softmax", ["scores"], ["y"], "/out/Softmax", axis=1),
    ]
    infos += [info("pooled", (1, width, 1, 1)), info("flat", (1, width)), info("scores", (1, classes))]
    ends = [info("x", (1, width, side, side))], [info("y", (1, classes))]
    graph = helper.make_graph(nodes, "spatial", *ends, stored, value_info=infos)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def masked_encoder(layers: int = 3) -> onnx.ModelProto:
    """Floats and a mask; the mask is turned into a bias once, which every layer reads; two outputs."""
    rng = np.random.default_rng(2)
    weight = numpy_helper.from_array((rng.standard_normal((8, 8)) / 3).astype(np.float32), "w")
    minus = numpy_helper.from_array(np.float32(-1), "minus")
    nodes = [
        helper.make_node("Cast", ["mask"], ["m1"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["m1", "minus"], ["bias"], "bias"),
        helper.make_node("MatMul", ["x", "w"], ["h0"], "in"),
    ]
    for i in range(layers):
        nodes += [
            helper.make_node("MatMul", [f"h{i}", "w"], [f"s{i}"], f"/layer/{i}/MatMul"),
            helper.make_node("Add", [f"s{i}", "bias"], [f"b{i}"], f"/layer/{i}/Add"),
            helper.make_node("Softmax", [f"b{i}"], [f"p{i}"], f"/layer/{i}/Softmax"),
            helper.make_node("Add", [f"p{i}", f"h{i}"], [f"h{i + 1}"], f"/layer/{i}/Add_1"),
        ]
    inputs = [info("x", (1, 6, 8)), helper.make_tensor_value_info("mask", TensorProto.INT64, [1, 1, 8])]
    outputs = [info(f"h{layers}", (1, 6, 8)), info("h1", (1, 6, 8))]
    graph = helper.make_graph(nodes, "masked", inputs, outputs, [weight, minus])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def carried_out(
    model: onnx.ModelProto, ends: Sequence[tuple[str, str, str]], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """Every tensor of a network some regions of which are altered.

    `ends` are the regions in order: tensor before, tensor behind, and option, as plans call it.
    """
    tidy = tidied(model)
    places = {cut.tensor: cut for cut in cuts(tidy)}
    first, *_, last = cuts(tidy)
    known, here = dict(feeds), first
    for start, end, option in [*ends, (last.tensor, last.tensor, "keep")]:
        if here.position < places[start].position:
            known |= run(piece(tidy, here, places[start]), known)
        here = places[end]
        if option == "skip":
            known[end] = known[start]
        elif start != end:
            region = piece(tidy, places[start], places[end])
            graph = region if option == "keep" else altered(region, choice_of(option))
            assert graph is not None
            known |= run(graph, known)
    return known
