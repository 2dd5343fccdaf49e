"""The candidate's process: takes samples from the ring, predicts, compares, and puts windows into the spool.

`python -m edgekit_runtime.shadow.worker STORE LIVE CANDIDATE FORMAT MEMORY FULL FREE SETTINGS`, as `host` starts it. It
ends by itself, with its last window on the disk, when the live process closes its side or dies.
"""

from __future__ import annotations

import logging
import os
import resource
import select
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np

from edgekit_runtime import payloads
from edgekit_runtime.backends import Array, Settings
from edgekit_runtime.bundle import locate_in
from edgekit_runtime.contract import Manifest
from edgekit_runtime.errors import DeviceError
from edgekit_runtime.events import RELEASE, fault_of
from edgekit_runtime.model import Model
from edgekit_runtime.shadow import ring
from edgekit_runtime.shadow.budget import Duty, hottest_celsius, is_hot
from edgekit_runtime.shadow.comparators import COMPARATORS, Answer, Difference, task_of
from edgekit_runtime.shadow.gather import Gathered, all_finite, label_of
from edgekit_runtime.shadow.samples import Keeper, Sampler
from edgekit_runtime.shadow.settings import Shadow
from edgekit_runtime.spool import Spool
from edgekit_runtime.store import Store
from edgekit_runtime.windows import Window

log = logging.getLogger(__name__)

# Exit statuses that the live process understands.
ENDED, CANNOT_LOAD, CANNOT_LOAD_TODAY = 0, 10, 11
# Seconds between looks at the sensors.
THERMAL_S: Final = 5.0
# A pause or a wait is no longer than this, so that a window is closed about when it should be.
STEP_S: Final = 1.0
# Windows are worth more than what only helps to understand, less than what must not be missed.
VALUE: Final = 5
# A single allocation beyond the limit fails; what grows slowly, the live process sees.
SLACK_BYTES: Final = 256 << 20
# The live process ends what hangs. Where it died meanwhile, the system does after so many times as long.
ALARM_TIMES: Final = 30
# Seconds until a window that could not be kept is tried again.
KEEP_S: Final = 30.0


class Reader:
    """The candidate's side of a ring.

    Args:
        memory: of the ring.
        full: pipe of the slots that hold a sample.
        free: pipe that takes their numbers back.
    """

    def __init__(self, memory: ring.Memory, full: int, free: int) -> None:
        self.memory, self._full, self._free = memory, full, free
        self._poll = select.poll()
        self._numbers: list[int] = []

    def ended(self, wait_s: float) -> bool:
        """Wait without taking anything; whether the live process is gone."""
        self._poll.register(self._full, 0)
        return bool(self._poll.poll(1e3 * wait_s))

    def ready(self, wait_s: float) -> bool:
        """Wait for a sample; whether there is one."""
        self._poll.register(self._full, select.POLLIN)
        return bool(self._numbers) or any(what & select.POLLIN for _, what in self._poll.poll(1e3 * wait_s))

    def take(self) -> int | None:
        """The number of the oldest slot that is full; None where the live process is gone."""
        if not self._numbers:
            self._numbers = list(os.read(self._full, 256))
        return self._numbers.pop(0) if self._numbers else None

    def give_back(self, number: int) -> None:
        """Let the live process use a slot again."""
        with suppress(BrokenPipeError):
            os.write(self._free, bytes((number,)))


