"""Kernels -> latencies: by fitted trees, or by a device's numbers alone. Equal kernels are computed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from latpred.bundle import Bundle
from latpred.calibration import Between, Calibration
from latpred.device import Device
from latpred.errors import ArtefactError
from latpred.kernels.features import FEATURES, features_and_terms
from latpred.kernels.fusion import RuleBook, default_rules
from latpred.kernels.kernel import Kernel
from latpred.kernels.kinds import KIN
from latpred.kernels.roofline import bounds, roofline_terms
from latpred.law import LAW_TERMS, law_s, law_terms
from latpred.prediction import ANALYTICAL, LEARNED, ROOFLINE

__all__ = ["AnalyticalEstimator", "Estimate", "Estimator", "LearnedEstimator", "kernel_key"]

CACHED_KERNELS = 1 << 16


class Estimate(NamedTuple):
    """One launch of a kernel."""

    latency_s: float
    source: str
    bound: str
    roofline_s: float


class Estimator(Protocol):
    """What a predictor needs to know of a device."""

    @property
    def name(self) -> str:
        """The device, as a prediction names it."""

    @property
    def device(self) -> Device:
        """Its roofline."""

    @property
    def rules(self) -> RuleBook:
        """What its runtime fuses."""

    @property
    def between(self) -> Between:
        """What lies between kernels."""

    @property
    def calibration(self) -> Calibration:
        """How wide an interval has to be."""

    @property
    def reference_s(self) -> float | None:
        """Latency of the reference graph when the device was measured, where it was."""

    def estimate(self, kernels: Sequence[Kernel]) -> list[Estimate]:
        """One launch of each kernel."""

    def remarks(self, kernels: Sequence[Kernel], estimates: Sequence[Estimate]) -> list[str]:
        """What a person should know before trusting the estimates."""


def kernel_key(kernel: Kernel) -> Hashable:
    """What decides a kernel's latency, its surroundings aside."""
    return (
        kernel.kind, kernel.op_type, kernel.domain, kernel.inputs, kernel.outputs, tuple(kernel.attributes.items()),
        kernel.epilogue,
    )  # fmt: skip


class _Remembered:
    """Estimates by kernel; where there are too many, the oldest go first."""

    def __init__(self) -> None:
        self._estimates: OrderedDict[Hashable, Estimate] = OrderedDict()

    def estimate(self, kernels: Sequence[Kernel]) -> list[Estimate]:
        keys: list[Hashable] = [(kernel_key(k), *k.context.distances) for k in kernels]
        new = {key: kernel for key, kernel in zip(keys, kernels, strict=True) if key not in self._estimates}
        known = {key: self._estimates[key] for key in keys if key not in new}
        if new:
            fresh = dict(zip(new, self._compute(list(new.values())), strict=True))
            known.update(fresh)
            self._estimates.update(fresh)
            while len(self._estimates) > CACHED_KERNELS:
                self._estimates.popitem(last=False)
        return [known[key] for key in keys]

    def _compute(self, kernels: list[Kernel]) -> list[Estimate]:
        raise NotImplementedError


