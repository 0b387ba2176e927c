"""Measured kernels on disk: a folder a device, one compressed line a composite graph, appended durably.

Layout of `datasets/<device>/`:

- `meta.json`: what the measurements have in common (`Meta`); another machine, runtime or thread count is refused;
- `device.toml`, `rules.toml`: the device and the fusion rules that the kernels were named by;
- `measurements.jsonl.gz`: records, each one its own gzip member, so that a torn last one costs nothing else.

History of the schema: 1, the first.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from latpred.errors import ArtefactError
from latpred.kernels.kernel import Kernel
from latpred.packing import pack_kernel, signature, unpack_kernel

__all__ = ["SCHEMA_VERSION", "Dataset", "KernelSample", "Meta", "pack_kernel", "signature", "unpack_kernel"]

SCHEMA_VERSION = 2  # 2: contexts tell where outputs lie; 1: first
GZIP = 31  # zlib's window bits for a gzip container

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Meta:
    """What every measurement of a dataset shares."""

    device: str
    processor: str
    runtime: str
    runtime_version: str
    threads: int
    provider: str = "CPUExecutionProvider"
    options: Mapping[str, str] = field(default_factory=dict)  # of the session, where they are no defaults
    latpred_version: str = ""
    seed: int = 0  # of the stream of configurations
    noise_floor: Mapping[str, float] = field(default_factory=dict)  # relative differences, by what was repeated
    reference_s: float | None = None  # usual latency of the reference graph: the machine's speed, an absolute one
    facts: Mapping[str, Any] = field(default_factory=dict)  # pinning, governor and such: told, never compared
    schema_version: int = SCHEMA_VERSION

    def differences(self, other: Meta) -> list[str]:
        """What forbids to mix measurements of two metas, in words; empty where nothing does.

        Examples
        --------
        >>> one = Meta("local", "EPYC", "onnxruntime", "1.31.1", threads=1)
        >>> one.differences(replace(one, threads=2))
        ['threads: 1 here, 2 there']
        """
        compared = ("processor", "runtime", "runtime_version", "threads", "provider", "options")
        return [
            f"{name}: {getattr(self, name)} here, {getattr(other, name)} there"
            for name in compared
            if getattr(self, name) != getattr(other, name)
        ]


class KernelSample(NamedTuple):
    """One measured kernel, as learning wants it."""

    kernel: Kernel
    latency_s: float  # of one launch
    weight: float  # reliability: 1 for a quiet, well-sampled kernel, less otherwise
    group: str  # the kernel's signature: equal shapes share it
    record: int  # ordinal of the record that it came in


class Dataset:
    """A folder of measurements.

    Examples
    --------
    >>> import tempfile
    >>> meta = Meta("local", "EPYC", "onnxruntime", "1.31.1", threads=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset = Dataset.create(Path(folder) / "local", meta)
    ...     dataset.append({"latency": {"median_s": 0.002}, "kernels": []})
    ...     [record["latency"]["median_s"] for record in Dataset.open(dataset.path).records()]
    [0.002]
    """

    def __init__(self, path: Path, meta: Meta) -> None:
        self.path = path
        self.meta = meta
        self.notices: list[str] = []
        self._sound_bytes: int | None = None  # length of what is known to be whole; None before the first look

    @classmethod
    def create(cls, path: str | os.PathLike[str], meta: Meta, device_toml: str = "", rules_toml: str = "") -> Dataset:
        """Start an empty dataset.

        Raises
        ------
        ArtefactError
            Where one lies there already.
        """
        folder = Path(path)
        if (folder / "meta.json").exists():
            raise ArtefactError(f"a new dataset needs an empty folder, {folder} holds one: open it or remove it first")
        folder.mkdir(parents=True, exist_ok=True)
        dataset = cls(folder, meta)
        if device_toml:
            _write(folder / "device.toml", device_toml)
        if rules_toml:
            _write(folder / "rules.toml", rules_toml)
        dataset.set_meta(meta)
        return dataset

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Dataset:
        """A dataset that exists.

        Raises
        ------
        ArtefactError
            Where there is none, or its schema version is not this one.
        """
        folder = Path(path)
        try:
            row = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtefactError(f"no dataset in {folder}: run `latpred collect` first") from None
        except (OSError, ValueError) as error:
            raise ArtefactError(f"{folder / 'meta.json'} cannot be read ({error}): collect again") from error
        found = row.get("schema_version") if isinstance(row, dict) else None
        if found != SCHEMA_VERSION:
            raise ArtefactError(
                f"schema version {SCHEMA_VERSION} is needed, {folder} has {found}: collect again with this latpred"
            )
        known = {f.name for f in fields(Meta)}
        try:
            return cls(folder, Meta(**{name: value for name, value in row.items() if name in known}))
        except TypeError as error:
            raise ArtefactError(f"{folder / 'meta.json'} is incomplete ({error}): collect again") from error

    @classmethod
    def open_or_create(
        cls, path: str | os.PathLike[str], meta: Meta, device_toml: str = "", rules_toml: str = ""
    ) -> Dataset:
        """Go on with a dataset, or start it.

        Raises
        ------
        ArtefactError
            Where the one that exists was measured on another processor, runtime, thread count or with other options.
        """
        if not (Path(path) / "meta.json").exists():
            return cls.create(path, meta, device_toml, rules_toml)
        dataset = cls.open(path)
        if differences := dataset.meta.differences(meta):
            raise ArtefactError(
                f"{dataset.path} was measured under other conditions ({'; '.join(differences)}): "
                "choose another --device name or --home, or remove it"
            )
        return dataset

    @property
    def measurements(self) -> Path:
        """The file that holds the records."""
        return self.path / "measurements.jsonl.gz"

    def set_meta(self, meta: Meta) -> None:
        """Replace the common metadata in one step: a reader sees the old or the new, never half of it."""
        _write(self.path / "meta.json", json.dumps(asdict(meta), indent=2, sort_keys=True) + "\n")
        self.meta = meta

    def note_noise_floor(self, noise_floor: Mapping[str, float]) -> None:
        """Store how far two measurements of the same thing differ."""
        self.set_meta(replace(self.meta, noise_floor=dict(noise_floor)))

    def note_reference(self, reference_s: float) -> None:
        """Store how long the reference graph usually took."""
        self.set_meta(replace(self.meta, reference_s=reference_s))

    def append(self, record: Record) -> None:
        """Write one record so that it survives a power cut: own gzip member, flushed to the disk.

        A torn member that an earlier crash left at the end is cut off first, so that it hides nothing.
        """
        if self._sound_bytes is None:
            self._sound_bytes = 0
            deque(self._members(), maxlen=0)
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        packer = zlib.compressobj(9, zlib.DEFLATED, GZIP)
        member = packer.compress(line) + packer.flush()
        mode = "r+b" if self.measurements.exists() else "w+b"
        with self.measurements.open(mode) as file:
            file.seek(self._sound_bytes or 0)
            file.write(member)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._sound_bytes = (self._sound_bytes or 0) + len(member)

    def records(self) -> Iterator[Record]:
        """Every whole record, oldest first; `kernels` stay packed (`latpred.packing.unpack_kernel` opens one).

        Raises
        ------
        ArtefactError
            Where the file is damaged elsewhere than at its end.
        """
        for line in self._lines():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ArtefactError(f"{self.measurements} holds a line that is no JSON ({error}): remove it") from error
            yield record

    def samples(self) -> list[tuple[int, Record]]:
        """Records to learn from, with their ordinals: neither repeats, nor failures, nor what was voided later.

        A record of the role "void" takes back the records whose ordinals stand in its "voids".
        """
        kept: dict[int, Record] = {}
        for ordinal, record in enumerate(self.records()):
            role = record.get("role", "sample")
            if role == "sample":
                kept[ordinal] = record
            elif role == "void":
                for voided in record["voids"]:
                    kept.pop(voided, None)
        return list(kept.items())

    def chains(self) -> list[Record]:
        """Records of graphs that ran whole and in pieces (role "chain"), oldest first."""
        return [record for record in self.records() if record.get("role") == "chain"]

    def kernels(self) -> list[KernelSample]:
        """Measured kernels of `samples`; within one record equal ones that find the caches alike are merged."""
        rows: list[KernelSample] = []
        for ordinal, record in self.samples():
            merged: dict[tuple[str, tuple[int, int, int]], list[tuple[Kernel, float, float]]] = {}
            for packed in record["kernels"]:
                kernel = unpack_kernel(packed)
                key = signature(kernel), kernel.context.distances
                merged.setdefault(key, []).append((kernel, packed["latency_s"], _weight(packed)))
            for (group, _), same in merged.items():
                total = sum(weight for *_, weight in same)
                latency_s = sum(latency * weight for _, latency, weight in same) / total
                rows.append(KernelSample(same[0][0], latency_s, min(total, 2.0), group, ordinal))
        return rows

    def __len__(self) -> int:
        return sum(1 for _ in self._lines())

    def compact(self) -> int:
        """Rewrite all records as one gzip member, for shipping: a third of the size. Returns the new size in bytes.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dataset = Dataset.create(folder, Meta("local", "EPYC", "onnxruntime", "1.31.1", threads=1))
        ...     for seed in range(3):
        ...         dataset.append({"seed": seed})
        ...     size_bytes = dataset.compact()
        ...     [record["seed"] for record in dataset.records()]
        [0, 1, 2]
        """
        packer = zlib.compressobj(9, zlib.DEFLATED, GZIP)
        temporary = self.measurements.with_name(self.measurements.name + ".part")
        with temporary.open("wb") as file:
            for line in self._lines():
                file.write(packer.compress(line))
            file.write(packer.flush())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.measurements)
        self._sound_bytes = None
        return self.measurements.stat().st_size

    def _lines(self) -> Iterator[bytes]:
        for member in self._members():
            yield from member.splitlines(keepends=True)

    def _members(self) -> Iterator[bytes]:
        """Decompressed gzip members; a torn last one is dropped with a notice."""
        data = self.measurements.read_bytes() if self.measurements.exists() else b""
        start = 0
        while start < len(data):
            unpacker = zlib.decompressobj(GZIP)
            try:
                line = unpacker.decompress(memoryview(data)[start:])
            except zlib.error as error:
                raise ArtefactError(
                    f"{self.measurements} is damaged at byte {start} ({error}): remove it and collect again"
                ) from error
            if not unpacker.eof:
                notice = f"{self.measurements}: the last record was cut short and is left out"
                if notice not in self.notices:
                    self.notices.append(notice)
                break
            start = len(data) - len(unpacker.unused_data)
            yield line
        self._sound_bytes = start


def _write(path: Path, text: str) -> None:
    """Replace a file atomically."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _weight(packed: Mapping[str, Any]) -> float:
    """Reliability of one mean: 1 where its standard error is nothing, 1/2 where it is 10 %, never below 0.05."""
    error = float(packed.get("spread", 0.0)) / max(1, int(packed.get("samples", 1))) ** 0.5
    return float(max(0.05, 1.0 / (1.0 + 10.0 * error)))
