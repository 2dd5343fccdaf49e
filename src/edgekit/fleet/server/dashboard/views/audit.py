"""The audit log, a page at a time, and whether its chain is whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.fleet.server.dashboard import words
from edgekit.fleet.server.dashboard.views.common import Tag, When
from edgekit.fleet.storage.audit import Break, Head

MOST_DETAIL: Final = 400


@dataclass(frozen=True, slots=True)
class Row:
    """Something that somebody did.

    Attributes:
        sequence: number in the log.
        when: it was done.
        actor: who.
        action: what.
        subject: upon what.
        link: address of that, "" for none.
        detail: (name, value) of more.
        hash: first part.
    """

    sequence: int
    when: When
    actor: str
    action: str
    subject: str
    link: str
    detail: tuple[tuple[str, str], ...]
    hash: str


@dataclass(frozen=True, slots=True)
class Chain:
    """Whether the log is what was written.

    Attributes:
        tag: in a word.
        says: in a sentence.
        hash: of its end.
    """

    tag: Tag
    says: str
    hash: str


def rows_of(rows: Sequence[Mapping[str, Any]], now_s: float) -> tuple[Row, ...]:
    """Rows of the table, newest first."""
    return tuple(_row(each, now_s) for each in rows)


def chain_of(broken: Break | None, head: Head) -> Chain:
    """What `verify` found."""
    if broken is not None:
        return Chain(Tag("Broken", "bad"), f"Row {broken.sequence}: {broken.why}.", head.hash)
    rows = f"{words.count(head.sequence)} rows, each with the hash of the one before"
    return Chain(Tag("Whole", "good"), f"{rows}." if head.sequence else "Nothing was done yet.", head.hash)


def _row(row: Mapping[str, Any], now_s: float) -> Row:
    kind = row["action"].partition(".")[0]
    folder = {"rollout": "rollouts", "device": "devices", "version": "versions"}.get(kind, "")
    detail = tuple(
        (str(key), str(value)[:MOST_DETAIL])
        for key, value in row["detail"].items()
        if value not in ("", None)
    )
    return Row(
        row["sequence"], When.ago(row["at_s"], now_s), row["actor"], row["action"], row["subject"],
        f"{folder}/{row['subject']}" if folder else "", detail, row["hash"][:12],
    )  # fmt: skip
