"""Writes ONNX graphs node by node; every shape is inferred as the node is added, every weight is scaled.

Weights are standard normal over the square root of their fan-in, so that activations keep a magnitude near one
through any depth: nothing becomes denormal, infinite or all zero, which would change what a kernel costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod, sqrt
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.shape_inference import infer_node_outputs

__all__ = ["MAX_WEIGHT_BYTES", "GraphBuilder", "Operand", "Style", "Value"]

T = TypeVar("T")

MAX_WEIGHT_BYTES = 150_000_000  # of one graph, roughly
POOL_ELEMENTS = 1 << 21
SLOW_RESIZES = {"linear": 300, "cubic": 3000}  # worth so many MACs an output element
INFERENCE_LIMIT = 4096  # elements; larger constants say nothing about shapes


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor in the making."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


Operand = Value | float | int


@dataclass(frozen=True, slots=True)
class Style:
    """How the exporter that a graph imitates writes things down.

    `opset` 11-17 stands for tracing exporters, 18 and more for the newer ones.
    """

    opset: int = 17
    linear: str = "matmul"  # of inputs beyond two dims: "matmul" + Add, or "gemm" between two Reshapes
    fold_batch_norm: bool = True  # into the convolution before it
    constant_nodes: bool = False  # small constants as Constant nodes, else as initializers
    layer_norm: str = "operator"  # or "decomposed"
    gelu: str = "erf"  # or "operator" (opset 20)
    identity_share: float = 0.0  # of weights that pass an Identity
    layer_names: bool = True  # "/stages.0/Conv" rather than "node_Conv_12"


class GraphBuilder:
    """Nodes, weights and inputs of one graph.

    Parameters
    ----------
    rng
        Source of every random choice: equal states give equal graphs.
    style
        How things are written down.

    Examples
    --------
    >>> builder = GraphBuilder(np.random.default_rng(0))
    >>> x = builder.input((1, 3, 8, 8))
    >>> y = builder.op("Conv", x, builder.weight((16, 3, 3, 3)), strides=[2, 2], pads=[1, 1, 1, 1])
    >>> y.shape
    (1, 16, 4, 4)
    >>> builder.macs == 16 * 4 * 4 * 3 * 3 * 3
    True
    """

    def __init__(self, rng: np.random.Generator, style: Style | None = None) -> None:
        self.rng = rng
        self.style = style or Style()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[Value] = []
        self.integer_limits: dict[str, int] = {}
        self.scope = ""
        self.macs = 0
        self.traffic_bytes = 0  # of all nodes, unfused: an upper bound
        self.weight_bytes = 0
        self._small: dict[str, onnx.TensorProto] = {}
        self._types: dict[str, Value] = {}
        self._used: set[str] = set()
        self._opsets = [helper.make_opsetid("", self.style.opset)]

    # ---- choices -------------------------------------------------------------------------------------------------

    def choose(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the options, with probabilities proportional to `weights`."""
        if weights is None:
            return options[int(self.rng.integers(len(options)))]
        share = np.cumsum(weights)
        return options[int(np.searchsorted(share, self.rng.random() * share[-1], side="right"))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def between(self, low: float, high: float, multiple: int = 1) -> int:
        """A log-uniform integer in [low, high], rounded to a multiple (at least one multiple)."""
        value = float(np.exp(self.rng.uniform(np.log(low), np.log(high))))
        return max(multiple, round(value / multiple) * multiple)

    # ---- tensors -------------------------------------------------------------------------------------------------

    def input(self, shape: Sequence[int], dtype: str = "float32", limit: int = 0) -> Value:
        """A graph input; integers are drawn below `limit`."""
        value = self._remember(Value(f"input_{len(self.inputs)}", tuple(shape), dtype))
        self.inputs.append(value)
        if limit:
            self.integer_limits[value.name] = limit
        return value

    def weight(self, shape: Sequence[int], scale: float | None = None, mean: float = 0.0) -> Value:
        """Random float32 weights with the standard deviation `scale`, by default 1 / sqrt(fan-in).

        The fan-in of a convolution's (out, in, ...) weights is all but the first dim, that of a matrix its first.
        """
        shape = tuple(shape)
        if scale is None:
            fan_in = prod(shape[1:]) if len(shape) > 2 else shape[0]
            scale = 1.0 / sqrt(max(1, fan_in))
        size = prod(shape)
        pool = _pool()
        data = np.empty(size, np.float32)
        start = int(self.rng.integers(pool.size))
        filled = 0
        while filled < size:
            part = pool[start : start + size - filled]
            np.multiply(part, np.float32(scale), out=data[filled : filled + part.size])
            filled, start = filled + part.size, 0
        if mean:
            data += np.float32(mean)
        value = self.initializer(data.reshape(shape))
        if self.style.identity_share and self.chance(self.style.identity_share):
            return self.op("Identity", value)
        return value

    def initializer(self, array: np.ndarray) -> Value:
        """A stored constant."""
        array = np.asarray(array, order="C")
        name = self._name("weight")
        tensor = numpy_helper.from_array(array, name)
        self.initializers.append(tensor)
        self.weight_bytes += array.nbytes
        if array.size <= INFERENCE_LIMIT:
            self._small[name] = tensor
        return self._remember(Value(name, array.shape, str(array.dtype)))

    def constant(self, array: Any, dtype: str = "int64") -> Value:
        """A small constant, as a Constant node or an initializer, as the style wants it."""
        array = np.asarray(array, dtype)
        if not self.style.constant_nodes:
            return self.initializer(array)
        name = self._name("Constant_output")
        tensor = numpy_helper.from_array(array, name)
        self.nodes.append(helper.make_node("Constant", [], [name], self._name("Constant"), value=tensor))
        self._small[name] = tensor
        return self._remember(Value(name, array.shape, str(array.dtype)))

    # ---- nodes ---------------------------------------------------------------------------------------------------

    def op(self, op_type: str, *inputs: Operand | None, **attributes: Any) -> Value:
        """Add a node with one output; numbers become constants of the first numeric input's dtype, None is absent."""
        return self.multi(op_type, *inputs, outputs=1, **attributes)[0]

    def multi(self, op_type: str, *inputs: Operand | None, outputs: int, **attributes: Any) -> tuple[Value, ...]:
        """Add a node with several outputs.

        Raises
        ------
        ValueError
            Where the output's shape cannot be inferred: a template that draws such a node is wrong.
        """
        dtype = next((v.dtype for v in inputs if isinstance(v, Value) and v.dtype != "bool"), "float32")
        operands = [v if v is None or isinstance(v, Value) else self.constant(v, dtype) for v in inputs]
        name = self._name(op_type)
        results = [f"{name}_output_{i}" for i in range(outputs)]
        node = helper.make_node(op_type, [v.name if v else "" for v in operands], results, name, **attributes)
        present = [v for v in operands if v]
        types = {v.name: _type(v.shape, v.dtype) for v in present}
        data = {v.name: self._small[v.name] for v in present if v.name in self._small}
        try:
            inferred = infer_node_outputs(
                onnx.defs.get_schema(op_type, self.style.opset), node, types, data, opset_imports=self._opsets
            )
            values = tuple(_value(result, inferred[result]) for result in results)
        except (KeyError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
            raise ValueError(f"{op_type} of {[(v.shape, v.dtype) for v in present]} {attributes}: {error}") from error
        self.nodes.append(node)
        self._count(op_type, present, values, attributes)
        for value in values:
            self._remember(value)
        return values

    def _count(
        self, op_type: str, inputs: Sequence[Value], outputs: Sequence[Value], attributes: Mapping[str, Any]
    ) -> None:
        """Rough cost, to bound how long a composite runs."""
        sizes = [prod(v.shape) for v in outputs]
        if op_type in ("Conv", "ConvInteger"):
            self.macs += sizes[0] * prod(inputs[1].shape[1:])
        elif op_type == "ConvTranspose":
            self.macs += prod(inputs[0].shape) * prod(inputs[1].shape[1:])
        elif op_type in ("MatMul", "MatMulInteger"):
            self.macs += sizes[0] * inputs[0].shape[-1]
        elif op_type == "Gemm":
            self.macs += sizes[0] * inputs[0].shape[0 if attributes.get("transA") else 1]
        elif op_type in ("LSTM", "GRU", "RNN"):
            steps, batch = inputs[0].shape[:2]
            self.macs += steps * batch * (prod(inputs[1].shape) + prod(inputs[2].shape))
        elif op_type == "Einsum":
            letters = attributes["equation"].split("->")[0].replace(",", "")
            lengths = dict(zip(letters, (n for v in inputs for n in v.shape), strict=True))
            self.macs += prod(lengths.values())
        elif op_type == "Resize":
            self.macs += sizes[0] * SLOW_RESIZES.get(attributes.get("mode", "nearest"), 50)
        self.traffic_bytes += 4 * (sum(sizes) + sum(prod(v.shape) for v in inputs))

    # ---- the result ----------------------------------------------------------------------------------------------

    @property
    def estimated_s(self) -> float:
        """A guess at one inference on one current core: 100 GFLOP/s, 12 GB/s, 4 us a node."""
        return 2 * self.macs / 100e9 + self.traffic_bytes / 12e9 + 4e-6 * len(self.nodes)

    def model(self, name: str = "composite") -> onnx.ModelProto:
        """The finished model; every tensor that nothing reads is an output, so that nothing is optimised away."""
        read = {name for node in self.nodes for name in node.input}
        outputs = [
            self._types[result]
            for node in self.nodes
            if node.op_type != "Constant"
            for result in node.output
            if result not in read
        ]
        used = [t for t in self.initializers if t.name in read]
        graph = helper.make_graph(
            self.nodes,
            name,
            [_value_info(v) for v in self.inputs if v.name in read],
            [_value_info(v) for v in outputs],
            used,
        )
        ir_version = 8 if self.style.opset <= 17 else 9 if self.style.opset <= 20 else 10
        return helper.make_model(graph, opset_imports=self._opsets, ir_version=ir_version, producer_name="latpred")

    def _remember(self, value: Value) -> Value:
        self._types[value.name] = value
        return value

    def _name(self, stem: str) -> str:
        base = f"/{self.scope}/{stem}" if self.style.layer_names else f"node_{stem}"
        name, count = base, 0
        while name in self._used:
            count += 1
            name = f"{base}_{len(self._used) if count == 1 else len(self._used) + count}"
        self._used.add(name)
        return name


@lru_cache(maxsize=1)
def _pool() -> np.ndarray:
    """Standard normal numbers that all weights are cut from."""
    return np.random.default_rng(20).standard_normal(POOL_ELEMENTS, np.float32)


def _type(shape: tuple[int, ...], dtype: str) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(_code(dtype), shape)


@lru_cache
def _code(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _value(name: str, inferred: onnx.TypeProto) -> Value:
    tensor = inferred.tensor_type
    if tensor.elem_type == TensorProto.UNDEFINED or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        raise ValueError(f"{name}: the shape is not known before the graph runs")
    shape = tuple(d.dim_value for d in tensor.shape.dim)
    return Value(name, shape, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)))


def _value_info(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, _code(value.dtype), value.shape)
