"""What each choice at each decision point costs: the plain description that a plan hands over.

A network is a chain: a trunk piece, a point, a trunk piece, a point, ..., a last trunk piece. At a point one option's
piece runs in the place of the region; an option that ends (an exit) leaves the rest of the chain out. Option 0 of each
point is the region as it is, called `keep`.

Every time is a mean with the variance of *its own* error, which is independent between pieces. What the predictor gets
wrong in the same way for all pieces is one relative spread beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isfinite

from latpred.errors import InputError

__all__ = ["KEEP", "LEVELS", "NOISE_SPREAD", "Costs", "Duration", "OptionCosts", "PointCosts"]

KEEP = "keep"
LEVELS = (KEEP, "exit", "skip", "channels", "patches", "int8", "model")
NOISE_SPREAD = 0.02  # two runs of one session differ by about this much where nothing disturbs them


@dataclass(frozen=True, slots=True)
class Duration:
    """How long something takes.

    Attributes
    ----------
    mean_s : float
        As predicted, in s.
    variance_s2 : float
        Variance of the prediction's own error, in s^2.
    """

    mean_s: float
    variance_s2: float = 0.0


@dataclass(frozen=True, slots=True)
class OptionCosts:
    """One choice at a point.

    Attributes
    ----------
    name : str
    level : str
        One of `LEVELS`.
    time : Duration
        Of its piece or pieces, from the decision on.
    utility : float
        What it is worth when nothing else is said, in any unit; utilities of the points on a path add up.
    ends : bool
        Whether nothing of the chain runs after it, as behind an exit.
    switch_s : float
        Added when the point's last inference took another option, in s.
    peak_bytes : int
        Memory of its pieces, in B.
    """

    name: str
    level: str
    time: Duration
    utility: float
    ends: bool = False
    switch_s: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PointCosts:
    """One decision.

    Attributes
    ----------
    name : str
    before : Duration
        The trunk since the previous point, or since the inference began.
    options : tuple of OptionCosts
        `keep` comes first.
    """

    name: str
    before: Duration
    options: tuple[OptionCosts, ...]


@dataclass(frozen=True, slots=True)
class Costs:
    """All decisions of one network on one device.

    Attributes
    ----------
    model, device : str
        What these costs are of, as `latpred.identity_of` says it: a fingerprint; name, processor, runtime, threads.
    points : tuple of PointCosts
        In the order in which an inference meets them.
    after : Duration
        The trunk behind the last point.
    shared_spread : float
        Standard deviation of the relative error that all pieces share.
    noise_spread : float
        Standard deviation, relative, of one run of the network against another.
    decide_s : float
        What one decision costs, in s.
    frequency_hz : float or None
        Clock of the device while it was measured, in Hz; None where unknown.

    Raises
    ------
    InputError
        When a number is negative or not finite, a name is empty or there twice, a point has no options, or its
        first option is not `keep`.

    Examples
    --------
    >>> keep, skip = OptionCosts("keep", "keep", Duration(0.004), 1.0), OptionCosts("skip", "skip", Duration(0.0), 0.7)
    >>> point = PointCosts("layer3", Duration(0.002), (keep, skip))
    >>> Costs("model", "device", (point,), Duration(0.001), shared_spread=0.03).points[0].options[1].name
    'skip'
    """

    model: str
    device: str
    points: tuple[PointCosts, ...]
    after: Duration
    shared_spread: float
    noise_spread: float = NOISE_SPREAD
    decide_s: float = 0.0
    frequency_hz: float | None = None

    def __post_init__(self) -> None:
        if not self.points:
            raise InputError("a table of decisions needs at least one point, got none: mount one")
        _unique("points", (point.name for point in self.points))
        for point in self.points:
            _check_point(point)
        _check_duration("the trunk after the last point", self.after)
        for name in ("shared_spread", "noise_spread", "decide_s"):
            _check(name, getattr(self, name))
        if self.frequency_hz is not None:
            _check("frequency_hz", self.frequency_hz)


def _check_point(point: PointCosts) -> None:
    where = f"point {point.name!r}"
    if not point.options or point.options[0].level != KEEP:
        came = point.options[0].level if point.options else "no option"
        raise InputError(f"{where}: the first option must be of level {KEEP!r}, got {came}: put it first")
    _unique(f"options of {where}", (option.name for option in point.options))
    _check_duration(f"{where}: the trunk before it", point.before)
    for option in point.options:
        what = f"{where}, option {option.name!r}"
        if option.level not in LEVELS:
            raise InputError(f"{what}: the level must be one of {', '.join(LEVELS)}, got {option.level!r}")
        _check_duration(what, option.time)
        _check(f"{what}: switch_s", option.switch_s)
        _check(f"{what}: peak_bytes", option.peak_bytes)
        _check(f"{what}: utility", option.utility, least=-inf)


def _check_duration(what: str, duration: Duration) -> None:
    _check(f"{what}: mean_s", duration.mean_s)
    _check(f"{what}: variance_s2", duration.variance_s2)


def _check(what: str, value: float, least: float = 0.0) -> None:
    if not isfinite(value) or value < least:
        wanted = "finite" if least == -inf else "finite and not negative"
        raise InputError(f"{what} must be {wanted}, got {value}: correct the costs")


def _unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name or name in seen:
            raise InputError(f"{what} need names of their own, got {name!r}{' twice' if name else ''}: rename one")
        seen.add(name)
