"""A table of decisions: the costs of a plan as immutable arrays, kept in one file.

`Table.gate` makes of it what answers while a network runs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latpred.decide import layout
from latpred.decide.costs import LEVELS, Costs, Duration, OptionCosts, PointCosts
from latpred.errors import ArtefactError, InputError

if TYPE_CHECKING:
    from latpred.decide.gate import Gate
    from latpred.decide.observation import Policy

__all__ = ["Table", "Utilities", "compile_table"]

Utilities = Mapping[str, Mapping[str, float]]  # point -> option -> what it is worth

# Array of the file -> its dtype. Options of all points lie one after the other.
COLUMNS = {
    "first_option": "<u4",
    "mean_s": "<f8",
    "variance_s2": "<f8",
    "utility": "<f8",
    "switch_s": "<f8",
    "peak_bytes": "<u8",
    "level": "|u1",
    "ends": "|u1",
    "trunk_mean_s": "<f8",
    "trunk_variance_s2": "<f8",
}
NUMBERS = ("shared_spread", "noise_spread", "decide_s", "frequency_hz")  # arrays of no dimensions
OF_OPTIONS = ("mean_s", "variance_s2", "utility", "switch_s", "peak_bytes", "level", "ends")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Costs of all options of all points, as read-only arrays.

    Attributes
    ----------
    model, device : str
        What it is of, as `latpred.identity_of` says it: fingerprint; name, processor, runtime, threads.
    points : tuple of str
        Names, in the order in which an inference meets them.
    options : tuple of tuple of str
        Names, point by point; `keep` comes first.
    first_option : ndarray of uint32, shape (points + 1,)
        Options of point ``i`` lie from ``first_option[i]`` to ``first_option[i + 1]`` in the arrays of options.
    mean_s, variance_s2 : ndarray of float64, shape (options,)
        What an option takes, in s, and the variance of its own error, in s^2.
    utility : ndarray of float64, shape (options,)
        What it is worth where nothing else is said.
    switch_s : ndarray of float64, shape (options,)
        Added where the point's last inference took another option, in s.
    peak_bytes : ndarray of uint64, shape (options,)
        Memory of what runs at the point, in B.
    level : ndarray of uint8, shape (options,)
        Index in `latpred.decide.costs.LEVELS`.
    ends : ndarray of uint8, shape (options,)
        1 where nothing runs after the option.
    trunk_mean_s, trunk_variance_s2 : ndarray of float64, shape (points + 1,)
        The trunk before each point, in s and s^2; the last one is the trunk behind the last point.
    shared_spread, noise_spread : float
        Relative standard deviations: of the error that all pieces share, of one run against another.
    decide_s : float
        What one decision costs, in s.
    frequency_hz : float
        Clock that the times are of, in Hz; 0 where unknown.
    """

    model: str
    device: str
    points: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]
    first_option: NDArray[np.uint32]
    mean_s: NDArray[np.float64]
    variance_s2: NDArray[np.float64]
    utility: NDArray[np.float64]
    switch_s: NDArray[np.float64]
    peak_bytes: NDArray[np.uint64]
    level: NDArray[np.uint8]
    ends: NDArray[np.uint8]
    trunk_mean_s: NDArray[np.float64]
    trunk_variance_s2: NDArray[np.float64]
    shared_spread: float
    noise_spread: float
    decide_s: float
    frequency_hz: float

    def __post_init__(self) -> None:
        for name in COLUMNS:
            getattr(self, name).setflags(write=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(int(getattr(self, name).nbytes) for name in COLUMNS)

    def costs(self) -> Costs:
        """What the table was compiled from.

        Raises
        ------
        InputError
            When a number or a name cannot be of a plan, as in a file that another program wrote.
        """
        rows = zip(
            [name for names in self.options for name in names],
            [LEVELS[level] if level < len(LEVELS) else f"number {level}" for level in self.level.tolist()],
            map(Duration, self.mean_s.tolist(), self.variance_s2.tolist()),
            self.utility.tolist(),
            self.ends.astype(bool).tolist(),
            self.switch_s.tolist(),
            self.peak_bytes.tolist(),
            strict=True,
        )
        options = [OptionCosts(*row) for row in rows]
        trunk = [*map(Duration, self.trunk_mean_s.tolist(), self.trunk_variance_s2.tolist())]
        first = self.first_option.tolist()
        return Costs(
            self.model,
            self.device,
            tuple(
                PointCosts(point, trunk[number], tuple(options[first[number] : first[number + 1]]))
                for number, point in enumerate(self.points)
            ),
            trunk[-1],
            self.shared_spread,
            self.noise_spread,
            self.decide_s,
            self.frequency_hz or None,
        )

    def utilities(self) -> dict[str, dict[str, float]]:
        """What each option is worth when nothing else is said: point -> option -> utility; made to be edited."""
        return {
            point: dict(zip(names, self.utility[first : first + len(names)].tolist(), strict=True))
            for point, names, first in zip(self.points, self.options, self.first_option.tolist(), strict=False)
        }

    def utility_of(self, utilities: Utilities | None) -> NDArray[np.float64]:
        """Utilities as one array.

        Parameters
        ----------
        utilities
            Of every option of every point; None takes the table's own.

        Returns
        -------
        ndarray of float64, shape (options,)

        Raises
        ------
        InputError
            When a point or an option is unknown or missing, or a utility is no finite number.
        """
        if utilities is None:
            return self.utility
        _same_names("point", "the table", self.points, utilities)
        values: list[float] = []
        for point, names in zip(self.points, self.options, strict=True):
            given = utilities[point]
            if not isinstance(given, Mapping):
                raise InputError(f"utilities of point {point!r} must map options to numbers, got {given!r}")
            _same_names("option", f"point {point!r}", names, given)
            for name in names:
                value = given[name]
                if not (isinstance(value, Real) and abs(value) <= sys.float_info.max):
                    raise InputError(f"the utility of {point!r}, {name!r} must be a finite number, got {value!r}")
                values.append(float(value))
        return np.array(values)

    def gate(
        self,
        deadline_s: float,
        confidence: float,
        utilities: Utilities | None = None,
        policy: str | Policy = "optimal",
        clock: Callable[[], float] | None = time.perf_counter,
        model: str | None = None,
        device: str | None = None,
    ) -> Gate:
        """What decides while a network runs.

        Parameters
        ----------
        deadline_s
            From the beginning of an inference to its end, in s.
        confidence
            Share of the inferences that shall meet the deadline, between 0 and 1.
        utilities
            Point -> option -> what it is worth, complete; None takes the table's own. Utilities of a path add up.
        policy
            ``"optimal"`` (all points together), ``"safe-greedy"`` (the best now such that the least later still fits),
            or a function of an `Observation` that returns an option.
        clock
            Seconds, never going back; None where only `Gate.spent` moves time.
        model, device
            Where given, the table must be of these: `latpred.identity_of` makes both.

        Raises
        ------
        InputError
            When the deadline, the confidence, a utility or the policy cannot be used.
        ArtefactError
            When the table is of another model or device.
        """
        from latpred.decide.gate import Gate

        self.require(model, device)
        return Gate(self, deadline_s, confidence, utilities, policy, clock)

    def require(self, model: str | None = None, device: str | None = None) -> None:
        """Raise ArtefactError unless the table is of this model and this device; None takes any."""
        for what, wanted, own in (("model", model, self.model), ("device", device, self.device)):
            if wanted is not None and wanted != own:
                raise ArtefactError(
                    f"a table of {what} {wanted!r} is needed, this one is of {own!r}: compile one for it"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as one file; `latpred.decide.layout` says how it is laid out."""
        header = {
            "model": self.model,
            "device": self.device,
            "levels": list(LEVELS),
            "points": [
                {"name": point, "options": list(names)} for point, names in zip(self.points, self.options, strict=True)
            ],
        }
        numbers = {name: np.array(getattr(self, name), "<f8") for name in NUMBERS}
        layout.write(path, header, {name: getattr(self, name) for name in COLUMNS} | numbers)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: str | None = None, device: str | None = None) -> Table:
        """Read a table; nothing in the file is executed.

        Parameters
        ----------
        path
            What `save` wrote.
        model, device
            Where given, the table must be of these: ``Table.load(path, *latpred.identity_of(predictor, model))``.

        Raises
        ------
        ArtefactError
            When the file is no table, of another schema, model or device, cut short, fails its checksum, or holds
            numbers that no plan has.
        """
        header, arrays = layout.read(path)
        try:
            points = tuple(str(point["name"]) for point in header["points"])
            options = tuple(tuple(map(str, point["options"])) for point in header["points"])
            if header["levels"] != list(LEVELS):
                raise ValueError(f"levels {header['levels']}")
            _check_shapes(options, arrays)
            columns: dict[str, Any] = {name: arrays[name] for name in COLUMNS}
            numbers: dict[str, Any] = {name: float(arrays[name]) for name in NUMBERS}
            table = cls(str(header["model"]), str(header["device"]), points, options, **columns, **numbers)
            table.costs()
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"{path}: names and arrays do not fit each other ({error}): compile again") from error
        except InputError as error:
            raise ArtefactError(f"{path}: {error}, then compile again") from error
        table.require(model, device)
        return table


def compile_table(costs: Costs) -> Table:
    """Costs as arrays.

    Examples
    --------
    >>> from latpred.decide.costs import Duration, OptionCosts, PointCosts
    >>> keep, skip = OptionCosts("keep", "keep", Duration(0.004), 1.0), OptionCosts("skip", "skip", Duration(0.0), 0.7)
    >>> point = PointCosts("layer3", Duration(0.002), (keep, skip))
    >>> table = compile_table(Costs("model", "device", (point,), Duration(0.001), shared_spread=0.03))
    >>> table.mean_s.tolist(), table.trunk_mean_s.tolist()
    ([0.004, 0.0], [0.002, 0.001])
    """
    options = [option for point in costs.points for option in point.options]
    trunk = [*(point.before for point in costs.points), costs.after]
    columns: dict[str, list[float]] = {
        "first_option": np.cumsum([0, *(len(point.options) for point in costs.points)]).tolist(),
        "mean_s": [option.time.mean_s for option in options],
        "variance_s2": [option.time.variance_s2 for option in options],
        "utility": [option.utility for option in options],
        "switch_s": [option.switch_s for option in options],
        "peak_bytes": [option.peak_bytes for option in options],
        "level": [LEVELS.index(option.level) for option in options],
        "ends": [int(option.ends) for option in options],
        "trunk_mean_s": [piece.mean_s for piece in trunk],
        "trunk_variance_s2": [piece.variance_s2 for piece in trunk],
    }
    arrays: dict[str, Any] = {name: np.array(values, COLUMNS[name]) for name, values in columns.items()}
    return Table(
        costs.model,
        costs.device,
        tuple(point.name for point in costs.points),
        tuple(tuple(option.name for option in point.options) for point in costs.points),
        **arrays,
        shared_spread=costs.shared_spread,
        noise_spread=costs.noise_spread,
        decide_s=costs.decide_s,
        frequency_hz=costs.frequency_hz or 0.0,
    )


def _same_names(what: str, owner: str, wanted: tuple[str, ...], given: Mapping[str, object]) -> None:
    unknown = [str(name) for name in given if name not in wanted]
    missing = [name for name in wanted if name not in given]
    if unknown or missing:
        said = " and ".join(
            f"{label} {', '.join(map(repr, names))}"
            for label, names in (("unknown", unknown), ("missing", missing))
            if names
        )
        raise InputError(
            f"utilities must name each {what} of {owner} ({', '.join(wanted)}); {said}: start from table.utilities()"
        )


def _check_shapes(options: tuple[tuple[str, ...], ...], arrays: Mapping[str, NDArray[Any]]) -> None:
    counts = [len(names) for names in options]
    if not counts or min(counts) == 0:
        raise ValueError("a point without options")
    shapes: dict[str, tuple[int, ...]] = {name: (sum(counts),) for name in OF_OPTIONS}
    shapes |= dict.fromkeys(("first_option", "trunk_mean_s", "trunk_variance_s2"), (len(counts) + 1,))
    shapes |= dict.fromkeys(NUMBERS, ())
    dtypes = COLUMNS | dict.fromkeys(NUMBERS, "<f8")
    for name, shape in shapes.items():
        if arrays[name].shape != shape or arrays[name].dtype.str != dtypes[name]:
            raise ValueError(f"{name} is {arrays[name].dtype.str} of shape {arrays[name].shape}")
    if arrays["first_option"].tolist() != np.cumsum([0, *counts]).tolist():
        raise ValueError("first_option does not count the options")
