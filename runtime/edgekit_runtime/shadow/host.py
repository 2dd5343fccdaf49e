"""The live process's side of a shadow: starts the candidate's process, hands samples over, and ends what misbehaves."""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgekit_runtime.backends import Array
from edgekit_runtime.contract import Manifest, TensorSpec
from edgekit_runtime.ends import End, fit
from edgekit_runtime.errors import DeviceError, StoreError
from edgekit_runtime.events import DEFAULT_LIMITS, Limits
from edgekit_runtime.process import own_module
from edgekit_runtime.shadow import ring
from edgekit_runtime.shadow.comparators import task_of
from edgekit_runtime.shadow.pulse import Pulse, hangs, take
from edgekit_runtime.shadow.settings import Shadow
from edgekit_runtime.shadow.worker import CANNOT_LOAD, CANNOT_LOAD_TODAY, VALUE
from edgekit_runtime.spool import Spool
from edgekit_runtime.store import Store
from edgekit_runtime.windows import Counts, Figures, Window

log = logging.getLogger(__name__)

# Ends of the candidate's process after which it is refused, and the pause before the next start, doubled each time.
MOST_ENDS: Final = 3
RETRY_S: Final = 1.0
# Seconds that the process has to write its last window.
LEAVE_S: Final = 5.0
# Seconds until it is asked again whether another process still has the shadow of this store.
ELSEWHERE_S: Final = 30.0
# Exit status of the process to the code of its end.
ENDS: Final[Mapping[int, str]] = MappingProxyType(
    {
        CANNOT_LOAD: "shadow_load",
        CANNOT_LOAD_TODAY: "shadow_load_today",
        -signal.SIGALRM: "shadow_hung",
    }
)
# Counters while no process runs.
NOTHING: Final = (0,) * (ring.HEADER_BYTES // 8)


@dataclass(frozen=True, slots=True)
class Pair:
    """What runs beside what.

    Attributes:
        live: id of the release that serves.
        candidate: id of the one beside it.
    """

    live: str
    candidate: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How a shadow stands, for metrics.

    Attributes:
        pair: the two versions.
        running: the candidate's process is loaded and compares.
        seen: predictions of the live version since it started.
        dropped: that were drawn and found no room.
        compared: by the process that runs now.
        agreed: of those.
        nans: answers of the candidate that were not finite, where the live version's was.
        errors: that it raised.
        ends: of the candidate's process that nobody asked for.
    """

    pair: Pair
    running: bool
    seen: int
    dropped: int
    compared: int
    agreed: int
    nans: int
    errors: int
    ends: int


class Host:
    """A shadow of one pair of versions.

    Args:
        store: of the device.
        pair: the two versions.
        inputs: of the live version.
        settings: budget.
        limits: shares of bad answers after which the candidate is refused.
        refuse: hears the code of why the candidate should be given up, and whether for a reason of the day.
        format: that the application asked for, None where it did not.

    Raises:
        DeviceError: a manifest cannot be read.
    """

    def __init__(
        self,
        store: Store,
        pair: Pair,
        inputs: tuple[End, ...],
        settings: Shadow,
        refuse: Callable[[str, bool], None],
        *,
        limits: Limits = DEFAULT_LIMITS,
        format: str | None = None,
    ) -> None:
        self._format = format
        self.pair, self._store, self._settings, self._refuse = pair, store, settings, refuse
        self._inputs, self._limits = inputs, limits
        live, self._manifest = (store.manifest(store.release(each)) for each in (pair.live, pair.candidate))
        self._same_ends = _ends(live) == _ends(self._manifest)
        self._layout = ring.Layout.of(self._manifest, settings.slots, settings.ring_bytes)
        self._at_work: dict[int, tuple[int, Pulse | None]] = {}
        self._seen, self._dropped, self._count = itertools.count(1), itertools.count(1), 0
        self._lock = threading.Lock()
        self._sender: ring.Sender | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._alone, self._is_alone = ExitStack(), False
        self._retry_s, self._ends = 0.0, 0

    def draws(self) -> bool:
        """Count a prediction that is about to be made; whether its sample is wanted. Costs next to nothing."""
        self._count = next(self._seen)
        return self._sender is not None and random.random() < self._settings.rate  # noqa: S311 - a sample, no secret

    def offer(self, x: Array | Mapping[str, Array], outputs: Any, nanoseconds: int) -> None:
        """Hand a prediction over if there is room; returns at once, and never raises.

        Args:
            x: as the application gave it.
            outputs: as it got them.
            nanoseconds: that the live version took.
        """
        if not self._lock.acquire(blocking=False):
            self._dropped_one()
            return
        try:
            sender = self._sender
            if sender is None or not self._send(sender, x, outputs, nanoseconds):
                self._dropped_one()
        except Exception:
            # Whatever is odd about a sample, the application has its answer.
            log.debug("a sample could not be handed over", exc_info=True)
            self._dropped_one()
        finally:
            self._lock.release()

    def look(self) -> None:
        """Start what should run and end what misbehaves; called every second or so, by one thread."""
        if not self._same_ends:
            self._refuse("shadow_ends", False)
            return
        if self._process is None:
            if time.monotonic() >= self._retry_s:
                self._start()
            return
        status = self._process.poll()
        if status is not None:
            self._ended(ENDS.get(status, "shadow_died"))
        elif self._hangs(ring.BUSY_SINCE):
            self._ended("shadow_hung")
        elif self._hangs(ring.NOISE_SINCE):
            self._start_without_noise("hung")
        elif (_resident_bytes(self._process.pid) or 0) > self._settings.memory_bytes:
            self._ended("shadow_memory")
        else:
            self._tell_seen()
            self._judge()

    def standing(self) -> Standing:
        """How it stands."""
        sender = self._sender
        c = sender.memory.counters if sender is not None else NOTHING
        return Standing(
            self.pair, bool(c[ring.READY]), int(c[ring.SEEN]), int(c[ring.DROPPED]), int(c[ring.COMPARED]),
            int(c[ring.AGREED]), int(c[ring.NANS]), int(c[ring.ERRORS]), self._ends,
        )  # fmt: skip

    def close(self) -> None:
        """End the candidate's process, which writes its last window."""
        self._tell_seen()
        self._close_ring()
        if self._process is not None:
            # It may have waited for a processor all the time; its last window is worth one.
            with suppress(OSError, AttributeError):
                os.sched_setscheduler(self._process.pid, os.SCHED_OTHER, os.sched_param(0))
            try:
                self._process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                self._kill(self._process)
            self._process = None
        self._alone.close()

    def forked(self) -> None:
        """Give up, in a child that was forked, what belongs to the process before."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.close()

    def _send(
        self, sender: ring.Sender, x: Array | Mapping[str, Array], outputs: Any, nanoseconds: int
    ) -> bool:
        given = x if isinstance(x, Mapping) else {self._inputs[0].name: x}
        inputs = {end.name: fit(end, given[end.name]) for end in self._inputs}
        first = self._inputs[0]
        rows = inputs[first.name].shape[0] if first.shape else 1
        row = random.randrange(rows) if rows > 1 else 0  # noqa: S311 - a sample, no secret
        named = outputs if isinstance(outputs, dict) else {self._manifest.outputs[0].name: outputs}
        return sender.send(
            ring.sample_of(self._layout.inputs, inputs, row),
            ring.sample_of(self._layout.outputs, named, row),
            nanoseconds,
        )

    def _dropped_one(self) -> None:
        count, sender = next(self._dropped), self._sender
        if sender is not None:
            sender.memory.counters[ring.DROPPED] = count

    def _tell_seen(self) -> None:
        if self._sender is not None:
            self._sender.memory.counters[ring.SEEN] = self._count

    def _start(self) -> None:
        """Of all processes that serve from this store, one has the shadow."""
        if not self._is_alone:
            try:
                self._alone.enter_context(self._store.shadowed())
            except StoreError as error:
                log.debug("%s", error)
                self._retry_s = time.monotonic() + ELSEWHERE_S
                return
            self._is_alone = True
        try:
            sender = ring.Sender(self._layout)
        except OSError as error:
            log.warning("the shadow could not be started: %s", error)
            self._retry_s = time.monotonic() + ELSEWHERE_S
            return
        self._seen, self._dropped, self._count = itertools.count(1), itertools.count(1), 0
        command = own_module(
            "edgekit_runtime.shadow.worker", str(self._store.path), self.pair.live, self.pair.candidate,
            self._format or "", *map(str, sender.for_reader), self._settings.to_json(),
        )  # fmt: skip
        # One thread for what a library starts by itself: a pool of them would each wait for work.
        alone = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        # Our own module, by our own interpreter; in a session of its own, so that Ctrl-C does not reach it.
        try:
            self._process = subprocess.Popen(  # noqa: S603
                command, pass_fds=sender.for_reader, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ, **alone},
            )  # fmt: skip
        except (OSError, ValueError) as error:
            # Too many processes, too little memory: nothing is known of the candidate.
            log.warning("the shadow could not be started: %s", error)
            self._retry_s = time.monotonic() + ELSEWHERE_S
            sender.close()
            return
        finally:
            sender.started()
        self._sender = sender

    def _hangs(self, counter: int) -> bool:
        assert self._sender is not None
        assert self._process is not None
        since = int(self._sender.memory.counters[counter])
        if not since:
            return False
        now = take(self._process.pid)
        if counter not in self._at_work or self._at_work[counter][0] != since:
            self._at_work[counter] = since, now
        busy_s = (time.monotonic_ns() - since) / 1e9
        return hangs(busy_s, self._at_work[counter][1], now, self._settings.hung_s)

    def _judge(self) -> None:
        now = self.standing()
        answered = now.compared + now.errors
        if answered < self._limits.judged:
            return
        for code, count in (("shadow_errors", now.errors), ("shadow_nan", now.nans)):
            if count > self._limits.bad_share * answered:
                self._refuse(code, False)
                return

    def _ended(self, code: str) -> None:
        """The process ended, or has to; tell of it, and start another one later, or none."""
        assert self._process is not None
        assert self._sender is not None
        at_noise = bool(self._sender.memory.counters[ring.NOISE_SINCE])
        if self._settings.noise_every and (at_noise or code == "shadow_memory"):
            self._start_without_noise(code)
            return
        log.warning("the shadow of %s ended: %s", self.pair.candidate[:12], code)
        self._kill(self._process)
        self._process = None
        self._close_ring()
        self._ends += 1
        field = {"shadow_hung": "hung", "shadow_memory": "over_memory"}.get(code, "died")
        self._tell(Counts(**{field: 1}))
        if code in {"shadow_load", "shadow_load_today"} or self._ends >= MOST_ENDS:
            self._refuse(code, code == "shadow_load_today")
        self._retry_s = time.monotonic() + RETRY_S * 2**self._ends

    def _start_without_noise(self, why: str) -> None:
        """The candidate is not to blame for the copy of the live version that runs beside it."""
        assert self._process is not None
        log.warning("the noise of %s is no longer measured: %s", self.pair.live[:12], why)
        self._kill(self._process)
        self._process = None
        self._close_ring()
        self._settings = replace(self._settings, noise_every=0)

    def _tell(self, counts: Counts) -> None:
        window = Window(
            uuid.uuid4().hex, self.pair.live, self.pair.candidate, task_of(self._manifest),
            max(0, int(time.time())), 0.0, Figures(counts),
        )  # fmt: skip
        try:
            spool = Spool(self._store.spool, max_bytes=self._settings.spool_bytes)
            spool.put(window.key, window.to_json().encode(), value=VALUE + 1)
        except OSError as error:
            log.warning("the end of a shadow could not be kept: %s", error)

    def _close_ring(self) -> None:
        with self._lock:
            if self._sender is not None:
                self._sender.close()
                self._sender = None

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        # One that waits for a disk that is gone may not even die; nobody waits for it.
        with suppress(subprocess.TimeoutExpired):
            process.wait(LEAVE_S)


def open_host(
    store: Store,
    pair: Pair,
    inputs: tuple[End, ...],
    settings: Shadow,
    refuse: Callable[[str, bool], None],
    format: str | None,
) -> Host | None:
    """A shadow of a pair, None where its files cannot be read."""
    try:
        return Host(store, pair, inputs, settings, refuse, format=format)
    except DeviceError as error:
        log.warning("no shadow: %s", error)
        return None


def _ends(manifest: Manifest) -> tuple[Any, ...]:
    """What a model takes and gives: two versions that differ in it cannot take each other's samples."""

    def seen(specs: tuple[TensorSpec, ...]) -> list[tuple[Any, ...]]:
        return [(spec.name, spec.dtype, spec.shape[1:]) for spec in specs]

    return seen(manifest.inputs), seen(manifest.outputs), dict(manifest.preprocessing)


def _resident_bytes(pid: int) -> int | None:
    """Memory of a process that is its own, without what it shares with others; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        _, resident, shared = Path(f"/proc/{pid}/statm").read_text("ascii").split()[:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return None
