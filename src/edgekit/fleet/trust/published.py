"""What is stored of a repository, and what of it is due.

It is read, and not verified: devices verify, and so does `step` before the server gives its signature to anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from tuf.api.metadata import (  # type: ignore[attr-defined] # no `__all__`
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from edgekit.fleet.errors import NotFoundError, UnavailableError
from edgekit.fleet.trust import repository, rules
from edgekit.fleet.trust.documents import Documents
from edgekit.fleet.trust.layout import TIMESTAMP, metadata_name

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True)
class Published:
    """What is stored.

    Attributes:
        roots: from the first to the one that holds now; none before the first publication.
        targets: that the snapshot names; likewise the others.
        waiting: targets that are stored and not in a snapshot yet, as a server was killed in between.
        content: of `timestamp.json`, as it was read.
    """

    roots: tuple[Metadata[Root], ...]
    timestamp: Metadata[Timestamp] | None = None
    snapshot: Metadata[Snapshot] | None = None
    targets: Metadata[Targets] | None = None
    rollout: Metadata[Targets] | None = None
    waiting: Metadata[Targets] | None = None
    content: bytes | None = None

    @property
    def root(self) -> Metadata[Root]:
        """The one that holds now.

        Raises:
            NotFoundError: nothing is published yet.
        """
        if not self.roots:
            raise empty()
        return self.roots[-1]

    @property
    def newest_targets(self) -> Metadata[Targets] | None:
        """Those that people signed last."""
        return self.waiting or self.targets


def load(documents: Documents) -> Published:
    """Read what is published.

    Raises:
        InvalidError: something is stored that is no metadata.
        UnavailableError: the storage does not answer, or something is missing in it.
    """
    roots: list[Metadata[Root]] = []
    while content := documents.read(metadata_name("root", len(roots) + 1)):
        roots.append(rules.read(content, Root, "root"))
    if not roots or (content := documents.read(TIMESTAMP)) is None:
        return Published(tuple(roots), waiting=_next(documents, roots, 1))
    timestamp = rules.read(content, Timestamp, "timestamp")
    snapshot = _read(documents, "snapshot", timestamp.signed.snapshot_meta.version, Snapshot)
    versions = {role: snapshot.signed.meta[f"{role}.json"].version for role in ("targets", "rollout")}
    targets = _read(documents, "targets", versions["targets"], Targets)
    rollout = _read(documents, "rollout", versions["rollout"], Targets)
    waiting = _next(documents, roots, versions["targets"] + 1)
    return Published(tuple(roots), timestamp, snapshot, targets, rollout, waiting, content)


def due(published: Published, now: datetime) -> tuple[str, ...]:
    """Roles to sign anew: those of the server by `renew`, root and targets by people."""
    if published.newest_targets is None or published.rollout is None:
        return ()
    root, targets = published.root.signed, published.newest_targets.signed
    found: list[tuple[str, Metadata[Any] | None, Root | Targets]] = [
        ("root", published.root, root),
        ("targets", published.newest_targets, root),
    ]
    found += [("timestamp", published.timestamp, root), ("snapshot", published.snapshot, root)]
    found += [("rollout", published.rollout, targets)]
    return tuple(
        role
        for role, metadata, authority in found
        if metadata is None
        or repository.is_due(metadata.signed, role, now)
        or not rules.is_signed(metadata, role, authority)
    )


def _next(documents: Documents, roots: list[Metadata[Root]], version: int) -> Metadata[Targets] | None:
    content = documents.read(metadata_name("targets", version)) if roots else None
    if content is None:
        return None
    found = rules.read(content, Targets, "targets")
    return found if rules.is_signed(found, "targets", roots[-1].signed) else None


def _read(documents: Documents, role: str, version: int, kind: type[S]) -> Metadata[S]:
    return rules.read(stored(documents, metadata_name(role, version)), kind, role)


def stored(documents: Documents, name: str) -> bytes:
    """The content of a document that has to be there.

    Raises:
        UnavailableError: it is not.
    """
    content = documents.read(name)
    if content is None:
        raise UnavailableError(
            f"{name}: missing in the storage",
            expected="every document that the timestamp leads to",
            way_out="Restore the storage from its copy.",
            code="documents",
        )
    return content


def empty() -> NotFoundError:
    """What is said where nothing is published yet."""
    return NotFoundError(
        "nothing is published yet",
        expected="a first root and the first targets, signed",
        way_out="Sign and publish them: `edgekit fleet init`.",
        code="trust_empty",
    )
