"""What a kernel is: the unit that a runtime launches, with its shapes and its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from latpred.graph import AttributeValue, Spec

__all__ = ["Context", "Kernel", "Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """Cost of one launch; `+` sums, so that a graph is a sum.

    Examples
    --------
    >>> Work(macs=10, flops=20) + Work(flops=5, read_bytes=8)
    Work(macs=10, flops=25, read_bytes=8, write_bytes=0, weight_bytes=0)
    """

    macs: int = 0
    flops: int = 0  # 2 x MACs + elementwise
    read_bytes: int = 0  # activations read
    write_bytes: int = 0  # activations written
    weight_bytes: int = 0  # constants read

    def __add__(self, other: Work) -> Work:
        return Work(
            self.macs + other.macs,
            self.flops + other.flops,
            self.read_bytes + other.read_bytes,
            self.write_bytes + other.write_bytes,
            self.weight_bytes + other.weight_bytes,
        )

    @property
    def traffic_bytes(self) -> int:
        """Bytes moved by one launch: activations in and out, and weights."""
        return self.read_bytes + self.write_bytes + self.weight_bytes


@dataclass(frozen=True, slots=True)
class Context:
    """Where in the network a kernel stands, as its caches see it."""

    reuse_bytes: int = 0  # touched since its inputs were, on average over their bytes
    rewrite_bytes: int = 0  # touched since the memory of its outputs was
    cycle_bytes: int = 0  # touched by the whole network: what passes before its weights come again
    position: int = 0  # launches before it

    @property
    def distances(self) -> tuple[int, int, int]:
        """What decides where its operands lie; `position` does not."""
        return self.reuse_bytes, self.rewrite_bytes, self.cycle_bytes


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch of the runtime.

    `kind` is the family that one regressor serves (``conv``, ``gemm``, ``reorder``); `op_type` and `domain`
    name what the runtime executes; `epilogue` lists what was fused behind (``("add", "relu")``).
    """

    kind: str
    op_type: str
    domain: str
    name: str
    ops: tuple[str, ...]  # names of the ONNX nodes that it carries out
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    epilogue: tuple[str, ...] = ()
    work: Work = Work()
    context: Context = Context()
    repeat: int = 1  # launches an inference (trip count of an enclosing Loop or Scan)

    @property
    def label(self) -> str:
        """The kind with its epilogue, as people read it: ``conv+add+relu``."""
        return "+".join((self.kind, *self.epilogue))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Kernel:
        """A kernel from what `to_dict` gave."""
        return cls(
            kind=row["kind"],
            op_type=row["op_type"],
            domain=row["domain"],
            name=row["name"],
            ops=tuple(row["ops"]),
            inputs=tuple(Spec(tuple(s["shape"]), s["dtype"], s["constant"]) for s in row["inputs"]),
            outputs=tuple(Spec(tuple(s["shape"]), s["dtype"], s["constant"]) for s in row["outputs"]),
            attributes={k: tuple(v) if isinstance(v, list) else v for k, v in row["attributes"].items()},
            epilogue=tuple(row["epilogue"]),
            work=Work(**row["work"]),
            context=Context(**row["context"]),
            repeat=row["repeat"],
        )
