"""Normalizations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgekit_converters.coreml_reference.ops.arguments import Tensor, integer, ints, number


def batch_norm(
    x: Tensor,
    *,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """`gamma·(x − mean)/√(variance + epsilon) + beta` in each channel (axis 1)."""
    return F.batch_norm(x, mean, variance, gamma, beta, eps=number(epsilon, 1e-5))


def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Tensor | None = None
) -> Tensor:
    """Each channel of each sample to mean 0 and variance 1, then scaled and shifted."""
    return F.instance_norm(x, weight=gamma, bias=beta, eps=number(epsilon, 1e-5))


def layer_norm(
    x: Tensor,
    *,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """The axes together to mean 0 and variance 1, then scaled and shifted element by element."""
    over = sorted(a % x.ndim for a in ints(axes, list(range(x.ndim))))
    shape = [n if i in over else 1 for i, n in enumerate(x.shape)]
    if over == list(range(x.ndim - len(over), x.ndim)):
        return F.layer_norm(x, [x.shape[a] for a in over], gamma, beta, number(epsilon, 1e-5))
    result = _standardized(x, tuple(over), number(epsilon, 1e-5))
    result = result if gamma is None else result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


def l2_norm(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """`x / √(Σ x² + epsilon)` over the last three axes."""
    return x / torch.sqrt((x * x).sum((-3, -2, -1), keepdim=True) + number(epsilon, 1e-6))


def local_response_norm(
    x: Tensor,
    *,
    size: Tensor,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    k: Tensor | None = None,
) -> Tensor:
    """`x / (k + alpha/size · Σ x²)^beta` over neighbouring channels."""
    return F.local_response_norm(x, integer(size), number(alpha, 1e-4), number(beta, 0.75), number(k, 1.0))


def _standardized(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
