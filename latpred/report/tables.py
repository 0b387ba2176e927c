"""Plain-text tables of predictions, kernels, devices and fits; nothing here prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING

from tabulate import tabulate

if TYPE_CHECKING:
    from collections import Counter

    from latpred.collect.campaign import Summary
    from latpred.collect.sample import Configuration
    from latpred.device import Device
    from latpred.fit import FitReport
    from latpred.kernels.detect import Detection
    from latpred.kernels.kernel import Kernel
    from latpred.predictor import Prediction

__all__ = [
    "device_table",
    "fit_table",
    "kernels_table",
    "prediction_table",
    "preview_table",
    "remarks_table",
    "summary_table",
]

BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
COUNT_UNITS = ("", "k", "M", "G", "T", "P")


def bytes_text(count: float) -> str:
    """A byte count in the unit that people read.

    Examples
    --------
    >>> bytes_text(1536)
    '1.5 KiB'
    """
    for unit in BYTE_UNITS:
        if count < 1024 or unit == BYTE_UNITS[-1]:
            return f"{count:.3g} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def count_text(count: float) -> str:
    """A count with a decimal prefix.

    Examples
    --------
    >>> count_text(300_774_272)
    '301 M'
    """
    for unit in COUNT_UNITS:
        if count < 1000 or unit == COUNT_UNITS[-1]:
            return f"{count:.3g} {unit}".rstrip()
        count /= 1000
    raise AssertionError("unreachable")


def milliseconds(latency_s: float) -> str:
    """Milliseconds with three significant digits, never in powers of ten.

    Examples
    --------
    >>> milliseconds(0.0123456), milliseconds(1.5e-6)
    ('12.3', '0.0015')
    """
    value = latency_s * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1e-3 else f"{value:.6f}"


def table(rows: Iterable[Sequence[object]], headers: Sequence[str], right: Sequence[int] = ()) -> str:
    """Aligned columns; `right` lists the columns of figures."""
    align = ["right" if column in right else "left" for column in range(len(headers))]
    return tabulate(list(rows), headers=headers, tablefmt="plain", colalign=align, disable_numparse=True)


def shapes_text(kernel: Kernel) -> str:
    """Activations and weights in, first output: ``1x3x224x224 . 32x3x3x3 > 1x32x112x112``."""
    activations = [spec for spec in kernel.inputs if not spec.constant][:2]
    weights = [spec for spec in kernel.inputs if spec.constant and len(spec.shape) > 1][:1]
    left = " . ".join("x".join(map(str, spec.shape)) or "scalar" for spec in [*activations, *weights])
    right = "x".join(map(str, kernel.outputs[0].shape)) or "scalar" if kernel.outputs else ""
    return f"{left} > {right}"


def ops_text(ops: Sequence[str], limit: int = 48) -> str:
    """The ops that a kernel carries, shortened from the left, where scopes repeat."""
    name = ops[0] if ops else "(inserted by the runtime)"
    more = f" (+{len(ops) - 1})" if len(ops) > 1 else ""
    return (name if len(name) <= limit else "..." + name[3 - limit :]) + more


def prediction_table(prediction: Prediction, top: int) -> str:
    """The total with its interval, the share by kind, and the `top` slowest kernels."""
    low_s, high_s = prediction.interval_s
    lines = [
        f"{prediction.model} on {prediction.device}",
        f"latency {milliseconds(prediction.latency_s)} ms   "
        f"{prediction.interval:.0%} interval {milliseconds(low_s)} .. {milliseconds(high_s)} ms   "
        f"explained by learned kernels {prediction.coverage:.1%}",
        "",
    ]
    total_s = sum(entry.latency_s for entry in prediction.kernels) or 1.0
    kinds: dict[str, list[float]] = {}
    for entry in prediction.kernels:
        kinds.setdefault(entry.kernel.kind, []).append(entry.latency_s)
    by_share = sorted(kinds.items(), key=lambda item: -sum(item[1]))
    lines.append(
        table(
            ((kind, f"{sum(times) / total_s:.1%}", len(times), milliseconds(sum(times))) for kind, times in by_share),
            ("kind", "share", "kernels", "ms"),
            right=(1, 2, 3),
        )
    )
    slowest = sorted(prediction.kernels, key=lambda entry: -entry.latency_s)[:top]
    if slowest:
        lines += [
            "",
            table(
                (
                    (
                        milliseconds(entry.latency_s),
                        f"{entry.latency_s / total_s:.1%}",
                        entry.kernel.label,
                        shapes_text(entry.kernel),
                        entry.bound,
                        f"{min(1.0, entry.roofline_s / entry.latency_s):.0%}" if entry.latency_s > 0 else "",
                        entry.source,
                        ops_text(entry.kernel.ops),
                    )
                    for entry in slowest
                ),
                ("ms", "share", "kernel", "shapes", "bound", "of roofline", "source", "ops"),
                right=(0, 1, 5),
            ),
        ]
    lines += [f"warning: {text}" for text in prediction.warnings]
    return "\n".join(lines)


def kernels_table(kernels: Sequence[Kernel], free: Mapping[str, str], unsupported: Sequence[str]) -> str:
    """Kernels in launch order with their work, then what is free and what is unsupported."""
    rows = (
        (
            index,
            kernel.label,
            kernel.op_type,
            shapes_text(kernel),
            kernel.outputs[0].dtype if kernel.outputs else "",
            count_text(kernel.work.macs),
            count_text(kernel.work.flops),
            bytes_text(kernel.work.traffic_bytes),
            f"x{kernel.repeat}" if kernel.repeat != 1 else "",
            ops_text(kernel.ops),
        )
        for index, kernel in enumerate(kernels)
    )
    headers = ("#", "kernel", "runtime op", "shapes", "dtype", "MACs", "FLOPs", "traffic", "", "ops")
    lines = [table(rows, headers, right=(0, 5, 6, 7))]
    reasons: dict[str, int] = {}
    for reason in free.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    lines += [f"free: {count} ops, {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
    lines += [f"unsupported: {name}" for name in unsupported]
    return "\n".join(lines)


def remarks_table(detection: Detection, node: str) -> str:
    """What became of one ONNX node, and what each rule said of it."""
    lines = []
    for index, kernel in enumerate(detection.kernels):
        if node in kernel.ops:
            others = [op for op in kernel.ops if op != node]
            fused = f", together with {', '.join(others)}" if others else ""
            lines.append(f"{node}: kernel {index}, {kernel.label} (runtime op {kernel.op_type}){fused}")
    if node in detection.free:
        lines.append(f"{node}: costs nothing, {detection.free[node]}")
    if node in detection.unsupported:
        lines.append(f"{node}: unsupported")
    lines += [
        f"  {'applied' if remark.applied else 'refused'}  {remark.rule}: {remark.reason}"
        for remark in detection.remarks.get(node, ())
    ]
    return "\n".join(lines)


def device_table(device: Device) -> str:
    """Peak by dtype (theoretical beside it where the processor tells), launches, and the three levels of memory."""
    theoretical = device.theoretical_flops
    longest_start_s = device.start_s(inf, inf)
    lines = [
        f"{device.name}: {device.processor}",
        f"{device.cores} cores, {device.threads} thread(s) used, {device.frequency_hz / 1e9:.2f} GHz, "
        f"dispatch {device.dispatch_s * 1e6:.2f} us, start of an idle graph up to {longest_start_s * 1e6:.1f} us, "
        f"{device.source}",
        "",
        table(
            (
                (
                    dtype,
                    f"{flops / 1e9:.1f}",
                    f"{theoretical[dtype] / 1e9:.1f}" if dtype in theoretical else "",
                    f"{flops / theoretical[dtype]:.0%}" if dtype in theoretical else "",
                    f"{device.ridge_flop_per_byte(dtype):.1f}",
                )
                for dtype, flops in device.peak_flops.items()
            ),
            ("dtype", "peak GFLOP/s", "theoretical", "reached", "ridge FLOP/B"),
            right=(1, 2, 3, 4),
        ),
        "",
        table(
            (
                (level.name, bytes_text(level.size_bytes), f"{level.bandwidth_bytes_per_s / 1e9:.1f}")
                for level in device.levels
            ),
            ("memory", "size", "GB/s"),
            right=(1, 2),
        ),
    ]
    return "\n".join(lines)


def fit_table(report: FitReport) -> str:
    """Held-out error of each kind's regressor."""
    return table(
        (
            (
                row.kind,
                row.rows,
                f"{row.share:.1%}",
                f"{row.median_error:.1%}",
                f"{row.mape:.1%}",
                f"{row.roofline_mape:.0%}",
            )
            for row in report.kinds
        ),
        ("kind", "rows", "share of time", "median error", "MAPE", "MAPE of roofline alone"),
        right=(1, 2, 3, 4, 5),
    )


