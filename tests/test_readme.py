"""The README shows nothing that was not run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import demo_digits

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Whether INT8 beats float on a network of microseconds is up to the machine; the files are written anyway.
ACCEPTED, MISSED = 0, 3


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every line of the shell blocks, without its comment."""
    return [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]


def shown(program: str) -> list[list[str]]:
    return [command for command in commands() if command[0] == program]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trained model and its data under the names that the README uses."""
    data = demo_digits.data()
    # Each pixel nine times: on images of 8 × 8 operators take as long however many channels they have.
    data |= {name: data[name].repeat(3, axis=2).repeat(3, axis=3) for name in ("train_x", "eval_x")}
    model = demo_digits.train(data["train_x"], data["train_y"], epochs=4)
    example = (torch.from_numpy(data["eval_x"][:2]),)
    batch = {0: torch.export.Dim("batch", min=1)}
    torch.export.save(
        torch.export.export(model, example, dynamic_shapes=(batch,)),
        tmp_path / "model.pt",  # the README's name; it is told apart by its content
    )
    np.savez(tmp_path / "data.npz", x=data["eval_x"][:300], y=data["eval_y"][:300])
    return tmp_path


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PATH": path},
    )


def test_every_command_shown_is_one_that_a_test_runs() -> None:
    assert {command[0] for command in commands()} == {"make", "pip", "edgekit"}
    assert len(shown("edgekit")) >= 7


@pytest.mark.parametrize("target", [command[1] for command in shown("make")])
def test_make_knows_every_target_shown(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_the_pip_line_is_the_one_that_make_runs() -> None:
    (line,) = shown("pip")
    recipes = [
        shlex.split(row) for row in (ROOT / "Makefile").read_text().splitlines() if " pip install" in row
    ]

    assert [row[row.index("-c") :] for row in recipes] == [line[line.index("-c") :]]


@pytest.mark.slow
def test_the_commands_of_the_quick_start_do_what_is_said(folder: Path) -> None:
    for command in shown("edgekit"):
        done = run(command, folder)

        allowed = {ACCEPTED, MISSED} if command[1] == "compress" else {ACCEPTED}
        assert done.returncode in allowed, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    assert (folder / "first" / "model.mlpackage").is_dir()
    assert {p.name for p in (folder / "second").glob("model.*")} == {"model.onnx", "model.tflite"}


@pytest.mark.slow
def test_the_python_of_the_quick_start_writes_its_bundle(folder: Path) -> None:
    (code,) = blocks("python")

    done = run([sys.executable, "-W", "ignore", "-c", code], folder)

    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("third/report.html")
    assert (folder / "third" / "report.html").is_file()


def test_the_picture_is_small_and_there() -> None:
    (picture,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    content = (ROOT / picture).read_bytes()

    assert content.startswith(b"\x89PNG\r\n")
    assert len(content) <= 300_000
