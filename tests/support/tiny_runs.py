"""A tiny classifier in every form, data for it, and the command line in this process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from typer.testing import CliRunner, Result

from edgekit.cli import app

CLASSES = 4
# The network is too small to gain from integers; what is tested here is everything but its speed.
QUICK = ("--preset", "fast", "--format", "onnx", "--allow-slower")


def network(seed: int = 0) -> nn.Sequential:
    """conv → batch norm → relu → mean → linear on 3×8×8."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    ).eval()  # fmt: skip


def images(n: int = 48, seed: int = 0) -> np.ndarray:
    """float32 (n, 3, 8, 8)."""
    return np.random.default_rng(seed).normal(size=(n, 3, 8, 8)).astype(np.float32)


def labels(x: np.ndarray) -> np.ndarray:
    """What the float network says, so that its top-1 is 1."""
    with torch.no_grad():
        return network()(torch.from_numpy(x)).argmax(1).numpy()


def save_program(path: Path, module: nn.Module | None = None, *shape: int) -> Path:
    """An exported program with a free batch."""
    example = (torch.randn(2, *(shape or (3, 8, 8))),)
    free = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module or network(), example, dynamic_shapes=free), path)
    return path


def save_data(path: Path, **arrays: np.ndarray) -> Path:
    """`x` and `y`, or what is given."""
    x = images()
    np.savez(path, **(arrays or {"x": x, "y": labels(x)}))
    return path


def call(*arguments: object) -> Result:
    """`edgekit …` in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="edgekit")


def compress(*arguments: object) -> Result:
    """`edgekit compress … ` in one format, without the search."""
    return call("compress", *arguments, *QUICK)


@cache
def folder() -> Path:
    """`model.pt2` and `data.npz`, made once for each process; nobody writes here."""
    path = Path(tempfile.mkdtemp(prefix="edgekit-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    save_program(path / "model.pt2")
    save_data(path / "data.npz")
    return path


@cache
def bundle() -> Path:
    """A finished bundle of all three formats; copy it before you change it."""
    out = folder() / "bundle"
    result = call(
        "compress", folder() / "model.pt2", "--data", folder() / "data.npz", "-o", out, *QUICK[:2],
        "--allow-slower",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return out
