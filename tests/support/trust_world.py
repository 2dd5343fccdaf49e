"""A fleet's repository in a folder, the people and the server who sign it, and devices that read it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata
from tuf.ngclient.fetcher import FetcherInterface

from edgekit.fleet.errors import ConflictError
from edgekit.fleet.trust import pending as ceremony
from edgekit.fleet.trust import publishing, repository
from edgekit.fleet.trust.documents import Documents, Folder
from edgekit.fleet.trust.keys import generate
from edgekit.fleet.trust.layout import ROLES, metadata_name
from edgekit.fleet.trust.pending import Pending
from edgekit.fleet.trust.published import Published, load
from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.contract import File, Release
from edgekit_runtime.disk import Disk
from edgekit_runtime.policies import BUCKETS, MAX_POLICY_BYTES, Policy, Rule
from edgekit_runtime.store import MAX_RELEASE_BYTES
from edgekit_runtime.trust import Trust

TODAY = datetime(2030, 6, 1, 12, tzinfo=UTC)
URL = "https://fleet.example/"


def release(version: str, model: str = "kws") -> Release:
    return Release(
        model, version, {"manifest.json": File("ab" * 32, 10), "model.tflite": File("cd" * 32, 20)}
    )


def policy(of: Release, bound: int = BUCKETS) -> Policy:
    return Policy((Rule(of.id, "salt", bound),))


@dataclass
class Torn:
    """A storage whose process dies before the write that comes after `left` others."""

    inner: Documents
    left: int
    names: list[str] = field(default_factory=list)

    def read(self, name: str) -> bytes | None:
        return self.inner.read(name)

    def write(self, name: str, content: bytes, *, replaces: bytes | None) -> None:
        if len(self.names) >= self.left:
            raise Killed
        self.inner.write(name, content, replaces=replaces)
        self.names.append(name)


class Killed(Exception):
    """The process is gone."""


@dataclass
class Memory:
    """Documents in a dictionary; a copy of it is a copy of the storage."""

    files: dict[str, bytes] = field(default_factory=dict)

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def write(self, name: str, content: bytes, *, replaces: bytes | None) -> None:
        if self.files.get(name) != replaces:
            raise ConflictError(name, expected="", way_out="", code="document_taken")
        self.files[name] = content


class Served(FetcherInterface):
    """What a server of static files makes of a storage."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents

    def _fetch(self, url: str) -> Iterator[bytes]:
        content = self.documents.read(url.removeprefix(URL))
        if content is None:
            raise DownloadHTTPError(f"{url}: not found", 404)
        return iter((content,))


class Unsynced(Disk):
    """No power goes in these tests."""

    def sync(self, path: Path) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


class Device:
    """One that was provisioned with the first root."""

    def __init__(self, path: Path, world: World, documents: Documents | None = None) -> None:
        self.path, self.world = path, world
        self.documents = documents or world.documents
        self.boot().init(world.first_root())

    def boot(self) -> Trust:
        return Trust(
            self.path,
            metadata_url=f"{URL}metadata",
            targets_url=f"{URL}targets",
            fetcher=Served(self.documents),
            disk=Unsynced(),
            now=lambda: self.world.now.timestamp(),  # noqa: PLW0108 - time passes
        )

    def copy(self, path: Path, documents: Documents) -> Device:
        """The same device once more, before another storage."""
        shutil.copytree(self.path, path)
        return Device(path, self.world, documents)

    def refresh(self) -> None:
        self.boot().refresh()

    def release(self, of: Release, *, trust: Trust | None = None) -> Release:
        return Release.from_json((trust or self.boot()).document(release_path(of.id), MAX_RELEASE_BYTES))

    def policy(self, channel: str = "stable", *, trust: Trust | None = None) -> Policy:
        return Policy.from_json((trust or self.boot()).document(f"rollout/{channel}.json", MAX_POLICY_BYTES))


