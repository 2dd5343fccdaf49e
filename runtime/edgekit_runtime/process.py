"""Which process is which, and which of them still runs.

A pid is used again, and means another process in another container; a lock that a process holds goes with it, however
it ends, and is seen from every container that shares the store.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from edgekit_runtime.state import Process

_PROC: Final = Path("/proc")
_BOOT_ID: Final = _PROC / "sys/kernel/random/boot_id"
# Field of /proc/PID/stat after the name, which may hold anything, spaces and brackets included (proc(5)).
_START_TIME: Final = 19


def this_process() -> Process:
    """The process that asks."""
    return Process(os.getpid(), _started(), boot_id())


def own_module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours by this interpreter, whatever lies in the folder that it is called in."""
    safely = ("-P",) if sys.version_info >= (3, 11) else ()
    return [sys.executable, *safely, "-m", name, *arguments]


class SignOfLife:
    """A file that this process holds locked until it ends.

    Args:
        folder: of the signs of all processes; is made where it is missing.
        process: this one.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, process: Process) -> None:
        folder.mkdir(exist_ok=True)
        for left_over in folder.iterdir():
            _is_held(left_over)
        self._path = _sign(folder, process)
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Give it up."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        # A child that was forked meanwhile has the handle, too, and must not hold the lock with it.
        fcntl.flock(self._handle, fcntl.LOCK_UN)
        os.close(self._handle)


def is_alive(folder: Path, process: Process) -> bool:
    """Whether a process still runs; where the system does not tell, it does.

    Args:
        folder: of the signs.
        process: that gave one.
    """
    return _is_held(_sign(folder, process))


def boot_id() -> str:
    """The system's name for this boot, "" where it has none."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def _sign(folder: Path, process: Process) -> Path:
    text = f"{process.pid} {process.started} {process.boot}"
    return folder / hashlib.sha256(text.encode()).hexdigest()[:32]


def _is_held(path: Path) -> bool:
    """Whether somebody holds a sign; where nobody does, it is removed."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(OSError):
            path.unlink()
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _started() -> int:
    """When this process started, in ticks since the system booted; 0 where the system does not tell."""
    try:
        text = (_PROC / "self/stat").read_text("utf-8", "replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[_START_TIME])
