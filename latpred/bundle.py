"""A fitted predictor on disk: models/<device>/ with manifest, trees, device and rules; loading executes nothing.

- `manifest.json`: what it was fitted on, the errors reached, what lies between kernels, checksums;
- `forest.npz`: the trees; `device.toml`: the device; `rules.toml`: the fusion rules, which a person may mend.

History of the schema: 1, the first; 2, the weights of the interval's parts are fitted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latpred.calibration import Between, Calibration
from latpred.device import Device, dump_toml, load_toml
from latpred.errors import ArtefactError, DeviceError
from latpred.forest import Forest
from latpred.kernels.fusion import RuleBook

__all__ = ["SCHEMA_VERSION", "Bundle", "KindSummary", "Manifest"]

SCHEMA_VERSION = 2
SEALED = ("forest.npz", "device.toml")  # files whose checksum must match; rules.toml may be edited


@dataclass(frozen=True, slots=True)
class KindSummary:
    """What was learned of one kind, and how well; errors are held out, as fractions."""

    kind: str
    rows: int
    shapes: int
    share: float  # of the measured time
    learned: bool  # False: too few shapes, the roofline is scaled by `ratio`
    ratio: float  # median of latency over roofline time
    law: tuple[float, ...]  # factors of the linear law that the trees correct; empty where there were too few shapes
    median_error: float
    mape: float
    roofline_mape: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a predictor is of, and what it reached."""

    device: str
    processor: str
    runtime: str
    runtime_version: str
    threads: int
    provider: str
    latpred_version: str
    created: str  # UTC, ISO 8601
    records: int  # composite graphs it was fitted on
    rows: int  # kernels
    dtypes: tuple[str, ...]
    kinds: Mapping[str, KindSummary]
    between: Between
    calibration: Calibration
    noise_floor: Mapping[str, float] = field(default_factory=dict)
    reference_s: float | None = None  # usual latency of the reference graph while it was collected
    checksums: Mapping[str, str] = field(default_factory=dict)  # file -> sha256
    schema_version: int = SCHEMA_VERSION

    @property
    def label(self) -> str:
        """Whose latency it is, for a person."""
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"{self.processor}, {self.runtime} {self.runtime_version}, {threads}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; `from_dict` reads them back."""
        return {**asdict(self), "dtypes": list(self.dtypes), "calibration": self.calibration.to_dict()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], origin: str) -> Manifest:
        """A manifest from what `to_dict` gave.

        Raises
        ------
        ArtefactError
            When the schema version is not this one, or a field is missing or of the wrong form.
        """
        if row.get("schema_version") != SCHEMA_VERSION:
            raise ArtefactError(
                f"{origin}: schema version {SCHEMA_VERSION} is needed, found {row.get('schema_version')!r}: "
                "run `latpred fit` with this latpred"
            )
        try:
            fields = dict(row)
            fields["dtypes"] = tuple(row["dtypes"])
            fields["kinds"] = {
                kind: KindSummary(**{**summary, "law": tuple(summary["law"])}) for kind, summary in row["kinds"].items()
            }
            fields["between"] = Between(**row["between"])
            fields["calibration"] = Calibration.from_dict(row["calibration"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(f"{origin}: the manifest is incomplete ({error}): run `latpred fit` again") from error


@dataclass(frozen=True, slots=True)
class Bundle:
    """All that predicting needs."""

    manifest: Manifest
    forest: Forest
    device: Device
    rules: RuleBook

    def save(self, path: str | Path) -> Manifest:
        """Write all files; the manifest, written last, seals them.

        Returns
        -------
        Manifest
            With the checksums of what was written.
        """
        from dataclasses import replace

        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").unlink(missing_ok=True)  # half a bundle must not look whole
        self.forest.save(folder / "forest.npz")
        dump_toml(self.device, folder / "device.toml")
        self.rules.dump(folder / "rules.toml")
        manifest = replace(self.manifest, checksums={name: _sha256(folder / name) for name in SEALED})
        text = json.dumps(manifest.to_dict(), indent=1, sort_keys=True, allow_nan=False)
        (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
        return manifest

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle.

        Raises
        ------
        ArtefactError
            When a file is missing or altered, or the schema is another.
        """
        folder = Path(path)
        manifest = load_manifest(folder)
        for name in SEALED:
            try:
                found = _sha256(folder / name)
            except OSError as error:
                raise ArtefactError(f"{folder}: {name} is needed and cannot be read ({error}): fit again") from error
            if found != manifest.checksums.get(name):
                raise ArtefactError(f"{folder / name}: its checksum is not the manifest's, it was altered: fit again")
        try:
            device = load_toml(folder / "device.toml")
            rules = RuleBook.load(folder / "rules.toml")
        except (OSError, DeviceError) as error:
            raise ArtefactError(f"{folder}: device and rules must be readable ({error}): fit again") from error
        return cls(manifest, Forest.load(folder / "forest.npz"), device, rules)

    def check_runtime(self, installed: str | None) -> None:
        """Refuse to speak for another version of the runtime than the one measured.

        Raises
        ------
        ArtefactError
            When the installed version is another.
        """
        if installed != self.manifest.runtime_version:
            raise ArtefactError(
                f"this predictor was measured with {self.manifest.runtime} {self.manifest.runtime_version}, "
                f"{'none' if installed is None else installed} is installed: "
                f"run `latpred collect --device {self.manifest.device} --threads {self.manifest.threads}`"
            )

    def check_machine(self, processor: str) -> None:
        """Refuse to speak for another machine than the one measured.

        Raises
        ------
        DeviceError
            When `processor` is another; an empty one cannot be compared.
        """
        if processor and not self.manifest.processor.startswith(processor):
            raise DeviceError(
                f"this predictor was measured on {self.manifest.processor}, this machine is {processor}: "
                f"run `latpred collect --device {self.manifest.device} --threads {self.manifest.threads}`"
            )


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle; raises as `Bundle.load` does."""
    path = folder / "manifest.json"
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"no predictor in {folder}: run `latpred collect` or `latpred fit` first") from None
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path}: a manifest must be JSON ({error}): run `latpred fit` again") from error
    if not isinstance(row, dict):
        raise ArtefactError(f"{path}: a manifest must be a JSON object: run `latpred fit` again")
    return Manifest.from_dict(row, str(path))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
