"""Figures of what serves: counted in each process, in windows that an agent sends; no prediction waits for them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit_runtime import Runtime
from edgekit_runtime.contract import File, Manifest, Release
from edgekit_runtime.errors import InputError
from edgekit_runtime.events import DEFAULT_LIMITS
from edgekit_runtime.model import Model
from edgekit_runtime.serving import ANSWERS, LOGGED, SHORT, Serving, is_finite
from edgekit_runtime.spool import Spool
from edgekit_runtime.state import PROBATION
from edgekit_runtime.windows import Window
from support.adders import WIDTH, adder
from support.device import Device
from support.releases import Published

X = np.zeros((1, WIDTH), np.float32)
NAN = np.full((1, WIDTH), np.nan, np.float32)
Serve = Callable[..., Runtime]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A store that an agent tended once, and that serves the version that adds 1."""
    made = Device(tmp_path / "store")
    with made.store.tended():
        pass
    made.install(adder(1.0), good=True)
    return made


@pytest.fixture
def serve(device: Device) -> Iterator[Serve]:
    made: list[Runtime] = []

    def open_(**settings: Any) -> Runtime:
        made.append(Runtime(device.store.path, poll_s=3600, **settings))
        made[-1].look()
        return made[-1]

    yield open_
    for each in made:
        each.close()


def windows(device: Device) -> list[Window]:
    if not device.store.spool.exists():
        return []
    spool = Spool(device.store.spool, max_bytes=1 << 30)
    return [Window.from_json(spool.read(entry)) for entry in spool]


def classifier() -> Published:
    """The adder, which says that its answers are scores of classes."""
    whole = adder(1.0)
    manifest = Manifest.from_json(whole.content["manifest.json"])
    named = replace(manifest, version="2.0.0", task="classification", labels=tuple(map(str, range(WIDTH))))
    content = {**whole.content, "manifest.json": named.to_json().encode()}
    files = {path: File(hashlib.sha256(data).hexdigest(), len(data)) for path, data in content.items()}
    return Published(Release("adder", "2.0.0", files), content)


class Failing:
    """A model that raises whatever it is told to, around a real one."""

    def __init__(self, model: Model) -> None:
        self.info, self._model, self.error = model.info, model, RuntimeError("no")

    def predict(self, x: Any) -> Any:
        if x is None:
            raise self.error
        return self._model.predict(x)


def test_what_serves_is_told_of_alone_when_it_is_closed(device: Device, serve: Serve) -> None:
    runtime = serve()
    for _ in range(30):
        runtime.predict(X)
    for _ in range(3):
        runtime.predict(NAN)
    runtime._serving.model = Failing(runtime._serving.model)  # type: ignore[assignment]
    for _ in range(2):
        with pytest.raises(RuntimeError):
            runtime.predict(None)  # type: ignore[arg-type]
    runtime.close()
    (window,) = windows(device)
    counts, live = window.figures.counts, window.figures.live
    assert window.is_alone
    assert window.live == device.store.state().live
    assert (counts.seen, counts.errors, counts.live_nans) == (35, 2, 3)
    assert (counts.compared, counts.agreed, counts.nans) == (0, 0, 0)
    assert live.latency_ms.n == 33
    assert 0 < live.latency_ms.quantile(0.5) < 1000
    assert live.confidence.n == 0, "the task has none"
    assert window.figures.candidate.latency_ms.n == 0


def test_a_classifier_tells_how_sure_it_is(device: Device, serve: Serve) -> None:
    device.install(classifier(), good=True)
    runtime = serve()
    sure = np.zeros(WIDTH, np.float32)
    sure[3] = 9.0
    for x in (sure, sure[None], np.stack((sure, sure))):
        runtime.predict(x)
    runtime.close()
    (window,) = windows(device)
    assert window.task == "classification"
    confidence = window.figures.live.confidence
    assert confidence.n == 3
    assert confidence.quantile(0.0) == pytest.approx(np.exp(10) / (np.exp(10) + 15 * np.e), rel=0.03)


def test_a_window_ends_after_its_time_and_the_next_one_goes_on(device: Device, serve: Serve) -> None:
    runtime = serve(window_s=0.05)
    for seen in (5, 7):
        for _ in range(seen):
            runtime.predict(X)
        time.sleep(0.06)
        runtime.look()
    runtime.look()
    found = windows(device)
    assert [window.figures.counts.seen for window in found] == [5, 7]
    assert len({window.key for window in found}) == 2
    assert all(window.seconds >= 0.05 for window in found)


def test_nothing_is_told_where_nothing_was_predicted(device: Device, serve: Serve) -> None:
    runtime = serve(window_s=0.01)
    time.sleep(0.02)
    runtime.look()
    runtime.close()
    assert windows(device) == []


def test_each_version_has_windows_of_its_own_on_probation_too(device: Device, serve: Serve) -> None:
    runtime = serve()
    first = runtime.release
    for _ in range(4):
        runtime.predict(X)
    second = device.install(adder(2.0))
    assert runtime.look()
    for _ in range(6):
        runtime.predict(X)
    assert not runtime.look()
    assert device.store.state().phase == PROBATION
    runtime.close()
    assert [(window.live, window.figures.counts.seen) for window in windows(device)] == [
        (first, 4),
        (second, 6),
    ]


def test_probation_judges_as_without_windows(device: Device, serve: Serve) -> None:
    runtime = serve()
    release = device.install(adder(float("nan")))
    assert runtime.look()
    for _ in range(DEFAULT_LIMITS.judged):
        runtime.predict(X)
    assert runtime.look()
    assert device.store.state().failed == {release: "nan"}
    (window,) = (each for each in windows(device) if each.live == release)
    assert window.figures.counts.live_nans == DEFAULT_LIMITS.judged


