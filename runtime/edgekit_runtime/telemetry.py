"""How the version that serves does in this process: windows of figures without a candidate beside it.

Predictions only count (`serving`); the thread that follows the store takes what they counted, and puts a window into
the spool every few minutes, when another version serves, and at the end. Each process that serves from a store has
windows of its own; they add up.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import Final

import numpy as np

from edgekit_runtime.errors import DeviceError
from edgekit_runtime.serving import Serving, Taken
from edgekit_runtime.shadow.comparators import probabilities, task_of
from edgekit_runtime.shadow.gather import Gathered
from edgekit_runtime.spool import Spool
from edgekit_runtime.store import Store
from edgekit_runtime.windows import Window

log = logging.getLogger(__name__)

# Those of a candidate are fewer, and worth more.
VALUE: Final = 4
SPOOL_BYTES: Final = 8 << 20
# Seconds until a version whose manifest could not be read is looked at again.
RETRY_S: Final = 60.0


class Telemetry:
    """Windows of what serves in one process; one thread at a time calls it.

    Args:
        store: of the device.
        window_s: seconds of a window.
    """

    def __init__(self, store: Store, window_s: float) -> None:
        self._store, self._window_s = store, window_s
        self._open: _Window | None = None
        self._retry_s = 0.0

    def look(self, serving: Serving) -> None:
        """Take what was counted; keep the window where it is long enough, or another version serves.

        Args:
            serving: the version that serves in this process now.
        """
        window = self._open
        if window is not None and window.serving is serving:
            window.take()
            if time.monotonic() >= window.due_s:
                self._keep(window)
        elif window is not None:
            self.close()
        if self._open is None and time.monotonic() >= self._retry_s:
            self._begin(serving)

    def close(self) -> None:
        """Keep the window that is open, and count no more."""
        if self._open is not None:
            self._open.take()
            self._open.serving.watched = False
            self._keep(self._open)
            self._open = None

    def _begin(self, serving: Serving) -> None:
        try:
            task = task_of(self._store.manifest(self._store.release(serving.release)))
        except DeviceError as error:
            log.warning("no figures of what serves: %s", error)
            self._retry_s = time.monotonic() + RETRY_S
            return
        serving.taken()
        serving.watched = True
        self._open = _Window(serving, task, self._window_s)

    def _keep(self, window: _Window) -> None:
        """Put a window into the spool; where that cannot be done, it goes on for as long again."""
        window.due_s = time.monotonic() + self._window_s
        if window.is_empty:
            self._open = _Window(window.serving, window.task, self._window_s)
            return
        document = window.document().to_json().encode()
        try:
            Spool(self._store.spool, max_bytes=SPOOL_BYTES).put(window.key, document, value=VALUE)
        except OSError as error:
            log.warning("figures of what serves could not be kept: %s", error)
            return
        self._open = _Window(window.serving, window.task, self._window_s)


class _Window:
    """One that is open.

    Args:
        serving: the version.
        task: of it.
        window_s: seconds that it should have.
    """

    def __init__(self, serving: Serving, task: str, window_s: float) -> None:
        self.serving, self.task, self.key = serving, task, uuid.uuid4().hex
        self._gathered = Gathered(())
        self._began_s, self._began_at_s = time.monotonic(), max(0, int(time.time()))
        self.due_s, self.is_empty = self._began_s + window_s, True

    def take(self) -> None:
        """Add what was counted since the last time."""
        taken: Taken = self.serving.taken()
        if not taken.predictions:
            return
        self.is_empty = False
        self._gathered.count(seen=taken.predictions, errors=taken.errors, live_nans=taken.nans)
        chosen = taken.answers if self.task == "classification" else ()
        confidences = [float(probabilities(answer).max()) for answer in chosen if answer.size]
        self._gathered.served(1e3 * taken.took_s, np.array(confidences, np.float64))

    def document(self) -> Window:
        """What is told of it."""
        release = self.serving.release
        seconds = round(time.monotonic() - self._began_s, 3)
        return Window(
            self.key, release, release, self.task, self._began_at_s, seconds, self._gathered.figures()
        )
