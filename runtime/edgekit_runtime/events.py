"""What may happen to the versions of a device, and what has to be done about it: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from edgekit_runtime.state import Process, Report, State


@dataclass(frozen=True, slots=True)
class Offered:
    """A release should be installed.

    Attributes:
        release: id.
        shadow: let it run beside the live version first.
        forced: though it failed before, or the device is pinned.
    """

    release: str
    shadow: bool = False
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """What the phase asked for is done, and went well."""

    phase: str


@dataclass(frozen=True, slots=True)
class Failed:
    """What the phase asked for went wrong.

    Attributes:
        phase: that it belongs to.
        reason: code.
        passing: nothing is wrong with the release itself: the network, room, or memory.
    """

    phase: str
    reason: str
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """A step is about to be taken that may take the process, or the whole device, down."""

    phase: str


@dataclass(frozen=True, slots=True)
class Activated:
    """The candidate should go live without waiting for its shadow."""


@dataclass(frozen=True, slots=True)
class Loading:
    """A process is about to load the live version.

    Attributes:
        process: that does.
        dead: those that are known to have loaded it and run no more.
    """

    process: Process
    dead: frozenset[Process] = frozenset()


@dataclass(frozen=True, slots=True)
class Left:
    """A process that had loaded the live version ended as it should, or has lived long enough to be no crash loop."""

    process: Process


# Whose fault it is that a version cannot be loaded: its files are no longer what was installed; the backend refuses the
# release; this device has too little memory today; the process asked for what the release or the device does not have.
DISK, RELEASE, MEMORY, PROCESS = FAULTS = ("disk", "release", "memory", "process")
_FAULT_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("damaged", "missing"), DISK),
        **dict.fromkeys(("load", "ends", "manifest", "preprocessing"), RELEASE),
        "no_memory": MEMORY,
    }
)


def fault_of(code: str) -> str:
    """Whose fault an error with this code is."""
    return _FAULT_OF.get(code, PROCESS)


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The live version could not be loaded.

    Attributes:
        release: that could not.
        reason: code.
        fault: whose it is, one of `FAULTS`.
    """

    release: str
    reason: str
    fault: str = RELEASE


@dataclass(frozen=True, slots=True)
class Health:
    """How the live version does in one process since it was loaded there.

    Attributes:
        release: that was loaded.
        served_s: seconds since then, by a clock that nobody sets.
        predictions: made.
        errors: predictions that raised.
        nans: predictions with NaN or infinite outputs.
        slow: predictions that took longer than the application allows.
    """

    release: str
    served_s: float
    predictions: int
    errors: int = 0
    nans: int = 0
    slow: int = 0


@dataclass(frozen=True, slots=True)
class MarkedGood:
    """The application vouches for the version that it runs."""

    release: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The version before should serve again, or the candidate be dropped.

    Attributes:
        reason: code of who says so.
        passing: nothing is known to be wrong with the version that goes.
    """

    reason: str = "asked_for"
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Pinned:
    """Take no version any more, or take them again."""

    on: bool


@dataclass(frozen=True, slots=True)
class Sent:
    """The server has some of the reports."""

    reports: tuple[Report, ...]


@dataclass(frozen=True, slots=True)
class Recovered:
    """The process starts; whatever the last one was at was cut off."""


Event = (
    Offered | Done | Failed | Begun | Activated | Loading | Left | LoadFailed | Health | MarkedGood
    | RolledBack | Pinned | Sent | Recovered
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Action:
    """What has to be done in a phase; doing it again after a cut does no harm.

    Attributes:
        phase: that asks for it: fetch, verify, stage, shadow, or collect what commit and roll back left over.
        release: that it is about.
    """

    phase: str
    release: str


@dataclass(frozen=True, slots=True)
class Limits:
    """When a version in probation is good, and when it is not.

    Attributes:
        crashes: processes that may die of it.
        tries: times that a candidate may take the device down while it is staged.
        served_s: seconds that one process has to serve it.
        predictions: that this process has to make.
        judged: predictions after which shares count.
        bad_share: of predictions with an error or with NaN; a single one never counts.
        slow_share: of predictions that take longer than the application allows.
        rollbacks: in a row, after which nothing is taken but what is forced.
    """

    crashes: int = 3
    tries: int = 3
    served_s: float = 300.0
    predictions: int = 100
    judged: int = 20
    bad_share: float = 0.01
    slow_share: float = 0.5
    rollbacks: int = 5


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome of a transition.

    Attributes:
        state: to be persisted before anything else is done.
        actions: to be done then.
        refused: code of why the event changed nothing, "" where it was taken.
    """

    state: State
    actions: tuple[Action, ...] = field(default=())
    refused: str = ""
