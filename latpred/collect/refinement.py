"""Where to measure next: templates whose kernels are predicted badly and take much of real networks' time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from latpred.collect.templates import TEMPLATES

__all__ = ["refined_weights", "validation_error"]

KEPT_BREADTH = 0.4  # of the turns go on by the templates' own weights
UNKNOWN_ERROR = 0.5  # of a kind that no regressor could be judged on


def refined_weights(
    records: Iterable[Mapping[str, Any]],
    error_by_kind: Mapping[str, float],
    priors: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Weights of the templates for the rest of a campaign.

    A kind's urgency is its error times its expected share of time, which is the share that it has in each template,
    averaged by the templates' own weights. A template is worth the urgencies of the kinds that it yields, each split
    among the templates by how many of the kind's kernels they yielded.

    Parameters
    ----------
    records
        Samples so far, with `configuration` and `kernels`.
    error_by_kind
        Relative error of each kind, from held-out predictions.
    priors
        The templates' own weights; default those of `TEMPLATES`.

    Returns
    -------
    dict
        Positive weights, summing to 1.

    Examples
    --------
    >>> def record(template, kind):
    ...     kernel = {"kind": kind, "latency_s": 1e-3}
    ...     return {"configuration": {"templates": [template]}, "kernels": [kernel]}
    >>> weights = refined_weights(
    ...     [record("a", "conv"), record("b", "lstm")], {"conv": 0.02, "lstm": 0.2}, {"a": 1.0, "b": 1.0}
    ... )
    >>> {name: round(weight, 2) for name, weight in weights.items()}
    {'a': 0.25, 'b': 0.75}
    """
    own = _own_weights(priors)
    share, count = _share_and_count(records, own)
    worth = dict.fromkeys(own, 0.0)
    for kind, yields in count.items():
        urgency = error_by_kind.get(kind, UNKNOWN_ERROR) * share[kind]
        for name, rows in yields.items():
            worth[name] += urgency * rows / sum(yields.values())
    all_worth = sum(worth.values())
    if all_worth <= 0:
        return own
    return {name: KEPT_BREADTH * own[name] + (1 - KEPT_BREADTH) * worth[name] / all_worth for name in own}


def validation_error(
    records: Iterable[Mapping[str, Any]],
    error_by_kind: Mapping[str, float],
    priors: Mapping[str, float] | None = None,
) -> float:
    """One number for how well a dataset predicts: the mean error of the kinds, by their expected shares of time.

    Parameters
    ----------
    records, error_by_kind, priors
        As in `refined_weights`, whose shares these are.

    Returns
    -------
    float
        A relative error; NaN without kernels.

    Examples
    --------
    >>> kernels = [{"kind": "conv", "latency_s": 3e-3}, {"kind": "lstm", "latency_s": 1e-3}]
    >>> record = {"configuration": {"templates": ["a"]}, "kernels": kernels}
    >>> round(validation_error([record], {"conv": 0.02, "lstm": 0.2}, {"a": 1.0}), 3)  # 3/4 * 0.02 + 1/4 * 0.2
    0.065
    """
    share, _ = _share_and_count(records, _own_weights(priors))
    total = sum(share.values())
    missed = sum(part * error_by_kind.get(kind, UNKNOWN_ERROR) for kind, part in share.items())
    return missed / total if total else float("nan")


def _own_weights(priors: Mapping[str, float] | None) -> dict[str, float]:
    """Summing to 1."""
    weights = priors or {name: template.weight for name, template in TEMPLATES.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _share_and_count(
    records: Iterable[Mapping[str, Any]], own: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Expected share of time of each kind, and how many of its kernels each template yielded."""
    time_s: dict[str, dict[str, float]] = {name: defaultdict(float) for name in own}
    count: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for record in records:
        templates = [name for name in record["configuration"]["templates"] if name in own]
        for kernel in record["kernels"]:
            for name in templates:  # which of a mixed composite's templates a kernel is from is not recorded
                time_s[name][kernel["kind"]] += kernel["latency_s"] / len(templates)
                count[kernel["kind"]][name] += 1 / len(templates)
    share: dict[str, float] = defaultdict(float)
    for name, kinds in time_s.items():
        spent_s = sum(kinds.values())
        for kind, kind_s in kinds.items():
            share[kind] += own[name] * kind_s / spent_s
    return share, count
