"""Progress on stderr: one line per stage with a spinner and the time it took; plain lines off a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

STAGES: Final = (
    "load",
    "data",
    "prune",
    "train",
    "clean",
    "quantize",
    "qat",
    "lower",
    "prove",
    "evaluate",
    "time",
    "bundle",
)

# Between two lines on the same training.
EVERY_SECONDS: Final = 30.0


@contextmanager
def shown(console: Console) -> Iterator[Callable[[str, str], None]]:
    """Give a (stage, detail) function that shows where a compression is.

    Args:
        console: of stderr; on a terminal a bar is drawn, elsewhere each stage is one line.
    """
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[stage]:<9}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(STAGES), stage="")

        def show(stage: str, detail: str) -> None:
            bar.update(task, completed=STAGES.index(stage), stage=stage, description=detail)

        yield show


class _Lines:
    """One line when a stage or a trial starts, and now and then for the epochs of a training; more would fill a log."""

    def __init__(self, console: Console) -> None:
        self.console, self.stage, self.started = console, "", time.monotonic()
        self.told = self.started

    def __call__(self, stage: str, detail: str) -> None:
        now = time.monotonic()
        news = detail.startswith("search") or (
            detail.startswith("epoch") and now - self.told >= EVERY_SECONDS
        )
        if stage == self.stage and not news:
            return
        said = detail if stage == self.stage else ""
        self.stage, self.told = stage, now
        self.console.print(
            f"{now - self.started:7.1f} s  {stage}{': ' if said else ''}{said}", soft_wrap=True
        )
