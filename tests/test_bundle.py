"""A bundle comes back as it went; what was altered, or is of another machine, is refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import DEVICE, META, measured

from latpred.bundle import SCHEMA_VERSION, Bundle
from latpred.calibration import Launches
from latpred.errors import ArtefactError, DeviceError
from latpred.fit import FitReport, WholeGraph, fit_samples
from latpred.kernels.features import features
from latpred.kernels.fusion import default_rules
from latpred.regressor import Settings

ROWS = measured(30)


def fitted() -> FitReport:
    graphs = []
    for record in range(30):
        sum_s = sum(r.latency_s for r in ROWS if r.record == record)
        graphs.append(WholeGraph(record, sum_s, Launches(10), 1.01 * sum_s))
    return fit_samples(ROWS, graphs, DEVICE, default_rules(), META, settings=Settings(trees=20, learning_rate=0.2))


REPORT = fitted()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    REPORT.bundle.save(tmp_path / "toy-1t")
    return tmp_path / "toy-1t"


def test_a_bundle_comes_back(folder: Path) -> None:
    again = Bundle.load(folder)
    rows = features([r.kernel for r in ROWS], DEVICE)
    kinds = [r.kernel.kind for r in ROWS]
    assert (again.forest.predict(rows, kinds) == REPORT.bundle.forest.predict(rows, kinds)).all()
    assert again.device == DEVICE
    assert again.rules.rules == REPORT.bundle.rules.rules
    assert again.manifest.calibration == REPORT.bundle.manifest.calibration
    assert again.manifest.kinds == REPORT.bundle.manifest.kinds
    assert sorted(p.name for p in folder.iterdir()) == ["device.toml", "forest.npz", "manifest.json", "rules.toml"]


def test_the_manifest_says_what_was_reached() -> None:
    manifest = REPORT.bundle.manifest
    assert (manifest.rows, manifest.records, manifest.dtypes) == (300, 30, ("float32",))
    assert manifest.label == "Toy CPU, onnxruntime 1.2.3, 1 thread"
    assert {kind.kind for kind in REPORT.kinds} == {"gemm", "unary"}
    assert sum(kind.share for kind in REPORT.kinds) == pytest.approx(1)
    for kind in REPORT.kinds:
        assert kind.mape < 0.1 < kind.roofline_mape  # half of the latency or more is beyond the roofline
    assert REPORT.graphs is not None
    assert REPORT.graphs.mape < 0.05
    assert manifest.between.whole_s(1e-3, Launches(10)) == pytest.approx(1.01e-3, rel=0.02)


@pytest.mark.parametrize("name", ["forest.npz", "device.toml"])
def test_altered_files_are_refused(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ArtefactError, match="checksum"):
        Bundle.load(folder)


def test_rules_may_be_mended_by_hand(folder: Path) -> None:
    with (folder / "rules.toml").open("a") as file:
        file.write("\n# seen by a person\n")
    assert Bundle.load(folder).rules.rules == REPORT.bundle.rules.rules


@pytest.mark.parametrize("name", ["forest.npz", "device.toml", "rules.toml", "manifest.json"])
def test_missing_files_are_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtefactError, match="fit"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_version": 99}, f"schema version {SCHEMA_VERSION} is needed, found 99"),
        ({"between": {}, "kinds": None}, "incomplete"),
        ({"surprise": 1}, "incomplete"),
    ],
)
def test_other_manifests_are_refused(folder: Path, change: dict[str, object], reason: str) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtefactError, match=reason):
        Bundle.load(folder)
    path.write_text("[]")
    with pytest.raises(ArtefactError, match="JSON object"):
        Bundle.load(folder)
    path.write_text("{")
    with pytest.raises(ArtefactError, match="must be JSON"):
        Bundle.load(folder)


def test_loading_runs_nothing(folder: Path) -> None:
    # A pickled array where an array is expected: numpy must refuse, not load it.
    arrays = dict(np.load(folder / "forest.npz"))
    np.savez(folder / "forest.npz", **{**arrays, "kinds": np.array([print], object)})
    manifest = json.loads((folder / "manifest.json").read_text())
    from hashlib import sha256

    manifest["checksums"]["forest.npz"] = sha256((folder / "forest.npz").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError):
        Bundle.load(folder)


def test_another_runtime_or_machine_is_refused() -> None:
    bundle = REPORT.bundle
    bundle.check_runtime("1.2.3")
    bundle.check_machine("Toy CPU")
    bundle.check_machine("")
    with pytest.raises(ArtefactError, match=r"1\.2\.3, 1\.3\.0 is installed.*latpred collect"):
        bundle.check_runtime("1.3.0")
    with pytest.raises(ArtefactError, match="none is installed"):
        bundle.check_runtime(None)
    with pytest.raises(DeviceError, match=r"this machine is Other CPU.*latpred collect"):
        bundle.check_machine("Other CPU")
