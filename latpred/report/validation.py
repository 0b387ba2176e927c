"""What a validation found, as text for people and as one JSON object; nothing here prints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from latpred.report.tables import milliseconds, shapes_text, table

if TYPE_CHECKING:
    from latpred.comparison import Compared, KernelMiss
    from latpred.metrics import Errors
    from latpred.validation import Validation

__all__ = ["percent", "validation_object", "validation_text", "without_nan"]

MOST_MISSES = 10
NAMED_NETWORKS = 3  # that a warning lists


def percent(value: float, digits: int = 1) -> str:
    """A fraction in percent; a dash where there is none.

    Examples
    --------
    >>> percent(0.0312), percent(float("nan"))
    ('3.1', '-')
    """
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f}"


def signed(value: float) -> str:
    """A fraction in percent with its sign.

    Examples
    --------
    >>> signed(-0.0312)
    '-3.1'
    """
    return f"{100 * value:+.1f}"


def signed_ms(seconds: float) -> str:
    """Milliseconds with their sign.

    Examples
    --------
    >>> signed_ms(-0.0015)
    '-1.5'
    """
    return ("-" if seconds < 0 else "+") + milliseconds(abs(seconds))


# measure -> how people read it; the order of the summary
MEASURES: tuple[tuple[str, Callable[[Errors], str]], ...] = (
    ("MAPE %", lambda errors: percent(errors.mape, 2)),
    ("median error %", lambda errors: percent(errors.median, 2)),
    ("RMSPE %", lambda errors: percent(errors.rmspe, 2)),
    ("bias %", lambda errors: f"{100 * errors.bias:+.2f}"),
    ("within 5 %", lambda errors: percent(errors.within_5)),
    ("within 10 %", lambda errors: percent(errors.within_10)),
    ("worst %", lambda errors: percent(errors.worst)),
    ("Spearman", lambda errors: "-" if math.isnan(errors.spearman) else f"{errors.spearman:.4f}"),
    ("Kendall", lambda errors: "-" if math.isnan(errors.kendall) else f"{errors.kendall:.4f}"),
)


def validation_text(validation: Validation) -> str:
    """Networks worst first, families, kinds, the kernels that cost most error, and the summary."""
    parts = [
        f"predicted for {validation.device}; measured on {validation.measured_on}",
        _networks(validation),
        _families(validation),
        _kinds(validation),
        _misses(validation),
        _summary(validation),
        "\n".join(_warnings(validation)),
    ]
    return "\n\n".join(part for part in parts if part)


def _networks(validation: Validation) -> str:
    return table(
        (
            (
                one.name,
                milliseconds(one.measured_s),
                milliseconds(one.prediction.latency_s),
                signed(one.error),
                "yes" if one.inside else "no",
                percent(one.width, 0),
                percent(one.retest),
                _worst_kernel(one.worst_kernel),
            )
            for one in sorted(validation.compared, key=lambda one: -abs(one.error))
        ),
        ("network", "measured ms", "predicted ms", "error %", "inside", "width %", "retest %",
         "kernel that misses most, ms"),
        right=(1, 2, 3, 5, 6),
    )  # fmt: skip


def _worst_kernel(miss: KernelMiss | None) -> str:
    return f"{signed_ms(miss.error_s)} {miss.label} {shapes_text(miss.kernel)}" if miss else ""


def _families(validation: Validation) -> str:
    return table(
        (
            (family, errors.count, percent(errors.mape, 2), signed(errors.bias), percent(errors.worst))
            for family, errors in sorted(validation.by_family.items(), key=lambda item: -item[1].mape)
        ),
        ("family", "networks", "MAPE %", "bias %", "worst %"),
        right=(1, 2, 3, 4),
    )


def _kinds(validation: Validation) -> str:
    if not validation.by_kind:
        return ""
    return table(
        (
            (
                kind,
                errors.count,
                percent(errors.share),
                percent(errors.median),
                percent(errors.mape),
                *(percent(value) for value in errors.above_20us or (math.nan, math.nan)),
            )
            for kind, errors in validation.by_kind.items()
        ),
        ("kind", "kernels", "share of time %", "median error %", "MAPE %", "20 us up: median %", "MAPE %"),
        right=(1, 2, 3, 4, 5, 6),
    )


def _misses(validation: Validation) -> str:
    if not validation.misses:
        return ""
    return table(
        (
            (
                percent(miss.share_of_error),
                miss.label,
                shapes_text(miss.kernel),
                miss.count,
                miss.networks,
                milliseconds(miss.measured_s),
                milliseconds(miss.predicted_s),
                signed(miss.error_s / miss.measured_s),
            )
            for miss in validation.misses[:MOST_MISSES]
        ),
        ("share of error %", "kernel", "shapes", "kernels", "networks", "measured ms", "predicted ms", "error %"),
        right=(0, 3, 4, 5, 6, 7),
    )


def _summary(validation: Validation) -> str:
    columns = [("prediction", validation.errors)]
    floor, everywhere = validation.noise, not validation.noise or validation.noise.count == len(validation.compared)
    columns += [("noise floor" if everywhere else f"noise floor of {floor.count}", floor)] if floor else []
    columns += [("prediction, drift left in", validation.raw_errors)]
    interval = validation.compared[0].prediction.interval
    lines = [
        table(
            [(name, *(write(errors) for _, errors in columns)) for name, write in MEASURES],
            (f"{len(validation.compared)} networks", *(name for name, _ in columns)),
            right=tuple(range(1, 1 + len(columns))),
        ),
        "",
        f"{interval:.0%} interval: {percent(validation.coverage)} % of the networks inside, "
        f"median width {percent(validation.width)} % of the latency",
    ]
    if floor:
        ratio = "-" if math.isnan(validation.noise_ratio) else f"{validation.noise_ratio:.2f}"
        where = "" if everywhere else f"over the networks with two rounds or more ({floor.count}), "
        lines += [
            "noise floor: every round in turn as a prediction of the median of the others; "
            f"{where}MAPE is {ratio} times that of measuring again",
            "a perfect prediction would lie below that floor: its yardstick is the median of all rounds",
            f"rounds differ by {percent(validation.retest, 2)} %, with the drift left in by "
            f"{percent(validation.raw_retest, 2)} %",
        ]
    else:
        lines.append("noise floor: unknown, two rounds are needed")
    lines.append(f"drift: the slowest reference took {validation.drift:.2f} times the fastest")
    if validation.machine_ratio is not None:
        lines.append(
            f"the reference takes {validation.machine_ratio:.2f} times what it took in the campaign, and drift is "
            "cancelled to the campaign's speed"
        )
    if validation.kernels_above_20us:
        large = validation.kernels_above_20us
        lines.append(
            f"kernels of 20 us and more: {large.count}, median error {percent(large.median)} %, "
            f"MAPE {percent(large.mape)} %; {percent(_unmatched_share(validation), 2)} % of the profiled time has no "
            "predicted kernel"
        )
    lines.append(f"regime: {validation.regime}")
    return "\n".join(lines)


def _unmatched_share(validation: Validation) -> float:
    missed_s = sum(one.unmatched_s for one in validation.compared)
    matched_s = sum(measured_s or 0.0 for one in validation.compared for _, measured_s in one.kernels)
    return missed_s / (missed_s + matched_s) if missed_s + matched_s else 0.0


def _warnings(validation: Validation) -> list[str]:
    """The predictor's own words, then those on single networks, equal ones once."""
    of_networks: dict[str, list[str]] = {}
    for one in validation.compared:
        for text in one.prediction.warnings:
            if text not in validation.warnings:
                of_networks.setdefault(text, []).append(one.name)
    lines = [f"warning: {text}" for text in validation.warnings]
    for text, names in of_networks.items():
        more = f" and {len(names) - NAMED_NETWORKS} more" if len(names) > NAMED_NETWORKS else ""
        lines.append(f"warning: {', '.join(names[:NAMED_NETWORKS])}{more}: {text}")
    return lines


