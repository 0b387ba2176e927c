"""What surgery declares of the graphs that it writes is what inference finds, and equal regions are told right."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import onnx
import pytest
from surgery_oracle import NETWORKS

import latpred
from latpred.decide.options import Choice, altered, refusals
from latpred.errors import SurgeryError
from latpred.graph import Graph, excerpt, read
from latpred.surgery.cuts import cuts
from latpred.surgery.exits import head
from latpred.surgery.gates import gate_network
from latpred.surgery.likeness import Likeness
from latpred.surgery.pieces import cut_out, piece, region
from latpred.surgery.tidy import tidied
from latpred.surgery.wiring import wired

CHOICES = Choice("channels", 0.5), Choice("patches", 0.5, 4), Choice("int8")


def facts(graph: Graph) -> dict[str, tuple[object, ...]]:
    return {name: (tensor.shape, tensor.dtype, tensor.constant) for name, tensor in graph.tensors.items()}


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenetv3_large", "unet_c32r96", "vit_test_b2r160"])
def test_declared_shapes_are_the_inferred_ones(name: str) -> None:
    model = tidied(NETWORKS / f"{name}.onnx")
    places = cuts(model)
    written: list[onnx.ModelProto] = [model]
    seen = set()
    for start, end in [*pairwise(places), *zip(places, places[3:], strict=False)]:
        found = region(wired(model), start, end)
        reasons = refusals(found.wiring)
        assert reasons == refusals(wired(cut_out(found)))
        for choice in CHOICES:
            if reasons[choice.level] is None:
                made = altered(cut_out(found), choice)
                assert made is not None
                written.append(made)
                seen.add(choice.level)
        try:
            written += [gate_network(start, 3), head(start, 10, confident=True), head(start, 10, seed=None)]
        except SurgeryError:
            continue
    assert {"channels", "int8"} <= seen
    for made in written:
        assert facts(read(made, trusted=True)) == facts(read(made))


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v2_int8", "vit_test_b2r160"])
def test_equal_regions_cost_the_same_as_their_pieces(name: str) -> None:
    """Slices of one graph, predicted together, against models of their own, predicted one by one."""
    predictor = latpred.load("jetson-nano")
    model = tidied(NETWORKS / f"{name}.onnx")
    wiring, graph, places = wired(model), read(model, trusted=True), cuts(model)
    likeness = Likeness(wiring)
    ends = [*pairwise(places), *zip(places, places[2:], strict=False)]
    regions = [region(wiring, *pair) for pair in ends]
    slices = [excerpt(graph, one.nodes, one.inputs, one.outputs) for one in regions]
    together = predictor.predict_graphs(slices, cycle_bytes=1 << 24)
    found = defaultdict(set)
    for pair, one, prediction in zip(ends, regions, together, strict=True):
        alone = predictor.predict(piece(model, *pair), cycle_bytes=1 << 24)
        assert prediction.latency_s == pytest.approx(alone.latency_s, rel=1e-9)
        found[likeness.key(one)].add(round(alone.latency_s * 1e12))
    assert (len(found) < len(regions)) == (name != "mobilenet_v2_int8")  # where each block has scales of its own
    assert all(len(latencies) == 1 for latencies in found.values())


def test_regions_that_differ_in_a_number_are_not_alike() -> None:
    def model(axis: int, size: int, zero: int) -> onnx.ModelProto:
        helper, floats = onnx.helper, onnx.TensorProto.FLOAT
        x, y = (helper.make_tensor_value_info(name, floats, [1, 8, 8]) for name in "xy")
        nodes = [
            helper.make_node("Softmax", ["x"], ["s"], axis=axis),
            helper.make_node("Reshape", ["s", "shape"], ["r"]),
            helper.make_node("Softmax", ["r"], ["t"]),
            helper.make_node("Reshape", ["t", "back"], ["u"]),
            helper.make_node("QuantizeLinear", ["u", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ]
        stored = [
            helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [size, -1]),
            helper.make_tensor("back", onnx.TensorProto.INT64, [3], [1, 8, 8]),
            helper.make_tensor("scale", floats, [], [0.5]),
            helper.make_tensor("zero", onnx.TensorProto.UINT8, [], [zero]),
        ]
        return tidied(helper.make_model(helper.make_graph(nodes, "g", [x], [y], stored)))

    def key(axis: int, size: int, zero: int) -> object:
        """In one numbering: the models side by side, as two branches of one."""
        both = onnx.compose.merge_models(
            onnx.compose.add_prefix(model(2, 8, 0), "a/"), onnx.compose.add_prefix(model(axis, size, zero), "b/"),
            io_map=[("a/y", "b/x")],
        )  # fmt: skip
        tidy = tidied(both)
        wiring = wired(tidy)
        places = {cut.tensor: cut for cut in cuts(wiring)}
        likeness = Likeness(wiring)
        first = likeness.key(region(wiring, places["a/x"], places["b/x" if "b/x" in places else "a/y"]))
        return first == likeness.key(region(wiring, places["a/y"], places["b/y"]))

    assert key(2, 8, 0)
    assert not key(1, 8, 0)
    assert not key(2, 16, 0)
    assert not key(2, 8, 3)
