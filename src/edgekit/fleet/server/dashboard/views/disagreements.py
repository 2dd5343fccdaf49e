"""The latest inputs on which two versions differ, for the page that compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.fleet.server.dashboard import words
from edgekit.fleet.server.dashboard.views.common import When

LATEST: Final = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One input.

    Attributes:
        id: of it.
        device: that saw it.
        live: label that the live version chose, a dash where the task has none.
        candidate: likewise.
        at: when it was seen, by the clock of the device.
    """

    id: int
    device: str
    live: str
    candidate: str
    at: When


def rows_of(found: Sequence[Mapping[str, Any]], now_s: float) -> tuple[Row, ...]:
    """Rows of the table.

    Args:
        found: rows without what is sealed in them, newest first.
        now_s: seconds since 1970.
    """
    return tuple(
        Row(
            each["id"], each["device"], each["live_label"] or words.NONE, each["candidate_label"] or words.NONE,
            When.ago(each["at_s"], now_s),
        )
        for each in found
    )  # fmt: skip
