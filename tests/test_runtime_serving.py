"""`Runtime`: versions change under an application, and none of its predictions fails, mixes or waits for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgekit_runtime import DeviceError, Runtime
from edgekit_runtime.errors import BackendError, InputError, StoreError
from edgekit_runtime.events import DEFAULT_LIMITS, RolledBack
from edgekit_runtime.model import Model
from edgekit_runtime.process import SignOfLife, is_alive, this_process
from edgekit_runtime.runtime import Swap
from edgekit_runtime.state import COMMIT, IDLE, PROBATION, ROLLBACK, Process
from support.adders import WIDTH, adder, unloadable
from support.device import Device

X = np.zeros((1, WIDTH), np.float32)
PATIENCE_S = 120


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "store")


@pytest.fixture
def runtime(device: Device) -> Iterator[Runtime]:
    """Serves the version that adds 1, and looks at the store only when it is told to."""
    device.install(adder(1.0), good=True)
    with Runtime(device.store.path, poll_s=3600) as made:
        yield made


def answer(runtime: Runtime) -> float:
    return float(runtime.predict(X)[0, 0])


def test_what_is_live_is_served_and_followed(device: Device, runtime: Runtime) -> None:
    swaps: list[Swap] = []
    stop = runtime.on_swap(swaps.append)
    assert answer(runtime) == 1.0
    assert not runtime.look()
    second = device.install(adder(2.0))
    assert answer(runtime) == 1.0, "nothing changes before the look"
    assert runtime.look()
    assert (answer(runtime), runtime.release) == (2.0, second)
    assert [(swap.release, swap.before is not None) for swap in swaps] == [(second, True)]
    assert runtime.mark_good()
    assert not runtime.mark_good()
    assert device.store.state().phase == COMMIT
    device.manager.go_on()
    device.manager.tell(RolledBack())
    stop()
    assert runtime.look()
    assert answer(runtime) == 1.0
    assert len(swaps) == 1


def test_the_store_is_followed_by_itself(device: Device) -> None:
    device.install(adder(1.0), good=True)
    swapped = threading.Event()
    with Runtime(device.store.path, poll_s=0.02) as runtime:
        runtime.on_swap(lambda _: swapped.set())
        device.install(adder(2.0))
        assert swapped.wait(20)
        assert answer(runtime) == 2.0


def test_a_listener_that_fails_stops_nothing(device: Device, runtime: Runtime) -> None:
    heard: list[Swap] = []

    def fails(_: Swap) -> None:
        raise RuntimeError

    runtime.on_swap(fails)
    runtime.on_swap(heard.append)
    device.install(adder(2.0))
    assert runtime.look()
    assert len(heard) == 1


def test_under_load_no_prediction_fails_or_mixes_and_memory_comes_back(device: Device) -> None:
    versions = [adder(float(k), weight_bytes=4 << 20) for k in (1, 2)]
    for each in versions:
        device.install(each, good=True)
    wrong: list[Any] = []
    counts = [0, 0]
    stop = threading.Event()
    with Runtime(device.store.path, poll_s=3600) as runtime:

        def load(k: int) -> None:
            while not stop.is_set():
                try:
                    found = runtime.predict_batch(np.zeros((3, WIDTH), np.float32))
                except Exception as error:  # noqa: BLE001 - whatever it is, it must not be
                    wrong.append(error)
                    return
                counts[k] += 1
                if len(np.unique(found)) != 1 or found[0, 0] not in (1.0, 2.0):
                    wrong.append(found)

        threads = [threading.Thread(target=load, args=(k,)) for k in range(2)]
        for each in threads:
            each.start()
        resident = []
        for swap in range(12):
            device.install(versions[swap % 2], good=True)
            assert runtime.look()
            resident.append(psutil.Process().memory_info().rss)
        stop.set()
        for each in threads:
            each.join()
    assert wrong == []
    assert min(counts) > 20
    assert resident[-1] <= 1.05 * resident[3]


def test_two_runtimes_of_one_store_follow_it_both(device: Device, runtime: Runtime) -> None:
    with Runtime(device.store.path, poll_s=3600) as other:
        device.install(adder(2.0))
        assert runtime.look()
        assert other.look()
        assert answer(runtime) == answer(other) == 2.0
        assert device.store.state().phase == PROBATION


def test_an_event_loop_goes_on_while_a_prediction_runs(runtime: Runtime) -> None:
    async def both() -> tuple[Any, Any]:
        first, second = await asyncio.gather(runtime.predict_async(X), runtime.predict_async(X + 1))
        return first, second

    first, second = asyncio.run(both())
    assert (first[0, 0], second[0, 0]) == (1.0, 2.0)


# What goes wrong


def test_with_nothing_live_there_is_nothing_to_serve(device: Device) -> None:
    with pytest.raises(StoreError, match="nothing is live") as caught:
        Runtime(device.store.path)
    assert "install" in caught.value.way_out


def test_a_version_that_cannot_be_loaded_is_given_up_and_the_one_before_serves(
    device: Device, runtime: Runtime
) -> None:
    broken = unloadable(adder(2.0))
    release = device.install(broken)
    assert not runtime.look()
    assert answer(runtime) == 1.0
    state = device.store.state()
    assert (state.phase, state.live, state.failed) == (ROLLBACK, runtime.release, {release: "load"})
    with Runtime(device.store.path) as later:
        assert answer(later) == 1.0


def test_a_process_that_starts_with_a_broken_version_serves_the_one_before(device: Device) -> None:
    device.install(adder(1.0), good=True)
    device.install(unloadable(adder(2.0)))
    with Runtime(device.store.path, poll_s=3600) as runtime:
        assert answer(runtime) == 1.0


def test_a_file_that_rots_on_the_disk_gives_way_to_the_version_before(device: Device) -> None:
    first = device.install(adder(1.0), good=True)
    second = device.install(adder(2.0), good=True)
    model = device.store.release(second).files["model.onnx"].sha256
    device.store.blob(model).write_bytes(b"rotten")
    with Runtime(device.store.path, poll_s=3600) as runtime:
        assert runtime.release == first
    assert device.store.state().failed == {}, "nothing is wrong with the release itself"


def test_answers_that_are_no_numbers_take_a_version_back(device: Device, runtime: Runtime) -> None:
    release = device.install(adder(float("nan")))
    assert runtime.look()
    for _ in range(DEFAULT_LIMITS.judged):
        runtime.predict(X)
    assert runtime.look()
    assert answer(runtime) == 1.0
    assert device.store.state().failed == {release: "nan"}


def test_a_version_that_answers_too_late_is_taken_back(device: Device) -> None:
    device.install(adder(1.0), good=True)
    release = device.install(adder(2.0))
    with Runtime(device.store.path, poll_s=3600, max_latency_ms=0.0) as runtime:
        for _ in range(DEFAULT_LIMITS.judged):
            runtime.predict(X)
        assert runtime.look()
        assert answer(runtime) == 1.0
    assert device.store.state().failed == {release: "slow"}


def test_what_the_manifest_allows_is_the_limit_where_the_application_names_none(device: Device) -> None:
    device.install(adder(1.0), good=True)
    release = device.install(adder(2.0, max_latency_ms=1e-6))
    with Runtime(device.store.path, poll_s=3600) as runtime:
        for _ in range(DEFAULT_LIMITS.judged):
            runtime.predict(X)
        assert runtime.look()
    assert device.store.state().failed == {release: "slow"}


def test_what_the_application_does_wrong_is_no_fault_of_the_version(device: Device, runtime: Runtime) -> None:
    device.install(adder(2.0))
    runtime.look()
    for _ in range(2 * DEFAULT_LIMITS.judged):
        with pytest.raises(InputError):
            runtime.predict(np.zeros((1, 3), np.float32))
    assert not runtime.look()
    assert device.store.state().phase == PROBATION


CRASHES = """
import os, sys, numpy as np
from edgekit_runtime import Runtime
with Runtime(sys.argv[1], poll_s=3600) as runtime:
    x = np.zeros((1, 16), np.float32)
    print(float(runtime.predict(x)[0, 0]), flush=True)
    if sys.argv[2] == "die" and runtime.predict(x)[0, 0] == 2.0:
        os.kill(os.getpid(), 9)
