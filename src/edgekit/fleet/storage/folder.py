"""Blobs as files of a folder, which a static file server may serve as they are. For POSIX systems."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Final

from edgekit.fleet.errors import FleetError, NotFoundError
from edgekit.fleet.storage.spool import (
    CHUNK_BYTES,
    Spooled,
    check_name,
    check_same,
    cut_short,
    failure_of,
    in_the_way,
    is_name,
    missing,
    spool,
    stretch,
)

_TMP: Final = ".tmp"
_STALE_S: Final = 24 * 3600
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK the opening of a named pipe would wait for its writer.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MISSING: Final = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class FolderBlobs:
    """A folder; see `edgekit.fleet.storage.blobs.Blobs` for what the methods promise.

    Every folder on the way to a file is opened for itself and without following links, so no link that somebody puts
    into the folder leads out of it.
    """

    __slots__ = ("root",)

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        with _told(str(self.root)):
            self.root.mkdir(parents=True, exist_ok=True)
        # Where this account may only read, there is nothing to sweep.
        with suppress(OSError):
            self._sweep()

    def put(
        self,
        name: str,
        parts: Iterable[bytes],
        *,
        max_bytes: int,
        sha256: str | None = None,
        replace: bool = False,
    ) -> int:
        """Write `parts` under `name`, all or nothing."""
        check_name(name)
        with self._temporary() as (folder, temporary, descriptor):
            with FileIO(descriptor, "wb", closefd=False) as file:
                new = spool(file, parts, sha256=sha256, max_bytes=max_bytes, name=name)
            with _told(name):
                os.fchmod(descriptor, 0o644)
                os.fsync(descriptor)
                try:
                    self._place(name, folder, temporary, new, replace=replace)
                except (IsADirectoryError, NotADirectoryError) as error:
                    raise in_the_way(name) from error
        return new.size_bytes

    def open(self, name: str, at: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Return the bytes of `name` in chunks."""
        size = self.size(name)
        if size is None:
            raise missing(name)
        return self._read(name, at, stretch(name, size, at, length))

    def size(self, name: str) -> int | None:
        """Return the size in bytes, None where there is nothing."""
        found = self._stat(name)
        return None if found is None else found.st_size

    def written_s(self, name: str) -> float | None:
        """Return when it was written last, None where there is nothing."""
        found = self._stat(name)
        return None if found is None else found.st_mtime

    def delete(self, name: str) -> None:
        """Remove `name`, if it is there."""
        check_name(name)
        with _told(name), suppress(*_MISSING), self._parent(name) as (parent, last):
            os.unlink(last, dir_fd=parent)
            os.fsync(parent)

    def names(self, prefix: str = "") -> Iterator[str]:
        """Return the names in the folder `prefix`, in no order."""
        prefix = prefix.rstrip("/")
        if prefix:
            check_name(prefix)
        with (
            _told(prefix),
            suppress(*_MISSING),
            self._parent(f"{prefix}/" if prefix else "") as (start, _),
        ):
            for folder, folders, files, descriptor in os.fwalk(".", dir_fd=start, onerror=_raise):
                # Hidden ones are temporary, or somebody else's.
                folders[:] = [each for each in folders if each[0] != "."]
                for file in files:
                    name = PurePosixPath(prefix, folder, file).as_posix()
                    if is_name(name) and _is_file(file, descriptor):
                        yield name

    def _place(self, name: str, folder: int, temporary: str, new: Spooled, *, replace: bool) -> None:
        with self._parent(name, make=True) as (parent, last):
            if replace:
                _date_after(folder, temporary, parent, last)
                os.replace(temporary, last, src_dir_fd=folder, dst_dir_fd=parent)
            else:
                while not _publish(folder, temporary, parent, last):
                    if self._same_again(name, new, parent, last):
                        break
            os.fsync(parent)

    def _same_again(self, name: str, new: Spooled, parent: int, last: str) -> bool:
        """Refresh what is there with the same bytes; False where somebody deleted it meanwhile."""
        if self.size(name) is None:
            with suppress(FileNotFoundError):
                os.stat(last, dir_fd=parent, follow_symlinks=False)
                raise in_the_way(name)
            return False
        try:
            check_same(name, new, self.open(name))
            os.utime(last, dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, NotFoundError):
            return False
        return True

    def _stat(self, name: str) -> os.stat_result | None:
        check_name(name)
        with _told(name):
            try:
                with self._file(name) as descriptor:
                    return os.fstat(descriptor)
            except _MISSING:
                return None

    def _read(self, name: str, at: int, end: int) -> Iterator[bytes]:
        with _told(name):
            try:
                with self._file(name) as descriptor:
                    done = at
                    while done < end:
                        part = os.pread(descriptor, min(CHUNK_BYTES, end - done), done)
                        if not part:
                            raise cut_short(name, done, end)
                        done += len(part)
                        yield part
            except _MISSING as error:
                raise missing(name) from error

    @contextmanager
    def _file(self, name: str) -> Iterator[int]:
        with self._parent(name) as (parent, last):
            descriptor = os.open(last, _FILE_FLAGS, dir_fd=parent)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise IsADirectoryError(errno.EISDIR, "not a plain file", name)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder in which `name` lies, each folder on the way for itself."""
        *folders, last = name.split("/")
        try:
            current = os.open(self.root, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
        except OSError as error:
            raise failure_of(error, str(self.root)) from error
        try:
            for folder in folders:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(folder, 0o755, dir_fd=current)
                        os.fsync(current)
                inner = os.open(folder, _FOLDER_FLAGS, dir_fd=current)
                os.close(current)
                current = inner
            yield current, last
        finally:
            os.close(current)

    @contextmanager
    def _temporary(self) -> Iterator[tuple[int, str, int]]:
        """Make a file that nobody reads: the folder's descriptor, the file's name and descriptor."""
        temporary = secrets.token_hex(16)
        with _told(str(self.root)):
            (self.root / _TMP).mkdir(mode=0o700, exist_ok=True)
            folder = os.open(self.root / _TMP, _FOLDER_FLAGS)
        try:
            with _told(str(self.root)):
                descriptor = os.open(
                    temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder
                )
            try:
                yield folder, temporary, descriptor
            finally:
                os.close(descriptor)
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
        finally:
            os.close(folder)

    def _sweep(self) -> None:
        """Remove what a process that was killed left."""
        oldest = time.time() - _STALE_S
        for path in (self.root / _TMP).iterdir():
            if path.lstat().st_mtime < oldest:
                path.unlink()


def _publish(folder: int, temporary: str, parent: int, last: str) -> bool:
    """Give the file its name, unless the name is taken; tell whether it was free."""
    try:
        os.link(temporary, last, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links: two writers in the same moment could both find the name free.
        with suppress(FileNotFoundError):
            os.stat(last, dir_fd=parent, follow_symlinks=False)
            return False
        os.rename(temporary, last, src_dir_fd=folder, dst_dir_fd=parent)
    return True


def _date_after(folder: int, temporary: str, parent: int, last: str) -> None:
    """Date a file a whole second after the one that it replaces.

    Servers of files tell one version from another by size and by seconds, and signed metadata are of one size.
    """
    with suppress(FileNotFoundError):
        before_s = int(os.stat(last, dir_fd=parent, follow_symlinks=False).st_mtime)
        now_s = time.time()
        if now_s < before_s + 1:
            os.utime(temporary, (now_s, before_s + 1), dir_fd=folder, follow_symlinks=False)


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except FleetError:
        raise
    except OSError as error:
        raise failure_of(error, name) from error


def _is_file(name: str, folder: int) -> bool:
    with suppress(FileNotFoundError):
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # deleted meanwhile
        raise error
