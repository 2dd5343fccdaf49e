"""One publication: what is stored, and a change → the documents, in an order that devices never see half of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any, Final, TypeVar

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined] # no `__all__`
from tuf.api.metadata import (  # type: ignore[attr-defined] # no `__all__`
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from edgekit.fleet.errors import ConflictError, InvalidError
from edgekit.fleet.trust import repository, rules
from edgekit.fleet.trust.documents import Documents, create, taken
from edgekit.fleet.trust.keys import Online
from edgekit.fleet.trust.layout import TIMESTAMP, metadata_name
from edgekit.fleet.trust.published import Published, empty, stored
from edgekit_runtime.policies import Policy

# Versions that killed servers left behind, one after the other; more than that is no accident.
MAX_LEFT_BEHIND: Final = 1000

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be published; nothing of it: only what is due.

    Attributes:
        root: verified, or None.
        targets: verified, or None.
        policies: channel to policy; None takes a channel away.
        anew: forget the policies of all other channels.
        files: contents of targets, name to content.
        root_first: devices refuse until the rest is there; else it comes last.
        least: version that what the server signs has at least; what is published below it is due.
    """

    root: Metadata[Root] | None = None
    targets: Metadata[Targets] | None = None
    policies: Mapping[str, Policy | None] = field(default_factory=dict)
    anew: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)
    root_first: bool = False
    least: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One try; another server may be quicker.

    Attributes:
        documents: of the repository.
        online: keys of this server.
        published: what was read.
        change: to it.
        now: in UTC.
    """

    documents: Documents
    online: Online
    published: Published
    change: Change
    now: datetime

    def run(self) -> None:
        """Write what is new, in the one right order.

        Raises:
            InvalidError: it may not be published, or the server lacks a key; nothing was written.
            ConflictError: another server was quicker.
        """
        root, targets = self.change.root, self.change.targets or self.published.targets
        if targets is None:
            raise empty()
        roots = self._authorities()
        self._check(targets, roots)
        if root and self.change.root_first:
            self._write_root(root)
        for name, content in self.change.files.items():
            create(self.documents, name, content)
        self._store_targets(targets, roots)
        rollout = self._rollout(targets.signed)
        snapshot = self._snapshot(targets, rollout, roots)
        self._timestamp(snapshot, roots)
        if root and not self.change.root_first:
            self._write_root(root)

    def _check(self, targets: Metadata[Targets], roots: list[Root]) -> None:
        """Check what devices will check; whatever is stored first, others would have to go on with."""
        rules.check_signed(targets, "targets", roots)
        self._check_held("rollout", targets.signed)
        for root in roots:
            rules.check_apart(root, targets.signed)
            self._check_held("snapshot", root)
            self._check_held("timestamp", root)
        if self.published.rollout and self._rollout_is_new(targets.signed) and not self.change.anew:
            self._check_ours(self.published.rollout)

    def _check_held(self, role: str, authority: Root | Targets) -> None:
        named = authority.get_delegated_role(role)
        missing = named.threshold - len(
            {*named.keyids} & {each.public_key.keyid for each in self._held(role)}
        )
        if missing > 0:
            raise InvalidError(
                f"{role}: this server lacks {missing} of the keys",
                expected=f"private keys of {', '.join(each[:16] for each in named.keyids)},"
                f" which {authority.type} version {authority.version} names",
                way_out="Put them into the folder of the server's keys; before a new root, beside the old ones.",
                code="key_missing",
            )

    def _held(self, role: str) -> Sequence[CryptoSigner]:
        return self.online.get(role, ())

    def _authorities(self) -> list[Root]:
        """The roots that devices may have while this is published."""
        held = [] if self.change.root_first or not self.published.roots else [self.published.root.signed]
        new = [self.change.root.signed] if self.change.root else []
        return [*held, *new] or [self.published.root.signed]

    def _write_root(self, root: Metadata[Root]) -> None:
        create(self.documents, metadata_name("root", root.signed.version), root.to_bytes())

    def _policies(self) -> Targets:
        """What rollout is to say."""
        old = self.published.rollout
        said = Targets() if old is None or self.change.anew else old.signed
        return repository.set_policies(said, self.change.policies)

    def _rollout_is_new(self, targets: Targets) -> bool:
        old = self.published.rollout
        if old is None or self._policies().targets != old.signed.targets:
            return True
        return old.signed.version < self.change.least or not self._is_good(old, "rollout", [targets])

    def _rollout(self, targets: Targets) -> Metadata[Targets]:
        old, said = self.published.rollout, self._policies()
        if old and not self._rollout_is_new(targets):
            return old

        def build(version: int) -> Metadata[Targets]:
            return self._signed(repository.as_version(said, version, "rollout", self.now), "rollout")

        return self._write(build, "rollout", old.signed.version if old else 0)

    def _check_ours(self, rollout: Metadata[Targets]) -> None:
        """Check who signed the policies, before they get a new signature of ours."""
        targets = self.published.targets
        roots = self.published.roots
        if (
            targets is not None
            and any(rules.is_signed(targets, "targets", root.signed) for root in roots)
            and rules.is_signed(rollout, "rollout", targets.signed)
        ):
            return
        raise InvalidError(
            f"rollout version {rollout.signed.version}: stored, and not signed by keys of rollout",
            expected="policies that this fleet signed",
            way_out="Somebody wrote to the storage. Restore it, or set all policies anew.",
            code="trust_signatures",
        )

    def _store_targets(self, targets: Metadata[Targets], roots: list[Root]) -> None:
        name = metadata_name("targets", targets.signed.version)
        content = self.documents.read(name)
        if content is None:
            create(self.documents, name, targets.to_bytes())
            return
        # Stored already, perhaps with signatures of others among those who may sign.
        there = rules.read(content, Targets, "targets")
        if there.signed != targets.signed:
            raise taken(name)
        rules.check_signed(there, "targets", roots)

    def _snapshot(
        self, targets: Metadata[Targets], rollout: Metadata[Targets], roots: list[Root]
    ) -> Metadata[Snapshot]:
        old = self.published.snapshot
        signed = {
            role: (each.signed.version, self._content(role, each.signed.version))
            for role, each in (("targets", targets), ("rollout", rollout))
        }

        def say(version: int) -> Snapshot:
            return repository.snapshot(old.signed if old else None, version, signed, self.now)

        version = old.signed.version if old else 0
        held = version >= self.change.least and self._is_good(old, "snapshot", roots) if old else False
        if old and held and say(version).meta == old.signed.meta:
            return old
        return self._write(lambda free: self._signed(say(free), "snapshot"), "snapshot", version)

    def _timestamp(self, snapshot: Metadata[Snapshot], roots: list[Root]) -> None:
        old, version = self.published.timestamp, snapshot.signed.version
        new = repository.timestamp(
            old.signed if old else None, version, self._content("snapshot", version), self.now
        )
        new.version = max(new.version, self.change.least)
        held = old is not None and old.signed.version >= self.change.least
        if (
            old
            and held
            and old.signed.snapshot_meta == new.snapshot_meta
            and self._is_good(old, "timestamp", roots)
        ):
            return
        content = self._signed(new, "timestamp").to_bytes()
        self.documents.write(TIMESTAMP, content, replaces=self.published.content)

    def _content(self, role: str, version: int) -> bytes:
        """As it is stored: another release of python-tuf may write the same metadata with other bytes."""
        return stored(self.documents, metadata_name(role, version))

    def _is_good(self, metadata: Metadata[Any], role: str, authorities: list[Any]) -> bool:
        return not repository.is_due(metadata.signed, role, self.now) and all(
            rules.is_signed(metadata, role, each) for each in authorities
        )

    def _signed(self, signed: S, role: str) -> Metadata[S]:
        """Sign with every key that is held for a role: a new root may be about to name it."""
        metadata = Metadata(signed)
        for signer in self._held(role):
            metadata.sign(signer, append=True)
        return metadata

    def _write(self, build: Callable[[int], Metadata[S]], role: str, last: int) -> Metadata[S]:
        """Write a document under the first version after the last that nobody has."""
        last = max(last, self.change.least - 1)
        for version in count(last + 1):
            metadata = build(version)
            try:
                create(self.documents, metadata_name(role, version), metadata.to_bytes())
            except ConflictError:
                if version - last >= MAX_LEFT_BEHIND:
                    raise
                continue
            return metadata
        raise AssertionError
