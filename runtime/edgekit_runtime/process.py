"""Which process is which: a pid is used again, a pid with the moment of its start and the system's boot is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from edgekit_runtime.state import Process

_PROC: Final = Path("/proc")
_BOOT_ID: Final = _PROC / "sys/kernel/random/boot_id"
# Fields of /proc/PID/stat after the name, which may hold anything, spaces and brackets included (proc(5)).
_STATE, _START_TIME = 0, 19
# Dead, but its parent has not asked yet.
_GONE: Final = frozenset({"Z", "X", "x"})


def this_process() -> Process:
    """The process that asks."""
    found = _stat(os.getpid())
    return Process(os.getpid(), int(found[_START_TIME]) if found else 0, boot_id())


def is_alive(process: Process) -> bool:
    """Whether a process still runs; where the system does not tell when it started, its pid alone decides."""
    if process.boot != boot_id():
        return False
    found = _stat(process.pid)
    if found is not None:
        return found[_STATE] not in _GONE and int(found[_START_TIME]) == process.started
    if _PROC.joinpath("self").exists():
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def boot_id() -> str:
    """The system's name for this boot, "" where it has none."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
