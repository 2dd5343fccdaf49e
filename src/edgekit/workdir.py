"""Finished stages on disk, found again by what went into them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from edgekit.errors import UsageError
from edgekit.staging import NO_ROOM, held_by_another, lock_folder, unlock
from edgekit.versions import versions

Facts = dict[str, Any]
"""Plain JSON values about the files of a stage."""
Result = TypeVar("Result")

_DONE: Final = "done.json"
# What reading a folder ends in that is not there, or that another state of the sources left behind.
_UNFIT: Final = (FileNotFoundError, NotADirectoryError, LookupError, TypeError, ValueError, AttributeError)


class WorkDir:
    """A hidden folder beside the output that holds one folder per finished stage.

    A stage is named by a key, the hash of everything that its result depends on, and by the versions of the packages
    that make it. A folder without its marker was interrupted and is made again, and so is one that cannot be read as
    what it should hold. What a long stage wants to find again after an interrupt, it keeps in a scratch folder.

    The folder is locked by the process that works in it, from its first stage to `release` or the end of `with`.

    Args:
        out: the bundle directory; the folder is its sibling.
        resume: keep what an earlier run finished; otherwise start empty.

    Raises:
        UsageError: another process works in the folder.
    """

    _lock: int | None = None

    def __init__(self, out: Path, *, resume: bool) -> None:
        target = out.resolve()
        self.path = target.parent / f".{target.name}.edgekit"
        if self.path.is_dir():
            self._take(out)
        if not resume:
            shutil.rmtree(self.path, ignore_errors=True)
            self.release()

    def __enter__(self) -> WorkDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Let another process work here."""
        unlock(self._lock)
        self._lock = None

    def _take(self, out: Path) -> None:
        self._lock = lock_folder(self.path)
        if self._lock is None and held_by_another(self.path):
            raise UsageError(
                f"{self.path}: another `edgekit compress` is at work on {out}",
                expected="one run for each output",
                way_out="Wait for it, or choose another output with -o.",
            )

    def stage(
        self, name: str, key: str, make: Callable[[Path], Facts], read: Callable[[Path, Facts], Result]
    ) -> Result:
        """Run a stage, or find its result.

        Args:
            name: for people.
            key: from `stage_key`.
            make: writes its files into the given empty folder and returns facts about them.
            read: makes the result of the folder and the facts, the same whether they were found or just made.

        Returns:
            What `read` returns.

        Raises:
            UsageError: the folder cannot be written, or the disk is full; finished stages are kept.
        """
        folder = self._folder(name, key)
        with contextlib.suppress(*_UNFIT):
            return read(folder, _facts(folder))
        self._hold()
        try:
            _make(folder, make)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise UsageError(
                f"{error.filename or folder}: {error.strerror} in the stage `{name}`",
                expected="room beside the output for the work of this run",
                way_out="Free some room and go on with --resume, or choose another place with -o.",
            ) from error
        finally:
            if not (folder / _DONE).exists():
                shutil.rmtree(folder, ignore_errors=True)
                self._remove_if_empty()
        return read(folder, _facts(folder))

    def scratch(self, name: str, key: str) -> Path:
        """Give a folder for work in progress, such as the checkpoints of a training.

        It stays as it was left by an interrupt, a failure or a power cut, until `remove`, or until a run that does
        not resume. What is in it may be half written, unless its writer saw to that.

        Args:
            name: for people.
            key: from `stage_key`: what is found again was made for the same work.

        Returns:
            The folder, which exists.

        Raises:
            UsageError: it cannot be made.
        """
        self._hold()
        folder = self._folder(name, key).with_suffix(".scratch")
        _make_folder(folder, exist_ok=True)
        return folder

    def _folder(self, name: str, key: str) -> Path:
        return self.path / f"{name}-{stage_key(key, versions())[:16]}"

    def _hold(self) -> None:
        """Make and lock the folder; what stands in the way is reported by whoever writes there."""
        if self._lock is None:
            with contextlib.suppress(OSError):
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock = lock_folder(self.path)

    def remove(self) -> None:
        """Everything is in the bundle now, or nothing will be."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            self.path.rmdir()
            self.release()


def _facts(folder: Path) -> Facts:
    """What a finished stage says of itself.

    Raises:
        FileNotFoundError: it was not finished.
        ValueError: no JSON.
    """
    found: Facts = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    return found


def _make(folder: Path, make: Callable[[Path], Facts]) -> None:
    """Run a stage in an empty folder; the marker comes last, by one rename."""
    shutil.rmtree(folder, ignore_errors=True)
    _make_folder(folder, exist_ok=False)
    facts = make(folder)
    temporary = folder / f"{_DONE}.part"
    with temporary.open("w", encoding="utf-8") as f:
        json.dump(facts, f)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(folder / _DONE)


def _make_folder(folder: Path, *, exist_ok: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise UsageError(
            f"{folder}: {error.strerror}",
            expected="a place beside the output that can be written, for the work of this run",
            way_out="Choose another place with -o.",
        ) from error


def stage_key(*parts: Any) -> str:
    """Sha256 (hex) over JSON values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
