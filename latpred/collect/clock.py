"""The core's clock under load, counted from a chain of dependent multiplications.

What a system tells of its clock is often the base frequency, and inside virtual machines nothing else is visible.
A chain of integer multiplications that each wait for the one before takes a known number of cycles, so that its
duration gives the clock itself.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
import time

__all__ = ["measured_frequency_hz"]

_MULTIPLICATIONS = 16

# 64-bit IMUL takes 3 cycles on every Intel core since Nehalem and every AMD core since Zen
# (Agner Fog, Instruction tables). It is never renamed away, as an addition of a constant may be.
_CYCLES_A_MULTIPLICATION = 3

# System V calling convention: the trip count comes in rdi.
_LOOP = b"".join(
    (
        b"\xf3\x0f\x1e\xfa",  # endbr64
        b"\x48\x0f\xaf\xc0" * _MULTIPLICATIONS,  # imul rax, rax
        b"\x48\x83\xef\x01",  # sub rdi, 1
        b"\x75\xba",  # jnz to the first imul, 70 bytes back
        b"\xc3",  # ret
    )
)


def measured_frequency_hz(repeats: int = 9, trips: int = 50_000) -> float | None:
    """Clock of the calling thread's core in Hz, or None where it cannot be measured.

    Takes about 1 ms a repeat; the fastest repeat counts, for an interruption only ever lengthens one. Works on
    x86-64 Linux and macOS; None elsewhere, and where the system forbids executable memory.
    """
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform == "win32":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a hardened system: no page may be both written and executed
        return None
    page.write(_LOOP)
    first_byte = ctypes.c_char.from_buffer(page)
    loop = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(ctypes.addressof(first_byte))
    shortest_s = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        loop(trips)
        shortest_s = min(shortest_s, time.perf_counter() - start)
    del first_byte  # the page cannot be closed while something points into it
    page.close()
    return trips * _MULTIPLICATIONS * _CYCLES_A_MULTIPLICATION / shortest_s
