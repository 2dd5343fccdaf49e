"""A directory that is put in place whole: written beside its place under a hidden name, then renamed.

A process that is killed cannot clean up, so the next one to write to the same place does. Each hidden directory
is locked (`flock`) by the process that writes it, and the system drops the lock with the process: what is not
locked is nobody's. Where directories cannot be locked, as on Windows and some network file systems, nothing is
taken for abandoned and nothing is removed.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["NO_ROOM", "clear_abandoned", "held_by_another", "lock_folder", "put_in_place", "staged", "unlock"]

# Room that ran out, by device, by quota, or by a limit on the length of a file.
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# New content on its way in, and the earlier content on its way out.
_NEW, _OLD = "partial", "old"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a new, locked, hidden directory beside `target`, and remove it at the end if it is still there.

    Args:
        target: absolute path; its parent is made.

    Raises:
        OSError: the directory cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_abandoned(target)
    folder, lock = _new_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        unlock(lock)


def put_in_place(folder: Path, target: Path) -> None:
    """Rename `folder` to `target` after everything in it is on the disk.

    Earlier content of `target` steps aside first, and comes back if that fails.

    Raises:
        OSError: the disk is full, or a rename failed.
    """
    _sync_tree(folder)
    if not target.exists():
        folder.rename(target)
    else:
        aside = folder.with_suffix(f".{_OLD}")
        lock = lock_folder(target)
        try:
            target.rename(aside)
            try:
                folder.rename(target)
            except BaseException:
                aside.rename(target)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            unlock(lock)
    _sync(target.parent)


def clear_abandoned(target: Path) -> None:
    """Remove what killed processes left beside `target`; what a living one writes stays.

    A process that died between the two renames of `put_in_place` left the earlier content under its hidden
    name and nothing in its place: that content comes back.

    Args:
        target: absolute path.
    """
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.({_NEW}|{_OLD})")
    for path in sorted(target.parent.glob(f".{glob.escape(target.name)}.*")):
        kind = ours.fullmatch(path.name)
        if kind is None or path.is_symlink() or not path.is_dir() or (lock := lock_folder(path)) is None:
            continue
        try:
            if kind[1] == _OLD and not target.exists():
                path.rename(target)
            else:
                shutil.rmtree(path, ignore_errors=True)
        finally:
            unlock(lock)


def _new_folder(target: Path) -> tuple[Path, int | None]:
    """Make and lock a directory; another process may clear it away in between, and then it is made again."""
    while True:
        folder = target.parent / f".{target.name}.{secrets.token_hex(4)}.{_NEW}"
        folder.mkdir()
        lock = lock_folder(folder, wait=True)
        if lock is not None or folder.exists():
            return folder, lock


def lock_folder(folder: Path, *, wait: bool = False) -> int | None:
    """Lock a directory for this process.

    Returns:
        What `unlock` takes; None where another process holds the lock or moved the directory away, or where
        directories cannot be locked.
    """
    try:
        lock = _flock(folder, wait=wait)
    except BlockingIOError:
        return None
    if lock is None or (folder.exists() and os.path.samestat(os.fstat(lock), folder.stat())):
        return lock
    unlock(lock)
    return None


def held_by_another(folder: Path) -> bool:
    """Does another process hold the lock of a directory? False where directories cannot be locked."""
    try:
        unlock(_flock(folder, wait=False))
    except BlockingIOError:
        return True
    return False


def _flock(folder: Path, *, wait: bool) -> int | None:
    """A locked descriptor, or None where the directory is gone or directories cannot be locked.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows has no fcntl
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def unlock(lock: int | None) -> None:
    """Give back what `lock_folder` returned."""
    if lock is not None:
        os.close(lock)


def _sync_tree(folder: Path) -> None:
    """Bring every byte and every name below `folder` to the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a directory
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
