"""A repository of The Update Framework in memory, its keys, and a server that may be hostile.

`targets` and `root` may have several keys and a threshold; `targets` hands what is below `rollout/` to the role
`rollout`. What is published stays on the server under its version, as on a server of static files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.ngclient.fetcher import FetcherInterface

METADATA_URL: Final = "https://fleet.example/metadata"
TARGETS_URL: Final = "https://fleet.example/targets"
LIFE_DAYS: Final = {"root": 365, "targets": 180, "rollout": 14, "snapshot": 7, "timestamp": 2}
TIMESTAMP: Final = "metadata/timestamp.json"

Answer = bytes | Exception | Callable[[], Iterable[bytes]]
"""Instead of a file: other bytes, a failure, or whatever a function yields."""


class Repository:
    """The owner's side. Fields may be changed at will; `publish` signs them and puts them on the server.

    Args:
        now: by the signer's clock, in UTC.
        keys: how many each role has; one where it is not named.
        threshold: of signatures; one where it is not named.
    """

    def __init__(
        self, now: datetime, *, keys: Mapping[str, int] = {}, threshold: Mapping[str, int] = {}
    ) -> None:
        self.now = now
        self.server = Server()
        self.signers = {
            role: [CryptoSigner.generate_ed25519() for _ in range(keys.get(role, 1))] for role in LIFE_DAYS
        }
        roles = {role: Role([], threshold.get(role, 1)) for role in LIFE_DAYS if role != "rollout"}
        self.root = Root(roles=roles, consistent_snapshot=True)
        rollout = DelegatedRole("rollout", [], threshold.get("rollout", 1), True, ["rollout/*"])
        self.targets = Targets(delegations=Delegations({}, {"rollout": rollout}))
        self.rollout = Targets()
        self.snapshot = Snapshot(meta={})
        self.timestamp = Timestamp(snapshot_meta=MetaFile(1))
        for role, signers in self.signers.items():
            self.signed(role).version = 0  # until it is published
            for signer in signers:
                self._delegator(role).add_key(signer.public_key, role)
        self.publish(*LIFE_DAYS)

    def signed(self, role: str) -> Signed:
        """What a role says, as it will be signed next."""
        found: Signed = getattr(self, role)
        return found

    def _delegator(self, role: str) -> Root | Targets:
        return self.targets if role == "rollout" else self.root

    # What an owner does

    def add(self, path: str, content: bytes, *, role: str = "targets", custom: Any = None) -> None:
        """Let a role name a target, and put the target on the server; the role is published later."""
        target = TargetFile.from_data(path, content, ["sha256"])
        if custom is not None:
            target.unrecognized_fields["custom"] = custom
        signed = self.signed(role)
        assert isinstance(signed, Targets)
        signed.targets[path] = target
        self.server.files[target_name(path, content)] = content

    def publish(self, *roles: str, life_days: float | None = None) -> None:
        """Raise the version of these roles by one, sign them, and put them on the server, in the one right order.

        Args:
            roles: to publish; `snapshot` and `timestamp` follow by themselves where something else is published.
            life_days: of these roles, from now on.
        """
        if {"targets", "rollout", "snapshot"} & set(roles):
            roles = (*roles, "snapshot", "timestamp")
        for role in ("root", "rollout", "targets", "snapshot", "timestamp"):
            if role in roles:
                signed = self.signed(role)
                signed.version += 1
                signed.expires = self.now + timedelta(
                    days=LIFE_DAYS[role] if life_days is None else life_days
                )
                self.put(role)

    def put(self, role: str) -> None:
        """Sign a role as it is, and put it on the server."""
        signed = self.signed(role)
        content = self.sign(signed, self.signers[role])
        if role == "timestamp":
            self.server.files[TIMESTAMP] = content
            return
        self.server.files[metadata_name(role, signed.version)] = content
        if role in ("targets", "rollout"):
            self.snapshot.meta[f"{role}.json"] = MetaFile(signed.version)
        if role == "snapshot":
            self.timestamp.snapshot_meta = MetaFile(signed.version)

    @staticmethod
    def sign(signed: Signed, signers: Iterable[CryptoSigner]) -> bytes:
        """Bytes of metadata with these signatures."""
        metadata: Metadata[Any] = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def rotate(self, role: str) -> list[CryptoSigner]:
        """Give a role new keys, and publish who says so; returns the old keys."""
        old = self.signers[role]
        new = [CryptoSigner.generate_ed25519() for _ in old]
        delegator = self._delegator(role)
        for signer in old:
            delegator.revoke_key(signer.public_key.keyid, role)
        for signer in new:
            delegator.add_key(signer.public_key, role)
        # A new root is signed by the old keys, too (TUF specification 5.3.4).
        self.signers[role] = [*old, *new] if role == "root" else new
        self.publish("targets" if role == "rollout" else "root")
        self.signers[role] = new
        return old

    def say_time(self, when: datetime | None = None) -> None:
        """Let timestamps say when they were signed."""
        self.timestamp.unrecognized_fields["signed_at"] = f"{when or self.now:%Y-%m-%dT%H:%M:%SZ}"

    def first_root(self) -> bytes:
        """What a device is provisioned with."""
        return self.server.files[metadata_name("root", 1)]


@dataclass
class Server(FetcherInterface):
    """Static files, and what a hostile server or network makes of them.

    Attributes:
        files: name to content.
        instead: name to what is answered in its place.
        fetched: names, in order.
        sent_bytes: altogether.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    instead: dict[str, Answer] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    sent_bytes: int = 0

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix("https://fleet.example/")
        self.fetched.append(name)
        answer = self.instead.get(name, self.files.get(name))
        if answer is None:
            raise DownloadHTTPError(f"{url}: not found", 404)
        if isinstance(answer, Exception):
            raise answer
        return self._send((answer,) if isinstance(answer, bytes) else answer())

    def _send(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        for part in parts:
            self.sent_bytes += len(part)
            yield part


def endless() -> Iterator[bytes]:
    """Data that never ends."""
    while True:
        yield b" " * 4096


def breaking(content: bytes, error: Exception) -> Callable[[], Iterator[bytes]]:
    """The first half of something, then a failure."""

    def parts() -> Iterator[bytes]:
        yield content[: len(content) // 2]
        raise error

    return parts


def metadata_name(role: str, version: int) -> str:
    """Where a version of a role lies on the server."""
    return f"metadata/{version}.{role}.json"


def target_name(path: str, content: bytes) -> str:
    """Where a target lies on the server."""
    folder, slash, name = path.rpartition("/")
    return f"targets/{folder}{slash}{hashlib.sha256(content).hexdigest()}.{name}"
