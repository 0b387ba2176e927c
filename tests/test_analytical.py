"""The analytical model, against sums written out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latpred.analytical import analytical_s, analytical_terms
from latpred.device import Device, Level, preset, presets
from latpred.graph import Spec
from latpred.kernels.kernel import Context, Kernel, Work

FAR = Context(reuse_bytes=2**50, cycle_bytes=2**50)  # everything else has passed since: no cache holds anything


def device(
    threads: int = 1, lanes: int = 8, near_bytes: int = 2**16, shared_speed: float = 1e12, off_chip_speed: float = 1e12
) -> Device:
    """Each processing element: 1 GFLOP/s, 8 lanes; dispatch 5 us."""
    levels = (
        Level("near", near_bytes, 1e13),
        Level("shared", 2**20, shared_speed),
        Level("off-chip", 2**34, off_chip_speed),
    )
    return Device("toy", "toy", threads, threads, 1e9, {"float32": threads * 1e9}, levels, 5e-6, {"float32": lanes})


def product(rows: int, depth: int, channels: int, *lead: int, constant: bool = True, context: Context = FAR) -> Kernel:
    batch, macs = math.prod(lead), math.prod(lead) * rows * depth * channels
    weight = Spec((depth, channels), constant=True) if constant else Spec((*lead, depth, channels))
    held = 4 * depth * channels * (1 if constant else batch)
    work = Work(
        macs=macs,
        flops=2 * macs,
        read_bytes=4 * batch * rows * depth + (0 if constant else held),
        write_bytes=4 * batch * rows * channels,
        weight_bytes=held if constant else 0,
    )
    inputs, output = (Spec((*lead, rows, depth)), weight), Spec((*lead, rows, channels))
    return Kernel("matmul", "MatMul", "", "m", ("m",), inputs, (output,), work=work, context=context)


def convolution(channels_in: int, channels: int, side: int, kernel: int, stride: int = 1, group: int = 1) -> Kernel:
    """Padded so that the output's side is the input's over the stride."""
    out = side // stride
    macs = channels * out * out * (channels_in // group) * kernel * kernel
    work = Work(
        macs=macs,
        flops=2 * macs,
        read_bytes=4 * channels_in * side * side,
        write_bytes=4 * channels * out * out,
        weight_bytes=4 * channels * (channels_in // group) * kernel * kernel,
    )
    inputs = (
        Spec((1, channels_in, side, side)),
        Spec((channels, channels_in // group, kernel, kernel), constant=True),
    )
    attributes = {"group": group, "strides": (stride, stride), "kernel_shape": (kernel, kernel)}
    output = (Spec((1, channels, out, out)),)
    return Kernel("conv", "Conv", "", "c", ("c",), inputs, output, attributes, work=work, context=FAR)


def relu(elements: int, context: Context = FAR) -> Kernel:
    work = Work(flops=elements, read_bytes=4 * elements, write_bytes=4 * elements)
    return Kernel(
        "relu", "Relu", "", "r", ("r",), (Spec((elements,)),), (Spec((elements,)),), work=work, context=context
    )


# --- compute ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "padded"), [(8, 8), (9, 16), (20, 24), (24, 24), (64, 64)])
def test_channels_are_rounded_up_to_the_lanes(channels: int, padded: int) -> None:
    terms = analytical_terms(product(64, 100, channels), device())
    assert terms.compute_s == pytest.approx(2 * 64 * padded * 100 / 1e9)


def test_rows_are_rounded_up_to_the_tile() -> None:
    # 5 rows, 8 channels, on 4 elements: 4 tiles of 2 rows (6 of them real) in one wave, against 1 tile of 8 rows.
    terms = analytical_terms(product(5, 1000, 8), device(threads=4))
    assert terms.compute_s == pytest.approx(2 * 2 * 8 * 1000 / 1e9)


def test_a_last_wave_costs_as_much_as_a_full_one() -> None:
    # 3 heads on 2 elements. Rows of 4 split into two tiles of 2: 6 tiles, 3 waves.
    terms = analytical_terms(product(4, 1000, 8, 3, constant=False), device(threads=2))
    assert terms.compute_s == pytest.approx(3 * 2 * 2 * 8 * 1000 / 1e9)
    # One row a head cannot be split: 3 tiles, 2 waves, as long as 4 heads would take.
    three, four = (analytical_terms(product(1, 1000, 8, n, constant=False), device(threads=2)) for n in (3, 4))
    assert three.compute_s == four.compute_s == pytest.approx(2 * 2 * 8 * 1000 / 1e9)


def test_a_constant_operand_joins_the_leading_dims_into_rows() -> None:
    # (3, 1, 1000) x (1000, 8): 3 rows of one product. A tile of 2 on each of 2 elements: one wave.
    terms = analytical_terms(product(1, 1000, 8, 3), device(threads=2))
    assert terms.compute_s == pytest.approx(2 * 2 * 8 * 1000 / 1e9)


def test_a_depthwise_convolution_puts_positions_side_by_side() -> None:
    # 3 channels would waste 5 of 8 lanes; 4 x 4 positions waste none. 9 multiply-adds an output.
    terms = analytical_terms(convolution(3, 3, 4, 3, group=3), device())
    assert terms.compute_s == pytest.approx(2 * 16 * 3 * 9 / 1e9)


def test_a_dense_convolution_pays_for_its_idle_lanes() -> None:
    terms = analytical_terms(convolution(8, 12, 4, 3), device())
    assert terms.compute_s == pytest.approx(2 * 16 * 16 * 8 * 9 / 1e9)  # 12 channels as 16


def test_channels_last_convolutions_have_their_channels_last() -> None:
    macs = 4 * 4 * 12 * 8
    inputs = Spec((1, 4, 4, 8), "uint8"), Spec((12, 8, 1, 1), "int8", constant=True)
    output = (Spec((1, 4, 4, 12), "uint8"),)
    kernel = Kernel(
        "conv", "QLinearConv", "com.ms.internal.nhwc", "c", ("c",), inputs, output, work=Work(macs=macs, flops=2 * macs)
    )
    assert analytical_terms(kernel, device()).compute_s == pytest.approx(2 * 16 * 16 * 8 / 1e9)  # 12 channels as 16


def test_elementwise_arithmetic_fills_all_elements() -> None:
    # 2 elements of 8 lanes: 33 values take 3 steps of 16.
    assert analytical_terms(relu(33), device(threads=2)).compute_s == pytest.approx(48 / 2e9)


def test_a_fused_epilogue_is_added() -> None:
    kernel = product(64, 100, 8)
    with_relu = Kernel(**{name: getattr(kernel, name) for name in Kernel.__slots__} | {
        "work": kernel.work + Work(flops=512), "epilogue": ("relu",)})  # fmt: skip
    more = analytical_terms(with_relu, device()).compute_s - analytical_terms(kernel, device()).compute_s
    assert more == pytest.approx(512 / 1e9)


# --- memory -----------------------------------------------------------------------------------------------------


def test_each_tile_reads_its_operands_again() -> None:
    # Memory for 16 x 8 accumulators and little more: with slow on-chip memory the largest tile that fits is best.
    slow = device(near_bytes=4 * (16 * 8 + 16 + 8), shared_speed=1e6)
    terms = analytical_terms(product(32, 100, 16), slow)
    tiles = (32 // 16) * (16 // 8)
    assert terms.on_chip_s == pytest.approx(tiles * 4 * (16 * 100 + 100 * 8 + 16 * 8) / 1e6)


def test_one_tile_reads_everything_once() -> None:
    terms = analytical_terms(product(32, 100, 16), device(shared_speed=1e6))
    assert terms.on_chip_s == pytest.approx(4 * (32 * 100 + 100 * 16 + 32 * 16) / 1e6)


@pytest.mark.parametrize(
    ("kernel", "stride", "positions"),
    [(1, 1, 4 * 4), (3, 1, 6 * 6), (3, 2, 9 * 9), (2, 2, 8 * 8)],  # a 4 x 4 tile and the rim under its windows
)
def test_a_convolution_reads_each_position_under_its_tile_once(kernel: int, stride: int, positions: int) -> None:
    terms = analytical_terms(convolution(8, 8, 4 * stride, kernel, stride), device(shared_speed=1e6))
    weights, outputs = 8 * 8 * kernel * kernel, 8 * 4 * 4
    assert terms.on_chip_s == pytest.approx(4 * (positions * 8 + weights + outputs) / 1e6)


def test_each_group_reads_its_own_channels() -> None:
    terms = analytical_terms(convolution(16, 16, 4, 1, group=2), device(shared_speed=1e6))
    inputs, weights, outputs = 4 * 4 * 16, 16 * 8, 4 * 4 * 16  # one tile over both groups: 8 channels of each
    assert terms.on_chip_s == pytest.approx(4 * (inputs + weights + outputs) / 1e6)


def test_off_chip_traffic_is_all_of_it_when_nothing_is_held() -> None:
    kernel = product(64, 100, 8)
    terms = analytical_terms(kernel, device(off_chip_speed=1e9))
    assert kernel.work.traffic_bytes == 4 * (64 * 100 + 100 * 8 + 64 * 8)  # input + weights + output
    # What was read has long left a memory of 1 MiB; what is written now fits.
    missed = 4 * (64 * 100 + 100 * 8) * (1 - 2**20 / 2**50)
    assert terms.off_chip_s == pytest.approx(missed / 1e9)


def test_what_the_shared_memory_holds_costs_no_off_chip_traffic() -> None:
    fresh = product(64, 100, 8, context=Context(reuse_bytes=1000, cycle_bytes=2**19))
    assert analytical_terms(fresh, device()).off_chip_s == 0


# --- the sum ----------------------------------------------------------------------------------------------------


def test_the_longer_of_arithmetic_and_memory_and_dispatch() -> None:
    compute_bound = analytical_terms(product(64, 100, 8), device())
    assert compute_bound.total_s == pytest.approx(2 * 64 * 8 * 100 / 1e9 + 5e-6)
    memory_bound = analytical_terms(relu(10**6), device(shared_speed=4e8, off_chip_speed=2e8))
    # 8 MB on chip; off chip the 4 MB read, and what of the 8 MB pass does not fit 1 MiB when it is written back
    off_chip_bytes = 4e6 * (1 - 2**20 / 2**50) + 4e6 * (1 - 2**20 / 8e6)
    assert memory_bound.total_s == pytest.approx(8e6 / 4e8 + off_chip_bytes / 2e8 + 5e-6)


def test_a_view_costs_its_dispatch() -> None:
    view = Kernel("reshape", "Reshape", "", "v", ("v",), (Spec((4, 4)),), (Spec((16,)),), context=FAR)
    assert analytical_s(view, device()) == 5e-6


def test_a_kernel_without_operands_is_no_division_by_zero() -> None:
    bare = Kernel("custom", "Custom", "x", "k", ("k",), (), (), work=Work(macs=10, flops=20))
    assert analytical_s(bare, device()) >= 5e-6
    empty = Kernel("relu", "Relu", "", "r", ("r",), (Spec((0, 3)),), (Spec((0, 3)),))
    assert analytical_s(empty, device()) == 5e-6


def test_float16_runs_at_its_own_peak() -> None:
    square, weights = Spec((4096, 4096), "float16"), Spec((4096, 4096), "float16", constant=True)
    work = Work(macs=4096**3, flops=2 * 4096**3)
    half = Kernel("matmul", "MatMul", "", "m", ("m",), (square, weights), (square,), work=work)
    v100 = preset("v100")
    # 32 x 32 tiles of 128 x 128 do not divide by 80 SMs; whatever the tile, at most a few % are lost.
    assert analytical_terms(half, v100).compute_s == pytest.approx(2 * 4096**3 / (640 * 64 * 2 * 1.53e9), rel=0.05)


@given(
    rows=st.integers(1, 300),
    depth=st.integers(1, 300),
    channels=st.integers(1, 300),
    name=st.sampled_from(presets()),
)
def test_no_kernel_beats_the_peak_or_the_memory(rows: int, depth: int, channels: int, name: str) -> None:
    target, kernel = preset(name), product(rows, depth, channels)
    terms = analytical_terms(kernel, target)
    assert terms.compute_s >= kernel.work.flops / target.peak() * (1 - 1e-9)
    assert terms.on_chip_s >= kernel.work.traffic_bytes / target.levels[1].bandwidth_bytes_per_s * (1 - 1e-9)
    assert analytical_s(kernel, target) == terms.total_s > target.dispatch_s


@given(rows=st.integers(1, 200), depth=st.integers(1, 200), channels=st.integers(1, 200), more=st.integers(1, 100))
def test_more_depth_takes_longer(rows: int, depth: int, channels: int, more: int) -> None:
    target = device(threads=3)
    assert analytical_s(product(rows, depth + more, channels), target) > analytical_s(
        product(rows, depth, channels), target
    )


def test_faster_devices_are_faster_on_large_work() -> None:
    kernel = convolution(256, 256, 56, 3)
    latencies = {name: analytical_s(kernel, preset(name)) for name in presets()}
    order = ["rtx3090", "v100", "xeon-silver-4210-x2", "jetson-tx2", "jetson-nano", "raspberry-pi-4"]
    assert sorted(latencies, key=lambda name: latencies[name]) == order
