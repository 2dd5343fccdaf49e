"""How long, how fast and in which arithmetic: everything about a training but the network and the loss."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Final

import torch
from torch import nn

from edgekit.recipe import Train
from edgekit.stages.train.trainable import Trainable, op_names

SGD, ADAMW = "sgd", "adamw"
_PRECISIONS: Final = {"float32": None, "bfloat16": torch.bfloat16}
# Highest learning rates for a batch of 128. Networks with batch norm take large steps; without it (folded, or never
# there) the same step is ten times too large.
_RATES: Final = {(SGD, True): 0.05, (SGD, False): 0.005, (ADAMW, True): 1e-3, (ADAMW, False): 5e-4}
_USUAL_BATCH: Final = 128
# An epoch of fewer steps hardly moves a network; smaller batches than this give batch norms poor statistics.
_FEWEST_STEPS: Final = 32
_SMALLEST_BATCH: Final = 8
# The first steps after pruning have the steepest gradients of all.
_CLIP: Final = {SGD: 5.0, ADAMW: 1.0}
_WARM_UP: Final = 0.05
_MOMENTUM: Final = 0.9
_RECURRENT: Final = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


@dataclass(frozen=True, slots=True)
class Schedule:
    """A training in numbers.

    Attributes:
        epochs: passes over the training inputs.
        batch_size: samples of a step.
        optimizer: "sgd" (Nesterov momentum 0.9) or "adamw".
        learning_rate: highest; it rises over the first twentieth of the steps and falls to zero along a cosine.
        weight_decay: of weights; what has fewer than two axes (norms, biases) has none.
        clip: largest norm of all gradients together.
        ema: decay per step of the average of the weights; 0 keeps the last weights.
        patience: epochs without a better metric after which training ends; None trains to the end.
        precision: "float32" or "bfloat16".
        device: to train on.
        channels_last: layout of images in memory; the faster one for convolutions in bfloat16.
        seed: of every random choice.
    """

    epochs: int
    batch_size: int = _USUAL_BATCH
    optimizer: str = SGD
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    clip: float = 5.0
    ema: float = 0.999
    patience: int | None = None
    precision: str = "float32"
    device: str = "cpu"
    channels_last: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(f"{self.epochs} epochs of batches of {self.batch_size}")
        if self.optimizer not in (SGD, ADAMW) or self.precision not in _PRECISIONS:
            raise ValueError(f"optimizer {self.optimizer!r}, precision {self.precision!r}")
        if not (self.learning_rate > 0 and self.clip > 0 and 0 <= self.ema < 1 and self.weight_decay >= 0):
            raise ValueError(f"a rate is out of range: {self}")

    def digest(self) -> str:
        """Sha256 (hex) of all values."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017).

        Args:
            step: from 0.
            steps: of the whole training.
        """
        warm = min(max(1, round(_WARM_UP * steps)), steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def decay(self, updates: int) -> float:
        """Decay of the average after so many updates; it starts low, so that short trainings forget their start."""
        return min(self.ema, (1 + updates) / (10 + updates))

    def autocast(self) -> torch.autocast:
        """Context of the arithmetic; it does nothing for float32."""
        dtype = _PRECISIONS[self.precision]
        return torch.autocast(torch.device(self.device).type, dtype, enabled=dtype is not None)

    def optimizer_of(self, module: nn.Module) -> torch.optim.Optimizer:
        """An optimizer over what takes gradients, with the decay on weights alone."""
        learned = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learned if p.dim() >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in learned if p.dim() < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == SGD:
            return torch.optim.SGD(groups, self.learning_rate, momentum=_MOMENTUM, nesterov=True)
        return torch.optim.AdamW(groups, self.learning_rate)


def schedule_for(
    settings: Train, module: Trainable, *, samples: int, seed: int, device: str, precision: str
) -> Schedule:
    """Fill what the recipe leaves open by what the network is made of.

    Args:
        settings: of the recipe.
        module: to be trained.
        samples: to train on; few are cut into smaller batches than the recipe says, so that an epoch has steps enough.
        seed: of every random choice.
        device: to train on.
        precision: what "auto" came to.
    """
    ops = op_names(module)
    normed = "batch_norm" in ops
    convolutional = bool(ops & {"conv1d", "conv2d", "conv3d"})
    attentive = bool(ops & {"layer_norm", "rms_norm", "scaled_dot_product_attention"} or ops & _RECURRENT)
    optimizer = settings.optimizer
    if optimizer == "auto":
        optimizer = SGD if convolutional and (normed or not attentive) else ADAMW
    size = min(settings.batch_size, max(_SMALLEST_BATCH, samples // _FEWEST_STEPS))
    rate = settings.learning_rate
    if rate is None:
        scale = size / _USUAL_BATCH
        # Steps of SGD add up linearly, those of Adam like a random walk (Malladi et al. 2022).
        rate = _RATES[optimizer, normed] * (scale if optimizer == SGD else math.sqrt(scale))
    return Schedule(
        epochs=settings.epochs,
        batch_size=size,
        optimizer=optimizer,
        learning_rate=rate,
        weight_decay=settings.weight_decay,
        clip=_CLIP[optimizer],
        ema=settings.ema,
        patience=settings.patience,
        precision=precision,
        device=device,
        channels_last=bool(ops & {"conv2d", "conv_transpose2d"}) and "as_strided" not in ops,
        seed=seed,
    )
