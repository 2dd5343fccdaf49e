"""The errors of the fleet, a branch of the tree that is drawn in `edgekit_converters.errors`.

```
EdgekitError
└── FleetError             says what was found, what was expected and the way out; has a code and a status of HTTP
    ├── InvalidError       (400, 422) what was given cannot be used
    ├── DeniedError        (401, 403) who asks may not
    ├── NotFoundError      (404) there is no such thing
    ├── ConflictError      (409) it is there already, or somebody else was quicker
    ├── TooMuchError       (413, 429) larger or more often than is taken
    └── UnavailableError   (503) the database or the blobs do not answer now
```
"""

from __future__ import annotations

from edgekit.errors import EdgekitError


class FleetError(EdgekitError):
    """Root of what goes wrong in a fleet.

    Args:
        what: the thing and the value found.
        expected: what would have been right.
        way_out: what to do about it.
        code: stable name for machines.
        status: of HTTP, where another than the class's own fits better.
    """

    exit_code = 2
    status = 500

    def __init__(
        self, what: str, *, expected: str, way_out: str, code: str, status: int | None = None
    ) -> None:
        self.what, self.expected, self.way_out, self.code = what, expected, way_out, code
        if status is not None:
            self.status = status
        super().__init__(f"{what}\n  expected: {expected}\n  way out:  {way_out}")


class InvalidError(FleetError):
    """What was given cannot be used."""

    status = 422


class DeniedError(FleetError):
    """Who asks may not."""

    status = 403


class NotFoundError(FleetError):
    """There is no such thing."""

    status = 404


class ConflictError(FleetError):
    """It is there already, or somebody else was quicker."""

    status = 409


class TooMuchError(FleetError):
    """Larger, or more often, than is taken."""

    status = 413


class UnavailableError(FleetError):
    """The database or the blobs do not answer now."""

    status = 503
