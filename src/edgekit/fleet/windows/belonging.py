"""Which rollout something that a device told belongs to, and which part of the rollout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, case, select
from sqlalchemy.dialects import postgresql, sqlite

from edgekit.fleet.rules.rollouts import OPEN, Rollout, bound_of
from edgekit.fleet.storage.tables import evidence
from edgekit.fleet.storage.tables import rollouts as table
from edgekit_runtime.cohorts import Cohort
from edgekit_runtime.policies import bucket_of

# Of a label, to be looked at as parts of the fleet: what has more is a name, as of a customer.
MOST_VALUES: Final = 20

_INSERTS: Final[Mapping[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Rollouts that something may belong to.

    Attributes:
        newest: (release, channel) to the newest rollout of it.
        opened: those that are not over.
    """

    newest: Mapping[tuple[str, str], Rollout]
    opened: Sequence[Rollout]

    def of_release(self, release: str, channel: str, labels: Mapping[str, str]) -> Rollout | None:
        """The rollout by which a device has a release, None where none gave it that."""
        rollout = self.newest.get((release, channel))
        return rollout if rollout is not None and is_meant(rollout, labels) else None

    def with_baseline(self, release: str, channel: str, labels: Mapping[str, str]) -> list[Rollout]:
        """Open rollouts in which a device has this release before the new one."""
        return [
            each
            for each in self.opened
            if each.baseline == release and each.channel == channel and is_meant(each, labels)
        ]


def rollouts_of(connection: Connection, releases: Iterable[str]) -> Rollouts:
    """The rollouts of some releases, and all that are open."""
    query = select(table.c.release, table.c.channel, table.c.state, table.c.document).order_by(
        table.c.created_s, table.c.id
    )
    wanted = sorted({release for release in releases if release})
    rows = connection.execute(query.where(table.c.release.in_(wanted) | table.c.state.in_(OPEN))).all()
    # Later ones overwrite those before.
    newest = {(row.release, row.channel): row.document for row in rows}
    return Rollouts(
        {key: Rollout.from_tree(document) for key, document in newest.items()},
        [Rollout.from_tree(row.document) for row in rows if row.state in OPEN],
    )


def is_meant(rollout: Rollout, labels: Mapping[str, str]) -> bool:
    """Whether a device with these labels is of the cohort."""
    return cohort(rollout.plan.cohort).includes(labels)


def stage_of(rollout: Rollout, bucket: int) -> int:
    """The stage in which a bucket is reached; the last one where none does."""
    bounds = (number for number, percent in enumerate(rollout.plan.stages) if bucket < bound_of(percent))
    return next(bounds, len(rollout.plan.stages) - 1)


def values_of(labels: Iterable[Mapping[str, str]]) -> frozenset[str]:
    """Names of the labels that have few values."""
    found: dict[str, set[str]] = {}
    for each in labels:
        for name, value in each.items():
            found.setdefault(name, set()).add(value)
    return frozenset(name for name, values in found.items() if len(values) <= MOST_VALUES)


def evidence_row(rollout: Rollout, device: str, labels: Mapping[str, str], now_s: int) -> dict[str, Any]:
    """A row of a device that has shown nothing yet."""
    return {
        "rollout": rollout.id, "device": device, "bucket": bucket_of(rollout.salt, device), "labels": dict(labels),
        "accepted_s": 0, "committed_s": 0, "heard_s": now_s, "failed": "", "place": 0, "first": {}, "figures": b"",
        "compared": 0, "agreed": 0,
    }  # fmt: skip


def write_evidence(connection: Connection, rows: Sequence[Mapping[str, Any]], changed: Sequence[str]) -> None:
    """Insert rows, or change those that are there.

    Args:
        connection: of `Database.writing`.
        rows: whole, as of `evidence_row`; each rollout and device once.
        changed: columns that are overwritten. What happened once keeps its first time.
    """
    if not rows:
        return
    statement = _INSERTS[connection.dialect.name](evidence)
    new = statement.excluded
    values: dict[str, ColumnElement[Any]] = {name: new[name] for name in changed}
    for name, nothing in (("accepted_s", 0), ("committed_s", 0), ("failed", "")):
        column = evidence.c[name]
        values[name] = case((column == nothing, new[name]), else_=column)
    values["heard_s"] = case((evidence.c.heard_s < new.heard_s, new.heard_s), else_=evidence.c.heard_s)
    statement = statement.on_conflict_do_update(index_elements=["rollout", "device"], set_=values)
    # Writers that lock in one order do not deadlock.
    connection.execute(statement, sorted(map(dict, rows), key=lambda row: (row["rollout"], row["device"])))


@lru_cache(maxsize=256)
def cohort(text: str) -> Cohort:
    """A cohort that a plan has checked already."""
    return Cohort.parse(text)
