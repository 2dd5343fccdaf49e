"""What a device believes of a server: metadata of The Update Framework (TUF), kept in one folder.

```
TRUST/
  root.json, timestamp.json, …   what is trusted now; python-tuf writes these, a server may name more roles
  root_history/                  every root since the first
  device/root.json               the first root, from provisioning; never changed
  device/clock.json              the floor of time
```

All verification is python-tuf's. It replaces files without a sync, so a power cut may tear one. A torn timestamp,
snapshot or targets is fetched again; a torn root is found again from the first one.

Whether metadata are expired is asked at the time of `trusted_time`, as clocks of devices lie.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, TargetFile, Timestamp  # type: ignore[attr-defined] # no `__all__`
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

from edgekit_runtime.disk import Disk, replace
from edgekit_runtime.errors import DeviceError, NetworkError, StoreError, TrustError
from edgekit_runtime.trusted_time import RELEASED, TIME_FORMAT, Floor, moment, signed_at

# Any server of static files will do: metadata are named by their version, targets by their hash, and only
# `timestamp.json` ever changes. The limits are many times what a fleet needs; endless data ends there.
CONFIG: Final = UpdaterConfig(
    max_root_rotations=256,
    max_delegations=32,
    root_max_length=512_000,
    timestamp_max_length=16_384,
    snapshot_max_length=1_000_000,
    targets_max_length=5_000_000,
    prefix_targets_with_hash=True,
    app_user_agent="edgekit-runtime",
)

_ANEW: Final = (
    "Publish it again, signed and newer. Where nobody slipped, the server or the network is hostile."
)
_CLOCK: Final = "Look at the clock of this device, then publish anew. What is installed keeps serving."
_AGAIN: Final = "Try again later; where it stays, ask who runs the server. What is installed keeps serving."
# The first row that fits counts: exception, code, what was expected, the way out.
REASONS: Final[tuple[tuple[type[Exception], str, str, str], ...]] = (
    (exceptions.UnsignedMetadataError, "tuf_signature", "signatures of enough of the trusted keys", _ANEW),
    (exceptions.BadVersionNumberError, "tuf_rollback", "the announced version, none older than seen", _ANEW),
    (exceptions.ExpiredMetadataError, "tuf_expired", "metadata that are valid now", _CLOCK),
    (exceptions.RepositoryError, "tuf_damaged", "the bytes that trusted metadata announce", _AGAIN),
    (exceptions.DownloadLengthMismatchError, "tuf_damaged", "no more bytes than were announced", _AGAIN),
)


@dataclass(frozen=True, slots=True)
class Target:
    """What trusted metadata say of a file on the server.

    Attributes:
        path: of the target.
        size_bytes: that it has.
        hashes: name of the algorithm to hex digest.
        custom: what the signer said beyond that; empty where that is no object.
    """

    path: str
    size_bytes: int
    hashes: Mapping[str, str]
    custom: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Hex digest.

        Raises:
            TrustError: whoever signed it gave other digests only.
        """
        if "sha256" not in self.hashes:
            raise TrustError(
                f"{self.path}: signed with {', '.join(self.hashes)} only",
                expected="a sha256",
                way_out="Publish it again with its sha256.",
                code="tuf_damaged",
            )
        return self.hashes["sha256"]


