"""A dataset on disk becomes a predictor on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import DEVICE, META, gemm, latency_s, measured, relu

from latpred.bundle import Bundle
from latpred.calibration import Launches
from latpred.device import dump_toml
from latpred.errors import ArtefactError, InputError
from latpred.estimators import LearnedEstimator
from latpred.fit import WholeGraph, _calibrate, errors_by_kind, fit, relative_speeds, whole_graphs
from latpred.kernels.fusion import default_rules
from latpred.regressor import Settings
from latpred.store import Dataset, pack_kernel

FAST = Settings(trees=40, learning_rate=0.2)


def dataset(folder: Path, graphs: int = 20, overhead_s: float = -1e-6) -> Dataset:
    made = Dataset.create(folder, META, rules_toml=default_rules().dumps())
    dump_toml(DEVICE, folder / "device.toml")
    rows = measured(graphs)
    for record in range(graphs):
        mine = [row for row in rows if row.record == record]
        kernels = [{**pack_kernel(r.kernel), "latency_s": r.latency_s, "samples": 9, "spread": 0.0} for r in mine]
        whole_s = sum(r.latency_s for r in mine) + overhead_s * len(mine)
        made.append({"kernels": kernels, "unmatched": [], "latency": {"median_s": whole_s}})
    return made


def test_fit_from_folder_to_folder(tmp_path: Path) -> None:
    dataset(tmp_path / "data")
    report = fit(tmp_path / "data", tmp_path / "model", settings=FAST)
    bundle = Bundle.load(tmp_path / "model")
    assert replace(bundle.manifest, checksums={}) == report.bundle.manifest
    assert (bundle.manifest.device, bundle.manifest.runtime_version, bundle.manifest.records) == ("toy", "1.2.3", 20)
    assert bundle.device == DEVICE
    kernels = [gemm(100, 200, 64), relu(64, 64)]
    for kernel, estimate in zip(kernels, LearnedEstimator(bundle).estimate(kernels), strict=True):
        assert estimate.latency_s == pytest.approx(latency_s(kernel), rel=0.15)
        assert estimate.source == "learned"
    launched = Launches.of(kernels * 5)  # as many as each graph has
    assert bundle.manifest.between.whole_s(1e-3, launched) == pytest.approx(1e-3 - 10 * 1e-6, rel=0.01)


def test_graphs_of_networks_blocks_are_told_from_chains() -> None:
    row = pack_kernel(relu(8, 8)) | {"latency_s": 2e-6}
    made = [
        (i, {"latency": {"median_s": 1e-4}, "kernels": [row], "configuration": {"templates": names}})
        for i, names in enumerate((["mobile"], ["mobile", "linear_chain"], ["no longer there"]))
    ]
    assert [graph.network for graph in whole_graphs(made)] == [True, False, False]


def test_latencies_are_taken_to_the_usual_speed(tmp_path: Path) -> None:
    made = dataset(tmp_path / "data", graphs=3)
    row = pack_kernel(relu(8, 8)) | {"latency_s": 2e-6}
    for reference_s in (0.0022, 0.002, 0.2):
        made.append({"latency": {"median_s": 1e-4}, "kernels": [row], "reference_s": reference_s})
    assert relative_speeds(made) == {}
    made.note_reference(0.002)
    assert relative_speeds(made) == pytest.approx({3: 1 / 1.1, 4: 1.0})
    slow = whole_graphs(made.samples(), relative_speeds(made))[3]
    assert (slow.whole_s, slow.kernels_s) == pytest.approx((1e-4 / 1.1, 2e-6 / 1.1))


def test_whole_graphs_are_quiet_ones_whose_every_launch_has_a_kernel() -> None:
    row = pack_kernel(relu(8, 8)) | {"latency_s": 2e-6}
    record = {"latency": {"median_s": 1e-4}, "kernels": [row, row | {"repeat": 3}], "unmatched": []}
    unnamed = {"latency": {"median_s": 1e-4}, "kernels": [row], "unmatched": [{"latency_s": 1e-6}]}
    disturbed = {"latency": {"median_s": 1e-4, "iqr_s": 2e-5}, "kernels": [row]}
    untimed, empty = {"kernels": [row]}, {"latency": {"median_s": 1.0}, "kernels": []}
    (graph,) = whole_graphs([(7, record), (8, untimed), (9, empty), (10, disturbed), (11, unnamed)])
    assert (graph.record, graph.launches, graph.whole_s) == (7, (1 + 3, 4 * 2, 4 * (2 + 2)), 1e-4)
    assert graph.kernels_s == pytest.approx(2e-6 * 4)


def test_merged_kernels_count_as_often_as_they_ran() -> None:
    rows = measured(12, each=1)
    unseen_s = np.array([row.latency_s for row in rows]) * np.linspace(0.9, 1.1, 12)
    graphs = [WholeGraph(row.record, 3 * row.latency_s, Launches(3), 3.1 * row.latency_s) for row in rows]
    apart = [row for row in rows for _ in range(3)]
    _, merged, _ = _calibrate(rows, graphs, unseen_s, {"unary": 0.1}, 0.01)
    _, whole, _ = _calibrate(apart, graphs, np.repeat(unseen_s, 3), {"unary": 0.1}, 0.01)
    np.testing.assert_allclose(merged.multiples, whole.multiples)


def test_errors_by_kind_tell_where_to_measure_more(tmp_path: Path) -> None:
    made = dataset(tmp_path / "data", graphs=10)
    rng = np.random.default_rng(0)
    odd_s = np.exp(rng.normal(0, 1, 60)) * 1e-5
    noisy = [pack_kernel(relu(16, 8 * i + 8)) | {"latency_s": float(odd_s[i])} for i in range(60)]
    made.append({"kernels": noisy, "latency": {}})
    errors = errors_by_kind(made)
    assert set(errors) == {"gemm", "unary"}
    assert errors["unary"] > 2 * errors["gemm"]


def test_what_cannot_be_fitted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="latpred collect"):
        fit(tmp_path / "nothing", tmp_path / "model")
    made = Dataset.create(tmp_path / "empty", META)
    with pytest.raises(ArtefactError, match=r"device\.toml"):
        fit(made.path, tmp_path / "model")
    dump_toml(DEVICE, made.path / "device.toml")
    with pytest.raises(InputError, match="latpred collect"):
        fit(made.path, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert errors_by_kind(made) == {}
