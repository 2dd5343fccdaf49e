"""One TOML file a device: what decides how a model is lowered and timed for it, and whence we know.

ProfileError        unknown name, or a file that is no profile
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

__all__ = ["Profile", "ProfileError", "load_profile", "names", "read_profile"]

FORMATS = ("onnx", "tflite", "coreml")


class ProfileError(Exception):
    """A device that is not known, or a profile that cannot be read.

    Args:
        what: what was found.
        expected: what would be right.
        way_out: what to do.
    """

    exit_code = 2

    def __init__(self, what: str, *, expected: str, way_out: str) -> None:
        self.what, self.expected, self.way_out = what, expected, way_out
        super().__init__(f"{what}\n  expected: {expected}\n  way out:  {way_out}")


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of device.

    Attributes:
        name: as in `--target`, the stem of its file.
        title: for people.
        isa: instruction set with the extension that decides int8 speed.
        cores: of the processor, None for a class of machines.
        preferred_format: artifact to run there, from `FORMATS`.
        threads: to time with.
        int8_saturates: uint8 × int8 kernels add pairs in 16 bits and clip; weights then need 7 bits.
        notes: plain sentences.
        sources: addresses of what the profile says.
    """

    name: str
    title: str
    isa: str
    cores: int | None
    preferred_format: str
    threads: int
    int8_saturates: bool
    notes: tuple[str, ...]
    sources: tuple[str, ...]


def names() -> tuple[str, ...]:
    """Return the names of all profiles, sorted."""
    files = (item.name for item in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))


def load_profile(name: str) -> Profile:
    """Return a profile.

    Raises:
        ProfileError: no profile has this name; close ones are listed.
    """
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        raise ProfileError(
            f"unknown device {name!r}",
            expected=f"one of {', '.join(known)}",
            way_out=f"Did you mean {' or '.join(close)}?" if close else "`edgekit devices` describes them.",
        )
    return read_profile((_folder() / f"{name}.toml").read_text("utf-8"), name)


def read_profile(text: str, name: str) -> Profile:
    """Read a profile from TOML.

    Args:
        text: content of the file.
        name: stem of the file, which names the profile.

    Raises:
        ProfileError: malformed TOML, or an unknown, missing or wrong key; the error names it.
    """
    way_out = f"Correct {name}.toml."
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ProfileError(f"{name}.toml: {error}", expected="TOML", way_out=way_out) from error
    known = [field.name for field in fields(Profile) if field.name != "name"]
    for key in tree:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else way_out
            raise ProfileError(
                f"{name}.toml: unknown key {key}", expected=f"one of {', '.join(known)}", way_out=hint
            )
    for key in known:
        if (key not in tree and key != "cores") or not _fits(key, tree.get(key)):
            found = f"{key} = {tree[key]!r}" if key in tree else f"no {key}"
            raise ProfileError(f"{name}.toml: {found}", expected=_EXPECTED[key], way_out=way_out)
    lists = {key: tuple(tree[key]) for key in ("notes", "sources")}
    return Profile(**{"cores": None, **tree, **lists, "name": name})


_EXPECTED: Mapping[str, str] = {
    "title": "text",
    "isa": "text",
    "cores": "a whole number from 1 to 1024, or no such key",
    "preferred_format": f"one of {', '.join(FORMATS)}",
    "threads": "a whole number from 1 to 1024",
    "int8_saturates": "true or false",
    "notes": "a list of sentences",
    "sources": "a list of https addresses",
}


def _fits(key: str, value: Any) -> bool:
    if key in ("title", "isa"):
        return isinstance(value, str) and bool(value.strip())
    if key in ("cores", "threads"):
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1024
        return whole or (key == "cores" and value is None)
    if key == "preferred_format":
        return value in FORMATS
    if key == "int8_saturates":
        return isinstance(value, bool)
    start = "https://" if key == "sources" else ""
    return isinstance(value, list) and all(isinstance(each, str) and each.startswith(start) for each in value)


def _folder() -> Traversable:
    return resources.files("edgekit_devices.profiles")
