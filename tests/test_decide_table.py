"""A table is its costs, in memory and on disk; its file is read here with `struct` and `json` alone."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from decide_costs import costs, option, random_costs

from latpred.decide.costs import LEVELS, Costs, Duration
from latpred.decide.table import NUMBERS, Table, compile_table
from latpred.errors import ArtefactError, InputError

TWO = costs(
    [
        [option("keep", 0.004, 1.0, 0.1), option("skip", 0.001, 0.5, switch_s=1e-4)],
        [option("keep", 0.002, 1.0), option("half", 0.001, 0.8), option("exit", 0.0005, 0.3, ends=True)],
    ],
    decide_s=1e-6,
    frequency_hz=2e9,
)


DOCUMENT = Path(__file__).parent.parent / "docs" / "decision-table.md"


def test_the_arrays_are_the_costs() -> None:
    table = compile_table(TWO)
    assert table.points == ("p0", "p1")
    assert table.options == (("keep", "skip"), ("keep", "half", "exit"))
    assert table.first_option.tolist() == [0, 2, 5]
    assert table.mean_s.tolist() == [0.004, 0.001, 0.002, 0.001, 0.0005]
    assert table.variance_s2.tolist() == [(0.1 * 0.004) ** 2, 0, 0, 0, 0]
    assert table.switch_s.tolist() == [0, 1e-4, 0, 0, 0]
    assert table.ends.tolist() == [0, 0, 0, 0, 1]
    assert [LEVELS[level] for level in table.level] == ["keep", "skip", "keep", "skip", "exit"]
    assert table.trunk_mean_s.tolist() == [0.001, 0.001, 0.001]
    assert table.utilities() == {
        "p0": {"keep": 1.0, "skip": 0.5},
        "p1": {"keep": 1.0, "half": 0.8, "exit": 0.3},
    }


def test_arrays_cannot_be_written_to(tmp_path: Path) -> None:
    compile_table(TWO).save(tmp_path / "t")
    for table in (compile_table(TWO), Table.load(tmp_path / "t")):
        with pytest.raises(ValueError, match="read-only"):
            table.mean_s[0] = 0.0


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    table = compile_table(random_costs(np.random.default_rng(0), points=7, options=5))
    table.save(tmp_path / "table")
    other = Table.load(tmp_path / "table", model="model-1", device="device-1")
    for name in Table.__slots__:
        mine, its = getattr(table, name), getattr(other, name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == its.dtype
            assert mine.tolist() == its.tolist()
        else:
            assert mine == its
    assert [path.name for path in tmp_path.iterdir()] == ["table"]  # no temporary file is left


def test_the_file_is_readable_with_struct_and_json_alone(tmp_path: Path) -> None:
    compile_table(TWO).save(tmp_path / "table")
    data = (tmp_path / "table").read_bytes()
    magic, length = struct.unpack_from("<8sI", data)
    assert magic == b"LATPTBL1"
    header = json.loads(data[12 : 12 + length])
    payload = 12 + length
    assert payload % 64 == 0
    codes = {"<f8": "d", "<u4": "I", "<u8": "Q", "|u1": "B"}
    read = {}
    for entry in header["arrays"]:
        assert entry["offset"] % 64 == 0
        count = int(np.prod(entry["shape"], dtype=int))
        read[entry["name"]] = struct.unpack_from(f"<{count}{codes[entry['dtype']]}", data, payload + entry["offset"])
    assert header["schema"] == 1
    assert (header["model"], header["device"]) == ("model-1", "device-1")
    assert [point["name"] for point in header["points"]] == ["p0", "p1"]
    first = read["first_option"]
    for number, (written, point) in enumerate(zip(header["points"], TWO.points, strict=True)):
        rows = range(first[number], first[number + 1])
        assert written["options"] == [o.name for o in point.options]
        assert [read["mean_s"][row] for row in rows] == [o.time.mean_s for o in point.options]
        assert [read["variance_s2"][row] for row in rows] == [o.time.variance_s2 for o in point.options]
        assert [read["utility"][row] for row in rows] == [o.utility for o in point.options]
        assert [read["switch_s"][row] for row in rows] == [o.switch_s for o in point.options]
        assert [read["peak_bytes"][row] for row in rows] == [o.peak_bytes for o in point.options]
        assert [header["levels"][read["level"][row]] for row in rows] == [o.level for o in point.options]
        assert [bool(read["ends"][row]) for row in rows] == [o.ends for o in point.options]
    assert read["trunk_mean_s"] == (0.001, 0.001, 0.001)
    assert {name: read[name][0] for name in NUMBERS} == {
        "shared_spread": 0.03,
        "noise_spread": 0.02,
        "decide_s": 1e-6,
        "frequency_hz": 2e9,
    }


def test_a_table_is_small(tmp_path: Path) -> None:
    table = compile_table(random_costs(np.random.default_rng(1), points=64, options=16))
    table.save(tmp_path / "table")
    assert (tmp_path / "table").stat().st_size < 200_000
    assert table.nbytes < (tmp_path / "table").stat().st_size


def with_header(data: bytes, change: Callable[[dict], None]) -> bytes:
    length = struct.unpack_from("<I", data, 8)[0]
    header = json.loads(data[12 : 12 + length])
    change(header)
    text = json.dumps(header).encode()
    return data[:8] + struct.pack("<I", len(text)) + text + data[12 + length :]


def flipped(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "magic": (lambda data: b"LATPTBL2" + data[8:], "begins with LATPTBL1"),
    "another file": (lambda data: b"", "begins with LATPTBL1"),
    "schema": (lambda data: with_header(data, lambda h: h.update(schema=2)), "schema 1, this table is of 2"),
    "cut in the prefix": (lambda data: data[:10], "cut short within its header"),
    "cut in the header": (lambda data: data[:100], "cut short within its header"),
    "header without end": (lambda data: data[:8] + b"\xff" * 4 + data[12:], "cut short within its header"),
    "cut in the payload": (lambda data: data[:-1], "a payload of "),
    "longer payload": (lambda data: data + b"\0", "a payload of"),
    "header that is deep": (lambda data: data[:8] + struct.pack("<I", 10**5) + b"[" * 10**5, "must be JSON"),
    "checksum": (lambda data: flipped(data, len(data) - 4), "checksum"),
    "header that is no JSON": (lambda data: flipped(data, 12), "must be JSON"),
    "header that is no object": (lambda data: data[:8] + struct.pack("<I", 2) + b"[]", "JSON object"),
    "names that do not fit": (lambda data: with_header(data, lambda h: h["points"].pop()), "do not fit each other"),
    "names missing": (lambda data: with_header(data, lambda h: h.pop("points")), "do not fit each other"),
    "another level": (lambda data: with_header(data, lambda h: h["levels"].pop()), "do not fit each other"),
    "array missing": (lambda data: with_header(data, lambda h: h["arrays"].pop()), "do not fit each other"),
    "dtype": (lambda data: with_header(data, lambda h: h["arrays"][1].update(dtype="|O")), "not as documented"),
    "offset": (lambda data: with_header(data, lambda h: h["arrays"][1].update(offset=10**6)), "not as documented"),
    "negative offset": (
        lambda data: with_header(data, lambda h: h["arrays"][1].update(offset=-8)),
        "not as documented",
    ),
    "shape": (lambda data: with_header(data, lambda h: h["arrays"][1].update(shape=[4])), "do not fit each other"),
    **{
        f"shape {shape}": (
            lambda data, shape=shape: with_header(data, lambda h: h["arrays"][1].update(shape=shape)),
            "not as documented",
        )
        for shape in ([10**12], [2**70], [-1], [0, 2**70], [2**40, 2**40], ["x", 10**12], [5.0], 5, "5", [1] * 99, None)
    },
}


@pytest.mark.parametrize("how", sorted(BROKEN))
def test_a_broken_file_is_refused(how: str, tmp_path: Path) -> None:
    path = tmp_path / "table"
    compile_table(TWO).save(path)
    Table.load(path)
    change, message = BROKEN[how]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtefactError, match=message):
        Table.load(path)


def with_array(data: bytes, name: str, values: list[float]) -> bytes:
    """The file as another program would write it, with other numbers and their checksum."""
    length = struct.unpack_from("<I", data, 8)[0]
    header, payload = json.loads(data[12 : 12 + length]), bytearray(data[12 + length :])
    entry = next(entry for entry in header["arrays"] if entry["name"] == name)
    raw = np.array(values, entry["dtype"]).tobytes()
    payload[entry["offset"] : entry["offset"] + len(raw)] = raw
    header["sha256"] = hashlib.sha256(payload).hexdigest()
    text = json.dumps(header).encode()
    return data[:8] + struct.pack("<I", len(text)) + text + payload


WRONG_NUMBERS: dict[str, tuple[list[float], str]] = {
    "mean_s": ([0.004, nan], "'p0', option 'skip': mean_s must be finite and not negative, got nan"),
    "variance_s2": ([-1.0], "variance_s2 must be finite and not negative, got -1.0"),
    "utility": ([inf], "utility must be finite, got inf"),
    "level": ([0, 99], "level must be one of keep, exit, .* got 'number 99'"),
    "trunk_mean_s": ([0.001, 0.001, inf], "trunk after the last point: mean_s must be"),
    "noise_spread": ([nan], "noise_spread must be"),
    "frequency_hz": ([-1.0], "frequency_hz must be"),
}


@pytest.mark.parametrize("name", sorted(WRONG_NUMBERS))
def test_numbers_that_no_plan_has_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "table"
    compile_table(TWO).save(path)
    values, message = WRONG_NUMBERS[name]
    path.write_bytes(with_array(path.read_bytes(), name, values))
    with pytest.raises(ArtefactError, match=message):
        Table.load(path)


def test_names_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table"
    compile_table(TWO).save(path)
    path.write_bytes(with_header(path.read_bytes(), lambda h: h["points"][1].update(name="p0")))
    with pytest.raises(ArtefactError, match="'p0' twice"):
        Table.load(path)


def test_declared_sizes_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "table"
    compile_table(TWO).save(path)
    path.write_bytes(with_header(path.read_bytes(), lambda h: h["arrays"][1].update(shape=["x", 10**9])))
    tracemalloc.start()
    with pytest.raises(ArtefactError):
        Table.load(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10e6


def test_costs_come_back(tmp_path: Path) -> None:
    for written in (TWO, random_costs(np.random.default_rng(2), points=5, options=4)):
        compile_table(written).save(tmp_path / "table")
        assert Table.load(tmp_path / "table").costs() == written


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    """Names, dtypes and shapes of the file against the tables of docs/decision-table.md."""
    text = DOCUMENT.read_text(encoding="utf-8").replace("\\|", "/")
    about_header, about_arrays = text.split("## Header")[1].split("## Arrays")
    keys = {cells[0] for cells in re.findall(r"^\| `(\w+)` \| (.+) \|$", about_header, re.M)}
    arrays = re.findall(r"^\| `(\w+)` \| `(\S+)` \| (.+?) \| .+ \|$", about_arrays, re.M)
    path = tmp_path / "table"
    compile_table(TWO).save(path)
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 8)[0]
    header = json.loads(data[12 : 12 + length])
    assert set(header) == keys
    counts = {"options": [5], "points + 1": [3], "none": []}
    documented = [(name, dtype.replace("/", "|"), counts[shape]) for name, dtype, shape in arrays]
    assert [(entry["name"], entry["dtype"], entry["shape"]) for entry in header["arrays"]] == documented
    end = 0
    for entry in header["arrays"]:
        payload = data[12 + length :]
        assert payload[end : entry["offset"]] == bytes(entry["offset"] - end)  # zeros, less than a line of them
        assert entry["offset"] - end < 64
        end = entry["offset"] + np.dtype(entry["dtype"]).itemsize * int(np.prod(entry["shape"], dtype=int))
    assert end == header["payload_bytes"] == len(data) - 12 - length
    assert hashlib.sha256(data[12 + length :]).hexdigest() == header["sha256"]
    assert data[12 : 12 + length].rstrip(b" ").endswith(b"}")


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot be read"):
        Table.load(tmp_path / "none")


@pytest.mark.parametrize(("wanted", "message"), [({"model": "m"}, "of model 'm'"), ({"device": "d"}, "of device 'd'")])
def test_a_table_of_something_else_is_refused(wanted: dict[str, str], message: str, tmp_path: Path) -> None:
    table = compile_table(TWO)
    table.save(tmp_path / "table")
    with pytest.raises(ArtefactError, match=message):
        Table.load(tmp_path / "table", **wanted)
    with pytest.raises(ArtefactError, match=message):
        table.gate(0.01, 0.9, **wanted)


KEEP = option("keep", 0.004, 1.0)
WRONG_COSTS: dict[str, tuple[Callable[[], Costs], str]] = {
    "no points": (lambda: costs([]), "at least one point"),
    "no options": (lambda: costs([[]]), "first option must be of level 'keep'"),
    "no keep": (lambda: costs([[option("skip", 0.0, 1.0)]]), "first option must be of level 'keep', got skip"),
    "name twice": (lambda: costs([[KEEP, KEEP]]), "'keep' twice"),
    "no name": (lambda: costs([[KEEP, option("", 0.0, 1.0)]]), "names of their own"),
    "level": (lambda: costs([[KEEP, replace(option("o", 0.0, 1.0), level="odd")]]), "level must be one of keep, exit"),
    "negative time": (lambda: costs([[option("keep", -1.0, 1.0)]]), "mean_s must be finite and not negative, got -1.0"),
    "variance": (lambda: costs([[replace(KEEP, time=Duration(1.0, nan))]]), "variance_s2 must be finite"),
    "utility": (lambda: costs([[option("keep", 1.0, inf)]]), "utility must be finite, got inf"),
    "switch": (lambda: costs([[option("keep", 1.0, 1.0, switch_s=-1.0)]]), "switch_s must be"),
    "spread": (lambda: costs([[KEEP]], shared_spread=-0.1), "shared_spread must be"),
    "clock": (lambda: costs([[KEEP]], frequency_hz=-1.0), "frequency_hz must be"),
}


@pytest.mark.parametrize("what", sorted(WRONG_COSTS))
def test_wrong_costs_are_refused(what: str) -> None:
    make, message = WRONG_COSTS[what]
    with pytest.raises(InputError, match=message):
        make()
