"""Gradient-boosted trees of many kinds as one set of numpy arrays, evaluated together.

LightGBM grows the trees; here its text models are compiled once, so that predicting needs numpy alone. Nodes lie in
preorder: the left child of a node is the next one, the right child is `jump` nodes on; a leaf jumps 0 and holds its
value where others hold their threshold. Rows of all kinds walk down together, one numpy step a level.

Missing values need no branch: a row is laid out twice, with NaN as minus infinity (goes left) and as plus infinity
(goes right), and each node reads the half that its default direction asks for.

Features are float32. LightGBM compares them with float64 thresholds; a threshold rounded down to float32 splits
float32 features the same way, so each row ends in the leaf that LightGBM finds.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latpred.errors import ArtefactError

__all__ = ["Forest"]

PAIRS_AT_ONCE = 1 << 17  # rows x trees walked together: bounds memory, stays in cache
DEFAULT_LEFT, MISSING_TYPE_SHIFT, CATEGORICAL = 2, 2, 1  # bits of LightGBM's decision_type
MISSING_AS_ZERO, MISSING_IS_NAN = 1, 2


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees of several kinds.

    Attributes
    ----------
    features : tuple of str
        Names of the columns of a row, in order.
    kinds : tuple of str
        Whose trees these are.
    column : ndarray of int16, shape (nodes,)
        Column of the doubled row that a node reads; leaves read the last one, which always goes right.
    value : ndarray of float32, shape (nodes,)
        Threshold of a node, value of a leaf.
    jump : ndarray of uint16, shape (nodes,)
        Distance to the right child; 0 at a leaf.
    roots : ndarray of int32, shape (trees,)
    first_tree : ndarray of int32, shape (kinds + 1,)
        Trees of kind ``i`` are ``first_tree[i]`` to ``first_tree[i + 1]``.
    """

    features: tuple[str, ...]
    kinds: tuple[str, ...]
    column: NDArray[np.int16]
    value: NDArray[np.float32]
    jump: NDArray[np.uint16]
    roots: NDArray[np.int32]
    first_tree: NDArray[np.int32]

    @classmethod
    def compile(cls, models: Mapping[str, str], features: Sequence[str]) -> Forest:
        """Trees from LightGBM's text models.

        Parameters
        ----------
        models : mapping of str to str
            Kind -> ``booster.model_to_string()``; its feature names must be among `features`.
        features : sequence of str
            Columns of the rows that will be predicted.

        Raises
        ------
        ArtefactError
            When a model has categorical splits, linear leaves, zeros as missing values, or unknown features.
        """
        nodes = _Nodes(features)
        roots: list[int] = []
        first_tree = [0]
        for kind, text in models.items():
            for tree in _trees(text, kind):
                roots.append(nodes.count)
                nodes.add_tree(tree)
            first_tree.append(len(roots))
        return cls(
            tuple(features),
            tuple(models),
            np.array(nodes.column, np.int16),
            np.array(nodes.value, np.float32),
            np.array(nodes.jump, np.uint16),
            np.array(roots, np.int32),
            np.array(first_tree, np.int32),
        )

    def predict(self, rows: NDArray[np.float32], kinds: Sequence[str]) -> NDArray[np.float64]:
        """Sum of the leaf values of each row over the trees of its kind.

        Parameters
        ----------
        rows : ndarray of float32, shape (n, len(features))
            NaN where a feature is missing; no infinities.
        kinds : sequence of str, length n
            Kind of each row; each must be one of `Forest.kinds`.

        Returns
        -------
        ndarray of float64, shape (n,)
            0 for a kind of no trees.
        """
        index = {kind: i for i, kind in enumerate(self.kinds)}
        of_row = np.array([index[kind] for kind in kinds], np.intp)
        counts = np.diff(self.first_tree)[of_row]
        sums = np.zeros(len(kinds))
        doubled = _doubled(rows)
        start = 0
        while start < len(kinds):
            room = np.searchsorted(np.cumsum(counts[start:]), PAIRS_AT_ONCE, "right")
            stop = start + max(1, int(room))
            sums[start:stop] = self._sums(doubled[start:stop], self.first_tree[of_row[start:stop]], counts[start:stop])
            start = stop
        return sums

    def _sums(
        self,
        doubled: NDArray[np.float32],
        first: NDArray[np.int32],
        counts: NDArray[np.int32],
    ) -> NDArray[np.float64]:
        ends = np.cumsum(counts)
        row = np.repeat(np.arange(len(counts)), counts)
        if row.size == 0:
            return np.zeros(len(counts))
        node = self.roots[np.arange(ends[-1]) - np.repeat(ends - counts - first, counts)].astype(np.intp)
        offset = row * doubled.shape[1]
        flat = doubled.ravel()
        walking = np.arange(row.size)
        at, base = node, offset
        while walking.size:
            jump = self.jump[at]
            inner = jump != 0
            if not inner.all():
                node[walking] = at
                walking, at, base, jump = walking[inner], at[inner], base[inner], jump[inner]
            left = flat[base + self.column[at]] <= self.value[at]
            at = at + np.where(left, np.uint16(1), jump)
        return np.bincount(row, self.value[node].astype(np.float64), len(counts)).astype(np.float64)

    def save(self, path: str | Path) -> None:
        """Write as compressed npz; no pickle."""
        np.savez_compressed(
            path,
            features=np.array(self.features, np.str_),
            kinds=np.array(self.kinds, np.str_),
            column=self.column,
            value=self.value,
            jump=self.jump,
            roots=self.roots,
            first_tree=self.first_tree,
        )

    @classmethod
    def load(cls, path: str | Path) -> Forest:
        """Read what `save` wrote.

        Raises
        ------
        ArtefactError
            When the file is missing, broken, or its arrays do not fit each other.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
            forest = cls(
                tuple(arrays["features"].tolist()),
                tuple(arrays["kinds"].tolist()),
                *(arrays[name] for name in ("column", "value", "jump", "roots", "first_tree")),
            )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ArtefactError(f"{path}: a forest must be an npz file of trees ({error}): fit again") from error
        forest._check(path)
        return forest

    def _check(self, path: str | Path) -> None:
        nodes = len(self.column)
        sound = (
            len(self.value) == len(self.jump) == nodes
            and len(self.first_tree) == len(self.kinds) + 1
            and (len(self.roots) == 0 or (self.roots.min() >= 0 and self.roots.max() < nodes))
            and (nodes == 0 or (self.column.min() >= 0 and self.column.max() <= 2 * len(self.features)))
            and bool((np.arange(nodes) + self.jump < nodes).all())
            and (len(self.first_tree) == 0 or (self.first_tree[-1] == len(self.roots) and self.first_tree[0] == 0))
            and bool((np.diff(self.first_tree) >= 0).all())
        )
        if not sound:
            raise ArtefactError(f"{path}: the forest's arrays do not fit each other: fit again")


def _doubled(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows with NaN as -inf, then with NaN as +inf, then one +inf column for leaves."""
    missing = np.isnan(rows)
    last = np.full((len(rows), 1), np.inf, np.float32)
    infinity = np.float32(np.inf)
    return np.concatenate([np.where(missing, -infinity, rows), np.where(missing, infinity, rows), last], axis=1)


