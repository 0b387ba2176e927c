"""`latpred collect` from end to end: roofline, fusion rules, measurements, fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

from latpred import home as homes
from latpred.collect.campaign import Campaign, Progress, Summary
from latpred.collect.ort import OrtRunner
from latpred.collect.probe import probe
from latpred.collect.processor import identify
from latpred.collect.roofline import measure_device
from latpred.cutting import measure_chains
from latpred.fit import FitReport, errors_by_kind, fit
from latpred.kernels.fusion import RuleBook
from latpred.store import Dataset, Meta

__all__ = ["Collected", "Order", "collect"]

CHAINS_SHARE = 0.05  # of the budget, on top of it


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be measured, and for how long."""

    device: str = homes.LOCAL
    threads: int = 1
    budget_s: float = 900.0
    kinds: Sequence[str] = ()
    provider: str = "CPUExecutionProvider"
    fresh: bool = False  # remove an older dataset first
    seed: int = 0
    home: str | os.PathLike[str] | None = None


@dataclass(frozen=True, slots=True)
class Collected:
    """What a campaign left."""

    folders: homes.Folders
    summary: Summary
    report: FitReport | None  # None where the campaign was interrupted


def collect(
    order: Order,
    progress: Callable[[Progress], None] = lambda _: None,
    stage: Callable[[str], None] = lambda _: None,
    jobs: int = -1,
) -> Collected:
    """Measure this machine within a budget, then fit its predictor.

    Parameters
    ----------
    order : Order
        The budget counts the measuring of kernels; roofline, rules, cuts (a twentieth of it) and the fit come on top.
        Less of it is used where the validation error stops falling.
    progress : callable
        Told after every composite graph.
    stage : callable
        Told what begins: ``"measuring the roofline"``.
    jobs : int
        Processes of the fit, and of the quick fits between measurements; -1 for one a core.

    Raises
    ------
    ArtefactError
        When the dataset that lies there is of another machine, runtime or thread count.
    """
    folders = homes.folders(order.device, order.threads, order.home)
    if order.fresh and folders.dataset.exists():
        shutil.rmtree(folders.dataset)
    dataset = open_dataset(order, folders, stage)
    rules = RuleBook.load(dataset.path / "rules.toml")
    stage("measuring kernels")
    summary = Campaign(
        dataset,
        OrtRunner(),
        rules,
        budget_s=order.budget_s,
        kinds=order.kinds,
        seed=order.seed,
        progress=progress,
        error_by_kind=partial(errors_by_kind, jobs=jobs),
    ).run()
    if summary.interrupted:
        return Collected(folders, summary, None)
    if not order.kinds:
        stage("measuring what cutting costs")
        try:
            measure_chains(dataset, rules, CHAINS_SHARE * order.budget_s)
        except KeyboardInterrupt:
            return Collected(folders, replace(summary, interrupted=True), None)
    stage("fitting")
    return Collected(folders, summary, fit(folders.dataset, folders.model, jobs=jobs))


def open_dataset(order: Order, folders: homes.Folders, stage: Callable[[str], None]) -> Dataset:
    """The dataset to go on with; a new one gets its device and its rules measured first."""
    processor = identify()
    runner = OrtRunner()
    meta = Meta(
        device=order.device,
        processor=processor.label,
        runtime=runner.runtime,
        runtime_version=runner.runtime_version,
        threads=order.threads,
        provider=order.provider,
        latpred_version=version("latpred"),
        seed=order.seed,
        facts={"governor": processor.governor, "pinnable": processor.pinnable, "virtual": processor.virtual},
    )
    runner.close()
    if (folders.dataset / "meta.json").exists():
        return Dataset.open_or_create(folders.dataset, meta)
    stage("measuring the roofline")
    device = measure_device(order.device, threads=order.threads, provider=order.provider)
    homes.save_device(device, order.device, home=order.home)
    stage("probing what the runtime fuses")
    rules = probe(threads=order.threads, provider=order.provider)
    return Dataset.create(folders.dataset, meta, rules_toml=rules.dumps())
