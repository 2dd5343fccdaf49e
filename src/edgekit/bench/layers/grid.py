"""Where a layer is measured, so that every narrower one can be answered.

Integer kernels work on channels in blocks. Times are smooth along counts of the same divisibility and jump between
them: in ONNX Runtime on x86 a depthwise convolution of 24 channels takes longer than one of 32. So an axis that
decides over blocks of results has two sorts of levels, multiples of 16 and the multiples of 8 between; each sort is
read along itself. What is summed over grows evenly in steps of 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Final

from edgekit.bench.layers.shape import LayerShape

STEP: Final = 8
"""Counts of channels that are told apart; a count in between is answered like the next multiple."""

BLOCK: Final = 16
# Up to here every multiple of the step is measured, beyond it levels are this factor apart.
DENSE, SPREAD = 64, 1.4


@dataclass(frozen=True, slots=True)
class Axis:
    """Measured channel counts of one axis.

    Attributes:
        levels: ascending; the last is the count of the original layer.
        sorted_by_block: multiples of `BLOCK` and the others are two curves.
        step: counts in between are answered like the next multiple.
    """

    levels: tuple[int, ...]
    sorted_by_block: bool
    step: int = STEP

    def between(self, count: int) -> tuple[int, int, float]:
        """The measured counts on both sides of `count` and the weight of the upper one.

        Args:
            count: at least 1 and not above the last level.
        """
        if count in self.levels:
            return count, count, 0.0
        rounded = -(-count // self.step) * self.step
        if rounded >= self.levels[-1]:
            return self.levels[-1], self.levels[-1], 0.0
        curve = [n for n in self.levels if n % self.step == 0]
        if self.sorted_by_block:
            curve = [n for n in curve if (n % BLOCK == 0) == (rounded % BLOCK == 0)]
        lower, upper = max(n for n in curve if n <= rounded), min(n for n in curve if n >= rounded)
        return lower, upper, (rounded - lower) / (upper - lower) if upper > lower else 0.0


def axis(count: int, *, sorted_by_block: bool, step: int = STEP) -> Axis:
    """Levels for counts up to `count`.

    Args:
        count: of the original layer.
        sorted_by_block: multiples of `BLOCK` and the others are two curves.
        step: a multiple of the layer's groups.
    """
    if BLOCK % step:
        sorted_by_block = False  # every count is of the one sort
    starts = range(step, step * (2 if not sorted_by_block else BLOCK // step + 1), step)
    stride = BLOCK if sorted_by_block else step
    levels = {count}
    for start in starts:
        levels.update(_spread(start, count, stride))
    return Axis(tuple(sorted(levels)), sorted_by_block, step)


def _spread(start: int, count: int, stride: int) -> list[int]:
    """`start`, `start + stride`, … up to `count`: all of them at first, then ever fewer, and the last."""
    curve = range(start, count + 1, stride)
    if not curve:
        return []
    chosen = [curve[0]]
    for n in curve[1:]:
        if n <= DENSE or n >= chosen[-1] * SPREAD:
            chosen.append(n)
    return [*chosen, curve[-1]]


def axes_of(shape: LayerShape) -> tuple[Axis, Axis | None]:
    """Axes of input and output channels; a depthwise layer has one."""
    if shape.depthwise:
        return axis(shape.in_channels, sorted_by_block=True), None
    step = math.lcm(STEP, shape.groups)
    inputs = axis(shape.in_channels, sorted_by_block=shape.groups > 1, step=step)
    return inputs, axis(shape.out_channels, sorted_by_block=True, step=step)


def grid_of(shape: LayerShape) -> tuple[LayerShape, ...]:
    """The layers that are measured to answer for `shape` and all narrower ones, the narrowest first."""
    inputs, outputs = axes_of(shape)
    if outputs is None:
        wide = shape.out_channels // shape.in_channels
        return tuple(shape.with_channels(n, n * wide) for n in inputs.levels)
    return tuple(shape.with_channels(*pair) for pair in product(inputs.levels, outputs.levels))
