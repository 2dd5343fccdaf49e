"""What goes wrong on a device.

```
DeviceError            says what was found, what was expected and the way out; has an exit status and a code
├── StoreError         the store cannot be read, written or locked
├── ArtifactError      a release is damaged, incomplete, or lies about itself; it is never activated
├── RefusedError       the version manager does not take an event, by its rules
├── TrustError         metadata or a target is not what the trusted roles signed; nothing of it is used
├── NetworkError       a server was not reached, or did not answer to the end
├── BackendError       no backend runs a file here, or the one that is here refuses it
└── InputError         what was given to a model does not fit its inputs
```

Reason codes are short, stable and lower case: they are stored, reported and counted.
"""

from __future__ import annotations


class DeviceError(Exception):
    """Anything that this package raises by intention.

    Args:
        what: was found, with the file and the value.
        expected: what would be right.
        way_out: what to do.
        code: for machines.
    """

    exit_code = 2

    def __init__(self, what: str, *, expected: str, way_out: str, code: str) -> None:
        self.what, self.expected, self.way_out, self.code = what, expected, way_out, code
        super().__init__(f"{what}\n  expected: {expected}\n  way out:  {way_out}")


class StoreError(DeviceError):
    """The store cannot be read, written or locked."""


class ArtifactError(DeviceError):
    """A release is damaged, incomplete, or lies about itself."""

    exit_code = 3


class RefusedError(DeviceError):
    """The version manager does not take an event, by its rules."""

    exit_code = 3


class TrustError(DeviceError):
    """Metadata or a target is not what the trusted roles signed."""

    exit_code = 3


class NetworkError(DeviceError):
    """A server was not reached, or did not answer to the end."""


class BackendError(DeviceError):
    """No backend runs this file here, or the one that is here refuses it."""


class InputError(DeviceError):
    """What was given to a model does not fit its inputs."""