class Trust:
    """The trusted metadata of one device. One process at a time may use a folder.

    Args:
        folder: of the metadata.
        metadata_url: where the server has them.
        targets_url: where the server has the targets.
        fetcher: of bytes; HTTP through urllib3 by default.
        now: seconds since 1970, by a clock that may lie.
        released: no device is used before that; the floor of time while there is no other.
        disk: does what we change ourselves.
    """

    def __init__(
        self,
        folder: Path,
        *,
        metadata_url: str,
        targets_url: str,
        fetcher: FetcherInterface | None = None,
        now: Callable[[], float] = time.time,
        released: datetime = RELEASED,
        disk: Disk | None = None,
    ) -> None:
        self.folder, self.metadata_url, self.targets_url = folder, metadata_url, targets_url
        self.disk, self._now = disk or Disk(), now
        self._fetcher = _Whole(fetcher or Urllib3Fetcher(app_user_agent=CONFIG.app_user_agent))
        self._own = folder / "device"
        self._first = self._own / "root.json"
        self._floor = Floor(self._own / "clock.json", released, self.disk)
        self._refreshed: Updater | None = None

    def init(self, root: bytes) -> None:
        """Take the first root, which comes with the device and not over the network.

        Args:
            root: content of a `root.json`. The same one again changes nothing, nor does one that came after it.

        Raises:
            TrustError: it is no root, or this device trusts another.
            StoreError: the folder cannot be written.
        """
        with self._told():
            if self._first.exists() and any(path.read_bytes() == root for path in self._roots()):
                return
            # What is trusted already could have come from another root only.
            if self._first.exists() or os.path.lexists(self.folder / "root.json"):
                raise TrustError(
                    f"{self.folder}: this device trusts another root already",
                    expected="the root that it was provisioned with; newer ones come from the server",
                    way_out="To provision it anew, remove this folder first.",
                    code="tuf_root",
                )
            _check_root(root)
            missing = [each for each in (self._own, *self._own.parents) if not each.exists()]
            for folder in reversed(missing):
                self.disk.make_folder(folder)
                self.disk.sync_folder(folder.parent)
            replace(self.disk, self._first, root)

    def _roots(self) -> list[Path]:
        """The first root, and those that it led to."""
        return [self._first, *(self.folder / "root_history").glob("*.root.json")]

    def refresh(self) -> None:
        """Bring root, timestamp, snapshot and targets up to date.

        Raises:
            TrustError: what the server has is not to be trusted, or has expired. What was trusted before is kept.
            NetworkError: the server cannot be reached.
            StoreError: the folder cannot be read or written.
        """
        # After a failure nothing older answers either.
        self._refreshed = None
        with self._told():
            updater = self._refresh()
            self._learn(updater)
            # From here on no power cut brings anything older back, which a server could then offer again.
            for path in (*self.folder.glob("*.json"), *(self.folder / "root_history").iterdir()):
                self.disk.sync(path)
            self.disk.sync_folder(self.folder / "root_history")
            self.disk.sync_folder(self.folder)
        self._refreshed = updater

    def target(self, path: str) -> Target:
        """What the trusted roles say of a file, after a refresh where one is due.

        Raises:
            TrustError: nobody who may has signed it; code `tuf_untrusted`. Else as `refresh`.
            NetworkError: as `refresh`.
            StoreError: as `refresh`.
        """
        with self._told():
            info = self._find(self._fresh(), path)
        custom = info.custom if isinstance(info.custom, Mapping) else {}
        return Target(path, info.length, dict(info.hashes), custom)

    def document(self, path: str, max_bytes: int) -> bytes:
        """The content of a small target. Nothing of it is returned before its length and hashes are right.

        Args:
            path: of the target.
            max_bytes: a larger one is refused before it is fetched.

        Raises:
            TrustError: as `target`, or the content is another, or larger.
            NetworkError: the server cannot be reached.
            StoreError: as `refresh`, or there is no room for temporary files.
        """
        with self._told(), TemporaryDirectory() as scratch:
            updater = self._fresh()
            info = self._find(updater, path)
            if info.length > max_bytes:
                raise TrustError(
                    f"{path}: signed with {info.length:,} bytes",
                    expected=f"a document of at most {max_bytes:,} bytes",
                    way_out="Publish a smaller one.",
                    code="tuf_damaged",
                )
            file = Path(scratch) / "document"
            updater.download_target(info, str(file))
            return file.read_bytes()

    def _find(self, updater: Updater, path: str) -> TargetFile:
        info = updater.get_targetinfo(path)
        if info is None:
            raise TrustError(
                f"{path}: nobody whom this device trusts with it has signed it",
                expected="a target of the role `targets`, or of a role that it delegates this path to",
                way_out="Publish it, or look for a slip in its name.",
                code="tuf_untrusted",
            )
        return info

    def _fresh(self) -> Updater:
        """The last refresh, or a new one where there is none or time has run past what that one trusted."""
        if self._refreshed is not None:
            reference = self._set_time(self._refreshed)
            if not any(signed.is_expired(reference) for signed in self._refreshed._trusted_set):
                return self._refreshed
        self.refresh()
        assert self._refreshed is not None
        return self._refreshed

    def _refresh(self, *, again: bool = True) -> Updater:
        updater = self._open()
        keys = _timestamp_keys(updater)
        try:
            updater.refresh()
        except exceptions.ExpiredMetadataError:
            # The refresh itself brought the root that voids the floor by which something counted as expired.
            if again and _timestamp_keys(updater) != keys:
                return self._refresh(again=False)
            raise
        return updater

    def _open(self) -> Updater:
        """Start from the root that was trusted last; where a power cut tore it, from the first one."""
        if not self._first.exists():
            raise TrustError(
                f"{self.folder}: there is no trusted root",
                expected="the root that a device gets when it is provisioned",
                way_out="Give it the root.json of your fleet once: `edgekit-runtime agent --root root.json`.",
                code="tuf_root",
            )
        # python-tuf writes each file under a random name first, and a power cut leaves that behind.
        for path in self.folder.glob("tmp*"):
            if "." not in path.name and path.is_file():
                path.unlink()
        try:
            updater = self._updater(None)
        except (OSError, exceptions.RepositoryError):
            updater = self._updater(self._first.read_bytes())
        self._set_time(updater)
        return updater

    def _updater(self, root: bytes | None) -> Updater:
        return Updater(
            str(self.folder),
            self.metadata_url,
            target_base_url=self.targets_url,
            fetcher=self._fetcher,
            config=CONFIG,
            bootstrap=root,
        )

    # Time

    def _set_time(self, updater: Updater) -> datetime:
        """Let expiry be decided at our time, and say which one that is.

        python-tuf reads the system clock and has no public way to be told another time. This is the only place that
        changes anything inside it; others read the roles that it verified.
        """
        reference = max(moment(self._now()), self._floor.of(_timestamp_keys(updater)))
        updater._trusted_set.reference_time = reference
        return reference

    def _learn(self, updater: Updater) -> None:
        """Raise the floor to the time at which the timestamp was signed, if it says so and everything agrees."""
        trusted, keys = updater._trusted_set, _timestamp_keys(updater)
        at = signed_at(trusted.timestamp.unrecognized_fields)
        if at is None or at <= self._floor.of(keys):
            return
        for signed in trusted:
            if signed.is_expired(at):
                raise exceptions.ExpiredMetadataError(
                    f"{signed.type} expired before {at:{TIME_FORMAT}}, when the timestamp was signed"
                )
        self._floor.rise(at, keys)
        # Roles that were not asked yet are held against what was learned.
        self._set_time(updater)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Let errors of python-tuf and of the system say what is wrong in our words."""
        try:
            yield
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise self._error(error) from error
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StoreError(
                f"{error.filename or self.folder}: {error.strerror or error}",
                expected="a folder that this user can read and write, with room left",
                way_out="Free some room, or run as the user who owns the folder.",
                code="no_room" if full else "disk",
            ) from error

    def _error(self, error: Exception) -> DeviceError:
        found = f"{self.metadata_url}: {error or type(error).__name__}"
        for kind, code, expected, way_out in REASONS:
            if isinstance(error, kind):
                return TrustError(found, expected=expected, way_out=way_out, code=code)
        return NetworkError(found, expected="an answer of the server", way_out=_AGAIN, code="network")


class _Whole(FetcherInterface):
    """Lets a connection that breaks off be a failed download, whatever the transport raises for it.

    python-tuf does so for errors before the first byte only.
    """

    def __init__(self, inner: FetcherInterface) -> None:
        self._inner = inner

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield from self._inner.fetch(url)
        except exceptions.DownloadError:
            raise
        except Exception as error:
            raise exceptions.DownloadError(f"{url} broke off: {error}") from error


def _check_root(root: bytes) -> None:
    problem = "it is not signed by enough of its own keys"
    try:
        found = Metadata[Root].from_bytes(root)
        if isinstance(found.signed, Root) and found.signed.get_verification_result(
            Root.type, found.signed_bytes, found.signatures
        ):
            return
    except exceptions.RepositoryError as error:
        problem = str(error)
    raise TrustError(
        f"this is no root: {problem}",
        expected="a root.json that is signed by its own keys",
        way_out="Take the one that your fleet publishes.",
        code="tuf_root",
    )


def _timestamp_keys(updater: Updater) -> list[str]:
    return sorted(updater._trusted_set.root.roles[Timestamp.type].keyids)
