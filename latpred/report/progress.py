"""What is shown while a campaign runs: a bar with the time left on a terminal, a line a minute elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from latpred.collect.campaign import Progress

__all__ = ["CampaignDisplay"]

LINE_EVERY_S = 60.0


class CampaignDisplay:
    """Shows on standard error what a campaign tells."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._told_s = -LINE_EVERY_S

    def __enter__(self) -> CampaignDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stage(self, what: str) -> None:
        """Something else begins."""
        self._bar.update(self._task, description=what, total=None)
        if not self._console.is_terminal:
            self._console.print(what, highlight=False)

    def progress(self, now: Progress) -> None:
        """One more composite graph was measured."""
        text = f"{now.composites} graphs, {now.kernels} kernels, {now.kinds} kinds, {now.failed} failed"
        self._bar.update(self._task, description=text, completed=min(now.elapsed_s, now.budget_s), total=now.budget_s)
        if not self._console.is_terminal and now.elapsed_s - self._told_s >= LINE_EVERY_S:
            self._told_s = now.elapsed_s
            left_s = max(0.0, now.budget_s - now.elapsed_s)
            self._console.print(f"{text}; {left_s / 60:.0f} min left", highlight=False, soft_wrap=True)
