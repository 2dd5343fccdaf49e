"""Adds windows up: to what each device shows of a rollout, and to what all of them show by minute. Each counts once.

A batch is read and added up outside of any transaction that writes, so that no device waits for it; then one short
transaction writes the sums and marks the windows. That is sound because one server at a time merges: the lease is
looked at again within that transaction, and who lost it meanwhile writes nothing. Who is killed in between has written
nothing, either.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, and_, func, select, update

from edgekit.fleet.background import Repeated
from edgekit.fleet.context import Fleet
from edgekit.fleet.errors import ConflictError
from edgekit.fleet.rules.rollouts import Rollout
from edgekit.fleet.storage.database import upsert
from edgekit.fleet.storage.tables import devices, evidence, leases, minutes, windows
from edgekit.fleet.windows.belonging import (
    Rollouts,
    evidence_row,
    rollouts_of,
    stage_of,
    values_of,
    write_evidence,
)
from edgekit.fleet.windows.figures import Judged, Shown, Sum, tree_of
from edgekit.fleet.windows.observed import TOTAL, TOTAL_MINUTE, cohort_size, evidence_of
from edgekit_runtime.policies import bucket_of

__all__ = ["LEASE", "cohort_size", "evidence_of", "merge", "repeated"]

log = logging.getLogger(__name__)

LEASE: Final = "merge"
LEASE_S: Final = 60.0
BATCH: Final = 400
NICE: Final = 10
# Seconds for which the names of labels that have few values are remembered.
NAMES_S: Final = 60.0

# Parts that are not of the release.
ASIDE: Final = frozenset({"before", "control"})

_CHANGED: Final = ("place", "first", "figures", "compared", "agreed")
Minute = tuple[str, int, str, str, str, int]
"""Rollout, stage, slice, live, candidate, minute."""


@dataclass
class _Piece:
    """What the windows of one device in one minute say of one rollout.

    Attributes:
        rollout: that they belong to.
        part: of `Shown`.
        device: id.
        labels: of the device.
        live: release that served.
        candidate: the one beside it, or the same.
        received_s: seconds since 1970 by the server's clock.
        sum: of the windows.
    """

    rollout: Rollout
    part: str
    device: str
    labels: Mapping[str, str]
    live: str
    candidate: str
    received_s: int
    sum: Sum = field(default_factory=Sum)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a batch comes to.

    Attributes:
        ids: of the windows.
        evidence: rows to be written.
        minutes: rows to be written.
    """

    ids: Sequence[int]
    evidence: Sequence[Mapping[str, Any]]
    minutes: Sequence[Mapping[str, Any]]


def merge(fleet: Fleet, holder: str, names: frozenset[str] | None = None, *, limit: int = BATCH) -> int:
    """Add up a batch of windows.

    Args:
        fleet: of the server.
        holder: name of this process among all servers.
        names: of labels that parts of the fleet are told apart by; None for those that have few values now.
        limit: windows at most.

    Returns:
        Windows that were added up: 0 where none wait, or another server does it.
    """
    with fleet.database.reading() as connection:
        # A lease is a write, and most of the time nothing waits.
        if (
            connection.execute(select(windows.c.id).where(windows.c.merged.is_(False)).limit(1)).first()
            is None
        ):
            return 0
    if not fleet.database.lease(LEASE, holder, LEASE_S):
        return 0
    with fleet.database.reading() as connection:
        plan = _planned(connection, slice_names(connection) if names is None else names, limit)
    if not plan.ids:
        return 0
    try:
        return fleet.database.write(lambda connection: _apply(connection, plan, holder))
    except ConflictError as error:
        log.info("%s", error.what)
        return 0


def slice_names(connection: Connection) -> frozenset[str]:
    """Names of labels that have few values, by which parts of the fleet are told apart."""
    return values_of(connection.scalars(select(devices.c.labels).distinct()))


