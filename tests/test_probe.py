"""Probing the installed runtime, and what becomes of a runtime that fails."""

import pytest

from latpred.collect.ort import OrtRunner
from latpred.collect.probe import observe, probe
from latpred.collect.probe_graphs import PROBES, probe_model
from latpred.collect.runner import NullRunner, RunResult
from latpred.errors import MeasurementError
from latpred.kernels.fusion import Rule, RuleBook, default_rules


@pytest.fixture(scope="module")
def book() -> RuleBook:
    return probe()


def test_the_installed_runtime_does_what_the_default_book_says(book):
    known = default_rules()
    assert book.rules.keys() == known.rules.keys()
    assert {name for name in book.rules if book.holds(name) != known.holds(name)} == set()


def test_tells_what_was_seen(book):
    assert book.rules["matmul-add"].observed == "MatMul, Add -> 2 Reshape, Gemm"
    assert book.parameters("conv-nchwc")["block"] in (8, 16)  # AVX2 or AVX-512
    activations = book.parameters("gemm-activation")["activations"]
    assert "Relu" in activations
    assert "Exp" not in activations


def test_the_book_survives_the_file(book):
    assert RuleBook.loads(book.dumps()).rules == book.rules


def test_a_rule_that_the_runtime_is_told_not_to_apply_does_not_hold(monkeypatch):
    with OrtRunner() as runner:
        measure = runner.measure

        def without_optimiser(model, plan):
            options = {**plan.options, "graph_optimization_level": "ORT_DISABLE_ALL"}
            return measure(model, type(plan)(**{**plan.to_dict(), "options": options}))

        monkeypatch.setattr(runner, "measure", without_optimiser)
        seen = observe(default_rules().rules["matmul-add"], runner)
    assert not seen.holds
    assert seen.observed == "MatMul, Add stay as they are"


def test_a_failing_runtime_is_recorded_with_its_reason():
    runner = NullRunner(lambda model, call: MeasurementError("the child died"))
    book = probe(runner=runner)
    assert not any(book.holds(name) for name in PROBES)
    assert book.rules["gelu"].observed == "not observed: the child died"
    assert not runner.closed  # it is the caller's


def test_a_runtime_that_leaves_no_optimised_graph_is_no_observation():
    runner = NullRunner(lambda model, call: RunResult((0.001,)))
    seen = observe(default_rules().rules["gelu"], runner)
    assert not seen.holds
    assert "wrote no optimised one" in seen.observed


def test_a_rule_without_a_graph_is_taken_over():
    seen = observe(Rule("something-new", holds=True), NullRunner(lambda model, call: MeasurementError("unused")))
    assert seen.holds
    assert seen.observed == "no small graph tells; taken over from the default book"


@pytest.mark.parametrize("rule", PROBES)
def test_every_probe_runs_without_data_of_its_own(rule):
    model = probe_model(PROBES[rule])
    assert model.SerializeToString() == probe_model(PROBES[rule]).SerializeToString()
    assert all(tensor.HasField("raw_data") or tensor.ByteSize() < 400 for tensor in model.graph.initializer)
