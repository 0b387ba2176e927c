"""One LightGBM a kernel kind, on log(latency / time by the kind's law); grouped cross-validation; rare kinds by law.

The target is the logarithm of how far a kernel is from its law (`latpred.law`): it hardly grows with size, so that
trees, which cannot extrapolate, need not. The absolute error of that logarithm is minimised: a disturbed sample pulls
a median less than a mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latpred.device import Device
from latpred.errors import InputError
from latpred.kernels.features import FEATURES, features_and_terms
from latpred.kernels.kernel import Kernel
from latpred.law import fit_law, law_s, law_terms

__all__ = ["FOLDS", "FittedKind", "Samples", "Settings", "fit_kinds", "held_out_s"]

Floats = NDArray[np.float64]
Folds = NDArray[np.intp]

FOLDS = 5
WHOLE = -1  # instead of a fold: all rows, for use
FEWEST_FOR_TREES = 20  # distinct shapes
FEWEST_FOR_LAW = 8


@dataclass(frozen=True, slots=True)
class Samples:
    """Measured kernels, one a row."""

    kernels: Sequence[Kernel]
    latency_s: Floats  # of one launch
    weight: Floats  # reliability
    group: Sequence[str]  # equal shapes share one; a group never sits on both sides of a split
    record: Sequence[int]  # the graph that it ran in; where there are enough, none sits on both sides either


@dataclass(frozen=True, slots=True)
class Settings:
    """How trees are grown. Leaves and their least size follow the number of rows (`parameters`)."""

    trees: int = 200
    leaves: int = 24
    learning_rate: float = 0.07
    time_exponent: float = 0.3  # a row weighs with its latency to this power: slow kernels matter more
    seed: int = 1
    law: bool = True  # whether trees correct the kind's law; else the bare roofline
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
    law: tuple[float, ...]  # factors of the law that the trees correct; empty where there were too few shapes
    ratio: float  # median of latency over roofline time
    members: NDArray[np.intp]  # rows of the samples that are of this kind
    held_out_s: Floats  # predictions of those rows by regressors that never saw their shapes
    roofline_s: Floats

    @property
    def learned(self) -> bool:
        """Whether there is a regressor, by trees or by a law; else only `ratio`."""
        return bool(self.model or self.law)


@dataclass(frozen=True, slots=True)
class _Table:
    """All samples as numbers."""

    rows: NDArray[np.float32]
    latency_s: Floats
    roofline_s: Floats
    law_terms: Floats
    weight: Floats
    groups: NDArray[np.intp]
    records: NDArray[np.intp]


class _Fit(NamedTuple):
    model: str
    law: tuple[float, ...]
    ratio: float
    predicted_s: Floats


def fit_kinds(samples: Samples, device: Device, settings: Settings | None = None, jobs: int = 1) -> list[FittedKind]:
    """Fit all kinds, in parallel over kinds and folds.

    Trees correct a linear law, which holds beyond what was measured where trees only repeat the nearest they saw.
    Kinds of few shapes have the law alone, or their median ratio to the roofline.

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
    settings = settings or Settings()
    table = _table(samples, device, settings)
    members_of = _members(samples)
    folds_of = _folds_of(table, members_of, settings)
    fits = _fits(table, members_of, folds_of, (WHOLE, *range(FOLDS)), settings, jobs)
    fitted = []
    for kind, members in members_of.items():
        whole = fits[kind, WHOLE]
        fitted.append(
            FittedKind(
                kind,
                len(members),
                _shapes(table, members),
                whole.model,
                whole.law,
                whole.ratio,
                members,
                _joined(fits, kind, folds_of[kind]),
                table.roofline_s[members],
            )
        )
    return fitted


def held_out_s(samples: Samples, device: Device, settings: Settings | None = None, jobs: int = 1) -> Floats:
    """What `fit_kinds` predicts of each sample by regressors that never saw its shape, in s; nothing is kept for use.

    Returns
    -------
    ndarray of float64, shape (len(samples.kernels),)

    Raises
    ------
    InputError
        As `fit_kinds` does.
    """
    settings = settings or Settings()
    table = _table(samples, device, settings)
    members_of = _members(samples)
    folds_of = _folds_of(table, members_of, settings)
    fits = _fits(table, members_of, folds_of, range(FOLDS), settings, jobs)
    predicted_s = np.zeros(len(samples.kernels))
    for kind, members in members_of.items():
        predicted_s[members] = _joined(fits, kind, folds_of[kind])
    return predicted_s


