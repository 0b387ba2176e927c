"""Where data lie, and which predictor is found for a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from latpred import home
from latpred.device import preset
from latpred.errors import DeviceError
from latpred.kernels.fusion import default_rules


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("latpred.home.shipped_home", lambda: tmp_path / "shipped")
    monkeypatch.setenv("LATPRED_HOME", str(tmp_path / "own"))
    return tmp_path


def make_model(root: Path, name: str) -> Path:
    folder = root / "models" / name
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


def test_what_is_said_goes_before_the_environment_and_that_before_the_system(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home.own_home("/said") == Path("/said")
    assert home.own_home() == places / "own"
    monkeypatch.delenv("LATPRED_HOME")
    assert home.own_home().name == "latpred"


def test_own_and_shipped_data_are_laid_out_alike(places: Path) -> None:
    assert home.folders("local", 2) == home.Folders(
        places / "own" / "datasets" / "local-2t", places / "own" / "models" / "local-2t"
    )


@pytest.mark.parametrize("name", ["../local", "a/b", "", ".hidden", "a b"])
def test_names_that_could_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="letters"):
        home.folders(name, 1)


def test_own_goes_before_shipped_and_fewest_threads_first(places: Path) -> None:
    own, shipped = places / "own", places / "shipped"
    make_model(shipped, "reference-1t")
    found = home.find_model("local")
    assert found is not None
    assert (found.path, found.own) == (shipped / "models" / "reference-1t", False)
    make_model(own, "local-4t")
    make_model(own, "local-2t")
    found = home.find_model("local")
    assert found is not None
    assert (found.threads, found.own) == (2, True)
    found = home.find_model("local", 1)  # only the reference has one thread: the caller says so
    assert found is not None
    assert not found.own
    assert home.find_model("local", 8) is None
    assert home.find_model("reference", 2) is None
    named = home.find_model("reference")
    assert named is not None
    assert named.device == "reference"


def test_a_shipped_folder_called_local_is_no_local_measurement(places: Path) -> None:
    make_model(places / "shipped", "local-1t")
    found = home.find_model("local")
    assert found is not None
    assert not found.own


def test_folders_without_a_manifest_are_no_predictors(places: Path) -> None:
    (places / "own" / "models" / "local-1t").mkdir(parents=True)
    assert home.find_model("local") is None
    assert "latpred collect --device local" in home.missing_text("local", None)


def test_devices_come_from_measurements_files_and_presets(places: Path) -> None:
    from latpred.device import dump_toml

    device = preset("raspberry-pi-4")
    dump_toml(device, places / "pi.toml")
    assert home.device(str(places / "pi.toml")) == device
    assert home.device("raspberry-pi-4") == device
    assert home.measured_device("local", device.threads) is None
    home.save_device(device)
    assert home.measured_device("local", device.threads) == device
    assert home.device("local", device.threads) == device
    with pytest.raises(DeviceError, match="rtx3090"):
        home.device("nothing")


def test_probed_rules_are_found_again(places: Path) -> None:
    assert home.rules_for("local").rules == default_rules().rules
    path = home.save_rules(default_rules().revised({}), "local", 2)
    assert path == places / "own" / "models" / "local-2t" / "rules.toml"
    assert home.rules_for("local", 2).rules == default_rules().rules
    assert home.rules_for("board.toml").rules == default_rules().rules


def test_the_processor_is_named_as_the_system_names_it() -> None:
    told = Path("/proc/cpuinfo")
    if told.exists() and "model name" in told.read_text():
        assert home.processor_name() in told.read_text()
        assert home.processor_name()
    else:
        assert home.processor_name() == ""
