"""What decides how long a layer takes: its operation, its channels, and the size that it works on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

AXES: Final = {"conv1d": 1, "conv2d": 2, "conv_transpose1d": 1, "conv_transpose2d": 2, "linear": 0}
"""Operation to the number of its spatial axes."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A layer at batch one.

    Attributes:
        op: "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d" or "linear".
        in_channels: of the input.
        out_channels: of the output.
        kernel: taps per spatial axis; empty for "linear", like the next three.
        stride: per spatial axis.
        dilation: per spatial axis.
        padding: zeros per spatial axis on both sides, or all that stand in front and then all behind.
        groups: 1, the number of input channels (depthwise), or between.
        size: of the input per spatial axis; for "linear" the number of rows.

    Raises:
        ValueError: an unknown operation, a number below its minimum, tuples of the wrong length, channels that the
            groups do not divide, or a kernel that is larger than the padded input.
    """

    op: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    groups: int = 1
    size: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        axes = AXES.get(self.op)
        if axes is None:
            raise ValueError(f"op {self.op!r}: expected one of {', '.join(AXES)}")
        lengths = [len(self.kernel), len(self.stride), len(self.dilation), len(self.size) - (not axes)]
        if lengths != [axes] * 4 or len(self.padding) not in (axes, 2 * axes):
            raise ValueError(
                f"{self}: expected {axes} numbers for each of kernel, stride, dilation and padding"
            )
        positive = (
            self.in_channels,
            self.out_channels,
            self.groups,
            *self.kernel,
            *self.stride,
            *self.dilation,
        )
        if min((*positive, *self.size)) < 1 or min(self.padding, default=0) < 0:
            raise ValueError(f"{self}: expected numbers of at least 1, and padding of at least 0")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"{self}: expected channels that are multiples of the {self.groups} groups")
        if min(self.output_size) < 1:
            raise ValueError(f"{self}: the kernel is larger than the padded input")

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """Zeros in front and behind, per spatial axis."""
        half = len(self.padding) // 2 if len(self.padding) == 2 * AXES[self.op] else 0
        return tuple(zip(self.padding[: len(self.padding) - half], self.padding[half:], strict=True))

    @property
    def output_size(self) -> tuple[int, ...]:
        """Of the output per spatial axis; for "linear" the rows."""
        axes = zip(self.size, self.kernel, self.stride, self.dilation, self.pads, strict=False)
        if self.op == "linear":
            return self.size
        if self.transposed:
            return tuple((n - 1) * s + d * (k - 1) + 1 - sum(p) for n, k, s, d, p in axes)
        return tuple((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, d, p in axes)

    @property
    def transposed(self) -> bool:
        """A transposed convolution?"""
        return self.op.startswith("conv_transpose")

    @property
    def depthwise(self) -> bool:
        """Does each filter read one channel of several?"""
        return self.groups == self.in_channels > 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call."""
        positions = math.prod(self.size if self.transposed else self.output_size)
        return positions * self.in_channels * self.out_channels // self.groups * math.prod(self.kernel)

    def with_channels(self, in_channels: int, out_channels: int) -> LayerShape:
        """The same layer with other channels; the groups of a depthwise layer follow them."""
        groups = in_channels if self.depthwise else self.groups
        return replace(self, in_channels=in_channels, out_channels=out_channels, groups=groups)

    def family(self) -> tuple[Any, ...]:
        """What layers of different channel counts have in common; equal for those that one table answers."""
        kind = (
            ("depthwise", self.out_channels // self.in_channels)
            if self.depthwise
            else ("groups", self.groups)
        )
        return (self.op, self.kernel, self.stride, self.dilation, self.pads, self.size, *kind)
