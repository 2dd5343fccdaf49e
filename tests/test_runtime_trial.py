"""STAGE: a release is loaded, held against known answers and timed on this device; what is refused has a code."""

from __future__ import annotations

import hashlib
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgekit_runtime.trial as module
from edgekit.bundle import read_golden, write_golden
from edgekit_runtime.bundle import Bundle
from edgekit_runtime.contract import Compatibility, Manifest
from edgekit_runtime.errors import ArtifactError, BackendError, DeviceError
from edgekit_runtime.events import MarkedGood
from edgekit_runtime.manager import Manager
from edgekit_runtime.state import IDLE, PROBATION
from edgekit_runtime.store import Store
from edgekit_runtime.trial import check_latency, check_memory, check_versions, stage, try_out
from support.tiny_runs import bundle

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.make()
    return made


def take_in(store: Store, path: Path) -> str:
    opened = Bundle.open(path)
    release = opened.release()
    store.add_release(release, opened.read)
    return release.id


def with_file(tmp_path: Path, name: str, content: bytes) -> Path:
    """A copy of the bundle with another file, which its manifest vouches for."""
    copy = shutil.copytree(bundle(), tmp_path / "changed")
    (copy / name).write_bytes(content)
    manifest = Manifest.from_json((copy / "manifest.json").read_bytes())
    artifacts = tuple(
        replace(a, sha256=hashlib.sha256(content).hexdigest(), size_bytes=max(1, len(content)))
        if a.file == name
        else a
        for a in manifest.artifacts
    )
    (copy / "manifest.json").write_text(replace(manifest, artifacts=artifacts).to_json(), encoding="utf-8")
    return copy


def test_a_whole_release_passes_with_figures(store: Store) -> None:
    release = take_in(store, bundle())
    figures = try_out(store.path, release)
    assert figures["format"] == "tflite"
    assert set(figures["formats"]) >= {"onnx", "tflite"}
    assert figures["worst_steps"] <= 2
    assert 0 < figures["latency_ms"] < 1000
    assert figures["peak_bytes"] > 1 << 20
    stage(store)(release)


def test_answers_that_are_off_are_refused_and_what_serves_goes_on(store: Store, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle(), tmp_path / "copy")
    known = read_golden(copy / "golden.npz")
    outputs = tuple(y - 5 * step for y, step in zip(known.outputs, known.step, strict=True))
    write_golden(copy, type(known)(known.inputs, outputs, known.step, known.tolerance_steps))
    sources = {Bundle.open(path).release().id: Bundle.open(path) for path in (bundle(), copy)}
    good, bad = sources
    said: list[DeviceError] = []

    def fetch(release: str) -> None:
        store.add_release(sources[release].release(), sources[release].read)

    manager = Manager(store, fetch=fetch, stage=stage(store), told=said.append)
    assert manager.install(good).phase == PROBATION
    manager.tell(MarkedGood(good))
    state = manager.install(bad)
    assert (state.phase, state.live, state.failed) == (IDLE, good, {bad: "golden"})
    assert "5 steps off" in str(said[0])