def _members(samples: Samples) -> dict[str, NDArray[np.intp]]:
    """Kind -> its rows."""
    kinds = np.array([kernel.kind for kernel in samples.kernels])
    return {kind: np.flatnonzero(kinds == kind) for kind in sorted(set(kinds.tolist()))}


def _folds_of(table: _Table, members_of: Mapping[str, NDArray[np.intp]], settings: Settings) -> dict[str, Folds]:
    return {
        kind: _folds(table.groups[members], table.records[members], settings.seed)
        for kind, members in members_of.items()
    }


def _fits(
    table: _Table,
    members_of: Mapping[str, NDArray[np.intp]],
    folds_of: Mapping[str, Folds],
    which: Iterable[int],
    settings: Settings,
    jobs: int,
) -> dict[tuple[str, int], _Fit]:
    """(kind, fold) -> what was learned without the fold and the shapes in it."""
    from joblib import Parallel, delayed

    tasks = [(kind, fold) for fold in which for kind in members_of]
    parts = []
    for kind, fold in tasks:
        members, test = members_of[kind], folds_of[kind] == fold
        known = np.isin(table.groups[members], table.groups[members[test]])
        parts.append((kind, _part(table, members[~known]), _part(table, members[test]), settings))
    return dict(zip(tasks, Parallel(n_jobs=jobs)(delayed(_fit)(*part) for part in parts), strict=True))


def _joined(fits: Mapping[tuple[str, int], _Fit], kind: str, folds: Folds) -> Floats:
    predicted_s = np.zeros(len(folds))
    for fold in range(FOLDS):
        predicted_s[folds == fold] = fits[kind, fold].predicted_s
    return predicted_s


def _shapes(table: _Table, members: NDArray[np.intp]) -> int:
    return len(set(table.groups[members].tolist()))


def _table(samples: Samples, device: Device, settings: Settings) -> _Table:
    latency_s = np.asarray(samples.latency_s, np.float64)
    if not len(samples.kernels):
        raise InputError("fitting needs measured kernels; got none: run `latpred collect` first")
    if not (np.isfinite(latency_s).all() and (latency_s > 0).all()):
        raise InputError(f"measured latencies must be positive and finite; least is {latency_s.min()} s")
    rows, terms = features_and_terms(samples.kernels, device)
    weight = np.asarray(samples.weight) * (latency_s / np.median(latency_s)) ** settings.time_exponent
    groups = np.unique(np.array(samples.group), return_inverse=True)[1]
    records = np.asarray(samples.record, np.intp)
    return _Table(rows, latency_s, terms.total_s, law_terms(rows, terms), weight, groups, records)


def _part(table: _Table, index: NDArray[np.intp]) -> _Table:
    return _Table(*(getattr(table, field.name)[index] for field in fields(_Table)))


def _folds(groups: NDArray[np.intp], records: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """Fold of each row: whole records where there are enough of them, else whole groups; folds are about even."""
    units = records if len(set(records.tolist())) >= FOLDS else groups
    distinct, inverse = np.unique(units, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(distinct))
    folds: NDArray[np.intp] = (order % FOLDS)[inverse]
    return folds


def _fit(kind: str, learn: _Table, test: _Table, settings: Settings) -> _Fit:
    """One kind on one set of rows: the law and the trees as far as there are shapes enough."""
    if not len(learn.latency_s):
        return _Fit("", (), 1.0, test.roofline_s)
    ratio = float(np.exp(weighted_median(np.log(learn.latency_s / learn.roofline_s), learn.weight)))
    shapes = len(set(learn.groups.tolist()))
    base_s, test_base_s = learn.roofline_s, test.roofline_s
    law: tuple[float, ...] = ()
    if settings.law and shapes >= FEWEST_FOR_LAW:
        law = fit_law(learn.law_terms, learn.latency_s, learn.weight, kind)
        base_s = law_s(law, learn.law_terms, learn.roofline_s)
        test_base_s = law_s(law, test.law_terms, test.roofline_s)
    if shapes < FEWEST_FOR_TREES:
        return _Fit("", law, ratio, test_base_s if law else test_base_s * ratio)
    import lightgbm

    target = np.log(learn.latency_s / base_s)
    columns = _telling(learn.rows)
    data = lightgbm.Dataset(
        learn.rows[:, columns],
        target,
        weight=learn.weight / learn.weight.mean(),
        feature_name=[FEATURES[i] for i in columns],
        params={"verbose": -1},
    )
    booster = lightgbm.train(settings.parameters(len(target)), data, settings.trees)
    log_ratio = np.asarray(booster.predict(test.rows[:, columns])) if len(test.rows) else np.zeros(0)
    return _Fit(booster.model_to_string(), law, ratio, test_base_s * np.exp(log_ratio))


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
