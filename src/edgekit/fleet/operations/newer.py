"""Signed metadata that are newer than a backup, from wherever they survived: a CDN, a bucket, a folder, a device.

They are public and carry their signatures, so it does not matter who kept them. What the root of the backup does not
lead to is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx
from tuf.api.metadata import (  # type: ignore[attr-defined] # no `__all__`
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from edgekit.fleet.errors import InvalidError, NotFoundError, UnavailableError
from edgekit.fleet.storage import blobs as storage
from edgekit.fleet.storage.blobs import Blobs, open_blobs
from edgekit.fleet.trust import rules
from edgekit.fleet.trust.layout import TIMESTAMP, metadata_name, target_name

MAX_BYTES: Final = 8 << 20
TIMEOUT_S: Final = 30.0
S = TypeVar("S", Root, Timestamp, Snapshot, Targets)
Reader = Callable[[str], bytes | None]
"""Name, as `metadata/3.root.json`, to content; None where there is none."""


@dataclass(frozen=True, slots=True)
class Brought:
    """What was newer than the backup.

    Attributes:
        roots: how many.
        targets: version that holds now, 0 where that of the backup does.
    """

    roots: int
    targets: int


def reader(place: str) -> Reader:
    """Reads documents of a place.

    Args:
        place: an address of HTTP, a folder, or `s3://bucket/prefix`; `metadata/` lies directly in it.
    """
    if not place.startswith(("http://", "https://")):
        blobs = open_blobs(place)
        return lambda name: _blob(blobs, name)

    def asked(name: str) -> bytes | None:
        url = f"{place.rstrip('/')}/{name}"
        try:
            answer = httpx.get(url, timeout=TIMEOUT_S, follow_redirects=True)
        except httpx.HTTPError as error:
            raise _away(url, str(error)) from error
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise _away(url, f"answered {answer.status_code}")
        return answer.content

    return asked


def bring(blobs: Blobs, read: Reader) -> Brought:
    """Put what is newer beside what was restored, verified.

    Args:
        blobs: that were restored.
        read: documents of the place.

    Raises:
        InvalidError: something there is not signed by keys that the backup leads to, or is not whole.
        UnavailableError: the place or the blobs do not answer.
    """
    roots = _roots(blobs)
    known = len(roots)
    while (content := read(metadata_name("root", len(roots) + 1))) is not None:
        roots.append(_follows(roots[-1], content))
        _put(blobs, metadata_name("root", len(roots)), content)
    root = roots[-1].signed
    content = read(TIMESTAMP)
    if content is None:
        return Brought(len(roots) - known, 0)
    timestamp = _signed(content, Timestamp, "timestamp", root)
    held = _blob(blobs, TIMESTAMP)
    if (
        held is not None
        and rules.read(held, Timestamp, "timestamp").signed.version >= timestamp.signed.version
    ):
        return Brought(len(roots) - known, 0)
    name = metadata_name("snapshot", timestamp.signed.snapshot_meta.version)
    snapshot = _signed(_needed(read, name), Snapshot, "snapshot", root)
    targets = _role(blobs, read, snapshot.signed, "targets", root)
    _role(blobs, read, snapshot.signed, "rollout", targets.signed)
    _documents(blobs, read, targets.signed)
    _put(blobs, name, _needed(read, name))
    # Last: it leads to all the others.
    blobs.put(TIMESTAMP, (content,), max_bytes=MAX_BYTES, replace=True)
    return Brought(len(roots) - known, targets.signed.version)


def _roots(blobs: Blobs) -> list[Metadata[Root]]:
    found: list[Metadata[Root]] = []
    while (content := _blob(blobs, metadata_name("root", len(found) + 1))) is not None:
        found.append(rules.read(content, Root, "root"))
    if not found:
        raise InvalidError(
            "a backup without a root", expected="the backup of a fleet", way_out="Take another backup.",
            code="backup",
        )  # fmt: skip
    return found


def _follows(before: Metadata[Root], content: bytes) -> Metadata[Root]:
    new = rules.read(content, Root, "root")
    if new.signed.version != before.signed.version + 1:
        raise _wrong(f"root version {new.signed.version}", f"version {before.signed.version + 1}")
    rules.check_signed(new, "root", [before.signed, new.signed])
    return new


def _role(
    blobs: Blobs, read: Reader, snapshot: Snapshot, role: str, authority: Root | Targets
) -> Metadata[Targets]:
    version = snapshot.meta[f"{role}.json"].version
    name = metadata_name(role, version)
    content = _needed(read, name)
    found = _signed(content, Targets, role, authority)
    if found.signed.version != version:
        raise _wrong(f"{name} says version {found.signed.version}", "the version of its name")
    _put(blobs, name, content)
    return found


def _documents(blobs: Blobs, read: Reader, targets: Targets) -> None:
    """Documents of releases, which a version that is published again would need."""
    for path in targets.targets:
        release = path.removeprefix("releases/").removesuffix(".json")
        name = target_name(path, release)
        if blobs.size(name) is None and (content := read(name)) is not None:
            blobs.put(name, (content,), max_bytes=MAX_BYTES, sha256=release)


def _signed(content: bytes, kind: type[S], role: str, authority: Root | Targets) -> Metadata[S]:
    found: Metadata[Any] = rules.read(content, kind, role)
    rules.check_signed(found, role, [authority])
    return found


def _put(blobs: Blobs, name: str, content: bytes) -> None:
    blobs.put(name, (content,), max_bytes=MAX_BYTES)


def _needed(read: Reader, name: str) -> bytes:
    content = read(name)
    if content is None:
        raise _wrong(f"{name} is missing there", "all that timestamp.json leads to, or no timestamp.json")
    return content


def _blob(blobs: Blobs, name: str) -> bytes | None:
    try:
        return storage.read(blobs, name, MAX_BYTES)
    except NotFoundError:
        return None


def _wrong(found: str, expected: str) -> InvalidError:
    return InvalidError(
        found, expected=expected, way_out="Name another place with --newer, or restore without it.",
        code="newer",
    )  # fmt: skip


def _away(url: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"{url}: {why}", expected="a server that gives out the metadata of this fleet",
        way_out="Correct --newer, or restore without it.", code="newer",
    )  # fmt: skip
