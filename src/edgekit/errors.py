"""The errors of the workbench; the tree is drawn in `edgekit_converters.errors`."""

from __future__ import annotations

from edgekit_converters.errors import EdgekitError, LoweringError

__all__ = ["EdgekitError", "Interrupted", "LoweringError", "UsageError"]


class UsageError(EdgekitError):
    """A wrong option or an input that cannot be used.

    Args:
        what: the file or option, and the value found.
        expected: what would have been right.
        way_out: what to do about it.
    """

    exit_code = 2

    def __init__(self, what: str, *, expected: str, way_out: str) -> None:
        self.what, self.expected, self.way_out = what, expected, way_out
        super().__init__(f"{what}\n  expected: {expected}\n  way out:  {way_out}")


class Interrupted(EdgekitError):  # noqa: N818 - not a failure
    """Stopped by the user; finished stages are kept and `--resume` goes on from them."""

    exit_code = 130
