"""A piece with fewer inner channels, its weights taken from the same values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, gcd

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from latpred.errors import SurgeryError
from latpred.reading.nodes import copied
from latpred.surgery.channels import ChannelGroup, Edit, can_narrow, groups
from latpred.surgery.weights import bare, constant, values_of
from latpred.surgery.wiring import Wiring, assembled, declared, wired
from latpred.tensors import Array, Spec

__all__ = ["kept_channels", "kept_counts", "sliced"]

MULTIPLE = 8  # channels; what runtimes and their vector instructions have in common
ROUNDING = 1e-9  # so that 0.3 of 10 channels are 3


def kept_channels(channels: int, keep_ratio: float, multiple: int = MULTIPLE) -> int:
    """How many channels stay: the share, rounded up to a multiple, and at most all of them.

    Raises
    ------
    SurgeryError
        Where the share does not lie in (0, 1], or the multiple is below 1.

    Examples
    --------
    >>> kept_channels(96, 0.3), kept_channels(96, 1.0), kept_channels(12, 0.9)
    (32, 96, 12)
    """
    if not 0 < keep_ratio <= 1:
        raise SurgeryError(f"a share of channels above 0 and up to 1 is needed, but {keep_ratio} came: give 0.5, say")
    if multiple < 1:
        raise SurgeryError(f"channels are kept in multiples of at least 1, but {multiple} came: give 8, say")
    return min(channels, ceil(ceil(keep_ratio * channels - ROUNDING) / multiple) * multiple)


def kept_counts(
    piece: onnx.ModelProto | Wiring, keep_ratios: Sequence[float], multiple: int = MULTIPLE, block: int = 0
) -> list[tuple[int, ...]]:
    """For each share, how many channels of each group stay; arguments as of `sliced`.

    Examples
    --------
    >>> from onnx import helper
    >>> x, y, h = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 4, 4]) for n, c in (("x", 8), ("y", 8), ("h", 48)))
    >>> nodes = [helper.make_node("Conv", ["x", "v"], ["h"], "up"), helper.make_node("Conv", ["h", "w"], ["y"], "down")]
    >>> weights = [bare("v", (48, 8, 1, 1), TensorProto.FLOAT), bare("w", (8, 48, 1, 1), TensorProto.FLOAT)]
    >>> piece = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights, value_info=[h]))
    >>> kept_counts(piece, [0.5, 0.75], block=16)
    [(32,), (48,)]
    """  # noqa: E501
    wiring = wired(piece)
    multiples = [(group.channels, _multiple(wiring, group, multiple, block)) for group in groups(wiring)]
    return [tuple(kept_channels(channels, ratio, each) for channels, each in multiples) for ratio in keep_ratios]


def sliced(
    piece: onnx.ModelProto,
    keep_ratio: float,
    multiple: int = MULTIPLE,
    order: Mapping[str, Sequence[int]] | None = None,
    block: int = 0,
) -> onnx.ModelProto:
    """The piece with a share of each group's channels; its input and output keep their shapes.

    Parameters
    ----------
    piece : ModelProto
    keep_ratio : float
        Share of channels that stay, in (0, 1].
    multiple : int
        Channels stay in multiples of this.
    order : mapping of str to sequence of int, optional
        By name of a group, its channels, the most salient first. Without it, by the L1 norm of the weights that make
        a channel (Li et al., "Pruning filters for efficient ConvNets", ICLR 2017, section 3.1); where these are
        missing, as they come.
    block : int
        Channels that convolutions on the device work on at once, where they do: what they make stays in multiples of
        it, as what fills a block up costs nothing.

    Raises
    ------
    SurgeryError
        Where no channel can be left out, an argument is out of range, or an order is no order of the channels.
    """
    found = groups(piece)
    if not found:
        raise SurgeryError(f"channels that only the piece itself sees are needed, but {can_narrow(piece)}: "
                           "narrow another piece")  # fmt: skip
    unknown = sorted(set(order or {}) - {group.name for group in found})
    if unknown:
        raise SurgeryError(f"orders of {', '.join(group.name for group in found)} can be given, but "
                           f"{', '.join(unknown)} came: leave it out")  # fmt: skip
    wiring = wired(piece)
    slices: dict[tuple[int, int], list[tuple[int, Array]]] = {}
    sizes: dict[tuple[int, int], dict[int, int]] = {}
    nodes = [copied(node) for node in wiring.nodes]
    infos = dict(wiring.infos)
    for group in found:
        count = kept_channels(group.channels, keep_ratio, _multiple(wiring, group, multiple, block))
        kept = _kept(wiring, group, count, order or {})
        for edit in group.edits:
            indices = np.concatenate([kept + copy * group.channels for copy in range(edit.copies)])
            slices.setdefault((edit.node, edit.place), []).append((edit.axis, indices))
        for edit in group.sizes:
            sizes.setdefault((edit.node, edit.place), {})[edit.axis] = edit.copies * len(kept)
        for index, copies in group.depthwise.items():
            next(a for a in nodes[index].attribute if a.name == "group").i = copies * len(kept)
        for name, (axis, copies) in group.tensors.items():
            infos[name] = declared(name, _resized(wiring, infos, name, axis, copies * len(kept)))
    stored = [
        *piece.graph.initializer,
        *_rewritten(wiring, nodes, slices, sizes, f"{keep_ratio:g}~{max(multiple, block)}"),
    ]
    graph = piece.graph
    return assembled(piece, f"{graph.name} x {keep_ratio:g}", nodes, graph.input, graph.output, stored, infos)


def _multiple(wiring: Wiring, group: ChannelGroup, multiple: int, block: int) -> int:
    """What the channels of a group stay in multiples of: in each of its ways, where it has some."""
    makers = [wiring.nodes[edit.node] for edit in group.makers]
    weights = [wiring.spec(node.input[1]) for node in makers if node.op_type == "Conv"]
    in_blocks = len(weights) == len(makers) and all(
        weight.dtype == "float32" and len(weight.shape) == 4 for weight in weights
    )
    whole = max(multiple, block) if in_blocks else multiple
    if group.ways == 1 or group.channels % whole == 0:
        return whole
    return whole // gcd(whole, group.ways)  # too few a way for blocks of their own: all ways together fill them


def _kept(wiring: Wiring, group: ChannelGroup, count: int, order: Mapping[str, Sequence[int]]) -> Array:
    """Indices of the channels that stay, ascending."""
    if group.name in order:
        ranked = np.asarray(order[group.name])
        if sorted(ranked.tolist()) != list(range(group.channels)):
            raise SurgeryError(
                f"an order of the {group.channels} channels of {group.name} is needed, but {len(ranked)} numbers came "
                "that are not each of them once: give all of them"
            )
    else:
        salience = sum((_norms(wiring, edit, group.channels) for edit in group.makers), np.zeros(group.channels))
        ranked = np.argsort(-salience, kind="stable")
    return np.sort(ranked[:count])


def _norms(wiring: Wiring, edit: Edit, channels: int) -> Array:
    values = values_of(wiring.stored[wiring.nodes[edit.node].input[edit.place]])
    if values is None:
        return np.zeros(channels)
    rows = np.moveaxis(np.abs(values), edit.axis, 0).reshape(edit.copies, channels, -1)
    return np.asarray(rows.sum(axis=(0, 2), dtype=np.float64))


def _resized(wiring: Wiring, infos: Mapping[str, onnx.ValueInfoProto], name: str, axis: int, size: int) -> Spec:
    shape = [dim.dim_value for dim in infos[name].type.tensor_type.shape.dim]
    shape[axis] = size
    return Spec(tuple(shape), wiring.spec(name).dtype)


def _rewritten(
    wiring: Wiring,
    nodes: Sequence[onnx.NodeProto],
    slices: Mapping[tuple[int, int], Sequence[tuple[int, Array]]],
    sizes: Mapping[tuple[int, int], Mapping[int, int]],
    label: str,
) -> list[TensorProto]:
    """New constants under new names, which nodes are made to read, in place; alike ones are shared."""
    made: dict[tuple[object, ...], TensorProto] = {}
    for (index, place), cuts in slices.items():
        name = nodes[index].input[place]
        key = (name, *((axis, indices.tobytes()) for axis, indices in cuts))
        if key not in made:
            made[key] = _taken(wiring.stored[name], f"{name}~{label}~{len(made)}", cuts)
        nodes[index].input[place] = made[key].name
    for (index, place), changes in sizes.items():
        name = nodes[index].input[place]
        values = numpy_helper.to_array(wiring.stored[name]).copy()
        for position, size in changes.items():
            values.reshape(-1)[position] = size
        key = (name, values.tobytes())
        made.setdefault(key, constant(f"{name}~{label}~{len(made)}", values))
        nodes[index].input[place] = made[key].name
    return list(made.values())


def _taken(stored: TensorProto, name: str, cuts: Sequence[tuple[int, Array]]) -> TensorProto:
    values = values_of(stored)
    if values is None:
        shape = list(stored.dims)
        for axis, indices in cuts:
            shape[axis] = len(indices)
        return bare(name, shape, stored.data_type)
    for axis, indices in cuts:
        values = np.take(values, indices, axis)
    return constant(name, values)