@dataclass(frozen=True, slots=True)
class _Tree:
    """One tree in LightGBM's own numbering: children below 0 are leaves, ``~child`` is their index."""

    names: list[str]
    split: list[int]
    threshold: list[float]
    decision: list[int]
    left: list[int]
    right: list[int]
    leaf: list[float]


class _Nodes:
    """Node arrays while they grow."""

    def __init__(self, features: Sequence[str]) -> None:
        self.width = len(features)
        self.index = {name: i for i, name in enumerate(features)}
        self.column: list[int] = []
        self.value: list[float] = []
        self.jump: list[int] = []

    @property
    def count(self) -> int:
        return len(self.column)

    def add_tree(self, tree: _Tree) -> None:
        # An explicit stack in place of recursion: trees may be deep.
        stack: list[tuple[int, int | None]] = [(0 if tree.split else ~0, None)]
        while stack:
            child, parent = stack.pop()
            if parent is not None:
                self.jump[parent] = self.count - parent
            here = self.count
            if child < 0:
                self._append(2 * self.width, tree.leaf[~child])
                continue
            decision = tree.decision[child]
            missing = (decision >> MISSING_TYPE_SHIFT) & 3
            if decision & CATEGORICAL or missing == MISSING_AS_ZERO:
                raise ArtefactError("compiled trees need numerical splits and NaN as missing value: fit without others")
            # Without NaN in training, LightGBM reads NaN as 0.
            left = bool(decision & DEFAULT_LEFT) if missing == MISSING_IS_NAN else tree.threshold[child] >= 0
            name = tree.names[tree.split[child]]
            if name not in self.index:
                raise ArtefactError(f"the trees read feature {name!r}, which this latpred does not compute: fit again")
            self._append(self.index[name] + (0 if left else self.width), _float32_below(tree.threshold[child]))
            stack.append((tree.right[child], here))
            stack.append((tree.left[child], None))

    def _append(self, column: int, value: float) -> None:
        self.column.append(column)
        self.value.append(value)
        self.jump.append(0)


def _float32_below(threshold: float) -> float:
    """The largest float32 that is not above a float64 threshold."""
    limit = float(np.finfo(np.float32).max)
    if threshold >= limit:
        return limit
    rounded = np.float32(max(threshold, -limit))
    if float(rounded) > threshold:
        rounded = np.nextafter(rounded, np.float32(-np.inf), dtype=np.float32)
    return float(rounded)


def _trees(text: str, kind: str) -> Iterator[_Tree]:
    """Trees of a LightGBM text model."""
    header, *sections = text.split("\nTree=")
    names = next((line[14:].split() for line in header.splitlines() if line.startswith("feature_names=")), None)
    if names is None:
        raise ArtefactError(f"the model of kind {kind!r} must be LightGBM's text format: no feature_names in it")
    for section in sections:
        fields = dict(line.split("=", 1) for line in section.split("\n\n")[0].splitlines()[1:] if "=" in line)
        if fields.get("is_linear", "0") != "0" or int(fields.get("num_cat", "0")):
            raise ArtefactError(f"the model of kind {kind!r} must have constant leaves and numerical splits only")

        def numbers(name: str, fields: dict[str, str] = fields) -> list[float]:
            return [float(v) for v in fields.get(name, "").split()]

        def integers(name: str, fields: dict[str, str] = fields) -> list[int]:
            return [int(v) for v in fields.get(name, "").split()]

        yield _Tree(
            names, integers("split_feature"), numbers("threshold"), integers("decision_type"), integers("left_child"),
            integers("right_child"), numbers("leaf_value"),
        )  # fmt: skip
