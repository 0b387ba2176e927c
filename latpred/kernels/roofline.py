"""The three-level roofline of a kernel: how long arithmetic, each memory and the launch take at the least.

The time is the longest of the arithmetic and the three memories, plus the dispatch. What a memory has to deliver
follows from reuse distances: bytes that passed since an operand was last touched. Of data last touched `d` bytes ago,
a memory of `s` bytes still holds the share s/d (all of it where d <= s). Taps of a convolution that fall on padding
are not computed where the runtime skips them (`taps`).

References
----------
Williams, Waterman, Patterson: Roofline, an insightful visual performance model. CACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latpred.device import Device
from latpred.kernels.kernel import Kernel
from latpred.kernels.taps import executed_share

__all__ = ["Terms", "bound", "bounds", "roofline_s", "roofline_terms"]

Floats = NDArray[np.float64]


class Terms(NamedTuple):
    """Least times in seconds, each an array with one entry a kernel."""

    compute_s: Floats
    near_s: Floats  # memory at the processing elements
    shared_s: Floats  # shared on-chip memory
    off_chip_s: Floats
    dispatch_s: float

    @property
    def memory_s(self) -> Floats:
        """The slowest of the three memories."""
        return np.maximum(np.maximum(self.near_s, self.shared_s), self.off_chip_s)

    @property
    def total_s(self) -> Floats:
        """The roofline time."""
        return np.maximum(self.compute_s, self.memory_s) + self.dispatch_s


def roofline_terms(kernels: Sequence[Kernel], device: Device) -> Terms:
    """Least times of each kernel.

    Parameters
    ----------
    kernels : sequence of Kernel
    device : Device

    Returns
    -------
    Terms
        Arrays of length ``len(kernels)``, in s.
    """
    work = np.array(
        [
            (
                k.work.flops * executed_share(k), k.work.read_bytes, k.work.write_bytes, k.work.weight_bytes,
                k.context.reuse_bytes, k.context.rewrite_bytes, k.context.cycle_bytes,
                device.peak(k.inputs[0].dtype if k.inputs else "float32"),
            )
            for k in kernels
        ],
        np.float64,
    ).reshape(-1, 8)  # fmt: skip
    flops, read, write, weight, reuse, rewrite, cycle, peak = work.T
    own = read + write + weight
    near, shared, off_chip = device.levels
    missed = [_missed(read, write, weight, own, (reuse, rewrite, cycle), level.size_bytes) for level in (near, shared)]
    return Terms(
        flops / peak,
        own / near.bandwidth_bytes_per_s,
        missed[0] / shared.bandwidth_bytes_per_s,
        missed[1] / off_chip.bandwidth_bytes_per_s,
        device.dispatch_s,
    )


def _missed(
    read: Floats, write: Floats, weight: Floats, own: Floats, distances: tuple[Floats, Floats, Floats], size_bytes: int
) -> Floats:
    """Bytes that a memory of this size does not hold when they are wanted."""

    def share(distance: Floats) -> Floats:
        return 1.0 - size_bytes / np.maximum(distance, size_bytes)

    reuse, rewrite, cycle = (np.maximum(distance, own) for distance in distances)
    return read * share(reuse) + write * share(rewrite) + weight * share(cycle)


def roofline_s(kernel: Kernel, device: Device) -> float:
    """Least time of one kernel in s, its launch included.

    Examples
    --------
    >>> from latpred.device import Device, Level
    >>> from latpred.kernels.kernel import Work
    >>> levels = Level("L2", 2**20, 100e9), Level("L3", 2**24, 50e9), Level("DRAM", 2**34, 10e9)
    >>> device = Device("toy", "toy", 1, 1, 1e9, {"float32": 100e9}, levels, 1e-6, {"float32": 8})
    >>> kernel = Kernel("gemm", "Gemm", "", "g", (), (), (), work=Work(macs=10**8, flops=2 * 10**8, read_bytes=10**5))
    >>> round(roofline_s(kernel, device) * 1e6, 6)  # 2e8 / 100e9 s, and 1 us of dispatch
    2001.0
    """
    return float(roofline_terms([kernel], device).total_s[0])


def bound(kernel: Kernel, device: Device) -> str:
    """What limits a kernel by the roofline: ``"compute"``, ``"memory"`` or ``"dispatch"``."""
    return bounds(roofline_terms([kernel], device))[0]


def bounds(terms: Terms) -> list[str]:
    """`bound` of many kernels at once."""
    memory_s = terms.memory_s
    longest = np.maximum(terms.compute_s, memory_s)
    return [
        "dispatch" if most < terms.dispatch_s else "compute" if compute >= memory else "memory"
        for most, compute, memory in zip(longest.tolist(), terms.compute_s.tolist(), memory_s.tolist(), strict=True)
    ]
