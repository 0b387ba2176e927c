"""From kernels to a network: what lies between kernels, and how far the sum may be off.

Between kernels
---------------
``whole = scale * sum of kernels + per_launch_s * launches + per_operand_s * operands + per_dim_s * dims + fixed_s``,
fitted on composite graphs that were timed whole and kernel by kernel. The middle terms may be negative: a runtime's
profiler writes down the shape of every operand before it stops its clock, which the unprofiled run does not spend.

The interval
------------
The logarithm of measured over predicted latency is scaled by what is expected of a network of these kernels:

    spread^2 = floor^2 + (launches * launch / latency)^2
             + sum over kinds (spread of the kind)^2 * (shared^2 * share^2 + own^2 * sum over shapes share^2)

Errors of one kind are partly shared by all its shapes and partly each shape's own, which average out unless few shapes
take most of the time. What lies between kernels is uncertain too, which tells in networks of many small kernels. How
much each of the four weighs is what makes the errors of held-out composite graphs likeliest. The multiple of this
spread that covers a given share of them is their conformal quantile.

What cutting costs
------------------
A network that runs as a chain of graphs takes longer than whole: outputs leave their layout, memory is not taken over,
every graph has to start. Pieces are predicted; what they take together more than the network is

``chain / whole - 1 = factor * predicted + per_cut * cuts``,

fitted on composite graphs that ran both ways. What that leaves of their difference is how far any altered network may
be from what is said of it.

References
----------
Lei, G'Sell, Rinaldo, Tibshirani, Wasserman: Distribution-free predictive inference for regression. JASA 113, 2018.
Lange, Little, Taylor: Robust statistical modeling using the t distribution. JASA 84, 1989 (the likelihood).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from math import ceil, exp, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latpred.kernels.kernel import Kernel

__all__ = [
    "Between",
    "Calibration",
    "Cutting",
    "Launches",
    "Parts",
    "Spread",
    "conformal_multiples",
    "fit_between",
    "fit_cutting",
    "fit_spread",
    "kind_spread",
    "parts_of",
]

Floats = NDArray[np.float64]

UNKNOWN_SPREAD = 0.7  # log of a factor of 2: what is assumed of a kind that nobody measured
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
DEFAULT_FLOOR = 0.01  # a network in another process, minutes later, is off by so much at least
FREEDOM = 4.0  # degrees of, of the t distribution that scaled errors are taken to have
FEWEST_CHAINS = 8
CHAIN_COVERAGE = 0.9
PRIOR = 0.7  # log of a factor of 2: how far a weight may be from what is expected of it


class Launches(NamedTuple):
    """How much a runtime's profiler has to write down for one inference."""

    number: float
    operands: float = 0.0  # inputs and outputs of all launches
    dims: float = 0.0  # of all these operands

    @classmethod
    def of(cls, kernels: Iterable[Kernel]) -> Launches:
        """Launches of a network, repetitions included."""
        number = operands = dims = 0
        for kernel in kernels:
            number += kernel.repeat
            operands += kernel.repeat * (len(kernel.inputs) + len(kernel.outputs))
            dims += kernel.repeat * sum(len(spec.shape) for spec in (*kernel.inputs, *kernel.outputs))
        return cls(number, operands, dims)


@dataclass(frozen=True, slots=True)
class Between:
    """Whole-network latency from the sum of its kernels."""

    scale: float = 1.0
    per_launch_s: float = 0.0
    per_operand_s: float = 0.0
    per_dim_s: float = 0.0
    fixed_s: float = 0.0

    def whole_s(self, kernels_s: float, launches: Launches) -> float:
        """Latency of a network in s; never below a third of its kernels.

        Examples
        --------
        >>> between = Between(1.0, per_launch_s=-1e-6, fixed_s=5e-6)
        >>> between.whole_s(1e-3, Launches(100))  # 1000 us - 100 us + 5 us
        0.000905
        """
        whole_s = (
            self.scale * kernels_s
            + self.per_launch_s * launches.number
            + self.per_operand_s * launches.operands
            + self.per_dim_s * launches.dims
            + self.fixed_s
        )
        return max(whole_s, kernels_s / 3)

    def times(self, factor: float) -> Between:
        """Every term times a factor."""
        return Between(*(factor * getattr(self, field.name) for field in fields(self)))


