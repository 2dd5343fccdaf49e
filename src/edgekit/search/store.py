"""The trials of a search in an Optuna study: a SQLite file of one run, or a database that several machines share.

Optuna gives what a database of trials needs: transactions, numbers in order of arrival, its dashboard. Which trial
comes next is not its decision but that of `next_setting`.

An entry of the study is one attempt at a setting. Entries with equal settings are one `Trial`: its number is the
place of its setting in the order of first attempts, so a trial that was killed and taken again keeps its number. Of
two workers that choose the same setting at once, the one whose entry came second leaves it and chooses again.
"""

from __future__ import annotations

import json
import math
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from edgekit.errors import UsageError
from edgekit.search.database import Row, Table, open_table
from edgekit.search.space import Outcome, Setting, Trial

__all__ = ["Store", "open_store"]

FILE: Final = "trials.db"
# A worker says that it is alive so often; one on another machine that says nothing for the grace is taken for dead.
BEAT_SECONDS: Final = 20.0
GRACE_SECONDS: Final = 180.0
POLL_SECONDS: Final = 2.0

# Attributes of an entry, and of the study.
_SETTING, _OUTCOME, _FAILURE, _WORKER, _BEAT = "setting", "outcome", "failure", "worker", "beat"
_IDENTITY = "identity"

Decide = Callable[[Sequence[Trial]], Setting | None]


@dataclass(frozen=True)
class _Entry:
    """One attempt at a setting, as the study holds it."""

    number: int
    setting: Setting
    outcome: Outcome | None
    failure: str | None
    left: bool
    """Closed without a result."""
    worker: Mapping[str, Any]
    beat: int

    @property
    def ended(self) -> bool:
        return self.outcome is not None or self.failure is not None


