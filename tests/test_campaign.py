import gzip
from collections import Counter

import pytest

from latpred.collect.campaign import Campaign, preview
from latpred.collect.matching import match
from latpred.collect.noise import campaign_reference_s, noise_floor
from latpred.collect.ort import OrtRunner
from latpred.collect.refinement import refined_weights, validation_error
from latpred.collect.runner import NullRunner, ProfiledKernel, RunResult
from latpred.collect.synthesize import reference
from latpred.collect.templates import TEMPLATES
from latpred.errors import MeasurementError
from latpred.graph import Spec, read
from latpred.kernels.detect import detect
from latpred.kernels.fusion import default_rules
from latpred.kernels.kernel import Kernel
from latpred.report.tables import summary_table
from latpred.store import Dataset, Meta

META = Meta("local", "EPYC", "onnxruntime", "1.31.1", threads=1)
RULES = default_rules()
REFERENCE = reference().model


def as_profiled(kernel, latency_s=2e-5):
    def operands(specs):
        return tuple((spec.shape, spec.dtype) for spec in specs if spec.dtype)

    inputs, outputs = operands(kernel.inputs), operands(kernel.outputs)
    return ProfiledKernel(kernel.name, kernel.op_type, inputs, outputs, latency_s, latency_s, 0.05, 20)


def perfect(model):
    """What a runtime that launches exactly the detected kernels would answer."""
    kernels = detect(read(model), RULES).kernels
    return RunResult((0.010, 0.011, 0.012), tuple(map(as_profiled, kernels)), process=1)


class Script:
    """Answers for composites, and a list of latencies for the reference (the last one for ever); time is made up."""

    def __init__(self, references_s=(0.002,), answer=perfect, step_s=5.0):
        self.references_s = list(references_s)
        self.answer = answer
        self.step_s = step_s  # a composite takes that long, the reference 0.1 s
        self.now_s = 1000.0
        self.models = []

    def __call__(self, model, call):
        if model == REFERENCE:
            self.now_s += 0.1
            latency_s = self.references_s.pop(0) if len(self.references_s) > 1 else self.references_s[0]
            return RunResult((latency_s,))
        self.now_s += self.step_s
        self.models.append(model)
        return self.answer(model)

    def clock(self):
        return self.now_s

    def sleep(self, duration_s):
        self.now_s += duration_s


def campaign(dataset, script, **options):
    options = {"budget_s": 40.0, **options}
    return Campaign(dataset, NullRunner(script), RULES, clock=script.clock, sleep=script.sleep, **options)


def test_a_campaign_measures_until_the_budget_is_spent(tmp_path):
    dataset = Dataset.create(tmp_path, META)
    seen = []
    summary = campaign(dataset, Script(), progress=seen.append).run()
    records = list(dataset.records())
    assert summary.composites == len(records) == len(dataset.samples()) > 2
    assert not summary.interrupted
    assert summary.matched_share == 1.0
    assert summary.kernels == sum(len(record["kernels"]) for record in records)
    assert sum(summary.kernels_by_kind.values()) == summary.kernels
    assert [record["configuration"]["index"] for record in records] == list(range(len(records)))
    assert seen[-1].composites == summary.composites
    assert seen[-1].kinds == len(summary.kernels_by_kind)
    run = records[0]["run"]
    assert run["time"].endswith("Z")
    assert {"load_average", "latpred_version", "cores", "process"} <= set(run)
    assert {(record["reference_s"], record["reference_ratio"]) for record in records} == {(0.002, 1.0)}
    assert dataset.meta.reference_s == 0.002
    rows = dataset.kernels()
    assert all(row.latency_s == pytest.approx(2e-5) for row in rows)


def test_a_campaign_goes_on_where_it_was(tmp_path):
    dataset = Dataset.create(tmp_path, META)
    first, second = Script(), Script()
    campaign(dataset, first, budget_s=20.0).run()
    again = Dataset.open(tmp_path)
    campaign(again, second, budget_s=20.0).run()
    assert not set(first.models) & set(second.models)
    indices = [record["configuration"]["index"] for record in again.records()]
    assert indices == list(range(len(first.models) + len(second.models)))


