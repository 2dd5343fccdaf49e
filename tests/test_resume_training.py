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

KILLS = 4
# What is left after the last of them takes seconds.
STAGES = ("data", "prune", "train", "quantize", "lower")
RECIPE = "[train]\nbatch_size = 16\n[prune]\nmultiple = 8\n"


def subject(folder: Path) -> Subject:
    # Which rung a file takes where INT8 is slower than float hangs on the clock; the arithmetic is tested here.
    options = ("--prune", "0.4", "--epochs", "2", "--preset", "fast", "--format", "onnx", "--allow-slower")
    return save("tiny", folder, seeded(Residual), samples(), *options, "--max-drop", "1", recipe=RECIPE)


def test_a_command_that_is_killed_again_and_again_ends_with_the_files_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    tiny = subject(tmp_path)
    run(tiny, tmp_path / "whole")  # times the layers, too; the table is kept on the machine
    expected = hashes(tmp_path / "whole")
    assert {"model.onnx", "golden.npz", "manifest.json"} <= set(expected)

    chance, hits = random.Random(int.from_bytes(os.urandom(4))), []
    # Each goes on where the one before was hit, and gets as far or farther.
    for stage in sorted(chance.choices(STAGES, k=KILLS), key=STAGES.index):
        hits.append(kill(tiny, tmp_path / "out", chance.uniform(0, 0.6), "--resume", stage=stage))
        assert not hits[-1].finished, hits
    run(tiny, tmp_path / "out", "--resume")
    assert hashes(tmp_path / "out") == expected, hits
    assert not list(tmp_path.glob(".out*")), hits
