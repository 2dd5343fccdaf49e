"""Elementwise arithmetic, comparisons, logic and casts."""

from __future__ import annotations

import torch

from edgekit_converters.coreml_reference.ops.arguments import TYPES, Tensor, number, same_type


def cast(x: Tensor, dtype: str) -> Tensor:
    """Converts the element type; floats are cut towards zero."""
    return x.to(TYPES[dtype])


def identity(x: Tensor) -> Tensor:
    """Passes its input on."""
    return x


def clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`min(max(x, alpha), beta)`."""
    return torch.clamp(x, number(alpha), number(beta))


def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    """`max(x, alpha)`."""
    return torch.clamp_min(x, number(alpha))


def inverse(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """`1 / (x + epsilon)`."""
    return torch.reciprocal(x + number(epsilon, 1e-4))


def log(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """`log(x + epsilon)`."""
    return torch.log(x + number(epsilon, 1e-45))


def rsqrt(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """`1 / sqrt(x + epsilon)`."""
    return torch.rsqrt(x + number(epsilon, 1e-12))


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """`x / y`; of integers, in the integer type."""
    return same_type(torch.true_divide(x, y), x)


def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """`floor(x / y)`."""
    return torch.div(x, y, rounding_mode="floor")


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` where the condition holds, else `b`."""
    return torch.where(cond, a, b)