"""


def start(device: Device, how: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(device.store.path), how],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_a_version_that_kills_its_process_again_and_again_is_taken_back_before_the_next_load(
    device: Device,
) -> None:
    device.install(adder(1.0), good=True)
    release = device.install(adder(2.0))
    assert [start(device, "die") for _ in range(5)] == ["2.0", "2.0", "2.0", "1.0", "1.0"]
    state = device.store.state()
    assert state.failed == {release: "crash_loop"}
    assert state.reports[-1].reason == "crash_loop"


@pytest.mark.slow
def test_processes_that_end_as_they_should_are_no_crashes(device: Device) -> None:
    device.install(adder(1.0), good=True)
    device.install(adder(2.0))
    assert [start(device, "end") for _ in range(5)] == ["2.0"] * 5
    state = device.store.state()
    assert (state.phase, state.crashes, state.attempts) == (PROBATION, 0, ())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tmpfs is Linux's")
def test_on_a_disk_that_became_read_only_serving_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    try:
        device = Device(disk / "store")
        device.install(adder(1.0), good=True)
        device.install(adder(2.0))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with Runtime(device.store.path, poll_s=3600) as runtime:
            assert answer(runtime) == 2.0
            assert not runtime.look()
            assert not runtime.mark_good()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("jump", [-2_000_000_000, 315_360_000, -315_360_000])
def test_whatever_the_clock_says_serving_and_updates_go_on(
    device: Device, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    device.install(adder(2.0))
    assert runtime.look()
    assert answer(runtime) == 2.0
    assert runtime.mark_good()
    assert device.manager.go_on().phase == IDLE


# Who runs


HOLDS = """
import os, sys
from pathlib import Path
from edgekit_runtime.process import SignOfLife, this_process
folder, me = Path(sys.argv[1]), this_process()
sign = SignOfLife(folder, me)
print(me.pid, me.started, me.boot, flush=True)
sys.stdin.read()
os._exit(0)
"""


def test_a_process_is_alive_until_it_ends_however_that_is(tmp_path: Path) -> None:
    me = this_process()
    assert me == this_process()
    folder = tmp_path / "attempts"
    assert not is_alive(folder, me), "it gave no sign"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        pid, started, boot = other.stdout.readline().split()
        theirs = Process(int(pid), int(started), boot)
        assert is_alive(folder, theirs)
        assert not is_alive(folder, replace(theirs, started=theirs.started + 1)), "its pid, used again"
        other.kill()
        while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert not is_alive(folder, theirs), "a zombie runs no more"
    assert list(folder.iterdir()) == [], "nobody needs its sign any more"


FORKS = """
import fcntl, os, sys, time
from pathlib import Path
from edgekit_runtime import DeviceError, Runtime
from edgekit_runtime.process import SignOfLife, is_alive, this_process
from edgekit_runtime.store import Store
import numpy as np

