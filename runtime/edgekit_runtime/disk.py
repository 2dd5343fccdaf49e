"""What changes a store on disk, operation by operation.

A store is safe after a power cut only because of the order in which it writes, syncs and renames. All of that goes
through here: a test records the operations and rebuilds whatever a cut between any two of them may leave behind.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

CHUNK_BYTES: Final = 1 << 20
HASHED_BYTES: Final = 64 << 10


class Disk:
    """The operations, as the system has them; each raises OSError as the system does."""

    def make_folder(self, path: Path) -> None:
        """Make one folder, where another process did not just do so; its parent exists."""
        path.mkdir(mode=0o755, exist_ok=True)

    def write(self, path: Path, parts: Iterable[bytes], *, at: int = 0) -> None:
        """Write parts into a file from byte `at` on, and cut off what it held beyond them.

        Nothing of it is safe before `sync`.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(path, flags, 0o644), "wb") as file:
            file.seek(at)
            for part in parts:
                file.write(part)
            file.truncate()

    def sync(self, path: Path) -> None:
        """Return when the content of a file is on the disk."""
        _sync(path, os.O_RDONLY)

    def sync_folder(self, path: Path) -> None:
        """Return when the names in a folder are on the disk."""
        _sync(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, in one step, in the place of what had that name."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file; nothing where there is none."""
        path.unlink(missing_ok=True)


def replace(disk: Disk, path: Path, content: bytes, *, keep: Path | None = None) -> None:
    """Put a file in the place of another so that, whenever the power goes, one of the two is there whole.

    Args:
        disk: to write to.
        path: of the file.
        content: of the new file.
        keep: name that the file before gets, in the same folder.
    """
    new = path.with_name(f"{path.name}.new")
    disk.write(new, (content,))
    disk.sync(new)
    if keep is not None and path.exists():
        disk.rename(path, keep)
    disk.rename(new, path)
    disk.sync_folder(path.parent)


def parts_of(path: Path) -> Iterator[bytes]:
    """The content of a file, in parts of a megabyte.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        while part := file.read(CHUNK_BYTES):
            yield part


def hash_file(path: Path) -> str:
    """Sha256 (hex) of a file.

    Raises:
        OSError: it cannot be read.
    """
    # One buffer for all of it: large ones would stay with the process that loads a model next.
    total, buffer = hashlib.sha256(), bytearray(HASHED_BYTES)
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            total.update(memoryview(buffer)[:n])
    return total.hexdigest()


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
