"""A kernel as a compact JSON row, and its signature: what measurements are stored and grouped by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from functools import lru_cache
from typing import Any

from latpred.errors import UnsupportedError
from latpred.graph import AttributeValue, Spec
from latpred.kernels.kernel import Context, Kernel, Work
from latpred.kernels.work import traffic_of, work_of

__all__ = ["pack_kernel", "signature", "unpack_kernel"]


def signature(kernel: Kernel) -> str:
    """What two launches must share to be the same kernel: everything but names and surroundings.

    Examples
    --------
    >>> relu = Kernel("relu", "Relu", "", "a", ("a",), (Spec((1, 8)),), (Spec((1, 8)),))
    >>> signature(relu)
    'relu|Relu||float32:1x8>float32:1x8|'
    """
    attributes = ",".join(f"{name}={kernel.attributes[name]}" for name in sorted(kernel.attributes))
    return "|".join(
        (
            kernel.kind,
            kernel.op_type,
            "+".join(kernel.epilogue),
            f"{';'.join(map(_pack_spec, kernel.inputs))}>{';'.join(map(_pack_spec, kernel.outputs))}",
            attributes,
        )
    )


@lru_cache(maxsize=1 << 16)
def _pack_spec(spec: Spec) -> str:
    """A spec as ``float32:1x3x8x8``, with ``!`` behind a constant."""
    return f"{spec.dtype}:{'x'.join(map(str, spec.shape))}{'!' if spec.constant else ''}"


@lru_cache(maxsize=1 << 16)
def _unpack_spec(text: str) -> Spec:
    dtype, _, shape = text.partition(":")
    constant = shape.endswith("!")
    shape = shape.rstrip("!")
    return Spec(tuple(map(int, shape.split("x"))) if shape else (), dtype, constant)


def pack_kernel(kernel: Kernel) -> dict[str, Any]:
    """A kernel as a compact JSON row: specs as text, defaults and what follows from the rest left out.

    Examples
    --------
    >>> work = Work(flops=8, read_bytes=4 * 8, write_bytes=4 * 8)
    >>> relu = Kernel("relu", "Relu", "", "a", ("a",), (Spec((1, 8)),), (Spec((1, 8)),), work=work)
    >>> pack_kernel(relu)
    {'kind': 'relu', 'op_type': 'Relu', 'name': 'a', 'inputs': ['float32:1x8'], 'outputs': ['float32:1x8']}
    >>> unpack_kernel(pack_kernel(relu)) == relu
    True
    """
    row: dict[str, Any] = {"kind": kernel.kind, "op_type": kernel.op_type, "name": kernel.name}
    if kernel.domain:
        row["domain"] = kernel.domain
    if kernel.ops != (kernel.name,):
        row["ops"] = list(kernel.ops)
    row["inputs"] = [_pack_spec(spec) for spec in kernel.inputs]
    row["outputs"] = [_pack_spec(spec) for spec in kernel.outputs]
    if kernel.attributes:
        row["attributes"] = {k: list(v) if isinstance(v, tuple) else v for k, v in kernel.attributes.items()}
    if kernel.epilogue:
        row["epilogue"] = list(kernel.epilogue)
    derived = _work(kernel.op_type, kernel.domain, kernel.inputs, kernel.outputs, kernel.attributes, kernel.epilogue)
    if kernel.work != derived:
        row["work"] = list(astuple(kernel.work))
    if kernel.context != Context():
        row["context"] = list(astuple(kernel.context))
    if kernel.repeat != 1:
        row["repeat"] = kernel.repeat
    return row


def unpack_kernel(row: Mapping[str, Any]) -> Kernel:
    """The kernel that `pack_kernel` packed; further keys of the row are passed over."""
    inputs, outputs = tuple(map(_unpack_spec, row["inputs"])), tuple(map(_unpack_spec, row["outputs"]))
    attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in row.get("attributes", {}).items()}
    op_type, domain, epilogue = row["op_type"], row.get("domain", ""), tuple(row.get("epilogue", ()))
    return Kernel(
        kind=row["kind"],
        op_type=op_type,
        domain=domain,
        name=row["name"],
        ops=tuple(row.get("ops", (row["name"],))),
        inputs=inputs,
        outputs=outputs,
        attributes=attributes,
        epilogue=epilogue,
        work=Work(*row["work"]) if "work" in row else _work(op_type, domain, inputs, outputs, attributes, epilogue),
        context=Context(*row.get("context", ())),
        repeat=row.get("repeat", 1),
    )


def _work(
    op_type: str,
    domain: str,
    inputs: tuple[Spec, ...],
    outputs: tuple[Spec, ...],
    attributes: Mapping[str, AttributeValue],
    epilogue: tuple[str, ...],
) -> Work:
    """The work that follows from all the rest of a kernel, so that it need not be stored."""
    try:
        return work_of(op_type, domain, inputs, outputs, attributes, epilogue)
    except UnsupportedError:
        return traffic_of(inputs, outputs)
