"""Makes a fleet: its folder, keys, database, blobs and first signed metadata, and the token of its first admin."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from securesystemslib.signer import CryptoSigner, Key  # type: ignore[attr-defined] # no `__all__`

from edgekit.fleet.context import Fleet
from edgekit.fleet.disagreements import sealing
from edgekit.fleet.errors import ConflictError, InvalidError
from edgekit.fleet.identity import access
from edgekit.fleet.releases import publication
from edgekit.fleet.releases.documents import BlobDocuments
from edgekit.fleet.settings import FILE, Settings
from edgekit.fleet.storage.blobs import open_blobs
from edgekit.fleet.storage.database import Database
from edgekit.fleet.trust import keys as trust_keys
from edgekit.fleet.trust import pending as proposals
from edgekit.fleet.trust import publishing, repository
from edgekit.fleet.trust.layout import metadata_name

MAX_KEYS: Final = 16
ROOT: Final = "root.json"


@dataclass(frozen=True, slots=True)
class Made:
    """A new fleet.

    Attributes:
        folder: of the server.
        root: `root.json`, which devices are provisioned with.
        offline: private keys that are to be moved away.
        encrypted: whether they are under a passphrase.
        token: of the first admin; it is not kept.
    """

    folder: Path
    root: Path
    offline: tuple[Path, ...]
    encrypted: bool
    token: str

    def words(self) -> str:
        """What to do next, for people."""
        keys = "\n".join(f"  {each}" for each in self.offline)
        open_keys = (
            ""
            if self.encrypted
            else "They are NOT encrypted: whoever reads them can make every device run anything.\n"
        )
        return (
            f"The fleet is in {self.folder}.\n\n"
            f"Move these keys to machines that are offline, each to another person, and keep a copy of each:\n{keys}\n"
            f"{open_keys}"
            "The server needs none of them. Those of targets publish models (`edgekit publish --key`), those of root\n"
            "replace keys that were lost or stolen.\n\n"
            f"Give {self.root} to devices with `edgekit-runtime`: it is what they trust first.\n"
            f"Start the server:  edgekit fleet serve {self.folder}\n"
            "Token of the first admin, shown this once (EDGEKIT_TOKEN):\n"
            f"  {self.token}\n"
        )


def init(
    folder: Path,
    *,
    root_keys: int = 1,
    root_threshold: int = 1,
    targets_keys: int = 1,
    targets_threshold: int = 1,
    passphrase: str | None = None,
    settings: Mapping[str, str] | None = None,
    now: Callable[[], float] = time.time,
) -> Made:
    """Make a fleet in a new or empty folder; where that fails the folder is left as it was.

    Args:
        folder: of the server.
        root_keys: that sign changes of keys.
        root_threshold: signatures that it takes.
        targets_keys: that sign versions.
        targets_threshold: signatures that it takes.
        passphrase: of the offline keys; None leaves them unencrypted.
        settings: keys of `fleet.toml` to values that are text: database_url, blobs_url, public_url.
        now: seconds since 1970.

    Raises:
        ConflictError: the folder, the database or the blobs hold something.
        InvalidError: thresholds that no keys can reach, or a passphrase that is too short.
        UnavailableError: the database or the blobs do not answer.
    """
    _check_threshold("root", root_keys, root_threshold)
    _check_threshold("targets", targets_keys, targets_threshold)
    there = folder.exists()
    check_empty(folder)
    try:
        _make(folder)
        write_new(folder / FILE, toml(settings or {}).encode(), 0o600)
        signers, paths = _offline(
            folder / "keys" / "offline", {"root": root_keys, "targets": targets_keys}, passphrase
        )
        thresholds = {"root": root_threshold, "targets": targets_threshold}
        token = _fill(folder, signers, thresholds, now)
    except BaseException:
        clear(folder, keep=there)
        raise
    return Made(folder, folder / ROOT, paths, passphrase is not None, token)


def _fill(
    folder: Path,
    signers: Mapping[str, list[CryptoSigner]],
    thresholds: Mapping[str, int],
    now: Callable[[], float],
) -> str:
    settings = Settings.read(folder)
    database = Database.open(settings.database_url, create=True)
    try:
        database.migrate()
        fleet = Fleet(database, open_blobs(settings.blobs_url), settings, now)
        documents = BlobDocuments(fleet.blobs, database)
        if next(iter(fleet.blobs.names()), None) is not None:
            raise _in_use(f"{settings.blobs_url} holds something", "Take an empty place for the blobs.")
        online = trust_keys.create_online(folder / "keys" / "online")
        sealing.make(folder)
        public: dict[str, list[Key]] = {
            role: [each.public_key for each in of] for role, of in signers.items()
        }
        public |= {role: [online[role]] for role in ("snapshot", "timestamp")}
        moment = datetime.fromtimestamp(now(), UTC)
        pending = proposals.propose(
            (), None, moment,
            new_root=repository.first_root(public, thresholds),
            new_targets=repository.first_targets([online["rollout"]]),
        )  # fmt: skip
        for signer in (*signers["root"], *signers["targets"]):
            pending = proposals.sign(pending, signer, moment)
        # Before anything is published: it refuses a database that belongs to another fleet.
        token = access.first_token(fleet)
        publishing.submit(documents, trust_keys.load_online(folder / "keys" / "online"), pending, moment)
        publication.publish(fleet)
        root = documents.read(metadata_name("root", 1))
        assert root is not None
        write_new(folder / ROOT, root, 0o644)
    finally:
        database.close()
    return token


def _offline(
    folder: Path, counts: Mapping[str, int], passphrase: str | None
) -> tuple[dict[str, list[CryptoSigner]], tuple[Path, ...]]:
    folder.mkdir(mode=0o700, parents=True)
    signers: dict[str, list[CryptoSigner]] = {}
    paths: list[Path] = []
    for role, count in counts.items():
        for number in range(1, count + 1):
            path = folder / f"{role}-{number}.pem"
            trust_keys.create(path, passphrase)
            signers.setdefault(role, []).append(trust_keys.load(path, lambda _: passphrase or ""))
            paths.append(path)
    return signers, tuple(paths)


def toml(settings: Mapping[str, str | float]) -> str:
    """`fleet.toml` of settings; texts that are empty are left to their default."""
    # Strings, numbers and booleans of JSON are those of TOML.
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items() if value != ""
    ]
    head = "# Settings of this fleet; every key and its default: docs/fleet.md\n"
    return head + "".join(f"{line}\n" for line in lines)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet, which has its mode from the first byte on."""
    path.touch(mode, exist_ok=False)
    path.write_bytes(content)


