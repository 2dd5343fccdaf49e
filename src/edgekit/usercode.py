"""The user's own code, named as module:callable on the command line or in a recipe."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from edgekit.errors import UsageError


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """The user's folder comes first on the import path, as with `python script.py`."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def imported(spec: str, *, named: str, expected: str, way_out: str) -> Callable[..., Any]:
    """Import a callable; the current folder is importable.

    Args:
        spec: "module:callable"; the part behind the colon may have dots.
        named: what the user wrote, e.g. "--data photos:batches", for messages.
        expected: what the callable should be, for messages.
        way_out: for messages.

    Raises:
        UsageError: it is not of that form, cannot be imported, or is not callable.
    """
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise UsageError(f"{named}: not of the form module:callable", expected=expected, way_out=way_out)
    try:
        with current_folder_importable():
            value: Any = importlib.import_module(name)
            for part in attribute.split("."):
                value = getattr(value, part)
    except Exception as error:  # importing runs the user's code
        found = f"{named}: {type(error).__name__}: {error}"
        raise UsageError(found, expected=expected, way_out=way_out) from error
    if not callable(value):
        raise UsageError(f"{named}: it is a {type(value).__name__}", expected=expected, way_out=way_out)
    return cast(Callable[..., Any], value)
