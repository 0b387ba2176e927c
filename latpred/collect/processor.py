"""What the CPU is: model, cores, vector width, FMA units, clock, caches.

Linux tells most of it in ``/proc/cpuinfo`` and ``/sys``; elsewhere what `platform` and `psutil` know is taken, and
what stays unknown is None, not a guess. Vector width and FMA units come from a table of cores: no system tells them.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Cache", "Core", "Processor", "core_of", "identify", "parse_cpuinfo", "read_caches", "theoretical_flops"]


@dataclass(frozen=True, slots=True)
class Cache:
    """One data cache as a core sees it."""

    level: int
    size_bytes: int
    shared_by: int  # logical CPUs that share it


@dataclass(frozen=True, slots=True)
class Core:
    """What one core's vector units do in a clock."""

    name: str
    lanes: int  # float32 elements a vector instruction
    fma_units: int  # vector multiply-adds a clock
    dot_product: bool  # int8 products are summed four a float32 lane (VNNI, SDOT)

    def flop_per_cycle(self, dtype: str) -> int:
        """FLOP a clock of one core: lanes x FMA units x 2, four times that for int8 with dot products.

        >>> Core("Zen 4", 16, 1, True).flop_per_cycle("float32")
        32
        """
        return self.width(dtype) * self.fma_units * 2

    def width(self, dtype: str) -> int:
        """Elements of a dtype that one vector instruction multiplies; 1 at least."""
        if dtype in ("int8", "uint8"):
            return self.lanes * 4 if self.dot_product else self.lanes
        return max(1, self.lanes // 2) if dtype == "float64" else self.lanes


@dataclass(frozen=True, slots=True)
class Processor:
    """The CPU of this machine; None where the system does not tell."""

    model: str
    vendor: str
    machine: str
    cores: int
    logical_cpus: int
    core: Core
    told_frequency_hz: float | None
    caches: tuple[Cache, ...]
    memory_bytes: int
    governor: str | None
    pinnable: bool
    virtual: bool

    @property
    def label(self) -> str:
        """CPU class for file names and headings: the model, and the core where the model hides it.

        Virtual machines often tell no more than ``AMD EPYC``.
        """
        return self.model if self.core.name in self.model else f"{self.model} ({self.core.name})"


def parse_cpuinfo(text: str) -> dict[str, str]:
    r"""First processor's fields of ``/proc/cpuinfo``.

    >>> parse_cpuinfo("processor : 0\nmodel name : Toy\n\nprocessor : 1\nmodel name : Other")["model name"]
    'Toy'
    """
    first, _, _ = text.strip().partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


@dataclass(frozen=True, slots=True)
class _X86Row:
    vendor: str
    family: int
    models: Callable[[int], bool]
    brand: str  # pattern that the model's name must contain
    flag: str  # instruction set that must be there
    name: str
    lanes: int
    fma_units: int


def _among(*models: int) -> Callable[[int], bool]:
    return lambda model: model in models


def _any(_: int) -> bool:
    return True


_ONE_UNIT_XEON = r"Bronze|Silver|Gold 5\d{3}|\bD-2"
_INTEL, _AMD, _ANY_VENDOR = "GenuineIntel", "AuthenticAMD", ""

# First match wins. Sources: AMD Software Optimization Guides for families 17h, 19h and 1Ah (Zen 4 runs a 512-bit
# instruction as two 256-bit halves: 16 lanes at one FMA a clock); Intel ARK, "# of AVX-512 FMA Units"; Agner Fog,
# The microarchitecture of Intel, AMD and VIA CPUs. The rows without a family give what the instruction set at least
# guarantees on the usual two-pipe cores.
_X86_CORES: tuple[_X86Row, ...] = (
    _X86Row(_AMD, 26, lambda m: 0x20 <= m <= 0x3F or 0x60 <= m <= 0x7F, "", "avx512f", "Zen 5 mobile", 16, 1),
    _X86Row(_AMD, 26, _any, "", "avx512f", "Zen 5", 16, 2),
    _X86Row(_AMD, 25, _any, "", "avx512f", "Zen 4", 16, 1),
    _X86Row(_AMD, 25, _any, "", "avx2", "Zen 3", 8, 2),
    _X86Row(_AMD, 23, lambda m: m >= 0x30, "", "avx2", "Zen 2", 8, 2),
    _X86Row(_AMD, 23, _any, "", "avx2", "Zen", 8, 1),
    _X86Row(_INTEL, 6, _among(0x55), _ONE_UNIT_XEON, "avx512f", "Skylake/Cascade Lake, one AVX-512 FMA unit", 16, 1),
    _X86Row(_INTEL, 6, _among(0x55), "", "avx512f", "Skylake/Cascade Lake", 16, 2),
    _X86Row(_INTEL, 6, _among(0x6A, 0x6C), "", "avx512f", "Ice Lake server", 16, 2),
    _X86Row(_INTEL, 6, _among(0x8F, 0xCF), "", "avx512f", "Sapphire/Emerald Rapids", 16, 2),
    _X86Row(_INTEL, 6, _among(0xAD, 0xAE), "", "avx512f", "Granite Rapids", 16, 2),
    _X86Row(_INTEL, 6, _any, "", "avx512f", "AVX-512, one FMA unit assumed", 16, 1),
    _X86Row(_ANY_VENDOR, -1, _any, "", "avx512f", "AVX-512, one FMA unit assumed", 16, 1),
    _X86Row(_ANY_VENDOR, -1, _any, "", "fma", "AVX2", 8, 2),
    _X86Row(_ANY_VENDOR, -1, _any, "", "avx", "AVX without FMA: one add and one multiply a clock", 8, 1),
    _X86Row(_ANY_VENDOR, -1, _any, "", "", "SSE: one add and one multiply a clock", 4, 1),
)

# (implementer, part) as /proc/cpuinfo tells them; Arm Software Optimization Guides of each core.
_ARM_CORES: Mapping[tuple[int, int], tuple[str, int, int]] = {
    (0x41, 0xD03): ("Cortex-A53", 4, 1),
    (0x41, 0xD05): ("Cortex-A55", 4, 1),
    (0x41, 0xD07): ("Cortex-A57", 4, 1),
    (0x41, 0xD08): ("Cortex-A72", 4, 1),
    (0x41, 0xD09): ("Cortex-A73", 4, 1),
    (0x41, 0xD0B): ("Cortex-A76", 4, 2),
    (0x41, 0xD0C): ("Neoverse N1", 4, 2),
    (0x41, 0xD40): ("Neoverse V1", 8, 2),
    (0x41, 0xD49): ("Neoverse N2", 4, 2),
    (0x41, 0xD4F): ("Neoverse V2", 4, 4),
}
_APPLE_CORE = ("Apple", 4, 4)
_UNKNOWN_ARM_CORE = ("NEON, one FMA unit assumed", 4, 1)

_X86_DOT_PRODUCT = {"avx512_vnni", "avx_vnni"}
_ARM_DOT_PRODUCT = "asimddp"


def core_of(machine: str, cpuinfo: Mapping[str, str]) -> Core:
    """The core's vector units, by the fields of ``/proc/cpuinfo``.

    Parameters
    ----------
    machine : str
        As `platform.machine` gives it.
    cpuinfo : mapping
        As `parse_cpuinfo` gives it; may be empty.
    """
    if machine.lower() in ("aarch64", "arm64", "armv8l"):
        key = int(cpuinfo.get("CPU implementer", "0"), 16), int(cpuinfo.get("CPU part", "0"), 16)
        apple = key[0] == 0x61 or sys.platform == "darwin"
        name, lanes, units = _ARM_CORES.get(key, _APPLE_CORE if apple else _UNKNOWN_ARM_CORE)
        return Core(name, lanes, units, apple or _ARM_DOT_PRODUCT in cpuinfo.get("Features", "").split())
    flags = set(cpuinfo.get("flags", "").split())
    family, model = int(cpuinfo.get("cpu family", "-1")), int(cpuinfo.get("model", "-1"))
    for row in _X86_CORES:
        if (
            row.vendor in ("", cpuinfo.get("vendor_id"))
            and row.family in (-1, family)
            and row.models(model)
            and re.search(row.brand, cpuinfo.get("model name", ""))
            and (not row.flag or row.flag in flags)
        ):
            return Core(row.name, row.lanes, row.fma_units, bool(flags & _X86_DOT_PRODUCT))
    raise AssertionError("the table's last row matches everything")


def read_caches(cpu_folder: Path) -> tuple[Cache, ...]:
    """Data caches of one CPU from ``/sys/devices/system/cpu/cpu0``, nearest first; empty where invisible."""
    caches = []
    for index in sorted(cpu_folder.glob("cache/index*")):
        fields = {key: _text(index / key) for key in ("level", "type", "size", "shared_cpu_list")}
        if fields["type"] not in ("Data", "Unified") or not fields["level"] or not fields["size"]:
            continue
        caches.append(
            Cache(int(fields["level"]), _bytes(fields["size"]), _count_cpus(fields["shared_cpu_list"] or "0"))
        )
    return tuple(sorted(caches, key=lambda cache: cache.level))


def identify() -> Processor:
    """The CPU of this machine."""
    cpuinfo = parse_cpuinfo(_text(Path("/proc/cpuinfo")) or "")
    machine = platform.machine()
    cpu_folder = Path("/sys/devices/system/cpu/cpu0")
    logical = psutil.cpu_count(logical=True) or os.cpu_count() or 1
    flags = cpuinfo.get("flags", "").split()
    return Processor(
        model=cpuinfo.get("model name") or _sysctl("machdep.cpu.brand_string") or platform.processor() or machine,
        vendor=cpuinfo.get("vendor_id", ""),
        machine=machine,
        cores=psutil.cpu_count(logical=False) or logical,
        logical_cpus=logical,
        core=core_of(machine, cpuinfo),
        told_frequency_hz=_told_frequency_hz(cpuinfo, cpu_folder),
        caches=read_caches(cpu_folder),
        memory_bytes=psutil.virtual_memory().total,
        governor=_text(cpu_folder / "cpufreq" / "scaling_governor"),
        pinnable=hasattr(os, "sched_setaffinity"),
        virtual="hypervisor" in flags,
    )


def theoretical_flops(processor: Processor, threads: int, frequency_hz: float | None = None) -> dict[str, float]:
    """Cores x Hz x lanes x FMA units x 2 by dtype, in FLOP/s; threads beyond the cores add nothing.

    `frequency_hz` is the clock under load where it was measured; else what the system tells, and where that is
    nothing the result is empty.
    """
    clock_hz = frequency_hz or processor.told_frequency_hz
    if clock_hz is None:
        return {}
    cores = min(threads, processor.cores)
    return {dtype: cores * clock_hz * processor.core.flop_per_cycle(dtype) for dtype in ("float32", "int8")}


def _told_frequency_hz(cpuinfo: Mapping[str, str], cpu_folder: Path) -> float | None:
    # The highest clock that the system names; the current one says more about the moment than about the CPU.
    highest_khz = _text(cpu_folder / "cpufreq" / "cpuinfo_max_freq")
    if highest_khz:
        return float(highest_khz) * 1e3
    if "cpu MHz" in cpuinfo:
        return float(cpuinfo["cpu MHz"]) * 1e6
    try:
        told = psutil.cpu_freq()
    except (NotImplementedError, OSError, RuntimeError):  # psutil on systems without a clock to read
        return None
    return (told.max or told.current) * 1e6 or None if told else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None  # invisible here: containers and other systems hide it


def _bytes(size: str) -> int:
    unit = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(size[-1], 1)
    return int(size.rstrip("KMG")) * unit


def _count_cpus(cpu_list: str) -> int:
    spans: Sequence[list[str]] = [span.split("-") for span in cpu_list.split(",")]
    return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)


def _sysctl(name: str) -> str | None:
    if sys.platform != "darwin":
        return None
    answer = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)  # noqa: S603 - fixed arguments
    return answer.stdout.strip() or None