def fork():
    child = os.fork()
    if not child:
        time.sleep(600)
    return child

def sign(folder):
    me, mine = this_process(), SignOfLife(folder / "attempts", this_process())
    child = fork()
    yield child
    assert is_alive(folder / "attempts", me)
    mine.close()
    assert not is_alive(folder / "attempts", me)

def lock(folder):
    store = Store(folder)
    with store.locked():
        child = fork()
    yield child
    handle = os.open(folder / "lock", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)
    with store.driven(), store.locked():
        pass

def runtime(folder):
    x = np.zeros((1, 16), np.float32)
    with Runtime(folder, poll_s=3600) as served:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                served.predict(x)
            except DeviceError as error:
                os.write(write, error.code.encode())
            served.close()
            time.sleep(600)
        yield child
        assert os.read(read, 100) == b"forked"
        assert served.predict(x)[0, 0] == 1.0

for child in globals()[sys.argv[1]](Path(sys.argv[2])):
    pass
os.kill(child, 9)
"""


@pytest.mark.parametrize("what", ["sign", "lock", "runtime"])
def test_a_child_that_was_forked_holds_nothing_of_its_parent(device: Device, what: str) -> None:
    device.install(adder(1.0), good=True)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, what, str(device.store.path)],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_signs_that_dead_processes_left_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ("0" * 32)).write_bytes(b"")
    sign = SignOfLife(tmp_path, this_process())
    assert len(list(tmp_path.iterdir())) == 1
    sign.close()


# What one process cannot load


def broken(name: str) -> Callable[..., Any]:
    def load(*_: Any, **__: Any) -> Any:
        if name == "MemoryError":
            raise MemoryError
        raise BackendError("no luck", expected="luck", way_out="Wait.", code=name)

    return load


@pytest.mark.parametrize("code", ["no_provider", "no_artifact", "no_backend", "load", "MemoryError"])
def test_a_version_that_served_before_is_taken_from_nobody_by_a_process_that_cannot_load_it(
    device: Device, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    first = device.install(adder(1.0), good=True)
    second = device.install(adder(2.0), good=True)
    whole, once = Model.of, broken(code)
    monkeypatch.setattr(
        Model,
        "of",
        lambda m, *a, **k: once() if m.version == adder(2.0).release.version else whole(m, *a, **k),
    )
    with Runtime(device.store.path, poll_s=3600) as runtime:
        assert (runtime.release, answer(runtime)) == (first, 1.0)
        state = device.store.state()
        assert (state.live, state.last_good, state.failed) == (second, first, {})
        assert state.reports[-1].kind == "not_loaded"
        monkeypatch.setattr(Model, "of", whole)
        assert not runtime.look(), "not again at once"
        monkeypatch.setattr(time, "monotonic", lambda clock=time.monotonic: clock() + 1e4)
        assert runtime.look()
        assert (runtime.release, answer(runtime)) == (second, 2.0)


def test_an_option_that_fits_no_version_is_the_application_s_and_said(device: Device) -> None:
    release = device.install(adder(1.0))
    with pytest.raises(DeviceError) as caught:
        Runtime(device.store.path, format="tflite")
    assert caught.value.code == "no_artifact"
    state = device.store.state()
    assert (state.phase, state.live, state.failed, state.attempts) == (PROBATION, release, {}, ())


def test_a_port_that_is_taken_is_no_crash_of_the_version(device: Device) -> None:
    device.install(adder(1.0), good=True)
    release = device.install(adder(2.0))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for _ in range(DEFAULT_LIMITS.crashes + 1):
            with pytest.raises(InputError):
                Runtime(device.store.path, metrics=f"127.0.0.1:{taken.getsockname()[1]}")
    state = device.store.state()
    assert (state.live, state.crashes, state.attempts) == (release, 0, ())


FORGETS = """
import sys, numpy as np
from edgekit_runtime import Runtime
runtime = Runtime(sys.argv[1], poll_s=3600)
runtime.predict(np.zeros((1, 16), np.float32))
"""


def test_a_program_that_forgets_to_close_and_ends_as_it_should_is_no_crash(device: Device) -> None:
    device.install(adder(1.0), good=True)
    release = device.install(adder(2.0))
    for _ in range(DEFAULT_LIMITS.crashes + 1):
        subprocess.run([sys.executable, "-c", FORGETS, str(device.store.path)], check=True)
    state = device.store.state()
    assert (state.live, state.crashes) == (release, 0)


def test_a_process_that_served_long_enough_is_no_crash_loop(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.install(adder(1.0), good=True)
    device.install(adder(2.0))
    with Runtime(device.store.path, poll_s=3600) as runtime:
        runtime.predict(X)
        runtime.look()
        assert len(device.store.state().attempts) == 1
        monkeypatch.setattr(time, "monotonic", lambda clock=time.monotonic: clock() + 301)
        runtime.look()
        assert device.store.state().attempts == ()


def test_a_listener_may_close_the_runtime(device: Device) -> None:
    device.install(adder(1.0), good=True)
    runtime = Runtime(device.store.path, poll_s=0.01)
    closed = threading.Event()

    def hear(_: Swap) -> None:
        runtime.close()
        closed.set()

    runtime.on_swap(hear)
    device.install(adder(2.0))
    assert closed.wait(PATIENCE_S)
    assert device.store.state().attempts == ()


def test_errors_are_of_one_tree(device: Device) -> None:
    with pytest.raises(DeviceError):
        Runtime(device.store.path / "nowhere")


# Once as oneself, because another user may not even read the modules.
OTHER_USER = """
import os, sys
import numpy
from edgekit_runtime import Runtime
from edgekit_runtime.cli import main

def serve():
    with Runtime(sys.argv[1], poll_s=0.02) as runtime:
        x = numpy.zeros((1, 16), numpy.float32)
        print({float(runtime.predict(x)[0, 0]) for _ in range(1000)})
    print(main(["--store", sys.argv[1], "--json", "status"]))

serve()
os.setegid(65534)
os.seteuid(65534)
serve()
print(main(["--store", sys.argv[1], "--json", "pin"]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_store_of_another_user_is_served_from_and_cannot_be_changed() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        device = Device(Path(folder) / "store")
        device.install(adder(1.0), good=True)
        before = {path: path.stat().st_mtime_ns for path in device.store.path.rglob("*")}
        done = subprocess.run(
            [sys.executable, "-c", OTHER_USER, str(device.store.path)],
            capture_output=True,
            text=True,
            check=True,
        )
        after = {path: path.stat().st_mtime_ns for path in device.store.path.rglob("*")}
    answers, status, told, refused, code = done.stdout.splitlines()[3:]
    assert answers == "{1.0}"
    assert (json.loads(status)["phase"], told) == ("idle", "0")
    assert (json.loads(refused)["error"], code) == ("disk", "2")
    assert "Permission denied" in json.loads(refused)["what"]
    assert after == before
