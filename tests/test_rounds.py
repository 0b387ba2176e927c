"""Networks measured in rounds: order, references, child processes, failures, Ctrl-C, and the file that keeps them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.checker import ValidationError

from latpred.collect import rounds as tours
from latpred.collect.rounds import (
    RUNS_PER_PROCESS,
    MeasuredNetwork,
    Measurements,
    Round,
    Step,
    check_target,
    load,
    measure_rounds,
    names_of,
    save,
    select,
)
from latpred.collect.runner import NullRunner, ProfiledKernel, RunPlan, RunResult
from latpred.collect.synthesize import reference
from latpred.collect.weights import fill_weights, runnable
from latpred.errors import ArtefactError, DimensionError, InputError, MeasurementError, ModelError

REFERENCE = reference().model
LATENCIES_S = {f"net{i}": 0.001 * (i + 1) for i in range(7)}
OPERAND = (((1, 8), "float32"),)
EVENT = ProfiledKernel("relu", "Relu", OPERAND, OPERAND, 2e-6, 2.5e-6, 0.1, 40, 2.0)

Answer = Callable[[str, int], RunResult | BaseException]


class Machine:
    """Makes null runners and keeps a log: one list of models a runner; the reference takes 1, 2, 3, ... ms."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.log: list[list[str]] = []
        self.runners: list[NullRunner] = []
        self.references = 0

    def runner(self) -> NullRunner:
        visited: list[str] = []
        self.log.append(visited)

        def run(model: bytes, call: int) -> RunResult | BaseException:
            if model == REFERENCE:
                visited.append("reference")
                self.references += 1
                return RunResult((0.001 * self.references,))
            visited.append(model.decode())
            return self.answer(model.decode(), len(self.log))

        self.runners.append(NullRunner(run))
        return self.runners[-1]

    def measure(self, names: list[str], rounds: int, steps: list[Step] | None = None) -> Measurements:
        models = {name: name.encode for name in names}
        told = [] if steps is None else steps
        return measure_rounds(models, self.runner, RunPlan(threads=3), rounds, told.append, processor="Toy CPU")


def usual(name: str, _: int) -> RunResult:
    return RunResult((LATENCIES_S[name], 2 * LATENCIES_S[name], 0.9 * LATENCIES_S[name]), (EVENT,))


def test_rounds_take_all_networks_once_then_all_again_in_another_order() -> None:
    machine = Machine(usual)
    measured = machine.measure(list(LATENCIES_S), 2)
    orders = [[name for visited in machine.log[half] for name in visited if name != "reference"]
              for half in (slice(0, 2), slice(2, 4))]  # fmt: skip
    assert [sorted(order) for order in orders] == [sorted(LATENCIES_S)] * 2
    assert orders[0] != orders[1]
    assert [network.name for network in measured.networks] == list(LATENCIES_S)
    # 7 networks at 5 a process: 5 + 2, and again; each with a reference before the first and after every one
    assert [len(visited) for visited in machine.log] == [RUNS_PER_PROCESS, 5, RUNS_PER_PROCESS, 5]
    assert all(visited[::2] == ["reference"] * len(visited[::2]) for visited in machine.log)
    assert all(runner.closed for runner in machine.runners)
    assert (measured.processor, measured.runtime, measured.runtime_version, measured.threads) == (
        "Toy CPU", "null", "0", 3,
    )  # fmt: skip


def test_a_round_holds_the_median_and_the_references_around_it() -> None:
    machine = Machine(usual)
    measured = machine.measure(["net0", "net1"], 2)
    assert [[one.process for one in network.rounds] for network in measured.networks] == [[0, 1], [0, 1]]
    # The references of round 1 take 1, 2, 3 ms, those of round 2 take 4, 5, 6 ms.
    by_order = {name: network.rounds for name, network in zip(LATENCIES_S, measured.networks, strict=False)}
    for turn, references_s in enumerate(([0.0015, 0.0025], [0.0045, 0.0055])):
        order = [name for name in machine.log[turn] if name != "reference"]
        assert [by_order[name][turn].reference_s for name in order] == pytest.approx(references_s)
    assert measured.usual_reference_s == pytest.approx(0.0035)
    assert measured.networks[1].rounds[0].latency_s == statistics.median((0.002, 0.004, 0.0018))
    assert measured.networks[1].rounds[0].kernels == (EVENT,)