def repeated(fleet: Fleet, holder: str) -> Repeated:
    """Batches for as long as the server runs.

    Args:
        fleet: of the server.
        holder: name of this process among all servers.
    """
    names, read_s = frozenset[str](), -math.inf

    def rounds(is_ending: Callable[[], bool]) -> float:
        nonlocal names, read_s
        del is_ending
        # Devices are answered first; Linux has a priority for each thread.
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        if time.monotonic() - read_s > NAMES_S:
            with fleet.database.reading() as connection:
                names, read_s = slice_names(connection), time.monotonic()
        # What waits longer than a batch is gone on with at once.
        return 0.0 if merge(fleet, holder, names) == BATCH else fleet.settings.merge_every_s

    return Repeated(fleet, holder, LEASE, rounds)


def _planned(connection: Connection, names: frozenset[str], limit: int) -> _Plan:
    rows = connection.execute(
        select(windows).where(windows.c.merged.is_(False)).order_by(windows.c.id).limit(limit)
    ).all()
    if not rows:
        return _Plan((), (), ())
    wanted = sorted({row.device for row in rows})
    query = select(devices.c.id, devices.c.channel, devices.c.labels).where(devices.c.id.in_(wanted))
    known = {row.id: row for row in connection.execute(query)}
    found = rollouts_of(connection, {row.candidate for row in rows})
    pieces: dict[tuple[Any, ...], _Piece] = {}
    for row in rows:
        if row.device in known:
            _part(row, known[row.device], found, pieces)
    ordered = list(pieces.values())
    return _Plan(
        [row.id for row in rows], _evidence(connection, ordered), _minutes(connection, ordered, names)
    )


