"""A region of convolutions computed on some square patches of its input only, exactly.

The map is divided into patches of S x S positions. Active ones are gathered with a halo as wide as the region looks,
as a batch; inside the halo convolutions need no padding, but positions outside of the map are set to zero before every
convolution that pads, as its own padding would. Results are scattered into a copy of the region's input, or of another
map: positions of no active patch keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import onnx
from onnx import helper

from latpred.errors import SurgeryError
from latpred.reading.nodes import copied
from latpred.surgery.channels import BINARY, UNARY, attributes_of
from latpred.surgery.skip import can_skip
from latpred.surgery.weights import constant
from latpred.surgery.wiring import Wiring, assembled, declared, wired
from latpred.tensors import Array, Spec

__all__ = ["ACTIVE_PATCHES", "OUTSIDE", "can_patch", "computed_on", "counts", "origins"]

ACTIVE_PATCHES = "active_patches"
OUTSIDE = "outside_patches"
OLDEST_OPSET = 11  # ScatterND, and slices whose bounds are inputs
ROUNDING = 1e-9

Margin = tuple[int, int]  # positions beyond a patch, above and below, left and right


def counts(height: int, width: int, granularity: int, rate: float) -> int:
    """Patches that are computed at an active rate: ceil(r * ceil(H/S) * ceil(W/S)).

    Raises
    ------
    SurgeryError
        Where the rate does not lie in [0, 1], or the map cannot be divided.

    Examples
    --------
    >>> counts(56, 56, 8, 0.3), counts(14, 14, 4, 1.0)
    (15, 16)
    """
    if not 0 <= rate <= 1:
        raise SurgeryError(f"an active rate between 0 and 1 is needed, but {rate} came: give 0.25, say")
    return ceil(rate * len(origins(height, width, granularity)) - ROUNDING)


def origins(height: int, width: int, granularity: int) -> Array:
    """Top left positions of all patches, row by row, of shape (ceil(H/S) * ceil(W/S), 2).

    Patches of the last row and column are moved inwards, so that all of each lies on the map.

    Raises
    ------
    SurgeryError
        Where a patch is larger than the map.

    Examples
    --------
    >>> origins(4, 5, 4).tolist()
    [[0, 0], [0, 1]]
    """
    if not 1 <= granularity <= min(height, width):
        raise SurgeryError(f"patches of 1 to {min(height, width)} positions fit on a map of {height} x {width}, but "
                           f"{granularity} came: give a smaller granularity")  # fmt: skip
    rows, columns = (
        [min(step * granularity, size - granularity) for step in range(ceil(size / granularity))]
        for size in (height, width)
    )
    return np.array([(row, column) for row in rows for column in columns], np.int64)


def can_patch(piece: onnx.ModelProto | Wiring) -> str | None:
    """Why a piece cannot be computed on patches; None where it can.

    Examples
    --------
    >>> x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 4, 8, 8]) for n in "xy")
    >>> node = helper.make_node("AveragePool", ["x"], ["y"], "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    >>> can_patch(helper.make_model(helper.make_graph([node], "g", [x], [y])))
    "AveragePool 'p' is neither a convolution nor computed position by position"
    """
    wiring = wired(piece)
    reason = can_skip(wiring)
    if reason is not None:
        return reason
    if len(wiring.inputs) != 1:
        return f"it also reads {', '.join(map(repr, wiring.inputs[1:]))}"
    whole = wiring.spec(wiring.inputs[0])
    if len(whole.shape) != 4 or whole.shape[0] != 1:
        return f"its input is {list(whole.shape)}, not one map (1, C, H, W)"
    if ACTIVE_PATCHES in wiring.infos or ACTIVE_PATCHES in wiring.stored:
        return f"one of its tensors is called {ACTIVE_PATCHES!r} already"
    if wiring.opset < OLDEST_OPSET:
        return f"its opset is {wiring.opset}, below {OLDEST_OPSET}"
    obstacles = [why for index in range(len(wiring.nodes)) if (why := _obstacle(wiring, index, whole)) is not None]
    if not obstacles and all(node.op_type != "Conv" for node in wiring.nodes):
        return "it has no convolution"
    return next(iter(obstacles), None)


def _obstacle(wiring: Wiring, index: int, whole: Spec) -> str | None:
    """Why one node cannot be computed on patches."""
    node = wiring.nodes[index]
    label = f"{node.op_type} {node.name!r}"
    made = [name for name in node.output if name]
    if any(wiring.is_sequence(name) or wiring.spec(name).shape[2:] != whole.shape[2:] for name in made):
        return f"{label} changes the map's size, or what is left of it is no map"
    if node.domain not in ("", "ai.onnx") or node.op_type not in UNARY | BINARY | {"BatchNormalization", "Conv"}:
        return f"{label} is neither a convolution nor computed position by position"
    if any(wiring.spec(name).dtype != whole.dtype for name in made):
        return f"{label} makes other values than the region's {whole.dtype}"
    attributes = attributes_of(node)
    if node.op_type == "Conv":
        if node.input[1] not in wiring.stored:
            return f"{label} has no constant weights"
        if any(size % 2 == 0 for size in wiring.spec(node.input[1]).shape[2:]):
            return f"{label} has an even kernel, which is centred nowhere"
        if attributes.get("strides", (1, 1)) != (1, 1):
            return f"{label} leaves positions out"
        pads = attributes.get("pads")
        if isinstance(pads, tuple) and tuple(pads) != 2 * _radius(wiring, index):
            return f"{label} pads one side more than the other"
        return None
    if attributes.get("training_mode", 0):
        return f"{label} normalises by what it sees of the map"
    for name in node.input:
        if name in wiring.stored and node.op_type in BINARY:
            shape = wiring.spec(name).shape
            if any(size != 1 for size in (*shape[-2:], *shape[:-3])):
                return f"{label} reads {name!r}, which differs from position to position"
    return None


def _radius(wiring: Wiring, index: int) -> Margin:
    """How far a convolution looks: dilation * (k - 1) / 2 in both directions."""
    node = wiring.nodes[index]
    if node.op_type != "Conv":
        return 0, 0
    kernel = wiring.spec(node.input[1]).shape[2:]
    dilations = attributes_of(node).get("dilations") or (1, 1)
    down, across = (int(d) * (k - 1) // 2 for k, d in zip(kernel, dilations, strict=True))  # type: ignore[call-overload]
    return down, across


def computed_on(
    piece: onnx.ModelProto, granularity: int, n_patches: int, onto_another: bool = False
) -> onnx.ModelProto:
    """The piece computed on `n_patches` patches.

    Parameters
    ----------
    piece : ModelProto
        Input and output (1, C, H, W).
    granularity : int
        Positions along each side of a patch.
    n_patches : int
        Patches in a run. One that is named twice is computed twice, which does no harm.
    onto_another : bool
        Whether positions outside of the active patches are those of a map that is given, instead of the input's.

    Returns
    -------
    ModelProto
        It reads a second input, `ACTIVE_PATCHES`, int64 of shape (n_patches,): indices into `origins`; where asked for
        a third, `OUTSIDE`, of the output's shape.

    Raises
    ------
    SurgeryError
        Where the piece cannot be computed on patches, or there are not that many.
    """
    reason = can_patch(piece)
    if reason is not None:
        raise SurgeryError(f"a region of convolutions that keeps its map is needed, but {reason}: choose another one")
    wiring = wired(piece)
    spec = wiring.spec(wiring.inputs[0])
    found = len(origins(spec.shape[2], spec.shape[3], granularity))
    if not 1 <= n_patches <= found:
        raise SurgeryError(f"1 to {found} patches can be computed, but {n_patches} came: leave the region out, or "
                           "compute it whole")  # fmt: skip
    builder = _Builder(wiring, granularity, n_patches, onto_another)
    nodes = builder.nodes_of_all()
    inputs = [piece.graph.input[0], declared(ACTIVE_PATCHES, Spec((n_patches,), "int64"))]
    if onto_another:
        inputs.append(declared(OUTSIDE, spec))
    stored = [*piece.graph.initializer, *(constant(name, values) for name, values in builder.constants.items())]
    name = f"{piece.graph.name} on {n_patches} of {found} patches"
    return assembled(piece, name, nodes, inputs, piece.graph.output, stored, builder.infos)


class _Builder:
    """The rewritten graph while it grows; a patch's tensor is named after the whole one's."""

    def __init__(self, wiring: Wiring, granularity: int, n_patches: int, onto_another: bool) -> None:
        self.wiring = wiring
        self.granularity = granularity
        self.n_patches = n_patches
        self.onto_another = onto_another
        self.start, self.end = wiring.inputs[0], wiring.outputs[0]
        self.spec = wiring.spec(self.start)
        self.margins = _margins(wiring)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.infos: dict[str, onnx.ValueInfoProto] = {}

    def nodes_of_all(self) -> list[onnx.NodeProto]:
        self.gather()
        for index, node in enumerate(self.wiring.nodes):
            rewritten = copied(node)
            margin, radius = self.margins[node.output[0]], _radius(self.wiring, index)
            made = self.wiring.spec(node.output[0])
            self.declare(_on_patches(node.output[0]), (self.n_patches, made.shape[1], *self.sides(margin)), made.dtype)
            rewritten.output[0] = _on_patches(node.output[0])
            needed = margin[0] + radius[0], margin[1] + radius[1]
            for place, name in enumerate(node.input):
                if name and name not in self.wiring.stored:
                    rewritten.input[place] = self.operand(name, needed, any(radius))
            if node.op_type == "Conv":
                _unpad(rewritten)
            self.nodes.append(rewritten)
        self.scatter()
        return self.nodes

    def declare(self, name: str, shape: Sequence[int], dtype: str) -> None:
        self.infos[name] = declared(name, Spec(tuple(shape), dtype))

    def op(
        self, op_type: str, inputs: Sequence[str], output: str, shape: Sequence[int], dtype: str = "", **attributes: Any
    ) -> str:
        """Add a node unless its output is there; the region's dtype is its default."""
        if output not in self.infos:
            self.declare(output, shape, dtype or self.spec.dtype)
            self.nodes.append(helper.make_node(op_type, list(inputs), [output], f"patches/{output}", **attributes))
        return output

    def constant(self, name: str, values: object) -> str:
        self.constants[f"patches/{name}"] = np.asarray(values)
        return f"patches/{name}"

    def sides(self, margin: Margin) -> tuple[int, int]:
        return self.granularity + 2 * margin[0], self.granularity + 2 * margin[1]

    def gather(self) -> None:
        """The active patches of the input, halo included; beyond the border, whatever lies nearest."""
        _, channels, height, width = self.spec.shape
        halo = self.margins[self.start]
        down, across = self.sides(halo)
        firsts = origins(height, width, self.granularity)
        rows = firsts[:, :1] - halo[0] + np.arange(down)
        columns = firsts[:, 1:] - halo[1] + np.arange(across)
        nearest_row, nearest_column = rows.clip(0, height - 1), columns.clip(0, width - 1)
        places = nearest_row[:, :, None] * width + nearest_column[:, None, :]
        inside = (rows == nearest_row)[:, :, None] & (columns == nearest_column)[:, None, :]
        dtype = np.dtype(self.spec.dtype)
        self.constant("inside", inside[:, None].astype(dtype))
        count, positions = self.n_patches, down * across
        self.op("Transpose", [self.start], "patches/last", (1, height, width, channels), perm=[0, 2, 3, 1])
        flat = height * width, channels
        self.op("Reshape", ["patches/last", self.constant("rows shape", np.array(flat))], "patches/rows", flat)
        table = self.constant("read", places.reshape(len(firsts), -1))
        self.op("Gather", [table, ACTIVE_PATCHES], "patches/places", (count, positions), "int64", axis=0)
        gathered = "patches/gathered"
        self.op("Gather", ["patches/rows", "patches/places"], gathered, (count, positions, channels), axis=0)
        squares = count, down, across, channels
        self.op("Reshape", [gathered, self.constant("gathered shape", np.array(squares))], "patches/squares", squares)
        whole = count, channels, down, across
        self.op("Transpose", ["patches/squares"], _on_patches(self.start), whole, perm=[0, 3, 1, 2])

    def operand(self, name: str, margin: Margin, padded: bool) -> str:
        """A tensor on patches with that margin; zero beyond the border where a convolution pads it."""
        own, patched, channels = self.margins[name], _on_patches(name), self.wiring.spec(name).shape[1]
        if padded:
            halo = self.margins[self.start]
            shape = self.n_patches, 1, *self.sides(halo)
            mask = self.op("Gather", ["patches/inside", ACTIVE_PATCHES], "patches/mask", shape, axis=0)
            mask = self.cropped(mask, 1, halo, own)
            shape = self.n_patches, channels, *self.sides(own)
            patched = self.op("Mul", [patched, mask], f"{patched}:masked", shape)
        return self.cropped(patched, channels, own, margin)

    def cropped(self, name: str, channels: int, own: Margin, margin: Margin) -> str:
        if own == margin:
            return name
        less = own[0] - margin[0], own[1] - margin[1]
        sides = self.sides(margin)
        label = f"{less[0]} {less[1]} {sides[0]} {sides[1]}"
        starts = self.constant(f"starts {label}", np.array(less))
        ends = self.constant(f"ends {label}", np.array([less[0] + sides[0], less[1] + sides[1]]))
        axes = self.constant("axes", np.array([2, 3]))
        shape = self.n_patches, channels, *sides
        return self.op("Slice", [name, starts, ends, axes], f"{name}:{margin[0]},{margin[1]}", shape)

    def scatter(self) -> None:
        """Results into a copy of the input."""
        _, channels, height, width = self.spec.shape
        firsts = origins(height, width, self.granularity)
        steps = np.arange(self.granularity)
        places = (firsts[:, :1] + steps)[:, :, None] * width + (firsts[:, 1:] + steps)[:, None, :]
        count, flat = self.n_patches * len(steps) ** 2, (height * width, channels)
        result = self.cropped(_on_patches(self.end), channels, self.margins[self.end], (0, 0))
        last = self.n_patches, len(steps), len(steps), channels
        self.op("Transpose", [result], "patches/results last", last, perm=[0, 2, 3, 1])
        shape = self.constant("results shape", np.array([-1, channels]))
        self.op("Reshape", ["patches/results last", shape], "patches/results", (count, channels))
        table = self.constant("write", places.reshape(len(firsts), -1))
        targets = self.n_patches, len(steps) ** 2
        self.op("Gather", [table, ACTIVE_PATCHES], "patches/targets", targets, "int64", axis=0)
        shape = self.constant("targets shape", np.array([-1, 1]))
        self.op("Reshape", ["patches/targets", shape], "patches/target rows", (count, 1), "int64")
        rows, written = "patches/rows", "patches/written"
        if self.onto_another:
            self.op("Transpose", [OUTSIDE], "patches/outside last", (1, height, width, channels), perm=[0, 2, 3, 1])
            rows = self.op("Reshape", ["patches/outside last", "patches/rows shape"], "patches/outside rows", flat)
        self.op("ScatterND", [rows, "patches/target rows", "patches/results"], written, flat)
        shape = self.constant("map shape", np.array([1, height, width, channels]))
        self.op("Reshape", [written, shape], "patches/map", (1, height, width, channels))
        self.op("Transpose", ["patches/map"], self.end, self.spec.shape, perm=[0, 3, 1, 2])


def _on_patches(name: str) -> str:
    return f"{name}:patches"


def _margins(wiring: Wiring) -> dict[str, Margin]:
    """How far beyond a patch each tensor is needed: the widest sum of radii from it to the output."""
    margins: dict[str, Margin] = {wiring.outputs[0]: (0, 0)}
    for index in reversed(range(len(wiring.nodes))):
        node = wiring.nodes[index]
        behind, radius = margins.setdefault(node.output[0], (0, 0)), _radius(wiring, index)
        for name in node.input:
            own = margins.get(name, (0, 0))
            margins[name] = max(own[0], behind[0] + radius[0]), max(own[1], behind[1] + radius[1])
    return margins


def _unpad(conv: onnx.NodeProto) -> None:
    kept = [attribute for attribute in conv.attribute if attribute.name not in ("pads", "auto_pad")]
    del conv.attribute[:]
    conv.attribute.extend(kept)
