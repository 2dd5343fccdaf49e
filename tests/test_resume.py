"""Ctrl-C in every stage, then `--resume`: real processes, real signals."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import psutil
import pytest

from edgekit.bundle import Bundle
from edgekit.progress import STAGES
from support.shrinking import saved
from support.tiny_runs import QUICK, compress, folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="SIGINT is sent to another process, which Windows cannot"),
]

TIMEOUT_S = 240
# Stages that run only when they are asked for.
TRAINED = ("prune", "train", "qat")
ASKED = ("--prune", "0.5", "--epochs", "1", "--qat", "--max-drop", "1")


def command(out: Path, *more: str, files: Path | None = None) -> list[str]:
    model, data = (files or folder()) / "model.pt2", (files or folder()) / "data.npz"
    options = ["--data", str(data), "-o", str(out), *QUICK, *more]
    return [sys.executable, "-m", "edgekit.cli", "compress", str(model), *options]


def hashes(out: Path) -> dict[str, str]:
    """Of every file but the report, which holds times."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.iterdir())
        if "report" not in p.name
    }


@cache
def undisturbed() -> dict[str, str]:
    out = folder() / "undisturbed"
    result = compress(folder() / "model.pt2", "--data", folder() / "data.npz", "-o", out)
    assert result.exit_code == 0, result.stderr
    return hashes(out)


def start(out: Path, *more: str, files: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(out, *more, files=files),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def until(process: subprocess.Popen[str], stage: str) -> Iterator[str]:
    """The lines of stderr up to the one that names the stage."""
    assert process.stderr is not None
    for line in process.stderr:
        yield line
        if line.split()[-1:] == [stage]:
            return
    pytest.fail(f"ended before {stage}")


def workers(root: Path) -> list[psutil.Process]:
    """Converters that work below a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "edgekit.worker" in line and any(str(root) in part for part in line):
            found.append(process)
    return found


def interrupt_in(
    stage: str, out: Path, *more: str, whole_group: bool = True, files: Path | None = None
) -> tuple[int, str]:
    """Exit code and stderr of a run that got SIGINT in a stage."""
    process = start(out, *more, files=files)
    try:
        lines = list(until(process, stage))
        if stage == "lower":
            deadline = time.monotonic() + 30
            while not workers(out.parent) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert workers(out.parent)
        if whole_group:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        stdout, rest = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert stdout == ""
    return process.returncode, "".join(lines) + rest


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in TRAINED])
def test_ctrl_c_in_a_stage_then_resume_gives_the_bundle_of_an_undisturbed_run(
    tmp_path: Path, stage: str
) -> None:
    out = tmp_path / "out"
    # A terminal sends the signal to the whole group; a supervisor sends it to the one process.
    code, said = interrupt_in(stage, out, whole_group=stage != "lower")
    assert code == 130, said
    assert "interrupted" in said
    assert "--resume" in said
    assert "Traceback" not in said
    assert not workers(tmp_path)
    assert not list(tmp_path.glob("*.partial"))
    if out.exists():  # the signal may come right after the last rename
        Bundle.open(out)

    again = subprocess.run(
        command(out, "--resume"), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert again.returncode == 0, again.stderr
    assert hashes(out) == undisturbed()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_in_every_stage_of_training_then_resume_gives_the_bundle_of_an_undisturbed_run(
    tmp_path: Path,
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    saved(files)
    whole, out = tmp_path / "whole", tmp_path / "out"
    for made, *more in ((whole, *ASKED), (out, *ASKED, "--resume")):
        for stage in TRAINED if made is out else ():
            code, said = interrupt_in(stage, made, *more, files=files)
            assert code == 130, said
            assert "--resume" in said
            assert "Traceback" not in said
            assert not made.exists()
        done = subprocess.run(
            command(made, *more, files=files), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
    assert hashes(out) == hashes(whole)
    assert not list(tmp_path.glob(".*"))


def written(out: Path) -> dict[Path, int]:
    """When each file of a finished stage was written."""
    stages = [marker.parent for marker in out.parent.glob(f".{out.name}.edgekit/*/done.json")]
    return {p: p.stat().st_mtime_ns for stage in stages for p in stage.rglob("*")}


def test_resume_takes_finished_stages_as_they_are(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert interrupt_in("prove", out)[0] == 130
    before = written(out)
    assert {p.name for p in before} >= {"model.onnx", "float.onnx", "done.json"}
    assert interrupt_in("evaluate", out, "--resume")[0] == 130
    assert written(out) == before


def test_without_resume_everything_is_made_anew(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert interrupt_in("lower", out)[0] == 130
    before = written(out)
    assert before
    assert interrupt_in("lower", out)[0] == 130
    assert all(before[p] < when for p, when in written(out).items())


def test_resume_with_another_option_does_not_take_what_it_does_not_fit(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert interrupt_in("lower", out)[0] == 130
    before = written(out)
    assert interrupt_in("lower", out, "--resume", "--seed", "7")[0] == 130
    folders = {p.parent.name for p in written(out)} - {p.parent.name for p in before}
    assert [name.split("-")[0] for name in folders] == ["quantize"]


def test_resume_makes_anew_what_another_state_of_the_sources_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert interrupt_in("lower", out)[0] == 130
    (marker,) = tmp_path.glob(".out.edgekit/quantize-*/done.json")
    facts = json.loads(marker.read_text(encoding="utf-8"))
    del facts["kept"]
    marker.write_text(json.dumps(facts), encoding="utf-8")
    result = compress(folder() / "model.pt2", "--data", folder() / "data.npz", "-o", out, "--resume")
    assert result.exit_code == 0, result.stderr
    assert hashes(out) == undisturbed()


def test_resume_with_nothing_to_resume_just_runs(tmp_path: Path) -> None:
    result = compress(
        folder() / "model.pt2", "--data", folder() / "data.npz", "-o", tmp_path / "out", "--resume"
    )
    assert result.exit_code == 0, result.stderr
    assert hashes(tmp_path / "out") == undisturbed()