def _part(row: Any, device: Any, found: Rollouts, pieces: dict[tuple[Any, ...], _Piece]) -> None:
    """Add a window to what it tells of: mostly one rollout, or none."""
    alone = row.live == row.candidate
    parts: list[tuple[Rollout, str]] = []
    if (rollout := found.of_release(row.candidate, device.channel, device.labels)) is not None:
        parts.append((rollout, "serving" if alone else "pair"))
    if alone:
        for each in found.with_baseline(row.live, device.channel, device.labels):
            parts.append((each, "before"))
            # Only while it is of the control: what it did before is of another time than what the candidates do.
            if bucket_of(each.salt, row.device) >= each.control_bound:
                parts.append((each, "control"))
    if not parts:
        return
    tree = tree_of(row.document)
    for rollout, part in parts:
        key = (rollout.id, part, row.device, row.live, row.candidate, row.received_s // 60)
        if key not in pieces:
            pieces[key] = _Piece(
                rollout, part, row.device, device.labels, row.live, row.candidate, row.received_s
            )
        pieces[key].sum.add(tree)


def _evidence(connection: Connection, pieces: Sequence[_Piece]) -> list[dict[str, Any]]:
    """Rows of the devices that the pieces are of, with the pieces in them."""
    if not pieces:
        return []
    ids, named = {each.rollout.id for each in pieces}, {each.device for each in pieces}
    query = select(evidence).where(evidence.c.rollout.in_(sorted(ids)), evidence.c.device.in_(sorted(named)))
    rows = {(row["rollout"], row["device"]): dict(row) for row in connection.execute(query).mappings()}
    highest = select(evidence.c.rollout, func.max(evidence.c.place)).where(
        evidence.c.rollout.in_(sorted(ids))
    )
    places = {row[0]: int(row[1]) for row in connection.execute(highest.group_by(evidence.c.rollout))}
    shown: dict[tuple[str, str], Shown] = {}
    for each in pieces:
        key = each.rollout.id, each.device
        if key not in rows:
            rows[key] = evidence_row(each.rollout, each.device, each.labels, each.received_s)
        row = rows[key]
        row["heard_s"] = max(row["heard_s"], each.received_s)
        if each.part not in ASIDE:
            # A window of the release shows that the device took it, whatever became of its status.
            row["accepted_s"] = row["accepted_s"] or each.received_s
        if key not in shown:
            shown[key] = Shown.from_bytes(row["figures"])
        shown[key].add(each.part, each.sum.tree())
    by_id = {each.rollout.id: each.rollout for each in pieces}
    for key, found in shown.items():
        _judge(by_id[key[0]], rows[key], found, places)
    return [{**rows[key], "figures": found.to_bytes()} for key, found in shown.items()]


def _judge(rollout: Rollout, row: dict[str, Any], shown: Shown, places: dict[str, int]) -> None:
    """Keep what the gates ask for, and freeze what a device shows once it is enough."""
    tree = dict(row["first"])
    for part, now in shown.observations().items():
        before = Judged.from_tree(tree[part]) if part in tree else Judged(0, now, now)
        place, first = before.place, before.first if before.place else now
        if not place and now.samples >= rollout.plan.limits.samples:
            place = places[rollout.id] = places.get(rollout.id, 0) + 1
        tree[part] = Judged(place, first, now).to_tree()
        row["place"] = max(row["place"], place)
    tree["fault"] = shown.fault
    counts = shown.counts
    row.update(first=tree, compared=counts.compared, agreed=counts.agreed)


def _minutes(connection: Connection, pieces: Sequence[_Piece], names: frozenset[str]) -> list[dict[str, Any]]:
    """Rows of the minutes, stages and parts of the fleet that the pieces are of, with the pieces in them."""
    sums: dict[Minute, Sum] = {}
    for (slices, key), found in _alike(pieces, names).items():
        rollout, stage, _, live, candidate, minute = key
        tree = found.tree()
        for name in ("", *slices):
            sums.setdefault((rollout, stage, name, live, candidate, minute), Sum()).add(tree, found.windows)
        total = (rollout, stage, TOTAL, live, candidate, TOTAL_MINUTE)
        sums.setdefault(total, Sum()).add(tree, found.windows)
    if not sums:
        return []
    query = select(minutes).where(
        minutes.c.rollout.in_(sorted({key[0] for key in sums})),
        minutes.c.minute.in_(sorted({key[-1] for key in sums})),
    )
    for row in connection.execute(query).mappings():
        key = tuple(row[name] for name in _MINUTE)
        if key in sums:
            sums[key].add(tree_of(row["figures"]), row["windows"])
    return [
        {
            **dict(zip(_MINUTE, key, strict=True)),
            "windows": found.windows,
            "figures": found.to_bytes(live=key[3], candidate=key[4], began_s=key[5] * 60),
        }
        for key, found in sums.items()
    ]


def _alike(pieces: Sequence[_Piece], names: frozenset[str]) -> dict[tuple[tuple[str, ...], Minute], Sum]:
    """Sums of devices with the same labels, which are added up before they are told apart by each label."""
    found: dict[tuple[tuple[str, ...], Minute], Sum] = {}
    for each in pieces:
        if each.part != "before":
            rollout = each.rollout
            stage = stage_of(rollout, bucket_of(rollout.salt, each.device))
            key = (rollout.id, stage, "", each.live, each.candidate, each.received_s // 60)
            slices = tuple(f"{name}={value}" for name, value in sorted(each.labels.items()) if name in names)
            found.setdefault((slices, key), Sum()).add(each.sum.tree(), each.sum.windows)
    return found


_MINUTE: Final = ("rollout", "stage", "slice", "live", "candidate", "minute")


def _apply(connection: Connection, plan: _Plan, holder: str) -> int:
    held = select(leases.c.holder).where(leases.c.name == LEASE).with_for_update()
    if connection.scalar(held) != holder:
        return 0
    marked = update(windows).where(and_(windows.c.id.in_(plan.ids), windows.c.merged.is_(False)))
    if connection.execute(marked.values(merged=True)).rowcount != len(plan.ids):
        raise ConflictError(
            "windows that were to be counted are gone, or counted",
            expected="all of them, still to be counted",
            way_out="They are read again; a device was forgotten meanwhile.",
            code="merge_again",
        )
    write_evidence(connection, plan.evidence, _CHANGED)
    upsert(connection, minutes, plan.minutes, _MINUTE)
    return len(plan.ids)