def test_ctrl_c_leaves_a_usable_dataset_and_the_next_run_goes_on(tmp_path):
    def interrupt(model):
        if len(script.models) == 3:
            raise KeyboardInterrupt
        return perfect(model)

    dataset = Dataset.create(tmp_path, META)
    script = Script(answer=interrupt)
    messages = []
    running = campaign(dataset, script, progress=lambda p: messages.append(p.message))
    summary = running.run()
    assert summary.interrupted
    assert summary.composites == 2
    assert running.runner.closed
    assert "the same command goes on" in messages[-1]
    assert len(Dataset.open(tmp_path).kernels()) > 50
    second = Script()
    campaign(Dataset.open(tmp_path), second, budget_s=10.0).run()
    assert second.models[0] == script.models[2]


def test_a_failure_costs_one_composite_and_is_recorded(tmp_path):
    def fail_second(model):
        return MeasurementError("the runtime crashed (signal 11)") if len(script.models) == 2 else perfect(model)

    dataset = Dataset.create(tmp_path, META)
    script = Script(answer=fail_second)
    summary = campaign(dataset, script).run()
    assert summary.failed == 1
    failed = [record for record in dataset.records() if record["role"] == "failed"]
    assert [(r["configuration"]["index"], r["error"]) for r in failed] == [(1, "the runtime crashed (signal 11)")]
    assert len(dataset.samples()) == summary.composites > 1


def test_a_disturbed_minute_is_taken_back_and_measured_again(tmp_path):
    dataset = Dataset.create(tmp_path, META)
    # three first ones, then one check that is 10 % off and comes back
    script = Script([0.002, 0.002, 0.002, 0.0022, 0.002])
    summary = campaign(dataset, script, budget_s=60.0).run()
    voids = [record["voids"] for record in dataset.records() if record["role"] == "void"]
    assert voids == [[0, 1]]  # 5 s each: measured before the check that is due after 8 s
    assert summary.remeasured == len(voids[0]) > 0
    assert set(voids[0]).isdisjoint(ordinal for ordinal, _ in dataset.samples())
    repeated = Counter(script.models)
    assert sorted(repeated.values())[-len(voids[0]) :] == [2] * len(voids[0])
    taught = [record["configuration"]["index"] for _, record in dataset.samples()]
    assert sorted(taught) == list(range(len(taught)))


def test_a_shaken_measurement_is_repeated_and_the_calmer_one_counts(tmp_path):
    def shaken_first(model):
        calm = perfect(model)
        if len(script.models) > 1:
            return calm
        return RunResult((0.010, 0.015, 0.020), calm.kernels)

    dataset = Dataset.create(tmp_path, META)
    script = Script(answer=shaken_first)
    campaign(dataset, script, budget_s=60.0).run()
    assert script.models[0] == script.models[1] != script.models[2]
    assert next(dataset.records())["latency"]["median_s"] == 0.011


def test_a_machine_that_stays_slower_is_followed(tmp_path):
    dataset = Dataset.create(tmp_path, META)
    script = Script([0.002, 0.002, 0.002, 0.003])
    summary = campaign(dataset, script).run()
    assert any("changed its speed for good (+50%)" in notice for notice in summary.notices)
    assert not [record for record in dataset.records() if record["role"] == "void"]
    references_s = [record["reference_s"] for record in dataset.records()]
    assert references_s == [0.002] * 2 + [0.003] * (summary.composites - 2)
    assert summary.composites > 3


def test_a_campaign_resumed_on_a_slower_day_says_how_much(tmp_path):
    dataset = Dataset.create(tmp_path, META)
    first = campaign(dataset, Script(), budget_s=20.0).run()
    same = campaign(Dataset.open(tmp_path), Script([0.00202]), budget_s=10.0).run()
    assert same.notices == ()
    slower = campaign(Dataset.open(tmp_path), Script([0.0022]), budget_s=20.0).run()
    assert len(slower.notices) == 1
    assert "(+10%): the reference graph takes 2.2 ms, before it took 2 ms" in slower.notices[0]
    records = list(dataset.records())
    assert [record["reference_s"] for record in records] == (
        [0.002] * first.composites + [0.00202] * same.composites + [0.0022] * slower.composites
    )
    assert first.composites > same.composites + slower.composites - first.composites
    assert Dataset.open(tmp_path).meta.reference_s == campaign_reference_s(records) == 0.00202


def test_only_composites_with_wanted_kinds_are_measured(tmp_path):
    dataset = Dataset.create(tmp_path, META)
    summary = campaign(dataset, Script(), kinds=["recurrent"], budget_s=12.0).run()
    assert summary.composites
    for record in dataset.records():
        assert "recurrent" in {kernel["kind"] for kernel in record["kernels"]}


