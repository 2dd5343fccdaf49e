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
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, select
from tuf.api.metadata import Targets  # type: ignore[attr-defined] # no `__all__`

from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError
from edgekit.fleet.releases import signing
from edgekit.fleet.rules.rollouts import OPEN, Rollout
from edgekit.fleet.storage.tables import channels, rollouts
from edgekit.fleet.trust import publishing, repository
from edgekit.fleet.trust.layout import TIMESTAMP, policy_path
from edgekit.fleet.trust.published import Published
from edgekit.fleet.trust.step import Change
from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.policies import BUCKETS, LIVE, Policy, Rule
from edgekit_runtime.strict_json import ContractError
from edgekit_runtime.trusted_time import TIME_FORMAT

log = logging.getLogger(__name__)

SETTLED_SALT: Final = "settled"


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
            wanted = rules_of(connection)
        refused.clear()
        changed = _changed(wanted, published, refused)
        return Change(policies=changed, files=repository.policy_documents(changed))

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


def rules_of(connection: Connection) -> dict[str, tuple[Rule, ...]]:
    """Channel to what its devices are told: rollouts first, then what is settled."""
    found: dict[str, list[Rule]] = defaultdict(list)
    query = select(rollouts.c.document).where(rollouts.c.state.in_(OPEN))
    for document in connection.scalars(query.order_by(rollouts.c.created_s, rollouts.c.id)):
        rollout = Rollout.from_tree(document)
        found[rollout.channel] += rollout.rules()
    for row in connection.execute(select(channels.c.name, channels.c.settled).order_by(channels.c.name)):
        found[row.name] += settled_rules(row.settled)
    return {channel: tuple(rules) for channel, rules in found.items()}


def settled_rules(settled: Sequence[Mapping[str, str]]) -> list[Rule]:
    """What devices run outside a rollout: all of them that fit, so the salt draws nobody."""
    return [Rule(each["release"], SETTLED_SALT, BUCKETS, LIVE, each["cohort"]) for each in settled]


def _changed(
    wanted: Mapping[str, tuple[Rule, ...]], published: Published, refused: dict[str, str]
) -> dict[str, Policy | None]:
    """Policies that are not published yet, and None for channels that are gone; those that may not be are refused."""
    targets = published.newest_targets
    signed = targets.signed.targets if targets else {}
    old = published.rollout.signed if published.rollout else Targets()
    changed: dict[str, Policy | None] = {}
    for channel, rules in wanted.items():
        if unsigned := [each.release for each in rules if release_path(each.release) not in signed]:
            refused[channel] = f"release {unsigned[0][:16]}… is not signed"
            continue
        try:
            policy = Policy(rules)
        except ContractError as error:
            refused[channel] = str(error)
            continue
        before = old.targets.get(policy_path(channel))
        digest = hashlib.sha256(policy.to_json().encode()).hexdigest()
        if before is None or before.hashes.get("sha256") != digest:
            changed[channel] = policy
    paths = {policy_path(channel) for channel in wanted}
    gone = [path for path in old.targets if path not in paths]
    return changed | {path.removeprefix("rollout/").removesuffix(".json"): None for path in gone}
