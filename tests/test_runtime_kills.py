"""SIGKILL at random moments of updates, while another process serves from the same store."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit_runtime import Runtime
from edgekit_runtime.bundle import Bundle
from edgekit_runtime.events import MarkedGood
from edgekit_runtime.manager import Manager
from edgekit_runtime.state import IDLE, PROBATION, SHADOW
from edgekit_runtime.store import Store
from support.adders import WIDTH, adder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")]

# More by EDGEKIT_KILLS=300 in the environment.
KILLS = int(os.environ.get("EDGEKIT_KILLS", "25"))
# An update of this size takes some tens of milliseconds.
LONGEST_S = 0.25


def write(folder: Path, constant: float) -> Path:
    folder.mkdir()
    for name, data in adder(constant, weight_bytes=1 << 20).content.items():
        (folder / name).write_bytes(data)
    return folder


def manager_of(store: Store, bundles: list[Bundle]) -> Manager:
    known = {bundle.release().id: bundle for bundle in bundles}
    return Manager(
        store, fetch=lambda r: store.add_release(known[r].release(), known[r].read), stage=lambda _: None
    )


def test_whatever_is_killed_a_good_version_serves_and_the_next_process_goes_on(tmp_path: Path) -> None:
    folders = [write(tmp_path / f"bundle-{k}", float(k)) for k in (1, 2, 3)]
    bundles = [Bundle.open(folder) for folder in folders]
    store = Store(tmp_path / "store")
    store.make()
    first = bundles[0].release().id
    manager = manager_of(store, bundles)
    manager.install(first)
    manager.tell(MarkedGood(first))
    manager.go_on()

    wrong: list[Any] = []
    answers: set[float] = set()
    stop = threading.Event()
    chance = random.Random(int.from_bytes(os.urandom(4)))
    command = [sys.executable, "-m", "support.driver", str(store.path), *map(str, folders)]
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with Runtime(store.path, poll_s=0.02) as runtime:

        def load() -> None:
            while not stop.is_set():
                try:
                    found = runtime.predict(np.zeros((4, WIDTH), np.float32))
                except Exception as error:  # noqa: BLE001 - whatever it is, it must not be
                    wrong.append(error)
                    return
                answers.update(np.unique(found).tolist())
                if len(np.unique(found)) != 1:
                    wrong.append(found)
                time.sleep(0.002)

        thread = threading.Thread(target=load)
        thread.start()
        phases = []
        for _ in range(KILLS):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=where)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, LONGEST_S))
            process.kill()
            assert process.wait() == -9, "the driver stopped by itself"
            process.stdout.close()
            state = store.state()
            phases.append(state.phase)
            for slot in (state.live, state.last_good):
                if slot is not None:
                    store.check(store.release(slot))
            assert state.live is not None
            assert manager.go_on().phase in {IDLE, SHADOW, PROBATION}
        stop.set()
        thread.join()
    assert wrong == []
    assert answers <= {1.0, 2.0, 3.0}
    assert len(answers) > 1, phases
