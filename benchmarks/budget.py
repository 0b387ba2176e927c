"""Error over real networks against the time that was spent on measuring kernels.

    python benchmarks/budget.py 1m=HOME 2m=HOME 15m=HOME --measured measured.json --models FOLDER_OR_MODEL... [--json]

Each HOME is what ``latpred collect --home HOME --budget 1m`` left (or the dataset's folder itself): campaigns of their
own, each fitted anew here by the same code. measured.json is what `latpred validate --save` or `accuracy.py --save`
wrote; the same networks judge every budget.

Reference points come from the papers, each on its own networks and devices: they say what others needed, not that
the figures can be compared one to one.

References
----------
nn-Meter: Zhang et al., MobiSys 2021. LitePred: Feng et al., NSDI 2024. Graph networks: on unseen families, as reported
in the literature.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coverage import models
from tabulate import tabulate

from latpred.arguments import parse_budget
from latpred.collect import rounds
from latpred.errors import InputError, LatpredError
from latpred.estimators import LearnedEstimator
from latpred.fit import fit
from latpred.metrics import Errors
from latpred.predictor import Predictor
from latpred.report.validation import without_nan
from latpred.validation import compare

Points = Sequence[tuple[float, float]]  # (minutes, %)

MINUTE_S = 60.0
WIDTH, HEIGHT = 64, 14  # characters of a plot


@dataclass(frozen=True, slots=True)
class Reference:
    """What others are said to have needed, and reached."""

    mark: str
    name: str
    budget_minutes: float | None  # None: not told
    within_5: float | None
    within_10: float | None
    mape: float | None
    about: str


REFERENCES = (
    Reference("N", "nn-Meter", 2.5 * 24 * 60, None, 0.990, None, "one phone CPU; variants of known families"),
    Reference("L", "LitePred", 0.48 * 60, 0.905, 0.989, None,
              "ONNX Runtime on a CPU; on top of predictors of other devices"),
    Reference("G", "graph networks", None, None, None, 0.084, "unseen families, as reported in the literature"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Campaign:
    """One budget: what it measured, and how far the predictor from it is off."""

    budget_minutes: float
    records: int
    kernels: int
    errors: Errors

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; errors as fractions."""
        return {
            "budget_minutes": self.budget_minutes,
            "records": self.records,
            "kernels": self.kernels,
            **self.errors.to_dict(),
        }


def parse_campaign(text: str) -> tuple[float, Path]:
    """Budget in minutes and folder.

    Examples
    --------
    >>> parse_campaign("90s=homes/short")
    (1.5, PosixPath('homes/short'))
    """
    budget, separator, path = text.partition("=")
    if not separator or not path:
        raise argparse.ArgumentTypeError(f"expected BUDGET=FOLDER such as 15m=home, got {text!r}")
    return parse_budget(budget) / MINUTE_S, Path(path)


def dataset_of(path: Path) -> Path:
    """The dataset's folder: the path itself, or the only one in that home.

    Raises
    ------
    InputError
        When there is none, or more than one.
    """
    found = [path] if (path / "meta.json").is_file() else sorted(p.parent for p in path.glob("datasets/*/meta.json"))
    if len(found) != 1:
        raise InputError(f"{path}: one dataset is needed, found {len(found)}: name the folder that holds its meta.json")
    return found[0]


def judge(budget_minutes: float, path: Path, networks: rounds.Measurements) -> Campaign:
    """Fit a campaign's dataset and predict the networks.

    Raises
    ------
    InputError
        When a network cannot be predicted: budgets are compared on the same networks.
    """
    with TemporaryDirectory() as folder:
        bundle = fit(dataset_of(path), folder, jobs=-1).bundle
    validation = compare(networks, Predictor(LearnedEstimator(bundle)), {})
    if validation.failed:
        name, why = next(iter(validation.failed.items()))
        raise InputError(f"every network must be measured and predicted; {name}: {why}: leave it out")
    return Campaign(budget_minutes, bundle.manifest.records, bundle.manifest.rows, validation.errors)


