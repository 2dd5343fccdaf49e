"""Reductions along axes."""

from __future__ import annotations

import torch

from edgekit_converters.coreml_reference.ops.arguments import TYPES, Tensor, flag, integer, ints, same_type


def _axes(x: Tensor, axes: Tensor | None) -> list[int]:
    return list(range(x.ndim)) if axes is None else ints(axes)


def reduce_argmax(
    x: Tensor,
    axis: Tensor | None = None,
    keep_dims: Tensor | None = None,
    output_dtype: str = "int32",
) -> Tensor:
    """Index of the first largest element."""
    return torch.argmax(x, integer(axis, -1), flag(keep_dims)).to(TYPES[output_dtype])


def reduce_argmin(
    x: Tensor,
    axis: Tensor | None = None,
    keep_dims: Tensor | None = None,
    output_dtype: str = "int32",
) -> Tensor:
    """Index of the first smallest element."""
    return torch.argmin(x, integer(axis, -1), flag(keep_dims)).to(TYPES[output_dtype])


def reduce_l1_norm(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    """Sum of magnitudes."""
    return reduce_sum(torch.abs(x), axes, keep_dims)


def reduce_l2_norm(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    """Square root of the sum of squares."""
    return torch.sqrt(reduce_sum(x * x, axes, keep_dims))


def reduce_log_sum(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    """Logarithm of the sum."""
    return torch.log(reduce_sum(x, axes, keep_dims))


def reduce_log_sum_exp(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    """Logarithm of the sum of exponentials, without overflow."""
    return torch.logsumexp(x, _axes(x, axes), flag(keep_dims))


def reduce_max(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    """Largest element."""
    return torch.amax(x, _axes(x, axes), flag(keep_dims))


def reduce_mean(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    """Mean."""
    return torch.mean(x, _axes(x, axes), flag(keep_dims))


def reduce_min(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    """Smallest element."""
    return torch.amin(x, _axes(x, axes), flag(keep_dims))


def reduce_prod(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    """Product."""
    result = x
    for axis in sorted((a % x.ndim for a in _axes(x, axes)), reverse=True):
        result = torch.prod(result, axis, flag(keep_dims))
    return same_type(result, x)


def reduce_sum(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    """Sum."""
    return same_type(torch.sum(x, _axes(x, axes), flag(keep_dims)), x)


def reduce_sum_square(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    """Sum of squares."""
    return reduce_sum(x * x, axes, keep_dims)