def test_the_reference_is_never_profiled_and_takes_the_threads_of_the_plan() -> None:
    machine = Machine(usual)
    machine.measure(["net0"], 1)
    assert [plan.profile for plan in machine.runners[0].plans] == [False, True, False]
    assert {plan.threads for plan in machine.runners[0].plans} == {3}


def test_a_failure_is_kept_with_its_reason_and_costs_nobody_else() -> None:
    machine = Machine(lambda name, _: MeasurementError("out of luck") if name == "net1" else usual(name, 0))
    steps: list[Step] = []
    measured = machine.measure(["net0", "net1", "net2"], 2, steps)
    assert dict(measured.failed) == {"net1": "out of luck"}
    assert {network.name: len(network.rounds) for network in measured.networks} == {"net0": 2, "net2": 2}
    assert sum(visited.count("net1") for visited in machine.log) == 1  # not tried again
    assert [step.error for step in steps if step.latency_s is None] == ["out of luck"]
    assert [(step.round, step.networks) for step in steps] == [(1, 3)] * 3 + [(2, 3)] * 2
    # After a failure the child may be another one: what follows gets a reference of its own before it.
    failed_at = machine.log[0].index("net1")
    assert machine.log[0][failed_at + 1 : failed_at + 2] in ([], ["reference"])


def test_a_model_that_cannot_be_made_runs_nothing() -> None:
    def broken() -> bytes:
        raise ModelError("no such file")

    machine = Machine(usual)
    measured = measure_rounds({"gone": broken}, machine.runner, RunPlan(), 3)
    assert dict(measured.failed) == {"gone": "no such file"}
    assert machine.log == [[], [], []]
    assert np.isnan(measured.usual_reference_s)


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError(), "(MemoryError)"), (ValidationError("no such field"), "no such field")]
)
def test_whatever_the_making_of_a_model_comes_upon_is_its_own_failure(error: Exception, reason: str) -> None:
    def broken() -> bytes:
        raise error

    machine = Machine(usual)
    measured = measure_rounds({"bad": broken, "net0": b"net0".strip}, machine.runner, RunPlan(), 2)
    assert list(measured.failed) == ["bad"]
    assert reason in measured.failed["bad"]
    assert {network.name: len(network.rounds) for network in measured.networks} == {"net0": 2}
    assert not measured.interrupted


def test_an_interruption_keeps_what_was_measured() -> None:
    machine = Machine(lambda name, runner: KeyboardInterrupt() if runner == 2 else usual(name, runner))
    measured = machine.measure(list(LATENCIES_S), 3)
    assert measured.interrupted
    assert len(measured.networks) == 5  # the first child's
    assert len(measured.failed) == 2
    assert all("interrupted" in why for why in measured.failed.values())
    assert all(runner.closed for runner in machine.runners)
    assert not Machine(usual).measure(["net0"], 1).interrupted


def test_a_child_that_is_replaced_too_early_is_refused() -> None:
    calls = iter(range(10))
    restless = NullRunner(lambda model, call: RunResult((1.0,), process=next(calls)))
    with pytest.raises(MeasurementError, match=f"{RUNS_PER_PROCESS} runs"):
        measure_rounds({"a": lambda: b"a"}, lambda: restless, RunPlan(), 1)


@pytest.mark.parametrize(("models", "rounds"), [({}, 3), ({"a": lambda: b"a"}, 0)])
def test_nothing_to_measure_is_refused(models: dict[str, Callable[[], bytes]], rounds: int) -> None:
    with pytest.raises(InputError, match="at least"):
        measure_rounds(models, Machine(usual).runner, RunPlan(), rounds)


