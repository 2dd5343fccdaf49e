"""Activation functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgekit_converters.coreml_reference.ops.arguments import Tensor, along, integer, number


def clamped_relu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`min(beta, x)` for `x ≥ 0`, else `min(beta, alpha·x)`."""
    return torch.clamp_max(torch.where(x >= 0, x, x * number(alpha)), number(beta))


def elu(x: Tensor, alpha: Tensor) -> Tensor:
    """`x` above zero, else `alpha·(eˣ − 1)`."""
    return F.elu(x, number(alpha))


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Gaussian error linear unit, exact or by one of the two approximations."""
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"gelu has no mode {mode!r}")


def leaky_relu(x: Tensor, alpha: Tensor) -> Tensor:
    """`x` above zero, else `alpha·x`."""
    return F.leaky_relu(x, number(alpha))


def linear_activation(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`alpha·x + beta`."""
    return x * number(alpha) + number(beta)


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """`x` above zero, else `alphaᵢ·x` in channel i (axis 1)."""
    return torch.where(x > 0, x, x * along(alpha, 1, x.ndim))


def relu6(x: Tensor) -> Tensor:
    """`min(max(x, 0), 6)`."""
    return torch.clamp(x, 0, 6)


def scaled_tanh(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`alpha·tanh(beta·x)`."""
    return number(alpha) * torch.tanh(number(beta) * x)


def sigmoid_hard(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`min(max(alpha·x + beta, 0), 1)`."""
    return torch.clamp(x * number(alpha) + number(beta), 0, 1)


def softmax(x: Tensor, axis: Tensor | None = None) -> Tensor:
    """`eˣ / Σ eˣ` along one axis."""
    return torch.softmax(x, integer(axis, -1))


def softplus(x: Tensor) -> Tensor:
    """`log(1 + eˣ)` without a threshold."""
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype))


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`alphaᵢ·log(1 + e^(betaᵢ·x))` in channel i (axis 1)."""
    return along(alpha, 1, x.ndim) * softplus(x * along(beta, 1, x.ndim))


def thresholded_relu(x: Tensor, alpha: Tensor) -> Tensor:
    """`x` from alpha up, else 0."""
    return torch.where(x >= number(alpha), x, torch.zeros((), dtype=x.dtype))
