"""The measured roofline: curves to levels, what the CPU is, and the graphs that are run."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latpred.collect import clock, plateaus, processor, roofline
from latpred.collect.plateaus import knees, levels_from, monotone
from latpred.collect.processor import Cache, Core, core_of, parse_cpuinfo, read_caches
from latpred.device import load_toml
from latpred.errors import InputError, MeasurementError

KIB, MIB, GIB = 1024, 1024**2, 1024**3
SIZES = [int(8 * KIB * 2 ** (k / 2)) for k in range(31)]  # 8 KiB to 256 MiB, two points an octave


def steps(near_bytes: int, far_bytes: int, speeds: tuple[float, float, float]) -> list[tuple[int, float]]:
    near, far, off_chip = speeds
    return [(size, near if size <= near_bytes else far if size <= far_bytes else off_chip) for size in SIZES]


# --- curves -----------------------------------------------------------------------------------------------------


def test_levels_of_a_clean_curve() -> None:
    caches = (Cache(1, 32 * KIB, 1), Cache(2, MIB, 1), Cache(3, 32 * MIB, 8))
    near, shared, off_chip = levels_from(steps(MIB, 32 * MIB, (100e9, 60e9, 20e9)), caches, 16 * GIB)
    assert (near.name, near.size_bytes, near.bandwidth_bytes_per_s) == ("L2", MIB, 100e9)
    assert (shared.name, shared.size_bytes, shared.bandwidth_bytes_per_s) == ("L3", 32 * MIB, 60e9)
    assert (off_chip.name, off_chip.size_bytes, off_chip.bandwidth_bytes_per_s) == ("off-chip", 16 * GIB, 20e9)


def test_a_machine_without_l3_uses_l1_and_l2() -> None:
    caches = (Cache(1, 32 * KIB, 1), Cache(2, MIB, 4))
    near, shared, _ = levels_from(steps(32 * KIB, MIB, (20e9, 10e9, 4e9)), caches, 4 * GIB)
    assert (near.name, near.size_bytes, near.bandwidth_bytes_per_s) == ("L1", 32 * KIB, 20e9)
    assert (shared.name, shared.size_bytes, shared.bandwidth_bytes_per_s) == ("L2", MIB, 10e9)


def test_a_cache_that_neighbours_use_ends_where_bandwidth_falls() -> None:
    caches = (Cache(2, MIB, 1), Cache(3, 32 * MIB, 8))
    _, shared, off_chip = levels_from(steps(MIB, 8 * MIB, (100e9, 60e9, 20e9)), caches, 16 * GIB)
    assert shared.size_bytes == 8 * MIB  # told 32 MiB; sqrt(60 * 20) = 34.6 GB/s is last exceeded at 8 MiB
    assert (shared.bandwidth_bytes_per_s, off_chip.bandwidth_bytes_per_s) == (60e9, 20e9)


def test_two_threads_have_two_private_caches() -> None:
    caches = (Cache(2, MIB, 1), Cache(3, 32 * MIB, 8))
    near, shared, _ = levels_from(steps(2 * MIB, 32 * MIB, (200e9, 90e9, 30e9)), caches, 16 * GIB, threads=2)
    assert (near.size_bytes, near.bandwidth_bytes_per_s) == (MIB, 200e9)  # the size is one core's
    assert (shared.size_bytes, shared.bandwidth_bytes_per_s) == (32 * MIB, 90e9)


def test_threads_on_several_shared_caches_have_them_all() -> None:
    caches = (Cache(2, MIB, 1), Cache(3, 8 * MIB, 4))
    _, shared, _ = levels_from(steps(8 * MIB, 16 * MIB, (800e9, 300e9, 60e9)), caches, 16 * GIB, threads=8)
    assert shared.size_bytes == 2 * 8 * MIB  # 8 threads, 4 to a cache


def test_farther_memory_is_never_the_faster() -> None:
    caches = (Cache(2, MIB, 1), Cache(3, 32 * MIB, 8))
    near, shared, off_chip = levels_from(steps(MIB, 32 * MIB, (64e9, 81e9, 20e9)), caches, 16 * GIB)
    assert near.bandwidth_bytes_per_s == shared.bandwidth_bytes_per_s == 72e9  # sqrt(64 * 81)
    assert off_chip.bandwidth_bytes_per_s == 20e9


@given(
    near=st.integers(4, 12),
    far=st.integers(16, 24),
    falls=st.tuples(st.floats(2.0, 6.0), st.floats(2.0, 6.0)),
    noise=st.lists(st.floats(-0.1, 0.1), min_size=31, max_size=31),
)
def test_knees_of_noisy_steps_are_where_they_were_put(
    near: int, far: int, falls: tuple[float, float], noise: list[float]
) -> None:
    clean = steps(SIZES[near], SIZES[far], (100e9, 100e9 / falls[0], 100e9 / falls[0] / falls[1]))
    noisy = [(size, speed * math.exp(wobble)) for (size, speed), wobble in zip(clean, noise, strict=True)]
    assert knees(noisy) == (SIZES[near], SIZES[far])
    levels = levels_from(noisy, (), 16 * GIB)  # no cache is visible: the knees stand in
    assert [level.size_bytes for level in levels[:2]] == [SIZES[near], SIZES[far]]
    for level, expected in zip(levels, (100e9, 100e9 / falls[0], 100e9 / falls[0] / falls[1]), strict=True):
        assert level.bandwidth_bytes_per_s == pytest.approx(expected, rel=0.11)


curves = st.lists(
    st.tuples(st.integers(1, 2**30), st.floats(1e6, 1e13)), min_size=3, max_size=40, unique_by=lambda p: p[0]
)


@given(
    curve=curves.map(sorted),
    sizes=st.lists(st.integers(1, 2**36), max_size=3, unique=True).map(sorted),
    shared_by=st.integers(1, 8),
    threads=st.integers(1, 16),
    memory=st.integers(1, 2**40),
)
def test_any_curve_gives_levels_that_a_device_accepts(
    curve: list[tuple[int, float]], sizes: list[int], shared_by: int, threads: int, memory: int
) -> None:
    caches = tuple(Cache(i + 1, size, shared_by) for i, size in enumerate(sizes))
    levels = levels_from(curve, caches, memory, threads)
    assert levels[0].size_bytes < levels[1].size_bytes < levels[2].size_bytes
    speeds = [level.bandwidth_bytes_per_s for level in levels]
    assert speeds == sorted(speeds, reverse=True)
    slowest, fastest = (pick(speed for _, speed in curve) for pick in (min, max))
    assert all(0.999 * slowest <= speed <= 1.001 * fastest for speed in speeds)


@given(st.lists(st.floats(1e3, 1e12), min_size=1, max_size=12))
def test_monotone_keeps_the_geometric_mean_and_what_is_in_order(speeds: list[float]) -> None:
    result = monotone(speeds)
    assert all(a >= b * (1 - 1e-9) for a, b in pairwise(result))
    assert np.log(result).sum() == pytest.approx(np.log(speeds).sum())
    in_order = sorted(speeds, reverse=True)
    assert monotone(in_order) == pytest.approx(in_order)


def test_a_curve_of_two_points_has_no_three_levels() -> None:
    with pytest.raises(MeasurementError, match="3 points or more; got 2"):
        knees([(1, 1.0), (2, 1.0)])


# --- what the CPU is --------------------------------------------------------------------------------------------


def x86(vendor: str, family: int, model: int, brand: str, flags: str) -> Core:
    text = (
        f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {brand}\nflags\t\t: {flags}"
    )
    return core_of("x86_64", parse_cpuinfo(text))


AVX2, AVX512 = "sse2 avx avx2 fma", "sse2 avx avx2 fma avx512f avx512_vnni"


@pytest.mark.parametrize(
    ("core", "float_flops", "int8_flops"),
    [
        # float32 FLOP a clock = lanes x FMA units x 2
        (x86("AuthenticAMD", 25, 17, "AMD EPYC", AVX512), 16 * 1 * 2, 64 * 1 * 2),  # Zen 4: 512 bits as two halves
        (x86("AuthenticAMD", 26, 2, "AMD EPYC 9755", AVX512), 16 * 2 * 2, 64 * 2 * 2),  # Zen 5
        (x86("AuthenticAMD", 25, 1, "AMD EPYC 7763", AVX2), 8 * 2 * 2, 8 * 2 * 2),  # Zen 3: no VNNI
        (x86("AuthenticAMD", 23, 49, "AMD EPYC 7742", AVX2), 8 * 2 * 2, 8 * 2 * 2),  # Zen 2
        (x86("AuthenticAMD", 23, 1, "AMD EPYC 7551", AVX2), 8 * 1 * 2, 8 * 1 * 2),  # Zen: 128-bit units
        (x86("GenuineIntel", 6, 85, "Intel(R) Xeon(R) Silver 4210 CPU", AVX512), 16 * 1 * 2, 64 * 1 * 2),
        (x86("GenuineIntel", 6, 85, "Intel(R) Xeon(R) Gold 5218 CPU", AVX512), 16 * 1 * 2, 64 * 1 * 2),
        (x86("GenuineIntel", 6, 85, "Intel(R) Xeon(R) Gold 6248 CPU", AVX512), 16 * 2 * 2, 64 * 2 * 2),
        (x86("GenuineIntel", 6, 106, "Intel(R) Xeon(R) Platinum 8380", AVX512), 16 * 2 * 2, 64 * 2 * 2),
        (x86("GenuineIntel", 6, 140, "11th Gen Intel(R) Core(TM) i7-1165G7", AVX512), 16 * 1 * 2, 64 * 1 * 2),
        (x86("GenuineIntel", 6, 158, "Intel(R) Core(TM) i7-8700", AVX2), 8 * 2 * 2, 8 * 2 * 2),
        (x86("GenuineIntel", 6, 42, "Intel(R) Core(TM) i7-2600", "sse2 avx"), 8 * 1 * 2, 8 * 1 * 2),
        (core_of("x86_64", {}), 4 * 1 * 2, 4 * 1 * 2),
    ],
)
def test_flops_a_clock_of_known_cores(core: Core, float_flops: int, int8_flops: int) -> None:
    assert core.flop_per_cycle("float32") == float_flops
    assert core.flop_per_cycle("int8") == int8_flops


def test_arm_cores_by_implementer_and_part() -> None:
    a72 = core_of("aarch64", {"CPU implementer": "0x41", "CPU part": "0xd08", "Features": "fp asimd"})
    n1 = core_of("aarch64", {"CPU implementer": "0x41", "CPU part": "0xd0c", "Features": "fp asimd asimddp"})
    unknown = core_of("aarch64", {"CPU implementer": "0x99", "CPU part": "0x001"})
    assert (a72.name, a72.flop_per_cycle("float32"), a72.dot_product) == ("Cortex-A72", 4 * 1 * 2, False)
    assert (n1.name, n1.flop_per_cycle("float32"), n1.flop_per_cycle("int8")) == ("Neoverse N1", 4 * 2 * 2, 16 * 2 * 2)
    assert "assumed" in unknown.name


def test_caches_as_linux_shows_them(tmp_path: Path) -> None:
    shown = [("1", "Data", "32K", "0"), ("1", "Instruction", "32K", "0"), ("3", "Unified", "32M", "0-3,8-11"),
             ("2", "Unified", "1024K", "0,8")]  # fmt: skip
    for index, fields in enumerate(shown):
        folder = tmp_path / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for key, value in zip(("level", "type", "size", "shared_cpu_list"), fields, strict=True):
            (folder / key).write_text(value + "\n")
    assert read_caches(tmp_path) == (Cache(1, 32 * KIB, 1), Cache(2, MIB, 2), Cache(3, 32 * MIB, 8))
    assert read_caches(tmp_path / "nowhere") == ()


def test_this_machine_can_be_identified() -> None:
    here = processor.identify()
    assert here.model
    assert 1 <= here.cores <= here.logical_cpus
    assert [cache.level for cache in here.caches] == sorted(cache.level for cache in here.caches)
    assert here.core.flop_per_cycle("float32") >= 2


def test_theoretical_peak_is_cores_x_hz_x_lanes_x_units_x_2() -> None:
    here = replace(processor.identify(), cores=4, core=Core("toy", 16, 2, True), told_frequency_hz=2e9)
    assert processor.theoretical_flops(here, 3, 3e9) == {"float32": 3 * 3e9 * 16 * 2 * 2, "int8": 3 * 3e9 * 64 * 2 * 2}
    assert processor.theoretical_flops(here, 8) == {"float32": 4 * 2e9 * 16 * 2 * 2, "int8": 4 * 2e9 * 64 * 2 * 2}
    assert processor.theoretical_flops(replace(here, told_frequency_hz=None), 1) == {}


def test_the_loop_jumps_back_to_its_first_multiplication() -> None:
    entry, multiply, jump = b"\xf3\x0f\x1e\xfa", b"\x48\x0f\xaf\xc0", clock._LOOP.index(b"\x75")
    assert clock._LOOP.startswith(entry + multiply)
    offset = int.from_bytes(clock._LOOP[jump + 1 : jump + 2], "little", signed=True)
    assert jump + 2 + offset == len(entry)  # relative to the next instruction
    assert clock._LOOP.count(multiply) == clock._MULTIPLICATIONS


def test_the_clock_is_one_of_a_computer() -> None:
    frequency_hz = clock.measured_frequency_hz(repeats=3, trips=2000)
    assert frequency_hz is None or 0.2e9 < frequency_hz < 8e9


# --- what is run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [roofline._float_graphs(), roofline._integer_graphs()], ids=["float32", "int8"])
def test_the_graphs_compute_what_is_counted(entries: list[roofline._Entry]) -> None:
    for model, feed, flops in entries:
        onnx.checker.check_model(model, full_check=True)
        node, shape = model.graph.node[0], feed["x"].shape
        weights = next(t for t in model.graph.initializer if t.name == "w")
        if node.op_type.startswith("MatMul"):
            macs = shape[0] * shape[1] * weights.dims[1]
        else:  # every output element sums the kernel's window over all input channels
            macs = math.prod(shape) * math.prod(weights.dims[1:])
        assert flops == 2 * macs


def test_only_threads_and_providers_of_this_machine_are_measured() -> None:
    with pytest.raises(InputError, match=r"threads must be 1 to \d+, this machine's CPUs; got 0"):
        roofline.measure_device("toy", threads=0)
    with pytest.raises(InputError, match="got CUDAExecutionProvider: write a device file by hand"):
        roofline.measure_device("toy", provider="CUDAExecutionProvider")


@pytest.mark.parametrize(
    ("threads", "cores", "counts"), [(1, 2, [1, 2]), (3, 6, [1, 2, 3, 4, 6]), (16, 8, [1, 2, 4, 8, 16]), (1, 1, [1])]
)
def test_thread_counts(threads: int, cores: int, counts: list[int]) -> None:
    assert roofline._thread_counts(threads, cores) == counts


def test_curve_points_are_two_an_octave() -> None:
    curve = roofline.bandwidth_curve(1, 2 * MIB, seconds=0.1)
    expected = [int(8 * KIB * 2 ** (k / 2)) // 64 * 64 for k in range(17)]  # 8 KiB x 2**8 = 2 MiB
    assert [size for size, _ in curve if size >= 128 * KIB] == expected[8:]
    assert {size for size, _ in curve} <= set(expected)  # the smallest drown in the call on a busy machine
    assert all(1e7 < speed < 1e13 for _, speed in curve)


def test_four_digits_are_kept() -> None:
    assert plateaus.significant(117_825_813_636.1) == 117_800_000_000.0


@pytest.mark.measure
def test_a_measured_device_is_plausible(tmp_path: Path) -> None:
    from latpred.device import dump_toml

    shares: list[float] = []
    device = roofline.measure_device("here", 1, seconds=6, progress=lambda _what, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert device.source == "measured"
    assert 0.3 * device.theoretical_flops["float32"] < device.peak() < 1.15 * device.theoretical_flops["float32"]
    assert device.levels[0].bandwidth_bytes_per_s > device.levels[2].bandwidth_bytes_per_s
    assert 1e-8 < device.dispatch_s < 1e-4
    assert device.start_s(math.inf, math.inf) > 0.0
    dump_toml(device, tmp_path / "device.toml")
    assert load_toml(tmp_path / "device.toml") == device
