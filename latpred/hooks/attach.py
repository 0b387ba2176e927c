"""Model -> hooked model: plan its points, open its graphs, put side networks beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto

from latpred.chained import CPU
from latpred.decide.appraisal import POOLED, added
from latpred.decide.costs import Costs, Duration
from latpred.decide.declared import Declared
from latpred.decide.identity import Shapes, identity_of, paired
from latpred.decide.observation import Policy
from latpred.decide.options import KEPT
from latpred.decide.plan import Plan, plan
from latpred.decide.points import Grid, classes_of
from latpred.decide.pricing import priced
from latpred.decide.steps import ENTERING, LEAVING, step_s
from latpred.decide.table import Table, Utilities, compile_table
from latpred.errors import HookError
from latpred.graph import read
from latpred.hooks.hooked import Hooked
from latpred.hooks.inputs import Accepted
from latpred.hooks.masks import mask_head
from latpred.hooks.memory import give_back
from latpred.hooks.origin import Origin, path_of, weights_digest
from latpred.hooks.program import INPUT, INT8, LAST, OUTSIDES, PATCHES, Span, built, ranges_of
from latpred.hooks.several import Several, whole_of
from latpred.hooks.sides import GATE, HEAD, Side, Weights, first_network, roles_of
from latpred.hooks.terms import Deciding
from latpred.predictor import Model, Predictor, installed_runtime
from latpred.predictor import load as load_predictor
from latpred.surgery.cuts import cuts
from latpred.surgery.patches import computed_on, counts
from latpred.surgery.pieces import piece
from latpred.surgery.tidy import tidied
from latpred.surgery.weights import require_weights
from latpred.surgery.wiring import wired
from latpred.tensors import Array

__all__ = ["attach"]

LEAST_CUTS = 3  # where it begins, where it ends, and one in between


def attach(
    model: Model | Sequence[Model],
    predictor: Predictor | None = None,
    points: Sequence[str | Declared] | None = None,
    dims: Mapping[str, int] | None = None,
    shapes: Shapes | Sequence[Shapes | None] | None = None,
    *,
    grid: Grid | None = None,
    gate: str = POOLED,
    utilities: Utilities | None = None,
    confidence: float = 0.95,
    policy: str | Policy = "optimal",
    tolerance: float = 0.05,
    wrong: float | None = None,
    heads: Mapping[str, Weights] | None = None,
    samples: Iterable[Mapping[str, Array]] = (),
    outside: str = INPUT,
    providers: Sequence[str] = CPU,
    sensors: Callable[[], Mapping[str, float]] | None = None,
) -> Hooked:
    """Mount hooks on a model; its file and its weights stay as they are.

    Parameters
    ----------
    model : path, bytes or ModelProto, or a sequence of them
        With its weights. Of several, the only decision is which of them runs; the first one is kept.
    predictor : Predictor, optional
        Of the device that it runs on; without it, of this machine.
    points : sequence of str or Declared, optional
        What is mounted: points that the plan names, and points by hand. Without it, those of the plan that save most
        without overlapping; none, where none pays.
    dims, shapes : mappings, optional
        As `Predictor.plan` takes them.
    grid : Grid, optional
        Which options are looked at.
    gate : str
        What looks at the tensor where a point starts: ``pooled``, or ``none``, where time alone decides.
    utilities, confidence, policy
        As `Table.gate` takes them.
    tolerance : float
        Utility that leaving at an exit may lose in expectation, `latpred.hooks.leaving` says how.
    wrong : float, optional
        Utility that a wrong answer loses; without it, all that an exit's utility says leaving loses.
    heads : mapping of str to (ndarray, ndarray), optional
        Exit -> matrix (channels, classes) and bias (classes,) of its trained head. An exit without one keeps until it
        is given one.
    samples : iterable of mappings
        Inputs of the model, by which regions are calibrated for int8; without any, nothing runs in int8.
    outside : str
        What points that compute on patches hand on elsewhere: ``input``, the region's own input, or ``last``, what it
        made there in the last inference: for one stream of frames, run in one thread.
    providers : sequence of str
        Execution providers of ONNX Runtime, the preferred one first.
    sensors : callable, optional
        Read as a run begins; what it returns stands in observations.

    Raises
    ------
    InputError
        Where the model cannot be read or cut or has no weights, a point is impossible or unknown, a head does not fit,
        or an option needs samples and there are none.

    Examples
    --------
    A stem and a block of 1x1 convolutions, 8 -> 64 -> 8 channels, that is left out.

    >>> import numpy as np
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> import latpred
    >>> x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 14, 14]) for name in "xy")
    >>> sizes = {"stem": (8, 8), "up": (64, 8), "down": (8, 64)}
    >>> weights = [numpy_helper.from_array(np.ones((*size, 1, 1), np.float32), name) for name, size in sizes.items()]
    >>> nodes = [
    ...     helper.make_node("Conv", ["x", "stem"], ["s"], "/stem/Conv"),
    ...     helper.make_node("Conv", ["s", "up"], ["h"], "/block/up/Conv"),
    ...     helper.make_node("Conv", ["h", "down"], ["y"], "/block/down/Conv"),
    ... ]
    >>> opset = helper.make_opsetid("", 17)
    >>> graph = helper.make_graph(nodes, "toy", [x], [y], weights)
    >>> model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    >>> with attach(model, latpred.load("raspberry-pi-4"), points=["block"]) as hooked:
    ...     answer = hooked.run({"x": np.ones((1, 8, 14, 14), np.float32)}, forced={"block": "skip"})
    >>> answer.decisions, float(answer.outputs["y"].max())
    ({'block': 'skip'}, 8.0)
    """
    if outside not in OUTSIDES:
        raise HookError(f"outside must be one of {', '.join(OUTSIDES)}, got {outside!r}")
    if not 0.0 <= tolerance < np.inf:
        raise HookError(f"a tolerance must be a utility of 0 or more, got {tolerance}: 0.05 loses a twentieth at most")
    predictor = predictor if predictor is not None else load_predictor()
    terms = (utilities, confidence, policy, tolerance, wrong)
    (only, bound), *others = paired(model, shapes)
    listed = list(samples)
    if others:
        if points or heads or listed:
            raise HookError("points, heads and samples are of one model, but several came: leave them out")
        return _choosing(predictor, model, dims, shapes, providers, terms, sensors)
    grid = grid or Grid()
    if not listed:
        grid = replace(grid, levels=tuple(level for level in grid.levels if level != INT8))
    declared = [point for point in points or () if isinstance(point, Declared)]
    names = None if points is None else [point.name if isinstance(point, Declared) else point for point in points]
    found = plan(predictor, only, dims, bound, gate, grid, declared, names)  # sorts points by where they lie
    whole = tidied(only, dims, bound)
    require_weights(whole)
    if not found.mounted and len(cuts(whole)) < LEAST_CUTS:
        raise HookError(f"a model with a place inside where one tensor carries everything is needed, but {found.model} "
                        "has none: its branches never all meet; run it as it is")  # fmt: skip
    spans = _spans(found, whole, gate, {one.name for one in declared if one.gate is not None})
    table = None
    if found.costs is not None:
        costs = _with_masks(found.costs, whole, spans, predictor, found.cycle_bytes, outside)
        table = compile_table(_with_ends(costs, predictor, found))
        table.utility_of(utilities)  # what cannot be used is said before anything is built
    threads = predictor.estimator.device.threads
    wiring = wired(whole)
    accepted = Accepted({name: wiring.spec(name) for name in wiring.inputs})
    ranges = ranges_of(whole, spans, [accepted.checked(sample) for sample in listed], threads)
    origin = Origin(
        path_of(only),
        identity_of(predictor, only, dims, bound),
        weights_digest(whole),
        installed_runtime() or "",
        threads,
        tuple(providers),
        outside,
        dict(dims or {}),
        {name: tuple(shape) for name, shape in (bound or {}).items()},
        ranges,
    )
    sides = _sides(spans, classes_of(wiring) or 0, table, utilities, origin.providers)
    _put(sides, GATE, {one.name: one.gate for one in declared if one.gate is not None})
    _put(sides, HEAD, heads or {})
    program = built(whole, spans, ranges, outside, threads, origin.providers)
    del whole, wiring
    hooked = Hooked(program, sides, origin, Deciding(table, found.latency_s, *terms), sensors)
    give_back()
    return hooked


def _choosing(
    predictor: Predictor,
    models: Model | Sequence[Model],
    dims: Mapping[str, int] | None,
    shapes: Shapes | Sequence[Shapes | None] | None,
    providers: Sequence[str],
    terms: tuple[Any, ...],
    sensors: Callable[[], Mapping[str, float]] | None,
) -> Hooked:
    """Several whole models of which one runs."""
    found = plan(predictor, models, dims, shapes)
    table = found.compile()
    threads = predictor.estimator.device.threads
    wholes, digests = [], []
    for name, (one, own) in zip(table.options[0], paired(models, shapes), strict=True):
        tidy = tidied(one, dims, own)
        require_weights(tidy)
        digests.append(weights_digest(tidy))
        wholes.append(whole_of(name, tidy, threads, providers))
    identity = identity_of(predictor, models, dims, shapes)
    origin = Origin(
        None, identity, " ".join(digests), installed_runtime() or "", threads, tuple(providers), INPUT, dict(dims or {})
    )
    deciding = Deciding(table, found.latency_s, *terms)
    hooked = Hooked(Several(table.points[0], tuple(wholes)), {}, origin, deciding, sensors)
    give_back()
    return hooked


def _spans(found: Plan, model: ModelProto, gate: str, own_gates: Collection[str]) -> tuple[Span, ...]:
    """Mounted points with the options that the table has, on the model with its weights."""
    if found.costs is None:
        return ()
    places = {cut.tensor: cut for cut in cuts(model)}
    spans = []
    for costs in found.costs.points:
        decision = found[costs.name]
        point = decision.point
        assert point is not None
        named = {choice.name: choice for choice in (KEPT, *point.choices)}
        choices = tuple(named[option.name] for option in costs.options)
        looks = HEAD if point.is_exit and gate == POOLED else GATE if decision.gate_s > 0.0 else ""
        if costs.name in own_gates:
            looks = GATE
        spans.append(Span(costs.name, places[point.start.tensor], places[point.end.tensor], choices, looks))
    return tuple(spans)


def _sides(
    spans: Sequence[Span], classes: int, table: Table | None, utilities: Utilities | None, providers: Sequence[str]
) -> dict[tuple[str, str], Side]:
    """What stands in for side networks until they are trained."""
    if table is None:
        return {}
    worth = table.utilities() if utilities is None else utilities
    sides = {}
    for span in spans:
        values = [worth[span.name][choice.name] for choice in span.choices]
        for role, width in roles_of(span, classes).items():
            network = first_network(role, span.start, width, values)
            sides[span.name, role] = Side(span.name, role, span.start, width, network, providers=providers)
    return sides


def _put(sides: Mapping[tuple[str, str], Side], role: str, sources: Mapping[str, Any]) -> None:
    """Put trained side networks in their places."""
    for point, source in sources.items():
        if (point, role) not in sides:
            known = ", ".join(repr(name) for name, own in sides if own == role) or "no point"
            raise HookError(f"a {role} can be given for {known}, got {point!r}: mount it, or leave it out")
        sides[point, role].replace(source)


def _with_ends(costs: Costs, predictor: Predictor, found: Plan) -> Costs:
    """The same, with what beginning and ending a run takes."""
    ends = (Duration(step_s(step, predictor, found.cycle_bytes, found.peak_bytes)) for step in (ENTERING, LEAVING))
    entering, leaving = ends
    first, *others = costs.points
    points = (replace(first, before=added(first.before, entering)), *others)
    return replace(costs, points=points, after=added(costs.after, leaving))


def _with_masks(
    costs: Costs, model: ModelProto, spans: Sequence[Span], predictor: Predictor, cycle_bytes: int, outside: str
) -> Costs:
    """The same, with what computing on patches takes beside the region: its mask head, and another map outside."""
    wiring = wired(model)
    points = []
    for point, span in zip(costs.points, spans, strict=True):
        options = []
        for option, choice in zip(point.options, span.choices, strict=True):
            if choice.level != PATCHES:
                options.append(option)
                continue
            graphs = [mask_head(span.start, choice.granularity)]
            if outside == LAST:
                region = piece(wiring, span.start, span.end)
                height, width = span.start.shape[2:]
                n_patches = counts(height, width, choice.granularity, choice.share)
                graphs += [computed_on(region, choice.granularity, n_patches, onto) for onto in (False, True)]
            head, *both = (price.time for price in priced(predictor, [read(graph) for graph in graphs], cycle_bytes))
            time = added(option.time, head)
            if both:
                time = replace(time, mean_s=time.mean_s + max(0.0, both[1].mean_s - both[0].mean_s))
            options.append(replace(option, time=time))
        points.append(replace(point, options=tuple(options)))
    return replace(costs, points=tuple(points))
