"""Pooling in one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from edgekit_converters.coreml_reference.ops.arguments import Tensor, flag, ints
from edgekit_converters.coreml_reference.ops.conv import flat_padding, padding_of

MAX_POOLS: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _geometry(
    x: Tensor,
    kernel: Sequence[int],
    steps: Sequence[int],
    *,
    pad_type: str,
    pad: Tensor | None,
    ceil_mode: Tensor | None,
) -> tuple[list[tuple[int, int]], list[int]]:
    """Returns (before, after) padding for each axis, and what the output's ceiling adds after it."""
    pairs = padding_of(pad_type, ints(pad), x.shape[2:], kernel, steps)
    upwards = flag(ceil_mode)
    extra = []
    for size, k, s, (before, after) in zip(x.shape[2:], kernel, steps, pairs, strict=True):
        free = size + before + after - k
        windows = (-(-free // s) if upwards else free // s) + 1
        # A last window that starts in the padding after the input is dropped, as in PyTorch.
        if upwards and (windows - 1) * s >= size + before and before + after > 0:
            windows -= 1
        extra.append(max(0, (windows - 1) * s - free))
    return pairs, extra


def max_pool(
    x: Tensor,
    *,
    kernel_sizes: Tensor,
    pad_type: str,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:
    """Largest element of each window; padding never wins."""
    kernel = ints(kernel_sizes)
    steps = ints(strides, [1] * len(kernel))
    pairs, extra = _geometry(x, kernel, steps, pad_type=pad_type, pad=pad, ceil_mode=ceil_mode)
    sides = flat_padding([(before, after + e) for (before, after), e in zip(pairs, extra, strict=True)])
    if any(sides):
        x = F.pad(x, sides, value=-math.inf)
    return MAX_POOLS[len(kernel)](x, kernel, steps)


def avg_pool(
    x: Tensor,
    *,
    kernel_sizes: Tensor,
    pad_type: str,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:
    """Mean of each window; padding counts as zeros unless excluded."""
    kernel = ints(kernel_sizes)
    steps = ints(strides, [1] * len(kernel))
    pairs, extra = _geometry(x, kernel, steps, pad_type=pad_type, pad=pad, ceil_mode=ceil_mode)
    sides = flat_padding([(before, after + e) for (before, after), e in zip(pairs, extra, strict=True)])
    total = _window_sums(F.pad(x, sides) if any(sides) else x, kernel, steps)
    exclude = flag(exclude_padding_from_average)
    if not any(extra) and not (exclude and any(sides)):
        return total / math.prod(kernel)
    inside = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    # What the ceiling adds is never part of the mean; the padding proper is, unless excluded.
    counted = F.pad(inside, flat_padding(pairs), value=0.0 if exclude else 1.0)
    counts = _window_sums(F.pad(counted, flat_padding([(0, e) for e in extra])), kernel, steps)
    return total / counts


def l2_pool(
    x: Tensor,
    *,
    kernel_sizes: Tensor,
    pad_type: str,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:
    """Square root of the sum of squares of each window."""
    kernel = ints(kernel_sizes)
    steps = ints(strides, [1] * len(kernel))
    pairs, extra = _geometry(x, kernel, steps, pad_type=pad_type, pad=pad, ceil_mode=ceil_mode)
    sides = flat_padding([(before, after + e) for (before, after), e in zip(pairs, extra, strict=True)])
    return torch.sqrt(_window_sums(F.pad(x * x, sides), kernel, steps))


def _window_sums(x: Tensor, kernel: Sequence[int], steps: Sequence[int]) -> Tensor:
    if len(kernel) == 1:
        # Only the pools of two and three dimensions take a divisor.
        return F.avg_pool2d(x.unsqueeze(2), (1, kernel[0]), (1, steps[0]), divisor_override=1).squeeze(2)
    pool = F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d
    return pool(x, kernel, steps, divisor_override=1)
