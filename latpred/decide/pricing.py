"""What pieces cost on a device: each predicted as the graph that runs, equal ones once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import onnx

from latpred.calibration import Launches, parts_of
from latpred.decide.costs import Duration
from latpred.decide.options import Choice, altered
from latpred.estimators import kernel_key
from latpred.fingerprint import fingerprint
from latpred.graph import read
from latpred.prediction import Prediction
from latpred.predictor import Predictor
from latpred.reading.nodes import rename
from latpred.surgery.weights import bare
from latpred.surgery.wiring import Wiring, declared, wired
from latpred.tensors import DTYPE_CODES

__all__ = ["NOTHING", "Price", "Pricer", "activation_bytes", "weight_bytes", "without_weights"]

KEPT_ELEMENTS = 4096  # of stored tensors: scales, zero points and shapes, that kernels depend on, are smaller
COVERAGE = 0.9  # where the predictor's interval is taken for a standard deviation
MULTIPLE = NormalDist().inv_cdf((1 + COVERAGE) / 2)


@dataclass(frozen=True, slots=True)
class Price:
    """One piece.

    Attributes
    ----------
    time : Duration
        Latency in s, its start included, and the variance of the error that is its own, in s^2.
    start_s : float
        The part of it that starting one more graph among others takes, beyond what predictions of networks hold.
    shared_spread : float
        Relative standard deviation of the error that it shares with other pieces.
    peak_bytes : int
        Activations that live at once, and the weights that it reads.
    weight_bytes : int
    cycle_bytes : int
        What passes from one run of the piece to the next.
    """

    time: Duration
    start_s: float = 0.0
    shared_spread: float = 0.0
    peak_bytes: int = 0
    weight_bytes: int = 0
    cycle_bytes: int = 0


NOTHING = Price(Duration(0.0))


class Pricer:
    """Prices of pieces on a predictor's device; remembers what it has seen under whatever names.

    Parameters
    ----------
    predictor : Predictor
    cycle_bytes : int
        What passes from one run of a piece to the next: all that the whole network touches. A piece that ran by
        itself would find its weights in a cache that the rest of the network has emptied.

    Attributes
    ----------
    predicted : int
        Pieces that were predicted: others were equal to one of them.
    """

    def __init__(self, predictor: Predictor, cycle_bytes: int = 0) -> None:
        self.predictor = predictor
        self.cycle_bytes = cycle_bytes
        self.predicted = 0
        self._prices: dict[bytes, Price] = {}
        self._altered: dict[tuple[bytes, Choice], Price] = {}

    def of(self, piece: onnx.ModelProto) -> Price:
        """Price of a piece as it is."""
        canonical = _canonical(piece)
        key = fingerprint(canonical)
        price = self._prices.get(key)
        if price is None:
            self.predicted += 1
            price = _price(self.predictor, canonical, self.cycle_bytes)
            self._prices[key] = price
        return price

    def altered(self, piece: onnx.ModelProto, choices: Sequence[Choice]) -> list[Price]:
        """Prices of what runs in a region's place, one a choice; equal regions are rewritten once.

        Raises
        ------
        SurgeryError
            Where the region cannot be altered so.
        """
        key = fingerprint(_canonical(piece))
        for choice in choices:
            if (key, choice) not in self._altered:
                rewritten = altered(piece, choice)
                self._altered[key, choice] = NOTHING if rewritten is None else self.of(rewritten)
        return [self._altered[key, choice] for choice in choices]


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with dims only of large stored tensors: latency does not hang on them, and pieces are light.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx import helper, numpy_helper
    >>> x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 99]) for n in "xy")
    >>> w = numpy_helper.from_array(np.ones((99, 99), np.float32), "w")
    >>> model = helper.make_model(helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [w]))
    >>> model.ByteSize() > 99 * 99 * 4 > without_weights(model).ByteSize()
    True
    """  # noqa: E501
    stored = [
        tensor if _elements(tensor) <= KEPT_ELEMENTS else bare(tensor.name, tensor.dims, tensor.data_type)
        for tensor in model.graph.initializer
    ]
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.value_info.extend(model.graph.value_info)
    light.graph.initializer.extend(stored)
    return light


