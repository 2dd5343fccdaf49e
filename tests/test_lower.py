"""Converters in processes of their own: what one does harms neither the others nor the caller."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import edgekit.lower as module
from cleanup_programs import program_of
from edgekit.lower import Job, lower
from edgekit.stages.quantize.apply import convert
from edgekit_converters.program import Program
from edgekit_converters.store import save_program
from quantized_programs import calibrated, program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def original() -> Program:
    conv = nn.Conv2d(3, 8, 3)
    return program(lambda x, conv: torch.relu(conv(x)), conv, shape=(3, 8, 8))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, original: Program) -> Path:
    path = tmp_path_factory.mktemp("programs") / "größe.pt2"
    save_program(convert(calibrated(original)), path)
    return path


def test_a_broken_job_is_an_error_and_its_neighbour_is_written(
    tmp_path: Path, archive: Path, original: Program
) -> None:
    (tmp_path / "torn.pt2").write_bytes(archive.read_bytes()[:500])
    good, bad = tmp_path / "model.onnx", tmp_path / "model.tflite"
    jobs = [Job("tflite", ((tmp_path / "torn.pt2", bad),)), Job("onnx", ((archive, good),))]
    failed = lower(jobs, original=original)
    assert set(failed) == {bad}
    assert failed[bad].format == "tflite"
    assert "process died" in str(failed[bad])
    assert "edgekit doctor" in failed[bad].way_out
    assert good.stat().st_size > 500
    # Job files, results and logs are gone.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "torn.pt2"]


def test_an_op_without_a_form_is_named_by_the_users_line_and_the_other_file_is_made(
    tmp_path: Path, archive: Path
) -> None:
    class Inverse(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.erfinv(torch.tanh(x) * 0.5)

    source = program_of(Inverse(), (torch.randn(1, 4),))
    save_program(source, tmp_path / "inverse.pt2")
    bad, good = tmp_path / "bad.onnx", tmp_path / "good.onnx"
    failed = lower([Job("onnx", ((tmp_path / "inverse.pt2", bad), (archive, good)))], original=source)
    assert set(failed) == {bad}
    assert failed[bad].op == "aten.erfinv"
    assert "test_lower.py:" in failed[bad].where
    assert good.exists()


def test_a_converter_that_hangs_is_ended(
    tmp_path: Path, archive: Path, original: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    out = tmp_path / "model.onnx"
    failed = lower([Job("onnx", ((archive, out),))], original=original)
    assert "process died" in str(failed[out])


def test_an_interrupt_ends_the_workers(tmp_path: Path, archive: Path, original: Program) -> None:
    def children() -> list[psutil.Process]:
        return [
            c for c in psutil.Process().children() if any("edgekit.worker" in part for part in c.cmdline())
        ]

    def interrupt() -> None:
        deadline = time.monotonic() + 20
        while not children() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), 2)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        lower([Job("onnx", ((archive, tmp_path / "model.onnx"),))], original=original)
    thread.join()
    assert children() == []


def test_an_interrupt_while_a_worker_starts_ends_that_worker(
    tmp_path: Path, archive: Path, original: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = subprocess.Popen, []

    def interrupted(*args: Any, **options: Any) -> Any:
        started.append(start(*args, **options))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(module.subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lower([Job("onnx", ((archive, tmp_path / "model.onnx"),))], original=original)
    assert [worker.returncode for worker in started] == [-signal.SIGKILL]


def test_nothing_to_do_is_nothing_done(original: Program) -> None:
    assert lower([], original=original) == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_no_room_is_an_error_of_the_system(
    tmp_path: Path, archive: Path, original: Program, name: str
) -> None:
    out = tmp_path / f"model.{name}"
    out.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        lower([Job(name, ((archive, out),))], original=original)
    assert caught.value.filename == str(tmp_path)
