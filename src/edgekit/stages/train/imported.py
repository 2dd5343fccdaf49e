"""The user's own code, named as module:callable in the recipe."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from edgekit.errors import UsageError


def imported(key: str, spec: str, expected: str) -> Callable[..., Any]:
    """Import a callable; the current folder is importable.

    Args:
        key: of the recipe, for messages, e.g. "train.student".
        spec: "module:callable".
        expected: what the callable should be, for messages.

    Raises:
        UsageError: it cannot be imported or is not callable.
    """
    name, _, attribute = spec.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        value: Any = getattr(importlib.import_module(name), attribute)
    except Exception as error:  # importing runs the user's code
        raise _broken(key, spec, f"{type(error).__name__}: {error}", expected) from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    if not callable(value):
        raise _broken(key, spec, f"it is a {type(value).__name__}", expected)
    return cast(Callable[..., Any], value)


def _broken(key: str, spec: str, found: str, expected: str) -> UsageError:
    return UsageError(
        f"recipe: {key} = {spec!r}: {found}",
        expected=expected,
        way_out="Run in the folder of the module, or install it; and check the spelling.",
    )