def preview_table(rows: Sequence[tuple[Configuration, Counter[str]]]) -> str:
    """What a campaign would measure first: the blocks of each composite graph, and its kernels by kind."""
    return table(
        (
            (
                index,
                "+".join(made.templates),
                sum(kinds.values()),
                ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6)),
            )
            for index, (made, kinds) in enumerate(rows)
        ),
        ("#", "blocks", "kernels", "most of them"),
        right=(0, 2),
    )


def summary_table(summary: Summary) -> str:
    """What a campaign measured, and how far two measurements of the same thing differ."""
    lines = [
        f"{summary.composites} composite graphs, {summary.kernels} kernels of {len(summary.kernels_by_kind)} kinds in "
        f"{summary.elapsed_s / 60:.1f} min; {summary.failed} graphs failed, {summary.remeasured} were measured again; "
        f"{summary.matched_share:.2%} of the profiled time was named by the detector",
    ]
    if summary.noise_floor:
        shares = {what: share for what, share in summary.noise_floor.items() if what != "repeats"}
        floor = ", ".join(f"{what.replace('_', ' ')} {share:.1%}" for what, share in shares.items())
        lines.append(f"noise floor ({summary.noise_floor['repeats']:.0f} graphs measured twice): {floor}")
    if summary.validation:
        curve = " -> ".join(f"{error:.1%}" for _, error in summary.validation)
        minutes = ", ".join(f"{elapsed_s / 60:.0f}" for elapsed_s, _ in summary.validation)
        lines.append(f"validation error {curve} (after {minutes} min)")
    lines += [f"notice: {notice}" for notice in summary.notices]
    return "\n".join(lines)
