"""Tiny networks, and data to train them on."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.inputs import Inputs, Training, split, tensors
from edgekit.load import load_candidate
from edgekit.stages.train.fit import Fitted, fit
from edgekit.stages.train.schedule import Schedule
from edgekit_converters.program import Program

CLASSES = 4


class ConvNet(nn.Module):
    """Convolution, batch norm, dropout, a view and a linear layer."""

    def __init__(self, width: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width * 9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, 1, 6, 6]` to `[n, 4]`."""
        y = self.dropout(F.relu(self.norm(self.conv(x))))
        return self.head(y.view(y.size(0), -1))


def seeded(make, seed: int = 0):
    """What `make` gives, its weights drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def program_of(module: nn.Module, *shape: int) -> Program:
    """The program of a module, with a free batch."""
    return load_candidate(module.eval(), input_shapes=[(2, *shape)]).program


@cache
def convnet(width: int = 8, seed: int = 0) -> Program:
    """The program of a `ConvNet`; nobody changes it."""
    return program_of(seeded(lambda: ConvNet(width), seed), 1, 6, 6)


def images(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images `[n, 1, 6, 6]` that show one of four patterns in noise, and which it is."""
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, n)
    grid = np.mgrid[:6, :6]
    patterns = np.stack([np.sin(grid[0]), np.sin(grid[1]), np.cos(2 * grid[0]), np.cos(2 * grid[1])])
    x = patterns[y][:, None] + 0.7 * random.standard_normal((n, 1, 6, 6))
    return x.astype(np.float32), y


def training_of(x: np.ndarray, y: np.ndarray | None) -> Training:
    """Arrays as samples to train on."""

    def batches(order, size):
        for i in range(0, len(order), size):
            rows = order[i : i + size]
            yield (x[rows],), None if y is None else y[rows]

    return Training(len(x), y is not None, batches, hashlib.sha256(x.tobytes()).hexdigest())


def inputs_of(x, y, eval_x, eval_y, *, train: bool = True) -> Inputs:
    """Arrays as the inputs of a pipeline."""

    def evaluation():
        for i in range(0, len(eval_x), 32):
            yield (eval_x[i : i + 32],), None if eval_y is None else eval_y[i : i + 32]

    return Inputs(
        calibration=lambda: (tensors(batch) for batch in split((x[:64],), 32)),
        evaluation=evaluation,
        proof=(eval_x[:8],),
        sha256="",
        real=True,
        has_labels=eval_y is not None,
        labels=(),
        notes=(),
        name="row {}".format,
        training=training_of(x, y) if train else None,
    )


def learn(module: nn.Module, path: Path, told, *, epochs: int = 4, **more) -> Fitted:
    """Train a `ConvNet` on labels for some epochs; every part of `fit` is at work."""
    x, y = images(96)
    given = {
        "objective": lambda net, inputs, labels: F.cross_entropy(net(*inputs), labels),
        "training": training_of(x, y),
        "judge": lambda net: accuracy(net, *images(64, 1)),
        "higher_is_better": True,
        "schedule": Schedule(epochs=epochs, batch_size=16, ema=0.9, channels_last=True),
        "augment": lambda inputs, random: (
            inputs[0] + random.normal(0, 0.1, inputs[0].shape).astype(np.float32),
        ),
    }
    return fit(module, checkpoint=path, step=told, **{**given, **more})


def accuracy(net: nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    """Share of right answers."""
    return float((net(torch.from_numpy(x)).argmax(1).numpy() == y).mean())


def digest(module: nn.Module) -> str:
    """Sha256 of all tensors."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()
