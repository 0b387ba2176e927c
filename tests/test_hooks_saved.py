"""Hooks in a file: they come back as they were, and only onto what they were made for."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from counting_predictor import CountingPredictor
from hooked_networks import blocks, spatial_blocks
from onnx import numpy_helper
from surgery_oracle import feeds_of

from latpred.decide.points import Grid
from latpred.errors import ArtefactError, HookError
from latpred.hooks import attach, load

GRID = Grid(levels=("exit", "skip", "patches", "int8"), rates=(0.25,))


def counting() -> Any:
    return CountingPredictor()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Hooks of a network of two blocks, with a head and a gate that say something of their own."""
    model = spatial_blocks()
    points = ["exit after layer.0", "layer.1"]
    with attach(model, counting(), points, grid=GRID, samples=[feeds_of(model, 9)], outside="last") as hooked:
        rng = np.random.default_rng(0)
        hooked.replace("exit after layer.0", "head", (rng.standard_normal((8, 4)) * 3, rng.standard_normal(4)))
        width = len(hooked.options["layer.1"])
        hooked.replace("layer.1", "gate", (rng.standard_normal((8, width)), rng.standard_normal(width)))
        hooked.save(tmp_path / "saved.hooks")
        (tmp_path / "told.json").write_text(json.dumps(told(hooked)))
    return tmp_path / "saved.hooks"


def told(hooked: Any) -> list[Any]:
    rows = []
    for seed in range(6):
        feeds = feeds_of(spatial_blocks(), seed)
        asks: list[dict[str, Any]] = [
            {},
            {"keep": True},
            *({"forced": {"layer.1": o}} for o in hooked.options["layer.1"]),
        ]
        answers = [hooked.run(feeds, **ask) for ask in asks]
        rows += [[answer.decisions, answer.outputs["y"].tolist()] for answer in answers]
    return rows


def test_loaded_hooks_decide_and_compute_as_saved_ones(saved: Path) -> None:
    before = json.loads((saved.parent / "told.json").read_text())
    with load(saved, spatial_blocks(), counting()) as hooked:
        after = told(hooked)
        assert hooked.sides["exit after layer.0", "head"].current.trained
        hooked.save(saved)
    assert [row[0] for row in after] == [row[0] for row in before]
    for (_, mine), (_, theirs) in zip(after, before, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    with load(saved, spatial_blocks(), counting()) as again:
        assert [row[0] for row in told(again)] == [row[0] for row in before]


def test_the_file_is_small_and_holds_no_weights_of_the_model(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        stored = [
            tensor
            for name in archive.namelist()
            if name.endswith(".onnx")
            for tensor in onnx.ModelProto.FromString(archive.read(name)).graph.initializer
        ]
    own = {numpy_helper.to_array(tensor).tobytes() for tensor in spatial_blocks().graph.initializer}
    assert stored
    assert own.isdisjoint({numpy_helper.to_array(tensor).tobytes() for tensor in stored})


def rewritten(path: Path, change: Any) -> Path:
    """The same file with members changed, checksums of the manifest's made anew."""
    import hashlib

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    checksums = json.loads(members["checksums.json"])
    change(members)
    checksums["manifest.json"] = hashlib.sha256(members["manifest.json"]).hexdigest()
    members["checksums.json"] = json.dumps(checksums).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_manifest(path: Path, **changes: Any) -> Path:
    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        for name, value in changes.items():
            holder = manifest if name in manifest else manifest["origin"]
            holder[name] = value
        members["manifest.json"] = json.dumps(manifest).encode()

    return rewritten(path, change)


def test_hooks_of_another_model_are_refused(saved: Path) -> None:
    with pytest.raises(ArtefactError, match="hooks of model"):
        load(saved, blocks(), counting())
    trained_again = spatial_blocks()
    stem = trained_again.graph.initializer[0]
    stem.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stem) * 2, stem.name))
    with pytest.raises(ArtefactError, match="hooks of weights"):
        load(saved, trained_again, counting())


def test_hooks_of_another_device_runtime_or_schema_are_refused(saved: Path) -> None:
    other = counting()
    other.device = "another"
    with pytest.raises(ArtefactError, match="device 'another "):
        load(saved, spatial_blocks(), other)
    with pytest.raises(ArtefactError, match="hooks of runtime"):
        load(with_manifest(saved, runtime="0.0.1"), spatial_blocks(), counting())
    with pytest.raises(ArtefactError, match="schema 1, these are of 99"):
        load(with_manifest(saved, schema=99), spatial_blocks(), counting())
    with pytest.raises(ArtefactError, match="not as documented"):
        load(with_manifest(saved, schema=1, points=[{}]), spatial_blocks(), counting())


def test_altered_files_are_refused(saved: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        members["side-0.onnx"] += b"\0"

    with pytest.raises(ArtefactError, match=r"checksum of side-0.onnx"):
        load(rewritten(saved, change), spatial_blocks(), counting())
    whole = saved.read_bytes()
    for place in range(60, len(whole), 997):  # inside of packed members, of headers, of the index
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with contextlib.suppress(ArtefactError):  # any other error is none that a user is told
            load(saved, spatial_blocks(), counting()).release()
    saved.write_bytes(whole[:200])
    with pytest.raises(ArtefactError, match="cannot be read"):
        load(saved, spatial_blocks(), counting())
    with pytest.raises(ArtefactError, match="cannot be read"):
        load(saved.with_name("nothing"), spatial_blocks(), counting())


def test_what_is_whole_and_yet_no_such_file_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        points = json.loads(archive.read("manifest.json"))["points"]
    for changed in (points[:1], [{**one, "start": "nowhere"} for one in points]):
        saved.write_bytes(whole)
        with pytest.raises(ArtefactError, match="places of this model"):
            load(with_manifest(saved, points=changed), spatial_blocks(), counting())
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("side-0.onnx", bytes(2**28 + 1))
    with pytest.raises(ArtefactError, match="when unpacked"):
        load(saved, spatial_blocks(), counting())


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    hooked = attach(spatial_blocks(), counting(), ["layer.0"])
    for write in (hooked.save, lambda path: hooked.export(path, spatial_blocks())):
        with pytest.raises(HookError, match="written to"):
            write(tmp_path / "missing" / "file")
        (tmp_path / "file").write_bytes(b"no folder")
        with pytest.raises(HookError, match="written to"):
            write(tmp_path / "file" / "file")
    hooked.save(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_there_must_be_hooks_to_save(tmp_path: Path) -> None:
    hooked = attach(blocks(), counting(), [])
    with pytest.raises(HookError, match="none is"):
        hooked.save(tmp_path / "none.hooks")
    hooked.release()
    with pytest.raises(HookError, match="released"):
        hooked.save(tmp_path / "none.hooks")
