"""Of which candidate inputs may leave this device, where its answers differ from the live version's.

The agent writes it from the signed policy, and takes it away where that asks for none or the device says no. Whoever
keeps or sends such inputs looks here first, so that a policy that goes away, or a veto, holds from that moment on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit_runtime.disk import Disk, replace
from edgekit_runtime.policies import MAX_DISAGREEMENTS
from edgekit_runtime.strict_json import ContractError, Fields, check_whole, parse

SCHEMA: Final = 1
FILE, FOLDER = "payloads.json", "payloads"
VETO: Final = "EDGEKIT_NO_PAYLOAD"
MAX_FILE_BYTES: Final = 4 << 10
_OFF: Final = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may be kept and sent.

    Attributes:
        release: id of the candidate, "" for none.
        per_window: inputs of a window at most.
    """

    release: str
    per_window: int

    def of(self, candidate: str) -> int:
        """How many inputs of a window may be kept that a candidate was compared on."""
        return self.per_window if candidate == self.release else 0


NOTHING: Final = Allowance("", 0)


def vetoed(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment says that no input leaves this device."""
    return environ.get(VETO, "").strip().lower() not in _OFF


def load(store: Path) -> Allowance:
    """What may be kept and sent now; nothing where that cannot be read.

    Args:
        store: folder of the versions.
    """
    try:
        with (store / FILE).open("rb") as file:
            tree = Fields(parse(file.read(MAX_FILE_BYTES)), "", required=("schema", "release", "per_window"))
        check_whole("per_window", per_window := tree.whole("per_window"), 1, MAX_DISAGREEMENTS)
        return Allowance(tree.text("release"), per_window) if tree.whole("schema") == SCHEMA else NOTHING
    except (OSError, ContractError):
        return NOTHING


def keep(disk: Disk, store: Path, allowance: Allowance) -> None:
    """Say what may be kept and sent from now on.

    Args:
        disk: to write to.
        store: folder of the versions.
        allowance: all that may be.

    Raises:
        OSError: the disk is full, or cannot be written.
    """
    path = store / FILE
    if not allowance.per_window:
        if path.exists():
            disk.remove(path)
            disk.sync_folder(store)
    elif allowance != load(store):
        tree = {"schema": SCHEMA, "release": allowance.release, "per_window": allowance.per_window}
        replace(disk, path, (json.dumps(tree, sort_keys=True) + "\n").encode())


def give_way(store: Path) -> bool:
    """Remove the inputs that wait, where something that is worth more needs the room; whether there were any.

    Args:
        store: folder of the versions.
    """
    waiting = list((store / FOLDER).glob("[0-9]*-*-*"))
    for each in waiting:
        each.unlink(missing_ok=True)
    return bool(waiting)
