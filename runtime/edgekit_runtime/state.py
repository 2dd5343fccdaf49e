"""What a device knows of its versions, and how that is kept: one small JSON document.

The document carries a hash of itself, so that a torn or rotten one is told from a whole one. A phase that this version
does not know is read as `UNKNOWN`, from which there is only the way back.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from edgekit_runtime.strict_json import (
    ContractError,
    Fields,
    check_pattern,
    check_text,
    check_whole,
    parse,
    read_text,
    within,
)

FETCH, VERIFY, STAGE, SHADOW = "fetch", "verify", "stage", "shadow"
PROBATION, COMMIT, ROLLBACK = "probation", "commit", "rollback"
IDLE, UNKNOWN = "idle", "unknown"
PHASES: Final = (IDLE, FETCH, VERIFY, STAGE, SHADOW, PROBATION, COMMIT, ROLLBACK)

SCHEMA: Final = 1
# What a device remembers of versions that failed, and of what it has not told anybody yet.
MAX_FAILED: Final = 64
MAX_REPORTS: Final = 64

_ID = re.compile(r"[0-9a-f]{64}")
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Process:
    """One run of one program, never mistaken for another.

    Attributes:
        pid: of the system.
        started: when it started, in ticks since the system booted; a pid is used again, the pair is not.
        boot: of the system, as it names its boots.
    """

    pid: int
    started: int
    boot: str

    def __post_init__(self) -> None:
        check_whole("pid", self.pid, 1, 2**53)
        check_whole("started", self.started, 0, 2**53)
        check_text("boot", self.boot)


@dataclass(frozen=True, slots=True)
class Report:
    """Something that whoever runs the fleet should hear of.

    Attributes:
        kind: "committed", "rolled_back", "refused", "damaged" (of the version before), "not_loaded".
        release: id of the version that it is about.
        reason: code, "" where nothing went wrong.
        at_s: seconds since 1970 by this device's clock, which may be wrong.
    """

    kind: str
    release: str
    reason: str
    at_s: int

    def __post_init__(self) -> None:
        check_pattern("kind", self.kind, _CODE, "a code such as rolled_back")
        check_pattern("release", self.release, _ID, "64 hexadecimal digits")
        if self.reason:
            check_pattern("reason", self.reason, _CODE, "a code such as crash_loop")
        check_whole("at_s", self.at_s, 0, 2**53)


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is persisted about versions; slots hold ids of releases.

    Attributes:
        phase: of an update, one of `PHASES`, or `UNKNOWN`; where a run that was cut off goes on.
        live: serves; None before the first version.
        candidate: on its way to be live.
        last_good: served well before `live`, and is what a roll back returns to.
        failed: release to the code of why it is not installed again.
        pinned: nothing is taken but what is forced.
        shadow: the candidate runs beside the live version first.
        tries: how often the step that may take the whole device down was begun.
        attempts: processes that loaded the live version in its probation and have not ended well yet.
        crashes: processes that did not come back from it.
        rollbacks: in a row, without a version in between that did well.
        reports: to be sent, oldest first.
    """

    phase: str = IDLE
    live: str | None = None
    candidate: str | None = None
    last_good: str | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    pinned: bool = False
    shadow: bool = False
    tries: int = 0
    attempts: tuple[Process, ...] = ()
    crashes: int = 0
    rollbacks: int = 0
    reports: tuple[Report, ...] = ()

    def __post_init__(self) -> None:
        for name in ("live", "candidate", "last_good"):
            if getattr(self, name) is not None:
                check_pattern(name, getattr(self, name), _ID, "64 hexadecimal digits")
        for release, code in self.failed.items():
            check_pattern("failed", release, _ID, "64 hexadecimal digits")
            check_pattern(f"failed.{release}", code, _CODE, "a code such as crash_loop")
        for name in ("tries", "crashes", "rollbacks"):
            check_whole(name, getattr(self, name), 0, 2**53)

    @property
    def held(self) -> frozenset[str]:
        """Releases that are never deleted."""
        return frozenset(slot for slot in (self.live, self.candidate, self.last_good) if slot is not None)

    def told(self, report: Report) -> State:
        """The state with one report more, but not twice the same; the oldest goes where there are too many."""
        last = self.reports[-1] if self.reports else None
        if last is not None and replace(last, at_s=report.at_s) == report:
            return self
        return replace(self, reports=(*self.reports, report)[-MAX_REPORTS:])

    def without(self, release: str, code: str) -> State:
        """The state that remembers why a release is not installed again."""
        others = {known: why for known, why in self.failed.items() if known != release}
        newest = dict(list(others.items())[-(MAX_FAILED - 1) :])
        return replace(self, failed={**newest, release: code})


def to_json(state: State) -> bytes:
    """The document, with the hash of its content."""
    tree = asdict(state)
    tree["failed"] = list(map(list, state.failed.items()))
    return (json.dumps({"schema": SCHEMA, "sha256": _digest(tree), "state": tree}, indent=1) + "\n").encode()


def from_json(document: bytes) -> State:
    """Read a document.

    Raises:
        ContractError: it is torn, rotten, or was written by a version that keeps other things.
    """
    top = Fields(parse(document), "", required=("schema", "sha256", "state"))
    tree = top.mapping("state")
    if top.text("sha256") != _digest(tree):
        raise ContractError("sha256", top.text("sha256"), "the hash of the state: the file is damaged")
    if (schema := top.whole("schema")) < SCHEMA:
        raise ContractError("schema", str(schema), str(SCHEMA))
    if schema > SCHEMA:
        # Of a later version only what serves is understood; from there is only the way back.
        live, last_good = tree.get("live"), tree.get("last_good")
        return within("state", lambda: State(phase=UNKNOWN, live=live, last_good=last_good))
    return _state(Fields(tree, "state", required=[each.name for each in fields(State)]))


def _state(tree: Fields) -> State:
    phase = tree.text("phase")
    return State(
        phase=phase if phase in PHASES else UNKNOWN,
        live=_slot(tree, "live"),
        candidate=_slot(tree, "candidate"),
        last_good=_slot(tree, "last_good"),
        failed=dict(tree.each("failed", _pair)),
        pinned=tree.take("pinned") is True,
        shadow=tree.take("shadow") is True,
        tries=tree.whole("tries"),
        attempts=tree.each("attempts", _process),
        crashes=tree.whole("crashes"),
        rollbacks=tree.whole("rollbacks"),
        reports=tree.each("reports", _report),
    )


def _slot(tree: Fields, key: str) -> str | None:
    return None if tree.take(key) is None else tree.text(key)


def _pair(value: object, path: str) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2:
        raise ContractError(path, str(type(value)), "a release and a code")
    return read_text(value[0], path), read_text(value[1], path)


def _process(value: object, path: str) -> Process:
    tree = Fields(value, path, required=("pid", "started", "boot"))
    pid, started, boot = tree.whole("pid"), tree.whole("started"), tree.text("boot")
    return within(path, lambda: Process(pid, started, boot))


def _report(value: object, path: str) -> Report:
    tree = Fields(value, path, required=("kind", "release", "reason", "at_s"))
    texts = tree.text("kind"), tree.text("release"), tree.text("reason")
    at_s = tree.whole("at_s")
    return within(path, lambda: Report(*texts, at_s))


def _digest(tree: Mapping[str, Any]) -> str:
    text = json.dumps(tree, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
