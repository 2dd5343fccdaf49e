"""Where signed documents lie, and a folder that any server of static files can serve as it is."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from edgekit.fleet.errors import ConflictError, InvalidError, UnavailableError

NAME: Final = re.compile(r"(metadata|targets)(/[0-9A-Za-z][0-9A-Za-z._-]*){1,4}")


class Documents(Protocol):
    """Named documents. What was written before is visible no later than what was written after it."""

    def read(self, name: str) -> bytes | None:
        """The content, None where there is no such document."""

    def write(self, name: str, content: bytes, *, replaces: bytes | None) -> None:
        """Put a document in the place of what was read before, whole and in one step (compare and swap).

        Args:
            name: as `metadata/timestamp.json`.
            content: of it.
            replaces: what has to be there now; None where nothing may be there.

        Raises:
            ConflictError: something else is there; nothing was changed.
        """


class Folder:
    """Documents in a folder. Several processes on one machine may write to it.

    A document is written under another name, synced and linked or renamed into place, so that whoever serves the
    folder sees all of it or nothing, and a power cut leaves one of the two.

    Args:
        path: of the folder; made with the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes | None:
        """As `Documents.read`.

        Raises:
            UnavailableError: the file cannot be read.
        """
        try:
            return (self.path / _checked(name)).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _broken(name, error) from error

    def write(self, name: str, content: bytes, *, replaces: bytes | None) -> None:
        """As `Documents.write`.

        Raises:
            ConflictError: as there.
            UnavailableError: the folder cannot be written.
        """
        path = self.path / _checked(name)
        try:
            self._make(path.parent)
            with self._locked():
                if self.read(name) != replaces:
                    raise taken(name)
                self._put(path, content)
        except OSError as error:
            raise _broken(name, error) from error

    def _put(self, path: Path, content: bytes) -> None:
        # Outside of `metadata` and `targets`, so that nobody serves what is half written.
        handle, new = tempfile.mkstemp(prefix=".new-", dir=self.path)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # Who serves the folder is often another user.
            Path(new).chmod(0o644)
            Path(new).replace(path)
        except BaseException:
            Path(new).unlink(missing_ok=True)
            raise
        _sync(path.parent)

    def _make(self, folder: Path) -> None:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir(mode=0o755, exist_ok=True)
            _sync(each.parent)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def create(documents: Documents, name: str, content: bytes) -> None:
    """Write a document that never changes; the same one again is nothing new.

    Raises:
        ConflictError: another one has that name.
    """
    if documents.read(name) == content:
        return
    try:
        documents.write(name, content, replaces=None)
    except ConflictError:
        if documents.read(name) != content:
            raise


def taken(name: str) -> ConflictError:
    """What a storage says where it holds something else than was expected."""
    return ConflictError(
        f"{name}: somebody else wrote it meanwhile",
        expected="what was read before",
        way_out="Read again and try again.",
        code="document_taken",
    )


def _checked(name: str) -> str:
    if not NAME.fullmatch(name) or len(name) > 255:
        raise InvalidError(
            f"a document named {name[:80]!r}",
            expected="a name below metadata/ or targets/, without steps upwards",
            way_out="This is a mistake in the program; please report it.",
            code="document_name",
        )
    return name


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _broken(name: str, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"{name}: {error.strerror or error}",
        expected="a folder with room left that this user can read and write",
        way_out="Free some room, or run as the user who owns it; what is published keeps being served.",
        code="documents",
    )
