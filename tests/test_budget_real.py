"""Budgets on a network that was trained here, by the command line: what can hold does, else what binds is named.

The limits are shares of what the unpruned INT8 file takes, so that they mean the same on every machine.
"""

import atexit
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import Result

from edgekit.bench import interleave, runner
from edgekit.bundle import Bundle, digest
from edgekit_converters.predict import SavedModel, open_saved
from support.digits import digits
from support.tiny_runs import call, save_program
from support.tiny_training import seeded

pytest.importorskip("optuna")
pytestmark = pytest.mark.slow

SIDE = 16
EPOCHS, BATCH = 3, 64
RECIPE = "[train]\nepochs = 2\nbatch_size = 64\n[prune]\nimportance = 'magnitude'\n[search]\ntrials = {}\n"
# What two measurements of one file on a busy machine may differ by.
SLACK = 1.5


def larger(x: np.ndarray) -> np.ndarray:
    """Images of twice the size, so that the time of a layer is in its arithmetic."""
    return x.repeat(2, 2).repeat(2, 3)


def trained() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    x, y = torch.from_numpy(larger(digits()[0])), torch.from_numpy(digits()[1])
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


@dataclass(frozen=True)
class Subject:
    """Files of the model and its data, and what its unpruned INT8 file takes."""

    folder: Path
    size_mb: float
    latency_ms: float


@cache
def subject() -> Subject:
    folder = Path(tempfile.mkdtemp(prefix="edgekit-budget-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    x, y, eval_x, eval_y = digits()
    np.savez(folder / "data.npz", train_x=larger(x), train_y=y, eval_x=larger(eval_x), eval_y=eval_y)
    save_program(folder / "model.pt2", seeded(trained), 1, SIDE, SIDE)
    result = compress(folder, "--max-drop", "0.02")
    assert result.exit_code == 0, result.stderr
    found = Bundle.open(folder / "out").report["artifacts"]["onnx"]
    return Subject(folder, found["size_bytes"] / 1e6, found["latency_ms"]["p50"])


def compress(folder: Path, *limits: str, trials: int = 6) -> Result:
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(trials))
    model, data, out = folder / "model.pt2", folder / "data.npz", folder / "out"
    options = ("--preset", "fast", "--format", "onnx", "--allow-slower", "--recipe", recipe, "-o", out)
    return call("compress", model, "--data", data, *options, *limits)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The files in a folder of one's own."""
    shutil.copytree(subject().folder, tmp_path / "own", ignore=shutil.ignore_patterns("out"))
    return tmp_path / "own"


def measured_again(bundle: Path) -> tuple[float, float, float]:
    """Drop of top-1, milliseconds and MB of the exported file, by none of the command's own doing."""
    _, _, x, y = digits()
    path = bundle / "model.onnx"
    found = Bundle.open(bundle).manifest
    saved = SavedModel("onnx", path, found.inputs, found.outputs)
    predict = open_saved(saved)
    program = torch.export.load(subject().folder / "model.pt2").module()
    with torch.no_grad():
        floats = program(torch.from_numpy(larger(x))).numpy()
    ours = np.concatenate([predict([larger(x[i : i + 50])])[0] for i in range(0, len(x), 50)])
    top1 = [float((answers.argmax(1) == y).mean()) for answers in (floats, ours)]
    latency = interleave({"file": runner(path, threads=1)}, max_seconds=3.0)["file"].p50_ms
    return top1[0] - top1[1], latency, digest(path).size_bytes / 1e6


@pytest.mark.parametrize(
    ("drop", "latency", "size"),
    [(0.02, None, None), (0.3, None, 0.75), (0.3, 5.0, 0.8)],
    ids=["accuracy", "accuracy and size", "all three"],
)
def test_a_budget_that_can_hold_does_on_the_files(
    here: Path, drop: float, latency: float | None, size: float | None
) -> None:
    limits = ["--max-drop", str(drop)]
    whole = subject()
    if latency:
        limits += ["--max-latency-ms", f"{latency * whole.latency_ms:.6f}"]
    if size:
        limits += ["--max-size-mb", f"{size * whole.size_mb:.6f}"]
    result = compress(here, *limits)
    assert result.exit_code == 0, result.stderr + result.stdout
    report = Bundle.open(here / "out").report
    assert report["accepted"]
    assert bool(report["trials"]) == bool(latency or size)
    lost, taken, megabytes = measured_again(here / "out")
    assert lost <= drop + 1e-9
    assert lost == pytest.approx(report["artifacts"]["onnx"]["drop"], abs=1e-9)
    assert size is None or megabytes <= size * whole.size_mb
    assert latency is None or taken <= SLACK * latency * whole.latency_ms


@pytest.mark.parametrize(
    ("limits", "binds", "floor"),
    [
        ({"--max-size-mb": 0.02}, ["max_size_mb"], "even the heaviest pruning has"),
        ({"--max-latency-ms": 0.02}, ["max_latency_ms"], "even the heaviest pruning takes"),
        ({"--max-drop": 0.0, "--max-size-mb": 0.35}, ["max_drop 0", "max_size_mb"], ""),
    ],
    ids=["size", "latency", "accuracy against size"],
)
def test_a_budget_that_cannot_hold_names_what_binds_and_the_nearest_trial(
    here: Path, limits: dict[str, float], binds: list[str], floor: str
) -> None:
    whole = {"--max-size-mb": subject().size_mb, "--max-latency-ms": subject().latency_ms, "--max-drop": 1.0}
    named = [text for name, share in limits.items() for text in (name, f"{share * whole[name]:.6f}")]
    result = compress(here, *named, trials=3)
    assert result.exit_code == 3, result.stderr + result.stdout
    report = json.loads((here / "out" / "report.json").read_text())
    assert not report["accepted"]
    nearest = [reason for reason in report["reasons"] if reason.startswith("nearest: trial ")]
    assert nearest == [
        next(r for r in report["reasons"] if r.startswith(f"nearest: trial {report['trial']}"))
    ]
    assert any(each in reason for reason in report["reasons"] for each in binds), report["reasons"]
    assert any(floor in reason for reason in report["reasons"]), report["reasons"]
    # It is said on the terminal, and the nearest trial's files are written.
    assert "nearest: trial" in " ".join(result.stdout.split())
    assert Bundle.open(here / "out").path.joinpath("model.onnx").exists()
    assert report["trials"][report["trial"]]["outcome"] is not None
