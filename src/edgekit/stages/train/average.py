"""An exponential moving average of a network's weights and statistics (Polyak & Juditsky 1992)."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return dict(chain(module.named_parameters(), module.named_buffers()))


class Average:
    """The average of everything that is a real number; integers are taken as they are.

    Args:
        module: whose weights are averaged; the average starts at them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._own = tensors_of(module)
        self.tensors = {name: t.detach().clone() for name, t in self._own.items()}
        self._pairs = [(self.tensors[n], t) for n, t in self._own.items() if t.is_floating_point()]
        self._others = [(self.tensors[n], t) for n, t in self._own.items() if not t.is_floating_point()]

    def update(self, decay: float) -> None:
        """`average ← decay · average + (1 − decay) · weights`."""
        with torch.no_grad():
            if self._pairs:
                ours, theirs = ([t.detach() for t in column] for column in zip(*self._pairs, strict=True))
                torch._foreach_lerp_(ours, theirs, 1 - decay)
            for average, own in self._others:
                average.copy_(own)

    def swap(self) -> None:
        """Exchange the average and the weights of the module; twice is nothing."""
        for average, own in chain(self._pairs, self._others):
            average.data, own.data = own.data, average.data

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over a saved average."""
        for name, value in tensors.items():
            self.tensors[name].copy_(value)
