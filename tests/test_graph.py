"""Reading a model: sources, weights, names, order, constants, errors. Expected shapes are worked out by hand."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from latpred.errors import LatpredError, ModelError, ShapeError
from latpred.graph import Graph, read, walk

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

CONV = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1,3,8,8] x) => (float[1,16,4,4] y)
<float[16,3,3,3] w = {}>
{ y = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w) }
"""


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(text)


def conv(weights: np.ndarray | None = None) -> onnx.ModelProto:
    """A convolution whose initializer has dims and, unless given, no data."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="first", pads=[1, 1, 1, 1], strides=[2, 2])
    if weights is None:
        w = TensorProto(name="w", dims=[16, 3, 3, 3], data_type=TensorProto.FLOAT)
    else:
        w = numpy_helper.from_array(weights, "w")
    return helper.make_model(helper.make_graph([node], "net", [x], [y], [w]))


def shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in graph.tensors.items()}


class TestSources:
    def test_path_bytes_and_proto_read_alike(self, tmp_path: Path) -> None:
        proto = conv(np.ones((16, 3, 3, 3), np.float32))
        path = tmp_path / "conv.onnx"
        onnx.save(proto, path)
        graphs = [read(path), read(str(path)), read(path.read_bytes()), read(proto)]
        assert all(graph == graphs[0] for graph in graphs)
        assert graphs[0].tensors["y"].shape == (1, 16, 4, 4)  # (8 + 2*1 - 3) // 2 + 1 = 4

    def test_weights_may_be_absent_or_external(self) -> None:
        proto = conv()
        assert read(proto).tensors["w"].value is None
        proto.graph.initializer[0].data_location = TensorProto.EXTERNAL
        proto.graph.initializer[0].external_data.add(key="location", value="nowhere.bin")
        graph = read(proto.SerializeToString())
        assert graph.tensors["w"].constant
        assert graph.tensors["y"].shape == (1, 16, 4, 4)

    def test_a_proto_is_left_as_it_was(self) -> None:
        proto = conv(np.ones((16, 3, 3, 3), np.float32))
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
        before = proto.SerializeToString()
        read(proto)
        assert proto.SerializeToString() == before

    def test_large_weights_are_skipped_wherever_they_lie(self) -> None:
        weights = np.ones((100, 100), np.float32)  # 40 kB: above what is kept
        constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(weights))
        nodes = [constant, helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "c"], ["y"])]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 100])
        y = helper.make_empty_tensor_value_info("y")
        typed = helper.make_tensor("w", TensorProto.FLOAT, [100, 100], weights.reshape(-1))  # float_data, not raw
        proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [typed]))
        for source in (proto, proto.SerializeToString()):
            graph = read(source)
            assert graph.tensors["w"].shape == graph.tensors["c"].shape == (100, 100)
            assert graph.tensors["w"].value is None
            assert graph.tensors["c"].value is None
            assert graph.tensors["c"].constant
            assert graph.tensors["y"].shape == (2, 100)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "empty"),
            (b"this is a text file, not a model\n" * 20, "not an ONNX file"),
            (b"\x89PNG\r\n\x1a\n" + bytes(64), "not an ONNX file"),
            (bytes(range(256)) * 4, "not an ONNX file"),
        ],
    )
    def test_files_that_hold_no_model(self, tmp_path: Path, content: bytes, said: str) -> None:
        path = tmp_path / "broken.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=said) as caught:
            read(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
    def test_truncated(self, tmp_path: Path, kept: float) -> None:
        content = conv(np.ones((16, 3, 3, 3), np.float32)).SerializeToString()
        path = tmp_path / "short.onnx"
        path.write_bytes(content[: int(len(content) * kept)])
        with pytest.raises(ModelError, match=r"truncated|no ONNX graph"):
            read(path)

    def test_damaged_bytes_never_crash(self) -> None:
        content = model(TestConstants.TEXT).SerializeToString()
        random = np.random.default_rng(0)
        for _ in range(400):
            damaged = bytearray(content)
            for position in random.integers(0, len(content), 3):
                damaged[position] = random.integers(0, 256)
            with contextlib.suppress(LatpredError):  # anything else would be a crash
                read(bytes(damaged))

    def test_missing_file_folder_and_other_types(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="No such file"):
            read(tmp_path / "absent.onnx")
        with pytest.raises(ModelError, match="is a folder"):
            read(tmp_path)
        with pytest.raises(ModelError, match="no ONNX graph"):
            read(onnx.ModelProto())
        with pytest.raises(ModelError, match="got int"):
            read(3)  # type: ignore[arg-type]

    def test_every_prefix_of_a_model_fails_cleanly(self) -> None:
        content = conv().SerializeToString()
        for end in range(len(content)):
            try:
                read(content[:end])
            except (ModelError, ShapeError):
                continue
            pytest.fail(f"the first {end} of {len(content)} bytes were read as a model")


class TestStructure:
    def test_stale_shapes_in_the_file_are_not_believed(self) -> None:
        proto = conv()
        proto.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [9, 9]))
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [7, 7, 7, 7]))
        assert read(proto).tensors["y"].shape == (1, 16, 4, 4)

    def test_names_are_unique_and_never_empty(self) -> None:
        nodes = [
            helper.make_node("Relu", ["x"], ["a"], name="same"),
            helper.make_node("Relu", ["a"], ["b"], name="same"),
            helper.make_node("Relu", ["b"], ["c"], name="same_1"),
            helper.make_node("Relu", ["c"], ["d"]),
        ]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
        graph = read(helper.make_model(helper.make_graph(nodes, "g", [x], [helper.make_empty_tensor_value_info("d")])))
        names = [op.name for op in graph.ops]
        assert names[0] == "same"
        assert len(set(names)) == 4
        assert all(names)

    def test_nodes_out_of_order_are_sorted(self) -> None:
        last, first = helper.make_node("Relu", ["a"], ["y"], name="last"), helper.make_node("Tanh", ["x"], ["a"])
        nodes = [last, first]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
        graph = read(helper.make_model(helper.make_graph(nodes, "g", [x], [helper.make_empty_tensor_value_info("y")])))
        assert [op.name for op in graph.ops] == ["Tanh_0", "last"]
        assert graph.tensors["y"].shape == (2, 3)

    def test_circles_and_dangling_names_are_errors(self) -> None:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
        y = helper.make_empty_tensor_value_info("y")
        circle = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
        with pytest.raises(ModelError, match="circle"):
            read(helper.make_model(helper.make_graph(circle, "g", [x], [y])))
        dangling = [helper.make_node("Add", ["x", "nowhere"], ["y"])]
        with pytest.raises(ModelError, match="'nowhere', which nothing produces"):
            read(helper.make_model(helper.make_graph(dangling, "g", [x], [y])))
        with pytest.raises(ModelError, match="output 'y'"):
            read(helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "g", [x], [y])))

    def test_initializers_of_old_models_are_no_inputs(self) -> None:
        proto = conv()
        proto.ir_version = 3
        proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [16, 3, 3, 3]))
        graph = read(proto)
        assert graph.inputs == ("x",)
        assert graph.tensors["w"].constant
        assert graph.tensors["y"].shape == (1, 16, 4, 4)

    def test_attributes_are_plain_values(self) -> None:
        graph = read(
            model("""
            <ir_version: 8, opset_import: ["" : 17]>
            net (float[2,4] x) => (float[2,8] y)
            {
              shape = Constant <value_ints = [2, 8]> ()
              fill = ConstantOfShape <value = float[1] {1.5}> (shape)
              z = Concat <axis = 1> (x, x)
              y = Einsum <equation = "ij,ij->ij"> (fill, z)
            }""")
        )
        attributes = {op.op_type: op.attributes for op in graph.ops}
        assert attributes["Constant"] == {"value_ints": (2, 8)}
        assert attributes["ConstantOfShape"] == {"value": (1.5,)}
        assert attributes["Concat"] == {"axis": 1}
        assert attributes["Einsum"] == {"equation": "ij,ij->ij"}

    def test_model_local_functions_are_inlined(self) -> None:
        graph = read(
            model("""
            <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
            net (float[2,4] x) => (float[2,4] y) { y = local.Twice (x) }
            <domain: "local", opset_import: ["" : 17]>
            Twice (a) => (b) { h = Relu (a)  b = Add (h, h) }""")
        )
        assert [op.op_type for op in graph.ops] == ["Relu", "Add"]
        assert graph.tensors["y"].shape == (2, 4)


class TestConstants:
    TEXT = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2,6,4] x) => (float y, int64 size, float noise, float big)
    <float[6] scale = {1, 2, 3, 4, 5, 6}>
    {
      shape = Shape (x)
      zero = Constant <value = int64 {0}> ()
      batch = Gather (shape, zero)
      axis = Constant <value_ints = [0]> ()
      batches = Unsqueeze (batch, axis)
      rest = Constant <value_ints = [-1]> ()
      target = Concat <axis = 0> (batches, rest)
      y = Reshape (x, target)
      size = Size (x)
      noise = RandomNormalLike (scale)
      wide = Constant <value_ints = [100, 100]> ()
      big = ConstantOfShape (wide)
    }"""

    def test_shape_chains_fold(self) -> None:
        graph = read(model(self.TEXT))
        assert graph.tensors["target"].value is not None
        assert graph.tensors["target"].value.tolist() == [2, -1]
        assert graph.tensors["y"].shape == (2, 24)  # 6 * 4
        assert graph.tensors["size"].value == 48  # 2 * 6 * 4

    def test_what_hangs_on_no_activation_is_constant(self) -> None:
        tensors = read(model(self.TEXT)).tensors
        constant = {name for name, tensor in tensors.items() if tensor.constant}
        assert constant == {
            "scale", "shape", "zero", "batch", "axis", "batches", "rest", "target", "size", "wide", "big",
        }  # fmt: skip

    def test_large_constants_have_no_value(self) -> None:
        big = read(model(self.TEXT)).tensors["big"]
        assert (big.shape, big.value) == ((100, 100), None)

    def test_random_nodes_without_inputs_are_not_constant(self) -> None:
        node = helper.make_node("RandomNormal", [], ["y"], shape=[2, 3])
        graph = read(helper.make_model(helper.make_graph([node], "g", [], [helper.make_empty_tensor_value_info("y")])))
        assert (graph.tensors["y"].shape, graph.tensors["y"].constant) == ((2, 3), False)


