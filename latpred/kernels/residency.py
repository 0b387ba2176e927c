"""Where the operands of each launch lie when it starts: how many bytes passed since their memory was last touched.

A runtime gives results memory that earlier results have left. A result that is written where something was read a
moment ago finds its lines in a cache; one that is written to memory last touched a layer ago waits for them. So the
plan of buffers is followed as ONNX Runtime makes it when it loads a model:

- a view shares its input's buffer, and an op that may work in place takes over an input that nobody else reads;
- else the youngest free buffer of the same shape is taken, else a new one;
- new buffers get offsets in one arena, each in the smallest gap that is free as long as it lives.

Then one inference after another touches these addresses, and distances are counted as LRU stack distances: different
bytes of activations, and weights, touched in between.

References
----------
Mattson, Gecsei, Slutz, Traiger: Evaluation techniques for storage hierarchies. IBM Systems Journal 9(2), 1970.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["IN_PLACE", "Distances", "Touch", "distances"]

ALIGNMENT_BYTES = 64

_FIRST = (0,)
# Inputs whose memory an op's result may take over, by the runtime's kernel registrations.
IN_PLACE: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), (0, 1)),
    **dict.fromkeys(
        ("Relu", "Clip", "LeakyRelu", "HardSigmoid", "HardSwish", "Neg", "Abs", "Sqrt", "Reciprocal", "Ceil", "Floor",
         "Sigmoid", "Tanh", "Exp", "Log", "Softplus", "Elu", "Selu", "Softsign", "Pow", "Sum", "Max", "Min", "Softmax",
         "LogSoftmax", "Gelu", "QuickGelu", "Cast", "ThresholdedRelu", "PRelu", "Not", "Round", "Sign"),
        _FIRST,
    ),
    **dict.fromkeys(("Conv", "FusedConv"), (3,)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Touch:
    """What one launch reads and writes; constants are only counted."""

    inputs: tuple[tuple[str, int], ...]  # tensor and its bytes, in the op's own order; constants left out
    outputs: tuple[tuple[str, int, tuple[int, ...]], ...]  # tensor, bytes, shape
    weight_bytes: int = 0
    view: bool = False  # the output is the first input under another shape
    takes_over: tuple[str, ...] = ()  # inputs whose memory the result may take


@dataclass(frozen=True, slots=True)
class Distances:
    """Bytes touched since the operands of a launch were, averaged over their bytes, to four bits; 0 for a view."""

    read_bytes: int
    write_bytes: int


@dataclass(slots=True, eq=False)
class _Buffer:
    size: int  # in bytes, as `start`
    shape: tuple[int, ...]
    arena: bool  # False: memory of the caller, or of a result of the network
    born: int  # launch, as `dies`
    uses: int = 0  # readings still to come
    dies: int = -1
    start: int = 0
    given: bool = False  # an input of the network


@dataclass(slots=True)
class _Plan:
    buffers: list[_Buffer] = field(default_factory=list)
    of: dict[str, int] = field(default_factory=dict)  # tensor -> buffer


def distances(touches: Sequence[Touch], cycle_bytes: int = 0) -> tuple[list[Distances], int]:
    """Distances of each launch in the steady state, and the bytes that pass from one inference to the next.

    Parameters
    ----------
    touches : sequence of Touch
        In launch order.
    cycle_bytes : int
        What passes from one inference to the next at least, where other graphs run in between: these then touch what
        the launches do not, and have just written the inputs.

    Examples
    --------
    A chain a -> b -> c of 64-byte tensors: b is read right after it was written; the second inference finds a, b
    and c where the first left them.

    >>> chain = [Touch((("a", 64),), (("b", 64, (16,)),)), Touch((("b", 64),), (("c", 64, (16,)),))]
    >>> found, footprint_bytes = distances(chain)
    >>> found[1], footprint_bytes
    (Distances(read_bytes=64, write_bytes=192), 192)
    """
    plan = _planned(touches)
    _place(plan.buffers, len(touches))
    footprint_bytes = max((b.start + b.size for b in plan.buffers), default=0) + sum(t.weight_bytes for t in touches)
    # The state that an inference leaves: everything was touched once, buffers in the order of their last use.
    stack: list[tuple[int, int, int]] = []  # start, end and `flow` when touched; latest last
    flow = 0  # bytes of weights, and of other graphs, that passed so far
    beside_bytes = max(0, cycle_bytes - footprint_bytes)
    found: list[Distances] = []
    for recording in (False, True):
        if recording and beside_bytes:
            flow += beside_bytes
            for buffer in plan.buffers:
                if not buffer.arena and buffer.given:
                    _touch(stack, buffer.start, buffer.start + buffer.size, flow)
        for touch in touches:
            read = read_size = 0
            for name, size in touch.inputs:
                start = plan.buffers[plan.of[name]].start
                read += 0 if touch.view else size * _touch(stack, start, start + size, flow)
                read_size += size
            flow += touch.weight_bytes
            write = write_size = 0
            if not touch.view:
                for name, size, _ in touch.outputs:
                    start = plan.buffers[plan.of[name]].start
                    write += size * _touch(stack, start, start + size, flow)
                    write_size += size
            if recording:
                found.append(Distances(_rounded(read // max(read_size, 1)), _rounded(write // max(write_size, 1))))
    return found, footprint_bytes + beside_bytes


def _rounded(distance_bytes: int) -> int:
    """To four significant bits: equal blocks of a network shall find the caches alike."""
    shift = max(0, distance_bytes.bit_length() - 4)
    return (distance_bytes + (1 << shift >> 1)) >> shift << shift


def _planned(touches: Sequence[Touch]) -> _Plan:
    plan = _Plan()
    uses: dict[str, int] = {}
    for touch in touches:
        for name, _ in touch.inputs:
            uses[name] = uses.get(name, 0) + 1
    free: dict[tuple[tuple[int, ...], int], list[int]] = {}  # shape and size of buffers -> these, youngest last
    for step, touch in enumerate(touches):
        for name, size in touch.inputs:
            if name not in plan.of:  # an input of the network: the caller's memory
                plan.of[name] = len(plan.buffers)
                plan.buffers.append(_Buffer(size, (), False, step, uses[name], given=True))
        for name, size, shape in touch.outputs:
            plan.of[name] = index = _buffer_of(plan, touch, name, size, shape, uses, free, step)
            buffer = plan.buffers[index]
            buffer.uses += uses.get(name, 0)
            buffer.dies = step
        for name, _ in touch.inputs:
            buffer = plan.buffers[plan.of[name]]
            buffer.uses -= 1
            buffer.dies = step
            if buffer.uses == 0 and buffer.arena:
                free.setdefault((buffer.shape, buffer.size), []).append(plan.of[name])
    return plan


def _buffer_of(
    plan: _Plan,
    touch: Touch,
    name: str,
    size: int,
    shape: tuple[int, ...],
    uses: Mapping[str, int],
    free: Mapping[tuple[tuple[int, ...], int], list[int]],
    step: int,
) -> int:
    if touch.view and touch.inputs:
        return plan.of[touch.inputs[0][0]]
    if name in uses:  # what nobody reads is a result of the network and gets memory of its own
        for other in touch.takes_over:
            index = plan.of[other]
            buffer = plan.buffers[index]
            if buffer.arena and buffer.uses == 1 and buffer.size == size:
                return index
        if same := free.get((shape, size)):
            return same.pop()
    plan.buffers.append(_Buffer(size, shape, name in uses, step))
    return len(plan.buffers) - 1


def _place(buffers: Sequence[_Buffer], steps: int) -> None:
    """Offsets: the smallest gap between living buffers that is large enough, else behind the last."""
    born: dict[int, list[_Buffer]] = {}
    dying: dict[int, list[_Buffer]] = {}
    top = 0
    for buffer in buffers:
        if buffer.arena:
            born.setdefault(buffer.born, []).append(buffer)
            dying.setdefault(buffer.dies, []).append(buffer)
    living: list[_Buffer] = []  # by offset
    for step in range(steps):
        for buffer in born.get(step, ()):
            size = _aligned(buffer.size)
            end, best, waste, at = 0, -1, 1 << 62, len(living)
            for index, other in enumerate(living):
                gap = other.start - end
                if gap >= size and gap - size < waste:
                    best, waste, at = end, gap - size, index
                end = max(end, other.start + _aligned(other.size))
            if top - end >= size and top - end - size < waste:
                best, at = end, len(living)
            buffer.start = best if best >= 0 else end
            living.insert(at if best >= 0 else len(living), buffer)
            top = max(top, buffer.start + size)
        for buffer in dying.get(step, ()):
            living.remove(buffer)
    for buffer in buffers:
        if not buffer.arena:
            buffer.start = top
            top += _aligned(buffer.size)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _touch(stack: list[tuple[int, int, int]], start: int, end: int, flow: int) -> int:
    """Move a range of addresses to the top of the stack; how deep it lay, on average over its bytes.

    Bytes that were never touched count nothing: in the steady state there are none.
    """
    if end <= start:
        return 0
    left = end - start
    depth = total = 0
    at = len(stack) - 1
    while at >= 0 and left:
        low, high, then = stack[at]
        if low < end and start < high:
            a = low if low > start else start
            b = high if high < end else end
            inside = b - a
            total += inside * (depth + inside + flow - then)
            left -= inside
            pieces = [(low, a, then)] if low < a else []
            if b < high:
                pieces.append((b, high, then))
            stack[at : at + 1] = pieces
        depth += high - low
        at -= 1
    stack.append((start, end, flow))
    return total // (end - start)
