"""`Runtime`: what an application serves from a store with. Versions change under it; no prediction fails or mixes.

A prediction takes the version that is served at its first instruction and ends with it. A swap loads the new version
beside the old one, then moves one reference; the old one is freed when the last prediction that began with it ends.

The runtime tells the store what happens to a version on probation: that this process is about to load it, how it does,
and that the process ended as it should. What the store cannot be told, because its disk is full or read-only, never
stops serving. A candidate that waits in the shadow runs beside it, in a process of its own.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, cast

from edgekit_runtime.backends import Array, Settings
from edgekit_runtime.errors import BackendError, DeviceError, InputError
from edgekit_runtime.events import Failed, MarkedGood
from edgekit_runtime.metrics import Meter, counter, gauge, render
from edgekit_runtime.model import NO_SETTINGS, Info
from edgekit_runtime.serving import Loader, Serving
from edgekit_runtime.shadow.settings import Shadow
from edgekit_runtime.state import PROBATION, SHADOW, State
from edgekit_runtime.store import Store

if TYPE_CHECKING:
    from edgekit_runtime.endpoint import Endpoint
    from edgekit_runtime.shadow.host import Host, Standing
    from edgekit_runtime.telemetry import Telemetry

log = logging.getLogger(__name__)

POLL_S: Final = 1.0
WINDOW_S: Final = 300.0
DEFAULT_SHADOW: Final = Shadow()
# Of a candidate beside the live version, since its process started.
SHADOW_FIGURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "compared": "Predictions that both versions answered.",
        "agreed": "Of those, the ones that are the same for the task.",
        "dropped": "Predictions that were drawn and found no room.",
        "nans": "Answers of the candidate that were not finite.",
        "errors": "Errors that the candidate raised.",
        "ends": "Processes of the candidate that ended by themselves, or had to be ended.",
    }
)


@dataclass(frozen=True, slots=True)
class Swap:
    """Another version serves.

    Attributes:
        before: what served, None at the start.
        after: what serves now.
        release: its id.
    """

    before: Info | None
    after: Info
    release: str


class Runtime:
    """Serves the live version of a store, and follows it when it changes.

    Use it with `with`. Safe to call from several threads, and from several processes on one store.

    Args:
        store: folder of the versions.
        format: of the files to run; by default the first whose backend is installed.
        settings: threads, providers, delegates.
        poll_s: seconds between looks at the store.
        max_latency_ms: milliseconds of a prediction that a version on probation may take; most of them have to. None:
            what its manifest says.
        shadow: budget of a candidate beside the live version; None: this process runs none.
        metrics: address such as "127.0.0.1:9464" at which Prometheus may ask; "" for none.
        window_s: seconds of a window of figures of the version that serves here, for an agent to send; None: none are
            kept. None are either where no agent ever tended the store.

    Raises:
        DeviceError: nothing is live, or nothing that is can be loaded.
        ValueError: a window that is no length.
    """

    def __init__(
        self,
        store: str | Path,
        *,
        format: str | None = None,
        settings: Settings = NO_SETTINGS,
        poll_s: float = POLL_S,
        max_latency_ms: float | None = None,
        shadow: Shadow | None = DEFAULT_SHADOW,
        metrics: str = "",
        window_s: float | None = WINDOW_S,
    ) -> None:
        if window_s is not None and not 0 < window_s < math.inf:
            raise ValueError(f"window_s is {window_s!r}; expected seconds above 0, or None")
        self.store = Store(Path(store))
        self._loader = Loader(self.store, format, settings, max_latency_ms)
        self._format, self._poll_s = format, poll_s
        self._told: list[Callable[[Swap], None]] = []
        self._budget: Shadow | None = shadow
        self._shadow: Host | None = None
        self._window_s, self._telemetry = window_s, cast("Telemetry | None", None)
        self._stop, self._swapping = threading.Event(), threading.Lock()
        self._meter = Meter() if metrics else None
        self._left_over = _no_model
        # Also where the application forgets to close it: a program that ends as it should is no crash.
        self._leave = weakref.finalize(self, self._loader.leave)
        self._serving = self._loader.live(None)
        try:
            self._endpoint = self._listen(metrics) if metrics else None
        except BaseException:
            self._leave()
            raise
        self._watcher = threading.Thread(target=self._watch, name="edgekit-runtime", daemon=True)
        self._watcher.start()
        _OPEN.add(self)

    def predict(self, x: Array | Mapping[str, Array]) -> Any:
        """Run what serves now, as `Model.predict` does."""
        return self._metered("predict", x)

    def predict_batch(self, x: Array | Mapping[str, Array]) -> Any:
        """Run what serves now, as `Model.predict_batch` does."""
        return self._metered("predict_batch", x)

    def predict_raw(self, raw: Array) -> Any:
        """Run what serves now on an image or a recording, prepared for that very version: no swap comes in between.

        Args:
            raw: as `Model.prepare` takes it.
        """
        return self._metered("predict_raw", raw)

    async def predict_async(self, x: Array | Mapping[str, Array]) -> Any:
        """`predict` in a thread of its own, so that an event loop goes on meanwhile."""
        # It takes longer to import than all of this package.
        from asyncio import to_thread

        return await to_thread(self.predict, x)

    def _metered(self, method: str, x: Array | Mapping[str, Array]) -> Any:
        meter = self._meter
        if meter is None:
            return self._counted(method, x)
        began = time.perf_counter()
        try:
            outputs = self._counted(method, x)
        except InputError:
            raise
        except Exception:
            meter.failed()
            raise
        meter.took(time.perf_counter() - began)
        return outputs

    def _counted(self, method: str, x: Array | Mapping[str, Array]) -> Any:
        serving, shadow = self._serving, self._shadow
        if shadow is not None and shadow.draws():
            return self._shadowed(serving, shadow, method, x)
        if not serving.watched and not serving.on_trial:
            return getattr(serving.model, method)(x)
        # As `_timed`, but without its call.
        began = time.perf_counter()
        try:
            outputs = getattr(serving.model, method)(x)
        except InputError:
            raise
        except Exception:
            serving.failed()
            raise
        serving.count(outputs, time.perf_counter() - began)
        return outputs

    @staticmethod
    def _shadowed(serving: Serving, shadow: Host, method: str, x: Array | Mapping[str, Array]) -> Any:
        """Predict, and hand what came in and out to the candidate; there is none while a version is on probation."""
        if method == "predict_raw" and not isinstance(x, Mapping):
            # The candidate gets what the live version was given; both prepare alike, or there is no shadow.
            method, x = "predict", serving.model.prepare(x)
        outputs, took_s = _timed(serving, method, x)
        if serving.release == shadow.pair.live:
            shadow.offer(x, outputs, round(1e9 * took_s))
        return outputs

    @property
    def metrics_port(self) -> int | None:
        """At which Prometheus may ask; None where it may not."""
        return self._endpoint.port if self._endpoint is not None else None

    @property
    def shadow(self) -> Standing | None:
        """How the candidate beside the live version does; None where there is none, or not in this process."""
        shadow = self._shadow
        return shadow.standing() if shadow is not None else None

    @property
    def info(self) -> Info:
        """Of the version that serves now."""
        return self._serving.model.info

    @property
    def release(self) -> str:
        """Id of the version that serves now."""
        return self._serving.release

    def mark_good(self) -> bool:
        """Vouch for the version that serves: it does what the application is there for.

        Returns:
            Whether it was on probation, and is kept now.
        """
        return self._loader.tell(MarkedGood(self.release)) == ""

    def on_swap(self, hear: Callable[[Swap], None]) -> Callable[[], None]:
        """Be told of every swap from now on, in the thread that makes it.

        Returns:
            Call it to be told no more.
        """
        self._told.append(hear)
        return lambda: self._told.remove(hear)

    def look(self) -> bool:
        """Look at the store now instead of at the next poll.

        Returns:
            Whether another version serves than before.
        """
        with self._swapping:
            try:
                swap = self._follow()
            finally:
                self._follow_figures()
        if swap is None:
            return False
        if self._meter is not None:
            self._meter.swapped()
        for hear in tuple(self._told):
            try:
                hear(swap)
            except Exception:
                log.exception("a listener to swaps failed")
        return True

    def close(self) -> None:
        """End the watch; a version on probation hears that this process ended as it should."""
        if not self._stop.is_set():
            self._stop.set()
            # A listener to swaps may close it, in the thread that looks.
            if threading.current_thread() is not self._watcher:
                self._watcher.join()
            if self._endpoint is not None:
                self._endpoint.close()
            with self._swapping:
                self._end_shadow()
                if self._telemetry is not None:
                    self._telemetry.close()
            if self._serving.on_trial:
                self._loader.tell(self._serving.health())
            self._leave()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                self.look()
            except DeviceError as error:
                log.warning("%s", error)
            except Exception:
                # Whatever a backend does while it loads another version, the one that serves goes on.
                log.exception("the store could not be followed")

    def _follow(self) -> Swap | None:
        """Serve what the store says is live."""
        before = self._serving
        if self._left_over() is None:
            _give_memory_back()
            self._left_over = _no_model
        state = self.store.state()
        if before.on_trial and state.live == before.release:
            self._loader.tell(before.health())
            self._loader.outlived(before)
            state = self.store.state()
        self._follow_shadow(state)
        if state.live is None or state.live == before.release:
            before.on_trial = state.phase == PROBATION
            return None
        self._serving = self._loader.live(before)
        if self._serving is before:
            return None
        self._left_over = weakref.ref(before.model)
        return Swap(before.model.info, self._serving.model.info, self._serving.release)

    def _follow_figures(self) -> None:
        """Take what was counted into a window; no prediction waits for the disk."""
        if self._telemetry is None:
            if self._window_s is None or not self.store.has_agent:
                return
            from edgekit_runtime.telemetry import Telemetry

            self._telemetry = Telemetry(self.store, self._window_s)
        self._telemetry.look(self._serving)

    def _follow_shadow(self, state: State) -> None:
        """Run what waits in the shadow beside what serves here, and nothing else."""
        wanted = state.phase == SHADOW and state.live == self._serving.release
        if self._shadow is not None and (not wanted or self._shadow.pair.candidate != state.candidate):
            self._end_shadow()
        if self._shadow is None and wanted and self._budget is not None and state.candidate is not None:
            from edgekit_runtime.shadow.host import Pair, open_host

            pair = Pair(self._serving.release, state.candidate)
            inputs = self._serving.model.info.inputs
            self._shadow = open_host(self.store, pair, inputs, self._budget, self._refuse, self._format)
        if self._shadow is not None:
            self._shadow.look()

    def _listen(self, address: str) -> Endpoint:
        from edgekit_runtime.endpoint import Endpoint

        return Endpoint(address, self._metrics)

    def _metrics(self) -> str:
        families = list(self._meter.families()) if self._meter is not None else []
        info, standing = self.info, self.shadow
        about = {
            "name": info.name, "version": info.version, "format": info.format, "release": self.release,
        }  # fmt: skip
        families.append(gauge("edgekit_model_info", "The version that serves.", 1, about))
        if standing is not None:
            beside = {"candidate": standing.pair.candidate}
            running = gauge(
                "edgekit_shadow_running", "Whether a candidate is compared.", standing.running, beside
            )
            families.append(running)
            for name, text in SHADOW_FIGURES.items():
                families.append(
                    counter(f"edgekit_shadow_{name}_total", text, getattr(standing, name), beside)
                )
        return render(families)

    def _refuse(self, code: str, passing: bool) -> None:
        self._loader.tell(Failed(SHADOW, code, passing))

    def _end_shadow(self) -> None:
        shadow, self._shadow = self._shadow, None
        if shadow is not None:
            shadow.close()

    def _forked(self) -> None:
        """Refuse to serve in a child: it has no watcher, and a backend's threads and locks stayed with the parent."""
        self._stop.set()
        if self._shadow is not None:
            self._shadow.forked()
        self._serving, self._shadow, self._telemetry = cast("Serving", _Forked()), None, None


