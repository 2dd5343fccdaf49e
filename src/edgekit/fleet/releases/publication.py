"""Makes what static file servers show be what the database says: policies of channels, signed by the online key.

```
channel's rollouts that are open (`Rollout.rules`), then what is settled  ──→  rollout/<channel>.json
```

Nothing is written while nothing changed and no signature is about to expire. What is to be published is read from the
database after what is published was read, and only that is replaced: of two servers the one with the older view loses.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from datetime import datetime

from tuf.api.metadata import Targets  # type: ignore[attr-defined] # no `__all__`

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError
from edgekit.fleet.releases import policies, signing
from edgekit.fleet.trust import publishing, repository
from edgekit.fleet.trust.layout import TIMESTAMP, policy_path
from edgekit.fleet.trust.published import Published
from edgekit.fleet.trust.step import Change
from edgekit_runtime.policies import Policy, Rule
from edgekit_runtime.trusted_time import TIME_FORMAT

log = logging.getLogger(__name__)


def publish(fleet: Fleet) -> bool:
    """Bring the signed policies up to date, and sign anew what is about to expire.

    Returns:
        Whether anything was written.

    Raises:
        ConflictError: a channel names a version that is not signed, and keeps its policy; all others are published. Or
            what people signed has expired by the clock of this server.
        InvalidError: a key of the server is missing, or something published is not what it should be.
        UnavailableError: database or blobs do not answer.
    """
    documents, now = signing.documents_of(fleet), signing.moment(fleet)
    refused: dict[str, str] = {}

    def decide(published: Published) -> Change:
        _check_time(published, now)
        with fleet.database.reading() as connection:
            wanted = policies.rules_of(connection, disagreements=fleet.settings.disagreements_per_device > 0)
        refused.clear()
        changed = _changed(wanted, published, refused)
        return Change(
            policies=changed, files=repository.policy_documents(changed), least=fleet.settings.least_version
        )

    before = documents.read(TIMESTAMP)
    signing.follow(fleet)
    after = publishing.publish(documents, signing.online_of(fleet), decide, now)
    if refused:
        channel, why = min(refused.items())
        raise ConflictError(
            f"the policy of {channel}"
            + (f" and {len(refused) - 1} more" if len(refused) > 1 else "")
            + f": {why}",
            expected="at most 64 rules, of versions that targets sign",
            way_out="Abort its rollout or settle the channel on another version; until then its devices stay.",
            code="policy",
        )
    return after.content != before


def _check_time(published: Published, now: datetime) -> None:
    """Sign nothing for a time at which devices would refuse all of it.

    A clock that jumped years ahead would else be vouched for, and devices and servers would have to live with that.
    """
    for name, metadata in (("root", published.root), ("targets", published.newest_targets)):
        if metadata is not None and metadata.signed.is_expired(now):
            raise ConflictError(
                f"{name} expired at {metadata.signed.expires:{TIME_FORMAT}}, and the clock says {now:{TIME_FORMAT}}",
                expected="what people signed to be valid",
                way_out="Set the clock of this server; where it is right, sign anew with `edgekit fleet sign`.",
                code="expired",
            )


def _changed(
    rules: Mapping[str, tuple[Rule, ...]], published: Published, refused: dict[str, str]
) -> dict[str, Policy | None]:
    """Policies that are not published yet, and None for channels that are gone; those that may not be are refused."""
    targets = published.newest_targets
    old = published.rollout.signed if published.rollout else Targets()
    found = policies.wanted(rules, targets.signed.targets if targets else {})
    refused |= found.refused
    changed: dict[str, Policy | None] = {}
    for channel, policy in found.policies.items():
        before = old.targets.get(policy_path(channel))
        digest = hashlib.sha256(policy.to_json().encode()).hexdigest()
        if before is None or before.hashes.get("sha256") != digest:
            changed[channel] = policy
    paths = {policy_path(channel) for channel in rules}
    gone = [path for path in old.targets if path not in paths]
    return changed | {path.removeprefix("rollout/").removesuffix(".json"): None for path in gone}
