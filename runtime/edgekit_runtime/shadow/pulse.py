"""Whether the candidate's process hangs, or only waits for a processor that others have.

It runs when nobody else wants the processor, which on a busy device may be hardly ever: time on the wall alone says
nothing of it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
# Fields of /proc/PID/stat after the name (proc(5)): state, and ticks of the processor for itself and for the system.
_STATE, _USER, _SYSTEM = 0, 11, 12
_RUNNABLE: Final = "R"
# A process that could run and never gets to hangs after so many times as long.
PATIENCE_TIMES: Final = 20


@dataclass(frozen=True, slots=True)
class Pulse:
    """Of a process at a moment.

    Attributes:
        spent_s: of processor time since it began.
        runnable: one of its threads runs, or waits for a processor only.
    """

    spent_s: float
    runnable: bool


def take(pid: int) -> Pulse | None:
    """The pulse of a process; None where the system does not tell."""
    whole = _stat(_PROC / str(pid) / "stat")
    if whole is None:
        return None
    spent = (int(whole[_USER]) + int(whole[_SYSTEM])) / os.sysconf("SC_CLK_TCK")
    threads: list[list[str] | None] = []
    with suppress(OSError):
        threads = [_stat(each / "stat") for each in (_PROC / str(pid) / "task").iterdir()]
    return Pulse(spent, any(each is not None and each[_STATE] == _RUNNABLE for each in threads))


def hangs(busy_s: float, before: Pulse | None, now: Pulse | None, hung_s: float) -> bool:
    """Whether work takes too long.

    Args:
        busy_s: seconds since it began, by a clock that nobody sets.
        before: pulse when it was first seen at this work.
        now: pulse.
        hung_s: seconds that it may take with a processor of its own.
    """
    if busy_s <= hung_s:
        return False
    if before is None or now is None or busy_s > PATIENCE_TIMES * hung_s:
        return True
    return now.spent_s - before.spent_s > hung_s or not now.runnable


def _stat(path: Path) -> list[str] | None:
    try:
        return path.read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
