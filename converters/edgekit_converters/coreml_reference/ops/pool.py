"""Pooling in one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from edgekit_converters.coreml_reference.ops.arguments import Tensor, flag, ints
from edgekit_converters.coreml_reference.ops.conv import flat_padding, padding_of

MAX_POOLS: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class Windows(NamedTuple):
    """Where the windows of a pool lie.

    Attributes:
        kernel: size per axis.
        steps: stride per axis.
        pairs: (before, after) padding per axis.
        extra: what rounding the output's size up adds after the padding, per axis.
    """

    kernel: list[int]
    steps: list[int]
    pairs: list[tuple[int, int]]
    extra: list[int]

    @property
    def sides(self) -> list[int]:
        """Padding and what is added to it, as `F.pad` takes them."""
        return flat_padding(
            [(before, after + e) for (before, after), e in zip(self.pairs, self.extra, strict=True)]
        )


def _windows(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None,
    *,
    pad_type: str,
    pad: Tensor | None,
    ceil_mode: Tensor | None,
) -> Windows:
    kernel = ints(kernel_sizes)
    steps = ints(strides, [1] * len(kernel))
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
    return Windows(kernel, steps, pairs, extra)


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
    windows = _windows(x, kernel_sizes, strides, pad_type=pad_type, pad=pad, ceil_mode=ceil_mode)
    if any(windows.sides):
        x = F.pad(x, windows.sides, value=-math.inf)
    return MAX_POOLS[len(windows.kernel)](x, windows.kernel, windows.steps)


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
    windows = _windows(x, kernel_sizes, strides, pad_type=pad_type, pad=pad, ceil_mode=ceil_mode)
    padded = any(windows.sides)
    total = _sums(F.pad(x, windows.sides) if padded else x, windows)
    exclude = flag(exclude_padding_from_average)
    if not any(windows.extra) and not (exclude and padded):
        return total / math.prod(windows.kernel)
    inside = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    # What the ceiling adds is never part of the mean; the padding proper is, unless excluded.
    counted = F.pad(inside, flat_padding(windows.pairs), value=0.0 if exclude else 1.0)
    counts = _sums(F.pad(counted, flat_padding([(0, e) for e in windows.extra])), windows)
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
    windows = _windows(x, kernel_sizes, strides, pad_type=pad_type, pad=pad, ceil_mode=ceil_mode)
    return torch.sqrt(_sums(F.pad(x * x, windows.sides), windows))


def _sums(x: Tensor, windows: Windows) -> Tensor:
    """Sum of each window of a padded x."""
    kernel, steps = windows.kernel, windows.steps
    if len(kernel) == 1:
        # Only the pools of two and three dimensions take a divisor.
        return F.avg_pool2d(x.unsqueeze(2), (1, kernel[0]), (1, steps[0]), divisor_override=1).squeeze(2)
    pool = F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d
    return pool(x, kernel, steps, divisor_override=1)