def test_each_process_tells_of_itself(device: Device, serve: Serve) -> None:
    for runtime in (serve(), serve()):
        runtime.predict(X)
        runtime.close()
    assert [window.figures.counts.seen for window in windows(device)] == [1, 1]


def test_without_an_agent_or_where_it_is_not_wanted_nothing_is_kept(tmp_path: Path, device: Device) -> None:
    alone = Device(tmp_path / "alone")
    alone.install(adder(1.0), good=True)
    for path, settings in ((alone.store.path, {}), (device.store.path, {"window_s": None})):
        with Runtime(path, poll_s=3600, **settings) as runtime:
            runtime.look()
            runtime.predict(X)
            assert not runtime._serving.watched
    assert windows(alone) == windows(device) == []
    with Runtime(alone.store.path, poll_s=3600) as runtime, alone.store.tended():
        runtime.look()
        runtime.predict(X)
    assert len(windows(alone)) == 1, "an agent that comes later is told, too"


@pytest.mark.parametrize("window_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_window_that_is_no_length_is_refused(device: Device, window_s: float) -> None:
    with pytest.raises(ValueError, match="window_s"):
        Runtime(device.store.path, window_s=window_s)


def test_what_the_application_does_wrong_is_not_counted(device: Device, serve: Serve) -> None:
    runtime = serve()
    with pytest.raises(InputError):
        runtime.predict(np.zeros((1, 3), np.float32))
    runtime.predict(X)
    runtime.close()
    (window,) = windows(device)
    assert (window.figures.counts.seen, window.figures.counts.errors) == (1, 0)


def test_figures_that_cannot_be_kept_stay_in_their_window(
    device: Device, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = serve(window_s=0.01)

    def full(*_: object, **__: object) -> bool:
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Spool, "put", full)
        runtime.predict(X)
        time.sleep(0.02)
        assert not runtime.look()
    runtime.predict(X)
    time.sleep(0.02)
    runtime.look()
    (window,) = windows(device)
    assert window.figures.counts.seen == 2


def test_threads_lose_no_count(device: Device, serve: Serve) -> None:
    runtime = serve(window_s=0.02)
    stop, counts = threading.Event(), [0, 0, 0]

    def work(k: int) -> None:
        while not stop.is_set():
            runtime.predict(NAN if k == 2 else X)
            counts[k] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for each in threads:
        each.start()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        runtime.look()
    stop.set()
    for each in threads:
        each.join()
    runtime.close()
    found = [window.figures.counts for window in windows(device)]
    assert sum(each.seen for each in found) == sum(counts)
    assert sum(each.live_nans for each in found) == counts[2]
    assert len(found) > 3


FORKS = f"""
import os, sys
import numpy as np
from edgekit_runtime import Runtime

runtime = Runtime(sys.argv[1], poll_s=3600)
runtime.look()
runtime.predict(np.zeros((1, {WIDTH}), np.float32))
child = os.fork()
runtime.close()
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_that_was_forked_tells_nothing(device: Device) -> None:
    # In a process of its own: those of the tests have threads of libraries, and are not for forking.
    subprocess.run([sys.executable, "-c", FORKS, str(device.store.path)], check=True, timeout=60)
    (window,) = windows(device)
    assert window.figures.counts.seen == 1


# What is counted


def serving() -> Serving:
    return Serving("r", None, 0.0, on_trial=False, max_s=0.5, watched=True)  # type: ignore[arg-type]


def test_however_many_predictions_nobody_takes_memory_has_a_bound() -> None:
    made = serving()
    for number in range(10 * LOGGED + 7):
        made.count(X, number / 1e6)
    made.failed()
    taken = made.taken()
    assert (taken.predictions, taken.errors, taken.nans) == (10 * LOGGED + 8, 1, 0)
    assert len(taken.took_s) == LOGGED
    assert taken.took_s.max() == pytest.approx((10 * LOGGED + 6) / 1e6)
    assert len(taken.answers) == ANSWERS
    assert made.taken().predictions == 0


def test_answers_are_copied_one_row_each_and_only_finite_and_small_ones() -> None:
    made = serving()
    own = np.arange(6, dtype=np.float32).reshape(2, 3)
    made.count({"scores": own, "boxes": np.zeros((2, 9, 4))}, 0.1)
    own[:] = -1
    for other in (
        NAN,
        np.zeros((1, 2, 3)),
        np.float32(1.0),
        np.zeros((1, 1 << 16), np.float32),
        np.zeros((0, 3)),
    ):
        made.count(other, 0.7)
    taken = made.taken()
    assert [answer.tolist() for answer in taken.answers] == [[0.0, 1.0, 2.0]]
    assert (taken.predictions, taken.nans, made.health().slow) == (6, 1, 5)


@pytest.mark.parametrize("size", [0, 1, 16, SHORT, SHORT + 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_number_that_is_none_is_seen_wherever_it_stands(size: int, dtype: Any) -> None:
    with np.errstate(all="raise"):
        large = np.full(size, np.finfo(dtype).max, dtype)
        assert is_finite(large)
        for bad in (np.nan, np.inf, -np.inf):
            for place in {0, size // 2, size - 1} if size else ():
                values = large.copy()
                values[place] = bad
                assert not is_finite(values)


@pytest.mark.parametrize(
    "array", [np.array(["a"], object), np.array(["a"]), np.full((2, 9), 127, np.int8), np.array([True])]
)
def test_what_is_no_float_is_finite(array: Any) -> None:
    assert is_finite(array)