def _check_threshold(role: str, keys: int, threshold: int) -> None:
    if not 1 <= threshold <= keys <= MAX_KEYS:
        raise InvalidError(
            f"{threshold} of {keys} keys of {role}", expected=f"1 ≤ threshold ≤ keys ≤ {MAX_KEYS}",
            way_out=f"Correct --{role}-threshold or --{role}-keys.", code="threshold",
        )  # fmt: skip


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        ConflictError: it does, or is a file.
        InvalidError: it cannot be looked at.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise _in_use(
                f"{folder} holds something" if folder.is_dir() else f"{folder} is a file",
                "Choose another folder; a fleet that is there already is started with `edgekit fleet serve`.",
            )
    except OSError as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> InvalidError:
    return InvalidError(
        f"{folder}: {error.strerror or error}", expected="a folder that can be made and written",
        way_out="Choose another folder.", code="folder",
    )  # fmt: skip


def _in_use(found: str, way_out: str) -> ConflictError:
    return ConflictError(found, expected="a new or empty place", way_out=way_out, code="not_empty")


def clear(folder: Path, *, keep: bool) -> None:
    """Take away what was made in a folder.

    Args:
        folder: that was empty or not there.
        keep: the folder itself.
    """
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for each in folder.iterdir() if folder.is_dir() else ():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