class Worker:
    """Compares what comes in, and closes windows.

    Args:
        reader: of samples.
        candidate: on trial.
        live: a copy of what serves, None where the noise is not measured.
        manifest: of the candidate.
        names: ids of the live release and the candidate.
        settings: budget.
        spool: for windows.
        keeper: of inputs whose answers differ, None where nobody may have any.
    """

    def __init__(
        self, reader: Reader, candidate: Model, live: Model | None, manifest: Manifest,
        names: tuple[str, str], settings: Shadow, spool: Callable[[Window], None], keeper: Keeper | None = None,
    ) -> None:  # fmt: skip
        self._reader, self._candidate, self._live, self._manifest = reader, candidate, live, manifest
        self._names, self._settings, self._spool, self._keeper = names, settings, spool, keeper
        self._sensors = Path(settings.sensors)
        self.task = task_of(manifest)
        row = COMPARATORS[self.task]
        self._compare, self._tolerance = row.compare, settings.tolerance
        if self._tolerance is None:
            self._tolerance = row.tolerance
        self._counters = reader.memory.counters
        self._told = {"seen": 0, "dropped": 0}
        self._samples, self._hot, self._looked_s = 0, False, time.monotonic() - THERMAL_S
        self._parent, self._keep_s, self._compares = os.getppid(), 0.0, True
        self._open()

    def run(self, duty: Duty) -> None:
        """Work until the live process is gone, within the budget."""
        self._counters[ring.READY] = 1
        while True:
            now_s = time.monotonic()
            self._look_at_sensors(now_s)
            if os.getppid() != self._parent:
                # A child that the application forked holds its side of the pipes open.
                return
            if now_s - self._began >= self._settings.window_s and now_s >= self._keep_s and self.close():
                self._open()
            pause_s = STEP_S if self._hot else duty.pause_s(now_s, time.process_time())
            if pause_s > 0:
                if self._reader.ended(min(pause_s, STEP_S)):
                    return
            elif self._reader.ready(STEP_S):
                number = self._reader.take()
                if number is None:
                    return
                self._one(number)
                self._reader.give_back(number)
            elif self._reader.ended(0.0):
                return

    def close(self) -> bool:
        """Put the window into the spool; where that cannot be done it goes on, and False is returned."""
        for name, at in (("seen", ring.SEEN), ("dropped", ring.DROPPED)):
            # Threads of the application write it, and the last one to do so need not have the highest number.
            now = max(self._told[name], int(self._counters[at]))
            self._gathered.count(**{name: now - self._told[name]})
            self._told[name] = now
        window = Window(
            self._key, *self._names, self.task, self._began_at_s,
            round(time.monotonic() - self._began, 3), self._gathered.figures(),
        )  # fmt: skip
        try:
            self._spool(window)
        except OSError as error:
            log.warning("a window could not be kept: %s", error)
            self._keep_s = time.monotonic() + KEEP_S
            return False
        if self._keeper is not None:
            self._keeper.put(self._sampler.samples)
        return True

    def _open(self) -> None:
        labels, settings = self._manifest.labels, self._settings
        self._gathered = Gathered([spec.name for spec in self._manifest.inputs], labels)
        self._sampler = Sampler(
            self._keeper.wanted() if self._keeper is not None else 0, settings.payload_bytes, settings.payloads_bytes,
            lambda number: label_of(labels, number),
        )  # fmt: skip
        self._began, self._began_at_s = time.monotonic(), max(0, int(time.time()))
        # Tried again, it is the same window.
        self._key = uuid.uuid4().hex

    def _look_at_sensors(self, now_s: float) -> None:
        if now_s - self._looked_s < THERMAL_S:
            return
        self._hot = is_hot(hottest_celsius(self._sensors), self._settings.max_celsius, was=self._hot)
        if self._hot:
            self._gathered.count(hot_s=round(now_s - self._looked_s))
        self._looked_s = now_s

    def _one(self, number: int) -> None:
        """One sample, from its slot to the figures."""
        if not self._compares:
            return
        took, inputs, live = self._reader.memory.slot(number)
        for name, values in inputs.items():
            self._gathered.looked_at(name, values)
        self._samples += 1
        if self._live is not None and self._samples % self._settings.noise_every == 0:
            # Before the candidate, which mostly runs first after a pause, too: whoever runs second finds caches warm.
            self._measure_noise(self._live, inputs, live)
        began = time.perf_counter()
        try:
            with self._busy(ring.BUSY_SINCE):
                candidate = self._answer(self._candidate, inputs)
        except Exception:
            # Every backend has errors of its own; here each of them is one of the candidate.
            log.debug("an input failed", exc_info=True)
            self._gathered.count(errors=1)
            self._counters[ring.ERRORS] += np.uint64(1)
            return
        self._gathered.took(int(took[0]) / 1e6, 1e3 * (time.perf_counter() - began))
        finite = all_finite(live), all_finite(candidate)
        self._gathered.count(live_nans=not finite[0], nans=not finite[1])
        try:
            difference = self._difference(live, candidate) if all(finite) else None
        except Exception:
            # A fault of the comparison is none of the candidate: nothing more is told of it.
            log.exception("answers of the task %s cannot be compared", self.task)
            self._compares = False
            return
        self._gathered.compared(difference)
        if finite[0] and (difference is None or not difference.agreed):
            self._sampler.differed(inputs, live, candidate, difference)
        self._counters[ring.COMPARED] += np.uint64(1)
        self._counters[ring.AGREED] += np.uint64(difference is not None and difference.agreed)
        self._counters[ring.NANS] += np.uint64(finite[0] and not finite[1])

    def _measure_noise(self, model: Model, inputs: dict[str, Array], live: Answer) -> None:
        began = time.perf_counter()
        try:
            with self._busy(ring.NOISE_SINCE):
                again = self._answer(model, inputs)
        except Exception:
            # The candidate is not to blame; only the noise is not measured.
            log.warning("the copy of the live version failed", exc_info=True)
            self._live = None
            return
        took_ms = 1e3 * (time.perf_counter() - began)
        both = all_finite(live) and all_finite(again)
        self._gathered.noise(self._difference(live, again) if both else None, took_ms)

    def _busy(self, counter: int) -> AbstractContextManager[None]:
        return busy(self._counters, counter, self._settings.hung_s)

    def _difference(self, live: Answer, other: Answer) -> Difference:
        assert self._tolerance is not None
        return self._compare(live, other, self._manifest.outputs, self._tolerance)

    def _answer(self, model: Model, inputs: dict[str, Array]) -> Answer:
        found = model.predict(inputs)
        return found if isinstance(found, dict) else {self._manifest.outputs[0].name: found}


