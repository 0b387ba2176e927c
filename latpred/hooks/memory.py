"""Resident memory: how much it is, and how what was let go of is given back to the system."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path

__all__ = ["give_back", "resident_bytes", "trim"]


def give_back() -> None:
    """Let go of what nobody holds, and hand freed memory back to the system: models leave much of it behind."""
    gc.collect()
    trim()


def trim() -> None:
    """Hand freed memory back to the system, where the C library keeps it (glibc).

    What is kept for long lies between what was needed for a moment: of each such pair the larger one is lost else.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def resident_bytes() -> int:
    """Of this process.

    Examples
    --------
    >>> resident_bytes() > 2**20
    True
    """
    if sys.platform == "linux":  # a tenth of what psutil takes for the same number
        with Path("/proc/self/statm").open("rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import psutil

    return int(psutil.Process().memory_info().rss)
