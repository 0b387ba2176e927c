"""Decision points and decisions as text; nothing here prints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latpred.errors import InputError
from latpred.report.tables import bytes_text, milliseconds, table

if TYPE_CHECKING:
    from latpred.decide.plan import Plan
    from latpred.decide.table import Table, Utilities

__all__ = ["answer", "decide_text", "gates_text", "load_utilities"]


def signed(latency_s: float) -> str:
    """Milliseconds, with a minus where a saving is none.

    Examples
    --------
    >>> signed(0.0012), signed(-0.0012)
    ('1.2', '-1.2')
    """
    return ("-" if latency_s < 0 else "") + milliseconds(abs(latency_s))


def gates_text(plan: Plan) -> str:
    """Every point and option: what it saves, with its interval, what the point costs, how often it must be taken."""
    rows: list[tuple[str, ...]] = []
    for decision in plan.decisions:
        for number, option in enumerate(decision.options[1:]):
            low_s, high_s = option.saved_interval_s
            rate = option.break_even_rate
            first = number == 0
            rows.append(
                (
                    "*" if first and decision.name in plan.mounted else "",
                    decision.name if first else "",
                    option.name,
                    signed(option.saved_s),
                    f"{signed(low_s)} .. {signed(high_s)}",
                    signed(decision.overhead_s) if first else "",
                    "never" if rate is None else f"{rate:.0%}",
                    bytes_text(option.peak_bytes),
                )
            )
    headers = ("", "point", "option", "saves ms", f"{plan.interval:.0%} interval", "costs ms", "break-even", "memory")
    lines = [
        f"{plan.model} on {plan.device}",
        f"latency {milliseconds(plan.latency_s)} ms, memory {bytes_text(plan.peak_bytes)}, "
        f"{len(plan.decisions)} points, {len(plan.mounted)} of them mounted (*)",
    ]
    if not rows:
        return "\n".join([*lines, "nothing to decide: the network has no region that can be altered"])
    return "\n".join([*lines, "", table(rows, headers, right=(3, 4, 5, 6, 7))])


def answer(plan: Plan, deadline_s: float, confidence: float, utilities: Utilities | None) -> dict[str, Any]:
    """What a gate would do were all times as predicted; JSON-ready, latencies in ms.

    Its `utilities` are a file for the next question: point -> option -> what it is worth, to be edited.

    Raises
    ------
    InputError
        Where the deadline, the confidence or the utilities cannot be used.
    """
    common: dict[str, Any] = {
        "model": plan.model,
        "device": plan.device,
        "deadline_ms": deadline_s * 1e3,
        "confidence": confidence,
        "as_it_is": {"latency_ms": plan.latency_s * 1e3, "probability": plan.probability(deadline_s)},
    }
    if plan.costs is None:
        if utilities:
            raise InputError(
                f"utilities must be of points that pay, and none of {plan.model} does on {plan.device}, got "
                f"{', '.join(map(repr, utilities))}: leave them out"
            )
        return {**common, "worth_deciding": False, "points": []}
    compiled = plan.compile()
    gate = compiled.gate(deadline_s, confidence, utilities)
    common["utilities"] = utilities or compiled.utilities()
    if plan.probability(deadline_s) >= confidence and _keeps_best(compiled, utilities):
        return {**common, "worth_deciding": False, "points": []}
    planned = gate.planned()
    remaining = plan.remaining()
    points = []
    for name, option in zip(compiled.points, planned.options, strict=False):
        estimated = next(one for one in plan[name].options if one.name == option)
        least_s, most_s, _ = remaining[name]
        points.append(
            {
                "point": name,
                "option": option,
                "saved_ms": estimated.saved_s * 1e3,
                "remaining_least_ms": least_s * 1e3,
                "remaining_most_ms": most_s * 1e3,
            }
        )
    return {
        **common,
        "worth_deciding": True,
        "planned_ms": planned.latency_s * 1e3,
        "probability": planned.probability,
        "utility": planned.utility,
        "points": points,
    }


def _keeps_best(compiled: Table, utilities: Utilities | None) -> bool:
    """Whether no option is worth more than what the network does as it is."""
    worth = np.split(compiled.utility_of(utilities), compiled.first_option[1:-1])
    return all(float(options[0]) >= float(options.max()) for options in worth)


def decide_text(given: dict[str, Any]) -> str:
    """The same for a person."""
    lines = [
        f"{given['model']} on {given['device']}: {milliseconds(given['as_it_is']['latency_ms'] / 1e3)} ms as it is, in "
        f"time with probability {given['as_it_is']['probability']:.3f}",
    ]
    wanted = f"deadline {milliseconds(given['deadline_ms'] / 1e3)} ms at {given['confidence']:.4g}"
    if not given["worth_deciding"]:
        enough = given["as_it_is"]["probability"] >= given["confidence"]
        why = "run the network as it is" if enough else "no option surely pays for its point"
        return "\n".join([*lines, f"{wanted}: not worth deciding, {why}"])
    lines.append(
        f"{wanted}: planned {milliseconds(given['planned_ms'] / 1e3)} ms, utility {given['utility']:.3f}; met with "
        f"probability {given['probability']:.3f} if nothing is corrected on the way"
    )
    rows = [
        (
            row["point"],
            row["option"],
            signed(row["saved_ms"] / 1e3),
            f"{milliseconds(row['remaining_least_ms'] / 1e3)} .. {milliseconds(row['remaining_most_ms'] / 1e3)}",
        )
        for row in given["points"]
    ]
    return "\n".join([*lines, "", table(rows, ("point", "do", "saves ms", "then left ms"), right=(2, 3))])


def load_utilities(path: str | os.PathLike[str]) -> Utilities:
    """Point -> option -> utility, from a JSON file.

    Raises
    ------
    InputError
        Where the file cannot be read, or is no object of objects.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: a file of utilities is needed, and it cannot be read ({error.strerror})") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: utilities must be JSON ({error}): write point -> option -> number") from error
    if not isinstance(given, dict) or not all(isinstance(row, dict) for row in given.values()):
        raise InputError(f"{path}: utilities must be an object of objects: write point -> option -> number")
    return given
