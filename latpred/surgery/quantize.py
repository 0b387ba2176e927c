"""A region in eight-bit integers: quantize at its start, dequantize at its end.

Convolutions, products with a constant matrix, and sums of what convolutions make get QuantizeLinear and
DequantizeLinear around them, as onnxruntime's own quantizer writes them, and the runtime runs integer kernels instead.
Activations are uint8 with one scale a tensor, weights int8 with one scale a channel and zero points of 0. What products
make stays floating, and so does everything else, products of two activations included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from latpred.errors import SurgeryError
from latpred.reading.nodes import copied
from latpred.surgery.affine import folded_into_weights
from latpred.surgery.channels import attributes_of
from latpred.surgery.weights import bare, constant, values_of
from latpred.surgery.wiring import Wiring, assembled, declared, wired
from latpred.tensors import Array, Spec

__all__ = ["DEFAULT_RANGE", "Range", "calibrated", "can_quantize", "in_int8", "quantized_tensors"]

Range = tuple[float, float]

DEFAULT_RANGE: Range = (-4.0, 4.0)
OLDEST_OPSET = 13  # scales for each channel
UNSIGNED_STEPS, SIGNED_LIMIT = 255, 127
UNKNOWN_SCALE = 1 / SIGNED_LIMIT  # of weights that are missing: as if the largest were 1
CLAMPS = frozenset({"Relu", "Clip"})  # behind a convolution, quantizing does their work
SMALLEST_SCALE = 1e-8


@dataclass(frozen=True, slots=True)
class _Scheme:
    """What is quantized in a piece; nodes are counted as in the piece."""

    operators: tuple[int, ...]  # convolutions, products and sums in integers
    tensors: tuple[str, ...]  # activations that are rounded
    results: frozenset[str]  # those of them that an integer operator makes, so that all read the rounded values


def can_quantize(piece: onnx.ModelProto | Wiring) -> str | None:
    """Why a piece cannot run in int8; None where it can.

    Examples
    --------
    >>> x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8]) for n in "xy")
    >>> graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    >>> can_quantize(helper.make_model(graph))
    'it has no convolution and no product with a constant matrix of 32-bit floats'
    """
    wiring = wired(piece)
    if wiring.opset < OLDEST_OPSET:
        return f"its opset is {wiring.opset}, below {OLDEST_OPSET}"
    if not any(_is_weighted(wiring, index) for index in range(len(wiring.nodes))):
        return "it has no convolution and no product with a constant matrix of 32-bit floats"
    return None


def quantized_tensors(piece: onnx.ModelProto) -> tuple[str, ...]:
    """Activations of which `in_int8` needs the range."""
    return _scheme(wired(folded_into_weights(piece))).tensors


def calibrated(piece: onnx.ModelProto, samples: Iterable[Mapping[str, Array]]) -> dict[str, Range]:
    """Least and largest value of each tensor that is rounded, over samples of the piece's inputs.

    Parameters
    ----------
    piece : ModelProto
        With its weights.
    samples : iterable of mappings
        Input name -> array.

    Raises
    ------
    SurgeryError
        Where there are no samples.
    """
    import onnxruntime

    whole = folded_into_weights(piece)
    wiring = wired(whole)
    names = list(_scheme(wiring).tensors)
    del whole.graph.output[:]
    whole.graph.output.extend(wiring.infos[name] for name in names if name not in wiring.inputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    asked = [value.name for value in session.get_outputs()]
    ranges: dict[str, Range] = {}
    for sample in samples:
        made = dict(sample) | (dict(zip(asked, session.run(asked, dict(sample)), strict=True)) if asked else {})
        for name in names:
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = min(low, float(made[name].min())), max(high, float(made[name].max()))
    if not ranges:
        raise SurgeryError("at least one sample is needed to calibrate, but none came: give inputs of the piece")
    return ranges


def in_int8(piece: onnx.ModelProto, ranges: Mapping[str, Range] | None = None) -> onnx.ModelProto:
    """The piece with integer kernels inside and floating ends.

    Parameters
    ----------
    piece : ModelProto
        Weights that are missing stay missing: latency does not hang on them.
    ranges : mapping of str to (least, largest), optional
        Of each of `quantized_tensors`, as `calibrated` finds them. Without it, `DEFAULT_RANGE`, or its upper half
        behind a clamp: good enough to time the piece, not to use what it computes.

    Raises
    ------
    SurgeryError
        Where nothing can run in integers, or a range is missing or empty.
    """
    reason = can_quantize(piece)
    if reason is not None:
        raise SurgeryError(f"a region with convolutions or products of opset {OLDEST_OPSET} or later is needed, but "
                           f"{reason}: leave it floating")  # fmt: skip
    whole = folded_into_weights(piece)
    wiring = wired(whole)
    scheme = _scheme(wiring)
    writer = _Writer(wiring, scheme, ranges)
    nodes = writer.nodes_of_all()
    stored = [*whole.graph.initializer, *writer.stored.values()]
    name = f"{piece.graph.name} in int8"
    infos = {**wiring.infos, **writer.infos}
    return assembled(whole, name, nodes, whole.graph.input, whole.graph.output, stored, infos)


def _scheme(wiring: Wiring) -> _Scheme:
    operators: list[int] = []
    tensors: dict[str, None] = {}
    results: set[str] = set()
    for index, node in enumerate(wiring.nodes):
        if _is_weighted(wiring, index):
            operators.append(index)
            tensors[node.input[0]] = None
            if node.op_type != "Conv":
                continue
        elif node.op_type == "Add" and all(
            name in results or (name in wiring.inputs and name in tensors) for name in node.input
        ):
            operators.append(index)
        else:
            continue
        results.add(_result(wiring, index))
        tensors[_result(wiring, index)] = None
    return _Scheme(tuple(operators), tuple(tensors), frozenset(results))


def _is_weighted(wiring: Wiring, index: int) -> bool:
    """Whether a node is a convolution, or a product with a constant matrix, that has an integer kernel."""
    node = wiring.nodes[index]
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return False
    if any(name and name not in wiring.stored for name in node.input[1:]) or node.input[0] in wiring.stored:
        return False
    attributes = attributes_of(node)
    plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
    matrix = wiring.spec(node.input[1])
    if not plain or matrix.dtype != "float32" or (node.op_type != "Conv" and len(matrix.shape) != 2):
        return False
    channels = matrix.shape[_channel_axis(node)]
    return len(node.input) < 3 or not node.input[2] or wiring.spec(node.input[2]).shape == (channels,)


def _channel_axis(node: onnx.NodeProto) -> int:
    """Where the channels that a node makes lie in its weights."""
    return 0 if node.op_type == "Conv" or attributes_of(node).get("transB", 0) else 1


def _result(wiring: Wiring, index: int) -> str:
    """What is rounded behind a convolution or a sum: its output, or that of the only op behind it, if that clamps."""
    name: str = wiring.nodes[index].output[0]
    users = wiring.users.get(name, ())
    if len(users) == 1 and name not in wiring.outputs and wiring.nodes[users[0]].op_type in CLAMPS:
        name = wiring.nodes[users[0]].output[0]
    return name


class _Writer:
    """The rewritten graph while it grows."""

    def __init__(self, wiring: Wiring, scheme: _Scheme, ranges: Mapping[str, Range] | None) -> None:
        self.wiring = wiring
        self.scheme = scheme
        if ranges is None:
            ranges = {name: _default(wiring, name) for name in scheme.tensors}
        self.scales = {name: _scale(name, ranges) for name in scheme.tensors}
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, TensorProto] = {}
        self.infos: dict[str, onnx.ValueInfoProto] = {}

    def nodes_of_all(self) -> list[onnx.NodeProto]:
        for name in self.wiring.inputs:
            self.round(name)
        for index, node in enumerate(self.wiring.nodes):
            rewritten = copied(node)
            integer = index in self.scheme.operators
            for place, name in enumerate(node.input):
                if name in self.scales and (integer or name in self.scheme.results):
                    rewritten.input[place] = f"{name}:rounded"
            if integer and node.op_type != "Add":
                self.quantize_weights(rewritten)
            for place, name in enumerate(node.output):
                if name in self.wiring.outputs and name in self.scheme.results:
                    rewritten.output[place] = f"{name}:raw"
            self.nodes.append(rewritten)
            for name in node.output:
                self.round(name)
        return self.nodes

    def round(self, name: str) -> None:
        """QuantizeLinear and DequantizeLinear behind a tensor, if it is one to be rounded."""
        if name not in self.scales:
            return
        scale, zero = self.scales[name]
        is_end = name in self.wiring.outputs and name in self.scheme.results
        raw, rounded = (f"{name}:raw", name) if is_end else (name, f"{name}:rounded")
        self.store(constant(f"{name}:scale", np.array(scale, np.float32)))
        self.store(constant(f"{name}:zero", np.array(zero, np.uint8)))
        self.pair(raw, rounded, name)
        if is_end and name in self.wiring.users:
            self.nodes.append(
                helper.make_node(
                    "DequantizeLinear", [f"{name}:integers", f"{name}:scale", f"{name}:zero"], [f"{name}:rounded"],
                    f"{name}/dequantize again",
                )
            )  # fmt: skip

    def pair(self, raw: str, rounded: str, name: str) -> None:
        parameters = [f"{name}:scale", f"{name}:zero"]
        shape = self.wiring.spec(name).shape
        self.declare(f"{name}:integers", shape, "uint8")
        self.declare(raw, shape, "float32")
        self.declare(f"{name}:rounded", shape, "float32")
        self.nodes += [
            helper.make_node("QuantizeLinear", [raw, *parameters], [f"{name}:integers"], f"{name}/quantize"),
            helper.make_node("DequantizeLinear", [f"{name}:integers", *parameters], [rounded], f"{name}/dequantize"),
        ]

    def quantize_weights(self, node: onnx.NodeProto) -> None:
        """Put integers with a scale a channel in the place of a node's weights and bias, in place."""
        weight = self.wiring.stored[node.input[1]]
        axis = _channel_axis(node)
        channels = weight.dims[axis]
        values = values_of(weight)
        scales = np.full(channels, UNKNOWN_SCALE)
        integers: Array | None = None
        if values is not None:
            rest = tuple(other for other in range(values.ndim) if other != axis)
            scales = np.maximum(np.abs(values).max(axis=rest) / SIGNED_LIMIT, SMALLEST_SCALE)
            steps = values / np.expand_dims(scales, rest)
            integers = np.clip(np.rint(steps), -SIGNED_LIMIT, SIGNED_LIMIT).astype(np.int8)
        node.input[1] = self.dequantized(node.name, weight, scales, axis, integers, np.int8)
        if len(node.input) > 2 and node.input[2]:
            bias = self.wiring.stored[node.input[2]]
            products = scales * self.scales[node.input[0].removesuffix(":rounded")][0]
            known = values_of(bias)
            sums = None if known is None or values is None else np.rint(known / products).astype(np.int32)
            node.input[2] = self.dequantized(node.name, bias, products, 0, sums, np.int32)

    def dequantized(
        self, owner: str, stored: TensorProto, scales: Array, axis: int, integers: Array | None, dtype: type
    ) -> str:
        """The name of a constant that is stored as integers and read through DequantizeLinear."""
        name = f"{owner}:{stored.name}"
        code = int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        whole = bare(f"{name}:integers", stored.dims, code)
        self.store(whole if integers is None else constant(f"{name}:integers", integers))
        self.store(constant(f"{name}:scale", np.asarray(scales, np.float32)))
        self.store(constant(f"{name}:zero", np.zeros(len(scales), dtype)))
        self.declare(f"{name}:rounded", tuple(stored.dims), "float32")
        self.nodes.append(
            helper.make_node(
                "DequantizeLinear", [f"{name}:integers", f"{name}:scale", f"{name}:zero"], [f"{name}:rounded"],
                f"{name}/dequantize", axis=axis,
            )
        )  # fmt: skip
        return f"{name}:rounded"

    def declare(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        self.infos[name] = declared(name, Spec(shape, dtype))

    def store(self, tensor: TensorProto) -> None:
        self.stored[tensor.name] = tensor


def _default(wiring: Wiring, name: str) -> Range:
    """The stated range; of what is clamped, its upper half, so that the runtime can leave the clamping to rounding."""
    maker = wiring.makers.get(name)
    clamped = maker is not None and wiring.nodes[maker].op_type in CLAMPS
    return (0.0, DEFAULT_RANGE[1]) if clamped else DEFAULT_RANGE


def _scale(name: str, ranges: Mapping[str, Range]) -> tuple[float, int]:
    """Scale and zero point of a uint8 tensor whose range is made to hold 0, so that 0 is exact."""
    if name not in ranges:
        raise SurgeryError(f"a range for each of `quantized_tensors` is needed, but {name!r} has none: calibrate the "
                           "piece as it is")  # fmt: skip
    low, high = ranges[name]
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise SurgeryError(f"a finite range (least, largest) is needed, but {name!r} has ({low}, {high}): calibrate it")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / UNSIGNED_STEPS, SMALLEST_SCALE)
    return scale, round(-low / scale)