def validation_object(validation: Validation) -> dict[str, Any]:
    """Plain JSON-ready values; latencies in ms, errors and shares as fractions, None for what is undefined."""
    found = {
        "device": validation.device,
        "measured_on": validation.measured_on,
        "regime": validation.regime,
        "errors": validation.errors.to_dict(),
        "errors_with_drift": validation.raw_errors.to_dict(),
        "noise_floor": validation.noise.to_dict() if validation.noise else None,
        "noise_ratio": validation.noise_ratio,
        "interval": validation.compared[0].prediction.interval,
        "interval_coverage": validation.coverage,
        "interval_width": validation.width,
        "retest": validation.retest,
        "retest_with_drift": validation.raw_retest,
        "drift": validation.drift,
        "machine_ratio": validation.machine_ratio,
        "kernels_above_20us": validation.kernels_above_20us.to_dict() if validation.kernels_above_20us else None,
        "unmatched_share": _unmatched_share(validation),
        "networks": [_network_object(one) for one in sorted(validation.compared, key=lambda one: -abs(one.error))],
        "families": {family: errors.to_dict() for family, errors in validation.by_family.items()},
        "kinds": {kind: asdict(errors) for kind, errors in validation.by_kind.items()},
        "kernels_that_miss_most": [_miss_object(miss) for miss in validation.misses[:MOST_MISSES]],
        "failed": dict(validation.failed),
        "warnings": list(validation.warnings),
    }
    plain: dict[str, Any] = without_nan(found)
    return plain


def _network_object(one: Compared) -> dict[str, Any]:
    return {
        "name": one.name,
        "family": one.family,
        "measured_ms": one.measured_s * 1e3,
        "measured_with_drift_ms": one.raw_measured_s * 1e3,
        "predicted_ms": one.prediction.latency_s * 1e3,
        "interval_ms": [bound_s * 1e3 for bound_s in one.prediction.interval_s],
        "error": one.error,
        "inside": one.inside,
        "width": one.width,
        "retest": one.retest,
        "retest_with_drift": one.raw_retest,
        "kernel_that_misses_most": _miss_object(one.worst_kernel) if one.worst_kernel else None,
        "unmatched_ms": one.unmatched_s * 1e3,
        "warnings": list(one.prediction.warnings),
    }


def _miss_object(miss: KernelMiss) -> dict[str, Any]:
    return {
        "kind": miss.kind,
        "label": miss.label,
        "name": miss.name,
        "shapes": shapes_text(miss.kernel),
        "kernels": miss.count,
        "networks": miss.networks,
        "measured_ms": miss.measured_s * 1e3,
        "predicted_ms": miss.predicted_s * 1e3,
        "error_ms": miss.error_s * 1e3,
        "share_of_error": miss.share_of_error,
    }


def without_nan(value: Any) -> Any:
    """The same with None for what is not finite, at any depth: JSON has no NaN.

    Examples
    --------
    >>> without_nan({"spearman": float("nan"), "errors": (0.5, float("inf"))})
    {'spearman': None, 'errors': [0.5, None]}
    """
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
