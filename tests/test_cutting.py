"""What cutting costs: measured on composite graphs, fitted, and charged to plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from counting_predictor import CountingPredictor, residual_network
from synthetic import DEVICE

from latpred.calibration import Calibration, Cutting, fit_cutting
from latpred.cutting import chain_record, measure_chains
from latpred.decide.plan import plan
from latpred.device import Device
from latpred.kernels.fusion import default_rules
from latpred.packing import unpack_kernel
from latpred.store import Dataset, Meta

META = Meta("local", "EPYC", "onnxruntime", "1.31.1", threads=1)


def first_chain() -> dict[str, object]:
    seeds = ((1_000_003, index) for index in range(60))
    found = (record for seed in seeds if (record := chain_record(seed, default_rules())) is not None)
    return next(found)


def test_a_chain_holds_the_kernels_of_the_whole_and_those_of_its_cuts() -> None:
    record = first_chain()
    whole = [unpack_kernel(row) for row in record["whole"]]  # type: ignore[attr-defined]
    pieces = [[unpack_kernel(row) for row in rows] for rows in record["pieces"]]  # type: ignore[attr-defined]
    assert 2 <= len(pieces) <= 4
    assert len(record["touched_bytes"]) == len(pieces)  # type: ignore[arg-type]
    # Work neither appears nor vanishes at a cut; what is fused, and how results are laid out, may.
    assert sum(k.work.macs * k.repeat for one in pieces for k in one) == sum(k.work.macs * k.repeat for k in whole)
    assert {k.context.cycle_bytes for one in pieces for k in one} == {record["cycle_bytes"]}
    assert len(record["whole_s"]) == len(record["chain_s"])  # type: ignore[arg-type]
    assert min(record["whole_s"]) > 0  # type: ignore[call-overload]


def test_chains_are_kept_apart_and_go_on_where_they_ended(tmp_path: Path) -> None:
    dataset = Dataset.create(tmp_path / "local", META)
    ticks = iter(range(100))
    measure_chains(dataset, default_rules(), 16.0, clock=lambda: float(next(ticks)))
    before = [record["seed"] for record in dataset.chains()]
    measure_chains(dataset, default_rules(), 8.0, clock=lambda: float(next(ticks)))
    seeds = [record["seed"] for record in dataset.chains()]
    assert seeds[: len(before)] == before
    assert len({tuple(seed) for seed in seeds}) == len(seeds) > len(before) > 0
    assert dataset.samples() == []
    assert dataset.kernels() == []


def test_outliers_do_not_decide_what_a_cut_costs() -> None:
    rng = np.random.default_rng(0)
    predicted, cuts = rng.uniform(0, 0.06, 60), rng.integers(1, 4, 60)
    measured = 1.3 * predicted + 0.005 * cuts + rng.normal(0, 0.003, 60)
    measured[:4] += 0.5  # another process ran
    found = fit_cutting(predicted, cuts, measured)
    assert found.factor == pytest.approx(1.3, abs=0.1)
    assert found.per_cut == pytest.approx(0.005, abs=0.001)
    left = measured - 1.3 * predicted - 0.005 * cuts
    assert found.spread == pytest.approx(np.sort(np.abs(left))[int(np.ceil(61 * 0.9)) - 1] / 1.6449, rel=0.1)


def test_few_chains_say_nothing() -> None:
    assert fit_cutting([0.01] * 7, [1] * 7, [0.05] * 7) == Cutting()


def test_a_calibration_keeps_its_cutting() -> None:
    calibration = Calibration(cutting=Cutting(1.2, 0.004, 0.01))
    assert Calibration.from_dict(calibration.to_dict()) == calibration


def test_plans_charge_what_cuts_were_measured_to_cost() -> None:
    predictor = CountingPredictor()
    predictor.estimator.calibration = Calibration(cutting=Cutting(1.5, 0.01, 0.001))
    found = plan(predictor, residual_network(), mount=["layer.0", "layer.2"])  # type: ignore[arg-type]
    whole_s = found.latency_s
    for name in ("layer.0", "layer.2"):
        block = found[name]
        assert block.overhead_s == pytest.approx(block.gate_s + 1.5 * 2e-6 + 2 * 0.01 * whole_s)
    assert found.costs is not None
    chain_s = found.costs.after.mean_s + sum(p.before.mean_s + p.options[0].time.mean_s for p in found.costs.points)
    gates_s = sum(found[name].gate_s for name in found.mounted)
    assert chain_s == pytest.approx(whole_s + gates_s + 1.5 * 4e-6 + 4 * 0.01 * whole_s)  # five pieces, four cuts


def test_a_saving_is_no_surer_than_the_chains_were() -> None:
    widths = []
    for spread in (0.001, 0.1):
        predictor = CountingPredictor()
        predictor.estimator.calibration = Calibration(cutting=Cutting(spread=spread))
        found = plan(predictor, residual_network(), mount=["layer.0"])  # type: ignore[arg-type]
        low_s, high_s = found["layer.0"].options[1].saved_interval_s
        widths.append((high_s - low_s) / found.latency_s)
    assert widths[1] ** 2 - widths[0] ** 2 == pytest.approx((2 * 1.6449) ** 2 * (0.1**2 - 0.001**2), rel=0.02)


def test_starts_grow_with_what_was_touched_since() -> None:
    device: Device = replace(DEVICE, start_curve=((1 << 20, 1e-6, 2e-6), (1 << 24, 3e-6, 10e-6)))
    costs_s = [device.start_s(idle, idle) for idle in (0, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 30)]
    assert costs_s == sorted(costs_s)
    assert costs_s[0] == 0.0
    assert costs_s[2] == pytest.approx(3e-6)
    assert costs_s[-1] == pytest.approx(13e-6)