class Parts(NamedTuple):
    """What a network's spread is made of, before it is weighed."""

    shared: float  # sum over kinds of (spread * share of time)^2
    own: float  # the same over shapes
    launches: float  # (launches per second of latency)^2


@dataclass(frozen=True, slots=True)
class Spread:
    """How the expected size of a network's log error goes with its parts.

    Examples
    --------
    >>> round(Spread(floor=0.03, shared=0.5, own=1.0, launch_s=0.0).of(Parts(0.0064, 0.0, 0.0)), 6)  # 3, 4, 5
    0.05
    """

    floor: float = DEFAULT_FLOOR  # of a network whose kernels are all known exactly
    shared: float = 0.7
    own: float = 0.7
    launch_s: float = 1e-6  # of what lies between two kernels

    def of(self, parts: Parts) -> float:
        """The spread of one network."""
        return sqrt(
            self.floor**2 + self.shared**2 * parts.shared + self.own**2 * parts.own + self.launch_s**2 * parts.launches
        )


@dataclass(frozen=True, slots=True)
class Cutting:
    """What a network costs more as a chain of graphs."""

    factor: float = 1.0  # measured over predicted
    per_cut: float = 0.0  # share of the network's latency that each cut adds beyond that
    spread: float = 0.02  # standard deviation of what is left, as a share of the network's latency

    def charged_s(self, predicted_s: float, cuts: int, whole_s: float) -> float:
        """What a network that takes `whole_s` pays for cuts whose pieces were predicted to take `predicted_s` more.

        Examples
        --------
        >>> round(Cutting(1.5, 0.003).charged_s(2e-4, 2, 0.01) * 1e6, 6)  # 1.5 x 200 us + 2 x 30 us
        360.0
        """
        return self.factor * predicted_s + self.per_cut * cuts * whole_s


