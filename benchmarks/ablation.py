"""What each part of the predictor is worth: it is fitted again without one part at a time.

    python benchmarks/ablation.py DATASET --measured measured.json FOLDER_OR_MODEL... [--families families.json]
        [--only a,c,d] [--json]

DATASET is the folder that `latpred collect` filled; measured.json is what `latpred validate --save` or
`accuracy.py --save` wrote. For each row of `ABLATIONS`: errors over the measured networks (drift cancelled), and over
kernels that the regressors did not see (held out by whole composite graphs). What a variant's MAPE differs from the
first one's stands with the 90 % range that resampling whole families gives: a range around 0 says that these networks
cannot tell the two apart.

A part is taken out where it comes in: columns are NaN when fitting and when predicting, reuse distances are taken off
the kernels, memories off the device, rules off the rule book, what lies between kernels off the bundle.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from coverage import models
from numpy.typing import NDArray
from tabulate import tabulate

from latpred import estimators, regressor
from latpred.bundle import Bundle
from latpred.calibration import Between
from latpred.collect import rounds
from latpred.device import Device, Level, load_toml
from latpred.errors import InputError, LatpredError
from latpred.estimators import LearnedEstimator
from latpred.fit import FitReport, WholeGraph, fit_samples, kernels_at_usual_speed, relative_speeds, whole_graphs
from latpred.forest import Forest
from latpred.kernels.features import FEATURES, features_and_terms
from latpred.kernels.fusion import RuleBook
from latpred.kernels.kernel import Context, Kernel
from latpred.kernels.roofline import Terms
from latpred.kernels.views import COLUMNS
from latpred.metrics import Errors
from latpred.predictor import Predictor
from latpred.regressor import Settings
from latpred.report.validation import without_nan
from latpred.store import Dataset, KernelSample, Meta
from latpred.validation import compare, load_families

# Columns that say what the runtime's blocking, packing and caches make of a shape.
MIRRORING = (
    "window_filled_*", "window_filter_blocks_left", "window_inside*", "window_padded", "product_filled_*",
    "product_m_left", "product_packing_share", "product_right_packed", "rows_filled_*", "move_filled_*",
    "broadcast_filled_*", "resize_resize_filled_*", "*_streamed", "*_calls", "*alignment*", "*_in_near", "*_in_shared",
)  # fmt: skip
VIEWS = tuple(f"{view}_*" for view in COLUMNS)

# A random forest: deep trees on drawn rows and columns, averaged, least squares.
RANDOM_FOREST = Settings(
    trees=100,
    more={
        "boosting": "rf",
        "objective": "regression",
        "num_leaves": 512,
        "min_data_in_leaf": 2,
        "lambda_l2": 0.0,
        "bagging_fraction": 0.632,
        "feature_fraction": 1.0,
        "feature_fraction_bynode": 0.5,
    },
)
UNIT_S = 1e-6


@dataclass(frozen=True, slots=True)
class Ablation:
    """One variant of the predictor, by what it lacks."""

    key: str
    about: str
    hidden: tuple[str, ...] = ()  # patterns of columns that nobody sees
    roofline_target: bool = True
    law: bool = True
    context: bool = True
    three_levels: bool = True
    between: bool = True
    fusion: bool = True
    settings: Settings | None = None

    @property
    def fitted_as_full(self) -> bool:
        """Whether its regressors are those of the full predictor: only what comes after them differs."""
        return replace(self, between=True, fusion=True) == Ablation(self.key, self.about)


ABLATIONS = (
    Ablation("a", "full"),
    Ablation("b", "absolute target: trees on log latency, no roofline and no law below", roofline_target=False,
             law=False),
    Ablation("c", "no law below the trees", law=False),
    Ablation("d", "no features that mirror the runtime", hidden=MIRRORING),
    Ablation("e", "no reuse distances: every kernel by itself", context=False),
    Ablation("f", "one level of memory", three_levels=False),
    Ablation("g", "nothing between kernels", between=False),
    Ablation("h", "no fusion: ops as the file has them", fusion=False),
    Ablation("i", "general features only: no view of a kind's loops", hidden=VIEWS),
    Ablation("j", "random forests, not boosted trees", settings=RANDOM_FOREST),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """What all variants are fitted on, and judged by."""

    kernels: Sequence[KernelSample]
    graphs: Sequence[WholeGraph]
    device: Device
    rules: RuleBook
    meta: Meta
    networks: rounds.Measurements
    families: Mapping[str, str] = field(default_factory=dict)  # network -> family, where its name does not tell

    @classmethod
    def of(cls, folder: Path, networks: rounds.Measurements, families: Mapping[str, str]) -> Measured:
        """A dataset's folder, its latencies taken to the usual speed as `latpred fit` takes them, and the networks."""
        dataset = Dataset.open(folder)
        device, rules = load_toml(folder / "device.toml"), RuleBook.load(folder / "rules.toml")
        kernels = kernels_at_usual_speed(dataset)
        graphs = whole_graphs(dataset.samples(), relative_speeds(dataset))
        return cls(kernels, graphs, device, rules, dataset.meta, networks, families)


