"""Views of kernels that walk memory: rows, moved runs, broadcasts, resized images.

A view is one function: kernel -> as many numbers as it has columns; NaN where a number does not apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import nan, prod

from latpred.graph import Spec
from latpred.kernels.kernel import Kernel

__all__ = [
    "BROADCAST",
    "MOVE",
    "RESIZE",
    "ROWS",
    "along_axis",
    "broadcast",
    "copy",
    "expansion",
    "lookup",
    "merged_transpose",
    "reduction",
    "reorder",
    "resize",
    "spatial_axes",
    "trailing_axes",
    "transpose",
]

Shape = Sequence[int]


def _int(kernel: Kernel, name: str, default: int = 0) -> int:
    value = kernel.attributes.get(name, default)
    return int(value) if isinstance(value, int | float) else default


def _operand(kernel: Kernel, index: int) -> Spec:
    return kernel.inputs[index] if index < len(kernel.inputs) else Spec(())


def _axis(kernel: Kernel, rank: int, default: int) -> int:
    axis = _int(kernel, "axis", default)
    return axis + rank if axis < 0 else axis


# -- rows --------------------------------------------------------------------------------------------------------

ROWS = ("rows", "row_length", "inner_run", "outer_rows", "blocks", "axis_is_last")


def _blocks(shape: Shape, reduced: Sequence[bool]) -> list[tuple[bool, int]]:
    """Neighbouring dims of one fate merged: [(reduced, size), ...]; dims of size 1 dropped."""
    merged: list[tuple[bool, int]] = []
    for size, gone in zip(shape, reduced, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][0] == gone:
            merged[-1] = (gone, merged[-1][1] * size)
        else:
            merged.append((gone, size))
    return merged


def _reduced(kernel: Kernel) -> list[bool]:
    shape, result = _operand(kernel, 0).shape, kernel.outputs[0].shape
    axes = kernel.attributes.get("axes")
    if isinstance(axes, tuple):
        wanted = {int(a) % len(shape) for a in axes}
        return [i in wanted for i in range(len(shape))]
    if len(result) == len(shape):
        return [a != b for a, b in zip(shape, result, strict=True)]
    left = list(result)
    flags = []
    for size in shape:  # keepdims=0: what the result no longer has was reduced
        kept = bool(left) and left[0] == size
        flags.append(not kept)
        if kept:
            left.pop(0)
    return flags


def _rows(shape: Shape, reduced: Sequence[bool]) -> tuple[float, ...]:
    blocks = _blocks(shape, reduced)
    length = prod(size for gone, size in blocks if gone)
    rows = prod(size for gone, size in blocks if not gone)
    last = not blocks or blocks[-1][0]
    inner = 1 if last else blocks[-1][1]
    outer = blocks[0][1] if blocks and not blocks[0][0] else 1
    return (rows, length, inner, outer, len(blocks), last)


def reduction(kernel: Kernel) -> tuple[float, ...]:
    """Reduce*, ArgMax and the like."""
    return _rows(_operand(kernel, 0).shape, _reduced(kernel))


def along_axis(kernel: Kernel) -> tuple[float, ...]:
    """Softmax, CumSum, TopK: one axis."""
    shape = _operand(kernel, 0).shape
    axis = _axis(kernel, len(shape), -1)
    return _rows(shape, [i == axis for i in range(len(shape))])


def trailing_axes(kernel: Kernel) -> tuple[float, ...]:
    """Layer normalisation: the axis and all behind it."""
    shape = _operand(kernel, 0).shape
    axis = _axis(kernel, len(shape), -1)
    return _rows(shape, [i >= axis for i in range(len(shape))])


def spatial_axes(kernel: Kernel) -> tuple[float, ...]:
    """Instance, group and batch normalisation, global pools: rows are the channels, or all there is without space."""
    shape = _operand(kernel, 0).shape
    first = 2 if len(shape) > 2 else len(shape) - 1
    return _rows(shape, [i >= first for i in range(len(shape))])


# -- move --------------------------------------------------------------------------------------------------------

MOVE = (
    "run", "runs", "pieces", "merged_rank", "moved_dims", "last_kept", "inner_in", "inner_out", "stride_of_inner",
    "shortest_run", "index_count", "way", "moved_axis", "crossed",
)  # fmt: skip
_NO_WAY = (nan, nan, nan)  # only transposes have several ways


def merged_transpose(shape: Shape, perm: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and permutation without dims of size 1 and with neighbours that stay neighbours merged.

    Examples
    --------
    >>> merged_transpose((1, 64, 12, 64), (0, 2, 1, 3))
    ((64, 12, 64), (1, 0, 2))
    >>> merged_transpose((2, 3, 4, 5), (2, 3, 0, 1))
    ((6, 20), (1, 0))
    """
    order = [axis for axis in perm if shape[axis] != 1]
    groups: list[list[int]] = []
    real = [axis for axis in range(len(shape)) if shape[axis] != 1]
    following = dict(pairwise(real))
    for axis in order:
        if groups and following.get(groups[-1][-1]) == axis:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    by_input = sorted(range(len(groups)), key=lambda g: groups[g][0])
    sizes = tuple(prod(shape[a] for a in groups[g]) for g in by_input)
    return sizes, tuple(by_input.index(g) for g in range(len(groups)))