DAMAGE = {
    "header only": lambda b: b[:8],
    "half": lambda b: b[: len(b) // 2],
    "zeros after the header": lambda b: b[:8] + bytes(len(b) - 8),
    "noise after the header": lambda b: b[:8] + random.Random(1).randbytes(len(b) - 8),
    "another format": lambda _: (bundle() / "model.onnx").read_bytes(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_no_backend_takes_is_refused_whatever_it_does_to_the_process(
    store: Store, tmp_path: Path, damage: str
) -> None:
    content = DAMAGE[damage]((bundle() / "model.tflite").read_bytes())
    release = take_in(store, with_file(tmp_path, "model.tflite", content))
    with pytest.raises(ArtifactError) as caught:
        stage(store)(release)
    assert caught.value.code in {"load", "trial_crashed", "golden", "ends"}


def test_a_trial_that_does_not_end_is_ended(store: Store) -> None:
    release = take_in(store, bundle())
    with pytest.raises(ArtifactError, match="did not end within") as caught:
        stage(store, timeout_s=0.05)(release)
    assert caught.value.code == "trial_hung"


def test_a_model_that_would_not_fit_into_memory_is_not_loaded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = take_in(store, bundle())
    monkeypatch.setattr(module, "_available_bytes", lambda: 1 << 20)
    with pytest.raises(BackendError, match="of memory") as caught:
        stage(store)(release)
    assert caught.value.code == "no_memory"
    manifest = store.manifest(store.release(release))
    check_memory(manifest, None)
    check_memory(manifest, 1 << 40)


def asking(**minimum: str) -> Manifest:
    manifest = Manifest.from_json((bundle() / "manifest.json").read_bytes())
    return replace(manifest, compatibility=Compatibility(18, minimum))


@pytest.mark.parametrize(
    ("here", "minimum", "old"),
    [
        ({"onnxruntime": "1.20.1"}, {"onnx": "1.20.0"}, False),
        ({"onnxruntime": "1.9.0"}, {"onnx": "1.17.0"}, True),
        ({"onnxruntime": "1.20.0+cpu"}, {"onnx": "1.20.0"}, False),
        ({"tflite-runtime": "2.13.0"}, {"tflite": "2.14.0"}, True),
        ({"tflite-runtime": "2.14.0"}, {"tflite": "2.14.0"}, False),
        ({"ai-edge-litert": "1.0.1"}, {"tflite": "2.17.0"}, False),
        ({"onnxruntime": "1.9.0", "tflite-runtime": "2.14.0"}, {"onnx": "1.17.0", "tflite": "2.14.0"}, False),
        ({"onnxruntime": "1.9.0"}, {}, False),
        ({}, {"onnx": "1.17.0"}, False),
    ],
)
def test_a_backend_that_is_too_old_is_told_from_one_that_will_do(
    here: dict[str, str],
    minimum: dict[str, str],
    old: bool,
) -> None:
    if old:
        with pytest.raises(BackendError, match="is older than") as caught:
            check_versions(asking(**minimum), here.get)
        assert caught.value.code == "old_runtime"
    else:
        check_versions(asking(**minimum), here.get)


def test_what_a_device_lacks_today_does_not_condemn_the_release(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(bundle())

    def fetch(_: str) -> None:
        store.add_release(opened.release(), opened.read)

    monkeypatch.setattr(module, "_available_bytes", lambda: 1)
    manager = Manager(store, fetch=fetch, stage=stage(store))
    state = manager.install(opened.release().id)
    assert (state.phase, state.failed, state.reports[-1].reason) == (IDLE, {}, "no_memory")


def limited(milliseconds: float | None) -> Manifest:
    manifest = Manifest.from_json((bundle() / "manifest.json").read_bytes())
    return replace(manifest, compatibility=Compatibility(max_latency_ms=milliseconds))


def test_a_version_that_is_too_slow_on_this_chip_is_refused(store: Store, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle(), tmp_path / "copy")
    (copy / "manifest.json").write_text(limited(1e-6).to_json(), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"takes .* ms here") as caught:
        stage(store)(take_in(store, copy))
    assert caught.value.code == "latency"


@pytest.mark.parametrize(
    ("limit", "medians", "best"),
    [
        (None, [9.0], 9.0),
        (10.0, [9.0], 9.0),
        (10.0, [30.0, 10.0], 10.0),
        (10.0, [30.0, 20.0, 9.5], 9.5),
        (10.0, [30.0, 20.0, 10.5], None),
        (10.0, [float("inf")] * 3, None),
    ],
)
def test_a_device_that_was_busy_is_timed_again_before_it_refuses(
    limit: float | None, medians: list[float], best: float | None
) -> None:
    left = iter(medians)
    if best is None:
        with pytest.raises(ArtifactError, match="at most the 10 ms"):
            check_latency(limited(limit), lambda: next(left))
    else:
        assert check_latency(limited(limit), lambda: next(left)) == best
    assert next(left, None) is None, "no more often than it has to"


GOLDEN_LIES: dict[str, Any] = {
    "no archive": lambda _: b"hello",
    "empty": lambda _: b"",
    "torn": lambda b: b[: len(b) // 2],
}


@pytest.mark.parametrize("lie", GOLDEN_LIES)
def test_known_answers_that_cannot_be_read_are_refused(store: Store, tmp_path: Path, lie: str) -> None:
    copy = shutil.copytree(bundle(), tmp_path / "copy")
    path = copy / "golden.npz"
    path.write_bytes(GOLDEN_LIES[lie](path.read_bytes()))
    with pytest.raises(ArtifactError) as caught:
        try_out(store.path, take_in(store, copy))
    assert caught.value.code == "golden_file"


def test_an_archive_that_unpacks_to_more_than_it_may_is_not_unpacked(store: Store, tmp_path: Path) -> None:
    import zipfile

    copy = shutil.copytree(bundle(), tmp_path / "copy")
    with zipfile.ZipFile(copy / "golden.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("input_0.npy", bytes(300 << 20))
    with pytest.raises(ArtifactError, match="arrays of") as caught:
        try_out(store.path, take_in(store, copy))
    assert caught.value.code == "golden_file"
