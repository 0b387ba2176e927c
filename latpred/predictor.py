"""Model -> prediction: read the graph, detect its kernels, estimate each, add what lies between them.

Examples
--------
>>> import latpred
>>> predictor = latpred.load("rtx3090")
>>> from onnx import TensorProto, helper
>>> node = helper.make_node("Relu", ["x"], ["y"])
>>> x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy")
>>> prediction = predictor.predict(helper.make_model(helper.make_graph([node], "toy", [x], [y])))
>>> prediction.kernels[0].kernel.kind, prediction.kernels[0].source
('unary', 'analytical')
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from onnx import ModelProto

from latpred import home as homes
from latpred.bundle import Bundle
from latpred.calibration import Launches
from latpred.device import load_toml, preset, presets
from latpred.errors import DeviceError, UnsupportedError
from latpred.estimators import AnalyticalEstimator, Estimate, Estimator, LearnedEstimator, kernel_key
from latpred.fingerprint import fingerprint
from latpred.graph import Graph, read
from latpred.kernels.detect import Detection, detect
from latpred.kernels.kernel import Kernel
from latpred.prediction import LEARNED, KernelPrediction, Prediction, to_csv
from latpred.reading.loading import load as load_model

if TYPE_CHECKING:
    from latpred.decide.declared import Declared
    from latpred.decide.plan import Plan
    from latpred.decide.points import Grid

__all__ = ["KernelPrediction", "Prediction", "Predictor", "load", "name_of", "predict", "to_csv"]

Model = str | os.PathLike[str] | bytes | ModelProto

CACHED_MODELS = 64
RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What does not depend on the interval."""

    latency_s: float
    spread: float
    coverage: float
    kernels: tuple[KernelPrediction, ...]
    free: Mapping[str, str]
    warnings: tuple[str, ...]
    unlearned: tuple[str, ...]  # kinds that no regressor knows


class Predictor:
    """Predicts latencies on one device; remembers kernels and models that it has seen.

    Parameters
    ----------
    estimator : Estimator
        The device's kernels.
    warnings : sequence of str
        What every prediction has to say first.
    """

    def __init__(self, estimator: Estimator, warnings: Sequence[str] = ()) -> None:
        self.estimator = estimator
        self.warnings = tuple(warnings)
        self._answers: OrderedDict[Hashable, _Answer] = OrderedDict()

    @property
    def device(self) -> str:
        """Name of the device, as predictions carry it."""
        return self.estimator.name

    def predict(
        self,
        model: Model,
        dims: Mapping[str, int] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        interval: float = 0.9,
        strict: bool = False,
        cycle_bytes: int = 0,
    ) -> Prediction:
        """Latency of one network.

        Parameters
        ----------
        model : path, bytes or onnx.ModelProto
            Weights are not needed.
        dims : mapping of str to int, optional
            Symbolic dimension -> size.
        shapes : mapping of str to sequence of int, optional
            Input -> shape.
        interval : float
            Share of networks that the interval shall cover, between 0 and 1.
        strict : bool
            Refuse kernels that no regressor knows.
        cycle_bytes : int
            Bytes that pass from one run to the next at least, where other graphs run in between, as with the pieces of
            a network: caches keep less of a graph then. By default it runs again and again by itself.

        Raises
        ------
        InputError
            When the model cannot be read, a dim is unbound or a shape unknown.
        UnsupportedError
            When `strict`, and a kind has no regressor.
        ValueError
            When `interval` is not between 0 and 1.
        """
        if not 0 < interval < 1:
            raise ValueError(f"interval must lie between 0 and 1; got {interval}")
        proto = model if isinstance(model, ModelProto) else load_model(model)
        key = fingerprint(proto, dims, shapes), cycle_bytes
        answer = self._answers.get(key)
        if answer is None:
            (answer,) = self._answered([read(proto, dims, shapes)], cycle_bytes)
            self._answers[key] = answer
            while len(self._answers) > CACHED_MODELS:
                self._answers.popitem(last=False)
        else:
            self._answers.move_to_end(key)
        name = name_of(model)
        if strict and answer.unlearned:
            raise UnsupportedError(
                f"{name}: strict needs a regressor for every kernel; none for {', '.join(answer.unlearned)}: "
                "leave out strict, or collect those kinds"
            )
        return self._prediction(name, answer, interval)

    def predict_many(
        self,
        models: Iterable[Model],
        dims: Mapping[str, int] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        interval: float = 0.9,
        strict: bool = False,
    ) -> list[Prediction]:
        """`predict` for each model, in order."""
        return [self.predict(model, dims, shapes, interval, strict) for model in models]

    def predict_graphs(self, graphs: Sequence[Graph], interval: float = 0.9, cycle_bytes: int = 0) -> list[Prediction]:
        """Latencies of graphs that were read; faster than one by one, as the kernels of all are estimated at once."""
        answers = self._answered(graphs, cycle_bytes)
        return [self._prediction(graph.name, one, interval) for graph, one in zip(graphs, answers, strict=True)]

    def plan(
        self,
        model: Model | Sequence[Model],
        dims: Mapping[str, int] | None = None,
        shapes: Mapping[str, Sequence[int]] | Sequence[Mapping[str, Sequence[int]] | None] | None = None,
        gate: str = "pooled",
        grid: Grid | None = None,
        declared: Sequence[Declared] = (),
        mount: Sequence[str] | None = None,
        interval: float = 0.9,
    ) -> Plan:
        """Decision points of a model, and what each of their options saves.

        All arguments, and what is raised: `latpred.decide.plan.plan`.

        Examples
        --------
        ``predictor.plan("model.onnx").compile().gate(deadline_s=0.01)`` is ready to decide.
        """
        from latpred.decide.plan import plan  # the one door upwards: plans are made of predictions

        return plan(self, model, dims, shapes, gate, grid, declared, mount, interval)

    def predict_kernels(self, kernels: Sequence[Kernel]) -> tuple[KernelPrediction, ...]:
        """Each kernel by itself, its repetitions included."""
        return tuple(
            KernelPrediction(k, e.latency_s * k.repeat, e.source, e.bound, e.roofline_s * k.repeat)
            for k, e in zip(kernels, self.estimator.estimate(kernels), strict=True)
        )

    def _prediction(self, name: str, answer: _Answer, interval: float) -> Prediction:
        return Prediction(
            name,
            self.device,
            answer.latency_s,
            self.estimator.calibration.interval_s(answer.latency_s, answer.spread, interval),
            interval,
            answer.coverage,
            answer.kernels,
            answer.free,
            (*self.warnings, *answer.warnings),
        )

    def _answered(self, graphs: Sequence[Graph], cycle_bytes: int) -> list[_Answer]:
        found = [detect(graph, self.estimator.rules, cycle_bytes) for graph in graphs]
        estimates = iter(self.estimator.estimate([kernel for one in found for kernel in one.kernels]))
        return [
            self._answer(one, list(islice(estimates, len(one.kernels))), graph.notices)
            for graph, one in zip(graphs, found, strict=True)
        ]

    def _answer(self, detection: Detection, estimates: Sequence[Estimate], notices: Sequence[str]) -> _Answer:
        launched = detection.kernels
        launches = Launches.of(launched)
        kernels = tuple(
            KernelPrediction(k, e.latency_s * k.repeat, e.source, e.bound, e.roofline_s * k.repeat)
            for k, e in zip(launched, estimates, strict=True)
        )
        sum_s = sum(entry.latency_s for entry in kernels)
        learned_s = sum(entry.latency_s for entry in kernels if entry.source == LEARNED)
        unlearned = {entry.kernel.kind: None for entry in kernels if entry.source != LEARNED}
        warnings = [*notices, *detection.notices]
        if detection.unsupported:
            warnings.append(f"ops that no table counts, by their traffic alone: {', '.join(detection.unsupported)}")
        warnings += self.estimator.remarks(launched, estimates)
        return _Answer(
            self.estimator.between.whole_s(sum_s, launches),
            self.estimator.calibration.spread_of(
                [k.kind for k in launched],
                [entry.latency_s for entry in kernels],
                [hash(kernel_key(k)) for k in launched],
                launches.number,
            ),
            learned_s / sum_s if sum_s else 1.0,
            kernels,
            detection.free,
            tuple(dict.fromkeys(warnings)),
            tuple(unlearned),
        )


