"""Profile events -> detected kernels: who is who, by op type, shapes, names and launch order.

The profiler names fused nodes after one of their outputs, leaves out weights that were packed when the session was
loaded, and launches branches in another order than the file has them. So a pair must agree in op type and outputs,
and in every input that both sides know; among several candidates equal names win, then equal order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latpred.collect.runner import Operand, ProfiledKernel
from latpred.kernels.kernel import Kernel

__all__ = ["Matching", "match"]

SUFFIXES = ("_nchwc", "_quant", "_token")


@dataclass(frozen=True, slots=True)
class Matching:
    """Pairs, and what is left on either side."""

    matched: tuple[tuple[Kernel, ProfiledKernel], ...]
    unmatched: tuple[ProfiledKernel, ...] = ()  # executed, but no kernel was detected for it
    unmeasured: tuple[Kernel, ...] = ()  # detected, but never executed

    @property
    def matched_share(self) -> float:
        """Share of the profiled time that has a kernel (1 for nothing profiled)."""
        matched_s = sum(event.latency_s * event.launches for _, event in self.matched)
        missed_s = sum(event.latency_s * event.launches for event in self.unmatched)
        return matched_s / (matched_s + missed_s) if matched_s + missed_s else 1.0


def match(kernels: Sequence[Kernel], events: Sequence[ProfiledKernel]) -> Matching:
    """Pair detected kernels with profiled ones.

    Parameters
    ----------
    kernels
        In launch order, as `detect` gives them.
    events
        In launch order, as a runner gives them.

    Examples
    --------
    >>> from latpred.graph import Spec
    >>> relu = Kernel("relu", "Relu", "", "a", ("a",), (Spec((1, 8)),), (Spec((1, 8)),))
    >>> operand = (((1, 8), "float32"),)
    >>> event = ProfiledKernel("a", "Relu", operand, operand, 2e-6, 2e-6, 0.0, 10)
    >>> match([relu], [event]).matched_share
    1.0
    """
    waiting: dict[tuple[object, ...], list[Kernel]] = {}
    for kernel in kernels:
        waiting.setdefault(_kernel_key(kernel), []).append(kernel)
    pairs: list[tuple[Kernel, ProfiledKernel]] = []
    rest = list(events)
    for agrees in (_same_name, _fits):
        later: list[ProfiledKernel] = []
        for event in rest:
            candidates = waiting.get(_event_key(event), [])
            found = next((index for index, kernel in enumerate(candidates) if agrees(kernel, event)), None)
            if found is None:
                later.append(event)
            else:
                pairs.append((candidates.pop(found), event))
        rest = later
    order = {id(event): index for index, event in enumerate(events)}
    pairs.sort(key=lambda pair: order[id(pair[1])])
    left = {id(kernel) for group in waiting.values() for kernel in group}
    return Matching(tuple(pairs), tuple(rest), tuple(kernel for kernel in kernels if id(kernel) in left))


def _kernel_key(kernel: Kernel) -> tuple[object, ...]:
    first = kernel.outputs[0] if kernel.outputs else None
    return (kernel.op_type, (first.shape, first.dtype) if first else None)


def _event_key(event: ProfiledKernel) -> tuple[object, ...]:
    return (event.op_type, event.outputs[0] if event.outputs else None)


def _fits(kernel: Kernel, event: ProfiledKernel) -> bool:
    """Whether every activation of the kernel was seen, and everything seen can belong to it."""
    known = [(spec.shape, spec.dtype) for spec in kernel.inputs]
    needed: list[Operand] = [(spec.shape, spec.dtype) for spec in kernel.inputs if not spec.constant and spec.dtype]
    seen = list(event.inputs)
    for operand in needed:
        if operand not in seen:
            return False
        seen.remove(operand)
    return all(operand in known or len(operand[0]) <= 1 or _packed(operand, known) for operand in seen)


def _packed(operand: Operand, known: Sequence[Operand]) -> bool:
    """Whether an operand can be a known convolution weight whose channels were padded to whole blocks."""
    shape, dtype = operand
    return len(shape) > 2 and any(
        len(other) == len(shape) and other[2:] == shape[2:] and other[0] <= shape[0] and other[1] <= shape[1]
        for other, other_dtype in known
        if other_dtype == dtype
    )


def _same_name(kernel: Kernel, event: ProfiledKernel) -> bool:
    names = {kernel.name, *kernel.ops}
    return (event.name in names or _stem(event.name) in names) and _fits(kernel, event)


def _stem(name: str) -> str:
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name
