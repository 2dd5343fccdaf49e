"""Where a benchmark runs: here, over SSH, or in an emulated machine. Each gives `measure(spec, …) -> Result`."""

from __future__ import annotations

import json
from collections.abc import Callable

Told = Callable[[float, str], None]
"""Told how far it is, from 0 to 1, and what is going on."""


def silent(share: float, what: str) -> None:
    """Tell nobody."""
    del share, what


def progress_of(line: str) -> tuple[float, str] | None:
    """Share done and what is going on, of a line that the harness wrote to stderr; None for a runtime's own words."""
    try:
        told = json.loads(line)
        return min(1.0, max(0.0, float(told["done"]))), str(told["what"])
    except (ValueError, TypeError, KeyError):
        return None