def load(
    device: str = homes.LOCAL, threads: int | None = None, home: str | os.PathLike[str] | None = None
) -> Predictor:
    """The predictor of a device.

    Parameters
    ----------
    device : str
        ``local`` for this machine, the name of a predictor in datasets and models, a preset of `latpred.device`, or
        the path of a device's TOML file; the last two are analytical.
    threads : int, optional
        Threads of the runtime; without it, the fewest that were measured.
    home : path, optional
        Folder of own data; ``LATPRED_HOME`` or the system's user data by default.

    Raises
    ------
    DeviceError
        When there is no predictor for the device, or it is of another machine.
    ArtefactError
        When the predictor is broken, or of another version of the runtime.
    """
    if device.endswith(".toml"):
        return Predictor(AnalyticalEstimator(load_toml(device)))
    found = homes.find_model(device, threads, home)
    if found is None:
        if device in presets():
            return Predictor(AnalyticalEstimator(preset(device)))
        raise DeviceError(homes.missing_text(device, threads, home))
    bundle = Bundle.load(found.path)
    warnings = []
    if device == homes.LOCAL and found.own:
        processor = homes.processor_name()
        bundle.check_machine(processor)
        bundle.check_runtime(installed_runtime())
        if not processor:
            warnings.append(f"this system does not tell its CPU: taken to be {bundle.manifest.processor}, as measured")
    elif not found.own:
        warnings.append(
            f"latency of the reference machine {bundle.manifest.device} ({bundle.manifest.label}), not of this one: "
            f"`{homes.collect_command(threads=threads)}` measures this one"
        )
    return Predictor(LearnedEstimator(bundle), warnings)


def predict(
    model: Model,
    device: str = homes.LOCAL,
    threads: int | None = None,
    home: str | os.PathLike[str] | None = None,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    interval: float = 0.9,
    strict: bool = False,
) -> Prediction:
    """`load` a predictor and `Predictor.predict` one model with it."""
    return load(device, threads, home).predict(model, dims, shapes, interval, strict)


def installed_runtime() -> str | None:
    """Version of onnxruntime that is installed, without importing it; None where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    for package in RUNTIME_PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def name_of(model: Model) -> str:
    """What a prediction of it is called."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    if isinstance(model, bytes):
        return "model"
    return model.graph.name or "model"
