"""A small network for handwritten digits, trained in seconds, whose weights are hard to hold in few bits."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from tests.support.tiny_training import inputs_of, program_of, seeded
from torch import Tensor, nn

from edgekit.inputs import Inputs
from edgekit_converters.cleanup import clean
from edgekit_converters.program import Program

WIDTH, CLASSES, HELD_OUT = 12, 10, 500
EPOCHS, BATCH, RATE = 5, 64, 1e-2
# Channels are scaled by up to this and their readers by its inverse: one channel of weights then holds both sizes.
SPREAD = 6.0


class DigitNet(nn.Module):
    """Three convolutions with batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, WIDTH, 2 * WIDTH, 2 * WIDTH)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, 1 if i == 0 else 2, 1, bias=False) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.head = nn.Linear(2 * WIDTH * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, 1, 8, 8]` to `[n, 10]`."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.head(x.flatten(1))


@cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images `[n, 1, 8, 8]` in -1 … 1 and classes: to train on, and held out."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = (data.images[order, None] / 8 - 1).astype(np.float32), data.target[order]
    return x[HELD_OUT:], y[HELD_OUT:], x[:HELD_OUT], y[:HELD_OUT]


def digit_inputs(*, labels: bool = True, train: bool = True) -> Inputs:
    """The digits as the inputs of a pipeline."""
    x, y, eval_x, eval_y = digits()
    return inputs_of(x, y if labels else None, eval_x, eval_y, train=train)


@cache
def digit_program() -> Program:
    """The cleaned program of a trained `DigitNet`; nobody changes it."""
    return clean(program_of(seeded(_trained), 1, 8, 8))[0]


def _trained() -> DigitNet:
    net, (x, y, _, _) = DigitNet(), digits()
    samples, classes = torch.from_numpy(x), torch.from_numpy(y)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for i in range(steps):
        rows = torch.randperm(len(x))[:BATCH] if i % 2 else torch.arange(len(x)).roll(i * BATCH)[:BATCH]
        optimizer.zero_grad()
        F.cross_entropy(net(samples[rows]), classes[rows]).backward()
        optimizer.step()
        schedule.step()
    _spread(net)
    return net.eval()


def _spread(net: DigitNet) -> None:
    """Make channels unequal without a change of the outputs, as ReLU lets positive factors through."""
    readers = [*list(net.convs)[1:], None]
    with torch.no_grad():
        for norm, reader in zip(net.norms, readers, strict=True):
            factors = SPREAD ** (2 * torch.rand(norm.num_features) - 1)
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
            if reader is not None:
                reader.weight.div_(factors[:, None, None])
            else:
                net.head.weight.div_(factors.repeat_interleave(4))