@dataclass(frozen=True, slots=True)
class Calibration:
    """How wide an interval has to be."""

    spread: Spread = field(default_factory=Spread)
    kinds: Mapping[str, float] = field(default_factory=dict)  # spread of each kind, as a log ratio
    multiples: tuple[tuple[float, float], ...] = ((0.5, 0.7), (0.9, 1.7))  # (coverage, multiple of the spread)
    cutting: Cutting = field(default_factory=Cutting)

    def interval_s(self, latency_s: float, spread: float, coverage: float) -> tuple[float, float]:
        """Bounds in s around a prediction.

        Examples
        --------
        >>> low_s, high_s = Calibration(multiples=((0.5, 1.0), (0.9, 2.0))).interval_s(1.0, 0.1, 0.9)
        >>> round(low_s, 3), round(high_s, 3)  # exp(-0.2), exp(0.2)
        (0.819, 1.221)
        """
        half = self.multiple(coverage) * spread
        return latency_s * exp(-half), latency_s * exp(half)

    def multiple(self, coverage: float) -> float:
        """Multiple of the spread for a coverage from 0 to 1; beyond the last one known, it grows as 1/sqrt(1 - c)."""
        known, multiples = zip(*((0.0, 0.0), *self.multiples), strict=True)
        if coverage > known[-1]:
            return float(multiples[-1] * sqrt((1 - known[-1]) / (1 - coverage)))
        return float(np.interp(coverage, known, multiples))

    def spread_of(self, kinds: Sequence[str], latencies_s: ArrayLike, shapes: Sequence[int], launches: float) -> float:
        """Spread of a network of these kernels; arguments as of `parts_of`."""
        return self.spread.of(parts_of(self.kinds, kinds, np.asarray(latencies_s, np.float64), shapes, launches))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; `from_dict` reads them back."""
        return {
            "spread": asdict(self.spread),
            "kinds": dict(self.kinds),
            "multiples": [list(pair) for pair in self.multiples],
            "cutting": asdict(self.cutting),
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Calibration:
        """A calibration from what `to_dict` gave."""
        return cls(
            Spread(**{field.name: float(row["spread"][field.name]) for field in fields(Spread)}),
            {str(kind): float(spread) for kind, spread in row["kinds"].items()},
            tuple((float(coverage), float(multiple)) for coverage, multiple in row["multiples"]),
            Cutting(**{field.name: float(row["cutting"][field.name]) for field in fields(Cutting)}),
        )


def parts_of(
    spreads: Mapping[str, float], kinds: Sequence[str], latencies_s: Floats, shapes: Sequence[int], launches: float
) -> Parts:
    """What the spread of a network is made of.

    Parameters
    ----------
    spreads : mapping
        Kind -> spread of its held-out log errors; what is not there counts as `UNKNOWN_SPREAD`.
    kinds : sequence of str, length n
    latencies_s : ndarray, shape (n,)
        What each kernel contributes, in s, its repetitions included.
    shapes : sequence of int, length n
        Equal numbers for kernels of equal shape: their errors are the same error.
    launches : float
        Of the whole network, repetitions included.

    Examples
    --------
    Two shapes of one kind take half of the time each:

    >>> [round(value, 4) for value in parts_of({"a": 0.1}, ["a", "a"], np.array([1.0, 1.0]), [0, 1], 4)]
    [0.01, 0.005, 4.0]
    """
    total_s = float(latencies_s.sum())
    if total_s <= 0:
        return Parts(UNKNOWN_SPREAD**2, UNKNOWN_SPREAD**2, 0.0)
    of_shape: dict[str, dict[int, float]] = {}
    for kind, share, shape in zip(kinds, (latencies_s / total_s).tolist(), shapes, strict=True):
        shares = of_shape.setdefault(kind, {})
        shares[shape] = shares.get(shape, 0.0) + share
    shared = own = 0.0
    for kind, shares in of_shape.items():
        variance = spreads.get(kind, UNKNOWN_SPREAD) ** 2
        shared += variance * sum(shares.values()) ** 2
        own += variance * sum(value**2 for value in shares.values())
    return Parts(shared, own, (launches / total_s) ** 2)


def fit_spread(log_errors: ArrayLike, parts: Sequence[Parts], expected: Spread) -> Spread:
    """The weights that make the errors of held-out composite graphs likeliest.

    Scaled errors are taken to follow Student's t distribution. Each weight is drawn to what is expected of it: few
    graphs say little, and no graph tells a term that is next to nothing in all of them.

    Parameters
    ----------
    log_errors : array_like, shape (n,)
    parts : sequence of Parts, length n
    expected : Spread
    """
    from scipy.optimize import minimize  # here, because predicting imports this module and needs none of it

    if not len(parts):
        return expected
    squares = np.asarray(log_errors, np.float64) ** 2
    design = np.column_stack([np.ones(len(parts)), np.asarray(parts)])
    start = np.log(astuple(expected))

    def unlikeliness(logs: Floats) -> float:
        variance = design @ np.exp(2.0 * logs)
        misses = 0.5 * np.log(variance) + (FREEDOM + 1) / 2 * np.log1p(squares / (FREEDOM * variance))
        return float(misses.sum() + 0.5 * (((logs - start) / PRIOR) ** 2).sum())

    found = minimize(unlikeliness, start, method="Nelder-Mead", options={"maxiter": 2000, "xatol": 1e-3, "fatol": 1e-4})
    return Spread(*(float(value) for value in np.exp(found.x)))


def kind_spread(log_errors: Floats, latencies_s: Floats) -> float:
    """Spread of one kind: the size below which 68 % of its held-out log errors lie, slow kernels weighing more.

    A handful of samples says little: the spread is drawn towards `UNKNOWN_SPREAD` as if four of such size had been
    seen too.
    """
    if not len(log_errors):
        return UNKNOWN_SPREAD
    weight = np.sqrt(latencies_s / latencies_s.mean())
    sizes = np.append(np.abs(log_errors), np.full(4, UNKNOWN_SPREAD))
    weight = np.append(weight, np.ones(4))
    order = np.argsort(sizes)
    reached = np.cumsum(weight[order])
    return float(sizes[order][np.searchsorted(reached, 0.68 * reached[-1])])


def conformal_multiples(log_errors: Floats, spreads: Floats) -> tuple[tuple[float, float], ...]:
    """Multiples of the spread that cover given shares of held-out networks, by the split-conformal quantile.

    Of n networks the ``ceil((n + 1) * coverage)``-th smallest scaled error is taken; coverages that need more
    networks than there are take the largest.

    Examples
    --------
    >>> errors = np.arange(1, 20) / 100  # 19 networks: the 18th covers 90 %
    >>> round(dict(conformal_multiples(errors, np.ones(19)))[0.9], 4)
    0.18
    """
    scaled = np.sort(np.abs(log_errors) / spreads)
    count = len(scaled)
    if count == 0:
        return Calibration().multiples
    return tuple(
        (coverage, float(scaled[min(ceil(round((count + 1) * coverage, 9)), count) - 1])) for coverage in COVERAGES
    )


def fit_between(kernels_s: ArrayLike, launches: Sequence[Launches], whole_s: ArrayLike) -> Between:
    """What lies between kernels, from composite graphs measured whole and kernel by kernel.

    Relative errors are minimised, outliers weighing less (Huber), with a pull towards "kernels simply add up".

    Parameters
    ----------
    kernels_s : array_like, shape (n,)
        Sum of the measured kernels of each graph, in s.
    launches : sequence of Launches, length n
    whole_s : array_like, shape (n,)
        Latency of each whole graph without the profiler, in s.
    """
    whole = np.asarray(whole_s, np.float64)
    if not len(whole):
        return Between()
    design = np.column_stack([np.asarray(kernels_s), np.array(launches), np.ones(len(whole))]) / whole[:, None]
    # Prior: as much as one graph that is off by 5 % says scale 1 +- 0.03, 0 +- 2 us a launch, 0.5 an operand, 0.1 a
    # dim, and 0 +- 20 us a run.
    expected, width = np.array([1.0, 0.0, 0.0, 0.0, 0.0]), np.array([0.03, 2e-6, 0.5e-6, 0.1e-6, 20e-6])
    return Between(*_robust(design, np.ones(len(whole)), expected, width, noise=0.05))


def _robust(design: Floats, target: Floats, expected: Floats, width: Floats, noise: float) -> list[float]:
    """Least squares with outliers weighing less (Huber), coefficients drawn to what is expected of them."""
    weight = np.ones(len(target))
    solution = expected
    for _ in range(20):
        left = design * (np.sqrt(weight) / noise)[:, None]
        right = (target - design @ expected) * np.sqrt(weight) / noise
        matrix = left.T @ left + np.diag(1 / width**2)
        solution = expected + np.linalg.solve(matrix, left.T @ right)
        residual = np.abs(design @ solution - target)
        noise = float(np.clip(1.4826 * np.median(residual), 0.005, 0.2))
        weight = np.minimum(1.0, 1.5 * noise / np.maximum(residual, 1e-12))
    return [float(value) for value in solution]


def fit_cutting(predicted: ArrayLike, cuts: ArrayLike, measured: ArrayLike) -> Cutting:
    """What cutting costs, from graphs that ran whole and as chains; fewer than `FEWEST_CHAINS` say nothing.

    Parameters
    ----------
    predicted, measured : array_like, shape (n,)
        Latency of each chain over that of the whole graph, less 1.
    cuts : array_like, shape (n,)
        Pieces less 1.

    Examples
    --------
    >>> predicted, cuts = np.linspace(0.0, 0.1, 40), np.arange(40) % 3 + 1
    >>> found = fit_cutting(predicted, cuts, 1.5 * predicted + 0.004 * cuts)
    >>> round(found.factor, 2), round(found.per_cut, 3), round(found.spread, 3)
    (1.5, 0.004, 0.0)
    """
    actual = np.asarray(measured, np.float64)
    if len(actual) < FEWEST_CHAINS:
        return Cutting()
    design = np.column_stack([np.asarray(predicted, np.float64), np.asarray(cuts, np.float64)])
    # Prior: as much as one chain that is off by 2 % says that predictions hold, to half of them and 0.5 % a cut.
    factor, per_cut = _robust(design, actual, np.array([1.0, 0.0]), np.array([0.5, 0.005]), noise=0.02)
    left = np.sort(np.abs(actual - design @ [factor, per_cut]))
    covering = min(ceil((len(left) + 1) * CHAIN_COVERAGE), len(left)) - 1
    return Cutting(factor, per_cut, float(left[covering]) / NormalDist().inv_cdf((1 + CHAIN_COVERAGE) / 2))