def test_names_are_stems_where_they_tell_files_apart() -> None:
    assert names_of(["x/a.onnx", "x/b.onnx", "x/a.onnx"]) == {"a": Path("x/a.onnx"), "b": Path("x/b.onnx")}
    assert list(names_of(["x/a.onnx", "y/a.onnx"])) == ["x/a.onnx", "y/a.onnx"]


# -- the file -----------------------------------------------------------------------------------------------------


MEASURED = Measurements(
    "Toy CPU", "null", "0", 2, "2026-01-02T03:04:05Z",
    (MeasuredNetwork("a", "x/a.onnx", (Round(0.01, 0.001, 0.003, 0, (EVENT,)), Round(0.1 + 0.2, 0.0, 1 / 3, 1))),),
    {"b": "crashed"}, True,
)  # fmt: skip


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save(MEASURED, tmp_path / "m.json")
    assert load(tmp_path / "m.json") == MEASURED


def test_a_file_that_does_not_match_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    save(MEASURED, path)
    row = json.loads(path.read_text())
    spoiled = {
        "checksum": json.dumps({**row, "measurements": {**row["measurements"], "threads": 1}}),
        "schema 1 are needed, found 2": json.dumps({**row, "schema": 2}),
        "schema 1 are needed, found None": "[]",
        "must be a JSON file": path.read_text()[:-20],
        "incomplete": json.dumps({"schema": 1, "sha256": tours._checksum({"networks": []}),
                                  "measurements": {"networks": []}}),
    }  # fmt: skip
    for reason, text in spoiled.items():
        path.write_text(text)
        with pytest.raises(ArtefactError, match=reason):
            load(path)
    for unreadable in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            load(unreadable)
    with pytest.raises(ArtefactError, match="cannot be written"):
        save(MEASURED, tmp_path / "no" / "folder.json")