class World:
    """A fleet: two of three people sign root, two of three targets, the server the rest."""

    def __init__(
        self, path: Path, *, documents: Documents | None = None, people: int = 3, threshold: int = 2
    ) -> None:
        self.path, self.now = path, TODAY
        self.documents = documents or Folder(path / "site")
        self.signers = {
            role: [generate() for _ in range(people if role in {"root", "targets"} else 1)] for role in ROLES
        }
        self.threshold = {"root": threshold, "targets": threshold}
        self._devices = 0
        root = repository.first_root(self.keys(), self.threshold)
        targets = repository.first_targets(self.keys()["rollout"])
        self.init = self.sign(ceremony.propose((), None, self.now, new_root=root, new_targets=targets))

    def start(self) -> World:
        """Publish the first root and targets."""
        self.submit(self.init)
        return self

    def keys(self) -> dict[str, list[Any]]:
        return {role: [each.public_key for each in signers] for role, signers in self.signers.items()}

    def online(self) -> dict[str, list[CryptoSigner]]:
        return {role: self.signers[role] for role in ("timestamp", "snapshot", "rollout")}

    def first_root(self) -> bytes:
        content = self.documents.read(metadata_name("root", 1))
        if content is None:
            assert self.init.new_root
            content = self.init.new_root.to_bytes()
        return content

    def device(self, documents: Documents | None = None) -> Device:
        self._devices += 1
        return Device(self.path / f"device-{self._devices}", self, documents)

    def load(self) -> Published:
        return load(self.documents)

    # People

    def sign(self, pending: Pending, signers: Sequence[CryptoSigner] | None = None) -> Pending:
        """Have a proposal signed, by everybody where nobody is named."""
        everybody = [*self.signers["root"], *self.signers["targets"]]
        for signer in everybody if signers is None else signers:
            part = pending.new_parts().items()
            if any(
                signer.public_key.keyid in root.roles[role].keyids
                for role, (_, roots) in part
                for root in roots
            ):
                pending = ceremony.sign(pending, signer, self.now)
        return pending

    def propose(self, **new: Any) -> Pending:
        published = self.load()
        return ceremony.propose(published.roots, published.newest_targets, self.now, **new)

    def targets_with(self, *releases: Release) -> Pending:
        new = self.load().newest_targets.signed  # type: ignore[union-attr]
        for each in releases:
            new = repository.add_release(new, each)
        return self.sign(self.propose(new_targets=new))

    def retiring(self, *releases: Release) -> Pending:
        targets = self.load().newest_targets
        assert targets
        new = repository.retire(targets.signed, [each.id for each in releases])
        return self.sign(self.propose(new_targets=new))

    def rotating(self, *roles: str, gap: bool = False) -> Pending:
        """A proposal with new keys for roles, which everybody signs; the server gets the new keys beside the old."""
        published, targets_change = self.load(), {"targets", "rollout"} & set(roles)
        assert published.newest_targets
        root, targets = published.root.signed, published.newest_targets.signed
        old = {role: self.signers[role] for role in roles}
        for role in roles:
            new = [generate() for _ in old[role]]
            public = [each.public_key for each in new]
            if role == "rollout":
                targets = repository.rotate(targets, role, public)
            else:
                root = repository.rotate(root, role, public)
            self.signers[role] = new if gap and role == "targets" else [*old[role], *new]
        if set(roles) == {"rollout"}:
            return self.sign(self.propose(new_targets=targets))
        return self.sign(
            self.propose(new_root=root, new_targets=targets if targets_change else None, gap=gap)
        )

    def forget_old_keys(self) -> None:
        """Leave only the keys that hold now."""
        published = self.load()
        assert published.newest_targets
        for role in ROLES:
            held = published.newest_targets.signed if role == "rollout" else published.root.signed
            keyids = held.get_delegated_role(role).keyids
            self.signers[role] = [each for each in self.signers[role] if each.public_key.keyid in keyids]

    # The server

    def submit(
        self, pending: Pending, *releases: Release, documents: Documents | None = None, **more: Any
    ) -> None:
        publishing.submit(
            documents or self.documents, self.online(), pending, self.now,
            releases={each.id: each.to_json().encode() for each in releases}, **more,
        )  # fmt: skip

    def release(self, *releases: Release) -> None:
        """Sign and publish releases."""
        self.submit(self.targets_with(*releases), *releases)

    def select(self, of: Mapping[str, Policy | None], **more: Any) -> None:
        publishing.set_policies(self.documents, self.online(), of, self.now, **more)

    def renew(self) -> None:
        publishing.renew(self.documents, self.online(), self.now)

    def pass_days(self, days: float) -> None:
        self.now += timedelta(days=days)


@dataclass
class Thief:
    """Holds every key of the server and its storage."""

    world: World

    def __post_init__(self) -> None:
        self.keys = {role: list(signers) for role, signers in self.world.online().items()}

    def put(self, name: str, content: bytes) -> None:
        """Write to the storage, past every check."""
        documents = self.world.documents
        documents.write(name, content, replaces=documents.read(name))

    def sign(self, signed: Any, role: str) -> bytes:
        metadata: Metadata[Any] = Metadata(signed)
        for signer in self.keys[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def publish(self, change: Callable[[Published], None], *, jump: int = 1) -> None:
        """Change what is published at will, and sign it with what was stolen.

        Args:
            change: what is published, in place.
            jump: versions that the online roles rise by.
        """
        published = self.world.load()
        assert published.rollout
        assert published.snapshot
        assert published.timestamp
        assert published.targets
        change(published)
        rollout, targets = published.rollout.signed, published.targets
        rollout.version += jump
        contents = {"rollout": self.sign(rollout, "rollout")}
        # The best that a thief can do for targets: the signatures that are there, or those of the stolen keys.
        contents["targets"] = targets.to_bytes()
        versions = {"rollout": rollout.version, "targets": targets.signed.version}
        for role, content in contents.items():
            self.put(metadata_name(role, versions[role]), content)
        now, version = self.world.now, published.snapshot.signed.version + jump
        snapshot = repository.snapshot(
            published.snapshot.signed,
            version,
            {role: (versions[role], contents[role]) for role in contents},
            now,
        )
        content = self.sign(snapshot, "snapshot")
        self.put(metadata_name("snapshot", version), content)
        timestamp = repository.timestamp(published.timestamp.signed, version, content, now)
        timestamp.version += jump - 1
        self.put("metadata/timestamp.json", self.sign(timestamp, "timestamp"))
