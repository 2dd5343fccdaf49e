"""Weights and batch-norm statistics like those of a trained network, for architectures without weights.

Plain random weights give dead or constant networks, on which quantization looks far better or far worse
than it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Inputs = Callable[[int, torch.Generator], tuple[Tensor, ...]]

_LINEAR = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.ConvTranspose1d, nn.ConvTranspose2d)
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)


def settle(module: nn.Module, inputs: Inputs, seed: int = 0) -> nn.Module:
    """Draw weights, scale every layer on data, settle batch norm, and leave the module in evaluation mode.

    Weights are drawn with He's variance and normalised on data, channel by channel, where a layer has a bias
    (Salimans and Kingma 2016, section 3). Deterministic: the global random state is neither read nor changed.

    Args:
        module: changed in place.
        inputs: gives `n` samples drawn from a generator, as a tuple in the order of `forward`.
        seed: same seed, same weights.

    Returns:
        The module itself.
    """
    generator = torch.Generator().manual_seed(seed)
    _draw(module, generator)
    module.eval()
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean over the passes
        norm.train()
    handles = [
        m.register_forward_hook(_Normalise(generator)) for m in module.modules() if isinstance(m, _LINEAR)
    ]
    with torch.no_grad():
        module(*inputs(32, generator))
        for handle in handles:
            handle.remove()
        for norm in norms:
            norm.reset_running_stats()
        for _ in range(3 if norms else 0):
            module(*inputs(32, generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return module.eval()


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """Redraw every parameter; only shapes and kinds of the layers are kept."""
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            value = torch.randn(parameter.shape, generator=generator)
            if isinstance(layer, _NORMS):
                # Trained affine parameters spread around one and zero.
                value = 1 + 0.25 * value.clamp(-2, 2) if name == "weight" else 0.2 * value
            elif isinstance(layer, nn.PReLU):
                value = 0.2 + 0.1 * value
            elif isinstance(layer, _LINEAR):
                value = value * (2 / max(parameter[0].numel(), 1)) ** 0.5 if name == "weight" else 0.1 * value
            elif isinstance(layer, nn.LSTM | nn.GRU | nn.RNN):
                value = value / max(layer.hidden_size, 1) ** 0.5 if parameter.dim() > 1 else 0.1 * value
            elif isinstance(layer, nn.Embedding):
                pass
            elif name == "scale":
                value = 0.5 + 0.1 * value
            else:
                value = value * (0.5 if parameter.dim() < 3 else 0.2)
            parameter.data.copy_(value)


class _Normalise:
    """Forward hook that brings a layer's first output to mean zero and a spread of about one."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.done = False

    def __call__(self, layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.done:  # a layer with shared weights is called again
            return None
        self.done = True
        axis = output.dim() - 1 if isinstance(layer, nn.Linear) else 1
        others = [i for i in range(output.dim()) if i != axis]
        weight = layer.weight.data  # type: ignore[union-attr]
        if layer.bias is None:
            gain = 1 / output.std().clamp_min(1e-6)
            weight.mul_(gain)
            return output * gain
        channels = output.shape[axis]
        view = [channels if i == axis else 1 for i in range(output.dim())]
        spread = torch.exp(0.3 * torch.randn(channels, generator=self.generator))
        shift = 0.3 * torch.randn(channels, generator=self.generator)
        gain = spread / output.std(others).clamp_min(1e-2)
        mean = output.mean(others)
        layer.bias.data.copy_((layer.bias.data - mean) * gain + shift)  # type: ignore[union-attr, operator]
        transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d)
        weight.mul_(
            gain.view(1, -1, *[1] * (weight.dim() - 2))
            if transposed
            else gain.view(-1, *[1] * (weight.dim() - 1))
        )
        return (output - mean.view(view)) * gain.view(view) + shift.view(view)


def images(n: int, generator: torch.Generator, channels: int, height: int, width: int) -> Tensor:
    """Smooth random images with the falling spectrum of photographs, about zero mean and unit spread.

    Args:
        n: number of images.
        generator: source of all randomness.
        channels: colour planes; they are correlated, as in photographs.
        height: in pixels.
        width: in pixels.

    Returns:
        float32 `[n, channels, height, width]`.
    """
    total = torch.zeros(n, channels, height, width)
    mix = torch.full((channels, channels), 0.5) + torch.eye(channels)
    for cells in (1, 2, 4, 8, 16, 32, 64):
        if cells > max(height, width):
            break
        coarse = torch.randn(n, channels, min(cells, height), min(cells, width), generator=generator)
        fine = nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
        total += torch.einsum("nchw,dc->ndhw", fine, mix) / cells**0.5
    return total / 3.0
