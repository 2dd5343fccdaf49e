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
    "lower",
    "prove",
    "evaluate",
    "time",
    "bundle",
)


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
    """One line when a stage starts; details would only fill a log."""

    def __init__(self, console: Console) -> None:
        self.console, self.stage, self.started = console, "", time.monotonic()

    def __call__(self, stage: str, detail: str) -> None:
        del detail
        if stage == self.stage:
            return
        self.stage = stage
        self.console.print(f"{time.monotonic() - self.started:7.1f} s  {stage}")
