"""On the device: a prediction, a swap, and the hand-over of a prediction to a candidate in the shadow."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.guard.conftest import Against
from benchmarks.guard.models import X, bare_call, bare_session, bundle, driven, onnx_file
from benchmarks.guard.references import copies
from edgekit_runtime import Model, Runtime, Shadow
from edgekit_runtime.events import MarkedGood
from edgekit_runtime.manager import Manager
from edgekit_runtime.shadow.host import Host, Pair

CALLS = 60
# Samples that are handed over in a round, fewer than the ring has slots.
SAMPLES = 200
EAGER = Shadow(rate=1.0, cpu_share=64.0, only_idle=False, slots=250, noise_every=0, payload=False)


def serve(manager: Manager, release: str) -> None:
    """Make a version live."""
    manager.install(release, forced=True)
    manager.tell(MarkedGood(release))
    manager.go_on()


def test_model_predict(against: Against, tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "model.onnx")
    model = Model.load(file)
    against(lambda: model.predict(X), bare_call(file), rounds=300, calls=CALLS, reference_calls=CALLS)


def test_runtime_predict(against: Against, tmp_path: Path) -> None:
    only = bundle(tmp_path / "one", "1", 0)
    manager = driven(tmp_path / "store", only)
    serve(manager, only.release().id)
    with Runtime(manager.store.path, poll_s=3600) as runtime:
        bare = bare_call(only.path / "model.onnx")
        against(lambda: runtime.predict(X), bare, rounds=300, calls=CALLS, reference_calls=CALLS)


def test_swap(against: Against, tmp_path: Path) -> None:
    both = [bundle(tmp_path / version, version, seed) for seed, version in enumerate(("1", "2"))]
    manager = driven(tmp_path / "store", *both)
    releases = [each.release().id for each in both]
    for release in releases:
        serve(manager, release)
    turns = itertools.cycle(releases)
    with Runtime(manager.store.path, poll_s=3600) as runtime:

        def swap() -> None:
            assert runtime.look(), "the runtime did not follow the store"

        against(
            swap,
            lambda: bare_session(both[0].path / "model.onnx"),
            rounds=60,
            reference_calls=4,
            before=lambda: serve(manager, next(turns)),
        )


def test_shadow_offer(against: Against, tmp_path: Path) -> None:
    both = [bundle(tmp_path / version, version, seed) for seed, version in enumerate(("1", "2"))]
    manager = driven(tmp_path / "store", *both)
    live, candidate = (each.release().id for each in both)
    serve(manager, live)
    manager.install(candidate, forced=True, shadow=True)
    model = Model.load(both[0].path)
    answer = model.predict(X)

    def refuse(code: str, _: bool) -> None:
        pytest.fail(f"the candidate was refused: {code}")

    host = Host(manager.store, Pair(live, candidate), model.info.inputs, EAGER, refuse)
    with shadowing(host) as worker:
        handed = itertools.count(SAMPLES, SAMPLES)

        def empty() -> None:
            """Let the candidate's process catch up, and keep it from taking processor time from what is measured."""
            worker.send_signal(signal.SIGCONT)
            wait_until_compared(host, next(handed) - SAMPLES)
            worker.send_signal(signal.SIGSTOP)

        against(
            lambda: host.offer(X, answer, 1_000_000), copies(), rounds=60, calls=SAMPLES, reference_calls=100,
            before=empty,
        )  # fmt: skip
        assert host.standing().dropped == 0, "samples found no room: what was measured is not the hand-over"


@contextmanager
def shadowing(host: Host) -> Iterator[psutil.Process]:
    """The candidate's process, once it is ready."""
    before = {each.pid for each in psutil.Process().children()}
    host.look()
    (worker,) = (each for each in psutil.Process().children() if each.pid not in before)
    try:
        wait_until_compared(host, 0)
        yield worker
    finally:
        worker.send_signal(signal.SIGCONT)
        host.close()


def wait_until_compared(host: Host, count: int) -> None:
    """Wait until the candidate has answered so many samples."""
    end = time.monotonic() + 60
    while not (host.standing().running and host.standing().compared >= count):
        assert time.monotonic() < end, f"the shadow does not go on: {host.standing()}"
        time.sleep(0.001)