@dataclass(frozen=True, slots=True)
class Result:
    """Errors of one variant; kernels are held out."""

    ablation: Ablation
    networks: Errors
    off: Mapping[str, Sequence[float]]  # family -> absolute relative error of each of its networks
    kernel_mape: float
    kernel_mape_by_time: float  # each kind weighs with its share of the measured time

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values, as fractions."""
        return {
            "key": self.ablation.key,
            "about": self.ablation.about,
            "networks": self.networks.to_dict(),
            "off": {family: list(off) for family, off in self.off.items()},
            "kernel_mape": self.kernel_mape,
            "kernel_mape_by_time": self.kernel_mape_by_time,
        }


class UnitTerms(Terms):
    """Roofline terms of which the total says nothing: latency over it is absolute latency in us."""

    @property
    def total_s(self) -> NDArray[np.float64]:
        """The same for every kernel."""
        return np.full(len(self.compute_s), UNIT_S)


def hidden_columns(patterns: Sequence[str]) -> list[str]:
    """Features that one of the patterns names, in their order.

    Examples
    --------
    >>> hidden_columns(["product_m_*", "rank_out"])
    ['rank_out', 'product_m_left', 'product_m_over_n', 'product_m_over_k']
    """
    return [name for name in FEATURES if any(fnmatchcase(name, pattern) for pattern in patterns)]


def seen_by(
    ablation: Ablation,
) -> Callable[[Sequence[Kernel], Device], tuple[NDArray[np.float32], Terms]]:
    """What stands in for `features_and_terms` in a variant."""
    index = [FEATURES.index(name) for name in hidden_columns(ablation.hidden)]

    def features(kernels: Sequence[Kernel], device: Device) -> tuple[NDArray[np.float32], Terms]:
        if not ablation.context:
            kernels = [replace(kernel, context=Context()) for kernel in kernels]
        rows, terms = features_and_terms(kernels, device)
        rows[:, index] = np.nan
        return rows, terms if ablation.roofline_target else UnitTerms(*terms)

    return features


@contextmanager
def without(ablation: Ablation) -> Iterator[None]:
    """Fitting and predicting see no more than the variant does while this lasts."""
    import joblib

    features = seen_by(ablation)
    with (
        joblib.parallel_config(backend="threading"),  # what is replaced here would be whole again in another process
        mock.patch.object(regressor, "features_and_terms", features),
        mock.patch.object(estimators, "features_and_terms", features),
    ):
        yield


def one_level(device: Device) -> Device:
    """The device without its caches: every byte comes from off-chip memory.

    Levels must grow, so the caches stay, with room for nothing and the bandwidth of what lies behind them.
    """
    near, shared, off_chip = device.levels
    bandwidth_bytes_per_s = off_chip.bandwidth_bytes_per_s
    return replace(
        device,
        levels=(Level(near.name, 1, bandwidth_bytes_per_s), Level(shared.name, 2, bandwidth_bytes_per_s), off_chip),
    )


def averaged(forest: Forest) -> Forest:
    """Sum of trees -> mean of trees, kind by kind: LightGBM notes beside a random forest's trees that it averages."""
    value = forest.value.copy()
    ends = [*forest.roots.tolist(), len(value)]
    for first, last in zip(forest.first_tree[:-1], forest.first_tree[1:], strict=True):
        nodes = slice(ends[first], ends[last])
        leaves = forest.jump[nodes] == 0
        value[nodes][leaves] /= max(1, last - first)
    return replace(forest, value=value)


def fit_variant(ablation: Ablation, measured: Measured) -> FitReport:
    """Fit the dataset as the variant sees it; to be called `without` it."""
    device = measured.device if ablation.three_levels else one_level(measured.device)
    settings = replace(ablation.settings or Settings(), law=ablation.law)
    report = fit_samples(
        measured.kernels, measured.graphs, device, measured.rules, measured.meta, jobs=-1, settings=settings
    )
    if ablation.settings is RANDOM_FOREST:
        report = replace(report, bundle=replace(report.bundle, forest=averaged(report.bundle.forest)))
    return report


def taken_apart(ablation: Ablation, bundle: Bundle) -> Bundle:
    """The bundle without what the variant lacks behind the regressors."""
    if not ablation.between:
        bundle = replace(bundle, manifest=replace(bundle.manifest, between=Between()))
    if not ablation.fusion:
        rules = {name: replace(rule, holds=False) for name, rule in bundle.rules.rules.items()}
        bundle = replace(bundle, rules=bundle.rules.revised(rules))
    return bundle


