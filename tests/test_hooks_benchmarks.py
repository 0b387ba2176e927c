"""The arithmetic of what measures hooks, on cases that can be worked out by hand."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from counting_predictor import CountingPredictor
from hooked_networks import blocks
from surgery_oracle import feeds_of

from latpred.hooks import attach

ROOT = Path(__file__).parent.parent


def benchmark(name: str) -> ModuleType:
    """A script of the folder that is no package."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return import_module(name)
    finally:
        sys.path.pop(0)


learners, sampling, timing, soak, memory = map(
    benchmark, ("hooks_learners", "hooks_sampling", "hooks_timing", "hooks_soak", "hooks_memory")
)


def test_feature_maps_are_convolutions() -> None:
    """Position by position, with the filters drawn again."""
    image = np.random.default_rng(1).uniform(size=(8, 8))
    got = learners.feature_map(image[None], 5)
    assert got.shape == (1, 6, 6, learners.CHANNELS)
    rng = np.random.default_rng(5)
    x = np.pad(image, 1)[..., None]
    for channels in (16, learners.CHANNELS):
        filters = rng.standard_normal((x.shape[-1], 3, 3, channels)) / np.sqrt(9 * x.shape[-1])
        side = len(x) - 2
        y = np.zeros((side, side, channels))
        for row in range(side):
            for column in range(side):
                window = x[row : row + 3, column : column + 3]
                y[row, column] = np.tensordot(window.transpose(2, 0, 1), filters, 3)
        x = np.maximum(y, 0)
    np.testing.assert_allclose(got[0], x, atol=1e-10)


@pytest.mark.parametrize("name", ["logistic regression, converged", *learners.LEARNERS])
def test_every_learner_learns_what_is_plain_to_see(name: str) -> None:
    """Ten classes, of which each has a channel of its own."""
    rng = np.random.default_rng(0)
    parts = []
    for rows in (300, 60, 60):
        labels = rng.integers(0, learners.CLASSES, rows)
        pooled = 0.1 * rng.standard_normal((rows, learners.CHANNELS))
        pooled[np.arange(rows), labels] += 1.0
        parts.append((pooled, labels))
    pooled, answers = zip(*parts, strict=True)
    case = learners.Case(pooled, answers, answers[2])
    rows = list(learners.taught(name, case, seed=0))
    assert [row.passes for row in rows] == ([1] if name == learners.REFERENCE else list(learners.PASSES))
    assert rows[-1].agreement == rows[-1].accuracy > 0.9
    assert abs(rows[-1].confidence_off) < 0.1
    assert rows[-1].size_bytes >= 4 * 65 * 10
    assert len(learners.table(rows + rows).splitlines()) == 2 + len(rows)


def test_what_listening_adds_is_weighted_by_how_often_runs_are_looked_at() -> None:
    found = [sampling.Timed(sampling.SILENT, False, 0.010)] * 4
    found += [sampling.Timed(sampling.SAMPLER, False, 0.0101)] * 3 + [sampling.Timed(sampling.SAMPLER, True, 0.0113)]
    silent, sampler = sampling.rows_of(found)
    assert silent[5:7] == ["+0.0", "+0.00%"]
    assert sampler[2] == "25.0%"
    assert sampler[5:7] == ["+400.0", "+4.00%"]  # 3 / 4 of 100 us and 1 / 4 of 1300 us, of 10 ms


@pytest.mark.measure
def test_both_run(capsys: pytest.CaptureFixture[str]) -> None:
    network = str(ROOT / "tests" / "networks" / "mobilenet_v2.onnx")
    assert sampling.main([network, "--device", "xeon-silver-4210-x2", "--runs", "40", "--look-every", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(sampling.SILENT) == 2
    assert learners.main(["--seeds", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["learner"] for row in rows} == {learners.REFERENCE, *learners.LEARNERS}
    assert all(0.5 < row["agreement"] <= 1.0 for row in rows)


def test_a_way_is_compared_with_what_was_predicted_and_with_the_plain_session() -> None:
    """11 ms for 10 predicted, beside 20 ms; the reference took 1.1 times as long as usual."""
    row = {"predicted_s": 0.010, "reference_s": [1.1] * 4, "plain_s": [0.020] * 4, "hooked_s": [0.011] * 4}
    off, steady, over, again = timing.compared(row, 1.0)
    assert off == pytest.approx(10 / 11 - 1)
    assert steady == pytest.approx(0.0)
    assert over == pytest.approx(0.55)
    assert again == pytest.approx(0.0)
    assert timing.compared(row, None)[1] == pytest.approx(off)  # no usual speed is known
    assert timing.line([row], 1.0) == ["1", "0.0", "100.0", "-9.1", "+0.0", "0.550", "0.0"]


def test_every_option_is_forced_once_and_some_together() -> None:
    with attach(blocks(), CountingPredictor(), points=["layer.0", "exit after layer.1", "layer.2"]) as hooked:  # type: ignore[arg-type]
        ways = list(timing.ways_of(hooked, together=True))
        kept = dict.fromkeys(hooked.points, "keep")
        assert ways[0] == ("keep", "keep", kept)
        single = [forced for _, level, forced in ways[1:] if level != timing.SEVERAL]
        wanted = [kept | {point: option} for point, own in hooked.options.items() for option in own[1:]]
        assert single == wanted
        assert len(ways) == 1 + len(single) + timing.DRAWN
        run = timing.Run(hooked, feeds_of(blocks(), 0), single[0])
        assert run.predicted_s == hooked.run(feeds_of(blocks(), 0), forced=single[0]).predicted_s


@pytest.mark.measure
def test_a_short_soak_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATPRED_HOME", str(tmp_path))
    monkeypatch.setattr(soak, "FIRST", 50)
    monkeypatch.setattr(soak, "MOST_GROWTH", 10.0)  # so few runs say nothing of that
    assert soak.main(["--runs", "150", "--threads", "2"]) == 0
    assert "150, 2" in capsys.readouterr().out


@pytest.mark.measure
def test_memory_is_that_of_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATPRED_HOME", str(tmp_path))
    assert memory.main([str(ROOT / "benchmarks" / "digits.onnx")]) == 0
    name, plain, *_ = capsys.readouterr().out.splitlines()[-1].split()
    assert name == "digits"
    assert float(plain) > 0.9  # MB of weights
