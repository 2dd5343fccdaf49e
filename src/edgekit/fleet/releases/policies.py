"""What devices of each channel are to be told, by the database: open rollouts first, then what is settled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from sqlalchemy import Connection, select

from edgekit.fleet.rules.rollouts import OPEN, Rollout
from edgekit.fleet.storage.tables import channels, rollouts
from edgekit_runtime.agent.fetch import release_path
from edgekit_runtime.policies import BUCKETS, LIVE, Policy, Rule
from edgekit_runtime.strict_json import ContractError

SETTLED_SALT: Final = "settled"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What channels are to be told.

    Attributes:
        policies: by channel.
        refused: channels whose policy may not be published, and why.
    """

    policies: dict[str, Policy] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def wanted(rules: Mapping[str, Sequence[Rule]], signed: Collection[str]) -> Wanted:
    """Policies of the rules of channels.

    Args:
        rules: by channel.
        signed: paths that targets sign.
    """
    found = Wanted()
    for channel, those in rules.items():
        if unsigned := [each.release for each in those if release_path(each.release) not in signed]:
            found.refused[channel] = f"release {unsigned[0][:16]}… is not signed"
            continue
        try:
            found.policies[channel] = Policy(tuple(those))
        except ContractError as error:
            found.refused[channel] = str(error)
    return found


def rules_of(connection: Connection, *, disagreements: bool) -> dict[str, tuple[Rule, ...]]:
    """Channel to what its devices are told: rollouts first, then what is settled.

    Args:
        connection: to read with.
        disagreements: whether this server takes inputs whose answers differ; without, no device is asked for any.
    """
    found: dict[str, list[Rule]] = defaultdict(list)
    query = select(rollouts.c.document).where(rollouts.c.state.in_(OPEN))
    for document in connection.scalars(query.order_by(rollouts.c.created_s, rollouts.c.id)):
        rollout = Rollout.from_tree(document)
        told = rollout.rules()
        found[rollout.channel] += told if disagreements else [replace(each, disagreements=0) for each in told]
    for row in connection.execute(select(channels.c.name, channels.c.settled).order_by(channels.c.name)):
        found[row.name] += settled_rules(row.settled)
    return {channel: tuple(rules) for channel, rules in found.items()}


def settled_rules(settled: Sequence[Mapping[str, str]]) -> list[Rule]:
    """What devices run outside a rollout: all of them that fit, so the salt draws nobody."""
    return [Rule(each["release"], SETTLED_SALT, BUCKETS, LIVE, each["cohort"]) for each in settled]
