import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latpred.collect.graph_builder import MAX_WEIGHT_BYTES, GraphBuilder, Style
from latpred.collect.layers import ACTIVATIONS, activation, convolution, layer_norm, linear, pool
from latpred.collect.sample import EARLY, configuration, draw_style
from latpred.collect.synthesize import reference, synthesize
from latpred.collect.templates import TEMPLATES

STYLES = (
    Style(opset=11, constant_nodes=True, layer_norm="decomposed", fold_batch_norm=False),
    Style(opset=13, linear="gemm"),
    Style(opset=17, identity_share=0.3),
    Style(opset=18, layer_names=False),
    Style(opset=20, layer_names=False, gelu="operator", linear="gemm"),
)


def run(model, integer_limits):
    """Outputs by name, on random inputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        if value.type == "tensor(float)":
            feeds[value.name] = rng.standard_normal(value.shape, np.float32)
        else:
            dtype = {"tensor(int64)": np.int64, "tensor(bool)": bool}[value.type]
            feeds[value.name] = rng.integers(0, integer_limits.get(value.name, 2), value.shape).astype(dtype)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def assert_sane(outputs):
    """Finite, and no denormal numbers, which would slow kernels down."""
    assert outputs
    for name, values in outputs.items():
        assert values.size, name
        if values.dtype.kind == "f":
            assert np.isfinite(values).all(), name
            tiny = np.abs(values[values != 0])
            assert not tiny.size or np.mean(tiny < np.finfo(np.float32).tiny) < 0.01, name


@pytest.mark.parametrize("style", STYLES, ids=lambda style: f"opset{style.opset}")
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_runs_in_every_style(name, style):
    seed = 100 * list(TEMPLATES).index(name) + style.opset
    builder = GraphBuilder(np.random.default_rng(seed), style)
    TEMPLATES[name].build(builder, 0.002)
    model = builder.model()
    onnx.checker.check_model(model, full_check=True)
    assert_sane(run(model.SerializeToString(), builder.integer_limits))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), name=st.sampled_from(list(TEMPLATES)))
def test_any_seed_gives_a_valid_graph(seed, name):
    rng = np.random.default_rng(seed)
    builder = GraphBuilder(rng, draw_style(rng))
    TEMPLATES[name].build(builder, 0.001)
    onnx.checker.check_model(builder.model(), full_check=True)
    assert len({node.name for node in builder.nodes}) == len(builder.nodes)


@pytest.mark.parametrize("index", [3, 6, 10])
def test_quantized_composites_run_on_integer_kernels(index):
    made = configuration(0, index)
    assert made.quantization == EARLY[index][0] != "none"
    composite = synthesize(made)
    model = onnx.load_from_string(composite.model)
    onnx.checker.check_model(model)
    ops = Counter(node.op_type for node in model.graph.node)
    if made.quantization == "static":
        assert ops["QuantizeLinear"] > 5 < ops["DequantizeLinear"]
    else:
        assert ops["MatMulInteger"] > 5 < ops["DynamicQuantizeLinear"]
    assert_sane(run(composite.model, composite.integer_limits))


def test_equal_configurations_give_equal_bytes():
    for index in (0, 17):
        assert synthesize(configuration(3, index)).model == synthesize(configuration(3, index)).model
    assert synthesize(configuration(3, 17)).model != synthesize(configuration(4, 17)).model


def test_the_reference_never_changes():
    assert reference().model == reference().model
    # 4 convolutions of 32 * 32 * 3 * 3 and 4 products of 128 * 128, float32
    assert reference().weight_bytes == 4 * 4 * (32 * 32 * 3 * 3 + 128 * 128) + 8 * 2  # and the shape of a Reshape


def test_the_first_composites_have_every_template():
    assert {name for _, templates in EARLY for name in templates} == set(TEMPLATES)


def test_turns_keep_to_the_weights():
    count = 600
    leads = Counter(configuration(0, index).templates[0] for index in range(len(EARLY), len(EARLY) + count))
    total = sum(template.weight for template in TEMPLATES.values())
    for name, template in TEMPLATES.items():
        assert leads[name] == pytest.approx(count * template.weight / total, abs=3), name


@given(seed=st.integers(0, 2**31), index=st.integers(0, 5000))
def test_configurations_stay_in_their_ranges(seed, index):
    made = configuration(seed, index)
    assert 0.0006 <= made.target_s <= 0.06
    assert 0 <= made.weight_bytes <= 120e6
    assert 11 <= made.style.opset <= 20
    assert set(made.templates) <= set(TEMPLATES)
    assert len(set(made.templates)) == len(made.templates)
    assert made.quantization == "none" or made.style.opset >= 13
    assert json.loads(json.dumps(made.to_dict()))["index"] == index


def test_refined_weights_lead():
    only = {"recurrent": 1.0}
    assert all(configuration(0, index, only).templates == ("recurrent",) for index in range(20, 40))


def test_composites_are_bounded():
    for index in range(len(EARLY), len(EARLY) + 12):
        composite = synthesize(configuration(1, index))
        assert composite.weight_bytes < MAX_WEIGHT_BYTES + 80e6  # one section may overshoot
        assert len(composite.model) < 2**31 / 4
        assert composite.estimated_s < 0.5


def test_shapes_and_work_are_followed_as_the_graph_grows():
    builder = GraphBuilder(np.random.default_rng(0), Style(fold_batch_norm=True))
    x = builder.input((2, 16, 15, 15))
    y = convolution(builder, x, 24, 3, 2, groups=8, act="relu")
    assert y.shape == (2, 24, 8, 8)
    assert builder.macs == 2 * 24 * 8 * 8 * (16 // 8) * 3 * 3
    assert [node.op_type for node in builder.nodes] == ["Conv", "Relu"]
    assert pool(builder, y).shape == (2, 24, 4, 4)
    z = linear(builder, builder.op("Flatten", y), 10)
    assert z.shape == (2, 10)
    assert builder.macs == 2 * 24 * 8 * 8 * (16 // 8) * 3 * 3 + 2 * 10 * (24 * 8 * 8)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "none"])
@pytest.mark.parametrize("style", STYLES[1:], ids=lambda style: f"opset{style.opset}")
def test_activations_compute_what_they_are_called(name, style):
    exact = {
        "relu": lambda x: np.maximum(x, 0),
        "relu6": lambda x: np.clip(x, 0, 6),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
        "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
        "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
        "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
        "squared_relu": lambda x: np.maximum(x, 0) ** 2,
        "softplus": lambda x: np.log1p(np.exp(x)),
    }
    builder = GraphBuilder(np.random.default_rng(0), style)
    activation(builder, builder.input((1, 8, 4, 4)), name)
    model = builder.model()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.linspace(-5, 5, 128, dtype=np.float32).reshape(1, 8, 4, 4)
    y = session.run(None, {"input_0": x})[0]
    assert np.isfinite(y).all()
    if name in exact:
        np.testing.assert_allclose(y, exact[name](x.astype(float)), rtol=1e-3, atol=1e-4)


def test_layer_norm_is_the_same_in_both_spellings():
    outputs = []
    for spelling in ("operator", "decomposed"):
        builder = GraphBuilder(np.random.default_rng(5), Style(layer_norm=spelling))
        layer_norm(builder, builder.input((1, 7, 48)))
        outputs.append(next(iter(run(builder.model().SerializeToString(), {}).values())))
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)


def test_a_wrong_template_is_told_which_node_is_wrong():
    builder = GraphBuilder(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"MatMul of .*\(1, 3\).*\(4, 5\)"):
        builder.op("MatMul", builder.input((1, 3)), builder.input((4, 5)))
