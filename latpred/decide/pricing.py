"""What pieces cost on a device: each predicted as the graph that runs, equal ones once, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np

from latpred.calibration import Launches, parts_of
from latpred.decide.costs import Duration
from latpred.estimators import kernel_key
from latpred.graph import Graph, Op, captured
from latpred.prediction import Prediction
from latpred.predictor import Predictor

__all__ = ["NOTHING", "Price", "Pricer", "activation_bytes", "priced", "start_s", "weight_bytes"]

COVERAGE = 0.9  # where the predictor's interval is taken for a standard deviation
MULTIPLE = NormalDist().inv_cdf((1 + COVERAGE) / 2)


@dataclass(frozen=True, slots=True)
class Price:
    """One piece.

    Attributes
    ----------
    time : Duration
        Latency in s, its start included, and the variance of the error that is its own, in s^2.
    shared_spread : float
        Relative standard deviation of the error that it shares with other pieces.
    peak_bytes : int
        Activations that live at once, and the weights that it reads.
    weight_bytes : int
    cycle_bytes : int
        What passes from one run of the piece to the next.
    """

    time: Duration
    shared_spread: float = 0.0
    peak_bytes: int = 0
    weight_bytes: int = 0
    cycle_bytes: int = 0

    @property
    def spread(self) -> float:
        """Relative standard deviation of all of its error."""
        own_s2 = self.time.variance_s2
        return sqrt(own_s2 / self.time.mean_s**2 + self.shared_spread**2) if own_s2 else self.shared_spread


NOTHING = Price(Duration(0.0))


class Pricer:
    """Prices of graphs on a predictor's device, by a key: equal keys stand for graphs that cost the same.

    Parameters
    ----------
    predictor : Predictor
    cycle_bytes : int
        What passes from one run of a piece to the next: all that the whole network touches. A piece that ran by
        itself would find its weights in a cache that the rest of the network has emptied.
    """

    def __init__(self, predictor: Predictor, cycle_bytes: int = 0) -> None:
        self.predictor = predictor
        self.cycle_bytes = cycle_bytes
        self._prices: dict[Hashable, Price] = {}
        self._waiting: dict[Hashable, Graph] = {}

    def expect(self, key: Hashable, graph: Callable[[], Graph | None]) -> None:
        """Say that a price will be asked for; `graph` is called for keys that are new, and None costs nothing."""
        if key in self._prices or key in self._waiting:
            return
        made = graph()
        if made is None:
            self._prices[key] = NOTHING
        else:
            self._waiting[key] = made

    def of(self, key: Hashable) -> Price:
        """Price of a graph that was expected; all that wait are predicted together."""
        if key in self._waiting:
            graphs = list(self._waiting.values())
            self._prices.update(zip(self._waiting, priced(self.predictor, graphs, self.cycle_bytes), strict=True))
            self._waiting.clear()
        return self._prices[key]


def priced(predictor: Predictor, graphs: Sequence[Graph], cycle_bytes: int = 0) -> list[Price]:
    """Prices of graphs, predicted together; `cycle_bytes` as of `Pricer`."""
    predictions = predictor.predict_graphs(graphs, cycle_bytes=cycle_bytes)
    return [_price(predictor, *one, cycle_bytes) for one in zip(graphs, predictions, strict=True)]


def start_s(predictor: Predictor, cycle_bytes: int, peak_bytes: int) -> float:
    """What starting one more graph among others takes, in s, beyond what predictions of networks hold."""
    return predictor.estimator.device.start_s(cycle_bytes, peak_bytes) if cycle_bytes else 0.0


def _price(predictor: Predictor, graph: Graph, prediction: Prediction, cycle_bytes: int) -> Price:
    weights = weight_bytes(graph)
    peak = activation_bytes(graph) + weights
    if not graph.ops:
        return Price(Duration(0.0), 0.0, peak, weights, cycle_bytes)
    own, shared = _spreads(predictor, prediction)
    latency_s = prediction.latency_s + start_s(predictor, cycle_bytes, peak)
    passing = max((entry.kernel.context.cycle_bytes for entry in prediction.kernels), default=0)
    return Price(Duration(latency_s, (own * latency_s) ** 2), shared, peak, weights, passing)


def activation_bytes(graph: Graph) -> int:
    """Most bytes of activations that live at once while the ops run in order, each result kept to its last use.

    Examples
    --------
    >>> from onnx import TensorProto, helper
    >>> from latpred.graph import read
    >>> x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 25]) for n in "xy")
    >>> nodes = [helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Add", ["t", "t"], ["y"])]
    >>> activation_bytes(read(helper.make_model(helper.make_graph(nodes, "g", [x], [y]))))  # 2 x 100
    200
    """
    last = {name: index for index, op in enumerate(graph.ops) for name in _read(op)}
    last |= dict.fromkeys(graph.outputs, len(graph.ops))
    freed_bytes = [0] * (len(graph.ops) + 1)

    def make(name: str, index: int) -> int:
        size_bytes = graph.tensors[name].spec.size_bytes
        freed_bytes[max(index, last.get(name, index))] += size_bytes
        return size_bytes

    live_bytes = most_bytes = sum(make(name, 0) for name in graph.inputs)
    for index, op in enumerate(graph.ops):
        live_bytes += sum(make(name, index) for name in op.outputs if name)
        most_bytes = max(most_bytes, live_bytes)
        live_bytes -= freed_bytes[index]
    return most_bytes


def weight_bytes(graph: Graph) -> int:
    """Bytes of all stored tensors."""
    made = {name for op in graph.ops for name in op.outputs} | set(graph.inputs)
    return sum(tensor.spec.size_bytes for name, tensor in graph.tensors.items() if name not in made)


def _read(op: Op) -> Iterator[str]:
    yield from op.inputs
    for body in op.bodies:
        yield from captured(body)


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
