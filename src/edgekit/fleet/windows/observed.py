"""What the gates are given of a rollout, read from the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, select

from edgekit.fleet.rules.evidence import Arm, Arms, Columns, Evidence, Slice
from edgekit.fleet.rules.rollouts import LONGEST_TICK_S, SHADOW, Rollout
from edgekit.fleet.settings import Settings
from edgekit.fleet.storage.tables import devices, evidence, looks, minutes
from edgekit.fleet.windows.belonging import cohort, values_of
from edgekit.fleet.windows.figures import Judged, unpacked
from edgekit_runtime.policies import BUCKETS, bucket_of
from edgekit_runtime.sketches import Sketch

# In `minutes`: of a whole stage and all its devices, whatever the time.
TOTAL: Final = "*"
TOTAL_MINUTE: Final = 0
SILENT: Final = "silent"


@dataclass(frozen=True, slots=True)
class _Device:
    """A device within the bound, and what it has shown.

    Attributes:
        id: of it.
        labels: name to value.
        seen_s: when it was last heard of.
        live: release that serves on it.
        meant: whether it is of the cohort and was heard of lately.
        row: of the evidence, None where it has shown nothing.
    """

    id: str
    labels: Mapping[str, str]
    seen_s: int
    live: str
    meant: bool
    row: Any


def cohort_size(connection: Connection, rollout: Rollout, now_s: float, settings: Settings) -> int:
    """Devices of the cohort that were heard of lately.

    Args:
        connection: to read with.
        rollout: whose cohort.
        now_s: seconds since 1970.
        settings: say what lately is.
    """
    since_s = now_s - settings.alive_s - _unwatched_s(connection, rollout, now_s)
    wanted = cohort(rollout.plan.cohort)
    query = select(devices.c.labels).where(
        devices.c.channel == rollout.channel, devices.c.revoked.is_(False), devices.c.seen_s >= since_s
    )
    return sum(wanted.includes(labels) for labels in connection.scalars(query))


def evidence_of(connection: Connection, rollout: Rollout, now_s: float, settings: Settings) -> Evidence:
    """What is known of the step that a rollout is in.

    Args:
        connection: to read with.
        rollout: as it is.
        now_s: seconds since 1970.
        settings: say what lately is.
    """
    lost_s = _unwatched_s(connection, rollout, now_s)
    alive_s, patience_s = settings.alive_s + lost_s, rollout.plan.patience_s + lost_s
    inside, heard = _devices(connection, rollout, now_s - alive_s, now_s - min(alive_s, patience_s))
    meant = [each for each in inside if each.meant]
    part = "pair" if rollout.phase == SHADOW else "serving"
    outcomes, reasons = _outcomes(rollout, inside, now_s, patience_s)
    judged = _judged(inside, part)
    columns = [Columns.of([getattr(found, name) for _, found in judged]) for name in ("first", "now")]
    live, candidate = _confidences(connection, rollout)
    return Evidence(
        meant=len(meant),
        taken=sum(_took(rollout, each) for each in meant),
        outcomes=np.array(outcomes, dtype=bool),
        reasons=reasons,
        first=columns[0],
        now=columns[1],
        slices=_slices(meant, [each for each, _ in judged]),
        samples=sum(found.now.samples for _, found in judged),
        live_confidence=live,
        confidence=candidate,
        heard=heard,
        share=rollout.bound / BUCKETS,
        arms=_arms(connection, rollout, now_s - min(alive_s, patience_s)) if rollout.arm_bound else None,
    )


def _arms(connection: Connection, rollout: Rollout, heard_since_s: float) -> Arms:
    """Both arms of an A/B comparison; who is in them is drawn, whatever it serves or tells."""
    bounds = {"serving": (0, rollout.arm_bound), "control": (rollout.control_bound, BUCKETS)}
    wanted, heard = cohort(rollout.plan.cohort), dict.fromkeys(bounds, 0)
    query = select(devices.c.id, devices.c.labels).where(
        devices.c.channel == rollout.channel, devices.c.revoked.is_(False), devices.c.seen_s >= heard_since_s
    )
    for row in connection.execute(query):
        if wanted.includes(row.labels):
            bucket = bucket_of(rollout.salt, row.id)
            for part, (low, high) in bounds.items():
                heard[part] += low <= bucket < high
    arms = []
    for part, (low, high) in bounds.items():
        of_arm = select(evidence.c.first).where(
            evidence.c.rollout == rollout.id, evidence.c.bucket >= low, evidence.c.bucket < high
        )
        known = [Judged.from_tree(tree[part]) for tree in connection.scalars(of_arm) if part in tree]
        known = sorted((each for each in known if each.place), key=lambda each: each.place)
        spoken = _spoken(connection, rollout, rollout.release if part == "serving" else rollout.baseline)
        arms.append(Arm.of(heard[part], [each.first for each in known], spoken))
    return Arms(arms[0], arms[1], rollout.decides_arms)


def _devices(
    connection: Connection, rollout: Rollout, alive_since_s: float, heard_since_s: float
) -> tuple[list[_Device], tuple[int, int]]:
    """Devices within the bound, and how many of the cohort are heard of within it and outside."""
    of_rollout = select(evidence).where(evidence.c.rollout == rollout.id, evidence.c.bucket < rollout.bound)
    rows = {row.device: row for row in connection.execute(of_rollout)}
    wanted = cohort(rollout.plan.cohort)
    query = select(devices.c.id, devices.c.labels, devices.c.seen_s, devices.c.live).where(
        devices.c.channel == rollout.channel, devices.c.revoked.is_(False)
    )
    found, inside, outside = [], 0, 0
    for row in connection.execute(query):
        member = wanted.includes(row.labels)
        within = bucket_of(rollout.salt, row.id) < rollout.bound
        if member and row.seen_s >= heard_since_s:
            inside, outside = inside + within, outside + (not within)
        if within and (member or row.id in rows):
            meant = member and row.seen_s >= alive_since_s
            found.append(_Device(row.id, row.labels, row.seen_s, row.live, meant, rows.get(row.id)))
    return found, (inside, outside)


def _took(rollout: Rollout, device: _Device) -> bool:
    row = device.row
    if row is None:
        return False
    took = (
        row.accepted_s > 0
        if rollout.phase == SHADOW
        else device.live == rollout.release or row.committed_s > 0
    )
    return bool(took or row.failed)


def _outcomes(
    rollout: Rollout, inside: Sequence[_Device], now_s: float, patience_s: float
) -> tuple[list[bool], dict[str, int]]:
    """Whether each device failed whose outcome is known, by the time it was last heard of, then by id."""
    reasons: dict[str, int] = {}
    found: list[tuple[int, str, bool]] = []
    for device in inside:
        if device.row is None or not (device.row.accepted_s or device.row.failed):
            continue
        code, done = _outcome(rollout, device, now_s, patience_s)
        if code:
            reasons[code] = reasons.get(code, 0) + 1
        if code or done:
            found.append((device.row.heard_s, device.id, bool(code)))
    return [failed for *_, failed in sorted(found)], reasons


def _outcome(rollout: Rollout, device: _Device, now_s: float, patience_s: float) -> tuple[str, bool]:
    """Why the release failed on a device, "" where it did not; and whether it did well."""
    row = device.row
    # A time that is still to come is of a clock that ran ahead.
    heard_s = max((each for each in (row.heard_s, device.seen_s) if each <= now_s), default=now_s)
    silent = SILENT if now_s - heard_s > patience_s else ""
    if rollout.phase == SHADOW:
        matured = row.first.get("pair", {}).get("place", 0) > 0
        return row.failed or row.first.get("fault", "") or silent, matured
    done = row.committed_s > 0
    return row.failed or ("" if done else silent), done


def _judged(inside: Sequence[_Device], part: str) -> list[tuple[_Device, Judged]]:
    """Devices that have shown enough, in the order in which they had."""
    found = [
        (device, Judged.from_tree(device.row.first[part]))
        for device in inside
        if device.row is not None and part in device.row.first
    ]
    return sorted((each for each in found if each[1].place), key=lambda each: each[1].place)


def _slices(meant: Sequence[_Device], judged: Sequence[_Device]) -> dict[str, Slice]:
    names = values_of(device.labels for device in meant)
    counts: dict[tuple[str, str], int] = {}
    for device in meant:
        for item in device.labels.items():
            if item[0] in names:
                counts[item] = counts.get(item, 0) + 1
    return {
        f"{name}={value}": Slice(
            count, np.array([device.labels.get(name) == value for device in judged], dtype=bool)
        )
        for (name, value), count in sorted(counts.items())
    }


def _spoken(connection: Connection, rollout: Rollout, release: str) -> Sketch:
    """Confidences of a version where it serves, in this rollout."""
    query = select(minutes.c.figures).where(
        minutes.c.rollout == rollout.id, minutes.c.slice == TOTAL, minutes.c.minute == TOTAL_MINUTE,
        minutes.c.live == release, minutes.c.candidate == release,
    )  # fmt: skip
    found = Sketch()
    for document in connection.scalars(query):
        found = found.merged(unpacked(document).figures.live.confidence)
    return found


def _confidences(connection: Connection, rollout: Rollout) -> tuple[Sketch, Sketch]:
    live, candidate = Sketch(), Sketch()
    query = select(minutes.c.figures).where(
        minutes.c.rollout == rollout.id,
        minutes.c.slice == TOTAL,
        minutes.c.minute == TOTAL_MINUTE,
        minutes.c.live != minutes.c.candidate,
    )
    for document in connection.scalars(query):
        figures = unpacked(document).figures
        live = live.merged(figures.live.confidence)
        candidate = candidate.merged(figures.candidate.confidence)
    return live, candidate


def _unwatched_s(connection: Connection, rollout: Rollout, now_s: float) -> float:
    """Seconds lately in which no server looked: devices could not be heard of, which is not their silence."""
    since_s = now_s - 2 * rollout.plan.patience_s - LONGEST_TICK_S
    # In the order in which they were made, as a clock may be set back; what a clock that ran ahead wrote is left out.
    made = select(looks.c.id, looks.c.at_s).where(looks.c.rollout == rollout.id, looks.c.at_s <= now_s)
    before = connection.execute(
        made.where(looks.c.at_s < since_s).order_by(looks.c.id.desc()).limit(1)
    ).one_or_none()
    within = made.where(looks.c.id > (before.id if before else 0)).order_by(looks.c.id)
    times = [int(row.at_s) for row in (*((before,) if before else ()), *connection.execute(within))]
    if not times:
        return 0.0
    gaps = [after - before for before, after in zip(times, [*times[1:], now_s], strict=True)]
    return sum(max(0.0, gap - LONGEST_TICK_S) for gap in gaps)
