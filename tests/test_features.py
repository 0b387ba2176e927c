"""Features against numbers worked out by hand from shapes, and against properties that any kernel has."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latpred.device import Device, Level
from latpred.graph import Spec
from latpred.kernels.features import FEATURES, OP_ORDER, features
from latpred.kernels.kernel import Context, Kernel, Work
from latpred.kernels.kinds import KINDS, kind_of
from latpred.kernels.memory_views import merged_transpose
from latpred.kernels.roofline import bound, roofline_s, roofline_terms
from latpred.kernels.views import VIEWS_OF_KIND, VIEWS_OF_OP

BLOCKED = "com.microsoft.nchwc"
LEVELS = (Level("L2", 2**20, 100e9), Level("L3", 2**25, 50e9), Level("DRAM", 2**34, 10e9))
NOWHERE = Context()
DEVICE = Device("toy", "toy", 1, 1, 1e9, {"float32": 100e9, "int8": 200e9}, LEVELS, 1e-6, {"float32": 16})


def kernel(op_type: str, shapes: list[tuple[int, ...]], *outputs: tuple[int, ...], constants: tuple[int, ...] = (),
           domain: str = "", dtype: str = "float32", context: Context = NOWHERE, work: Work | None = None,
           **attributes: object) -> Kernel:  # fmt: skip
    inputs = tuple(Spec(shape, dtype, i in constants) for i, shape in enumerate(shapes))
    results = tuple(Spec(shape, dtype) for shape in outputs)
    work = work or Work(
        flops=sum(s.elements for s in results),
        read_bytes=sum(s.size_bytes for s in inputs if not s.constant),
        write_bytes=sum(s.size_bytes for s in results),
        weight_bytes=sum(s.size_bytes for s in inputs if s.constant),
    )
    kind = kind_of(op_type, domain, inputs, attributes)  # type: ignore[arg-type]
    return Kernel(kind, op_type, domain, "k", ("k",), inputs, results, attributes, (), work, context)  # type: ignore[arg-type]


def row(k: Kernel, device: Device = DEVICE) -> dict[str, float]:
    return dict(zip(FEATURES, features([k], device)[0].tolist(), strict=True))


def has(k: Kernel, **expected: float) -> None:
    found = row(k)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def log(value: float) -> float:
    return math.log2(value + 1)


def test_blocked_convolution() -> None:
    k = kernel(
        "Conv", [(2, 48, 30, 40), (80, 48, 3, 5), (80,)], (2, 80, 15, 20), constants=(1, 2), domain=BLOCKED,
        strides=(2, 2), pads=(1, 2, 1, 2), group=1,
    )  # fmt: skip
    has(
        k,
        window_batch=2, window_height_in=30, window_width_out=20, window_kernel_width=5, window_stride_height=2,
        window_pad_height=1 + 1, window_pad_width=2 + 2, window_taps=3 * 5,
        window_depth_in=log(48), window_patch=log(48 * 3 * 5), window_pixels_out=log(15 * 20),
        window_filled_out=80 / (5 * 16),  # 5 blocks of 16 filters are full
        window_filter_blocks_left=5 % 4,
        window_filled_filter_blocks=5 / 8,  # two sets of four blocks
        window_inside=18,  # floor((40 - 5) / 2) + 1 columns touch no padding
        window_filled_inside=18 / 18,
        window_filled_row=20 / (4 * 6),  # four sets of six pixels
        window_rows_in_near=math.log2(4 * 48 * 40 * 3 / 2**20),
        blocked=1, constant_operands=2,
    )  # fmt: skip
    assert math.isnan(row(k)["product_m"])


def test_depthwise_and_grouped_convolutions_know_their_depth() -> None:
    depthwise = kernel(
        "Conv", [(1, 96, 14, 14), (96, 1, 3, 3)], (1, 96, 14, 14), constants=(1,), domain=BLOCKED, group=96,
        pads=(1, 1, 1, 1),
    )  # fmt: skip
    has(depthwise, window_depth_in=log(1), window_groups=log(96), window_inside=12, window_filled_groups=1)
    grouped = kernel("Conv", [(1, 96, 14, 14), (64, 24, 3, 3)], (1, 64, 12, 12), constants=(1,), group=4)
    has(grouped, window_depth_in=log(24), window_depth_out=log(16), window_pad_width=0)
    # 4 groups: 16 filters x (24*3*3) patch x 12*12 pixels each
    has(grouped, product_m=log(16), product_n=log(144), product_k=log(216), product_products=log(4), product_bias=0)


def test_one_dimensional_convolution_and_same_padding() -> None:
    k = kernel("Conv", [(1, 8, 100), (16, 8, 7)], (1, 16, 50), constants=(1,), strides=(2,), auto_pad="SAME_UPPER")
    # (50 - 1) * 2 + 7 - 100 = 5 columns of padding, 2 of them left
    has(k, window_height_in=1, window_width_in=100, window_kernel_width=7, window_pad_width=5, window_pad_left=2)


def test_quantized_convolution_reads_its_weight_where_it_stands() -> None:
    weights = (32, 3, 3, 3)
    k = kernel(
        "QLinearConv", [(1, 20, 20, 3), (), (), weights, (), (), (), (), (32,)], (1, 18, 18, 32), dtype="uint8",
        constants=(3, 8), channels_last=1, group=1,
    )  # fmt: skip
    has(k, window_channels_in=log(3), window_channels_out=log(32), window_height_in=20, product_k=log(27))


@pytest.mark.parametrize(
    ("op_type", "left", "right", "result", "attributes", "expected"),
    [
        ("Gemm", (50, 64), (64, 30), (50, 30), {}, (50, 30, 64, 1)),
        ("Gemm", (64, 50), (30, 64), (50, 30), {"transA": 1, "transB": 1}, (50, 30, 64, 1)),
        ("MatMul", (2, 7, 64), (64, 30), (2, 7, 30), {}, (14, 30, 64, 1)),  # one weight: all rows in one product
        ("MatMul", (2, 8, 7, 64), (2, 8, 64, 30), (2, 8, 7, 30), {}, (7, 30, 64, 16)),
        ("FusedMatMul", (2, 8, 7, 64), (2, 8, 30, 64), (2, 8, 7, 30), {"transB": 1}, (7, 30, 64, 16)),
        ("MatMul", (64,), (64, 30), (30,), {}, (1, 30, 64, 1)),
        ("Einsum", (2, 5, 6), (5, 6, 9), (2, 5, 9), {"equation": "bij,ijk->bik"}, (2, 9, 6, 5)),
    ],
)
def test_products(op_type: str, left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...],
                  attributes: dict[str, object], expected: tuple[int, ...]) -> None:  # fmt: skip
    m, n, k, count = expected
    has(
        kernel(op_type, [left, right], result, **attributes),
        product_m=log(m), product_n=log(n), product_k=log(k), product_products=log(count),
        product_filled_m=m / (12 * math.ceil(m / 12)), product_filled_n=n / (16 * math.ceil(n / 16)),
        product_right_in_near=math.log2(4 * k * n / 2**20),
    )  # fmt: skip


def test_recurrence() -> None:
    k = kernel("LSTM", [(50, 2, 128), (2, 1024, 128), (2, 1024, 256)], (50, 2, 2, 256), constants=(1, 2),
               hidden_size=256, direction="bidirectional")  # fmt: skip
    has(k, recurrence_launches=log(50 * 2), recurrence_step_macs=log(2 * 4 * 256 * 256), product_m=log(100))


@pytest.mark.parametrize(
    ("op_type", "shape", "result", "attributes", "rows", "length", "inner", "last"),
    [
        ("ReduceMean", (2, 3, 4, 5), (2, 3, 1, 1), {}, 6, 20, 1, 1),
        ("ReduceSum", (2, 3, 4, 5), (2, 4, 5), {"axes": (1,)}, 40, 3, 20, 0),
        ("ReduceMax", (8, 100, 7), (8, 7), {}, 56, 100, 7, 0),
        ("Softmax", (2, 12, 64, 64), (2, 12, 64, 64), {"axis": -1}, 2 * 12 * 64, 64, 1, 1),
        ("Softmax", (2, 10, 6), (2, 10, 6), {"axis": 1}, 12, 10, 6, 0),
        ("LayerNormalization", (4, 64, 384), (4, 64, 384), {"axis": -1}, 256, 384, 1, 1),
        ("BatchNormalization", (196, 256), (196, 256), {}, 196, 256, 1, 1),
        ("BatchNormalization", (2, 64, 7, 7), (2, 64, 7, 7), {}, 128, 49, 1, 1),
        ("GlobalAveragePool", (2, 64, 7, 7), (2, 64, 1, 1), {}, 128, 49, 1, 1),
    ],
)
def test_rows(op_type: str, shape: tuple[int, ...], result: tuple[int, ...], attributes: dict[str, object],
              rows: int, length: int, inner: int, last: int) -> None:  # fmt: skip
    has(
        kernel(op_type, [shape], result, **attributes),
        rows_rows=log(rows), rows_row_length=log(length), rows_inner_run=log(inner), rows_axis_is_last=last,
    )  # fmt: skip


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5).flatmap(
    lambda shape: st.tuples(st.just(shape), st.permutations(range(len(shape))))))  # fmt: skip
def test_a_merged_transpose_moves_the_same_elements(case: tuple[list[int], list[int]]) -> None:
    shape, perm = case
    values = np.arange(math.prod(shape)).reshape(shape)
    sizes, merged = merged_transpose(shape, perm)
    assert (values.transpose(perm).ravel() == values.reshape(sizes).transpose(merged).ravel()).all()
    assert 1 not in sizes
    assert all(b != a + 1 for a, b in pairwise(merged))  # nothing is left to merge


@pytest.mark.parametrize(
    ("shape", "perm", "way", "moved_axis", "crossed", "block"),
    [
        ((1, 64, 1, 32), (1, 0, 2, 3), 0, 1, 1, 32),  # only ones move: one copy
        ((2, 96, 784), (0, 2, 1), 1, 784, 96, 1),
        ((56, 64, 12, 64), (0, 2, 1, 3), 1, 12, 64, 64),
        ((4, 5, 6, 7), (1, 2, 0, 3), 2, 4, 5 * 6, 7),
        ((4, 5, 6, 7), (2, 1, 0, 3), 3, 1, 1, 7),
        ((4, 5, 6, 7), (2, 3, 0, 1), 4, 1, 1, 1),  # two axes at once, even where merged they are one
    ],
)
def test_ways_of_a_transpose(shape: tuple[int, ...], perm: tuple[int, ...], way: int, moved_axis: int, crossed: int,
                             block: int) -> None:  # fmt: skip
    has(
        kernel("Transpose", [shape], tuple(shape[i] for i in perm), perm=perm),
        move_way=way, move_moved_axis=log(moved_axis), move_crossed=log(crossed), move_shortest_run=log(block),
    )  # fmt: skip


def test_transposes_that_only_drop_ones_move_nothing() -> None:
    has(kernel("Transpose", [(1, 64, 1, 32)], (64, 1, 1, 32), perm=(1, 0, 2, 3)), move_moved_dims=0, move_merged_rank=1)
    # heads out: (64, 12, 64) -> runs of 64 stay
    has(
        kernel("Transpose", [(1, 64, 12, 64)], (1, 12, 64, 64), perm=(0, 2, 1, 3)),
        move_run=log(64), move_runs=log(64 * 12), move_last_kept=1, move_moved_dims=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("op_type", "shapes", "outputs", "attributes", "run", "runs"),
    [
        ("Concat", [(1, 8, 10), (1, 4, 10)], [(1, 12, 10)], {"axis": 1}, 80, 2),  # runs of 80 and of 40
        ("Split", [(1, 197, 384)], [(1, 1, 384), (1, 196, 384)], {"axis": 1}, 196 * 384, 2),
        ("Slice", [(1, 8, 64, 64)], [(1, 8, 64, 16)], {}, 16, 8 * 64),
        ("Expand", [(1, 1, 384)], [(1, 196, 384)], {}, 384, 196),
        ("Expand", [(1, 64, 1, 1)], [(1, 64, 14, 14)], {}, 14 * 14, 64),  # each element fills a plane
        ("Tile", [(4, 1, 7, 64)], [(4, 64, 7, 64)], {}, 7 * 64, 4 * 64),
        ("Gather", [(30522, 384), (4, 64)], [(4, 64, 384)], {"axis": 0}, 384, 256),
        ("ScatterND", [(10, 20, 30), (7, 1), (7, 20, 30)], [(10, 20, 30)], {}, 600, 7),
    ],
)
def test_moves(op_type: str, shapes: list[tuple[int, ...]], outputs: list[tuple[int, ...]],
               attributes: dict[str, object], run: int, runs: float) -> None:  # fmt: skip
    has(kernel(op_type, shapes, *outputs, **attributes), move_run=log(run), move_runs=log(runs))


@pytest.mark.parametrize(
    ("left", "right", "span", "held", "scalars"),
    [
        ((2, 8, 6), (2, 8, 6), 96, 0, 0),
        ((2, 8, 6), (), 96, 1, 1),
        ((2, 8, 6), (6,), 6, 0, 0),  # both are walked for six elements
        ((2, 8, 6), (8, 1), 6, 1, 0),
        ((1, 32, 7, 7), (1, 32, 1, 1), 49, 1, 0),
        ((4, 1, 1, 9), (1, 1, 1, 9), 9, 0, 0),
    ],
)
def test_broadcasts(left: tuple[int, ...], right: tuple[int, ...], span: int, held: int, scalars: int) -> None:
    has(
        kernel("Add", [left, right], left),
        broadcast_span=log(span), broadcast_spans=log(math.prod(left) / span), broadcast_inner_is_scalar=held,
        broadcast_scalar_operands=scalars,
    )  # fmt: skip


def test_resize() -> None:
    k = kernel("Resize", [(1, 8, 10, 10)], (1, 8, 20, 30), mode="linear")
    has(k, resize_planes=log(8), resize_pixels_out=log(600), resize_scale=6, resize_mode=1, resize_samples_last=0)


# -- roofline --------------------------------------------------------------------------------------------------------


def test_roofline_by_hand() -> None:
    work = Work(macs=10**6, flops=2 * 10**6, read_bytes=3 * 2**20, write_bytes=2**20, weight_bytes=2**18)
    k = kernel("Relu", [(4,)], (4,), work=work, context=Context(2**25, rewrite_bytes=2**23, cycle_bytes=2**26))
    terms = roofline_terms([k], DEVICE)
    own = 3 * 2**20 + 2**20 + 2**18
    assert terms.compute_s[0] == pytest.approx(2e6 / 100e9)
    assert terms.near_s[0] == pytest.approx(own / 100e9)
    # L2 of 1 MiB: of the input, touched 32 MiB ago, 31/32 is gone; of the output, 8 MiB ago, 7/8; of the weight 63/64.
    missed = 3 * 2**20 * 31 / 32 + 2**20 * 7 / 8 + 2**18 * 63 / 64
    assert terms.shared_s[0] == pytest.approx(missed / 50e9)
    # L3 of 32 MiB: input and output fit, half of the weight is gone after 64 MiB.
    assert terms.off_chip_s[0] == pytest.approx(2**18 / 2 / 10e9)
    assert roofline_s(k, DEVICE) == pytest.approx(missed / 50e9 + 1e-6)
    assert bound(k, DEVICE) == "memory"


def test_bounds() -> None:
    assert bound(kernel("Relu", [(4,)], (4,)), DEVICE) == "dispatch"
    assert bound(kernel("Gemm", [(4,)], (4,), work=Work(flops=10**9, read_bytes=100)), DEVICE) == "compute"
    assert roofline_s(kernel("Gemm", [(4,)], (4,), dtype="int8", work=Work(flops=10**9)), DEVICE) == pytest.approx(
        1e9 / 200e9 + 1e-6
    )


@given(st.integers(0, 2**40), st.integers(0, 2**36), st.integers(0, 2**36), st.integers(0, 2**36))
def test_more_work_or_a_colder_cache_is_never_faster(flops: int, moved: int, reuse: int, cycle: int) -> None:
    def time_s(f: int, m: int, r: int, c: int) -> float:
        work = Work(flops=f, read_bytes=m, write_bytes=m // 2, weight_bytes=m // 3)
        return roofline_s(kernel("Relu", [(4,)], (4,), work=work, context=Context(r, r, c)), DEVICE)

    base = time_s(flops, moved, reuse, cycle)
    assert base >= DEVICE.dispatch_s
    for more in ((2 * flops, moved, reuse, cycle), (flops, 2 * moved, reuse, cycle),
                 (flops, moved, 2 * reuse, cycle), (flops, moved, reuse, 2 * cycle)):  # fmt: skip
        assert time_s(*more) >= base * (1 - 1e-12)


# -- the table as a whole --------------------------------------------------------------------------------------------


def test_every_kind_that_the_views_name_exists() -> None:
    convolutions = ("", "-pointwise", "-depthwise", "-grouped", "-stem", "-unblocked", "-unblocked-grouped",
                    "-quantized-grouped", "-quantized-by-group")  # fmt: skip
    known = {*KINDS, "power", *(f"conv{suffix}" for suffix in convolutions)}
    assert known == {*VIEWS_OF_KIND} | {
        "unary", "transcendental", "gelu", "cast", "quantize", "fill", "fourier", "view", "control", "sequence"
    }  # fmt: skip
    assert set(VIEWS_OF_KIND) <= known
    ops = {op for members in KINDS.values() for op in members}
    assert set(VIEWS_OF_OP) <= ops
    assert len(FEATURES) == len(set(FEATURES))
    assert len(OP_ORDER) == len(set(OP_ORDER))


@pytest.mark.parametrize("op_type", sorted({op for members in KINDS.values() for op in members} | {"Conv", "Nowhere"}))
def test_no_shape_breaks_a_row(op_type: str) -> None:
    shapes = permutations([(2, 3, 4, 4), (3, 3, 2, 2), (), (0, 4), (5,)], 3)
    kernels = [kernel(op_type, list(some), (2, 3, 4, 4)) for some in shapes] + [kernel(op_type, [], ())]
    values = features(kernels, DEVICE)
    assert values.dtype == np.float32
    assert values.shape == (len(kernels), len(FEATURES))
    assert not np.isinf(values).any()


def test_rows_do_not_depend_on_their_neighbours() -> None:
    kernels = [
        kernel("Relu", [(1, 8)], (1, 8)),
        kernel("Gemm", [(50, 64), (64, 30)], (50, 30), constants=(1,)),
        kernel("Conv", [(1, 16, 8, 8), (16, 16, 1, 1)], (1, 16, 8, 8), domain=BLOCKED),
        kernel("Gemm", [(5, 64), (64, 30)], (5, 30), constants=(1,)),
    ]
    together = features(kernels, DEVICE)
    for i, k in enumerate(kernels):
        assert np.array_equal(together[i], features([k], DEVICE)[0], equal_nan=True)
    assert features([], DEVICE).shape == (0, len(FEATURES))
