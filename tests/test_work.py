"""MACs, FLOPs and bytes by hand."""

from __future__ import annotations

import pytest

from latpred.errors import UnsupportedError
from latpred.graph import Spec
from latpred.kernels.kernel import Work
from latpred.kernels.work import ABSENT, COUNTED, work_of


def constant(*shape: int) -> Spec:
    return Spec(shape, constant=True)


def test_convolution_with_groups_and_bias() -> None:
    inputs = [Spec((2, 8, 10, 10)), constant(16, 2, 3, 3), constant(16)]
    work = work_of("Conv", "", inputs, [Spec((2, 16, 10, 10))], {"group": 4})
    macs = 2 * 16 * 10 * 10 * (2 * 3 * 3)
    assert work == Work(
        macs=macs,
        flops=2 * macs,
        read_bytes=4 * 2 * 8 * 10 * 10,
        write_bytes=4 * 2 * 16 * 10 * 10,
        weight_bytes=4 * (16 * 2 * 3 * 3 + 16),
    )


def test_epilogue_adds_flops_and_the_residual_its_bytes() -> None:
    inputs = [Spec((1, 16, 4, 4)), constant(16, 16, 1, 1), ABSENT, Spec((1, 16, 4, 4))]
    work = work_of("Conv", "com.microsoft.nchwc", inputs, [Spec((1, 16, 4, 4))], {}, ("add", "relu"))
    assert work.flops == 2 * (16 * 4 * 4 * 16) + 2 * 16 * 4 * 4
    assert work.read_bytes == 2 * 4 * 16 * 4 * 4


@pytest.mark.parametrize(("transposed", "left"), [(0, (6, 5)), (1, (5, 6))])
def test_gemm_counts_the_inner_dim(transposed: int, left: tuple[int, int]) -> None:
    work = work_of("Gemm", "", [Spec(left), constant(5, 7), constant(7)], [Spec((6, 7))], {"transA": transposed})
    assert work.macs == 6 * 5 * 7
    assert work.flops == 2 * 6 * 5 * 7 + 6 * 7  # and the bias


def test_matmul_of_two_activations_has_no_weights() -> None:
    work = work_of("MatMul", "", [Spec((2, 3, 4, 5)), Spec((2, 3, 5, 6))], [Spec((2, 3, 4, 6))], {})
    assert work.macs == 2 * 3 * 4 * 6 * 5
    assert work.weight_bytes == 0
    assert work.read_bytes == 4 * (2 * 3 * 4 * 5 + 2 * 3 * 5 * 6)


def test_transposed_convolution_counts_from_its_input() -> None:
    work = work_of("ConvTranspose", "", [Spec((1, 4, 5, 5)), constant(4, 3, 2, 2)], [Spec((1, 3, 10, 10))], {})
    assert work.macs == 4 * 5 * 5 * 3 * 2 * 2


def test_recurrent_runs_every_step_in_both_directions() -> None:
    inputs = [Spec((7, 2, 3)), constant(2, 4 * 5, 3), constant(2, 4 * 5, 5)]
    work = work_of("LSTM", "", inputs, [Spec((7, 2, 2, 5))], {"direction": "bidirectional"})
    assert work.macs == 7 * 2 * 2 * (4 * 5 * 3 + 4 * 5 * 5)


def test_gather_reads_the_rows_that_it_takes() -> None:
    work = work_of("Gather", "", [constant(1000, 8), Spec((1, 3), "int64")], [Spec((1, 3, 8))], {})
    assert work.weight_bytes == 4 * 3 * 8
    assert work.read_bytes == 8 * 3
    assert work.write_bytes == 4 * 3 * 8


def test_einsum_spans_all_labels() -> None:
    work = work_of("Einsum", "", [Spec((2, 3, 4)), Spec((2, 4, 5))], [Spec((2, 3, 5))], {"equation": "bik,bkj->bij"})
    assert work.macs == 2 * 3 * 4 * 5
    dotted = work_of(
        "Einsum", "", [Spec((2, 6, 3, 4)), Spec((2, 6, 4, 5))], [Spec((2, 6, 3, 5))], {"equation": "...ik,...kj->...ij"}
    )
    assert dotted.macs == 2 * 6 * 3 * 4 * 5


def test_a_view_moves_nothing() -> None:
    assert work_of("Reshape", "", [Spec((2, 3)), Spec((1,), "int64", True)], [Spec((6,))], {}) == Work()


def test_attention_counts_scores_and_values() -> None:
    sequence = Spec((1, 10, 64))
    work = work_of("MultiHeadAttention", "com.microsoft", [sequence] * 3, [sequence], {"num_heads": 4})
    assert work.macs == 2 * 10 * 10 * 64


def test_unknown_op_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="example:FlyToTheMoon"):
        work_of("FlyToTheMoon", "example", [Spec((1,))], [Spec((1,))], {})


def test_operands_that_are_no_such_ops_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="operands of MaxPool are needed"):
        work_of("MaxPool", "", [], [], {})


def test_every_counted_op_takes_half_precision_and_never_costs_less_than_nothing() -> None:
    image = Spec((1, 4, 8, 8), "float16")
    weights = Spec((4, 4, 3, 3), "float16", True)
    for op_type, count in COUNTED.items():
        if op_type in ("LSTM", "GRU", "RNN"):
            continue
        work = count([image, weights, Spec((4,), "float16", True), weights], [image], {})
        assert min(work.macs, work.flops, work.read_bytes, work.write_bytes, work.weight_bytes) >= 0, op_type