def judge(ablation: Ablation, report: FitReport, networks: rounds.Measurements, families: Mapping[str, str]) -> Result:
    """Predict the networks with a fitted variant; to be called `without` it.

    Raises
    ------
    InputError
        When a network cannot be predicted: variants are compared on the same networks.
    """
    predictor = Predictor(LearnedEstimator(taken_apart(ablation, report.bundle)))
    validation = compare(networks, predictor, families)
    if validation.failed:
        name, why = next(iter(validation.failed.items()))
        raise InputError(f"every network must be measured and predicted; {name}: {why}: leave it out")
    rows = np.array([kind.rows for kind in report.kinds], np.float64)
    shares = np.array([kind.share for kind in report.kinds])
    mapes = np.array([kind.mape for kind in report.kinds])
    off: dict[str, list[float]] = {}
    for one in validation.compared:
        off.setdefault(one.family, []).append(abs(one.error))
    return Result(
        ablation,
        validation.errors,
        off,
        float(np.average(mapes, weights=rows)),
        float(np.average(mapes, weights=shares)),
    )


def difference(result: Result, first: Result, draws: int = 2000) -> tuple[float, float, float]:
    """MAPE beyond that of another variant, and the 90 % range of it over families drawn with replacement."""
    off = [np.subtract(result.off[family], first.off[family]) for family in sorted(first.off)]
    sums, counts = np.array([part.sum() for part in off]), np.array([len(part) for part in off])
    drawn = np.random.default_rng(0).integers(0, len(off), (draws, len(off)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), (0.05, 0.95))
    return float(sums.sum() / counts.sum()), float(low), float(high)


def run(ablations: Sequence[Ablation], measured: Measured) -> Iterator[Result]:
    """Every variant; those that differ only behind the regressors share one fit."""
    full: FitReport | None = None
    for ablation in ablations:
        with without(ablation):
            if ablation.fitted_as_full:
                report = full = full or fit_variant(ablation, measured)
            else:
                report = fit_variant(ablation, measured)
            result = judge(ablation, report, measured.networks, measured.families)
        yield result


def table(results: Sequence[Result]) -> str:
    """One line a variant; the first one is what the others are compared with."""

    def beyond(result: Result) -> str:
        more, low, high = (100 * value for value in difference(result, results[0]))
        return f"{more:+.2f} ({low:+.2f} .. {high:+.2f})"

    headers = ("", "without", "MAPE %", "beyond the first", "median %", "in 5 %", "in 10 %", "worst %",
               "held-out kernels MAPE %", "by time %")  # fmt: skip
    return tabulate(
        [
            (
                result.ablation.key,
                result.ablation.about,
                f"{100 * result.networks.mape:.2f}",
                "" if result is results[0] else beyond(result),
                f"{100 * result.networks.median:.2f}",
                f"{100 * result.networks.within_5:.1f}",
                f"{100 * result.networks.within_10:.1f}",
                f"{100 * result.networks.worst:.1f}",
                f"{100 * result.kernel_mape:.2f}",
                f"{100 * result.kernel_mape_by_time:.2f}",
            )
            for result in results
        ],
        headers=headers,
        disable_numparse=True,
        colalign=("left", "left", *["right"] * (len(headers) - 2)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="folder that `latpred collect` filled")
    parser.add_argument("paths", nargs="+", type=Path, help="models, or folders of them, that were measured")
    parser.add_argument("--measured", type=Path, required=True, help="what `latpred validate --save` wrote")
    parser.add_argument("--families", type=Path, help="JSON object: network -> family")
    parser.add_argument("--only", default="", help="keys of the variants to run, such as a,c,d; all by default")
    parser.add_argument("--json", action="store_true", help="print an object instead of a table")
    options = parser.parse_args(arguments)
    keys = [ablation.key for ablation in ABLATIONS]
    only = options.only.split(",") if options.only else keys
    wanted = [ablation for ablation in ABLATIONS if ablation.key in only]
    results = []
    try:
        if unknown := sorted(set(only) - set(keys)):
            raise InputError(f"--only takes {', '.join(keys)}; got {', '.join(unknown)}: choose among these")
        paths = rounds.names_of(models(options.paths))
        networks = rounds.select(rounds.load(options.measured), paths, str(options.measured))
        families = load_families(options.families) if options.families else {}
        for result in run(wanted, Measured.of(options.dataset, networks, families)):
            print(f"{result.ablation.key} {100 * result.networks.mape:.2f} % {result.ablation.about}", file=sys.stderr)
            results.append(result)
    except LatpredError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = without_nan([result.to_dict() for result in results])
    print(json.dumps(found, indent=1, allow_nan=False) if options.json else table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
