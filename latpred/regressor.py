"""One LightGBM a kernel kind, on log(latency / roofline time); grouped cross-validation; fallbacks for rare kinds.

The target is the logarithm of how far a kernel is from its three-level roofline: it hardly grows with size, so that
trees, which cannot extrapolate, need not. The absolute error of that logarithm is minimised: a disturbed sample pulls
a median less than a mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latpred.device import Device
from latpred.errors import InputError
from latpred.kernels.features import FEATURES, features_and_terms
from latpred.kernels.kernel import Kernel

__all__ = ["FOLDS", "FittedKind", "Samples", "Settings", "fit_kinds"]

Floats = NDArray[np.float64]

FOLDS = 5
FEWEST_GROUPS = 20  # distinct shapes below which a kind gets no trees, only a ratio


@dataclass(frozen=True, slots=True)
class Samples:
    """Measured kernels, one a row."""

    kernels: Sequence[Kernel]
    latency_s: Floats  # of one launch
    weight: Floats  # reliability
    group: Sequence[str]  # equal shapes share one; a group never sits on both sides of a split


@dataclass(frozen=True, slots=True)
class Settings:
    """How trees are grown. Leaves and their least size follow the number of rows (`parameters`)."""

    trees: int = 300
    leaves: int = 24
    learning_rate: float = 0.05
    time_exponent: float = 0.3  # a row weighs with its latency to this power: slow kernels matter more
    seed: int = 1
    more: Mapping[str, Any] = field(default_factory=dict)  # passed to LightGBM as it is

    def parameters(self, rows: int) -> dict[str, Any]:
        """LightGBM's parameters for a kind of so many rows: the fewer, the smaller and the smoother the trees."""
        return {
            "objective": "l1",
            "learning_rate": self.learning_rate,
            "num_leaves": int(np.clip(rows // 12, 4, self.leaves)),
            "min_data_in_leaf": int(np.clip(rows // 60, 2, 6)),
            "lambda_l2": 1.0,
            "feature_fraction": 0.6,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "max_bin": 255,
            "min_data_in_bin": 1,
            "feature_pre_filter": False,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "seed": self.seed,
            "verbose": -1,
            **self.more,
        }


@dataclass(frozen=True, slots=True)
class FittedKind:
    """What was learned of one kind."""

    kind: str
    rows: int
    groups: int  # distinct shapes
    model: str  # LightGBM text; empty where there were too few shapes for trees
    ratio: float  # median of latency over roofline time
    members: NDArray[np.intp]  # rows of the samples that are of this kind
    held_out_s: Floats  # predictions of those rows by trees that never saw their shapes
    roofline_s: Floats


def fit_kinds(samples: Samples, device: Device, settings: Settings | None = None, jobs: int = 1) -> list[FittedKind]:
    """Fit all kinds, in parallel over kinds and folds.

    Parameters
    ----------
    samples : Samples
    device : Device
        Whose roofline the latencies are compared with.
    settings : Settings, optional
    jobs : int
        Processes; -1 for one a core. The result does not depend on it.

    Returns
    -------
    list of FittedKind
        By kind, alphabetically.

    Raises
    ------
    InputError
        When there are no samples, or a latency is not positive and finite.
    """
    from joblib import Parallel, delayed

    settings = settings or Settings()
    latency_s = np.asarray(samples.latency_s, np.float64)
    if not len(samples.kernels):
        raise InputError("fitting needs measured kernels; got none: run `latpred collect` first")
    if not (np.isfinite(latency_s).all() and (latency_s > 0).all()):
        raise InputError(f"measured latencies must be positive and finite; least is {latency_s.min()} s")
    rows, terms = features_and_terms(samples.kernels, device)
    roofline_s = terms.total_s
    target = np.log(latency_s / roofline_s)
    tempered = np.asarray(samples.weight) * (latency_s / np.median(latency_s)) ** settings.time_exponent
    kinds = np.array([kernel.kind for kernel in samples.kernels])
    groups = np.unique(np.array(samples.group), return_inverse=True)[1]
    tasks: list[tuple[str, NDArray[np.intp], NDArray[np.intp], int]] = []
    members_of: dict[str, NDArray[np.intp]] = {}
    for kind in sorted(set(kinds.tolist())):
        members = np.flatnonzero(kinds == kind)
        members_of[kind] = members
        folds = _folds(groups[members], settings.seed)
        for fold in range(-1, FOLDS):  # -1: on all rows, for use
            inside = folds != fold
            tasks.append((kind, members[inside], members[~inside], fold))

    def run(task: tuple[str, NDArray[np.intp], NDArray[np.intp], int]) -> tuple[str, Floats, float]:
        _, learn, test, _ = task
        return _fit(rows[learn], target[learn], tempered[learn], groups[learn], rows[test], settings)

    done = Parallel(n_jobs=jobs)(delayed(run)(task) for task in tasks)
    fitted = []
    for kind, members in members_of.items():
        held_out = np.zeros(len(kinds))
        for (of_kind, _, test, fold), (text, predicted, ratio) in zip(tasks, done, strict=True):
            if of_kind != kind:
                continue
            if fold == -1:
                model, whole_ratio = text, ratio
            else:
                held_out[test] = predicted
        fitted.append(
            FittedKind(
                kind,
                len(members),
                len(set(groups[members].tolist())),
                model,
                whole_ratio,
                members,
                roofline_s[members] * np.exp(held_out[members]),
                roofline_s[members],
            )
        )
    return fitted


def _folds(groups: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """Fold of each row; groups stay whole, and folds hold about as many groups each."""
    distinct, inverse = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(distinct))
    folds: NDArray[np.intp] = (order % FOLDS)[inverse]
    return folds


def _fit(rows: NDArray[np.float32], target: Floats, weight: Floats, groups: NDArray[np.intp],
         test: NDArray[np.float32], settings: Settings) -> tuple[str, Floats, float]:
    """(text model, predictions of the target for `test`, ratio) of one kind on one set of rows."""
    if not len(target):
        return "", np.zeros(len(test)), 1.0
    median = weighted_median(target, weight)
    ratio = float(np.exp(median))
    if len(set(groups.tolist())) < FEWEST_GROUPS:
        return "", np.full(len(test), median), ratio
    import lightgbm

    columns = _telling(rows)
    data = lightgbm.Dataset(
        rows[:, columns],
        target,
        weight=weight / weight.mean(),
        feature_name=[FEATURES[i] for i in columns],
        params={"verbose": -1},
    )
    booster = lightgbm.train({**settings.parameters(len(target))}, data, settings.trees)
    predicted = np.asarray(booster.predict(test[:, columns])) if len(test) else np.zeros(0)
    return booster.model_to_string(), predicted, ratio


def _telling(rows: NDArray[np.float32]) -> list[int]:
    """Columns that differ between rows."""
    first = rows[:1]
    same = (rows == first) | (np.isnan(rows) & np.isnan(first))
    telling = np.flatnonzero(~same.all(axis=0)).tolist()
    return telling or [0]


def weighted_median(values: Floats, weight: Floats) -> float:
    """The value below and above which half of the weight lies.

    Examples
    --------
    >>> float(weighted_median(np.array([1.0, 2.0, 9.0]), np.array([1.0, 1.0, 5.0])))
    9.0
    """
    order = np.argsort(values)
    reached = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])