def transpose(kernel: Kernel) -> tuple[float, ...]:
    """The permutation after merging: what runs stay contiguous, how far apart the new neighbours lie."""
    shape = _operand(kernel, 0).shape
    perm = kernel.attributes.get("perm")
    order = tuple(int(p) for p in perm) if isinstance(perm, tuple) else tuple(reversed(range(len(shape))))
    sizes, merged = merged_transpose(shape, order)
    rank = len(sizes)
    if rank == 0:
        return (1, 1, 1, 0, 0, True, 1, 1, 1, 1, nan, 0, 1, 1)
    kept = merged[-1] == rank - 1
    run = sizes[-1] if kept else 1
    way, moved_axis, crossed, block = _way(shape, order, rank)
    moved = sum(i != axis for i, axis in enumerate(merged))
    stride = prod(sizes[merged[-1] + 1 :])
    return (
        run, prod(sizes) // run, 1, rank, moved, kept, sizes[-1], sizes[merged[-1]], stride, block, merged[0],
        way, moved_axis, crossed,
    )  # fmt: skip


def _way(shape: Shape, perm: Shape, merged_rank: int) -> tuple[int, int, int, int]:
    """How the runtime carries a transpose out, seen on the permutation as it is written, unit dims included.

    Returns the way (0 one copy; one axis moved 1 outwards, 2 inwards; 3 block by block; 4 element by element), the
    size of the moved axis, how many elements it crosses, and the block that stays together.
    """
    last = len(perm)
    while last and perm[last - 1] == last - 1:
        last -= 1
    block = prod(shape[last:])
    if merged_rank <= 1:
        return 0, 1, 1, block
    first = next(i for i, axis in enumerate(perm) if i != axis)
    between = list(range(first, last))
    if list(perm[first:last]) == [between[-1], *between[:-1]]:
        return 1, shape[between[-1]], prod(shape[first : last - 1]), block
    if list(perm[first:last]) == [*between[1:], between[0]]:
        return 2, shape[first], prod(shape[first + 1 : last]), block
    return (3 if block > 1 else 4), 1, 1, block


def _copied(whole: Shape, part: Shape) -> tuple[int, int]:
    """(contiguous run of `part` inside `whole` in elements, how many dims differ); shapes are aligned at the right."""
    rank = max(len(whole), len(part))
    big = (1,) * (rank - len(whole)) + tuple(whole)
    small = (1,) * (rank - len(part)) + tuple(part)
    differing = [i for i in range(rank) if big[i] != small[i]]
    if not differing:
        return prod(small), 0
    return prod(small[differing[-1] :]), len(differing)


def copy(kernel: Kernel) -> tuple[float, ...]:
    """Slice, Split, Concat, Pad: runs that are copied as they are."""
    inputs = [s for s in kernel.inputs if len(s.shape) == len(kernel.outputs[0].shape)] or list(kernel.inputs[:1])
    parts = inputs if kernel.op_type.endswith("Concat") else list(kernel.outputs)
    whole = kernel.outputs[0] if kernel.op_type.endswith("Concat") else _operand(kernel, 0)
    copied = [_copied(whole.shape, part.shape) for part in parts] or [(1, 0)]
    elements = sum(part.elements for part in parts)
    longest, shortest = max(c[0] for c in copied), min(c[0] for c in copied)
    runs = sum(part.elements / max(1, run) for part, (run, _) in zip(parts, copied, strict=False))
    last = whole.shape[-1] if whole.shape else 1
    part_last = parts[0].shape[-1] if parts and parts[0].shape else 1
    return (
        longest, runs, len(parts), len(whole.shape), copied[0][1], last == part_last, last, part_last,
        elements / max(1, whole.elements), shortest, nan, *_NO_WAY,
    )  # fmt: skip