def planted(errors):
    """A quick fit whose errors, the same for every kind, are these, look after look (the last one for ever)."""
    left = list(errors)

    def error_by_kind(dataset):
        error = left.pop(0) if len(left) > 1 else left[0]
        return {row.kernel.kind: error for row in dataset.kernels()}

    return error_by_kind


def test_errors_by_kind_shift_the_weights(tmp_path):
    asked = []

    def errors(dataset):
        asked.append(len(dataset))
        return {row.kernel.kind: 0.001 for row in dataset.kernels()} | {"recurrent": 0.9}

    running = campaign(Dataset.create(tmp_path, META), Script(step_s=45.0), budget_s=900.0, error_by_kind=errors)
    assert running.looks.weights is None
    summary = running.run()
    assert asked == [7, 10, 13, 16]  # records after 315, 450, 585, 720 s of 900
    total = sum(template.weight for template in TEMPLATES.values())
    assert running.looks.weights["recurrent"] > 2 * TEMPLATES["recurrent"].weight / total
    assert [round(elapsed_s) // 45 for elapsed_s, _ in summary.validation] == asked


def test_a_campaign_stops_where_the_error_no_longer_falls(tmp_path):
    script = Script(step_s=60.0)
    errors = planted([0.08, 0.0502, 0.0499, 0.0498, 0.0499])
    summary = campaign(Dataset.create(tmp_path, META), script, budget_s=3600.0, error_by_kind=errors).run()
    # the first look after 315 s, the others 288 s apart, 8 % of the budget: every fifth minute, one of it a repetition
    assert summary.composites == 6 + 4 * 5 - 1
    assert not summary.interrupted
    assert [error for _, error in summary.validation] == pytest.approx([0.08, 0.0502, 0.0499, 0.0498, 0.0499])
    stopped = "stopped after 26 min of 60: the validation error no longer falls (5.02 -> 4.99 -> 4.98 -> 4.99 %)"
    assert summary.notices == (stopped,)
    table = summary_table(summary)
    assert f"notice: {stopped}" in table
    assert "validation error 8.0% -> 5.0% -> 5.0% -> 5.0% -> 5.0% (after 6, 11, 16, 21, 26 min)" in table


def test_a_campaign_whose_error_falls_uses_its_budget(tmp_path):
    script = Script(step_s=200.0)
    errors = planted([0.9**turn for turn in range(20)])
    summary = campaign(Dataset.create(tmp_path, META), script, budget_s=3600.0, error_by_kind=errors).run()
    assert summary.elapsed_s >= 3600.0
    assert len(summary.validation) > 4
    assert summary.notices == ()


def test_ctrl_c_in_a_look_keeps_what_was_measured(tmp_path):
    def interrupt(dataset):
        raise KeyboardInterrupt

    dataset = Dataset.create(tmp_path, META)
    summary = campaign(dataset, Script(step_s=50.0), budget_s=300.0, error_by_kind=interrupt).run()
    assert summary.interrupted
    assert summary.composites == len(dataset.samples()) == 3  # 105 s, then it looks


def test_preview_runs_nothing():
    rows = preview(RULES, 2)
    assert [made.index for made, _ in rows] == [0, 1]
    assert sum(rows[0][1].values()) > 50
    assert preview(RULES, 2, kinds=["recurrent"]) == []


def test_events_find_their_kernels_by_name_shape_and_order():
    def kernel(name, op_type="Add", shape=(1, 8), constants=()):
        inputs = (Spec(shape), *(Spec(c, "float32", True) for c in constants))
        return Kernel("binary", op_type, "", name, (name,), inputs, (Spec(shape),))

    kernels = [kernel("a"), kernel("b"), kernel("c", shape=(2, 8)), kernel("d", "Conv", (1, 8, 4, 4), [(8, 8, 3, 3)])]
    events = [as_profiled(k, t) for k, t in zip(kernels, (1e-6, 2e-6, 3e-6, 4e-6), strict=True)]
    swapped = [events[3], events[1], events[0]]
    found = match(kernels, swapped)
    assert [(k.name, e.latency_s) for k, e in found.matched] == [("d", 4e-6), ("b", 2e-6), ("a", 1e-6)]
    assert [k.name for k in found.unmeasured] == ["c"]
    padded = ProfiledKernel(
        "d_nchwc",
        "Conv",
        (((1, 8, 4, 4), "float32"), ((16, 8, 3, 3), "float32")),
        (((1, 8, 4, 4), "float32"),),
        4e-6,
        4e-6,
        0.0,
        9,
    )
    other = ProfiledKernel(
        "x", "Conv", (((1, 8, 4, 4), "float32"), ((8, 8, 1, 1), "float32")), padded.outputs, 1e-6, 1e-6, 0.0, 9
    )
    assert match(kernels, [padded]).matched[0][0].name == "d"
    unknown = match(kernels, [other])
    assert unknown.unmatched == (other,)
    assert unknown.matched_share == 0.0


def test_noise_floor_compares_repeats_with_samples():
    def record(role, median_s, latencies_s):
        return {
            "role": role,
            "configuration": {"seed": [0, 3]},
            "latency": {"median_s": median_s},
            "kernels": [{"name": name, "latency_s": t} for name, t in latencies_s.items()],
        }

    floor = noise_floor(
        [
            record("sample", 0.010, {"large": 1e-4, "small": 1e-5}),
            record("repeat", 0.0102, {"large": 1.1e-4, "small": 1.3e-5, "other": 1.0}),
            {"role": "void", "voids": []},
        ]
    )
    assert floor["repeats"] == 1
    assert floor["network"] == pytest.approx(0.0002 / 0.0101, abs=1e-4)
    assert floor["kernel_above_20us"] == pytest.approx(0.1 / 1.05, abs=1e-4)
    assert floor["kernel_below_20us"] == pytest.approx(0.3 / 1.15, abs=1e-4)
    assert noise_floor([record("sample", 0.01, {})]) == {}


def test_templates_that_yield_what_is_predicted_badly_gain_turns():
    def record(template, kinds):
        kernels = [{"kind": kind, "latency_s": 1e-3} for kind in kinds]
        return {"configuration": {"templates": [template]}, "kernels": kernels}

    records = [record("a", ["conv", "conv"]), record("b", ["conv", "lstm"]), record("c", ["gemm"])]
    priors = {"a": 1.0, "b": 1.0, "c": 2.0}
    weights = refined_weights(records, {"conv": 0.0, "lstm": 0.5, "gemm": 0.0}, priors)
    # lstm alone is urgent and only b yields it: 0.4 of the turns by priors, 0.6 to b
    assert weights == pytest.approx({"a": 0.4 / 4, "b": 0.4 / 4 + 0.6, "c": 0.4 / 2})
    assert refined_weights([], {}, priors) == {"a": 0.25, "b": 0.25, "c": 0.5}


def test_the_validation_error_weighs_kinds_by_their_share_of_time():
    def record(template, latencies_s):
        kernels = [{"kind": kind, "latency_s": latency_s} for kind, latency_s in latencies_s.items()]
        return {"configuration": {"templates": [template]}, "kernels": kernels}

    records = [record("a", {"conv": 1e-3, "lstm": 3e-3}), record("b", {"conv": 2e-3})]
    # conv: 1/4 of a, all of b; a counts 1/4, b 3/4; nothing is known of lstm: 0.5
    expected = (0.25 / 4 + 0.75) * 0.04 + (0.75 / 4) * 0.5
    assert validation_error(records, {"conv": 0.04}, {"a": 1.0, "b": 3.0}) == pytest.approx(expected)
    # a template that yielded nothing so far takes no part
    assert validation_error(records[:1], {"conv": 0.0, "lstm": 0.4}, {"a": 1.0, "b": 3.0}) == pytest.approx(0.3)


@pytest.mark.measure
def test_a_few_seconds_of_real_measuring(tmp_path):
    dataset = Dataset.create(tmp_path, META)
    summary = Campaign(dataset, OrtRunner(), RULES, budget_s=6.0).run()
    assert summary.composites >= 2
    assert summary.failed == 0
    assert summary.matched_share > 0.95
    assert len(summary.kernels_by_kind) >= 10
    for _, record in dataset.samples():
        kernels_s = sum(kernel["latency_s"] for kernel in record["kernels"])
        assert 0.5 < kernels_s / record["latency"]["median_s"] < 1.5
    with gzip.open(dataset.measurements, "rt") as file:
        assert sum(1 for _ in file) >= summary.composites  # and what was repeated or voided
