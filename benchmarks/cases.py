"""Runs the cases of a benchmark one after the other, and keeps their results."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.machine import machine
from benchmarks.networks import MissingDataError

Case = TypeVar("Case", bound="Named")


class Named(Protocol):
    """A case."""

    @property
    def name(self) -> str:
        """As it stands in the result."""


def run_cases(
    cases: Sequence[Case], measure: Callable[[Case, Path], dict[str, Any]], result: Path
) -> dict[str, dict[str, Any]]:
    """Measure every case in an empty folder, print and save the figures.

    Args:
        cases: those whose weights are not on this machine are skipped, and that is said.
        measure: figures of a case.
        result: JSON file to write.

    Returns:
        Case name to figures.
    """
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[case.name] = measure(case, Path(folder))
            except MissingDataError as missing:
                print(f"{case.name}: skipped, {missing}", file=sys.stderr)
                continue
        print(case.name, json.dumps(found[case.name], indent=1), flush=True)
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps({"machine": machine(), "networks": found}, indent=1) + "\n")
    return found
