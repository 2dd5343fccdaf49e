"""Devices: the list, and the page of one with its slots, its failures and what it told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from edgekit.fleet.server.dashboard import plots, words
from edgekit.fleet.server.dashboard.queries import HOUR_S
from edgekit.fleet.server.dashboard.views.common import Names, Tag, Version, When, tag_of, version_of

HOURS: Final = 48
BESIDE: Final[Mapping[str, str]] = {"rollbacks": "Roll backs in a row", "dropped": "Windows dropped"}


@dataclass(frozen=True, slots=True)
class Row:
    """A device in the list.

    Attributes:
        id: of it.
        labels: (name, value).
        version: that serves.
        phase: in words.
        state: whether it is well.
        seen: when it was last heard of.
        channel: that it follows.
    """

    id: str
    labels: tuple[tuple[str, str], ...]
    version: Version
    phase: str
    state: Tag
    seen: When
    channel: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A version that a device does not take again.

    Attributes:
        version: of it.
        code: of why.
        says: in words.
    """

    version: Version
    code: str
    says: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a device reported.

    Attributes:
        when: it came.
        version: that it is about.
        says: what became of it.
        tone: of that.
        why: code in words, "" where nothing went wrong.
    """

    when: When
    version: Version
    says: str
    tone: str
    why: str


@dataclass(frozen=True, slots=True)
class Part:
    """What a device showed of a rollout.

    Attributes:
        rollout: id.
        about: model and version.
        state: how it went.
        agreement: in words.
        compared: answers.
        heard: when it was last heard of with it.
    """

    rollout: str
    about: str
    state: Tag
    agreement: str
    compared: str
    heard: When


@dataclass(frozen=True, slots=True)
class DevicePage:
    """The page of a device.

    Attributes:
        row: as in the list.
        slots: (name, version, what it is for).
        enrolled: when.
        pinned: whether it takes nothing new.
        beside: (name, value) of what else it told.
        failures: versions that it does not take again.
        events: newest first.
        activity: windows by hour.
        windows: in these hours.
        parts: by rollout.
        may_revoke: whether this person may.
    """

    row: Row
    slots: tuple[tuple[str, Version, str], ...]
    enrolled: When
    pinned: bool
    beside: tuple[tuple[str, str], ...]
    failures: tuple[Failure, ...]
    events: tuple[Event, ...]
    activity: Markup
    windows: int
    parts: tuple[Part, ...]
    may_revoke: bool


def row_of(device: Mapping[str, Any], names: Names, now_s: float, alive_s: float) -> Row:
    """A device in the list.

    Args:
        device: row of the table.
        names: of releases.
        now_s: seconds since 1970.
        alive_s: seconds within which it counts as heard of lately.
    """
    return Row(
        device["id"], tuple(sorted(device["labels"].items())), version_of(names, device["live"]),
        words.PHASES.get(device["phase"], device["phase"]), _state(device, now_s, alive_s),
        When.ago(device["seen_s"], now_s), device["channel"],
    )  # fmt: skip


def page_of(
    device: Mapping[str, Any],
    reports: Sequence[Mapping[str, Any]],
    hours: Mapping[int, int],
    evidence: Sequence[Mapping[str, Any]],
    names: Names,
    now_s: float,
    alive_s: float,
    *,
    may: bool,
) -> DevicePage:
    """The page from its rows.

    Args:
        device: row of the table.
        reports: newest first.
        hours: hour since 1970 to windows that came in it.
        evidence: what it showed of rollouts.
        names: of releases.
        now_s: seconds since 1970.
        alive_s: seconds within which it counts as heard of lately.
        may: whether this person may revoke it.
    """
    status: Mapping[str, Any] = device["status"]
    failed = status.get("failed", {})
    last = int(now_s) // HOUR_S
    span = range(last - HOURS + 1, last + 1)
    counts = [hours.get(hour, 0) for hour in span]
    labels = [
        f"{words.moment(hour * HOUR_S)}: {count} windows" for hour, count in zip(span, counts, strict=True)
    ]
    slots = (
        ("Live", version_of(names, device["live"]), "serves"),
        ("Candidate", version_of(names, device["candidate"]), "on its way"),
        ("Last good", version_of(names, device["last_good"]), "what a roll back returns to"),
    )
    return DevicePage(
        row_of(device, names, now_s, alive_s), slots, When.ago(device["enrolled_s"], now_s), bool(device["pinned"]),
        tuple((label, str(status[key])) for key, label in BESIDE.items() if key in status),
        tuple(
            Failure(version_of(names, release), code, words.reason(code)) for release, code in sorted(failed.items())
        ),
        tuple(_event(each, names, now_s) for each in reports),
        plots.columns(counts, labels, f"{sum(counts)} windows in {HOURS} hours"), sum(counts),
        tuple(_part(each, now_s) for each in evidence), may and not device["revoked"],
    )  # fmt: skip


def _state(device: Mapping[str, Any], now_s: float, alive_s: float) -> Tag:
    if device["revoked"]:
        return Tag("Revoked", "bad")
    if not device["seen_s"]:
        return Tag("Not heard of yet", "quiet")
    if now_s - device["seen_s"] > alive_s:
        return Tag("Silent", "warn")
    return Tag("Well", "good") if device["phase"] != "rollback" else Tag("Rolling back", "warn")


def _event(report: Mapping[str, Any], names: Names, now_s: float) -> Event:
    says = tag_of(words.KINDS, report["kind"])
    why = words.reason(report["reason"]) if report["reason"] else ""
    return Event(
        When.ago(report["received_s"], now_s), version_of(names, report["release"]), says.text, says.tone, why
    )


def _part(row: Mapping[str, Any], now_s: float) -> Part:
    if row["failed"]:
        state = Tag(words.reason(row["failed"]), "bad")
    elif row["committed_s"]:
        state = Tag("Serves well", "good")
    else:
        state = Tag("Took it" if row["accepted_s"] else "Not yet", "info" if row["accepted_s"] else "quiet")
    agreed = words.share(row["agreed"] / row["compared"], 2) if row["compared"] else words.NONE
    return Part(
        row["rollout"], f"{row['model']} {row['version']}", state, agreed, words.count(row["compared"]),
        When.ago(row["heard_s"], now_s),
    )  # fmt: skip
