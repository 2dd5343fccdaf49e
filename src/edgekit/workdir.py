"""Finished stages on disk, found again by what went into them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DONE = "done.json"


class WorkDir:
    """A hidden folder beside the output that holds one folder per finished stage.

    A stage is named by a key: the hash of everything that its result depends on. A folder without its marker was
    interrupted and is made again.

    Args:
        out: the bundle directory; the folder is its sibling.
        resume: keep what an earlier run finished; otherwise start empty.
    """

    def __init__(self, out: Path, *, resume: bool) -> None:
        self.path = out.parent / f".{out.name}.edgekit"
        if not resume:
            shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)

    def stage(self, name: str, key: str, make: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any], bool]:
        """Run a stage, or find its result.

        Args:
            name: for people.
            key: from `stage_key`.
            make: writes its files into the given empty folder and returns plain JSON values about them.

        Returns:
            The folder, what `make` returned, and whether it was found instead of made.
        """
        folder = self.path / f"{name}-{key[:16]}"
        marker = folder / _DONE
        if marker.exists():
            found: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
            return folder, found, True
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        facts = make(folder)
        temporary = folder / f"{_DONE}.part"
        with temporary.open("w", encoding="utf-8") as f:
            json.dump(facts, f)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(marker)
        return folder, facts, False

    def remove(self) -> None:
        """Everything is in the bundle now."""
        shutil.rmtree(self.path, ignore_errors=True)


def stage_key(*parts: Any) -> str:
    """Sha256 (hex) over JSON values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
