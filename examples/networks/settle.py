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


# Random networks with batch norm are chaotic: fifty layers amplify any rounding to nonsense. Trained ones
# are not: their norms keep activations mostly open and their residual branches add little to the trunk.
_BRANCH = 0.3
# (layers, prefix of the parameter's name, mean, spread); the first row that fits holds.
_DRAWS: tuple[tuple[tuple[type[nn.Module], ...], str, float, float], ...] = (
    ((_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d), "weight", 1.0, 0.25),
    ((_BatchNorm,), "bias", 0.8, 0.2),
    ((nn.PReLU,), "weight", 0.2, 0.1),
    ((nn.Embedding,), "weight", 0.0, 1.0),
    ((nn.Module,), "scale", 0.5, 0.1),
    ((nn.Module,), "gain", 1.0, 0.1),
    ((nn.Module,), "", 0.0, 0.2),
)


def _branch_ends(module: nn.Module) -> set[nn.Module]:
    """The last batch norm of every block that says it has an identity shortcut."""
    blocks = [m for m in module.modules() if _is_identity(getattr(m, "shortcut", None))]
    return {[m for m in block.modules() if isinstance(m, _BatchNorm)][-1] for block in blocks}


def _is_identity(shortcut: object) -> bool:
    return shortcut is True or isinstance(shortcut, nn.Identity)


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """Redraw every parameter; only shapes and kinds of the layers are kept."""
    ends = _branch_ends(module)
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator).clamp(-3, 3)
            value = _value(layer, name, noise)
            parameter.data.copy_(_BRANCH * value if layer in ends else value)


def _value(layer: nn.Module, name: str, noise: Tensor) -> Tensor:
    """Normal noise turned into what a trained layer of this kind holds."""
    if isinstance(layer, _LINEAR) and name == "weight":
        return _kernel(noise)
    if isinstance(layer, nn.LSTM | nn.GRU) and noise.dim() > 1:
        return noise / layer.hidden_size**0.5
    mean, spread = next(
        (m, s) for kinds, start, m, s in _DRAWS if isinstance(layer, kinds) and name.startswith(start)
    )
    return mean + spread * noise


def _kernel(noise: Tensor) -> Tensor:
    """He's variance, and for taps in space as much again in common: trained kernels are mostly low-pass."""
    deviation = (2 / noise[0].numel()) ** 0.5
    if noise.dim() == 2 or noise[0, 0].numel() == 1:
        return deviation * noise
    flat = noise.flatten(2)
    common = flat.sum(2, keepdim=True) / flat.shape[2] ** 0.5
    return deviation * (0.5 * flat + common).view(noise.shape)


def _aligned(weight: Tensor, x: Tensor) -> Tensor:
    """Rows of a linear turned to where its input varies, as sums of gradients (δ xᵀ) are.

    A random row listens to every direction alike, and normalising it then amplifies the quiet ones.
    """
    centred = x.reshape(-1, x.shape[-1]) - x.reshape(-1, x.shape[-1]).mean(0)
    covariance = centred.T @ centred
    return weight @ (covariance / covariance.diagonal().mean().clamp_min(1e-6))


class _Normalise:
    """Forward hook that brings a layer's first output to mean zero and a spread of about one."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.done = False

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.done:  # a layer with shared weights is called again
            return None
        self.done = True
        axis = output.dim() - 1 if isinstance(layer, nn.Linear) else 1
        others = [i for i in range(output.dim()) if i != axis]
        weight = layer.weight.data
        if isinstance(layer, nn.Linear):
            weight.copy_(_aligned(weight, inputs[0]))
            output = nn.functional.linear(inputs[0], weight, layer.bias)
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
        layer.bias.data.copy_((layer.bias.data - mean) * gain + shift)
        lead = 1 if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d) else 0
        weight.mul_(gain.view([channels if i == lead else 1 for i in range(weight.dim())]))
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
