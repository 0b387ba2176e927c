"""What a launch and a start cost: scripted timings worked out by hand, and graphs that the runtime leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from latpred.collect import launching
from latpred.errors import MeasurementError

KIB, MIB = 1024, 1024**2


def test_the_runtime_keeps_every_node_of_the_chain(tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    model = launching._chain(7)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert len(onnx.load(tmp_path / "optimised.onnx").graph.node) == 7
    expected = x = np.array([0.5], np.float32)
    for step in range(7):
        expected = -expected if step % 2 else np.sin(expected)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-6)


class Session:
    """Runs nothing, and knows how many nodes it has."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes

    def run(self, *_: Any) -> None: ...


@pytest.mark.parametrize(("slope_s", "expected_s"), [(2e-7, 2e-7), (-1e-7, 1e-9)])
def test_a_launch_is_what_one_more_node_adds(
    monkeypatch: pytest.MonkeyPatch, slope_s: float, expected_s: float
) -> None:
    monkeypatch.setattr(launching, "session_of", lambda model, threads: Session(len(model.graph.node)))
    monkeypatch.setattr(launching, "fastest_s", lambda call, seconds: 1e-4 + slope_s * call.func.__self__.nodes)
    assert launching.dispatch_s() == pytest.approx(expected_s)


def scripted(starts: Callable[[int], Iterator[tuple[float, float, float]]]) -> Callable[..., float]:
    """A stand-in for `batch_s`: times of the first graph, of the second, and of the second again, in s."""
    times = (time_s for point in range(99) for triple in starts(point) for time_s in triple)
    return lambda call, batch: next(times)


def test_a_start_costs_its_own_state_and_after_a_pause_the_shared_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def starts(point: int) -> Iterator[tuple[float, float, float]]:
        own_s, shared_s = (1e-6, 4e-6, 2e-6)[point], (5e-6, 3e-6, 9e-6)[point]
        for _ in range(launching._LEAST_STARTS - 2):
            yield 1e-5 + own_s + shared_s, 1e-5 + own_s, 1e-5
        yield 1.0, 1e-5, 1e-5  # something else ran: medians do not move
        yield 2.0, 1.0, 1e-5

    monkeypatch.setattr(launching, "batch_s", scripted(starts))
    curve = launching.start_curve(1, MIB, seconds=0.0)
    assert [size for size, _, _ in curve] == [256 * KIB, 512 * KIB, MIB]
    # what falls again with more bytes is noise: 4 us stay 4, 5 us stay 5
    assert [own_s for _, own_s, _ in curve] == pytest.approx([1e-6, 4e-6, 4e-6])
    assert [shared_s for _, _, shared_s in curve] == pytest.approx([5e-6, 5e-6, 9e-6])


def test_a_start_is_never_cheaper_than_one_right_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "batch_s", scripted(lambda _: iter([(1e-6, 2e-6, 3e-6)] * launching._LEAST_STARTS)))
    assert launching.start_curve(1, 256 * KIB, seconds=0.0) == [(256 * KIB, 0.0, 0.0)]


def test_a_measured_curve_grows() -> None:
    curve = launching.start_curve(1, 2 * MIB, seconds=0.05)
    assert [size for size, _, _ in curve] == [256 * KIB << step for step in range(4)]
    for costs_s in list(zip(*curve, strict=True))[1:]:
        assert all(0.0 <= low <= high < 0.1 for low, high in pairwise(costs_s))


def test_a_bound_start_runs_its_graph() -> None:
    start = launching._bound_start(1)
    x, y = start.__defaults__[0]  # type: ignore[attr-defined]
    x[0] = 0.5
    start()
    assert y[0] == pytest.approx(np.sin(0.5))


def test_a_runtime_that_runs_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "session_of", lambda model, threads: None)
    with pytest.raises(MeasurementError, match="chain of Neg and Sin"):
        launching.dispatch_s()
    with pytest.raises(MeasurementError, match="graph of one Sin"):
        launching.start_curve(1, MIB)
