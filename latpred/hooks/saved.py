"""Hooks in a file: a zip of side networks, the table, and a manifest; the model itself is never in it.

::

    manifest.json        `schema`, what the hooks were made for, points, how sides are called
    checksums.json       sha256 of each other member
    table.bin            the table of decisions, as `latpred.decide.layout` writes it
    side-0.onnx, ...     side networks

History of the schema: 1, the first.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import TensorProto

from latpred.decide.identity import Identity, identity_of
from latpred.decide.observation import Policy
from latpred.decide.options import Choice
from latpred.decide.table import Table, Utilities
from latpred.errors import ArtefactError, HookError
from latpred.hooks.hooked import Hooked
from latpred.hooks.memory import give_back
from latpred.hooks.origin import Origin, path_of, weights_digest
from latpred.hooks.program import Program, Span, built
from latpred.hooks.sides import Side
from latpred.hooks.terms import Deciding
from latpred.hooks.writing import write
from latpred.predictor import Model, Predictor, installed_runtime
from latpred.surgery.cuts import cuts
from latpred.surgery.tidy import tidied

__all__ = ["SCHEMA", "load", "save"]

SCHEMA = 1
MOST_BYTES = 2**28  # of all members: side networks are small
UNREADABLE = (
    OSError, zipfile.BadZipFile, zlib.error, EOFError, struct.error, KeyError, TypeError, ValueError, RuntimeError,
)  # fmt: skip
MANIFEST, CHECKSUMS, TABLE = "manifest.json", "checksums.json", "table.bin"


def save(hooked: Hooked, path: str | os.PathLike[str]) -> None:
    """Write the hooks of a model; a file that is there already is replaced at once.

    Raises
    ------
    HookError
        Where the hooks were released, nothing is mounted, or the choice is among several models.
    """
    program, table = hooked.program, hooked.table
    if table is None or not isinstance(program, Program):
        raise HookError("hooks that are mounted on one model are needed to be saved, but none is: attach anew instead")
    with tempfile.TemporaryDirectory(prefix="latpred-") as folder:
        table.save(Path(folder) / TABLE)
        members = {TABLE: (Path(folder) / TABLE).read_bytes()}
    sides: list[dict[str, Any]] = []
    for (point, role), side in hooked.sides.items():
        network = side.current
        member = f"side-{len(sides)}.onnx"
        members[member] = network.model.SerializeToString()
        sides.append({"point": point, "role": role, "width": side.width, "trained": network.trained, "member": member})
    spans = [station.span for station in program.stations]
    manifest = {
        "schema": SCHEMA,
        "origin": asdict(hooked.origin) | {"path": None},
        "latency_s": hooked.latency_s,
        "points": [
            {
                "name": span.name,
                "start": span.start.tensor,
                "end": span.end.tensor,
                "choices": [asdict(choice) for choice in span.choices],
                "looks": span.looks,
            }
            for span in spans
        ],
        "sides": sides,
    }
    members[MANIFEST] = json.dumps(manifest, indent=1).encode()
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {CHECKSUMS: json.dumps(checksums).encode(), **members}.items():
            archive.writestr(name, content)
    write(path, whole.getvalue())


def load(
    path: str | os.PathLike[str],
    model: Model,
    predictor: Predictor,
    *,
    utilities: Utilities | None = None,
    confidence: float = 0.95,
    policy: str | Policy = "optimal",
    tolerance: float = 0.05,
    wrong: float | None = None,
    sensors: Callable[[], Mapping[str, float]] | None = None,
) -> Hooked:
    """Put saved hooks on their model again; nothing in the file is executed but its side networks.

    Parameters
    ----------
    path
        What `Hooked.save` wrote.
    model : path, bytes or ModelProto
        The same that they were made for, bound in the same way.
    predictor : Predictor
        Of the same device.
    utilities, confidence, policy, tolerance, wrong, sensors
        As `attach` takes them.

    Raises
    ------
    ArtefactError
        Where the file is no file of hooks, of another schema, was altered, or is of another model, device or runtime.
    InputError
        Where the model cannot be read.
    """
    manifest, members = _read(path)
    try:
        origin = _origin(manifest["origin"], path_of(model))
        latency_s = float(manifest["latency_s"])
        points = [
            (one["name"], one["start"], one["end"], tuple(Choice(**row) for row in one["choices"]), one["looks"])
            for one in manifest["points"]
        ]
        networks = [
            (one["point"], one["role"], int(one["width"]), bool(one["trained"]), members[one["member"]])
            for one in manifest["sides"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path}: the manifest is not as documented ({error!r}): attach again and save") from error
    wanted = identity_of(predictor, model, origin.dims, origin.shapes)
    _require(path, "device", origin.identity.device, wanted.device)
    _require(path, "runtime", origin.runtime, installed_runtime() or "")
    _require(path, "model", origin.identity.model, wanted.model)
    whole = tidied(model, origin.dims, origin.shapes)
    _require(path, "weights", origin.weights, weights_digest(whole))
    table = _table(members[TABLE])
    places = {cut.tensor: cut for cut in cuts(whole)}
    sides = {}
    try:
        spans = {
            name: Span(name, places[start], places[end], choices, looks) for name, start, end, choices, looks in points
        }
        if table.options != tuple(tuple(choice.name for choice in span.choices) for span in spans.values()):
            raise ValueError("the table is of other points")
        for point, role, width, trained, content in networks:
            network = _plain(onnx.ModelProto.FromString(content))
            sides[point, role] = Side(point, role, spans[point].start, width, network, trained, origin.providers)
    except (DecodeError, KeyError, ValueError) as error:
        raise ArtefactError(
            f"{path}: places of this model are needed, but the file names others ({error!r}): attach again"
        ) from error
    program = built(
        whole, list(spans.values()), origin.ranges, origin.outside, origin.threads, origin.providers
    )  # fmt: skip
    del whole
    deciding = Deciding(table, latency_s, utilities, confidence, policy, tolerance, wrong)
    hooked = Hooked(program, sides, origin, deciding, sensors)
    give_back()
    return hooked


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(info.file_size for info in archive.infolist())
            if size_bytes > MOST_BYTES:
                raise ValueError(f"{size_bytes} bytes when unpacked")
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        checksums = dict(json.loads(members.pop(CHECKSUMS)))
        manifest = dict(json.loads(members[MANIFEST]))
        schema = manifest["schema"]
    except UNREADABLE as error:
        raise ArtefactError(
            f"{path}: a file that `Hooked.save` wrote is needed, this one cannot be read so ({error!r}): save it again"
        ) from error
    if schema != SCHEMA:
        raise ArtefactError(f"{path}: this latpred reads hooks of schema {SCHEMA}, these are of {schema}: attach again")
    for name in {*checksums, *members}:
        if name not in members or hashlib.sha256(members[name]).hexdigest() != checksums.get(name):
            raise ArtefactError(f"{path}: the checksum of {name} does not match, the file was altered: save it again")
    return manifest, members


def _plain(network: onnx.ModelProto) -> onnx.ModelProto:
    """A side network whose weights are its own; raises ValueError where it asks for other files."""
    if any(stored.data_location == TensorProto.EXTERNAL for stored in network.graph.initializer):
        raise ValueError("a side network has weights in other files")
    return network


def _origin(row: Mapping[str, Any], path: str | None) -> Origin:
    ranges = {
        point: {tensor: (float(low), float(high)) for tensor, (low, high) in own.items()}
        for point, own in row["ranges"].items()
    }
    plain = {**row, "path": path, "identity": Identity(*row["identity"]), "providers": tuple(row["providers"])}
    return Origin(**{**plain, "ranges": ranges})


def _table(content: bytes) -> Table:
    with tempfile.TemporaryDirectory(prefix="latpred-") as folder:
        path = Path(folder) / TABLE
        path.write_bytes(content)
        return Table.load(path)


def _require(path: str | os.PathLike[str], what: str, own: str, wanted: str) -> None:
    if own != wanted:
        raise ArtefactError(f"{path}: hooks of {what} {wanted!r} are needed, these are of {own!r}: attach to it anew")
