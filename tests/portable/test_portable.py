"""What has to hold on every machine that edgekit-runtime runs on, with numpy, tuf, pytest and a backend alone.

`scripts/arm64` runs this in an emulated Debian for arm64, `scripts/tflite-runtime` beside tflite_runtime 2.14 and
numpy 1. Nothing here may import the workbench or the helpers of the other tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit_runtime import DeviceError, Model, Runtime, Shadow
from edgekit_runtime.backends import BACKENDS, Settings, installed
from edgekit_runtime.bundle import Bundle
from edgekit_runtime.cli import main
from edgekit_runtime.contract import File, Release
from edgekit_runtime.errors import ArtifactError, InputError
from edgekit_runtime.manager import Manager
from edgekit_runtime.spool import Spool
from edgekit_runtime.state import IDLE, PROBATION, SHADOW
from edgekit_runtime.store import Store
from edgekit_runtime.trial import stage
from edgekit_runtime.windows import Window

PATIENCE_S = 600
CASES = [
    ("first", "onnx"),
    ("first", "tflite"),
    ("second", "onnx"),
    ("second", "tflite"),
    ("integer-ends", "tflite"),
]
FORMATS = [name for name in ("tflite", "onnx") if installed(name)]


def need(format: str) -> None:
    if not installed(format):
        pytest.skip(f"none of {', '.join(BACKENDS[format].distributions)} is installed here")


def known(made: Path, name: str, format: str) -> tuple[Any, Any, float]:
    """Inputs, what the workbench reads for them, and how far a chip may be from that."""
    with np.load(made / f"{name}.{format}.npz", allow_pickle=False) as file:
        x, y = file["x"], file["y"]
    manifest = Bundle.open(made / name).manifest
    artifact = manifest.artifact(format)
    assert artifact is not None
    (grid,) = artifact.output_grids
    with np.load(made / name / artifact.golden, allow_pickle=False) as golden:
        # Of a file with float ends, the step is that of its last integers.
        step = grid.scale if grid is not None else float(golden["step"][0])
        return x, y, 1.001 * step * float(golden["tolerance_steps"][0])


@pytest.mark.parametrize(("name", "format"), CASES)
def test_predictions_are_those_of_the_workbench(made: Path, name: str, format: str) -> None:
    need(format)
    x, y, apart = known(made, name, format)
    model = Model.load(made / name, format=format)
    np.testing.assert_allclose(model.predict_batch(x), y, rtol=0, atol=apart)
    np.testing.assert_allclose(model.predict(x[0]), y[0], rtol=0, atol=apart)
    np.testing.assert_allclose(model.predict({model.info.inputs[0].name: x[:1]}), y[:1], rtol=0, atol=apart)


@pytest.mark.parametrize(("name", "format"), CASES)
def test_the_known_answers_are_right_on_this_chip(made: Path, name: str, format: str) -> None:
    need(format)
    tested = Model.load(made / name, format=format).self_test()
    assert tested.ok
    assert tested.n > 1
    assert tested.worst_steps <= tested.allowed_steps


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_calls_from_several_threads_do_not_mix(made: Path, format: str) -> None:
    need(format)
    x, y, apart = known(made, "first", format)
    model, right = Model.load(made / "first", format=format), []

    def calls(row: int) -> None:
        found = [model.predict(x[row : row + 1]) for _ in range(50)]
        right.append(np.allclose(found, [y[row : row + 1]] * 50, rtol=0, atol=apart))

    threads = [threading.Thread(target=calls, args=(row,)) for row in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert right == [True] * 4


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_plain_file_runs_and_an_answer_may_be_kept(made: Path, format: str) -> None:
    need(format)
    x, y, apart = known(made, "first", format)
    artifact = Bundle.open(made / "first").manifest.artifact(format)
    assert artifact is not None
    model = Model.load(made / "first" / artifact.file, settings=Settings(threads=2))
    first = model.predict(x[:1])
    before = first.copy()
    model.predict(x[1:2])
    assert np.array_equal(first, before)
    np.testing.assert_allclose(first, y[:1], rtol=0, atol=apart)


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_what_does_not_fit_or_is_damaged_is_said(made: Path, format: str, tmp_path: Path) -> None:
    need(format)
    model = Model.load(made / "first", format=format)
    for x in (np.zeros((1, 3, 8, 9), np.float32), np.zeros((1, 3, 8, 8), np.complex64), {"no": np.zeros(1)}):
        with pytest.raises(InputError):
            model.predict(x)
    artifact = Bundle.open(made / "first").manifest.artifact(format)
    assert artifact is not None
    whole = (made / "first" / artifact.file).read_bytes()
    for content in (b"", whole[:64], b"\x00" * 64, whole[: len(whole) // 2]):
        (tmp_path / artifact.file).write_bytes(content)
        # A file that is cut off may bring a backend down: `install` tries it in a process of its own.
        done = subprocess.run(
            [sys.executable, "-m", "edgekit_runtime.cli", "run", str(tmp_path / artifact.file), "x.npy"],
            capture_output=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode != 0


# Versions


def device(tmp_path: Path, made: Path) -> tuple[Store, Manager, dict[str, str]]:
    """A store that is driven by the real trial, and the ids of the releases by their names."""
    bundles = {name: Bundle.open(made / name) for name in ("first", "second")}
    releases = {bundle.release().id: bundle for bundle in bundles.values()}
    store = Store(tmp_path / "store")
    store.make()

    def fetch(release: str) -> None:
        store.add_release(releases[release].release(), releases[release].read)

    manager = Manager(store, fetch=fetch, stage=stage(store))
    return store, manager, {name: bundle.release().id for name, bundle in bundles.items()}


def test_versions_come_and_go_by_the_command_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str) -> tuple[int, dict[str, Any]]:
        code = main(["--store", str(tmp_path / "store"), "--json", *words])
        return code, json.loads(capsys.readouterr().out)

    assert call("install", str(made / "first"))[0] == 0
    code, answer = call("activate", "--good")
    assert (code, answer["phase"]) == (0, IDLE)
    first = answer["live"]
    code, answer = call("install", str(made / "second"))
    assert (code, answer["phase"], answer["last_good"]) == (0, PROBATION, first)
    code, answer = call("rollback")
    assert (code, answer["live"]) == (0, first)
    assert call("install", str(made / "second"))[1]["error"] == "failed_before"
    assert call("gc")[0] == call("doctor")[0] == 0


def test_a_release_that_lies_is_refused_by_its_known_answers(made: Path, tmp_path: Path) -> None:
    store, manager, names = device(tmp_path, made)
    manager.install(names["first"])
    liar = Bundle.open(made / "second")
    golden = Bundle.open(made / "first")
    content = {path: b"".join(liar.read(path)) for path in liar.release().files}
    kept = {name for name in content if name.startswith("golden")}
    for name in kept:
        content[name] = b"".join(golden.read(name))
    files = {path: File(hashlib.sha256(data).hexdigest(), len(data)) for path, data in content.items()}
    release = Release(liar.manifest.name, "6.6.6", files)
    store.add_release(release, lambda path: (content[path],))
    with pytest.raises(ArtifactError) as caught:
        stage(store)(release.id)
    assert caught.value.code == "golden"


@pytest.mark.parametrize("format", FORMATS)
def test_predictions_go_on_while_versions_change(made: Path, tmp_path: Path, format: str) -> None:
    _, manager, names = device(tmp_path, made)
    wanted = {name: known(made, name, format) for name in names}
    x = wanted["first"][0][:1]
    manager.install(names["first"])
    failed: list[str] = []
    stop = threading.Event()
    with Runtime(tmp_path / "store", poll_s=3600, format=format) as runtime:
        runtime.mark_good()
        manager.go_on()

        def load() -> None:
            while not stop.is_set():
                y = runtime.predict(x)
                if not any(np.allclose(y, each[1][:1], rtol=0, atol=each[2]) for each in wanted.values()):
                    failed.append(str(y))

        threads = [threading.Thread(target=load) for _ in range(2)]
        for each in threads:
            each.start()
        try:
            for name in ("second", "first", "second"):
                manager.install(names[name], forced=True)
                assert runtime.look()
                assert runtime.release == names[name]
                assert runtime.mark_good()
                manager.go_on()
        finally:
            stop.set()
            for each in threads:
                each.join()
    assert failed == []


def test_a_candidate_is_compared_in_the_shadow(made: Path, tmp_path: Path) -> None:
    store, manager, names = device(tmp_path, made)
    manager.install(names["first"])
    budget = Shadow(rate=1.0, cpu_share=4.0, only_idle=False, memory_bytes=4 << 30)
    with Runtime(store.path, poll_s=3600, shadow=budget) as runtime:
        runtime.mark_good()
        manager.go_on()
        assert manager.install(names["second"], shadow=True).phase == SHADOW
        x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
        end = time.monotonic() + PATIENCE_S
        while (runtime.shadow is None or runtime.shadow.compared < 5) and time.monotonic() < end:
            runtime.predict(x)
            runtime.look()
            time.sleep(0.01)
    spool = Spool(store.spool, max_bytes=1 << 20)
    windows = [Window.from_json(spool.read(entry)) for entry in spool]
    assert sum(window.figures.counts.compared for window in windows) >= 5
    assert {window.candidate for window in windows} == {names["second"]}


def test_a_process_that_is_killed_leaves_a_store_that_serves(made: Path, tmp_path: Path) -> None:
    store, manager, names = device(tmp_path, made)
    manager.install(names["first"])
    program = (
        "import sys; from edgekit_runtime.cli import main\n"
        "while True:\n"
        " for bundle in sys.argv[2:]: main(['--store', sys.argv[1], 'install', '--forced', bundle])\n"
        " main(['--store', sys.argv[1], 'activate', '--good'])\n"
    )
    command = [sys.executable, "-c", program, str(store.path), str(made / "second"), str(made / "first")]
    for number in range(5):
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            time.sleep(0.4 * (number + 1))
            os.killpg(process.pid, signal.SIGKILL)
        manager.go_on()
        with Runtime(store.path, poll_s=3600) as runtime:
            assert runtime.release in names.values()
            assert Model.load(made / "first").self_test().ok


def test_a_backend_that_is_not_here_is_named_with_what_brings_it(made: Path) -> None:
    missing = [name for name in ("onnx", "tflite", "coreml") if not installed(name)]
    for name in missing:
        if name in {each.format for each in Bundle.open(made / "first").manifest.artifacts}:
            with pytest.raises(DeviceError) as caught:
                Model.load(made / "first", format=name)
            assert f"edgekit-runtime[{name}]" in caught.value.way_out
