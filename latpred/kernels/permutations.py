"""Arithmetic of permutations of axes: `perm[i]` is the axis that axis `i` of the result comes from."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Permutation", "compose", "identity", "inverse", "permuted", "squeezed", "unsqueezed"]

Permutation = tuple[int, ...]


def identity(rank: int) -> Permutation:
    """The permutation that changes nothing."""
    return tuple(range(rank))


def inverse(perm: Permutation) -> Permutation:
    """What undoes `perm`.

    Examples
    --------
    >>> inverse((0, 2, 3, 1))
    (0, 3, 1, 2)
    """
    result = [0] * len(perm)
    for place, axis in enumerate(perm):
        result[axis] = place
    return tuple(result)


def compose(first: Permutation, second: Permutation) -> Permutation:
    """One permutation that does `first`, then `second`.

    Examples
    --------
    >>> compose((0, 2, 3, 1), (0, 3, 1, 2))
    (0, 1, 2, 3)
    """
    return tuple(first[axis] for axis in second)


def permuted(shape: Sequence[int], perm: Permutation) -> tuple[int, ...]:
    """The shape of a transposed tensor."""
    return tuple(shape[axis] for axis in perm)


def squeezed(axes: Sequence[int], perm: Permutation) -> Permutation:
    """`perm` without some axes of the tensor that it is applied to.

    Examples
    --------
    >>> squeezed([0], (0, 3, 1, 2))
    (2, 0, 1)
    """
    left = [axis for axis in range(len(perm)) if axis not in axes]
    place = {axis: index for index, axis in enumerate(left)}
    return tuple(place[axis] for axis in perm if axis in place)


def unsqueezed(axes: Sequence[int], perm: Permutation) -> Permutation:
    """`perm` with new axes that stay where they are; `axes` are places in the larger result.

    Examples
    --------
    >>> unsqueezed([0, 3], (2, 0, 1))
    (0, 4, 1, 3, 2)
    """
    rank = len(perm) + len(axes)
    old = [axis for axis in range(rank) if axis not in axes]
    moved = iter(old[axis] for axis in perm)
    return tuple(axis if axis in axes else next(moved) for axis in range(rank))
