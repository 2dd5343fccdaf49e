"""Times the stages of a run and passes their names on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from edgekit.report import StageResult

Progress = Callable[[str, str], None]
"""Told (stage, detail) whenever something starts."""


class Clock:
    """Times stages.

    Args:
        progress: told (stage, detail).
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.done: list[StageResult] = []
        self.name = ""
        self.changed: tuple[Mapping[str, float | None], Mapping[str, float | None]] = ({}, {})

    def stage(self, name: str) -> Stage:
        """Start a stage when the result is entered."""
        self.name = name
        self.progress(name, "")
        return Stage(self, name)

    def detail(self, text: str) -> None:
        """Say what the running stage is doing."""
        self.progress(self.name, text)

    def change(self, before: Mapping[str, float | None], after: Mapping[str, float | None]) -> None:
        """Say what the running stage changed: `params`, `macs` and `value`."""
        self.changed = before, after

    def results(self) -> tuple[StageResult, ...]:
        """Finished stages, in order."""
        return tuple(self.done)


class Stage:
    """A running stage; entering it gives the list that its notes go to."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.name, self.notes = clock, name, list[str]()

    def __enter__(self) -> list[str]:
        self.started = time.monotonic()
        return self.notes

    def __exit__(self, *_: object) -> None:
        seconds = round(time.monotonic() - self.started, 3)
        before, after = self.clock.changed
        self.clock.changed = {}, {}
        self.clock.done.append(StageResult(self.name, seconds, before, after, tuple(self.notes)))
