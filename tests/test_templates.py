"""What templates reach, and that quantized graphs are those of ONNX Runtime's own quantizers."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

from latpred.collect.blocks_contraction import EQUATIONS, contractions
from latpred.collect.blocks_gather import indexing
from latpred.collect.blocks_product import dense_layers
from latpred.collect.blocks_reduction import axis_reductions
from latpred.collect.blocks_resize import resizes
from latpred.collect.graph_builder import GraphBuilder, Style
from latpred.collect.layers import convolution, flatten, layer_norm, linear, pool, split, transpose
from latpred.collect.networks_slim import slim_network
from latpred.collect.quantise_dynamic import quantise_dynamic
from latpred.collect.quantise_static import OP_TYPES, Manner, quantise_static
from latpred.collect.sample import EARLY, configuration
from latpred.collect.templates import TEMPLATES

STYLE = Style(opset=17)


def images() -> onnx.ModelProto:
    """Convolutions of every sort, pools, a join, a sum, a gate, an activation that stays float, a classifier."""
    b = GraphBuilder(np.random.default_rng(3), STYLE)
    x = convolution(b, b.input((1, 3, 32, 32)), 16, 3, 2, act="relu")
    y = convolution(b, x, 16, 3, groups=16, act="relu6")
    y = b.op("Concat", pool(b, y, "MaxPool", 3, 1), pool(b, y, "AveragePool", 3, 1), x, axis=1)
    y = convolution(b, y, 16, 1)
    y = b.op("Relu", b.op("Add", y, x))
    y = b.op("Mul", y, b.op("Sigmoid", convolution(b, b.op("GlobalAveragePool", y), 16, 1, norm=False)))
    y = b.op("Relu", b.op("Tanh", y))  # its input is not quantized: neither is it
    left, right = split(b, y, [8, 8], 1)
    y = b.op("Add", left, b.op("Mul", right, 0.5))
    linear(b, flatten(b, b.op("GlobalAveragePool", y)), 10)
    return b.model()


def tokens() -> onnx.ModelProto:
    """A lookup, a norm, products with and without weights, a softmax, an MLP."""
    b = GraphBuilder(np.random.default_rng(4), STYLE)
    x = b.op("Gather", b.weight((50, 32), 0.5), b.input((1, 12), "int64", 50), axis=0)
    x = layer_norm(b, b.op("Add", x, b.weight((1, 12, 32), 0.5)))
    query, key = linear(b, x, 32), linear(b, x, 32, bias=False)
    scores = b.op("Softmax", b.op("MatMul", query, transpose(b, key, (0, 2, 1))), axis=-1)
    x = b.op("Add", x, b.op("MatMul", scores, x))
    linear(b, b.op("Erf", linear(b, x, 64)), 32)
    return b.model()


class Calibration(CalibrationDataReader):
    def __init__(self, model):
        rng = np.random.default_rng(0)
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
        floats = {v.name for v in model.graph.input if v.type.tensor_type.elem_type == 1}
        self.feeds = iter(
            [
                {
                    name: rng.standard_normal(shape, np.float32) if name in floats else rng.integers(0, 50, shape)
                    for name, shape in shapes.items()
                }
            ]
        )

    def get_next(self):
        return next(self.feeds, None)


def structure(model: onnx.ModelProto) -> Counter:
    """How often each op occurs, with the integer type (or none) that each input was dequantized from."""
    types = {t.name: t.data_type for t in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}

    def origin(name: str) -> str:
        node = producers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return "other"
        axis = "" if len(dims[node.input[1]]) == 0 else " a channel"
        return onnx.TensorProto.DataType.Name(types[node.input[2]]) + axis

    dims = {t.name: t.dims for t in model.graph.initializer}
    return Counter((node.op_type, *(origin(name) for name in node.input)) for node in model.graph.node)


@pytest.mark.parametrize("graph", [images, tokens])
def test_static_graphs_are_those_of_the_runtimes_own_quantizer(graph, tmp_path):
    seen = {}
    for seed in range(60):
        manner = Manner.draw(np.random.default_rng(seed))
        seen.setdefault((manner.dtype.name, manner.symmetric, manner.per_channel, len(manner.op_types)), (seed, manner))
    assert len(seen) >= 12
    for seed, manner in seen.values():
        model = graph()
        quantize_static(
            model,
            tmp_path / "theirs.onnx",
            Calibration(model),
            per_channel=manner.per_channel,
            activation_type=QuantType.QUInt8 if manner.dtype == np.uint8 else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=None if manner.op_types == OP_TYPES[0] else list(manner.op_types),
            extra_options={"ActivationSymmetric": manner.symmetric},
        )
        ours = structure(quantise_static(graph(), np.random.default_rng(seed)))
        assert ours == structure(onnx.load(tmp_path / "theirs.onnx")), manner


def test_dynamic_graphs_are_those_of_the_runtimes_own_quantizer(tmp_path):
    onnx.save(tokens(), tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "theirs.onnx", weight_type=QuantType.QInt8)
    seed = next(seed for seed in range(20) if np.random.default_rng(seed).random() >= 0.3)  # convolutions stay float
    ours = quantise_dynamic(tokens(), np.random.default_rng(seed))
    theirs = onnx.load(tmp_path / "theirs.onnx")
    assert Counter(n.op_type for n in ours.graph.node) == Counter(n.op_type for n in theirs.graph.node)


def built(build, seed, limit_s=0.004):
    builder = GraphBuilder(np.random.default_rng(seed), STYLE)
    build(builder, limit_s)
    return builder


def shapes_of(builder, op_type):
    """Input shapes and attributes of the nodes of one op type."""
    return [
        (
            [builder._types[name].shape for name in node.input if name],
            {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
        )
        for node in builder.nodes
        if node.op_type == op_type
    ]


def test_every_letter_of_an_equation_has_a_size():
    for equation, sorts, weight in EQUATIONS:
        assert len(sorts.split()) == len(set(equation) - set(",->")), equation
        assert weight > 0


def test_contractions_reach_most_equations_and_count_their_products():
    seen = set()
    for seed in range(40):
        seen |= {attributes["equation"].decode() for _, attributes in shapes_of(built(contractions, seed), "Einsum")}
    assert len(seen) > 0.8 * len(EQUATIONS)
    b = GraphBuilder(np.random.default_rng(0), STYLE)
    y = b.op("Einsum", b.input((2, 3, 5, 7)), b.input((2, 3, 11, 7)), equation="bhqd,bhkd->bhqk")
    assert y.shape == (2, 3, 5, 11)
    assert b.macs == 2 * 3 * 5 * 11 * 7


def test_gathers_have_short_runs_along_every_axis():
    gathers = [gather for seed in range(30) for gather in shapes_of(built(indexing, seed), "Gather")]
    behind = [int(np.prod(shapes[0][attributes["axis"] + 1 :])) for shapes, attributes in gathers]
    assert {1, 2, 4} <= set(behind)
    assert sum(len(shapes[1]) == 2 for shapes, _ in gathers) > 10  # 2-D indices
    assert {attributes["axis"] for _, attributes in gathers} >= {0, 1, 2, 3, 4}


def test_reductions_of_a_small_leading_axis_have_a_large_block_behind():
    builders = [built(axis_reductions, seed) for seed in range(20)]
    found = [shapes[0] for b in builders for op in ("ReduceSum", "ReduceMax") for shapes, _ in shapes_of(b, op)]
    assert sum(len(shape) == 5 and shape[1] <= 8 and np.prod(shape[2:]) > 1e4 for shape in found) > 5


def test_resizes_are_by_whole_and_by_other_factors():
    builders = [built(resizes, seed) for seed in range(25)]
    modes = Counter(attributes["mode"] for builder in builders for _, attributes in shapes_of(builder, "Resize"))
    assert set(modes) == {b"nearest", b"linear", b"cubic"}
    assert modes[b"cubic"] > 10
    ratios = {
        builder._types[node.output[0]].shape[2] / builder._types[node.input[0]].shape[2]
        for builder in builders
        for node in builder.nodes
        if node.op_type == "Resize"
    }
    assert {2.0, 4.0} <= ratios
    assert sum(ratio % 0.5 != 0 for ratio in ratios) > 20


def test_dense_layers_lie_on_both_sides_of_a_large_cache():
    sizes = []
    for seed in range(14):
        builder = built(dense_layers, seed, 0.002)
        sizes.append(builder.weight_bytes / 1e6)
        assert all(len(shapes[1]) == 2 for shapes, _ in shapes_of(builder, "Gemm"))
    assert min(sizes) < 16
    assert max(sizes) > 64
    assert max(sizes) < 180


def test_slim_networks_are_many_small_kernels():
    builders = [built(slim_network, seed, 0.0012) for seed in range(25)]
    counts = [sum(node.op_type != "Constant" for node in b.nodes) for b in builders]
    assert 40 < np.median(counts) < 250
    assert max(counts) < 450
    assert np.median([b.estimated_s / count for b, count in zip(builders, counts, strict=True)]) < 20e-6
    assert np.quantile([b.estimated_s for b in builders], 0.9) < 0.003


def test_whole_networks_stand_alone():
    lone = [configuration(2, index) for index in range(len(EARLY), 500) if "slim" in configuration(2, index).templates]
    assert len(lone) > 25
    assert all(made.templates == ("slim",) and made.single and made.target_s <= 0.004 for made in lone)


def test_quantized_ones_are_mostly_static_and_convolutional():
    made = [configuration(5, index) for index in range(len(EARLY), 1500)]
    able = [c for c in made if all(TEMPLATES[name].quantized.static > 0 for name in c.templates)]
    count = Counter(c.quantization for c in able)
    assert 0.22 < 1 - count["none"] / len(able) < 0.34
    assert count["static"] > 2 * count["dynamic"]
    assert all(c.style.fold_batch_norm and c.style.opset >= 13 for c in able if c.quantization != "none")