def expansion(kernel: Kernel) -> tuple[float, ...]:
    """Expand, Tile: neighbouring dims that grow are one; a run is what is filled, or copied, at the innermost place."""
    source, result = _operand(kernel, 0), kernel.outputs[0]
    rank = max(len(source.shape), len(result.shape))
    small = (1,) * (rank - len(source.shape)) + tuple(source.shape)
    big = (1,) * (rank - len(result.shape)) + tuple(result.shape)
    blocks = _blocks(big, [a != b for a, b in zip(small, big, strict=True)])
    grown, run = blocks[-1] if blocks else (False, 1)
    return (
        run, result.elements / max(1, run), 1, len(blocks), sum(g for g, _ in blocks), not grown,
        small[-1] if small else 1, big[-1] if big else 1, result.elements / max(1, source.elements), run,
        source.elements, *_NO_WAY,
    )  # fmt: skip


def lookup(kernel: Kernel) -> tuple[float, ...]:
    """Gather and Scatter: rows picked or written by index."""
    data, indices, result = _operand(kernel, 0), _operand(kernel, 1), kernel.outputs[0]
    rank = len(data.shape)
    count = indices.elements
    if kernel.op_type.endswith("ND"):
        count //= max(1, indices.shape[-1] if indices.shape else 1)
        run = prod(data.shape[indices.shape[-1] if indices.shape else 0 :])
    elif kernel.op_type.endswith("Elements"):
        run = 1
    else:
        run = prod(data.shape[_axis(kernel, rank, 0) + 1 :])
    runs = (count * run if kernel.op_type.startswith("Scatter") else result.elements) / max(1, run)
    return (run, runs, 1, rank, nan, nan, data.elements, result.elements, nan, run, count, *_NO_WAY)


def reorder(kernel: Kernel) -> tuple[float, ...]:
    """Between the plain and the blocked channel layout: planes of pixels become blocks of channels, or back."""
    plain = kernel.outputs[0] if kernel.op_type == "ReorderOutput" else _operand(kernel, 0)
    last = bool(_int(kernel, "channels_last"))
    shape = (plain.shape[0], plain.shape[-1], *plain.shape[1:-1]) if last and plain.shape else plain.shape
    channels, pixels = (shape[1], prod(shape[2:])) if len(shape) > 2 else (1, plain.elements)
    run = channels if last else pixels
    return (run, plain.elements / max(1, run), 1, len(shape), nan, last, pixels, channels, nan, run, nan, *_NO_WAY)


# -- broadcast ---------------------------------------------------------------------------------------------------

BROADCAST = ("operands", "span", "spans", "inner_is_scalar", "scalar_operands", "full_operands", "small_elements")


def broadcast(kernel: Kernel) -> tuple[float, ...]:
    """Elementwise ops: `span` is the innermost run over which each operand is either walked or held."""
    result = kernel.outputs[0]
    operands = [s for s in kernel.inputs if s.dtype == kernel.inputs[0].dtype or s.elements > 1] or list(kernel.inputs)
    rank = len(result.shape)
    elements = max(1, result.elements)
    sizes = [s.elements for s in operands]
    if all(size in (elements, 1) for size in sizes):
        held = 1 in sizes and elements > 1
        return (
            len(sizes),
            elements,
            1,
            held,
            sizes.count(1) if held else 0,
            sizes.count(elements),
            min(sizes, default=1),
        )
    padded = [(1,) * (rank - len(s.shape)) + tuple(s.shape) for s in operands if s.elements > 1]
    span, fate = 1, None
    for i in range(rank - 1, -1, -1):
        if result.shape[i] == 1:
            continue
        held_here = tuple(shape[i] == 1 for shape in padded)
        if fate is not None and held_here != fate:
            break
        fate = held_here
        span *= result.shape[i]
    return (len(sizes), span, elements / span, any(fate or ()), sizes.count(1), sizes.count(elements), min(sizes))


# -- resize ------------------------------------------------------------------------------------------------------

RESIZE = ("planes", "pixels_in", "pixels_out", "resize_width_out", "scale", "mode", "samples_last")


def resize(kernel: Kernel) -> tuple[float, ...]:
    """Resize, Upsample, GridSample, DepthToSpace: pixels sampled from an image."""
    image, result = _operand(kernel, 0).shape, kernel.outputs[0].shape
    if len(image) < 3 or len(result) != len(image):
        return (nan,) * len(RESIZE)
    last = image[-1] == result[-1] and image[1] != result[1]
    space_in, space_out = (image[1:-1], result[1:-1]) if last else (image[2:], result[2:])
    mode = {"nearest": 0, "linear": 1, "bilinear": 1, "cubic": 2, "bicubic": 2}.get(
        str(kernel.attributes.get("mode", "nearest")), 3
    )
    pixels_in, pixels_out = prod(space_in), prod(space_out)
    return (
        image[0] * (image[-1] if last else image[1]), pixels_in, pixels_out, space_out[-1],
        pixels_out / max(1, pixels_in), mode, last,
    )  # fmt: skip
