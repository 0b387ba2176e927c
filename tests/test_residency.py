"""Buffers are planned as the runtime does; distances are LRU stack distances, checked against a list of lines."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latpred.kernels import residency
from latpred.kernels.residency import Distances, Touch, distances

LINE = 64


def touch(inputs: str, output: str, lines: int = 1, **options: object) -> Touch:
    """One launch on tensors of as many cache lines each."""
    size = LINE * lines
    return Touch(tuple((name, size) for name in inputs), ((output, size, (size // 4,)),), **options)  # type: ignore[arg-type]


def test_a_view_moves_nothing_and_shares_its_buffer() -> None:
    found, footprint_bytes = distances([touch("a", "b"), touch("b", "c", view=True), touch("c", "d")])
    assert footprint_bytes == 3 * LINE  # a, b (which is c), d
    assert found[1] == Distances(0, 0)
    assert found[2].read_bytes == LINE  # c is what was just written as b


def test_an_op_in_place_writes_where_it_read() -> None:
    chain = [touch("a", "b"), touch("b", "c", takes_over=("b",)), touch("c", "d")]
    found, footprint_bytes = distances(chain)
    assert footprint_bytes == 3 * LINE
    assert found[1] == Distances(LINE, LINE)
    shared = [touch("a", "b"), touch("b", "c", takes_over=("b",)), touch("bc", "d")]  # b is still wanted
    assert distances(shared)[1] == 4 * LINE


def test_the_youngest_free_buffer_of_the_same_shape_is_taken_again() -> None:
    chain = [touch("a", "b"), touch("b", "c"), touch("c", "d"), touch("d", "e")]
    found, footprint_bytes = distances(chain)
    assert footprint_bytes == 4 * LINE  # a, b, c, e; d lies where b was
    # since b was read: c written, c read; so d's memory lies beneath one other line
    assert found[2].write_bytes == 2 * LINE


def test_new_buffers_fill_the_smallest_gap_that_is_free_while_they_live() -> None:
    touches = [
        Touch((("x", LINE),), (("a", 4 * LINE, (1,)), ("b", LINE, (2,)), ("c", 2 * LINE, (3,)), ("d", LINE, (4,)))),
        Touch((("a", 4 * LINE), ("c", 2 * LINE)), (("e", LINE, (5,)),)),  # a and c die here: gaps of 4 and 2 lines
        Touch((("b", LINE), ("d", LINE), ("e", LINE)), (("f", 2 * LINE, (6,)), ("g", 4 * LINE, (7,)))),
        Touch((("f", 2 * LINE), ("g", 4 * LINE)), (("y", LINE, (8,)),)),
    ]
    # arena: a at 0, b at 4, c at 5, d at 7, e at 8, f where c was, g where a was; then x and y apart
    assert distances(touches)[1] == (9 + 2) * LINE


def test_weights_pass_between() -> None:
    chain = [touch("a", "b", weight_bytes=10 * LINE), touch("b", "c", weight_bytes=11 * LINE)]
    found, footprint_bytes = distances(chain)
    assert footprint_bytes == (3 + 21) * LINE
    assert found[0].read_bytes == 24 * LINE  # a whole inference ago
    assert found[1].read_bytes == LINE


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_distances_are_those_of_a_list(touched: Sequence[int]) -> None:
    """Blocks of 1 to 6 lines that do not overlap: what was touched since, and the block itself."""
    stack: list[tuple[int, int, int]] = []
    recent: list[int] = []  # latest last
    for block in touched:
        start = block * 100
        got = residency._touch(stack, start, start + block + 1, 0)
        since = recent[recent.index(block) :] if block in recent else []
        assert got == sum(other + 1 for other in since)
        recent = [other for other in recent if other != block] + [block]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), min_size=1, max_size=20))
def test_ranges_that_overlap_stay_in_the_stack_once(ranges: Sequence[tuple[int, int]]) -> None:
    stack: list[tuple[int, int, int]] = []
    seen: set[int] = set()
    for start, length in ranges:
        residency._touch(stack, start, start + length, 0)
        seen |= set(range(start, start + length))
        assert sorted(n for low, high, _ in stack for n in range(low, high)) == sorted(seen)
        assert stack[-1][:2] == (start, start + length)


@pytest.mark.parametrize(("given_bytes", "rounded"), [(0, 0), (7, 7), (16, 16), (17, 18), (1000, 1024), (1039, 1024)])
def test_distances_keep_four_bits(given_bytes: int, rounded: int) -> None:
    assert residency._rounded(given_bytes) == rounded


def test_other_graphs_in_between_empty_the_cache_of_all_but_the_inputs() -> None:
    """a -> b -> c of 64 bytes each, 192 together; of 1000 bytes from run to run, others touch 808."""
    chain = [Touch((("a", 64),), (("b", 64, (16,)),)), Touch((("b", 64),), (("c", 64, (16,)),))]
    found, cycle_bytes = distances(chain, cycle_bytes=1000)
    assert cycle_bytes == 1000
    assert found[0].read_bytes == 64  # the piece before has just written it
    assert found[1].read_bytes == 64  # made a moment ago
    # b and c lie a whole cycle back: 1000 bytes, to four significant bits
    assert found[0].write_bytes == found[1].write_bytes == 1024
    assert distances(chain, cycle_bytes=100) == distances(chain)
