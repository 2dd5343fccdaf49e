"""`edgekit bench calibrate`: times operators on a device and writes a profile that predicts with them."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from edgekit.bench.command import LOCAL, REMOTE, shown, spec_of
from edgekit.bench.predict.calibrate import calibrate, default_threads, to_toml
from edgekit.errors import UsageError
from edgekit_devices import Profile, find_profile

WORD: Final = "calibrate"
DEFAULT_OUT: Final = Path("profile.toml")
MOST_PASSES: Final = 20


def calibrate_command(
    *,
    devices: Sequence[str] = (),
    threads: str | None = None,
    like: str | None = None,
    passes: int | None = None,
    out: Path | None = None,
    as_json: bool = False,
    console: Console,
) -> int:
    """Calibrate and write; arguments are the options of the command.

    Args:
        devices: at most one, "local" or `ssh://user@host`.
        threads: numbers with commas; None takes 1, 2, 4, … up to the cores here.
        like: profile whose data sheet is kept; None takes what this machine says.
        passes: over all operators, the quickest time of each counts; None is one.
        out: file of the profile; its stem names it.
        as_json: print what was written.
        console: of stderr.

    Returns:
        The exit code.

    Raises:
        UsageError: an option is wrong, the device cannot be reached, or the file cannot be written.
        ProfileError: `like` is not known.
    """
    path = out or DEFAULT_OUT
    device = _device(devices)
    if path.suffix != ".toml" or path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(
            f"{path}: no place for a profile", expected="a new .toml file", way_out="Name another with -o."
        )
    passes = 1 if passes is None else passes
    if not 1 <= passes <= MOST_PASSES:
        raise UsageError(
            f"--passes {passes}",
            expected=f"1 to {MOST_PASSES}",
            way_out="Two suffice where a machine is busy.",
        )
    numbers = spec_of((), threads=threads).threads if threads is not None else default_threads()
    base = replace(_here() if like is None else find_profile(like), name=path.stem)
    with shown(console) as told:
        profile = calibrate(base, device=device, threads=numbers, passes=passes, told=told(device))
    try:
        path.write_text(to_toml(profile), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", expected="a file that can be written", way_out="Name another."
        ) from error
    timed = sum(len(table.points) for table in profile.calibration)
    if as_json:
        sys.stdout.write(
            json.dumps({"profile": str(path), "operators": timed, "threads": list(numbers)}) + "\n"
        )
    else:
        Console(highlight=False).print(
            f"{timed} operators timed: {path}\nnow: edgekit bench FILE --device {path}",
            markup=False,
            soft_wrap=True,
        )
    return 0


def _device(devices: Sequence[str]) -> str:
    if not devices:
        return LOCAL
    if len(devices) > 1 or not (devices[0] == LOCAL or devices[0].startswith(REMOTE)):
        raise UsageError(
            f"--device {' '.join(devices)}: operators cannot be timed there",
            expected="local or one ssh://user@host",
            way_out="A profile is calibrated on the device that it is of.",
        )
    return devices[0]


def _here() -> Profile:
    """What this machine says of itself."""
    generic = find_profile("generic")
    note = "Calibrated operators only; name a profile with --like to keep what its data sheet says."
    title = f"Calibrated on {platform.node() or 'a machine'}"
    return replace(generic, title=title, isa=platform.machine() or "unknown", notes=(note,))


__all__ = ["WORD", "calibrate_command"]
