"""A candidate beside the live version: it is compared within its budget, and nothing it does reaches what serves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime import Runtime, Shadow
from edgekit_runtime.contract import ContractError, Manifest
from edgekit_runtime.events import Activated, RolledBack
from edgekit_runtime.model import Model
from edgekit_runtime.shadow import ring
from edgekit_runtime.shadow.budget import Duty, hottest_celsius, is_hot
from edgekit_runtime.shadow.host import Standing
from edgekit_runtime.shadow.pulse import Pulse, hangs, take
from edgekit_runtime.shadow.worker import Reader, Worker
from edgekit_runtime.spool import Spool
from edgekit_runtime.state import IDLE, PROBATION, SHADOW
from edgekit_runtime.windows import Figures, Window
from support.adders import WIDTH, adder, endless, unloadable
from support.colours import write_bundle
from support.device import Device

X = np.arange(WIDTH, dtype=np.float32)[None]
# All there is, so that the tests need not wait for the share of a core to come in.
EAGER = Shadow(rate=1.0, cpu_share=4.0, only_idle=False, window_s=3600, noise_every=2)
PATIENCE_S = 120


@pytest.fixture
def device(tmp_path: Path) -> Device:
    made = Device(tmp_path / "store")
    made.install(adder(1.0), good=True)
    return made


@pytest.fixture
def serve(device: Device) -> Iterator[Callable[..., Runtime]]:
    """Runtimes that look at the store only when they are told to."""
    made: list[Runtime] = []

    def start(**settings: Any) -> Runtime:
        made.append(Runtime(device.store.path, poll_s=3600, **settings))
        return made[-1]

    yield start
    for each in made:
        each.close()


def until(runtime: Runtime, holds: Callable[[Standing | None], bool], x: Any = X) -> Standing | None:
    """Predict, and look now and then, until something holds."""
    end = time.monotonic() + PATIENCE_S
    while not holds(runtime.shadow):
        assert time.monotonic() < end, runtime.shadow
        for _ in range(20):
            assert np.all(runtime.predict(x) == (x["x"] if isinstance(x, dict) else x) + 1)
            time.sleep(0.002)
        runtime.look()
    return runtime.shadow


def compared(n: int) -> Callable[[Standing | None], bool]:
    return lambda standing: standing is not None and standing.compared >= n


def windows(device: Device) -> list[Window]:
    spool = Spool(device.store.spool, max_bytes=1 << 30)
    return [Window.from_json(spool.read(entry)) for entry in spool]


def figures(device: Device) -> Figures:
    total = Figures()
    for window in windows(device):
        total = total.merged(window.figures)
    return total


def test_a_candidate_that_differs_is_told_of_in_a_window(
    device: Device, serve: Callable[..., Runtime]
) -> None:
    live = device.store.state().live
    candidate = device.install(adder(2.0), shadow=True)
    runtime = serve(shadow=EAGER)
    assert runtime.shadow is None, "it starts with the first look"
    until(runtime, compared(20))
    runtime.close()
    (window,) = windows(device)
    assert (window.live, window.candidate, window.task) == (live, candidate, "regression")
    found = window.figures
    assert found.counts.seen >= found.counts.compared + found.counts.dropped
    assert found.counts.compared >= 20
    assert found.counts.agreed == 0
    a, b = X + 1, X + 2
    apart = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert found.distance.quantile(0.5) == pytest.approx(apart, rel=0.05)
    assert found.noise.compared == found.noise.agreed > 0
    assert found.live.latency_ms.n == found.candidate.latency_ms.n == found.counts.compared
    drift = found.inputs["x"]
    assert (drift.moments.low, drift.moments.high) == (0.0, WIDTH - 1.0)
    assert drift.moments.mean == pytest.approx((WIDTH - 1) / 2)


def test_a_candidate_that_is_as_good_agrees(device: Device, serve: Callable[..., Runtime]) -> None:
    device.install(adder(1.0, weight_bytes=1 << 16), shadow=True)
    runtime = serve(shadow=EAGER)
    standing = until(runtime, compared(10), x=X[0])
    assert standing is not None
    assert standing.agreed == standing.compared
    runtime.close()
    assert figures(device).distance.quantile(1.0) == 0.0


def test_one_sample_of_a_batch_is_compared(device: Device, serve: Callable[..., Runtime]) -> None:
    device.install(adder(1.0, weight_bytes=1 << 16), shadow=True)
    runtime = serve(shadow=EAGER)
    standing = until(runtime, compared(5), x={"x": np.tile(X, (3, 1)).astype(np.float64)})
    assert standing is not None
    assert standing.agreed == standing.compared


def test_the_shadow_ends_when_the_candidate_goes_live(device: Device, serve: Callable[..., Runtime]) -> None:
    candidate = device.install(adder(2.0), shadow=True)
    runtime = serve(shadow=EAGER)
    until(runtime, compared(1))
    (worker,) = workers()
    device.manager.tell(Activated())
    assert runtime.look()
    assert (runtime.release, runtime.shadow) == (candidate, None)
    assert not worker.is_running()
    assert figures(device).counts.compared >= 1
    assert device.store.state().phase == PROBATION


def test_the_shadow_ends_when_the_candidate_is_dropped(device: Device, serve: Callable[..., Runtime]) -> None:
    device.install(adder(2.0), shadow=True)
    runtime = serve(shadow=EAGER)
    until(runtime, compared(1))
    device.manager.tell(RolledBack())
    assert not runtime.look()
    assert (runtime.shadow, workers()) == (None, [])
    assert runtime.predict(X)[0, 0] == 1.0


def test_of_two_processes_that_serve_one_has_the_shadow(
    device: Device, serve: Callable[..., Runtime]
) -> None:
    device.install(adder(2.0), shadow=True)
    first, second = serve(shadow=EAGER), serve(shadow=EAGER)
    until(first, compared(1))
    second.look()
    assert len(workers()) == 1
    none = serve(shadow=None)
    none.look()
    assert none.shadow is None


def test_a_window_is_closed_in_time_and_another_opened(device: Device, serve: Callable[..., Runtime]) -> None:
    device.install(adder(2.0), shadow=True)
    runtime = serve(shadow=replace(EAGER, window_s=0.2))
    until(runtime, lambda _: len(windows(device)) >= 3)
    runtime.close()
    made = windows(device)
    assert len({window.key for window in made}) == len(made)
    assert sum(w.figures.counts.compared for w in made) == figures(device).counts.compared


def test_nan_from_a_candidate_is_counted_and_then_it_is_refused(
    device: Device, serve: Callable[..., Runtime]
) -> None:
    candidate = device.install(adder(float("nan")), shadow=True)
    runtime = serve(shadow=EAGER)
    until(runtime, lambda _: device.store.state().phase == IDLE)
    runtime.look()
    state = device.store.state()
    assert (state.failed[candidate], state.live) == ("shadow_nan", runtime.release)
    assert figures(device).counts.nans >= 20


def test_a_candidate_that_hangs_is_ended_and_after_three_times_refused(
    device: Device, serve: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit_runtime.shadow.host.RETRY_S", 0.01)
    candidate = device.install(endless(), shadow=True)
    runtime = serve(shadow=replace(EAGER, hung_s=0.3, noise_every=0))
    until(runtime, lambda _: device.store.state().phase == IDLE)
    runtime.look()
    assert device.store.state().failed[candidate] == "shadow_hung"
    assert figures(device).counts.hung == 3
    assert workers() == []


def test_a_candidate_that_crashes_is_started_again_and_after_three_times_refused(
    device: Device, serve: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit_runtime.shadow.host.RETRY_S", 0.01)
    candidate = device.install(adder(2.0), shadow=True)
    runtime = serve(shadow=EAGER)
    for _ in range(3):
        until(runtime, compared(1))
        for worker in workers():
            os.kill(worker.pid, signal.SIGSEGV)
        until(runtime, lambda standing: standing is None or not standing.running)
    until(runtime, lambda _: device.store.state().phase == IDLE)
    assert device.store.state().failed[candidate] == "shadow_died"
    assert figures(device).counts.died == 3


def test_a_candidate_that_takes_too_much_memory_is_ended(
    device: Device, serve: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit_runtime.shadow.host.MOST_ENDS", 1)
    candidate = device.install(adder(2.0, weight_bytes=48 << 20), shadow=True)
    runtime = serve(shadow=replace(EAGER, memory_bytes=16 << 20))
    until(runtime, lambda _: device.store.state().phase == IDLE)
    assert device.store.state().failed[candidate] == "shadow_memory"
    assert figures(device).counts.over_memory == 1


def test_a_candidate_that_cannot_be_loaded_is_refused(device: Device, serve: Callable[..., Runtime]) -> None:
    candidate = device.install(unloadable(adder(2.0)), shadow=True)
    runtime = serve(shadow=EAGER)
    until(runtime, lambda _: device.store.state().phase == IDLE)
    assert device.store.state().failed[candidate] == "shadow_load"


def test_a_candidate_that_rots_on_the_disk_is_given_up_for_now(
    device: Device, serve: Callable[..., Runtime]
) -> None:
    published = adder(2.0)
    device.install(published, shadow=True)
    device.store.blob(published.release.files["model.onnx"].sha256).write_bytes(b"rot")
    runtime = serve(shadow=EAGER)
    until(runtime, lambda _: device.store.state().phase == IDLE)
    state = device.store.state()
    assert (state.failed, state.reports[-1].reason) == ({}, "shadow_load_today")


def test_a_live_version_that_rots_on_the_disk_costs_the_noise_and_not_the_candidate(
    device: Device, serve: Callable[..., Runtime]
) -> None:
    runtime = serve(shadow=EAGER)
    device.install(adder(2.0), shadow=True)
    device.store.blob(adder(1.0).release.files["model.onnx"].sha256).write_bytes(b"rot")
    until(runtime, compared(4))
    runtime.close()
    found = figures(device)
    assert found.counts.compared >= 4
    assert found.noise.compared == 0
    assert device.store.state().phase == SHADOW


def test_a_copy_of_the_live_version_that_hangs_costs_the_noise_and_not_the_candidate(
    device: Device, serve: Callable[..., Runtime]
) -> None:
    candidate = device.install(adder(2.0), shadow=True)
    runtime = serve(shadow=replace(EAGER, hung_s=0.3))
    until(runtime, compared(4))
    host = runtime._shadow
    assert host is not None
    assert host._sender is not None
    before = host._process
    # Stopped, its process can no longer say that it goes on.
    (worker,) = workers()
    worker.suspend()
    host._sender.memory.counters[ring.BUSY_SINCE] = 0
    host._sender.memory.counters[ring.NOISE_SINCE] = 1
    runtime.look()
    standing = until(runtime, compared(4))
    assert standing is not None
    assert (standing.ends, host._process is before) == (0, False)
    assert device.store.state().candidate == candidate
    runtime.close()
    assert figures(device).noise.compared == 0, "what was measured before went with its process"
    assert figures(device).counts.hung == 0


def test_a_window_of_one_sample_is_a_window(device: Device, serve: Callable[..., Runtime]) -> None:
    device.install(adder(2.0), shadow=True)
    runtime = serve(shadow=EAGER)
    runtime.look()
    host = runtime._shadow
    assert host is not None
    until_ready(runtime)
    runtime.predict(X)
    until_compared(runtime, 1)
    runtime.close()
    (window,) = windows(device)
    assert (window.figures.counts.compared, window.figures.counts.nans) == (1, 0)
    assert device.store.state().failed == {}


def until_ready(runtime: Runtime) -> None:
    end = time.monotonic() + PATIENCE_S
    while runtime.shadow is None or not runtime.shadow.running:
        assert time.monotonic() < end
        time.sleep(0.01)


def until_compared(runtime: Runtime, n: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while runtime.shadow is None or runtime.shadow.compared < n:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_copy_of_the_live_version_that_is_large_costs_the_noise_and_not_the_candidate(
    tmp_path: Path, serve: Callable[..., Runtime], device: Device
) -> None:
    device.install(adder(1.0, weight_bytes=160 << 20), good=True)
    device.install(adder(1.0), shadow=True)
    runtime = serve(shadow=replace(EAGER, memory_bytes=120 << 20))
    standing = until(runtime, compared(3))
    assert standing is not None
    assert standing.ends == 0
    assert device.store.state().failed == {}


def test_a_stop_of_the_whole_service_leaves_the_last_window(
    device: Device, serve: Callable[..., Runtime]
) -> None:
    device.install(adder(2.0), shadow=True)
    runtime = serve(shadow=EAGER)
    until(runtime, compared(3))
    (worker,) = workers()
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        worker.send_signal(each)
    until(runtime, compared(6))
    runtime.close()
    assert figures(device).counts.died == 0
    assert figures(device).counts.compared >= 6


ALONE = """
import sys, time
import numpy as np
from edgekit_runtime import Runtime, Shadow
shadow = Shadow(rate=1.0, cpu_share=4.0, only_idle=False, hung_s=float(sys.argv[2]), noise_every=0)
runtime = Runtime(sys.argv[1], poll_s=3600, shadow=shadow)
runtime.look()
x = np.zeros((1, 16), np.float32)
while not runtime._shadow._sender.memory.counters[3]:
    runtime.predict(x)
    time.sleep(0.01)
