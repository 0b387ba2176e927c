"""A law is recovered from few samples, holds beyond them, and carries a kind into and out of a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import DEVICE, META, relu

from latpred.bundle import Bundle
from latpred.estimators import LearnedEstimator
from latpred.fit import fit_samples
from latpred.kernels.features import features_and_terms
from latpred.kernels.fusion import default_rules
from latpred.kernels.kernel import Context, Kernel
from latpred.law import LAW_TERMS, fit_law, law_s, law_terms
from latpred.regressor import Settings
from latpred.store import KernelSample, signature


def time_s(kernel: Kernel) -> float:
    """Made-up law: 4 us a launch and 0.5 ns an element."""
    return 4e-6 + 0.5e-9 * kernel.outputs[0].elements


def samples(count: int, largest: int) -> list[KernelSample]:
    rng = np.random.default_rng(0)
    kernels = [relu(int(rng.integers(1, largest)), int(rng.integers(8, 512))) for _ in range(count)]
    return [KernelSample(k, time_s(k), 1.0, signature(k), i) for i, k in enumerate(kernels)]


def test_terms_by_hand() -> None:
    kernel = replace(relu(64, 32), context=Context(reuse_bytes=2**22))
    rows, terms = features_and_terms([kernel], DEVICE)
    found = dict(zip(LAW_TERMS, law_terms(rows, terms)[0], strict=True))
    assert found["launch"] == 1e-6
    assert found["elements_out"] == pytest.approx(64 * 32 * 1e-9, rel=1e-5)
    assert found["near"] == pytest.approx(2 * 4 * 64 * 32 / 100e9)
    assert found["shared"] == pytest.approx(4 * 64 * 32 * 3 / 4 / 50e9)  # 1 MiB keeps a quarter of 4 MiB
    assert found["rows"] == found["runs"] == found["spans"] == found["scattered"] == 0


def test_an_outlier_hardly_bends_a_law() -> None:
    kernels = [row.kernel for row in samples(40, 512)]
    rows, terms = features_and_terms(kernels, DEVICE)
    times = np.array([time_s(kernel) for kernel in kernels])
    times[::10] *= 3
    of_kernel = law_terms(rows, terms)
    predicted = law_s(fit_law(of_kernel, times, np.ones(40)), of_kernel, terms.total_s)
    honest = np.arange(40) % 10 != 0
    assert np.abs(predicted / times - 1)[honest].max() < 0.1


def test_factors_are_never_negative_nor_absurd() -> None:
    rng = np.random.default_rng(0)
    of_kernel = np.abs(rng.normal(1e-6, 1e-6, (15, len(LAW_TERMS))))
    factors = fit_law(of_kernel, np.full(15, 1e-3), np.ones(15))
    assert min(factors) >= 0
    assert max(factors[1:4]) <= 3.0  # traffic costs a few times its roofline time at most


@pytest.mark.parametrize("count", [12, 120])  # by the law alone, and with trees that correct it
def test_kinds_without_products_hold_beyond_what_was_measured(count: int, tmp_path: Path) -> None:
    report = fit_samples(samples(count, 64), [], DEVICE, default_rules(), META, settings=Settings(trees=30))
    (kind,) = report.kinds
    assert kind.learned
    assert kind.law
    report.bundle.save(tmp_path)
    estimator = LearnedEstimator(Bundle.load(tmp_path))
    large = relu(2000, 500)  # thirty times the largest
    (estimate,) = estimator.estimate([large])
    assert estimate.latency_s == pytest.approx(time_s(large), rel=0.15)
    assert estimate.source == "learned"
    assert ("unary" in estimator.bundle.forest.kinds) == (count > 20)


def test_scalar_arithmetic_costs_hundreds_of_times_its_roofline_time_in_kinds_that_have_it() -> None:
    kernels = [row.kernel for row in samples(40, 512)]
    rows, terms = features_and_terms(kernels, DEVICE)
    of_kernel = law_terms(rows, terms)
    flops = np.array([kernel.work.flops for kernel in kernels], float)
    times = 2e-9 * flops  # 2 ns each
    assert LAW_TERMS[-1] == "scalar"
    assert np.allclose(of_kernel[:, -1], flops * 1e-9, rtol=1e-4)
    general, ordinary = (fit_law(of_kernel, times, np.ones(40), kind) for kind in ("pool-general", "relu"))
    assert np.allclose(law_s(general, of_kernel, terms.total_s), times, rtol=0.05)
    assert ordinary[-1] == 0.0