class _Forked:
    """Stands where the version that serves was, in a child that was forked."""

    on_trial = watched = False

    def __getattr__(self, name: str) -> Any:
        raise BackendError(
            "this process was forked after Runtime was opened",
            expected="a Runtime of its own in each process: no backend survives a fork",
            way_out="Open Runtime after the fork, in gunicorn without --preload, or start processes with spawn.",
            code="forked",
        )


# Those that a fork leaves without a watcher and with locks that nobody gives back.
_OPEN: Final[weakref.WeakSet[Runtime]] = weakref.WeakSet()


def _after_fork() -> None:
    for runtime in _OPEN:
        runtime._forked()


os.register_at_fork(after_in_child=_after_fork)


def _timed(serving: Serving, method: str, x: Array | Mapping[str, Array]) -> tuple[Any, float]:
    """Predict and count; what came out, and the seconds that it took."""
    began = time.perf_counter()
    try:
        outputs = getattr(serving.model, method)(x)
    except InputError:
        raise
    except Exception:
        serving.failed()
        raise
    took_s = time.perf_counter() - began
    serving.count(outputs, took_s)
    return outputs, took_s


def _no_model() -> Any:
    """No old version is left over whose memory is to be given back."""
    return True


def _give_memory_back() -> None:
    """What a model held goes back to the system, not only to this process's allocator."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
