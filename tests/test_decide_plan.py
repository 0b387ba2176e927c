"""Plans against arithmetic by hand: a predictor that counts 1 us a run and 1 ns a multiply-add."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from math import nan
from pathlib import Path
from typing import Any

import onnx
import pytest
from counting_predictor import CountingPredictor, info, macs, residual_network
from onnx import helper
from synthetic import DEVICE

import latpred
from latpred.decide.declared import Declared
from latpred.decide.identity import identity_of
from latpred.decide.options import Choice, altered
from latpred.decide.plan import Plan, plan
from latpred.decide.points import Grid, points
from latpred.errors import InputError, SurgeryError
from latpred.graph import read
from latpred.surgery.cuts import cuts
from latpred.surgery.pieces import piece
from latpred.surgery.tidy import tidied

NETWORKS = Path(__file__).parent / "networks"
CONV = 16 * 16 * 8 * 32  # multiply-adds of each convolution in a block
BLOCK_S = 1e-6 + 2e-9 * CONV
STEM, FC = 16 * 16 * 8 * 8, 8 * 10


def planned(model: Any = None, **arguments: Any) -> Plan:
    return plan(CountingPredictor(), model or residual_network(), **arguments)  # type: ignore[arg-type]


def saved(found: Plan, point: str) -> dict[str, float]:
    return {option.name: option.saved_s for option in found[point].options}


def test_a_block_costs_its_gate_network_and_two_more_runs() -> None:
    found = planned()
    assert found.latency_s == pytest.approx(1e-6 + 1e-9 * (STEM + 6 * CONV + FC))
    block = found["layer.1"]
    names = ["keep", "skip", "channels 0.5", "channels 0.75", "patches4 0.25", "patches4 0.5", "patches4 0.75", "int8"]
    assert [option.name for option in block.options] == names
    gate_s = 1e-6 + 1e-9 * 8 * len(names)  # 8 pooled channels, a score an option
    overhead_s = gate_s + 2e-6  # three pieces where there was one
    assert block.gate_s == pytest.approx(gate_s)
    assert block.overhead_s == pytest.approx(overhead_s)
    work_s = 2e-9 * CONV
    gains_s = {
        "keep": 0.0,
        "skip": BLOCK_S,
        "channels 0.5": work_s / 2,
        "channels 0.75": work_s / 4,  # 24 of 32 channels
        "patches4 0.25": work_s * 3 / 4,  # 4 of 16 patches
        "patches4 0.5": work_s / 2,
        "patches4 0.75": work_s / 4,
        "int8": 0.0,  # the predictor counts integer multiply-adds alike
    }
    assert saved(found, "layer.1") == pytest.approx({name: gain - overhead_s for name, gain in gains_s.items()})
    rates = {option.name: option.break_even_rate for option in block.options}
    assert rates["skip"] == pytest.approx(overhead_s / BLOCK_S)
    assert rates["int8"] is None
    assert rates["keep"] is None


def test_without_a_gate_network_only_the_cut_is_charged() -> None:
    block = planned(gate="none")["layer.1"]
    assert block.gate_s == 0.0
    assert block.overhead_s == pytest.approx(2e-6)
    assert block.options[0].time.mean_s == pytest.approx(BLOCK_S)


def test_a_saving_below_the_overhead_never_breaks_even() -> None:
    small = residual_network(inner=8)  # 32768 ns a block; narrower than 8 it does not get
    block = planned(small, grid=Grid(keep_ratios=(0.5,)))["layer.1"]
    kept = {option.name: option for option in block.options}
    assert kept["channels 0.5"].break_even_rate is None
    assert kept["channels 0.5"].saved_s == pytest.approx(-block.overhead_s)
    assert kept["skip"].break_even_rate is not None


def test_an_exit_leaves_out_all_that_is_behind_it() -> None:
    found = planned()
    leave = found["exit after layer.0"]
    head_s = 1e-6 + 1e-9 * 8 * 10
    rest_s = 1e-6 + 1e-9 * (4 * CONV + FC)
    assert leave.overhead_s == pytest.approx(head_s + 1e-6)  # the head runs to say how sure it is; one more run
    assert leave.options[1].saved_s == pytest.approx(rest_s - leave.overhead_s)
    assert leave.options[1].break_even_rate == pytest.approx(leave.overhead_s / rest_s)
    without = planned(gate="none")["exit after layer.0"]
    assert without.options[0].time.mean_s == 0.0
    assert without.options[1].saved_s == pytest.approx(rest_s - head_s - 1e-6)


def test_equal_pieces_are_predicted_once() -> None:
    few, many = CountingPredictor(), CountingPredictor()
    plan(few, residual_network(4), mount=["layer.1"])  # type: ignore[arg-type]
    plan(many, residual_network(12), mount=["layer.1"])  # type: ignore[arg-type]
    between = len(many.asked) - len(few.asked)
    assert between <= 1 + 1  # the whole network is another one; so may be what is behind the mounted point


def test_equal_regions_are_rewritten_once_and_predicted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Choice] = []

    def counted(region: onnx.ModelProto, choice: Choice) -> onnx.ModelProto | None:
        written.append(choice)
        return altered(region, choice)

    monkeypatch.setattr("latpred.decide.appraisal.altered", counted)
    predictor = CountingPredictor()
    found = plan(predictor, residual_network(12), grid=Grid(levels=("skip", "channels", "int8")))  # type: ignore[arg-type]
    assert sum(decision.name.startswith("layer.") for decision in found.decisions) >= 12
    # Blocks, the first with the stem before it, and the ends: each rewritten once a choice.
    assert len(written) <= 3 * 4
    assert predictor.batches <= 3  # the whole, what points need, the chain


def test_the_table_is_the_chain_that_runs() -> None:
    found = planned(mount=["layer.0", "layer.2"])
    table = found.compile()
    assert table.points == ("layer.0", "layer.2")
    gate_s = 1e-6 + 1e-9 * 8 * 8  # has run when the decision is due
    before_s = [1e-6 + 1e-9 * STEM + gate_s, BLOCK_S + gate_s, 1e-6 + 1e-9 * FC]
    assert table.trunk_mean_s.tolist() == pytest.approx(before_s)
    assert table.mean_s[0] == pytest.approx(BLOCK_S)
    assert table.mean_s[1] == 0.0  # skipped
    assert table.model != planned(residual_network(4)).compile().model
    total = 1e-6 + 1e-9 * STEM + 3 * BLOCK_S + 1e-6 + 1e-9 * FC
    worth = found.compile().utilities()["layer.2"]
    assert worth["keep"] == pytest.approx(BLOCK_S / total)
    assert worth["channels 0.5"] == pytest.approx(0.5 * BLOCK_S / total)
    assert worth["skip"] == 0.0


def test_remaining_latency_by_hand() -> None:
    found = planned(mount=["layer.0", "layer.2"])
    fc_s, gate_s, decide_s = 1e-6 + 1e-9 * FC, 1e-6 + 1e-9 * 8 * 8, 3e-6 + 0.9 * 2 * 1e-6
    last = found.remaining()["layer.2"]
    assert last.least_s == pytest.approx(decide_s + fc_s)
    assert last.expected_s == pytest.approx(BLOCK_S + decide_s + fc_s)
    first = found.remaining({"layer.0": {"skip": 0.25}, "layer.2": {"skip": 0.5}})["layer.0"]
    assert first.least_s == pytest.approx(gate_s + 2 * decide_s + BLOCK_S + fc_s)
    assert first.expected_s == pytest.approx(first.least_s + (0.75 + 0.5) * BLOCK_S)
    with pytest.raises(InputError, match="layer\\.9"):
        found.remaining({"layer.9": {"skip": 0.5}})


def test_patches_are_a_staircase_without_steps_twice() -> None:
    found = planned(grid=Grid(levels=("patches",), rates=(0.26, 0.3, 0.31, 0.9), granularity=8))
    # 4 patches of 8 x 8: 0.26 to 0.31 take 2 of them, 0.9 all 4
    options = found["layer.1"].options
    assert [option.name for option in options] == ["keep", "patches8 0.26", "patches8 0.9"]
    half, whole = (option.time.mean_s - found["layer.1"].gate_s for option in options[1:])
    assert half == pytest.approx(1e-6 + 1e-9 * CONV)
    assert whole == pytest.approx(1e-6 + 2e-9 * CONV)


def test_channels_are_rounded_to_the_blocks_of_the_device() -> None:
    predictor = CountingPredictor(block=True)  # of 16 channels
    found = plan(predictor, residual_network(inner=48), mount=["layer.1"])  # type: ignore[arg-type]
    options = {option.name: option.time.mean_s - found["layer.1"].gate_s for option in found["layer.1"].options}
    conv_s = 1e-9 * 16 * 16 * 8 * 48
    assert options["channels 0.5"] == pytest.approx(1e-6 + 2 * conv_s * 32 / 48)
    assert options["channels 0.75"] == pytest.approx(1e-6 + 2 * conv_s)  # 36 channels fill 48
    one_step = plan(predictor, residual_network(inner=32), mount=["layer.1"])["layer.1"]  # type: ignore[arg-type]
    assert [option.name for option in one_step.options if option.level == "channels"] == [
        "channels 0.5", "channels 0.75",
    ]  # fmt: skip
    narrow = plan(predictor, residual_network(inner=16), mount=["layer.1"])["layer.1"]  # type: ignore[arg-type]
    assert [option.name for option in narrow.options if option.level == "channels"] == ["channels 0.5"]


def test_memory_is_activations_and_weights() -> None:
    skip, narrow = (planned()["layer.1"].options[number] for number in (1, 2))
    maps, weights = 4 * 8 * 16 * 16, 4 * 2 * 8 * 16
    # x, 16 inner channels and what becomes of them live together
    assert narrow.peak_bytes == maps + 2 * maps + maps + weights
    assert 0 < skip.peak_bytes < narrow.peak_bytes  # the gate network


def test_points_by_hand_come_first() -> None:
    mine = Declared("mine", "t0", "t2", ("skip", "channels 0.5"))
    found = planned(declared=[mine])
    assert "mine" in found.mounted
    assert not {"layer.0", "layer.1", "exit after layer.0"} & set(found.mounted)
    assert found["mine"].options[1].saved_s == pytest.approx(1e-6 + 4e-9 * CONV - found["mine"].overhead_s)
    assert found.compile().options[found.mounted.index("mine")] == ("keep", "skip", "channels 0.5")


def test_a_gate_network_by_hand_is_charged() -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Conv", ["pooled", "w"], ["scores"]),
    ]
    weight = helper.make_tensor("w", onnx.TensorProto.FLOAT, [2, 8, 1, 1], [0.5] * 16)
    graph = helper.make_graph(nodes, "gate", [info("map", (1, 8, 16, 16))], [info("scores", (1, 2, 1, 1))], [weight])
    gate = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = planned(declared=[Declared("mine", "t0", "t1", ("skip",), gate)])
    assert found["mine"].gate_s == pytest.approx(1e-6 + 16e-9)
    with pytest.raises(SurgeryError, match="3 scores"):
        planned(declared=[Declared("mine", "t0", "t1", ("skip", "int8"), gate)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gate": "oracle"}, "pooled, none"),
        ({"dims": {"nothing": 3}}, "nothing"),
        ({"shapes": {"nothing": (1, 8)}}, "nothing"),
        ({"mount": ["layer.7"]}, "layer\\.7"),
        ({"mount": ["layer.1", "layer.1"]}, "twice"),
        ({"mount": ["layer.1", "layer"]}, "overlap"),
        ({"declared": [Declared("mine", "t0", "nowhere", ("skip",))]}, "nowhere"),
        ({"declared": [Declared("mine", "t0", "t1", ())]}, "options"),
        ({"declared": [Declared("mine", "t0", "t1", ("skip", "skip"))]}, "differ"),
        ({"declared": [Declared("mine", "t0", "t1", ("shrink",))]}, "shrink"),
        ({"declared": [Declared("mine", "t0", "t1", ("channels 1.5",))]}, "1.5"),
        ({"declared": [Declared("mine", "t0", "t1", ("channels",))]}, "'channels 0.5'"),
        ({"declared": [Declared("mine", "t0", "t1", ("patches 0.5",))]}, "patches14"),
        ({"declared": [Declared("mine", "t0", "t1", ("patches17 0.5",))]}, "17"),
        ({"declared": [Declared("mine", "t0", "pooled", ("skip",))]}, "skip"),
        ({"declared": [Declared("mine", "t1", "t1", ("skip",))]}, "exit"),
        ({"declared": [Declared("mine", "t1", "t0", ("skip",))]}, "t0"),
        ({"shapes": [None, None]}, "several models"),
    ],
)
def test_what_cannot_be_planned_is_said(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        planned(**arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"levels": ("skip", "shrink")}, "levels must be of exit, skip, channels, patches, int8, got 'shrink'"),
        ({"keep_ratios": (0.5, 0.0)}, "keep_ratios must lie above 0"),
        ({"rates": (50.0,)}, "rates must lie above 0 and not above 1"),
        ({"rates": (nan,)}, "rates must"),
        ({"granularity": 0}, "at least 1 position"),
    ],
)
def test_a_grid_of_nothing_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Grid(**arguments)


def test_an_unknown_point_is_said() -> None:
    with pytest.raises(InputError, match="layer\\.9"):
        _ = planned()["layer.9"]


def test_what_never_pays_is_not_worth_deciding() -> None:
    found = planned(residual_network(1, width=8, inner=8), grid=Grid(levels=("int8",)))
    assert found.mounted == ()
    assert found.costs is None
    with pytest.raises(InputError, match="as it is"):
        found.compile()


def test_a_choice_among_models() -> None:
    large, small = residual_network(3), residual_network(1)
    found = planned([large, small])
    assert found.latency_s == pytest.approx(1e-6 + 1e-9 * macs(read(large)))
    keep, other = found["model"].options
    assert (keep.level, other.level) == ("keep", "model")
    assert other.saved_s == pytest.approx(4e-9 * CONV)
    table = found.compile()
    assert table.gate(1.0, 0.9).decide("model") == 0
    assert table.gate(1.2e-4 * 2, 0.9).decide("model") == 1  # 410 us do not fit, 148 do
    with pytest.raises(InputError, match="two models"):
        planned([large])


def test_identities_tell_models_shapes_and_machines_apart() -> None:
    predictor: Any = CountingPredictor()
    found = planned()
    assert found.costs is not None
    assert (found.costs.model, found.costs.device) == identity_of(predictor, residual_network())
    large, small = residual_network(3), residual_network(1)
    both = planned([large, small]).compile()
    assert (both.model, both.device) == identity_of(predictor, [large, small])
    keys = [identity_of(predictor, one).model for one in (large, small, [large, small], [small, large])]
    keys.append(identity_of(predictor, large, shapes={"x": (2, 8, 16, 16)}).model)
    assert len(set(keys)) == len(keys)
    here = identity_of(predictor, large).device
    assert here == "counting (Toy CPU, threads: 1)"
    for changes in ({"processor": "Other"}, {"threads": 2}, {"runtime": "onnxruntime", "runtime_version": "9.9"}):
        predictor.estimator.device = replace(DEVICE, **changes)
        assert identity_of(predictor, large).device != here


def test_a_table_of_another_model_or_device_is_refused(tmp_path: Path) -> None:
    predictor: Any = CountingPredictor()
    path = tmp_path / "model.table"
    plan(predictor, residual_network(3)).compile().save(path)
    assert latpred.Table.load(path, *identity_of(predictor, residual_network(3))).points
    with pytest.raises(latpred.ArtefactError, match="table of model"):
        latpred.Table.load(path, *identity_of(predictor, residual_network(4)))
    predictor.estimator.device = replace(DEVICE, threads=2)
    with pytest.raises(latpred.ArtefactError, match=r"threads: 2.*threads: 1"):
        latpred.Table.load(path, *identity_of(predictor, residual_network(3)))


def test_a_plan_as_rows_and_as_an_object() -> None:
    found = planned()
    text = json.loads(json.dumps(found.to_dict()))
    assert [point["name"] for point in text["points"]] == [decision.name for decision in found.decisions]
    rows = found.to_frame()
    assert len(rows) == sum(len(decision.options) for decision in found.decisions)
    never = rows[(rows.point == "layer.1") & (rows.name == "int8")]
    assert never.break_even_rate.tolist() == ["never"]


@pytest.mark.parametrize("name", ["mobilenet_v2", "vit_test_b2r160"])
def test_what_is_predicted_is_what_runs(name: str) -> None:
    """Times of the table against the pieces of the model as surgery makes them, predicted one by one, and started."""
    predictor = latpred.load("jetson-nano")
    start_s = 2 * predictor.estimator.device.dispatch_s  # of a device on which starting a graph was never measured
    path = NETWORKS / f"{name}.onnx"
    found = plan(predictor, path, gate="none")
    assert found.costs is not None
    model = tidied(path)
    places = cuts(model)
    ends = [places[0]]
    for decision in (found[point] for point in found.mounted):
        assert decision.point is not None
        ends += [decision.point.start, decision.point.end]
        if decision.point.is_exit:
            continue
        region = piece(model, decision.point.start, decision.point.end)
        for option, choice in zip(decision.options[1:], decision.point.choices, strict=True):
            graph = altered(region, choice)
            expected = 0.0
            if graph is not None:
                expected = predictor.predict(graph, cycle_bytes=found.cycle_bytes).latency_s + start_s
            assert option.time.mean_s == pytest.approx(expected, rel=1e-6), (decision.name, option.name)
    ends.append(places[-1])
    pieces_s = [
        predictor.predict(piece(model, a, b), cycle_bytes=found.cycle_bytes).latency_s
        for a, b in pairwise(ends)
        if a.position != b.position
    ]
    kept_s = found.costs.after.mean_s + sum(
        point.before.mean_s + point.options[0].time.mean_s for point in found.costs.points
    )
    assert kept_s == pytest.approx(sum(pieces_s) + (len(pieces_s) - 1) * start_s, rel=1e-6)


def test_what_an_exit_leaves_out_and_what_it_does_not_are_the_network() -> None:
    """Against the piece before each exit, predicted as one graph."""
    predictor = latpred.load()
    path = NETWORKS / "mobilenet_v2.onnx"
    found = predictor.plan(path)
    model = tidied(path)
    first = cuts(model)[0]
    exits = [one for one in found.decisions if one.point is not None and one.point.is_exit]
    assert len(exits) > 10
    for one in exits:
        assert one.point is not None
        before = predictor.predict(piece(model, first, one.point.start), cycle_bytes=found.cycle_bytes)
        behind_s = one.options[1].saved_s + one.overhead_s
        cut_s = one.overhead_s - one.gate_s
        assert before.latency_s + behind_s - cut_s == pytest.approx(found.latency_s, rel=0.025), one.name


def test_mobilenet_blocks_are_found_by_name() -> None:
    found = {point.name: point for point in points(tidied(NETWORKS / "mobilenet_v2.onnx"))}
    assert "channels" in found["features.2.conv"].levels  # expand, depthwise, project over three atoms
    assert "skip" not in found["features.2.conv"].levels
    assert "96" in found["features.2.conv"].refused["skip"] or "112" in found["features.2.conv"].refused["skip"]
    assert {"skip", "channels", "patches", "int8"} == set(found["features.3.conv"].levels)
    residual = [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]  # blocks of the paper's table 2 that keep their shape
    assert {f"features.{number}.conv" for number in residual} <= {n for n, p in found.items() if "skip" in p.levels}


@pytest.mark.parametrize(
    ("name", "point"),
    [("vit_test_b2r160", "blocks.3.attn"), ("vit_test_b2r160", "blocks.3"), ("mobilenetv3_large", "blocks.1.0")],
)
def test_modules_are_called_as_their_authors_did(name: str, point: str) -> None:
    assert point in {found.name for found in points(tidied(NETWORKS / f"{name}.onnx"))}


@pytest.mark.parametrize("path", sorted(NETWORKS.glob("*.onnx")), ids=lambda path: path.stem)
def test_every_network_has_a_plan_that_fits_together(path: Path) -> None:
    try:
        found = plan(latpred.load("jetson-nano"), path)
    except SurgeryError as error:
        assert path.stem == "lstm_2x256bi", error
        return
    names = [decision.name for decision in found.decisions]
    assert len(names) == len(set(names))
    if found.costs is not None:
        table = found.compile()
        assert table.points == found.mounted
        assert table.nbytes < 1 << 20
        assert table.gate(found.latency_s * 2, 0.9).planned().latency_s > 0