@contextmanager
def busy(counters: Array, counter: int, hung_s: float) -> Iterator[None]:
    """Work that may hang: the live process sees since when, and the system ends this process in any case."""
    counters[counter] = time.monotonic_ns()
    signal.setitimer(signal.ITIMER_REAL, ALARM_TIMES * hung_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        counters[counter] = 0


def give_way(budget: Shadow) -> None:
    """Run when nobody else wants the processor, be the first to go when memory is short, and stop at a limit of it."""
    with suppress(OSError):
        os.nice(19)
    if budget.only_idle and hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        wanted = budget.memory_bytes + SLACK_BYTES
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def main(
    store: str, live: str, candidate: str, form: str, memory: str, full: str, free: str, settings: str
) -> int:
    """Exit status 0 when the live process closed its side, 10 when a version cannot be loaded."""
    began_s = time.monotonic()
    # An interrupt at the terminal, or a stop of the whole service, is for the application; this process ends after it.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    budget = Shadow.from_json(settings)
    give_way(budget)
    place = Store(Path(store))
    try:
        manifest = place.manifest(place.release(candidate))
        shared = ring.Memory(ring.Layout.of(manifest, budget.slots, budget.ring_bytes), int(memory))
        with busy(shared.counters, ring.BUSY_SINCE, budget.hung_s):
            model = _loaded(place, candidate, form or None)
    except DeviceError as error:
        log.warning("%s", error)
        return CANNOT_LOAD if fault_of(error.code) == RELEASE else CANNOT_LOAD_TODAY
    second = None
    if budget.noise_every:
        try:
            with busy(shared.counters, ring.NOISE_SINCE, budget.hung_s):
                second = _loaded(place, live, form or None)
        except (DeviceError, MemoryError) as error:
            # The candidate is not to blame; only the noise is not measured.
            log.warning("the noise is not measured: %s", error)
    reader = Reader(shared, int(full), int(free))
    spool = Spool(place.spool, max_bytes=budget.spool_bytes)

    def keep(window: Window) -> None:
        content = window.to_json().encode()
        try:
            spool.put(window.key, content, value=VALUE)
        except OSError:
            # A window is worth more than inputs that only help to understand it.
            if not payloads.give_way(place.path):
                raise
            spool.put(window.key, content, value=VALUE)

    keeper = Keeper(place, (live, candidate), budget)
    worker = Worker(reader, model, second, manifest, (live, candidate), budget, keep, keeper)
    try:
        worker.run(Duty(budget.cpu_share, began_s))
    finally:
        worker.close()
    return ENDED


def _loaded(store: Store, release: str, form: str | None) -> Model:
    document = store.release(release)
    return Model.of(
        store.manifest(document),
        locate_in(document, store.blob),
        format=form,
        # What accelerators there are, the live version has.
        settings=Settings(threads=1, providers=("CPUExecutionProvider",)),
    )


def _say_apart() -> None:
    """Let logs have standard error for themselves: a backend that floods it would hold the application up."""
    said = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")
    with Path(os.devnull).open("w", encoding="ascii") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    logging.basicConfig(level=logging.WARNING, stream=said)


if __name__ == "__main__":
    _say_apart()
    try:
        status = main(*sys.argv[1:])
    except Exception:
        log.exception("the shadow ended")
        status = 1
    sys.exit(status)
