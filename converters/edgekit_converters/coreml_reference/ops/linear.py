"""Matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgekit_converters.coreml_reference.ops.arguments import Tensor, flag


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x · weightᵀ + bias`, weight (out, in)."""
    return F.linear(x, weight, bias)


def matmul(
    x: Tensor, y: Tensor, transpose_x: Tensor | None = None, transpose_y: Tensor | None = None
) -> Tensor:
    """`x · y` over the last two axes, either transposed first; leading axes broadcast."""
    x = x.transpose(-1, -2) if flag(transpose_x) and x.ndim > 1 else x
    y = y.transpose(-1, -2) if flag(transpose_y) and y.ndim > 1 else y
    return torch.matmul(x, y)


def einsum(values: list[Tensor], equation: str) -> Tensor:
    """Products by index notation; size-one axes broadcast."""
    left, right = values
    in_left, in_right = (part.strip() for part in equation.split("->", maxsplit=1)[0].split(","))
    sizes = {**dict(zip(in_left, left.shape, strict=True))}
    for name, size in zip(in_right, right.shape, strict=True):
        sizes[name] = max(sizes.get(name, 1), size)
    wide = [v.expand([sizes[n] for n in names]) for v, names in ((left, in_left), (right, in_right))]
    return torch.einsum(equation, *wide)
