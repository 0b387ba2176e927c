"""Messages between a process and its child: a length-prefixed JSON header and a body of raw bytes.

One frame is two big-endian unsigned 64-bit lengths, the header (UTF-8 JSON), the body. No pickle: what a
child sends can at worst be wrong, never run.
"""

from __future__ import annotations

import json
import struct
from typing import IO, Any

__all__ = ["read_frame", "write_frame"]

LENGTHS = struct.Struct(">QQ")


def write_frame(stream: IO[bytes], header: dict[str, Any], body: bytes | memoryview = b"") -> None:
    """Send one message.

    Examples
    --------
    >>> import io
    >>> stream = io.BytesIO()
    >>> write_frame(stream, {"do": "run"}, b"model")
    >>> _ = stream.seek(0)
    >>> read_frame(stream)
    ({'do': 'run'}, b'model')
    """
    head = json.dumps(header, separators=(",", ":")).encode()
    stream.write(LENGTHS.pack(len(head), len(body)))
    stream.write(head)
    stream.write(body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next message, or None where the other side has hung up (also in the middle of one)."""
    lengths = _read(stream, LENGTHS.size)
    if lengths is None:
        return None
    head_bytes, body_bytes = LENGTHS.unpack(lengths)
    head = _read(stream, head_bytes)
    body = _read(stream, body_bytes)
    if head is None or body is None:
        return None
    return json.loads(head), body


def _read(stream: IO[bytes], size: int) -> bytes | None:
    """Exactly `size` bytes, or None at the end of the stream."""
    parts: list[bytes] = []
    while size:
        part = stream.read(size)
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