def plot(series: Mapping[str, Points], unit: str, limits: tuple[float, float] | None = None) -> str:
    """Points as characters, minutes on a logarithmic axis of base 2.

    Parameters
    ----------
    series : mapping of str to points
        Mark -> (minutes, value); where two fall on one place, the later mark stands.
    unit : str
        What the vertical axis shows.
    limits : (float, float), optional
        Of the vertical axis; by default the points' own.

    Returns
    -------
    str
        Lines of the plot, axes included; the last one names the powers of two.
    """
    points = [(mark, math.log2(minutes), value) for mark, pairs in series.items() for minutes, value in pairs]
    first = math.floor(min(x for _, x, _ in points))
    last = max(math.ceil(max(x for _, x, _ in points)), first + 1)
    low, high = limits or (min(y for *_, y in points), max(y for *_, y in points))
    span = (high - low) or 1.0
    canvas = [[" "] * WIDTH for _ in range(HEIGHT)]
    for mark, x, y in points:
        row = round((high - min(max(y, low), high)) / span * (HEIGHT - 1))
        canvas[row][round((x - first) / (last - first) * (WIDTH - 1))] = mark
    lines = [f"{high - span * row / (HEIGHT - 1):7.1f} |{''.join(cells).rstrip()}" for row, cells in enumerate(canvas)]
    ticks = [" "] * (WIDTH + 8)
    for power in range(first, last + 1):
        label = f"{2.0**power:g}"
        start = round((power - first) / (last - first) * (WIDTH - 1))
        if all(cell == " " for cell in ticks[max(0, start - 1) : start + len(label)]):
            ticks[start : start + len(label)] = label
    return "\n".join([f"{unit}", *lines, f"{'':7s} +{'-' * WIDTH}", f"{'':9s}{''.join(ticks).rstrip()} minutes"])


def campaign_table(campaigns: Sequence[Campaign]) -> str:
    """One line a budget."""
    headers = ("budget min", "graphs", "kernels", "MAPE %", "median %", "in 5 %", "in 10 %", "worst %")
    return tabulate(
        [
            (
                f"{campaign.budget_minutes:g}",
                str(campaign.records),
                str(campaign.kernels),
                f"{100 * campaign.errors.mape:.2f}",
                f"{100 * campaign.errors.median:.2f}",
                f"{100 * campaign.errors.within_5:.1f}",
                f"{100 * campaign.errors.within_10:.1f}",
                f"{100 * campaign.errors.worst:.1f}",
            )
            for campaign in campaigns
        ],
        headers=headers,
        tablefmt="github",
        disable_numparse=True,
        colalign=("right",) * len(headers),
    )


def reference_table() -> str:
    """What others are said to have needed, and reached."""

    def percent(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.1f}"

    return tabulate(
        [
            (
                entry.mark,
                entry.name,
                "" if entry.budget_minutes is None else f"{entry.budget_minutes:g}",
                percent(entry.mape),
                percent(entry.within_5),
                percent(entry.within_10),
                entry.about,
            )
            for entry in REFERENCES
        ],
        headers=("mark", "published", "budget min", "MAPE %", "in 5 %", "in 10 %", "on"),
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", "left", "right", "right", "right", "right", "left"),
    )


def report(campaigns: Sequence[Campaign]) -> str:
    """Table, both curves, and the published points; ready to stand in a Markdown file."""
    mape: dict[str, Points] = {
        entry.mark: [(campaign.budget_minutes, 100 * entry.mape) for campaign in campaigns]
        for entry in REFERENCES
        if entry.mape is not None
    }
    within: dict[str, Points] = {
        entry.mark: [(entry.budget_minutes, 100 * entry.within_10)]
        for entry in REFERENCES
        if entry.budget_minutes is not None and entry.within_10 is not None
    }
    mape["o"] = [(campaign.budget_minutes, 100 * campaign.errors.mape) for campaign in campaigns]
    within["o"] = [(campaign.budget_minutes, 100 * campaign.errors.within_10) for campaign in campaigns]
    return "\n\n".join(
        (
            campaign_table(campaigns),
            f"```text\n{plot(mape, 'MAPE %')}\n```",
            f"```text\n{plot(within, 'networks within 10 %, in %')}\n```",
            f"o latpred, on {campaigns[0].errors.count} networks; published, each on its own networks and devices:",
            reference_table(),
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaigns", nargs="+", type=parse_campaign, metavar="BUDGET=HOME")
    parser.add_argument("--measured", type=Path, required=True, help="what `latpred validate --save` wrote")
    parser.add_argument("--models", nargs="+", type=Path, required=True, help="the networks that were measured")
    parser.add_argument("--json", action="store_true", help="print an object instead of tables")
    options = parser.parse_args(arguments)
    campaigns = []
    try:
        paths = rounds.names_of(models(options.models))
        networks = rounds.select(rounds.load(options.measured), paths, str(options.measured))
        for budget_minutes, path in sorted(options.campaigns):
            campaigns.append(judge(budget_minutes, path, networks))
            print(f"{budget_minutes:g} min: {100 * campaigns[-1].errors.mape:.2f} %", file=sys.stderr)
    except LatpredError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = without_nan([campaign.to_dict() for campaign in campaigns])
    print(json.dumps(found, indent=1, allow_nan=False) if options.json else report(campaigns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