print("busy", flush=True)
time.sleep(600)
"""


def test_a_candidate_that_hangs_ends_though_the_live_process_is_gone(device: Device) -> None:
    device.install(endless(), shadow=True)
    command = [sys.executable, "-c", ALONE, str(device.store.path), "0.05"]
    served = psutil.Popen(command, stdout=subprocess.PIPE, text=True)
    with served:
        assert served.stdout.readline() == "busy\n"
        (worker,) = (each for each in served.children() if "edgekit_runtime.shadow.worker" in each.cmdline())
        served.kill()
    worker.wait(PATIENCE_S)


def test_a_candidate_ends_with_its_live_process_though_a_child_of_that_lives(device: Device) -> None:
    device.install(adder(2.0), shadow=True)
    program = (
        "import os, sys, time\nimport numpy as np\nfrom edgekit_runtime import Runtime, Shadow\n"
        "runtime = Runtime(sys.argv[1], poll_s=3600, shadow=Shadow(rate=1.0, only_idle=False))\n"
        "runtime.look()\nif not os.fork():\n    time.sleep(600)\nprint('forked', flush=True)\ntime.sleep(600)\n"
    )
    served = psutil.Popen(
        [sys.executable, "-c", program, str(device.store.path)], stdout=subprocess.PIPE, text=True
    )
    with served:
        assert served.stdout.readline() == "forked\n"
        children = served.children()
        (worker,) = (each for each in children if "edgekit_runtime.shadow.worker" in each.cmdline())
        (child,) = (each for each in children if each != worker)
        served.kill()
        try:
            worker.wait(PATIENCE_S)
            assert child.is_running()
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("busy_s", "spent_s", "runnable", "hung"),
    [
        (0.9, 0.9, True, False),
        (1.1, 1.05, True, True),
        (1.1, 0.01, False, True),
        (15.0, 0.01, True, False),
        (25.0, 0.01, True, True),
    ],
    ids=["in time", "at work", "asleep", "others have the processor", "others have it for ever"],
)
def test_what_only_waits_for_a_processor_does_not_hang(
    busy_s: float, spent_s: float, runnable: bool, hung: bool
) -> None:
    before, now = Pulse(5.0, runnable=True), Pulse(5.0 + spent_s, runnable)
    assert hangs(busy_s, before, now, 1.0) == hung
    assert hangs(busy_s, None, None, 1.0) == (busy_s > 1.0), "where the system does not tell"


def test_the_pulse_of_a_process_is_taken() -> None:
    mine = take(os.getpid())
    assert mine is not None
    assert mine.runnable
    assert mine.spent_s > 0
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        end = time.monotonic() + PATIENCE_S
        while (theirs := take(other.pid)) is None or theirs.runnable:
            assert time.monotonic() < end
            time.sleep(0.01)
        other.kill()
    assert take(2**22 + 1) is None


def test_large_inputs_wait_in_fewer_slots() -> None:
    manifest = Manifest.from_json(adder(1.0).content["manifest.json"])
    slot = ring.Layout.of(manifest, 1).slot_bytes
    assert ring.Layout.of(manifest, 8, 3 * slot).slots == 3
    assert ring.Layout.of(manifest, 8, 1).slots == 1
    assert ring.Layout.of(manifest, 8).slots == 8


class Broken:
    """A model that fails."""

    def predict(self, inputs: Any) -> Any:
        raise RuntimeError("out of luck")


def test_a_copy_of_the_live_version_that_fails_costs_the_noise_and_not_the_candidate(
    device: Device, tmp_path: Path
) -> None:
    manifest = device.store.manifest(device.store.release(str(device.store.state().live)))
    sender = ring.Sender(ring.Layout.of(manifest, 4))
    memory, full, free = sender.for_reader
    kept: list[Window] = []
    good = Model.load(write_bundle(adder(1.0), tmp_path / "bundle"))
    reader = Reader(ring.Memory(ring.Layout.of(manifest, 4), memory), full, free)
    worker = Worker(reader, good, cast("Model", Broken()), manifest, ("a" * 64, "b" * 64), EAGER, kept.append)
    for _ in range(4):
        assert sender.send({"x": X}, {"y": X + 1}, 1000)
    # Its budget counts what this process spends from here on, not what the tests before spent.
    duty = Duty(4.0, time.monotonic(), time.process_time())
    running = threading.Thread(target=worker.run, args=(duty,))
    running.start()
    end = time.monotonic() + PATIENCE_S
    while sender.memory.counters[ring.COMPARED] < 4:
        assert time.monotonic() < end
        time.sleep(0.01)
    sender.close()
    running.join()
    worker.close()
    (window,) = kept
    assert (window.figures.counts.compared, window.figures.counts.agreed) == (4, 4)
    assert (window.figures.counts.errors, window.figures.noise.compared) == (0, 0)
    for handle in (memory, free):
        os.close(handle)


def test_a_candidate_with_other_inputs_is_refused_before_it_runs(
    device: Device, serve: Callable[..., Runtime]
) -> None:
    candidate = device.install(adder(2.0, output="z"), shadow=True)
    runtime = serve(shadow=EAGER)
    runtime.look()
    assert device.store.state().failed[candidate] == "shadow_ends"
    assert workers() == []


def test_the_candidate_ends_with_a_live_process_that_is_killed(device: Device) -> None:
    device.install(adder(2.0), shadow=True)
    served = psutil.Popen(
        [
            sys.executable, "-c",
            "import sys, numpy as np; from edgekit_runtime import Runtime, Shadow\n"
            "r = Runtime(sys.argv[1], poll_s=0.05, shadow=Shadow(rate=1.0, cpu_share=4.0, only_idle=False))\n"
            "while True:\n r.predict(np.zeros((1, 16), np.float32))\n"
            " if r.shadow and r.shadow.compared: print('ready', flush=True)\n",
            str(device.store.path),
        ],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with served:
        assert served.stdout.readline() == b"ready\n"
        (worker,) = (each for each in served.children() if "shadow.worker" in " ".join(each.cmdline()))
        served.kill()
    worker.wait(PATIENCE_S)
    assert figures(device).counts.compared > 0, "its last window is there all the same"


def test_the_candidate_gives_way(device: Device, serve: Callable[..., Runtime]) -> None:
    device.install(adder(2.0), shadow=True)
    runtime = serve(shadow=replace(EAGER, only_idle=True))
    until(runtime, compared(1))
    (worker,) = workers()
    assert worker.nice() == 19
    assert os.sched_getscheduler(worker.pid) == os.SCHED_IDLE
    assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text("ascii").strip() == "1000"


def workers() -> list[psutil.Process]:
    return [
        each
        for each in psutil.Process().children()
        if each.status() != psutil.STATUS_ZOMBIE and "edgekit_runtime.shadow.worker" in each.cmdline()
    ]


# The ring


def a_ring(slots: int = 2) -> tuple[ring.Sender, ring.Layout]:
    manifest = Manifest.from_json(adder(1.0).content["manifest.json"])
    layout = ring.Layout.of(manifest, slots)
    return ring.Sender(layout), layout


SAMPLE = {"x": X}, {"y": X + 1}


def test_a_full_ring_takes_nothing_and_waits_for_nobody() -> None:
    sender, _ = a_ring()
    assert [sender.send(*SAMPLE, 5) for _ in range(4)] == [True, True, False, False]
    assert os.read(sender.full_for_reader, 8) == bytes([1, 0])
    os.write(sender.free_for_reader, bytes([1]))
    assert [sender.send(*SAMPLE, 6) for _ in range(2)] == [True, False]


def test_a_sample_that_does_not_fit_takes_no_slot_along() -> None:
    sender, layout = a_ring()
    for _ in range(3 * layout.slots):
        with pytest.raises(ValueError, match="broadcast"):
            sender.send({"x": np.zeros((1, 3), np.float32)}, {"y": X}, 1)
    assert [sender.send(*SAMPLE, 1) for _ in range(layout.slots)] == [True] * layout.slots


def test_what_is_sent_is_what_the_other_side_reads() -> None:
    sender, layout = a_ring()
    sender.send(*SAMPLE, 1234)
    took, inputs, outputs = ring.Memory(layout, sender.handle).slot(os.read(sender.full_for_reader, 1)[0])
    assert int(took[0]) == 1234
    assert np.array_equal(inputs["x"], X)
    assert np.array_equal(outputs["y"], X + 1)


GONE = """
import os, signal
import numpy as np
from edgekit_runtime.shadow import ring
from support.adders import adder
from edgekit_runtime.contract import Manifest
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
sender = ring.Sender(ring.Layout.of(Manifest.from_json(adder(1.0).content["manifest.json"]), 2))
sender.started()
x = np.zeros((1, 16), np.float32)
print([sender.send({"x": x}, {"y": x}, 1) for _ in range(4)])
sender.close()
"""


def test_a_reader_that_is_gone_costs_samples_and_not_the_application() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GONE], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "[True, True, False, False]"), done.stderr


def test_samples_of_many_threads_are_whole(device: Device, serve: Callable[..., Runtime]) -> None:
    device.install(adder(1.0, weight_bytes=1 << 16), shadow=True)
    runtime = serve(shadow=EAGER)
    until(runtime, compared(1))
    stop = threading.Event()

    def load(number: int) -> None:
        x = np.full((1, WIDTH), number, np.float32)
        while not stop.is_set():
            runtime.predict(x)

    threads = [threading.Thread(target=load, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        standing = until(runtime, compared(300))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # A sample of one thread with the answer of another would be a difference.
    assert standing is not None
    assert standing.agreed == standing.compared
    assert standing.dropped > 0


# The budget


@given(
    st.floats(0.01, 2.0), st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 2.0)), min_size=1, max_size=100)
)
def test_work_keeps_to_its_share_whatever_it_costs(share: float, steps: list[tuple[float, float]]) -> None:
    duty, now, spent, longest = Duty(share, 0.0), 0.0, 0.0, 0.0
    for cost, idle in steps:
        now += duty.pause_s(now, spent) + idle
        assert duty.pause_s(now, spent) == pytest.approx(0.0, abs=1e-9)
        spent += cost
        now += cost
        longest = max(longest, cost)
        assert spent <= share * now + 0.05 + longest + 1e-9


def test_a_quiet_hour_is_not_followed_by_a_minute_of_full_load() -> None:
    duty = Duty(0.25, 0.0)
    assert duty.pause_s(3600.0, 0.0) == 0.0
    assert duty.pause_s(3601.0, 1.0) == pytest.approx((1.0 - 0.05 - 0.25) / 0.25)


def test_time_that_stands_still_is_no_credit() -> None:
    duty = Duty(0.5, 100.0)
    assert duty.pause_s(100.0, 1.0) == duty.pause_s(90.0, 1.0) == pytest.approx(0.95 / 0.5)


def test_heat_stops_work_until_it_is_clearly_cooler() -> None:
    hot, heard = False, []
    for celsius in (70.0, 76.0, 74.0, 71.0, 70.0, 69.0, None):
        hot = is_hot(celsius, 75.0, was=hot)
        heard.append(hot)
    assert heard == [False, True, True, True, False, False, False]


def test_the_hottest_sensor_that_makes_sense_counts(tmp_path: Path) -> None:
    for name, text in (("0", "45000\n"), ("1", "61500"), ("2", "-273000"), ("3", "broken"), ("4", "9999999")):
        (tmp_path / f"thermal_zone{name}").mkdir()
        (tmp_path / f"thermal_zone{name}" / "temp").write_text(text)
    (tmp_path / "thermal_zone5").mkdir()
    assert hottest_celsius(tmp_path) == 61.5
    assert hottest_celsius(tmp_path / "nowhere") is None


def test_a_hot_device_compares_nothing_and_says_for_how_long(
    device: Device, serve: Callable[..., Runtime], tmp_path: Path
) -> None:
    (tmp_path / "thermal_zone0").mkdir()
    sensor = tmp_path / "thermal_zone0" / "temp"
    sensor.write_text("80000")
    device.install(adder(2.0), shadow=True)
    runtime = serve(shadow=replace(EAGER, sensors=str(tmp_path)))
    until(runtime, lambda standing: standing is not None and standing.running and standing.dropped > 0)
    assert runtime.shadow is not None
    assert runtime.shadow.compared == 0
    sensor.write_text("60000")
    until(runtime, compared(1))
    runtime.close()
    assert figures(device).counts.hot_s > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", 0.0), ("rate", 1.5), ("rate", float("nan")), ("cpu_share", -1), ("memory_bytes", 5),
        ("window_s", float("inf")), ("slots", 0), ("slots", 257), ("noise_every", -1), ("tolerance", "much"),
        ("max_celsius", True),
    ],
)  # fmt: skip
def test_a_budget_that_makes_no_sense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ContractError) as caught:
        Shadow(**{name: value})
    assert caught.value.key == name


def test_a_budget_is_read_as_it_was_written() -> None:
    assert Shadow.from_json(EAGER.to_json()) == EAGER
    with pytest.raises(ContractError, match="surplus"):
        Shadow.from_json('{"surplus": 1}')
