"""A network as a chain of pieces on ONNX Runtime: one session a piece, buffers bound once and shared between pieces.

Weights lie in memory once. Of what was measured (ONNX Runtime 1.31, resident memory beside the plain session's):

- A session that is made from bytes keeps the bytes, for a reset that never comes: they are taken from it.
- Each session's arena of activations and weights grows in powers of two: eighteen pieces of a MobileNetV2 took 2.3
  times what the whole took. Without arenas they take 0.9 times, but then the C library gives pages back and takes them
  anew as it likes: a Swin took 1.18 times as long. So all share one arena, which grows by what is asked for: 1.3 times
  the memory, and 5 % less time than with an arena each, as it is warm when a piece begins.
- Handing all sessions the same weights (`add_external_initializers`) costs more than it saves: the runtime packs or
  reorders weights for each session, and the shared ones stay beside that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx

from latpred.errors import ModelError
from latpred.tensors import Array

__all__ = ["CPU", "ORT_DTYPES", "Buffers", "Piece", "aligned", "bound", "opened", "timed"]

CPU = ("CPUExecutionProvider",)

ORT_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}

ALIGNMENT_BYTES = 64
AS_REQUESTED = 1  # an arena that grows by what is asked for, and not in powers of two


class Buffers:
    """Tensors by name and shape, each allocated once, aligned as the runtime aligns its own.

    Parameters
    ----------
    seed : int
        Of what inputs of a network are filled with: standard normal, or integers below 2.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._values: dict[tuple[str, tuple[int, ...]], Array] = {}

    def of(self, value: Any, name: str | None = None) -> Array:
        """The buffer of a session's input or output, under another name where given."""
        name = name or value.name
        shape = tuple(size if isinstance(size, int) else 1 for size in value.shape)
        if (name, shape) not in self._values:
            dtype = np.dtype(ORT_DTYPES[value.type])
            drawn: Array
            if name == "active_patches":
                drawn = np.arange(shape[0])
            elif dtype.kind == "f":
                drawn = self._rng.standard_normal(shape)
            else:
                drawn = self._rng.integers(0, 2, shape)
            self._values[name, shape] = aligned(shape, dtype)
            self._values[name, shape][...] = drawn
        return self._values[name, shape]


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array that starts where a cache line does: numpy promises 16 bytes, and wide loads across lines are slower."""
    size = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(size + ALIGNMENT_BYTES, np.uint8)
    start = -room.ctypes.data % ALIGNMENT_BYTES
    return room[start : start + size].view(dtype).reshape(shape)


def opened(model: onnx.ModelProto, threads: int = 1, providers: Sequence[str] = CPU) -> Any:
    """A session of a graph, `onnxruntime.InferenceSession`.

    Parameters
    ----------
    model : ModelProto
    threads : int
    providers : sequence of str
        Execution providers by name, the preferred one first.

    Raises
    ------
    ModelError
        Where the runtime cannot load the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    _share_an_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Threads of one session that wait busily for its next run take the cores from the session that runs now.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=list(providers))
    except Exception as error:  # the runtime's own classes share no other base
        raise ModelError(f"a graph that ONNX Runtime loads on {', '.join(providers)} is needed, but "
                         f"{model.graph.name!r} fails ({error}): name other providers, or export the model "
                         "again") from error  # fmt: skip
    session._model_bytes = None
    return session


@cache
def _share_an_arena() -> None:
    """Once a process: what sessions that ask for it take activations from; the caller's own sessions do not."""
    import onnxruntime

    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )  # fmt: skip
    growing = {"max_mem": 0, "arena_extend_strategy": AS_REQUESTED, "initial_chunk_size_bytes": -1,
               "max_dead_bytes_per_chunk": -1}  # fmt: skip
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(growing))


def bound(session: Any, arrays: Mapping[str, Array]) -> Any:
    """A binding of a session that reads its inputs and writes its outputs where arrays of their names lie.

    The arrays are bound by address: whoever binds them keeps them.
    """
    binding = session.io_binding()
    for values, bind in (
        (session.get_inputs(), binding.bind_input),
        (session.get_outputs(), binding.bind_output),
    ):
        for value in values:
            array = arrays[value.name]
            bind(value.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    return binding


class Piece:
    """A graph that runs on bound buffers.

    Parameters
    ----------
    model : ModelProto
    buffers : Buffers
    threads : int
    renamed : mapping of str to str
        Input or output -> buffer: what stands in for it where something before it was left out.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        buffers: Buffers,
        threads: int = 1,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self.session = opened(model, threads)
        self.buffers = buffers  # bound by address: they must live as long as the session
        self.binding = self.bound(renamed or {})

    def bound(self, renamed: Mapping[str, str]) -> Any:
        """A binding of the one session; several, to other buffers each, cost next to nothing."""
        values = (*self.session.get_inputs(), *self.session.get_outputs())
        arrays = {value.name: self.buffers.of(value, renamed.get(value.name)) for value in values}
        return bound(self.session, arrays)

    def run(self) -> None:
        """Once, from its input buffers to its output buffers."""
        self.session.run_with_iobinding(self.binding)


def timed(chain: Sequence[Piece]) -> float:
    """Latency in s of one inference."""
    start_s = time.perf_counter()
    for one in chain:
        one.run()
    return time.perf_counter() - start_s
