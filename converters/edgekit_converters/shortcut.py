"""A shortcut between layers of different widths, in no format's terms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shortcut:
    """Which pixels are taken, and how many empty channels are put around.

    Attributes:
        rows: from one row that is taken to the next.
        columns: likewise.
        before: empty channels in front.
        behind: empty channels at the end.
    """

    rows: int = 1
    columns: int = 1
    before: int = 0
    behind: int = 0

    def then(self, other: Shortcut) -> Shortcut:
        """Both, one after the other; pixels and channels do not meet, so the order does not matter."""
        return Shortcut(
            self.rows * other.rows,
            self.columns * other.columns,
            self.before + other.before,
            self.behind + other.behind,
        )
