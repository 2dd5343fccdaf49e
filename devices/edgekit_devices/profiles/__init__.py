"""One TOML file a device: what decides how a model is lowered and timed for it, and whence we know."""

from __future__ import annotations

import difflib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from edgekit_devices.reading import read_profile
from edgekit_devices.schema import Profile, ProfileError

__all__ = ["Profile", "ProfileError", "find_profile", "load_profile", "names", "read_profile"]

SUFFIX = ".toml"
MOST_BYTES = 4_000_000


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


def find_profile(name: str) -> Profile:
    """Return a profile of the package by its name, or one of the user by the path of its `.toml` file.

    Raises:
        ProfileError: no profile has this name, or the file is none.
    """
    if not name.endswith(SUFFIX):
        return load_profile(name)
    path = Path(name)
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise ProfileError(
                f"{name}: larger than {MOST_BYTES} bytes", expected="a profile", way_out="Name another file."
            )
        return read_profile(raw.decode("utf-8-sig"), path.stem)
    except OSError as error:
        raise ProfileError(
            f"{name}: {error.strerror}", expected="a readable profile", way_out="Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise ProfileError(
            f"{name}: {error}", expected="TOML in UTF-8", way_out=f"Correct {name}."
        ) from error


def _folder() -> Traversable:
    return resources.files("edgekit_devices.profiles")