def activation_bytes(wiring: Wiring) -> int:
    """Most bytes of activations that live at once while the nodes run in order, each result kept to its last use.

    Examples
    --------
    >>> from onnx import helper
    >>> x, t, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 25]) for n in "xty")
    >>> nodes = [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Add", ["t", "t"], ["y"])]
    >>> activation_bytes(wired(helper.make_model(helper.make_graph(nodes, "g", [x], [y], value_info=[t]))))  # 2 x 100
    200
    """
    last = {name: users[-1] for name, users in wiring.users.items()}
    last |= dict.fromkeys(wiring.outputs, len(wiring.nodes))
    live = {name: _bytes_of(wiring, name) for name in wiring.inputs}
    most = sum(live.values())
    for index, node in enumerate(wiring.nodes):
        live |= {name: _bytes_of(wiring, name) for name in node.output if name}
        most = max(most, sum(live.values()))
        for name in [name for name in live if last.get(name, -1) <= index]:
            del live[name]
    return most


def weight_bytes(wiring: Wiring) -> int:
    """Bytes of all stored tensors."""
    return sum(wiring.spec(name).size_bytes for name in wiring.stored)


def _bytes_of(wiring: Wiring, name: str) -> int:
    info = wiring.infos.get(name)
    known = info is not None and info.type.HasField("tensor_type")
    return wiring.spec(name).size_bytes if known and info is not None and _typed(info) else 0


def _typed(info: onnx.ValueInfoProto) -> bool:
    return info.type.tensor_type.elem_type in DTYPE_CODES.values()


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _canonical(piece: onnx.ModelProto) -> onnx.ModelProto:
    """The piece with names by order of appearance, so that equal pieces are equal protos."""
    copy = onnx.ModelProto()
    copy.CopyFrom(piece)
    graph = copy.graph
    names: dict[str, str] = {}
    for value in graph.input:
        names.setdefault(value.name, f"t{len(names)}")
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        node.doc_string = ""
        del node.metadata_props[:]
        for name in (*node.input, *node.output):
            if name:
                names.setdefault(name, f"t{len(names)}")
    rename(graph, names)
    for value in graph.input:
        value.name = names[value.name]
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
    ordered = sorted(graph.initializer, key=lambda stored: stored.name)
    del graph.initializer[:]
    graph.initializer.extend(ordered)
    graph.name = "piece"
    return copy


def _declare_all(piece: onnx.ModelProto) -> None:
    """Write the shapes that surgery left for the runtime to infer into the piece, in place."""
    known = {value.name for value in (*piece.graph.value_info, *piece.graph.output)}
    unknown = [name for node in piece.graph.node for name in node.output if name and name not in known]
    if unknown:
        tensors = read(piece).tensors
        piece.graph.value_info.extend(
            declared(name, tensors[name].spec) for name in unknown if tensors[name].dtype in DTYPE_CODES
        )


def _price(predictor: Predictor, piece: onnx.ModelProto, cycle_bytes: int) -> Price:
    _declare_all(piece)
    wiring = wired(piece)
    weights = weight_bytes(wiring)
    peak = activation_bytes(wiring) + weights
    if not wiring.nodes:
        return Price(Duration(0.0), 0.0, 0.0, peak, weights, cycle_bytes)
    prediction = predictor.predict(piece, cycle_bytes=cycle_bytes)
    own, shared = _spreads(predictor, prediction)
    start_s = predictor.estimator.device.start_s(cycle_bytes, peak) if cycle_bytes else 0.0
    latency_s = prediction.latency_s + start_s
    passing = max((entry.kernel.context.cycle_bytes for entry in prediction.kernels), default=0)
    return Price(Duration(latency_s, (own * latency_s) ** 2), start_s, shared, peak, weights, passing)


def _spreads(predictor: Predictor, prediction: Prediction) -> tuple[float, float]:
    """Relative standard deviations of the error: what is the piece's own, and what all pieces of a device share.

    The parts of the interval that fall with the number of shapes and launches are a piece's own; the floor, and what
    all shapes of a kind are off by together, is shared.
    """
    calibration = predictor.estimator.calibration
    kernels = [entry.kernel for entry in prediction.kernels]
    parts = parts_of(
        calibration.kinds,
        [kernel.kind for kernel in kernels],
        np.array([entry.latency_s for entry in prediction.kernels]),
        [hash(kernel_key(kernel)) for kernel in kernels],
        Launches.of(kernels).number,
    )
    unit = calibration.multiple(COVERAGE) / MULTIPLE
    own = calibration.spread.of(parts._replace(shared=0.0)) ** 2 - calibration.spread.floor**2
    shared = calibration.spread.of(parts._replace(own=0.0, launches=0.0))
    return unit * max(own, 0.0) ** 0.5, unit * shared