class LearnedEstimator(_Remembered):
    """By a bundle's trees and laws; a kind without any by its own median ratio to the roofline, or its nearest kin's.

    Raises
    ------
    ArtefactError
        When the trees were grown on other features than this latpred computes.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        if bundle.forest.features != FEATURES:
            raise ArtefactError(
                f"the predictor of {bundle.manifest.device} reads {len(bundle.forest.features)} features of latpred "
                f"{bundle.manifest.latpred_version}, this one computes {len(FEATURES)}: run `latpred fit` again"
            )
        odd = [kind for kind, one in bundle.manifest.kinds.items() if one.law and len(one.law) != len(LAW_TERMS)]
        if odd:
            raise ArtefactError(
                f"laws of {len(LAW_TERMS)} terms are needed, those of {bundle.manifest.device} have others "
                f"({', '.join(odd)}): run `latpred fit` again"
            )
        self.bundle = bundle
        self.name = bundle.manifest.device
        self.device = bundle.device
        self.rules = bundle.rules
        self.between = bundle.manifest.between
        self.calibration = bundle.manifest.calibration
        self.reference_s = bundle.manifest.reference_s
        self._trees = frozenset(bundle.forest.kinds)
        self._laws = {kind: summary.law for kind, summary in bundle.manifest.kinds.items() if summary.law}
        self._ratios = {kind: summary.ratio for kind, summary in bundle.manifest.kinds.items()}

    def _compute(self, kernels: list[Kernel]) -> list[Estimate]:
        rows, terms = features_and_terms(kernels, self.bundle.device)
        roofline_s = terms.total_s
        latency_s = roofline_s.copy()
        members: dict[str, list[int]] = {}
        for i, kernel in enumerate(kernels):
            members.setdefault(kernel.kind, []).append(i)
        of_kernel = law_terms(rows, terms) if not self._laws.keys().isdisjoint(members) else np.zeros((0, 0))
        for kind, inside in members.items():
            if kind in self._laws:
                latency_s[inside] = law_s(self._laws[kind], of_kernel[inside], roofline_s[inside])
            elif kind not in self._trees:
                latency_s[inside] *= self.ratio_of(kind)[1]
        grown = [i for i, kernel in enumerate(kernels) if kernel.kind in self._trees]
        latency_s[grown] *= np.exp(self.bundle.forest.predict(rows[grown], [kernels[i].kind for i in grown]))
        learned = self._trees | self._laws.keys()
        sources = [LEARNED if kernel.kind in learned else ROOFLINE for kernel in kernels]
        columns = zip(latency_s.tolist(), sources, bounds(terms), roofline_s.tolist(), strict=True)
        return [Estimate(*column) for column in columns]

    def ratio_of(self, kind: str) -> tuple[str, float]:
        """(whose it is, latency over roofline time) for a kind without trees."""
        seen: set[str] = set()
        at: str | None = kind
        while at is not None and at not in seen:
            if at in self._ratios:
                return at, self._ratios[at]
            seen.add(at)
            at = KIN.get(at)
        # Nobody in the family was measured: the median over all kinds.
        return "all kinds", float(np.median(list(self._ratios.values()) or [1.0]))

    def remarks(self, kernels: Sequence[Kernel], estimates: Sequence[Estimate]) -> list[str]:
        """Kinds that fell back to the roofline, and element types that nobody measured."""
        total_s = sum(e.latency_s * k.repeat for k, e in zip(kernels, estimates, strict=True)) or 1.0
        fallen: dict[str, list[float]] = {}
        for kernel, estimate in zip(kernels, estimates, strict=True):
            if estimate.source == ROOFLINE:
                fallen.setdefault(kernel.kind, []).append(estimate.latency_s * kernel.repeat / total_s)
        said = []
        for kind, shares in fallen.items():
            kin, _ = self.ratio_of(kind)
            basis = "its own median" if kin == kind else f"the median of {kin}"
            said.append(
                f"no regressor for kind {kind}: {len(shares)} kernel{'s' if len(shares) > 1 else ''}, "
                f"{sum(shares):.1%} of the latency, by the roofline scaled by {basis}"
            )
        measured = set(self.bundle.manifest.dtypes)
        strange = {k.inputs[0].dtype for k in kernels if k.inputs and k.work.macs and k.inputs[0].dtype not in measured}
        if strange:
            said.append(f"no kernel of dtype {', '.join(sorted(strange))} was measured: expect larger errors")
        return said


class AnalyticalEstimator(_Remembered):
    """By compute, traffic and dispatch of a device that nobody measured."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.name = device.name
        self.rules = default_rules()
        self.between = Between()
        self.calibration = Calibration()
        self.reference_s: float | None = None

    def _compute(self, kernels: list[Kernel]) -> list[Estimate]:
        from latpred.analytical import analytical_s

        terms = roofline_terms(kernels, self.device)
        return [
            Estimate(analytical_s(kernel, self.device), ANALYTICAL, bound, least_s)
            for kernel, bound, least_s in zip(kernels, bounds(terms), terms.total_s.tolist(), strict=True)
        ]

    def remarks(self, kernels: Sequence[Kernel], estimates: Sequence[Estimate]) -> list[str]:  # noqa: ARG002
        """That nothing was measured."""
        return [
            f"analytical: computed from the numbers of {self.device.name} ({self.device.processor}) and onnxruntime's "
            "CPU fusion rules, nothing was measured there"
        ]
