"""One INT8 grid, three formats, proven on the saved files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.api import compress
    from edgekit.bundle import Bundle

__version__ = "0.1.0"
__all__ = ["Bundle", "compress"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `edgekit --help` and `edgekit doctor` do without.
    if name == "compress":
        from edgekit.api import compress

        return compress
    if name == "Bundle":
        from edgekit.bundle import Bundle

        return Bundle
    raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