def test_a_file_keeps_its_form(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    save(MEASURED, path)
    row = json.loads(path.read_text())["measurements"]
    assert " ".join(row) == "processor runtime runtime_version threads created networks failed interrupted provider"
    del row["provider"]  # as it was written first
    path.write_text(json.dumps({"schema": 1, "sha256": tours._checksum(row), "measurements": row}))
    assert load(path) == MEASURED


def test_where_nothing_can_be_saved_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    check_target(tmp_path / "m.json")
    with pytest.raises(InputError, match="is a folder"):
        check_target(tmp_path)
    with pytest.raises(InputError, match="make it first"):
        check_target(tmp_path / "no" / "m.json")


def test_drift_does_not_depend_on_what_is_chosen(tmp_path: Path) -> None:
    slow = MeasuredNetwork("slow", "slow.onnx", tuple(Round(0.02, 0.0, reference_s, 0) for reference_s in (0.5, 0.7)))
    whole = replace(MEASURED, networks=(*MEASURED.networks, slow))
    usual_s = (1 / 3 + 0.5) / 2  # of 0.003, 1/3, 0.5, 0.7
    assert whole.usual_reference_s == pytest.approx(usual_s)
    for names in ("a", "slow", "b"):
        chosen = select(whole, {names: Path("x.onnx")})
        assert chosen.usual_reference_s == pytest.approx(usual_s)
        assert select(chosen, {names: Path("x.onnx")}).usual_reference_s == pytest.approx(usual_s)
    with pytest.raises(InputError, match="saved whole"):  # it would forget the others
        save(select(whole, {"slow": Path("x.onnx")}), tmp_path / "m.json")
    assert list(tmp_path.iterdir()) == []


def test_choosing_networks_names_those_that_are_not_there() -> None:
    chosen = select(MEASURED, {"a": Path("y/a.onnx"), "b": Path("b.onnx"), "c": Path("c.onnx")}, "m.json")
    assert chosen.networks == (replace(MEASURED.networks[0], path="y/a.onnx"),)
    assert chosen.failed["b"] == "crashed"
    assert "m.json" in chosen.failed["c"]
    assert select(MEASURED, {"a": Path("a.onnx")}).failed == {}
    with pytest.raises(InputError, match=r"m\.json: none of c, d"):
        select(MEASURED, {"c": Path("c.onnx"), "d": Path("d.onnx")}, "m.json")


# -- models that can be run ---------------------------------------------------------------------------------------


def product(tmp_path: Path, weight: TensorProto) -> Path:
    """A product of an open batch with 4 x 6 weights."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    path = tmp_path / "net.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


def external(location: str = "w.bin") -> TensorProto:
    tensor = TensorProto(name="w", dims=[4, 6], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.mark.parametrize("weight", [external(), TensorProto(name="w", dims=[4, 6], data_type=TensorProto.FLOAT)])
def test_missing_weights_are_drawn_alike_each_time(tmp_path: Path, weight: TensorProto) -> None:
    path = product(tmp_path, weight)
    first, second = (onnx.load_from_string(runnable(path)).graph.initializer[0] for _ in range(2))
    values = numpy_helper.to_array(first)
    assert values.shape == (4, 6)
    assert len(np.unique(values)) == 24
    assert first.raw_data == second.raw_data


def test_weights_that_are_there_stay(tmp_path: Path) -> None:
    known = np.arange(24, dtype=np.float32).reshape(4, 6)
    inside = product(tmp_path, numpy_helper.from_array(known, "w"))
    assert (numpy_helper.to_array(onnx.load_from_string(runnable(inside)).graph.initializer[0]) == known).all()
    (tmp_path / "w.bin").write_bytes((2 * known).tobytes())
    beside = product(tmp_path, external())
    assert (numpy_helper.to_array(onnx.load_from_string(runnable(beside)).graph.initializer[0]) == 2 * known).all()


def test_scales_of_normalizations_are_positive() -> None:
    empty = [TensorProto(name=n, dims=[64], data_type=TensorProto.FLOAT) for n in ("s", "b", "m", "v")]
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])
    filled = fill_weights(helper.make_model(helper.make_graph([node], "g", [], [], empty))).graph.initializer
    least = {tensor.name: numpy_helper.to_array(tensor).min() for tensor in filled}
    assert least["s"] > 0
    assert least["v"] > 0
    assert least["b"] < 0


def test_zero_points_are_equal_and_scales_positive() -> None:
    """Of a convolution whose zero points differ by channel, the runtime takes another path, many times as long."""
    empty = [TensorProto(name="s", dims=[512], data_type=TensorProto.FLOAT),
             TensorProto(name="w", dims=[512, 1, 3, 3], data_type=TensorProto.INT8),
             TensorProto(name="z", dims=[512], data_type=TensorProto.INT8),
             TensorProto(name="u", dims=[512], data_type=TensorProto.UINT8)]  # fmt: skip
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"]),
             helper.make_node("QuantizeLinear", ["f", "s", "u"], ["q"])]  # fmt: skip
    filled = fill_weights(helper.make_model(helper.make_graph(nodes, "g", [], [], empty))).graph.initializer
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in filled}
    assert values["s"].min() > 0
    assert set(values["z"]) == {0}
    assert set(values["u"]) == {128}
    assert len(np.unique(values["w"])) > 1


def test_dims_are_bound_as_a_prediction_binds_them(tmp_path: Path) -> None:
    path = product(tmp_path, external())
    for given, batch in (({}, 1), ({"dims": {"batch": 5}}, 5), ({"shapes": {"x": (7, 4)}}, 7)):
        shape = onnx.load_from_string(runnable(path, **given)).graph.input[0].type.tensor_type.shape
        assert [dim.dim_value for dim in shape.dim] == [batch, 4]
    with pytest.raises(DimensionError, match="sequence"):
        runnable(path, dims={"sequence": 3})


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"this is no model")
    with pytest.raises(ModelError, match="not an ONNX file"):
        runnable(tmp_path / "no.onnx")
    with pytest.raises(ModelError, match="cannot read"):
        runnable(tmp_path / "nowhere.onnx")
    (tmp_path / "inner").mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(4 * 24))
    with pytest.raises(ModelError, match="external data"):  # what lies outside its folder is none of a model's
        runnable(product(tmp_path / "inner", external("../w.bin")))
