"""A target as a three-level roofline: peak FLOP/s, three memories, dispatch; measured, or written by hand as TOML.

A device file is TOML with ``schema_version``; everything is SI: Hz, FLOP/s, bytes, B/s, seconds.

Schema history
--------------
1. First version.
"""

from __future__ import annotations

import math
import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from latpred.errors import DeviceError

__all__ = ["SCHEMA_VERSION", "SOURCES", "Device", "Level", "dump_toml", "load_toml", "preset", "presets"]

SCHEMA_VERSION = 1

SOURCES = ("measured", "theoretical")

# Where a dtype's own peak is not given: the first dtype of its row that is, times the factor.
# A CPU provider without half-precision arithmetic computes float16 as float32; 64-bit elements fill
# a vector register with half as many lanes; integer kernels without a dot-product path run as float32.
_STAND_INS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "float16": (("float32", 1.0),),
    "bfloat16": (("float16", 1.0), ("float32", 1.0)),
    "float64": (("float32", 0.5),),
    "int8": (("uint8", 1.0), ("float32", 1.0)),
    "uint8": (("int8", 1.0), ("float32", 1.0)),
    "int64": (("float64", 1.0), ("float32", 0.5)),
    "uint64": (("float64", 1.0), ("float32", 0.5)),
}


@dataclass(frozen=True, slots=True)
class Level:
    """One level of memory.

    Attributes
    ----------
    name : str
        Such as ``L2``.
    size_bytes : int
        Capacity in B. Of the first level: what one processing element (a core, a GPU's SM) has to itself.
    bandwidth_bytes_per_s : float
        Bytes read and written together a second, by all `Device.threads` at once.

    Raises
    ------
    DeviceError
        When the size or the bandwidth is not positive and finite.
    """

    name: str
    size_bytes: int
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        _positive(f"size_bytes of memory level {self.name!r}", self.size_bytes, "B")
        _positive(f"bandwidth_bytes_per_s of memory level {self.name!r}", self.bandwidth_bytes_per_s, "B/s")


