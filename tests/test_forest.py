"""Compiled trees end in the same leaves as LightGBM's own."""

from __future__ import annotations

from pathlib import Path

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latpred.errors import ArtefactError
from latpred.forest import Forest

FEATURES = ("a", "b", "c", "d", "e")


def grown(names: tuple[str, ...], seed: int, rows: int = 300, trees: int = 20, **options: object) -> lightgbm.Booster:
    rng = np.random.default_rng(seed)
    x = rng.choice([0.0, 1.0, 1 / 3, 0.1, -2.5, 1e9, np.nan], (rows, len(names)))
    x[:, 0] = rng.random(rows)  # never missing: LightGBM then reads a missing value as 0
    y = np.nansum(x, axis=1) % 3 + np.isnan(x).sum(axis=1) + x[:, 0] * 5
    parameters = {"objective": "l1", "num_leaves": 15, "min_data_in_leaf": 3, "verbose": -1, "seed": seed, **options}
    data = lightgbm.Dataset(x.astype(np.float32), y, feature_name=list(names), params={"verbose": -1})
    return lightgbm.train(parameters, data, trees)


BOOSTERS = {"x": grown(FEATURES, 1), "y": grown(("c", "a"), 2, trees=7), "deep": grown(FEATURES, 3, num_leaves=60)}
FOREST = Forest.compile({kind: booster.model_to_string() for kind, booster in BOOSTERS.items()}, FEATURES)
VALUES = st.one_of(
    st.just(np.nan),
    st.sampled_from([0.0, -0.0, 0.1, 1 / 3, 1.0, -2.5, 1e9, 1e-38, -1e30]),
    st.floats(-1e10, 1e10, width=32),
)


def expected(kind: str, row: np.ndarray) -> float:
    booster = BOOSTERS[kind]
    columns = [FEATURES.index(name) for name in booster.feature_name()]
    return float(booster.predict(row[None, columns])[0])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(BOOSTERS)), st.tuples(*[VALUES] * 5)), min_size=1, max_size=8))
def test_mixed_kinds_predict_as_lightgbm_does(rows: list[tuple[str, tuple[float, ...]]]) -> None:
    table = np.array([row for _, row in rows], np.float32)
    predicted = FOREST.predict(table, [kind for kind, _ in rows])
    for (kind, _), row, value in zip(rows, table, predicted, strict=True):
        assert value == pytest.approx(expected(kind, row), rel=1e-6, abs=1e-6)


def test_thresholds_split_float32_neighbours_exactly() -> None:
    table = np.array([np.linspace(0, 1, 5)], np.float32)
    for threshold in sorted({float(v) for v in FOREST.value if 0 < v < 1})[:40]:
        for near in (np.float32(threshold), np.nextafter(np.float32(threshold), np.float32(2))):
            table[:] = near
            assert FOREST.predict(table, ["x"])[0] == pytest.approx(expected("x", table[0]), rel=1e-6, abs=1e-6)


def test_many_rows_are_walked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = rng.random((50, 5)).astype(np.float32)
    kinds = [sorted(BOOSTERS)[i % 3] for i in range(50)]
    whole = FOREST.predict(table, kinds)
    monkeypatch.setattr("latpred.forest.PAIRS_AT_ONCE", 30)
    assert FOREST.predict(table, kinds) == pytest.approx(whole, abs=0)


def test_saved_trees_come_back(tmp_path: Path) -> None:
    FOREST.save(tmp_path / "forest.npz")
    again = Forest.load(tmp_path / "forest.npz")
    table = np.random.default_rng(5).random((9, 5)).astype(np.float32)
    assert again.kinds == FOREST.kinds
    assert (again.predict(table, ["deep"] * 9) == FOREST.predict(table, ["deep"] * 9)).all()


def test_no_rows_and_kinds_of_one_leaf() -> None:
    constant = lightgbm.train({"verbose": -1, "min_data_in_leaf": 200}, lightgbm.Dataset(
        np.zeros((9, 1)), np.full(9, 2.5), feature_name=["a"]), 3)  # fmt: skip
    forest = Forest.compile({"flat": constant.model_to_string()}, ["a"])
    assert forest.predict(np.zeros((0, 1), np.float32), []).shape == (0,)
    assert forest.predict(np.zeros((2, 1), np.float32), ["flat"] * 2) == pytest.approx([2.5, 2.5])


@pytest.mark.parametrize("damage", ["cut", "text", "missing", "jump"])
def test_broken_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "forest.npz"
    FOREST.save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "text":
        path.write_text("no trees here")
    elif damage == "missing":
        path.unlink()
    else:
        arrays = dict(np.load(path))
        arrays["jump"][-2] = 60000  # points behind the last node
        np.savez(path, **arrays)
    with pytest.raises(ArtefactError):
        Forest.load(path)


def test_models_that_need_more_than_numerical_splits_are_refused() -> None:
    x = np.random.default_rng(0).integers(0, 4, (200, 1)).astype(float)
    data = lightgbm.Dataset(x, x[:, 0] % 2, feature_name=["a"], categorical_feature=[0], params={"verbose": -1})
    model = lightgbm.train({"verbose": -1, "min_data_per_group": 1, "cat_smooth": 0}, data, 2).model_to_string()
    assert "num_cat=1" in model
    with pytest.raises(ArtefactError, match="numerical"):
        Forest.compile({"k": model}, ["a"])
    with pytest.raises(ArtefactError, match="'a'"):
        Forest.compile({"k": BOOSTERS["y"].model_to_string()}, ["c"])
    with pytest.raises(ArtefactError, match="text format"):
        Forest.compile({"k": "not a model"}, ["a"])