class TestUnknownShapes:
    def test_data_dependent_reshape_is_named(self) -> None:
        proto = model("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[2,4] x, int64[2] target) => (float y)
        { h = Reshape (x, target)  y = Relu (h) }""")
        proto.graph.node[0].name = "culprit"
        with pytest.raises(ShapeError) as caught:
            read(proto)
        assert "Reshape 'culprit' (float32[2, 4], int64[2])" in str(caught.value)
        assert "Relu" not in str(caught.value)  # it only suffers from the first
        assert "\n" not in str(caught.value)

    def test_a_shape_whose_data_lie_elsewhere_is_said(self) -> None:
        proto = model("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[2,4] x) => (float y)
        { y = Reshape (x, target) }""")
        proto.graph.initializer.append(TensorProto(name="target", dims=[2], data_type=TensorProto.INT64))
        with pytest.raises(ShapeError, match=r"int64\[2\] whose data are not in the file"):
            read(proto)

    def test_many_are_counted(self) -> None:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
        nodes = [helper.make_node("Mystery", ["x"], [f"y{i}"], domain="made.up") for i in range(5)]
        outputs = [helper.make_empty_tensor_value_info(f"y{i}") for i in range(5)]
        with pytest.raises(ShapeError, match=r"made\.up\.Mystery .* and 2 more"):
            read(helper.make_model(helper.make_graph(nodes, "g", [x], outputs)))

    def test_upper_bounds_are_said(self) -> None:
        graph = read(
            model("""
            <ir_version: 8, opset_import: ["" : 17]>
            net (float[3,4] x) => (int64 y) { y = NonZero (x) }""")
        )
        assert graph.tensors["y"].shape == (2, 12)  # rank, 3 * 4 elements
        assert "upper bound" in graph.notices[0]


class TestRealModels:
    @pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda path: path.stem)
    def test_light_models_read_without_a_flag(self, path: Path) -> None:
        graph = read(path)
        touched = {name for op in walk(graph) for name in (*op.inputs, *op.outputs) if name}
        assert touched <= set(graph.tensors)
        assert graph.tensors[graph.outputs[0]].spec.elements == 1000  # ImageNet's classes

    def test_reading_needs_numpy_and_onnx_only(self) -> None:
        import subprocess

        code = "import sys, latpred.graph; print(*sorted(m for m in sys.modules if '.' not in m))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        loaded = set(done.stdout.split())
        assert not loaded & {"onnxruntime", "pandas", "lightgbm", "sklearn", "scipy", "rich", "joblib"}
