"""One INT8 grid, three formats, proven on the saved files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from edgekit.versions import __version__

if TYPE_CHECKING:
    from edgekit.api import compress
    from edgekit.bundle import Bundle

# Threads that wait for one another soon go to sleep. By default they spin long enough to make two threads a hundred
# times slower than one on a machine with other work to do; without any spinning, an idle machine loses a third of its
# speed. Read once, when torch is first imported; workers inherit it.
os.environ.setdefault("GOMP_SPINCOUNT", "4000")

__all__ = ["Bundle", "__version__", "compress"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `edgekit --help` and `edgekit doctor` do without.
    if name == "compress":
        from edgekit.api import compress

        return compress
    if name == "Bundle":
        from edgekit.bundle import Bundle

        return Bundle
    raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
