"""Devices: presets recomputed from cores, clocks and widths; TOML round trips; errors that name what is wrong."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latpred.device import SCHEMA_VERSION, Device, Level, dump_toml, load_toml, preset, presets
from latpred.errors import DeviceError
from latpred.report.tables import device_table

LEVELS = (Level("L2", 2**20, 80e9), Level("L3", 2**24, 20e9), Level("DRAM", 2**34, 10e9))


def toy(**changes: object) -> Device:
    device = Device(
        name="toy",
        processor="toy-1",
        cores=4,
        threads=1,
        frequency_hz=2e9,
        peak_flops={"float32": 100e9, "int8": 400e9},
        levels=LEVELS,
        dispatch_s=1e-6,
        lanes={"float32": 8, "int8": 32},
    )
    return replace(device, **changes)  # type: ignore[arg-type]


# --- presets, from public numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flops", "bytes_per_s"),
    [
        # sockets x cores x Hz x lanes x FMA units x 2;  channels x bytes x transfers/s
        ("xeon-silver-4210-x2", 2 * 10 * 1.5e9 * 16 * 1 * 2, 4 * 8 * 2.4e9),
        # CUDA cores x Hz x 2;  bus bits / 8 x transfers/s
        ("rtx3090", 10496 * 1.7e9 * 2, 384 / 8 * 19.5e9),
        ("v100", 5120 * 1.53e9 * 2, 4096 / 8 * 1.754e9),
        ("jetson-tx2", 256 * 1.3e9 * 2, 128 / 8 * 3.732e9),
        ("jetson-nano", 128 * 921.6e6 * 2, 64 / 8 * 3.2e9),
        # cores x Hz x lanes x FMA units x 2
        ("raspberry-pi-4", 4 * 1.5e9 * 4 * 1 * 2, 32 / 8 * 3.2e9),
    ],
)
def test_preset_is_what_its_hardware_computes(name: str, flops: float, bytes_per_s: float) -> None:
    device = preset(name)
    assert device.peak("float32") == pytest.approx(flops, rel=1e-9)
    assert device.levels[-1].bandwidth_bytes_per_s == pytest.approx(bytes_per_s, rel=1e-9)
    assert device.ridge_flop_per_byte() == pytest.approx(flops / bytes_per_s, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "gigaflops", "gigabytes_per_s", "ridge"),
    [
        ("xeon-silver-4210-x2", 960.0, 76.8, 12.5),
        ("rtx3090", 35.7e3, 936.0, 38.1),
        ("v100", 15.7e3, 900.0, 17.4),
        ("jetson-tx2", 665.0, 59.7, 11.1),
        ("jetson-nano", 236.0, 25.6, 9.2),
        ("raspberry-pi-4", 48.0, 12.8, 3.75),
    ],
)
def test_preset_is_what_the_vendor_prints(name: str, gigaflops: float, gigabytes_per_s: float, ridge: float) -> None:
    device = preset(name)
    assert device.peak() / 1e9 == pytest.approx(gigaflops, rel=3e-3)
    assert device.levels[-1].bandwidth_bytes_per_s / 1e9 == pytest.approx(gigabytes_per_s, rel=3e-3)
    assert device.ridge_flop_per_byte() == pytest.approx(ridge, rel=5e-3)


def test_half_precision_of_the_presets() -> None:
    assert preset("v100").peak("float16") == pytest.approx(640 * 64 * 2 * 1.53e9)  # tensor cores x FMA x 2 x Hz
    assert preset("v100").peak("float16") == pytest.approx(125e12, rel=5e-3)
    assert preset("rtx3090").peak("float16") == pytest.approx(328 * 128 * 2 * 1.7e9)
    assert preset("rtx3090").peak("float16") == pytest.approx(142e12, rel=6e-3)
    assert preset("jetson-tx2").peak("float16") == pytest.approx(1.33e12, rel=2e-3)  # pairs
    assert preset("jetson-nano").peak("float16") == pytest.approx(472e9, rel=2e-3)
    assert preset("xeon-silver-4210-x2").peak("int8") == 20 * 1.5e9 * 64 * 2  # VNNI: four products a lane


def test_every_preset_follows_from_its_derivation() -> None:
    assert presets() == ("jetson-nano", "jetson-tx2", "raspberry-pi-4", "rtx3090", "v100", "xeon-silver-4210-x2")
    for name in presets():
        device = preset(name)
        from_ = device.derivation
        assert device.name == name
        assert device.source == "theoretical"
        assert device.references, f"{name} does not say where its numbers come from"
        assert device.cores == device.threads == from_["elements"]
        flops = from_["elements"] * from_["frequency_hz"] * from_["lanes"] * from_["fma_units"] * 2
        assert device.peak() == pytest.approx(flops, rel=1e-9)
        near = from_["elements"] * from_["frequency_hz"] * from_["element_bytes_per_cycle"]
        assert device.levels[0].bandwidth_bytes_per_s == pytest.approx(near, rel=1e-9)
        bus = from_["bus_width_bits"] / 8 * from_["transfers_per_s"]
        assert device.levels[2].bandwidth_bytes_per_s == pytest.approx(bus, rel=1e-9)
        speeds = [level.bandwidth_bytes_per_s for level in device.levels]
        assert speeds == sorted(speeds, reverse=True)


@pytest.mark.parametrize("name", ["rtx3090", "jetson-tx2", "jetson-nano"])
def test_shared_memory_of_gpus_without_a_public_figure_is_four_times_the_off_chip_one(name: str) -> None:
    device = preset(name)
    assert device.levels[1].bandwidth_bytes_per_s == pytest.approx(4 * device.levels[2].bandwidth_bytes_per_s)


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(DeviceError, match=r"no device preset 'rtx9999'.*jetson-nano.*rtx3090") as error:
        preset("rtx9999")
    assert "\n" not in str(error.value)


@st.composite
def _start_curves(draw: st.DrawFn) -> list[tuple[int, float, float]]:
    """Sizes and costs that grow, as a measurement gives them."""
    sizes = sorted(draw(st.lists(st.integers(1, 2**40), max_size=5, unique=True)))
    costs = [sorted(draw(st.lists(st.floats(0, 1e-3), min_size=len(sizes), max_size=len(sizes)))) for _ in range(2)]
    return list(zip(sizes, *costs, strict=True))


start_curves = _start_curves()


# --- what a device answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", 100e9),
        ("int8", 400e9),
        ("uint8", 400e9),  # as int8
        ("float16", 100e9),  # computed as float32
        ("bfloat16", 100e9),
        ("float64", 50e9),  # half the lanes
        ("int64", 50e9),
        ("int32", 100e9),
        ("bool", 100e9),
        ("never-heard-of", 100e9),
    ],
)
def test_peak_of_a_dtype_without_its_own(dtype: str, expected: float) -> None:
    assert toy().peak(dtype) == expected


def test_bfloat16_follows_float16_where_that_has_its_own_peak() -> None:
    device = toy(peak_flops={"float32": 100e9, "float16": 300e9})
    assert device.peak("bfloat16") == 300e9
    assert device.peak("int8") == 100e9


def test_width_of_a_dtype_without_its_own() -> None:
    device = toy()
    assert [device.width(d) for d in ("float32", "int8", "uint8", "float64", "float16", "bool")] == [8, 32, 32, 4, 8, 8]
    assert toy(lanes={"float32": 1}).width("float64") == 1


def test_working_sets_meet_the_nearest_memory_that_holds_them() -> None:
    device = toy()
    bandwidths = [device.bandwidth_for(size) for size in (0, 2**20, 2**20 + 1, 2**24, 2**24 + 1, 2**40)]
    assert bandwidths == [80e9, 80e9, 20e9, 20e9, 10e9, 10e9]
    assert device.level_for(2**40) == 2


def test_a_start_by_hand() -> None:
    curve = ((2**18, 1e-6, 4e-6), (2**20, 3e-6, 8e-6), (2**22, 3e-6, 20e-6))
    device = toy(start_curve=curve)
    expected_s = {  # own, shared: linear in the logarithm between points, with the size below the first one
        0: (0.0, 0.0),
        2**17: (0.5e-6, 2e-6),
        2**18: (1e-6, 4e-6),
        2**19: (2e-6, 6e-6),
        2**20: (3e-6, 8e-6),
        2**21: (3e-6, 14e-6),
        2**22: (3e-6, 20e-6),
        2**40: (3e-6, 20e-6),
    }
    for idle, (own_s, _) in expected_s.items():
        for evicting, (_, shared_s) in expected_s.items():
            assert device.start_s(idle, evicting) == pytest.approx(own_s + shared_s)
    assert toy(dispatch_s=2e-6).start_s(0, 0) == 4e-6  # nobody measured it


@given(
    start_curves.filter(bool),
    st.lists(st.floats(0, 2**42), min_size=2, max_size=2).map(sorted),
)
def test_longer_idle_never_starts_sooner(curve: list[tuple[int, float, float]], idle_bytes: list[float]) -> None:
    device = toy(start_curve=tuple(curve))
    few_s, many_s = (device.start_s(size, size) for size in idle_bytes)
    assert 0.0 <= few_s <= many_s * (1 + 1e-9) <= (curve[-1][1] + curve[-1][2]) * (1 + 1e-6)


def test_key_is_a_folder_name() -> None:
    assert toy(name="AMD EPYC (Zen 4)", threads=2).key == "amd-epyc-zen-4-2t"


# --- files ------------------------------------------------------------------------------------------------------

speeds = st.floats(1e3, 1e15, allow_nan=False)
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@given(
    name=texts,
    peaks=st.dictionaries(st.sampled_from(["float16", "int8", "float64"]), speeds),
    fastest=speeds,
    sizes=st.lists(st.integers(1, 2**50), min_size=3, max_size=3, unique=True).map(sorted),
    curve=st.lists(st.tuples(st.integers(1, 2**40), speeds), max_size=4),
    starts=start_curves,
    notes=st.lists(texts, max_size=3),
)
def test_toml_gives_the_same_device_back(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    peaks: dict[str, float],
    fastest: float,
    sizes: list[int],
    curve: list[tuple[int, float]],
    starts: list[tuple[int, float, float]],
    notes: list[str],
) -> None:
    path = tmp_path_factory.mktemp("device") / "device.toml"
    levels = tuple(Level(f"M{i}", size, fastest / (i + 1)) for i, size in enumerate(sizes))
    device = toy(
        name=name,
        peak_flops={"float32": fastest, **peaks},
        levels=levels,
        bandwidth_curve=tuple(curve),
        start_curve=tuple(starts),
        notes=tuple(notes),
        peak_flops_by_threads={1: {"float32": fastest}, 2: {"float32": 2 * fastest}},
    )
    dump_toml(device, path)
    assert load_toml(path) == device
    assert Device.from_dict(json.loads(json.dumps(device.to_dict()))) == device


def test_every_preset_survives_a_round_trip(tmp_path: Path) -> None:
    for name in presets():
        dump_toml(preset(name), tmp_path / "again.toml")
        assert load_toml(tmp_path / "again.toml") == preset(name)


def broken(**changes: object) -> dict[str, object]:
    row = toy().to_dict()
    row.update(changes)
    return {key: value for key, value in row.items() if value is not None}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (broken(schema_version=99), "schema_version 1 is what this latpred reads; got 99"),
        (broken(schema_version=None), "got None"),
        (broken(dispatch_s=None), r"missing: \['dispatch_s'\]"),
        (broken(bandwith=1), r"unknown: \['bandwith'\]"),
        (broken(levels=[{"name": "L2", "size_bytes": 1}]), "wrong form"),
        (broken(levels=3), "wrong form"),
        (broken(levels=[{"name": "L2", "size_bytes": 1, "bandwidth_bytes_per_s": 1.0}]), "3 memory levels.*got 1"),
        (broken(peak_flops={"float16": 1e9}), r"peak_flops of device 'toy' must name float32; got \['float16'\]"),
        (broken(lanes={"int8": 4}), "lanes of device 'toy' must name float32"),
        (broken(peak_flops={"float32": "fast"}), r"peak_flops.float32 must be a number in FLOP/s; got 'fast'"),
        (broken(peak_flops=3.0), "wrong form"),
        (broken(frequency_hz=0), "frequency_hz must be positive and finite, in Hz; got 0"),
        (broken(dispatch_s=-1e-6), "dispatch_s must be positive"),
        (broken(threads=True), "threads must be a number"),
        (broken(start_curve=[[1024, 1e-6]]), "wrong form"),
        (broken(start_curve=[1024, 1e-6, 1e-6]), "wrong form"),
        (broken(start_curve=[["many", 1e-6, 1e-6]]), "wrong form"),
        (broken(start_curve=[[math.inf, 1e-6, 1e-6]]), "wrong form"),
        (broken(start_curve=[[0, 0.0, 0.0]]), r"start_curve must have sizes above 0 that grow, in B; got \[0\]"),
        (broken(start_curve=[[2, 0.0, 0.0], [2, 0.0, 0.0]]), r"that grow, in B; got \[2, 2\]: order its rows"),
        (broken(start_curve=[[4, 0.0, 0.0], [2, 0.0, 0.0]]), r"that grow, in B; got \[4, 2\]"),
        (broken(start_curve=[[2, -1e-6, 0.0]]), r"finite and not negative, in s; got \[-1e-06, 0.0\]"),
        (broken(start_curve=[[2, 0.0, math.nan]]), r"finite and not negative, in s; got \[0.0, nan\]"),
        (broken(start_curve=[[2, math.inf, 0.0]]), "finite and not negative"),
        (broken(source="guessed"), "must be one of measured, theoretical; got 'guessed'"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(row: dict[str, object], message: str) -> None:
    with pytest.raises(DeviceError, match=message) as error:
        Device.from_dict(row, "my.toml")
    assert str(error.value).startswith("my.toml: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.inf, math.nan])
def test_bandwidth_is_positive_and_finite(bandwidth: float) -> None:
    with pytest.raises(DeviceError, match=r"bandwidth_bytes_per_s of memory level 'L2' must be positive .* in B/s"):
        Level("L2", 1024, bandwidth)


def test_levels_grow() -> None:
    with pytest.raises(DeviceError, match=r"must grow in size_bytes .* got \[16777216, 1048576, 17179869184\] B"):
        toy(levels=(LEVELS[1], LEVELS[0], LEVELS[2]))


def test_a_person_sees_what_a_start_costs_at_most() -> None:
    text = device_table(toy(start_curve=((2**20, 1e-6, 4e-6), (2**24, 3e-6, 20e-6))))
    assert "dispatch 1.00 us, start of an idle graph up to 23.0 us" in text
    assert "up to 2.0 us" in device_table(toy())


def test_a_schema_version_is_written() -> None:
    assert toy().to_dict()["schema_version"] == SCHEMA_VERSION == 1


@pytest.mark.parametrize(
    ("content", "message"), [(None, "must be readable text"), (b"\xff\xfe", "readable"), (b"name = ", "must be TOML")]
)
def test_a_file_that_is_no_device(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "device.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeviceError, match=message):
        load_toml(path)
