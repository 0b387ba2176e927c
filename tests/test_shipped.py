"""What ships: a predictor of the reference machine that this code can use, small, and open about whose it is."""

from __future__ import annotations

from pathlib import Path

import pytest

import latpred
from latpred import home
from latpred.bundle import Bundle
from latpred.store import Dataset

NETWORKS = Path(__file__).parent / "networks"
SHIPPED = home.shipped_home()
MODELS = sorted(path.parent for path in (SHIPPED / "models").glob("*/manifest.json"))


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATPRED_HOME", str(tmp_path))


def test_something_ships() -> None:
    assert MODELS


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_bundle_fits_this_code_and_its_dataset(path: Path) -> None:
    manifest = Bundle.load(path).manifest
    dataset = Dataset.open(SHIPPED / "datasets" / path.name)
    assert f"{manifest.device}-{manifest.threads}t" == path.name
    assert manifest.records <= len(dataset)
    assert (manifest.processor, manifest.runtime_version) == (dataset.meta.processor, dataset.meta.runtime_version)


def test_a_few_megabytes() -> None:
    size_bytes = sum(
        file.stat().st_size for top in ("datasets", "models") for file in (SHIPPED / top).rglob("*") if file.is_file()
    )
    assert size_bytes < 10e6


def test_answers_for_local_but_says_whose_it_is() -> None:
    prediction = latpred.load().predict(NETWORKS / "mobilenet_v2.onnx")
    low_s, high_s = prediction.interval_s
    assert 1e-4 < low_s < prediction.latency_s < high_s < 1.0
    assert "reference machine" in prediction.warnings[0]
    assert "latpred collect --device local" in prediction.warnings[0]


@pytest.mark.parametrize("name", sorted(path.name for path in NETWORKS.glob("*.onnx")))
def test_learned_kernels_explain_real_networks(name: str) -> None:
    assert latpred.load().predict(NETWORKS / name).coverage > 0.9
