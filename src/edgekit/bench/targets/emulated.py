"""Benchmarks in an emulated arm64 machine: they show that a file runs there, and nothing about its speed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from edgekit.bench.results import EMULATED, Result, Spec
from edgekit.bench.targets import Told, silent
from edgekit.bench.targets.parcels import pack, teller, unpack
from edgekit.errors import UsageError
from edgekit.remote.session import run

NAME: Final = "emulated arm64"
DEVICE: Final = "arm64"
FOLDER_VARIABLE: Final = "EDGEKIT_ARM64"
_SAYS: Final = "arm64: "


def default_folder() -> Path:
    """`EDGEKIT_ARM64`; else what `scripts/arm64` made below the current folder; else the user's cache."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    here = Path(".cache", "arm64")
    if (here / "root").is_dir():
        return here
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache or Path.home() / ".cache") / "edgekit" / "arm64"


def measure(spec: Spec, folder: Path | None = None, *, told: Told = silent) -> Result:
    """Run the harness in an emulated Debian for arm64.

    Args:
        spec: what to measure, with paths of this machine.
        folder: that holds the root; it is made there where there is none, which needs a network and some minutes.
        told: how far it is.

    Returns:
        A result of the kind `EMULATED`.

    Raises:
        UsageError: this user is not root, qemu is not there, or a file does not run.
    """
    folder, job = (folder or default_folder()).absolute(), pack(spec)
    line, copied = teller(job, NAME, told)
    if not (folder / "root" / "opt" / "site" / "wheels-are-there").exists():
        told(0.0, f"making an arm64 root in {folder}; some minutes")
    ended = run(
        enter(folder), job, where=NAME, explain=_explain, told=line, copied=copied, silence_s=600
    )  # fmt: skip
    return unpack(ended, NAME, EMULATED, DEVICE)


def enter(folder: Path) -> list[str]:
    """The command that makes the root where there is none, and enters it; a line for its shell follows as one word.

    Args:
        folder: that holds the root.
    """
    script = resources.files("edgekit_devices").joinpath("emulation", "arm64.sh")
    return ["env", f"PYTHON={sys.executable}", "bash", str(script), str(folder), "enter"]


def _explain(status: int, lines: Sequence[str], doing: str) -> UsageError:
    own = [line.removeprefix(_SAYS) for line in lines if line.startswith(_SAYS)]
    said = own[-1] if own else lines[-1] if lines else f"status {status}"
    what, _, way_out = said.partition("; way out: ")
    return UsageError(
        f"{NAME}: {what}" if doing == "connecting" else f"{NAME}: ended while {doing}: {what}",
        expected="root, mmdebstrap, qemu-user-static, and a network at the first run",
        way_out=way_out or "sudo apt-get install mmdebstrap qemu-user-static, then run it again as root.",
    )
