"""Which version this process serves, and what becomes of one that cannot be loaded.

A version on probation that cannot be loaded is given up for the whole device, where it is to blame. One that served
before, or that this process alone cannot load, is taken from nobody: this process serves the version before, and tries
again later.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Final

import numpy as np

from edgekit_runtime.backends import Array, Settings
from edgekit_runtime.bundle import locate_in
from edgekit_runtime.errors import BackendError, DeviceError, StoreError
from edgekit_runtime.events import (
    DEFAULT_LIMITS,
    Event,
    Health,
    Left,
    LoadFailed,
    Loading,
    fault_of,
)
from edgekit_runtime.manager import tell
from edgekit_runtime.model import Model
from edgekit_runtime.process import SignOfLife, is_alive, this_process
from edgekit_runtime.state import PROBATION, State
from edgekit_runtime.store import Store

log = logging.getLogger(__name__)

# Pause until a version that could not be loaded is tried again, doubled each time.
RETRY_S, LONGEST_RETRY_S = 5.0, 600.0
# One load for each slot of the store, and one to see that nothing is left.
MOST_LOADS: Final = 4
# Predictions that are written down before they are counted, and latencies that are kept until somebody takes them.
LOGGED: Final = 1024
# Answers, and numbers in each of them.
ANSWERS: Final = 16
LONGEST_ANSWER: Final = 1 << 15
# Up to so many numbers their squares are summed in less time than each is looked at; beyond, numpy may start threads.
SHORT: Final = 8192
_squares: Final = np.vdot


@dataclass(slots=True)
class Counts:
    """Of predictions."""

    predictions: int = 0
    errors: int = 0
    nans: int = 0
    slow: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """What was counted since it was taken before.

    Attributes:
        predictions: made, those that raised included.
        errors: of them, those that raised.
        nans: of them, answers that were not finite.
        took_s: seconds that the last of those that answered took [n].
        answers: some rows of the first output, finite, copied.
    """

    predictions: int
    errors: int
    nans: int
    took_s: Array
    answers: list[Array]


@dataclass(slots=True)
class Serving:
    """A version that is loaded, how it does, and whether the death of this process would be counted against it.

    Predictions are counted while it is on probation (`on_trial`), or somebody takes what was counted (`watched`).
    """

    release: str
    model: Model
    loaded_s: float
    on_trial: bool
    max_s: float
    counted: bool = True
    watched: bool = False
    counts: Counts = field(default_factory=Counts)
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Seconds of a prediction, as -1 less them where it was not finite, NaN where it raised. A deque needs no lock.
    _log: deque[float] = field(default_factory=deque)
    _before: Counts = field(default_factory=Counts)
    _took_s: Array = field(default_factory=lambda: np.zeros(0))
    _answers: list[Array] = field(default_factory=list)

    def count(self, outputs: Any, took_s: float) -> None:
        """One prediction that answered, and the seconds that it took."""
        finite = all(map(is_finite, outputs.values())) if isinstance(outputs, dict) else is_finite(outputs)
        log = self._log
        log.append(took_s if finite else -1.0 - took_s)
        if len(log) >= LOGGED:
            self._add_up()
        if finite and self.watched and len(self._answers) < ANSWERS:
            self._keep(next(iter(outputs.values())) if isinstance(outputs, dict) else outputs)

    def failed(self) -> None:
        """One that raised."""
        self._log.append(math.nan)

    def health(self) -> Health:
        """All of them."""
        self._add_up()
        with self.lock:
            c = self.counts
            return Health(
                self.release, time.monotonic() - self.loaded_s, c.predictions, c.errors, c.nans, c.slow
            )

    def taken(self) -> Taken:
        """What was counted since the last call; one thread at a time calls this."""
        self._add_up()
        with self.lock:
            now, before = replace(self.counts), self._before
            took_s, answers, self._before = self._took_s, self._answers, now
            self._took_s, self._answers = took_s[:0], []
        return Taken(
            now.predictions - before.predictions,
            now.errors - before.errors,
            now.nans - before.nans,
            took_s,
            answers,
        )

    def _add_up(self) -> None:
        """Count what was written down."""
        with self.lock:
            log, counts = self._log, self.counts
            # Other threads go on writing at the other end.
            logged = np.array([log.popleft() for _ in range(len(log))], np.float64)
            answered = logged[~np.isnan(logged)]
            bad = answered < 0.0
            took_s = np.where(bad, -1.0 - answered, answered)
            counts.predictions += logged.size
            counts.errors += logged.size - answered.size
            counts.nans += int(np.count_nonzero(bad))
            counts.slow += int(np.count_nonzero(took_s > self.max_s))
            self._took_s = np.concatenate((self._took_s, took_s))[-LOGGED:]

    def _keep(self, answer: Array) -> None:
        """A row, copied: the application may do with its answer what it likes."""
        row = answer[0] if answer.ndim == 2 and len(answer) else answer
        if row.ndim == 1 and row.size <= LONGEST_ANSWER:
            self._answers.append(row.copy())


def is_finite(array: Array) -> bool:
    """Whether an array holds neither NaN nor infinity."""
    try:
        # A finite sum of squares has finite parts; one that left its range says nothing.
        if array.size <= SHORT and isfinite(_squares(array, array)):
            return True
    except Exception:  # noqa: BLE001 - text and the like have no squares, each for a reason of its own
        return array.dtype.kind != "f"
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


class Loader:
    """Loads what a store says, in one process.

    Args:
        store: of the device.
        format: of the files to run, None for the first whose backend is installed.
        settings: threads, providers, delegates.
        max_latency_ms: of a prediction on probation, None for what the manifest says.
    """

    def __init__(
        self, store: Store, format: str | None, settings: Settings, max_latency_ms: float | None
    ) -> None:
        self._store, self._format, self._settings, self._max_ms = store, format, settings, max_latency_ms
        self._process = this_process()
        self._sign: SignOfLife | None = None
        self._later = _Later()

    def live(self, before: Serving | None) -> Serving:
        """Load what is live; where that cannot be, what served here, or the version before.

        Args:
            before: what serves in this process, None at its start.

        Raises:
            DeviceError: nothing is live, or nothing that is can be loaded.
        """
        for _ in range(MOST_LOADS):
            state = self._store.state()
            if before is not None and (state.live in (None, before.release) or self._later.holds(state.live)):
                return before
            if state.live is None:
                break
            if state.phase == PROBATION and not self._announced(state):
                continue
            try:
                serving = self._loaded(state.live, on_trial=state.phase == PROBATION)
            except (DeviceError, MemoryError) as raised:
                error = raised if isinstance(raised, DeviceError) else _no_memory(state.live)
                log.warning("%s", error)
                self.tell(LoadFailed(state.live, error.code, fault_of(error.code)))
                if self._store.state().live != state.live:
                    continue
                self._later.put_off(state.live)
                if before is not None:
                    return before
                return self._last_good(state, error)
            self._later = _Later()
            return serving
        raise StoreError(
            f"{self._store.path}: nothing is live",
            expected="a version that serves",
            way_out="Install one with `edgekit-runtime install BUNDLE`.",
            code="nothing_live",
        )

    def _last_good(self, state: State, error: DeviceError) -> Serving:
        """The version before, in this process alone, while it cannot load the one that is live."""
        if state.last_good is not None:
            with suppress(DeviceError):
                return self._loaded(state.last_good, on_trial=False)
        self.leave()
        raise error

    def _announced(self, state: State) -> bool:
        """Say that this process is about to load the version on probation; False where that rolled it back."""
        if self._sign is None:
            with suppress(OSError):
                self._sign = SignOfLife(self._store.attempts, self._process)
        others = (each for each in state.attempts if each != self._process)
        self.tell(
            Loading(
                self._process,
                frozenset(each for each in others if not is_alive(self._store.attempts, each)),
            )
        )
        with suppress(StoreError):
            return self._store.state().live == state.live
        return True

    def _loaded(self, release: str, *, on_trial: bool) -> Serving:
        document = self._store.release(release)
        manifest = self._store.manifest(document)
        model = Model.of(
            manifest, locate_in(document, self._store.blob), format=self._format, settings=self._settings
        )
        limit_ms = self._max_ms if self._max_ms is not None else manifest.compatibility.max_latency_ms
        max_s = math.inf if limit_ms is None else limit_ms / 1e3
        return Serving(release, model, time.monotonic(), on_trial, max_s)

    def outlived(self, serving: Serving) -> None:
        """Let what ends this process from now on be no crash of the version, once it has served long enough."""
        if serving.counted and time.monotonic() - serving.loaded_s >= DEFAULT_LIMITS.served_s:
            serving.counted = bool(self.tell(Left(self._process)))

    def leave(self) -> None:
        """Let the store hear that this process ended as it should."""
        if self._process.pid == os.getpid():
            self.tell(Left(self._process))
            if self._sign is not None:
                self._sign.close()
                self._sign = None

    def tell(self, event: Event) -> str:
        """Let the store hear of an event; returns why it was refused, "" where it was taken."""
        try:
            step = tell(self._store, event)
        except StoreError as error:
            log.warning("%s", error)
            return error.code
        return step.refused


class _Later:
    """Until when a version that could not be loaded is let be."""

    def __init__(self) -> None:
        self._release, self._until_s, self._pause_s = "", 0.0, RETRY_S

    def holds(self, release: str | None) -> bool:
        return release == self._release and time.monotonic() < self._until_s

    def put_off(self, release: str) -> None:
        if release != self._release:
            self._release, self._pause_s = release, RETRY_S
        self._until_s = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_RETRY_S)


def _no_memory(release: str) -> BackendError:
    return BackendError(
        f"{release[:12]}: memory ran out while it was loaded",
        expected="room for another version beside the one that serves",
        way_out="Stop other programs, or publish a smaller model.",
        code="no_memory",
    )
