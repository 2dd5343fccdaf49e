"""Networks that can be made smaller, data for them, and one call of the stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tests.support.tiny_runs import save_program
from tests.support.tiny_training import ConvNet, images, inputs_of, program_of, seeded
from torch import Tensor, nn

from edgekit.clock import Clock
from edgekit.evaluate import choose_metric
from edgekit.inputs import Inputs
from edgekit.recipe import Prune, Recipe, Train
from edgekit.report import StageResult
from edgekit.shrink import Shrunk, shrink
from edgekit.workdir import WorkDir
from edgekit_converters.program import Program

WIDTH, HEADS, TOKENS = 32, 4, 6


class Attentive(nn.Module):
    """One block of a transformer: attention over the rows of the image, an MLP, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, 1, 6, 6]` to `[n, 4]`."""
        y = self.embed(x.flatten(1, 2))
        q, k, v = (
            t.reshape(-1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)
            for t in self.qkv(self.norm(y)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, TOKENS, WIDTH)
        y = y + self.out(mixed)
        y = y + self.narrow(F.relu(self.wide(y)))
        return self.head(y.mean(1))


@cache
def attentive() -> Program:
    """The program of an `Attentive`; nobody changes it."""
    return program_of(seeded(Attentive), 1, 6, 6)


@cache
def wide(width: int = 64) -> Program:
    """A `ConvNet` that can be pruned; nobody changes it."""
    return program_of(seeded(lambda: ConvNet(width)), 1, 6, 6)


class Residual(nn.Module):
    """Two residual blocks between a convolution and a linear layer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.first, self.second = (
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
            )
            for _ in range(2)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, 1, 6, 6]` to `[n, 4]`."""
        y = F.relu(self.stem(x))
        y = F.relu(y + self.first(y))
        return self.head(F.relu(y + self.second(y)).mean((2, 3)))


@cache
def residual() -> Program:
    """The program of a `Residual`; nobody changes it."""
    return program_of(seeded(Residual), 1, 6, 6)


@cache
def deep() -> Program:
    """Three convolutions, whose time is in their multiplications; nobody changes it."""
    return program_of(
        seeded(
            lambda: nn.Sequential(
                nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(),
                nn.Conv2d(96, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
            )
        ), 1, 6, 6,
    )  # fmt: skip


@cache
def flat() -> Program:
    """One linear layer: its outputs are those of the model, its inputs too."""
    return program_of(seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4))), 1, 6, 6)


def patterns(*, train: bool = True) -> Inputs:
    """Images of four patterns, with labels."""
    return inputs_of(*images(96), *images(64, 1), train=train)


def samples() -> dict[str, np.ndarray]:
    """Images of four patterns with labels, to train on and to measure on, by the names of an `.npz`."""
    (x, y), (eval_x, eval_y) = images(96), images(64, 1)
    return {"train_x": x, "train_y": y, "eval_x": eval_x, "eval_y": eval_y}


def saved(folder: Path, module: nn.Module | None = None) -> tuple[Path, Path]:
    """Data with a training set and a model, as files in a folder."""
    data = folder / "data.npz"
    np.savez(data, **samples())
    return data, save_program(folder / "model.pt2", (module or seeded(lambda: ConvNet(64))).eval(), 1, 6, 6)


def recipe(
    epochs: int = 1, *, formats: tuple[str, ...] = ("onnx",), train: dict | None = None, **prune
) -> Recipe:
    """Half of the multiplications go, by the size of weights; what is given wins."""
    settings = {"ratio": 0.5, "by": "macs", "importance": "magnitude", **prune}
    trained = {"epochs": epochs, "batch_size": 32, "ema": 0.9, "augment": "none", "precision": "float32"}
    return replace(
        Recipe(formats=formats), prune=Prune(**settings), train=Train(**{**trained, **(train or {})})
    )


@dataclass(frozen=True)
class Done:
    """What a call of the stage came to, and what it said."""

    shrunk: Shrunk
    stages: tuple[StageResult, ...]
    said: tuple[str, ...]

    def names(self) -> list[str]:
        """Stages in order."""
        return [stage.name for stage in self.stages]

    def notes(self, name: str) -> list[str]:
        """All notes of the stages of a name."""
        return [note for stage in self.stages if stage.name == name for note in stage.notes]


def run(
    program: Program,
    settings: Recipe,
    out: Path,
    *,
    inputs: Inputs | None = None,
    resume: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> Done:
    """Shrink a program in a work folder beside `out`; `told` hears every line and may raise."""
    said: list[str] = []

    def hear(stage: str, detail: str) -> None:
        said.append(detail)
        told(detail)

    clock, metric = Clock(hear), choose_metric(None, labels=True, classes=True)
    with torch.random.fork_rng(), WorkDir(out, resume=resume) as work:
        torch.manual_seed(settings.seed)
        shrunk = shrink(program, "model", inputs or patterns(), settings, metric, work, clock)
    return Done(shrunk, clock.results(), tuple(said))