@dataclass(frozen=True, slots=True)
class Device:
    """The three-level roofline of a target.

    Attributes
    ----------
    name : str
        What people call it.
    processor : str
        Model of the CPU or GPU.
    cores : int
        Physical cores (SMs of a GPU).
    threads : int
        How many of them work on one inference: every peak and bandwidth here holds at this count.
    frequency_hz : float
        Clock under load, Hz.
    peak_flops : mapping of str to float
        FLOP/s by dtype; ``float32`` must be there. A multiply-add counts as 2, integer ones too.
    levels : tuple of three Level
        Memory at the processing elements, shared on-chip memory, off-chip memory: sizes grow.
    dispatch_s : float
        Cost of launching one kernel, s.
    lanes : mapping of str to int
        Elements by dtype that a processing element takes at a time: what channels are rounded up to.
    theoretical_flops : mapping of str to float
        Cores x Hz x lanes x FMA units x 2 at `threads`, beside a measured peak, where the processor tells.
    peak_flops_by_threads : mapping of int to mapping
        Peaks by dtype at other thread counts, where measured.
    bandwidth_curve : tuple of (int, float)
        Working set in B, bandwidth in B/s: the measurement that the levels were read from.
    start_curve : tuple of (int, float, float)
        Bytes touched since; what starting a graph costs more for having lain idle so long, in s; and what it costs on
        top where no graph was started since, in s. Sizes grow. Without it, each cost is taken to be `dispatch_s`.
    runtime, runtime_version, provider : str
        What ran the measurement, such as ``onnxruntime``, ``1.31.1``, ``CPUExecutionProvider``.
    source : str
        ``measured`` or ``theoretical``.
    notes, references : tuple of str
        Assumptions, and where numbers come from.
    derivation : mapping
        Ingredients of theoretical numbers (cores, clock, lanes, bus width), for recomputing them.

    Raises
    ------
    DeviceError
        When a number is not positive and finite, float32 has no peak, the levels are not three of growing size, or
        sizes of `start_curve` do not grow, or one of its costs is negative or not finite.

    Examples
    --------
    >>> levels = Level("L2", 2**20, 80e9), Level("L3", 2**24, 20e9), Level("DRAM", 2**34, 10e9)
    >>> device = Device("toy", "toy-1", 1, 1, 1e9, {"float32": 100e9}, levels, 1e-6, {"float32": 8})
    >>> device.ridge_flop_per_byte()
    10.0
    >>> device.peak("float16"), device.peak("float64")
    (100000000000.0, 50000000000.0)
    >>> device.bandwidth_for(4 * 2**20) / 1e9
    20.0
    """

    name: str
    processor: str
    cores: int
    threads: int
    frequency_hz: float
    peak_flops: Mapping[str, float]
    levels: tuple[Level, Level, Level]
    dispatch_s: float
    lanes: Mapping[str, int]
    theoretical_flops: Mapping[str, float] = field(default_factory=dict)
    peak_flops_by_threads: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    bandwidth_curve: tuple[tuple[int, float], ...] = ()
    start_curve: tuple[tuple[int, float, float], ...] = ()
    runtime: str = ""
    runtime_version: str = ""
    provider: str = ""
    source: str = "theoretical"
    notes: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    derivation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise DeviceError(
                f"source of device {self.name!r} must be one of {', '.join(SOURCES)}; got {self.source!r}"
            )
        for label, value, unit in (
            ("cores", self.cores, "cores"),
            ("threads", self.threads, "threads"),
            ("frequency_hz", self.frequency_hz, "Hz"),
            ("dispatch_s", self.dispatch_s, "s"),
        ):
            _positive(label, value, unit)
        for label, table, unit in (
            ("peak_flops", self.peak_flops, "FLOP/s"),
            ("lanes", self.lanes, "elements"),
            ("theoretical_flops", self.theoretical_flops, "FLOP/s"),
        ):
            for dtype, value in table.items():
                _positive(f"{label}.{dtype}", value, unit)
        for required, table in (("peak_flops", self.peak_flops), ("lanes", self.lanes)):
            if "float32" not in table:
                raise DeviceError(f"{required} of device {self.name!r} must name float32; got {sorted(table)}: add it")
        if len(self.levels) != 3:
            raise DeviceError(
                f"device {self.name!r} needs 3 memory levels (processing-element, shared on-chip, off-chip); "
                f"got {len(self.levels)}"
            )
        sizes = [level.size_bytes for level in self.levels]
        if not sizes[0] < sizes[1] < sizes[2]:
            raise DeviceError(
                f"memory levels of device {self.name!r} must grow in size_bytes from processing element to off-chip; "
                f"got {sizes} B: order them so"
            )
        touched = [size for size, _, _ in self.start_curve]
        costs_s = [cost_s for _, *pair in self.start_curve for cost_s in pair]
        if any(low >= high for low, high in pairwise((0, *touched))):
            raise DeviceError(f"start_curve must have sizes above 0 that grow, in B; got {touched}: order its rows so")
        if not all(math.isfinite(cost_s) and cost_s >= 0 for cost_s in costs_s):
            raise DeviceError(f"start_curve must have costs that are finite and not negative, in s; got {costs_s}")

    @property
    def key(self) -> str:
        """Slug of name and threads, fit for a folder's name.

        >>> preset("raspberry-pi-4").key
        'raspberry-pi-4-4t'
        """
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") + f"-{self.threads}t"

    def peak(self, dtype: str = "float32") -> float:
        """Peak FLOP/s for a dtype; never 0.

        A dtype without its own peak uses a stand-in: float16 runs as float32, bfloat16 as float16, float64 at half of
        float32, int8 and uint8 as each other, then as float32, 64-bit integers as float64, the rest as float32.
        """
        if dtype in self.peak_flops:
            return self.peak_flops[dtype]
        for stand_in, factor in _STAND_INS.get(dtype, ()):
            if stand_in in self.peak_flops:
                return factor * self.peak_flops[stand_in]
        return self.peak_flops["float32"]

    def width(self, dtype: str = "float32") -> int:
        """Elements of a dtype that a processing element takes at a time, by the stand-ins of `peak`; at least 1."""
        if dtype in self.lanes:
            return self.lanes[dtype]
        for stand_in, factor in _STAND_INS.get(dtype, ()):
            if stand_in in self.lanes:
                return max(1, int(factor * self.lanes[stand_in]))
        return self.lanes["float32"]

    def bandwidth_for(self, working_set_bytes: float) -> float:
        """Bandwidth in B/s of the nearest level that holds the working set; off-chip beyond all of them."""
        return self.levels[self.level_for(working_set_bytes)].bandwidth_bytes_per_s

    def level_for(self, working_set_bytes: float) -> int:
        """Index of the nearest level that holds the working set: 0, 1 or 2 (2 beyond all of them too)."""
        for index, level in enumerate(self.levels):
            if working_set_bytes <= level.size_bytes:
                return index
        return len(self.levels) - 1

    def start_s(self, idle_bytes: float, evicting_bytes: float) -> float:
        """What a chain of graphs pays for starting one of them, in s, beyond a start right after the same graph's last.

        Parameters
        ----------
        idle_bytes : float
            Bytes that all graphs of the chain touch: so long the graph has lain idle.
        evicting_bytes : float
            Bytes that it touches itself: so long the next one will wait for code that all graphs share.

        Examples
        --------
        >>> levels = Level("L2", 2**20, 80e9), Level("L3", 2**24, 20e9), Level("DRAM", 2**34, 10e9)
        >>> curve = (2**20, 1e-6, 4e-6), (2**24, 3e-6, 20e-6)
        >>> device = Device("toy", "toy-1", 1, 1, 1e9, {"float32": 1e11}, levels, 1e-6, {"float32": 8}, start_curve=curve)
        >>> round(device.start_s(2**30, 2**22) * 1e6, 6)  # 3 us, and halfway from 4 to 20 us
        15.0
        """  # noqa: E501
        if not self.start_curve:
            return 2 * self.dispatch_s
        sizes, own_s, shared_s = zip(*self.start_curve, strict=True)
        return _between(sizes, own_s, idle_bytes) + _between(sizes, shared_s, evicting_bytes)

    def ridge_flop_per_byte(self, dtype: str = "float32") -> float:
        """Arithmetic intensity in FLOP/byte at which off-chip memory and arithmetic take equally long.

        References
        ----------
        Williams, Waterman, Patterson: Roofline, an insightful visual performance model. CACM 52(4), 2009.
        """
        return self.peak(dtype) / self.levels[-1].bandwidth_bytes_per_s

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON- and TOML-ready values; `from_dict` reads them back."""
        row = asdict(self)
        row["levels"] = list(row["levels"])
        row["peak_flops_by_threads"] = {str(n): dict(peaks) for n, peaks in self.peak_flops_by_threads.items()}
        row["bandwidth_curve"] = [list(point) for point in self.bandwidth_curve]
        row["start_curve"] = [list(point) for point in self.start_curve]
        row["notes"], row["references"] = list(self.notes), list(self.references)
        return {"schema_version": SCHEMA_VERSION, **row}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], origin: str = "device") -> Device:
        """A device from what `to_dict` gave, or from a hand-written table.

        Raises
        ------
        DeviceError
            When the schema version is unknown, a field is missing, unknown or of the wrong type, or a number is wrong.
        """
        fields = dict(row)
        version = fields.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise DeviceError(
                f"{origin}: schema_version {SCHEMA_VERSION} is what this latpred reads; got {version!r}: "
                "write the file again, or install the latpred that wrote it"
            )
        known = set(cls.__dataclass_fields__)
        required = ("name", "processor", "cores", "threads", "frequency_hz", "peak_flops", "levels", "dispatch_s")
        missing = [key for key in (*required, "lanes") if key not in fields]
        unknown = sorted(set(fields) - known)
        if missing or unknown:
            raise DeviceError(f"{origin}: fields missing: {missing}, unknown: {unknown}; known are {sorted(known)}")
        try:
            fields["levels"] = tuple(Level(**level) for level in fields["levels"])
            by_threads = fields.get("peak_flops_by_threads", {})
            fields["peak_flops_by_threads"] = {int(n): dict(peaks) for n, peaks in by_threads.items()}
            curve = fields.get("bandwidth_curve", ())
            fields["bandwidth_curve"] = tuple((int(size), float(speed)) for size, speed in curve)
            starts = fields.get("start_curve", ())
            fields["start_curve"] = tuple((int(size), float(own), float(shared)) for size, own, shared in starts)
            fields["notes"], fields["references"] = tuple(fields.get("notes", ())), tuple(fields.get("references", ()))
            return cls(**fields)
        except DeviceError as error:
            raise DeviceError(f"{origin}: {error}") from None
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            raise DeviceError(f"{origin}: a field has the wrong form ({error}); compare it with a preset") from error


def _between(sizes: Sequence[int], costs_s: Sequence[float], size_bytes: float) -> float:
    """Read off a curve, linear in the logarithm of the size; falling to zero with it below the first point."""
    if size_bytes <= sizes[0]:
        return costs_s[0] * max(0.0, size_bytes) / sizes[0]
    above = bisect_right(sizes, size_bytes)
    if above == len(sizes):
        return costs_s[-1]
    share = math.log(size_bytes / sizes[above - 1]) / math.log(sizes[above] / sizes[above - 1])
    return costs_s[above - 1] + share * (costs_s[above] - costs_s[above - 1])


def load_toml(source: str | Path) -> Device:
    """A device from a TOML file.

    Raises
    ------
    DeviceError
        When the file is missing, no TOML, or no device.
    """
    path = Path(source)
    try:
        row = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(f"{path}: a device file must be readable text ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise DeviceError(f"{path}: a device file must be TOML ({error})") from error
    return Device.from_dict(row, str(path))


def dump_toml(device: Device, target: str | Path) -> None:
    """Write a device as TOML; `load_toml` reads the same device back."""
    import tomli_w  # only writers pay for it

    row = {key: value for key, value in device.to_dict().items() if value not in ("", [], {})}
    Path(target).write_text(tomli_w.dumps(row), encoding="utf-8")


def presets() -> tuple[str, ...]:
    """Names of the devices that ship with latpred, sorted.

    >>> "rtx3090" in presets()
    True
    """
    from importlib import resources

    folder = resources.files("latpred").joinpath("presets")
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def preset(name: str) -> Device:
    """A device that ships with latpred.

    Raises
    ------
    DeviceError
        When there is none of this name; the text lists those that there are.

    Examples
    --------
    >>> round(preset("xeon-silver-4210-x2").ridge_flop_per_byte(), 3)
    12.5
    """
    from importlib import resources

    known = presets()
    if name not in known:
        raise DeviceError(f"no device preset {name!r}; known are {', '.join(known)}, or give a TOML file of your own")
    text = resources.files("latpred").joinpath("presets", f"{name}.toml").read_text(encoding="utf-8")
    return Device.from_dict(tomllib.loads(text), f"preset {name}")


def _positive(label: str, value: Any, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DeviceError(f"{label} must be a number in {unit}; got {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise DeviceError(f"{label} must be positive and finite, in {unit}; got {value!r}")
