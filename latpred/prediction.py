"""What a prediction says: the network's latency with its interval, and every kernel's part in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from latpred.kernels.kernel import Kernel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ANALYTICAL", "FREE", "LEARNED", "ROOFLINE", "KernelPrediction", "Prediction", "to_csv"]

LEARNED, ROOFLINE, ANALYTICAL, FREE = "learned", "roofline", "analytical", "free"


@dataclass(frozen=True, slots=True)
class KernelPrediction:
    """One kernel of a network; times include its repetitions within one inference."""

    kernel: Kernel
    latency_s: float
    source: str  # learned, roofline (scaled by its kind's or its kin's median) or analytical
    bound: str  # compute, memory or dispatch
    roofline_s: float

    @property
    def roofline_share(self) -> float:
        """Share of the roofline that is reached: 1 is as fast as the device allows."""
        return min(1.0, self.roofline_s / self.latency_s) if self.latency_s > 0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; latency in ms, traffic in bytes."""
        kernel = self.kernel
        return {
            "kind": kernel.kind,
            "label": kernel.label,
            "op_type": kernel.op_type,
            "name": kernel.name,
            "ops": list(kernel.ops),
            "latency_ms": self.latency_s * 1e3,
            "source": self.source,
            "bound": self.bound,
            "roofline_share": self.roofline_share,
            "repeat": kernel.repeat,
            "macs": kernel.work.macs * kernel.repeat,
            "flops": kernel.work.flops * kernel.repeat,
            "traffic_bytes": kernel.work.traffic_bytes * kernel.repeat,
        }


@dataclass(frozen=True, slots=True)
class Prediction:
    """Latency of one network on one device."""

    model: str
    device: str
    latency_s: float
    interval_s: tuple[float, float]
    interval: float  # share of networks that the interval is calibrated to cover
    coverage: float  # share of the latency that learned kernels explain
    kernels: tuple[KernelPrediction, ...]  # in launch order
    free: Mapping[str, str] = field(default_factory=dict)  # op -> why it costs nothing
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; latencies in ms. Ops that cost nothing end the list of kernels, by reason."""
        reasons: dict[str, list[str]] = {}
        for op, reason in self.free.items():
            reasons.setdefault(reason, []).append(op)
        low_s, high_s = self.interval_s
        return {
            "model": self.model,
            "device": self.device,
            "latency_ms": self.latency_s * 1e3,
            "interval_ms": [low_s * 1e3, high_s * 1e3],
            "interval": self.interval,
            "coverage": self.coverage,
            "kernels": [entry.to_dict() for entry in self.kernels]
            + [_free_row(reason, ops) for reason, ops in reasons.items()],
            "warnings": list(self.warnings),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row a kernel, as `to_dict` names the columns, with the model in front."""
        import pandas as pd

        return pd.DataFrame([{"model": self.model, **entry.to_dict()} for entry in self.kernels])


def _free_row(reason: str, ops: list[str]) -> dict[str, Any]:
    return {
        "kind": FREE,
        "label": reason,
        "op_type": "",
        "name": "",
        "ops": ops,
        "latency_ms": 0.0,
        "source": FREE,
        "bound": "none",
        "roofline_share": 1.0,
        "repeat": 1,
        "macs": 0,
        "flops": 0,
        "traffic_bytes": 0,
    }


_CSV_COLUMNS = (
    "model", "device", "kind", "label", "ops", "latency_ms", "source", "bound", "roofline_share", "macs", "flops",
    "traffic_bytes",
)  # fmt: skip


def to_csv(predictions: Iterable[Prediction]) -> str:
    """One row a kernel of each prediction, under one header; several ops are joined by a blank."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for prediction in predictions:
        for row in prediction.to_dict()["kernels"]:
            whose = {"model": prediction.model, "device": prediction.device}
            writer.writerow({**row, **whose, "ops": " ".join(row["ops"])})
    return text.getvalue()
