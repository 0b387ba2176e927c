"""What surrounds a measurement and is kept with it: load, clock, time, version; and how much memory it may take."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from importlib import metadata
from typing import Any

__all__ = ["memory_limit_bytes", "rounded", "surroundings"]


def rounded(value: float, digits: int = 4) -> float:
    """Significant digits beyond the noise floor only cost bytes.

    >>> rounded(0.00123456)
    0.001235
    """
    return value if isinstance(value, int) else float(f"{value:.{digits}g}")


def surroundings() -> dict[str, Any]:
    """What surrounds one measurement: load, clock where the system tells it, time, latpred's version."""
    import psutil

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    frequency = psutil.cpu_freq()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_average": round(load, 2),
        **({"frequency_hz": round(frequency.current * 1e6)} if frequency else {}),
        "latpred_version": _version(),
    }


@lru_cache(maxsize=1)
def _version() -> str:
    """Of the installed package; "source" where latpred runs from a checkout that was never installed."""
    try:
        return metadata.version("latpred")
    except metadata.PackageNotFoundError:
        return "source"


def memory_limit_bytes() -> int:
    """Two thirds of the memory."""
    import psutil

    return int(psutil.virtual_memory().total) * 2 // 3