@contextmanager
def open_store(
    folder: Path,
    *,
    name: str,
    identity: Mapping[str, str],
    storage: str | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> Iterator[Store]:
    """Open the trials of a search, or start it.

    Args:
        folder: where the SQLite file lies when there is no `storage`; it is made.
        name: of the study; searches with other names may share a database.
        identity: what all trials of a search have in common, e.g. hashes of model, data and recipe.
        storage: database URL that several machines share.
        grace_seconds: silence after which a worker on another machine is taken for dead.

    Yields:
        The store; a trial that is not finished when it closes is free to be taken again.

    Raises:
        UsageError: the URL is wrong, the database cannot be reached, or its study of this name is of something else.
    """
    if storage is None:
        folder.mkdir(parents=True, exist_ok=True)
        # What the path holds of `?` and `#` is no part of a URL.
        storage = f"sqlite:///file:{_quoted((folder / FILE).resolve())}?uri=true"
    with open_table(storage, name) as table:
        _identify(table, dict(identity), name)
        store = Store(table, grace_seconds)
        try:
            yield store
        finally:
            store.leave()


class Store:
    """Trials that are claimed, then finished or failed. One at a time for each store.

    Made by `open_store`.
    """

    def __init__(self, table: Table, grace_seconds: float = GRACE_SECONDS) -> None:
        self._table, self._grace = table, grace_seconds
        self._worker = {**_process(), "token": secrets.token_hex(8)}
        self._mine: tuple[int, Setting] | None = None
        self._heart: _Heart | None = None
        self._heard: dict[int, tuple[int, float]] = {}

    def trials(self) -> tuple[Trial, ...]:
        """Everything so far, in the order of their numbers; what nobody works on any more is left out."""
        entries = self._entries()
        return tuple(
            trial
            for trial in _trials(entries)
            if not trial.running or self._worked_on(trial.setting, entries)
        )

    def claim(self, decide: Decide, waiting: Callable[[str], None] = lambda _: None) -> Trial | None:
        """Take the next trial.

        A trial whose worker died is taken again before anything new is decided.

        Args:
            decide: from the trials so far to a setting that none of them has, or None; `next_setting` with the rest
                of its arguments filled in.
            waiting: called every few seconds while it is others' results that a decision needs; what it raises ends
                the wait.

        Returns:
            The trial to run; None when the search is over.
        """
        assert self._mine is None, "finish the trial before"
        while True:
            entries = self._entries()
            trials = _trials(entries)
            running = [t for t in trials if t.running]
            dead = next((t for t in running if not self._worked_on(t.setting, entries)), None)
            setting = dead.setting if dead is not None else decide(trials)
            if setting is None:
                if not running or decide([t for t in trials if not t.running]) is None:
                    return None
                waiting(f"waiting for {running[0]}")
                time.sleep(POLL_SECONDS)
            elif (trial := self._take(setting)) is not None:
                return trial

    def finish(self, outcome: Outcome) -> Trial:
        """Store what the claimed trial came to."""
        text = json.dumps(outcome.to_dict(), ensure_ascii=False)
        return self._end(_OUTCOME, text, [_finite(v) for v in _objectives(outcome)])

    def fail(self, reason: str) -> Trial:
        """Store why the claimed trial came to nothing; it is not tried again."""
        return self._end(_FAILURE, reason or "failed", None)

    def leave(self) -> None:
        """Give the claimed trial up, if there is one, for anybody to take again."""
        if self._mine is None:
            return
        number, _ = self._stop()
        # The database may be why it is left; then the end of this process frees the trial as well.
        with suppress(UsageError):
            self._table.close(number)

    def _take(self, setting: Setting) -> Trial | None:
        """Enter a setting; None where another worker was first."""
        params = {"prune": setting.prune, "islands": len(setting.keep_float), "qat": setting.qat}
        number = self._table.enter(params, self._signed(setting))
        entries = self._entries()
        before = [e for e in entries if e.setting == setting and e.number < number]
        if any(e.ended or self._alive(e) for e in before):
            self._table.close(number)
            return None
        for entry in before:
            self._table.close(entry.number)
        self._mine = (number, setting)
        self._heart = _Heart(lambda beat: self._table.note(number, _BEAT, beat))
        return next(t for t in _trials(entries) if t.setting == setting)

    def _signed(self, setting: Setting) -> dict[str, Any]:
        return {_SETTING: setting.key(), _WORKER: self._worker, _BEAT: 0}

    def _end(self, key: str, text: str, values: list[float] | None) -> Trial:
        assert self._mine is not None, "claim a trial first"
        number, setting = self._stop()
        if not self._table.note(number, key, text):
            # Somebody took this worker for dead and closed it. A result that comes late is a result all the same.
            number = self._table.enter({}, {**self._signed(setting), key: text})
        self._table.close(number, values)
        return next(t for t in _trials(self._entries()) if t.setting == setting)

    def _stop(self) -> tuple[int, Setting]:
        assert self._mine is not None
        mine, self._mine = self._mine, None
        if self._heart is not None:
            self._heart.stop()
        return mine

    def _entries(self) -> list[_Entry]:
        return [_entry(row) for row in self._table.rows()]

    def _worked_on(self, setting: Setting, entries: Sequence[_Entry]) -> bool:
        return any(self._alive(e) for e in entries if e.setting == setting)

    def _alive(self, entry: _Entry) -> bool:
        """Does somebody work on it?"""
        if entry.left or entry.ended:
            return False
        if entry.worker["token"] == self._worker["token"]:
            return self._mine is not None and entry.number == self._mine[0]
        if entry.worker["host"] == self._worker["host"]:
            was = {key: entry.worker[key] for key in ("host", "pid", "started")}
            return _process(was["pid"]) == was
        beat, since = self._heard.get(entry.number, (-1, 0.0))
        if beat != entry.beat:
            self._heard[entry.number] = (entry.beat, time.monotonic())
            return True
        # By our own clock: those of two machines may differ by more than the grace.
        return time.monotonic() - since < self._grace


class _Heart:
    """Says that a worker is alive."""

    def __init__(self, beat: Callable[[int], object]) -> None:
        self._beat, self._stopped = beat, threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgekit-trial", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        beat = 0
        while not self._stopped.wait(BEAT_SECONDS):
            beat += 1
            # A database that is away for a while costs a few beats; when the trial ends it has to be back.
            with suppress(Exception):
                self._beat(beat)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def _identify(table: Table, identity: dict[str, str], name: str) -> None:
    """Refuse a study of another model, data or recipe."""
    found = table.facts({_IDENTITY: identity})[_IDENTITY]
    differing = sorted(k for k in found.keys() | identity.keys() if found.get(k) != identity.get(k))
    if differing:
        shown = ", ".join(
            f"{k} {_short(found.get(k))} instead of {_short(identity.get(k))}" for k in differing
        )
        raise UsageError(
            f"the search {name!r} in {table.name} is of something else: {shown}",
            expected="trials of the same model, data and recipe; those of others cannot be compared",
            way_out="Choose another database with search.storage, or another model.name.",
        )


def _short(value: str | None) -> str:
    return "nothing" if value is None else value[:12]


def _trials(entries: Sequence[_Entry]) -> list[Trial]:
    """Entries with equal settings are one trial; the first result counts."""
    by_setting: dict[Setting, list[_Entry]] = {}
    for entry in entries:
        by_setting.setdefault(entry.setting, []).append(entry)
    trials = []
    for number, (setting, attempts) in enumerate(by_setting.items()):
        outcome = next((e.outcome for e in attempts if e.outcome is not None), None)
        failure = next((e.failure for e in attempts if e.failure is not None), None)
        trials.append(Trial(number, setting, outcome, failure if outcome is None else None))
    return trials


def _entry(row: Row) -> _Entry:
    outcome, failure = row.attrs.get(_OUTCOME), row.attrs.get(_FAILURE)
    return _Entry(
        number=row.number,
        setting=Setting.from_dict(json.loads(row.attrs[_SETTING])),
        outcome=None if outcome is None else Outcome.from_dict(json.loads(outcome)),
        failure=failure,
        left=row.finished and outcome is None and failure is None,
        worker=row.attrs[_WORKER],
        beat=int(row.attrs[_BEAT]),
    )


def _objectives(outcome: Outcome) -> tuple[float | None, float | None, float]:
    """What Optuna's own charts plot; `database.OBJECTIVES` names them."""
    return outcome.drop, outcome.latency_ms, outcome.size_bytes / 1e6


def _finite(value: float | None) -> float:
    """Optuna takes infinity for a value that was not reached, and no None."""
    return math.inf if value is None else float(value)


def _process(pid: int | None = None) -> dict[str, Any]:
    """This machine, a process and when it started; without a start where there is no such process."""
    pid = os.getpid() if pid is None else pid
    started = None
    with suppress(psutil.Error):
        started = round(psutil.Process(pid).create_time(), 1)
    return {"host": _host(), "pid": pid, "started": started}


def _host() -> str:
    """Of this boot and this container: elsewhere the same process number is another process."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - its target is no path
    return "/".join(parts)


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(path.as_posix())
