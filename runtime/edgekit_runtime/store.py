"""Versions on the device's disk: blobs named by their hash, and one state that points at them.

```
STORE/
  blobs/<sha256>         a file of a release, or the document of a release itself; never changed
  incoming/<sha256>      a blob on its way in
  incoming/<sha256>.delta  what makes that blob out of another
  state.json             what is live, and where an update is; replaced whole
  state.before.json      the one before it
  lock                   held for the moment in which the state changes
  driver                 held by the process that carries an update out
  agent                  held by the agent of this device
  labels.json            labels of this device that the server set
  shadow                 held by the one serving process whose candidate runs beside it
  attempts/              signs of life of the processes that try a version in its probation
  spool/                 windows that the server does not have yet
  payloads.json          of which candidate inputs may be sent, where its answers differ; mostly there is none
  payloads/              such inputs, until the server has them
  trust/                 metadata of the server that are trusted
```

A blob gets its name only when its content is on the disk and has that hash; a state is written only when every blob
that it points at has its name. So whatever a power cut leaves, the state that is there can be served.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

from edgekit_runtime import payloads
from edgekit_runtime import state as states
from edgekit_runtime.contract import ContractError, File, Manifest, Release
from edgekit_runtime.disk import Disk, hash_file, replace
from edgekit_runtime.errors import ArtifactError, StoreError
from edgekit_runtime.state import State
from edgekit_runtime.strict_json import MAX_BYTES

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# A state takes a few kilobytes, and twice that while it is replaced; what is left is for logs of the system.
SPARE_BYTES: Final = 1 << 20
MAX_RELEASE_BYTES: Final = 4 << 20
MAX_STATE_BYTES: Final = 1 << 20


class Store:
    """The versions of one model on one device.

    Reading needs no lock: files never change under their name. The state changes inside `locked()`; blobs come and go
    inside `driven()`, so that an application never waits for a transfer.

    Args:
        path: folder of the store.
        disk: does what changes it.
        quota_bytes: what all versions together may take; None leaves it to the disk.
    """

    def __init__(self, path: Path, *, disk: Disk | None = None, quota_bytes: int | None = None) -> None:
        self.path, self.disk, self.quota_bytes = path, disk or Disk(), quota_bytes
        self.blobs, self.incoming = path / "blobs", path / "incoming"
        self.spool, self.trust, self.attempts = path / "spool", path / "trust", path / "attempts"
        self.payloads = path / payloads.FOLDER
        self._state, self._before = path / "state.json", path / "state.before.json"

    def make(self) -> None:
        """Make the folders of a store; what is there stays.

        Raises:
            StoreError: they cannot be made.
        """
        with _told(self.path):
            missing = [each for each in (self.path, *self.path.parents) if not each.exists()]
            for folder in [*reversed(missing), self.blobs, self.incoming]:
                if not folder.exists():
                    self.disk.make_folder(folder)
                    self.disk.sync_folder(folder.parent)
            if not missing and not self._state.exists():
                # Whoever made them may have been ended before it synced.
                for folder in (self.path.parent, self.path):
                    with suppress(PermissionError):
                        self.disk.sync_folder(folder)

    def locked(self) -> AbstractContextManager[None]:
        """Be the only one that changes the state; waits for others, who need milliseconds.

        Raises:
            StoreError: the store cannot be written.
        """
        return self._lock("lock", fcntl.LOCK_EX)

    def driven(self) -> AbstractContextManager[None]:
        """Be the only one that carries updates out.

        Raises:
            StoreError: another process does, or the store cannot be written.
        """
        return self._lock("driver", fcntl.LOCK_EX | fcntl.LOCK_NB)

    def tended(self) -> AbstractContextManager[None]:
        """Be the agent of this device.

        Raises:
            StoreError: there is one, or the store cannot be written.
        """
        return self._lock("agent", fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def has_agent(self) -> bool:
        """Whether an agent tends this store, or ever did."""
        return (self.path / "agent").exists()

    def shadowed(self) -> AbstractContextManager[None]:
        """Be the only one that has a candidate beside the live version.

        Raises:
            StoreError: another process has, or the store cannot be written.
        """
        return self._lock("shadow", fcntl.LOCK_EX | fcntl.LOCK_NB)

    @contextmanager
    def _lock(self, name: str, how: int) -> Iterator[None]:
        """The system gives a lock back with the process, however that ends."""
        if not self.path.exists():
            raise StoreError(
                f"{self.path}: there is no store here",
                expected="a folder that an install made",
                way_out="Install a version with `edgekit-runtime install BUNDLE`, or name another folder with --store.",
                code="no_store",
            )
        with _told(self.path):
            handle = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, how)
            except BlockingIOError:
                raise StoreError(
                    f"{self.path}: another process holds `{name}`",
                    expected="one agent, or one command, at a time",
                    way_out="Wait for it; `edgekit-runtime status` only reads and works meanwhile.",
                    code="store_busy",
                ) from None
            except OSError as error:
                raise _store_error(self.path / name, error) from error
            yield
        finally:
            # A child that was forked meanwhile has the handle, too, and would hold the lock as long as it lives.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)

    # What is live

    def state(self) -> State:
        """The state as it was persisted last; an empty one where nothing ever was.

        Raises:
            StoreError: both copies are damaged, or cannot be read.
        """
        damaged: list[str] = []
        for path in (self._state, self._before):
            try:
                with path.open("rb") as file:
                    return states.from_json(file.read(MAX_STATE_BYTES))
            except FileNotFoundError:
                continue
            except ContractError as error:
                damaged.append(f"{path.name}: {error}")
            except OSError as error:
                if error.errno not in {errno.EIO, errno.EISDIR}:
                    raise _store_error(path, error) from error
                damaged.append(f"{path.name}: {error.strerror}")
        if damaged:
            raise StoreError(
                f"{self.path}: the state is damaged ({'; '.join(damaged)})",
                expected="one whole copy of two",
                way_out="Look at the disk, then move both files away and install a version again.",
                code="state_damaged",
            )
        return State()

    def save(self, state: State) -> None:
        """Persist a state; when this returns, no power cut brings the one before back.

        Raises:
            StoreError: the disk is full, or cannot be written. What was persisted before holds.
        """
        with _told(self._state):
            # A damaged copy must not take the place of a whole one.
            whole = _reads(self._state)
            replace(self.disk, self._state, states.to_json(state), keep=self._before if whole else None)

    # What versions are made of

    def blob(self, sha256: str) -> Path:
        """Where the content with this hash lies, or would."""
        return self.blobs / sha256

    def release(self, release: str) -> Release:
        """The document of a release that is in the store.

        Raises:
            ArtifactError: it is not there, is damaged, or never was one.
        """
        try:
            with self.blob(release).open("rb") as file:
                document = file.read(MAX_RELEASE_BYTES + 1)
        except FileNotFoundError:
            raise _artifact_error(self.blob(release), "is not there", "missing") from None
        except OSError as error:
            raise _store_error(self.blob(release), error) from error
        # What is too long is none, whatever its hash.
        if len(document) <= MAX_RELEASE_BYTES and hashlib.sha256(document).hexdigest() != release:
            raise _artifact_error(self.blob(release), "has another hash than its name", "damaged")
        try:
            found = Release.from_json(document)
        except ContractError as error:
            raise _artifact_error(self.blob(release), f"is no release: {error}", "manifest") from error
        if found.id != release:
            raise _artifact_error(self.blob(release), "is written otherwise than releases are", "manifest")
        return found

    def manifest(self, release: Release) -> Manifest:
        """The manifest of a release in the store.

        Raises:
            ArtifactError: it is damaged, or is no manifest.
        """
        path = self.blob(release.files["manifest.json"].sha256)
        try:
            with path.open("rb") as file:
                return Manifest.from_json(file.read(MAX_BYTES + 1))
        except FileNotFoundError:
            raise _artifact_error(path, "is not there", "missing") from None
        except ContractError as error:
            raise _artifact_error(path, f"is no manifest: {error}", "manifest") from error
        except OSError as error:
            raise _store_error(path, error) from error

    def missing(self, release: Release) -> dict[str, File]:
        """Files of a release whose blobs are not there yet: hash to file."""
        files = {file.sha256: file for file in release.files.values()}
        return {sha256: file for sha256, file in files.items() if not self.blob(sha256).exists()}

    def check_room(self, release: Release, state: State) -> None:
        """Hold what a release would add against the quota and the disk, before a byte of it is fetched.

        What a candidate before it left behind, to be gone on with, goes where there is no room for both.

        Raises:
            StoreError: it does not fit beside what is never deleted.
        """
        try:
            self._check_room(release, state)
        except StoreError:
            if not self._make_way(release, state):
                raise
            self._check_room(release, state)

    def has_room(self, release: Release, state: State, beside_bytes: int) -> bool:
        """Tell whether so many bytes fit for a while beside all that a release adds."""
        try:
            self._check_room(release, state, beside_bytes)
        except StoreError:
            return False
        return True

    def _check_room(self, release: Release, state: State, beside_bytes: int = 0) -> None:
        missing = self.missing(release)
        added = beside_bytes + sum(file.size_bytes for file in missing.values())
        left = (max(0, file.size_bytes - self.received(sha256)) for sha256, file in missing.items())
        to_come = beside_bytes + sum(left)
        held = sum(self._size(sha256) for sha256 in self.reachable(state, release))
        if self.quota_bytes is not None and held + added > self.quota_bytes:
            raise StoreError(
                f"{self.path}: {release.name} {release.version} adds {added:,} bytes to {held:,} that are in use",
                expected=f"at most {self.quota_bytes:,} bytes for all versions",
                way_out="Raise the quota, or publish a smaller bundle with fewer formats.",
                code="quota",
            )
        free = shutil.disk_usage(self.path).free
        if to_come + SPARE_BYTES > free:
            raise StoreError(
                f"{self.path}: {release.name} {release.version} adds {to_come:,} bytes, {free:,} are free",
                expected=f"{SPARE_BYTES:,} bytes to spare",
                way_out="Free some room on this disk; `edgekit-runtime gc` removes what no version needs.",
                code="no_room",
            )

    def add(self, sha256: str, size_bytes: int, parts: Iterable[bytes], *, at: int = 0) -> Path:
        """Take a blob in.

        Args:
            sha256: that the content has to have.
            size_bytes: that it has to have.
            parts: of the content, from byte `at` on.
            at: bytes that an earlier call, which was cut off, left in `incoming`.

        Returns:
            Its path; the content is on the disk.

        Raises:
            ArtifactError: the content is another; nothing of it is kept.
            StoreError: the disk is full, or cannot be written; what came in stays for the next try, but not on a full
                disk, where the state needs the room to say so.
        """
        part, blob = self.incoming / sha256, self.blob(sha256)
        with _told(part):
            self._take_in(part, sha256, size_bytes, parts, at)
            self.disk.rename(part, blob)
            self.disk.sync_folder(self.blobs)
        return blob

    def add_delta(
        self, blob: str, sha256: str, size_bytes: int, parts: Iterable[bytes], *, at: int = 0
    ) -> Path:
        """Take in what makes a blob out of another; it never becomes a blob itself.

        Its hash is nobody's promise, and must not name a file that something else may rely on.

        Args:
            blob: hash of what it makes.
            sha256: that it has to have itself.
            size_bytes: as in `add`.
            parts: as in `add`.
            at: as in `add`.

        Raises:
            ArtifactError: as `add`.
            StoreError: as `add`.
        """
        part = self.delta(blob)
        with _told(part):
            self._take_in(part, sha256, size_bytes, parts, at)
        return part

    def _take_in(self, part: Path, sha256: str, size_bytes: int, parts: Iterable[bytes], at: int) -> None:
        try:
            self.disk.write(part, _at_most(parts, size_bytes - at), at=at)
            self.disk.sync(part)
        except OSError as error:
            if error.errno in NO_ROOM:
                self.disk.remove(part)
            raise
        size, found = part.stat().st_size, hash_file(part)
        if size != size_bytes or found != sha256:
            self.disk.remove(part)
            raise _artifact_error(part, f"has {size:,} bytes with the hash {found[:16]}…", "damaged")

    def delta(self, sha256: str) -> Path:
        """Where what makes a blob out of another lies, or would."""
        return self.incoming / f"{sha256}.delta"

    def received(self, name: str) -> int:
        """Bytes of a blob, or of a delta by the name of its file, that came in before the transfer was cut off."""
        return self._size(name, self.incoming)

    def forget(self, name: str) -> None:
        """Remove what came in of a blob, or a delta by the name of its file.

        Raises:
            StoreError: the disk cannot be written.
        """
        with _told(self.incoming / name):
            self.disk.remove(self.incoming / name)

    def add_release(self, release: Release, read: Callable[[str], Iterable[bytes]]) -> None:
        """Take everything in that a release is made of and the store does not have.

        Args:
            release: its document goes in last: where it is, all of it was.
            read: path inside the bundle → parts of the content.

        Raises:
            ArtifactError: a file is not what the release says.
            StoreError: as `check_room` and `add`.
        """
        self.check_room(release, self.state())
        paths = {file.sha256: path for path, file in release.files.items()}
        for sha256, file in self.missing(release).items():
            self.add(sha256, file.size_bytes, read(paths[sha256]))
        document = release.to_json().encode()
        self.add(release.id, len(document), (document,))

    def check(self, release: Release) -> None:
        """Read every file of a release again and hold it against its hash; damaged ones are removed.

        Raises:
            ArtifactError: some are damaged or missing; it names the first.
        """
        bad: list[ArtifactError] = []
        for path, file in release.files.items():
            blob = self.blob(file.sha256)
            try:
                found = hash_file(blob)
            except FileNotFoundError:
                bad.append(_artifact_error(blob, f"({path}) is not there", "missing"))
                continue
            except OSError as error:
                raise _store_error(blob, error) from error
            if found != file.sha256:
                with _told(blob):
                    self.disk.remove(blob)
                bad.append(_artifact_error(blob, f"({path}) has another hash than its name", "damaged"))
        if bad:
            raise bad[0]

    # What no version needs

    def reachable(self, state: State, known: Release | None = None) -> frozenset[str]:
        """Names of the blobs that slots point at.

        Args:
            state: as it is persisted.
            known: a release whose document need not be read, as it is at hand.

        Raises:
            ArtifactError: the document of a version is damaged, so that nobody knows what it needs.
        """
        found = set(state.held)
        for release in state.held:
            try:
                document = known if known is not None and known.id == release else self.release(release)
                found |= {file.sha256 for file in document.files.values()}
            except ArtifactError:
                # The document of a candidate comes last, and again where it rotted before it was verified.
                if release != state.candidate:
                    raise
        return frozenset(found)

    def collect(self, state: State) -> int:
        """Remove what no slot points at; nothing while a candidate is on its way, whose parts nobody knows yet.

        Args:
            state: as it is persisted.

        Returns:
            Bytes that became free.

        Raises:
            ArtifactError: as `reachable`; nothing is removed.
            StoreError: the disk cannot be written.
        """
        if state.candidate is not None:
            return 0
        return self._remove_but(self.reachable(state))

    def _make_way(self, release: Release, state: State) -> int:
        """Remove what neither a slot nor this release needs; returns the bytes that became free."""
        return self._remove_but(
            self.reachable(state, release) | {release.id} | {f.sha256 for f in release.files.values()}
        )

    def _remove_but(self, kept: Set[str]) -> int:
        freed = 0
        with _told(self.path):
            for path in (*sorted(self.blobs.iterdir()), *sorted(self.incoming.iterdir())):
                if path.name not in kept:
                    freed += path.stat().st_size
                    self.disk.remove(path)
        return freed

    def _size(self, name: str, folder: Path | None = None) -> int:
        try:
            return ((folder or self.blobs) / name).stat().st_size
        except FileNotFoundError:
            return 0


def _at_most(parts: Iterable[bytes], left: int) -> Iterator[bytes]:
    """Parts up to one byte more than there should be: endless data fills no disk, and is found out by its length."""
    for part in parts:
        if left < 0:
            return
        yield part[: left + 1]
        left -= len(part)


def _reads(path: Path) -> bool:
    try:
        states.from_json(path.read_bytes())
    except (OSError, ContractError):
        return False
    return True


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Let errors of the system name the file and the way out."""
    try:
        yield
    except OSError as error:
        raise _store_error(path, error) from error


def _store_error(path: Path, error: OSError) -> StoreError:
    full = error.errno in NO_ROOM
    return StoreError(
        f"{error.filename or path}: {error.strerror or error}",
        expected="a store that this user can read and write, with room left",
        way_out="Free some room; `edgekit-runtime gc` removes what no version needs."
        if full
        else "Run as the user who owns the store, or look at the disk.",
        code="no_room" if full else "disk",
    )


def _artifact_error(path: Path, found: str, code: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {found}",
        expected="the bytes that the release names",
        way_out="Install the version again.",
        code=code,
    )
