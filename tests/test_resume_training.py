"""The whole command with pruning and training, killed (SIGKILL) at random moments, then `--resume`: the same bytes."""

import os
import random
from pathlib import Path

import pytest
from benchmarks.killed import Subject, hashes, kill, run, save

from support.shrinking import Residual, samples
from support.tiny_training import seeded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's"),
]

KILLS = 5
RECIPE = "[train]\nbatch_size = 16\n[prune]\nmultiple = 8\n"


def subject(folder: Path) -> Subject:
    # Which rung a file takes where INT8 is slower than float hangs on the clock; the arithmetic is tested here.
    options = ("--prune", "0.4", "--epochs", "2", "--preset", "fast", "--format", "onnx", "--allow-slower")
    return save("tiny", folder, seeded(Residual), samples(), *options, "--max-drop", "1", recipe=RECIPE)


def test_a_command_that_is_killed_again_and_again_ends_with_the_files_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    tiny = subject(tmp_path)
    run(tiny, tmp_path / "first")  # times the layers; the table is kept on the machine
    seconds = run(tiny, tmp_path / "whole")
    expected = hashes(tmp_path / "whole")
    assert {"model.onnx", "golden.npz", "manifest.json"} <= set(expected)

    moments, hits = random.Random(int.from_bytes(os.urandom(4))), []
    while len(hits) < KILLS:
        # Each goes on where the one before was hit; most of the work is done by and by, so later moments come sooner.
        hit = kill(tiny, tmp_path / "out", moments.uniform(0.3, 0.8) * seconds, "--resume")
        hits.append(hit)
        if hit.finished:
            break
    assert not hits[0].finished, hits
    run(tiny, tmp_path / "out", "--resume")
    assert hashes(tmp_path / "out") == expected, hits
    assert not list(tmp_path.glob(".out*")), hits
