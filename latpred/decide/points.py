"""Decision points find themselves: what can be left, left out, narrowed, computed in part, or rounded.

Cuts divide a network into atoms. A *region* is one atom, or several in a row where that opens something that no part of
it opens: inner channels that lie across a cut (expand, depthwise, project), a map that comes back to its shape, a
module as the person who wrote the network knows it. An *exit* is one cut. Regions may overlap: all are listed, and a
plan mounts those of them that do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import onnx

from latpred.decide.options import REGION_LEVELS, Choice, refusals
from latpred.decide.scopes import common_path, module_path
from latpred.errors import InputError, SurgeryError
from latpred.surgery.channels import groups
from latpred.surgery.cuts import Cut, cuts
from latpred.surgery.likeness import Likeness
from latpred.surgery.patches import counts
from latpred.surgery.pieces import Region, region
from latpred.surgery.pooled import channels_of
from latpred.surgery.slicing import kept_counts
from latpred.surgery.wiring import Wiring, wired

__all__ = ["EXIT", "Grid", "Point", "classes_of", "points"]

EXIT = "exit"
# What an inference spends its time in; a region without any is not worth a decision.
HEAVY = frozenset({
    "Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "GRU", "LSTM", "MatMul", "MultiHeadAttention",
    "QLinearConv", "QLinearMatMul",
})  # fmt: skip
WINDOW = 4  # atoms that may open something together: expand, depthwise, squeeze and excite, project
MODULE = 6  # atoms of the largest module that is one region
PATCHES_A_SIDE = 4
SMALLEST_PATCH = 4


@dataclass(frozen=True, slots=True)
class Grid:
    """Which options are looked at.

    Attributes
    ----------
    levels : tuple of str
        Of ``exit``, ``skip``, ``channels``, ``patches``, ``int8``.
    keep_ratios : tuple of float
        Shares of inner channels that stay, above 0 and up to 1.
    rates : tuple of float
        Shares of patches that are computed, above 0 and up to 1.
    granularity : int or None
        Positions along each side of a patch; None takes a quarter of the map's shorter side, at least 4.

    Raises
    ------
    InputError
        When a level is unknown, a share is out of range, or the granularity is below 1.

    Examples
    --------
    >>> Grid(levels=("channels",), keep_ratios=(0.5,)).rates
    (0.25, 0.5, 0.75)
    """

    levels: tuple[str, ...] = (EXIT, *REGION_LEVELS)
    keep_ratios: tuple[float, ...] = (0.5, 0.75)
    rates: tuple[float, ...] = (0.25, 0.5, 0.75)
    granularity: int | None = None

    def __post_init__(self) -> None:
        known = (EXIT, *REGION_LEVELS)
        unknown = [level for level in self.levels if level not in known]
        if unknown:
            raise InputError(f"levels must be of {', '.join(known)}, got {', '.join(map(repr, unknown))}: name these")
        for what, shares in (("keep_ratios", self.keep_ratios), ("rates", self.rates)):
            if not all(0.0 < share <= 1.0 for share in shares):
                raise InputError(f"{what} must lie above 0 and not above 1, got {shares}: 0.5 is a half")
        if self.granularity is not None and self.granularity < 1:
            raise InputError(f"a patch has at least 1 position a side, got {self.granularity}: give one, or None")


@dataclass(frozen=True, slots=True)
class Point:
    """A place where something can be decided.

    Attributes
    ----------
    name : str
    start, end : Cut
        The region's; the same cut twice for an exit.
    choices : tuple of Choice
        Beside keeping the region as it is.
    refused : mapping of str to str
        Level -> why the region cannot be altered so.
    """

    name: str
    start: Cut
    end: Cut
    choices: tuple[Choice, ...]
    refused: Mapping[str, str]

    @property
    def is_exit(self) -> bool:
        """Whether the network may be left here."""
        return self.start is self.end or self.start.position == self.end.position

    @property
    def levels(self) -> tuple[str, ...]:
        """Levels of its choices, each once."""
        return tuple(dict.fromkeys(choice.level for choice in self.choices))

    def overlaps(self, other: Point) -> bool:
        """Whether the two cannot be mounted together."""
        if self.is_exit and other.is_exit:
            return self.start.position == other.start.position
        if self.is_exit or other.is_exit:
            leave, region = (self, other) if self.is_exit else (other, self)
            return region.start.position < leave.start.position < region.end.position
        return self.start.position < other.end.position and other.start.position < self.end.position


def points(
    model: onnx.ModelProto | Wiring, grid: Grid | None = None, places: Sequence[Cut] | None = None, block: int = 0
) -> tuple[Point, ...]:
    """Every point of a tidied model, by where it starts, larger regions first.

    Parameters
    ----------
    model : ModelProto or Wiring
    grid : Grid, optional
    places : sequence of Cut, optional
        Of the model, where they are known.
    block : int
        Channels that convolutions on the device work on at once.

    Raises
    ------
    SurgeryError
        Where the model was not tidied, or cannot be cut.

    Examples
    --------
    A block of 1x1 convolutions, 8 -> 32 -> 8 channels: it can be left out, or narrowed inside.

    >>> import numpy as np
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> info = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 16, 16]) for n, c in (("x", 8), ("h", 32), ("y", 8))}
    >>> nodes = [helper.make_node("Conv", ["x", "v"], ["h"], "/block/up/Conv"), helper.make_node("Conv", ["h", "w"], ["y"], "/block/down/Conv")]
    >>> weights = [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in (("v", (32, 8, 1, 1)), ("w", (8, 32, 1, 1)))]
    >>> graph = helper.make_graph(nodes, "g", [info["x"]], [info["y"]], weights, value_info=[info["h"]])
    >>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    >>> [(point.name, point.levels) for point in points(model)]
    [('block', ('skip', 'channels', 'patches', 'int8')), ('block.up', ('int8',)), ('block.down', ('int8',))]
    """  # noqa: E501
    grid = grid or Grid()
    wiring = wired(model)
    places = cuts(wiring) if places is None else places
    found = [*_regions(wiring, places, grid, block), *(_exits(wiring, places) if EXIT in grid.levels else ())]
    found.sort(key=lambda point: (point.start.position, -point.end.position))
    return _unique(found)


def classes_of(wiring: Wiring) -> int | None:
    """Class scores that the model makes; None where its output is no row of scores."""
    if len(wiring.outputs) != 1:
        return None
    if not wiring.infos[wiring.outputs[0]].type.HasField("tensor_type"):
        return None
    spec = wiring.spec(wiring.outputs[0])
    return spec.shape[1] if len(spec.shape) == 2 and spec.shape[1] > 1 and "float" in spec.dtype else None


def _regions(wiring: Wiring, places: Sequence[Cut], grid: Grid, block: int) -> Iterator[Point]:
    modules = _modules(wiring, places)
    likeness = Likeness(wiring)
    opened: dict[Hashable, bool] = {}
    for first in range(len(places) - 1):
        for last in range(first + 1, min(first + MODULE, len(places) - 1) + 1):
            start, end = places[first], places[last]
            heavy = _heavy(wiring, start, end)
            if not heavy:
                continue
            whole = last - first == 1 or (first, last) in modules
            if not whole and (last - first > WINDOW or _halves(modules, first, last)):
                continue
            found = region(wiring, start, end)
            if not whole:
                inner = places[first + 1 : last]
                key = (likeness.key(found), *(cut.position - start.position for cut in inner))
                if key not in opened:
                    opened[key] = _opened(found, inner)
                if not opened[key]:
                    continue
            point = _point(found, _name(wiring, heavy, start, end, whole), start, end, grid, block)
            if point.choices:
                yield point


def _halves(modules: set[tuple[int, int]], first: int, last: int) -> bool:
    """Whether a run of atoms begins or ends inside a module: nobody would recognise it."""
    return any(
        (begin < first < end or begin < last < end) and end - begin <= MODULE and not (begin <= first and last <= end)
        for begin, end in modules
    )


def _opened(found: Region, inner: Sequence[Cut]) -> bool:
    """Whether inner channels lie across each cut inside a region."""
    return {cut.tensor for cut in inner} <= {name for group in groups(found.wiring) for name in group.tensors}


def _point(found: Region, name: str, start: Cut, end: Cut, grid: Grid, block: int) -> Point:
    reasons = refusals(found.wiring)
    choices: list[Choice] = []
    for level in (level for level in REGION_LEVELS if level in grid.levels and reasons[level] is None):
        if level == "channels":
            choices += _channels(found, grid, block)
        elif level == "patches":
            choices += _patches(start, grid)
        else:
            choices.append(Choice(level))
    return Point(name, start, end, tuple(choices), {level: why for level, why in reasons.items() if why is not None})


def _channels(found: Region, grid: Grid, block: int) -> list[Choice]:
    """One choice a number of channels: shares that are rounded to as many are one option."""
    ratios = sorted(grid.keep_ratios, reverse=True)
    steps = dict(zip(kept_counts(found.wiring, ratios, block=block), ratios, strict=True))
    return [Choice("channels", ratio, block) for ratio in sorted(steps.values())]


def _patches(start: Cut, grid: Grid) -> list[Choice]:
    """One choice a number of patches: rates that need as many are one option, so that no step is listed twice."""
    height, width = start.shape[2:]
    side = min(height, width)
    granularity = grid.granularity or max(SMALLEST_PATCH, -(-side // PATCHES_A_SIDE))
    if granularity > side // 2:
        return []
    steps = {counts(height, width, granularity, rate): rate for rate in sorted(grid.rates, reverse=True)}
    return [Choice("patches", rate, granularity) for _, rate in sorted(steps.items())]


def _exits(wiring: Wiring, places: Sequence[Cut]) -> Iterator[Point]:
    if classes_of(wiring) is None:
        return
    batch = wiring.spec(wiring.outputs[0]).shape[0]
    for before, cut, behind in zip(places, places[1:], places[2:], strict=False):
        heavy = _heavy(wiring, before, cut)
        if not heavy or behind is places[-1] or len(cut.shape) < 3 or cut.shape[0] != batch:
            continue
        try:
            channels_of(cut)
        except SurgeryError:
            continue
        yield Point(f"exit after {_name(wiring, heavy, before, cut)}", cut, cut, (Choice(EXIT),), {})


def _heavy(wiring: Wiring, start: Cut, end: Cut) -> list[int]:
    return [index for index in range(start.position, end.position) if wiring.nodes[index].op_type in HEAVY]


def _name(wiring: Wiring, heavy: Sequence[int], start: Cut, end: Cut, whole: bool = True) -> str:
    """The module that holds a region's heavy nodes, else, or if not `whole`, the first and the last of them."""
    paths = [path for index in heavy if (path := module_path(wiring.nodes[index], wiring.stored))]
    common = ".".join(common_path(paths))
    if common and whole:
        return common
    if paths:
        return " .. ".join(dict.fromkeys((".".join(paths[0]), ".".join(paths[-1]))))
    ends = wiring.nodes[heavy[0]].name or start.tensor, wiring.nodes[heavy[-1]].name or end.tensor
    return " .. ".join(dict.fromkeys(ends))


def _modules(wiring: Wiring, places: Sequence[Cut]) -> set[tuple[int, int]]:
    """Runs of atoms, as (first cut, last cut), that are all of one module and nothing else."""
    prefixes: list[set[tuple[str, ...]]] = []
    for start, end in pairwise(places):
        heavy = _heavy(wiring, start, end)
        paths = [module_path(wiring.nodes[index], wiring.stored) for index in heavy]
        common = common_path(paths)
        prefixes.append({common[:length] for length in range(1, len(common) + 1)})
    runs: set[tuple[int, int]] = set()
    for prefix in set().union(*prefixes):
        inside = [index for index, own in enumerate(prefixes) if prefix in own]
        if len(inside) > 1 and inside[-1] - inside[0] + 1 == len(inside):
            runs.add((inside[0], inside[-1] + 1))
    return runs


def _unique(found: Sequence[Point]) -> tuple[Point, ...]:
    """The same points, with a number behind names that are there twice."""
    often = Counter(point.name for point in found)
    seen: Counter[str] = Counter()
    named = []
    for point in found:
        seen[point.name] += 1
        numbered = f"{point.name} #{seen[point.name]}" if often[point.name] > 1 else point.name
        named.append(replace(point, name=numbered))
    return tuple(named)
