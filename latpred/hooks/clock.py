"""The processor's clock, as the system says it is now."""

from __future__ import annotations

__all__ = ["clock_hz"]


def clock_hz() -> float | None:
    """In Hz, over all cores; None where the system does not say.

    Examples
    --------
    >>> found = clock_hz()
    >>> found is None or found > 1e6
    True
    """
    import psutil

    try:
        told = psutil.cpu_freq()
    except (AttributeError, NotImplementedError, OSError, RuntimeError):  # as systems differ
        return None
    return 1e6 * told.current if told is not None and told.current > 0.0 else None
