"""The file that a decision table is kept in: names as JSON, numbers as raw little-endian arrays, nothing to execute.

::

    offset              content
    0                   magic, 8 bytes: LATPTBL1
    8                   length of the header in bytes, uint32, little-endian
    12                  header, UTF-8 JSON, filled up with spaces
    12 + length         payload, at a multiple of 64: arrays one after the other, each at a multiple of 64

The header is an object: `schema` (1), `sha256` of the payload (hexadecimal), `payload_bytes`, `arrays` (a list of
`name`, `dtype` as numpy writes it, `shape`, and `offset` in the payload), and what else the writer says. All numbers
that a decision depends on are in the payload, so the checksum covers them.

docs/decision-table.md says what each array of a table is.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latpred.errors import ArtefactError

__all__ = ["ALIGNMENT", "MAGIC", "SCHEMA", "read", "write"]

MAGIC = b"LATPTBL1"
SCHEMA = 1  # 1: the first
ALIGNMENT = 64  # a cache line; what vector loads want
DTYPES = ("<f8", "<u8", "<u4", "|u1")
_PREFIX = struct.Struct("<8sI")


def write(path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays with a header; a file that is there already is replaced at once.

    Parameters
    ----------
    path
        The file.
    header
        JSON-ready; its `schema`, `sha256`, `payload_bytes` and `arrays` are set here.
    arrays
        Name -> array of a dtype among ``<f8``, ``<u8``, ``<u4``, ``|u1``, of any shape.
    """
    payload = bytearray()
    directory = []
    for name, array in arrays.items():
        payload += bytes(-len(payload) % ALIGNMENT)
        directory.append({"name": name, "dtype": array.dtype.str, "shape": list(array.shape), "offset": len(payload)})
        payload += array.tobytes()
    described = {
        **header,
        "schema": SCHEMA,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "payload_bytes": len(payload),
        "arrays": directory,
    }
    text = json.dumps(described).encode()
    text += b" " * (-(_PREFIX.size + len(text)) % ALIGNMENT)
    target = Path(path)
    temporary = target.with_name(target.name + ".part")
    temporary.write_bytes(_PREFIX.pack(MAGIC, len(text)) + text + payload)
    temporary.replace(target)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and arrays of a file.

    Returns
    -------
    header : dict
    arrays : dict of str to ndarray
        Read-only.

    Raises
    ------
    ArtefactError
        When the file cannot be read, is no table, is of another schema, is cut short, or fails its checksum.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path}: a decision table is needed, and it cannot be read ({error.strerror})") from error
    header, payload = _split(path, data)
    if header.get("schema") != SCHEMA:
        raise ArtefactError(
            f"{path}: this latpred reads schema {SCHEMA}, this table is of {header.get('schema')}: compile again"
        )
    expected = header.get("payload_bytes")
    if len(payload) != expected:
        raise ArtefactError(f"{path}: a payload of {expected} bytes is needed, got {len(payload)}: compile again")
    if hashlib.sha256(payload).hexdigest() != header.get("sha256"):
        raise ArtefactError(f"{path}: the checksum of the numbers does not match, the file was altered: compile again")
    try:
        return header, {str(entry["name"]): _array(entry, payload) for entry in header["arrays"]}
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path}: the directory of arrays is not as documented ({error}): compile again") from error


def _split(path: str | os.PathLike[str], data: bytes) -> tuple[dict[str, Any], bytes]:
    if data[: len(MAGIC)] != MAGIC:
        raise ArtefactError(f"{path}: a decision table begins with {MAGIC.decode()}, this file does not: compile one")
    length = _PREFIX.unpack_from(data)[1] if len(data) >= _PREFIX.size else 0
    begin = _PREFIX.size + length
    if length == 0 or len(data) < begin:
        raise ArtefactError(f"{path}: the table is cut short within its header: compile again")
    try:
        header = json.loads(data[_PREFIX.size : begin])
    except (RecursionError, ValueError) as error:
        raise ArtefactError(f"{path}: the header must be JSON ({error}): compile again") from error
    if not isinstance(header, dict):
        raise ArtefactError(f"{path}: the header must be a JSON object: compile again")
    return header, data[begin:]


def _array(entry: Mapping[str, Any], payload: bytes) -> NDArray[Any]:
    dtype, shape, offset = entry["dtype"], entry["shape"], entry["offset"]
    if dtype not in DTYPES or not all(type(size) is int and 0 <= size <= len(payload) for size in (*shape, offset)):
        raise ValueError(f"array {entry['name']!r} of dtype {dtype!r} and shape {shape!r} at {offset!r}")
    return np.frombuffer(payload, np.dtype(dtype), prod(shape), offset).reshape(shape)
