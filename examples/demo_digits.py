"""Handwritten digits (UCI, in scikit-learn) and a small network that is trained on them on the spot."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

EVALUATED = 500
EPOCHS, BATCH = 12, 64


class DigitsNet(nn.Module):
    """Three convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(1, 16),
            *_block(16, 32),
            nn.MaxPool2d(2),
            *_block(32, 32),
            nn.AdaptiveAvgPool2d(2),
        )
        self.classifier = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 1, 8, 8]` to logits `[n, 10]`."""
        return self.classifier(self.features(x).flatten(1))


def data() -> dict[str, npt.NDArray[Any]]:
    """Digits that train and calibrate, and others that judge.

    Returns:
        `train_x`, `eval_x`: float32 `[n, 1, 8, 8]` from 0 to 1; `train_y`, `eval_y`: int64 `[n]`.
    """
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    split = train_test_split(images, labels, test_size=EVALUATED, random_state=0, stratify=labels)
    return dict(zip(("train_x", "eval_x", "train_y", "eval_y"), split, strict=True))


def train(
    images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], *, epochs: int = EPOCHS, seed: int = 0
) -> nn.Module:
    """Train the network, a second or two.

    Args:
        images: float32 `[n, 1, 8, 8]`.
        labels: int64 `[n]`, 0 to 9.
        epochs: passes over the images.
        seed: of the weights and of the order.

    Returns:
        The network in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsNet()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = epochs * -(-len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _block(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
