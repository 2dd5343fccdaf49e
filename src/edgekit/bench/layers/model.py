"""Latency of a layer of any width, read between measured points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.bench.layers.grid import axes_of, grid_of
from edgekit.bench.layers.shape import LayerShape


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """What layers cost in one runtime on one machine.

    Attributes:
        originals: the layers of the network before anything is cut.
        points: milliseconds of at least every layer of `grid_of(original)`, and of any others, which are then
            answered as they were measured.

    Raises:
        ValueError: a point of a grid is missing.
    """

    originals: tuple[LayerShape, ...]
    points: Mapping[LayerShape, float]
    _families: dict[tuple[Any, ...], list[LayerShape]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        families: dict[tuple[Any, ...], list[LayerShape]] = {}
        for original in dict.fromkeys(self.originals):
            missing = [point for point in grid_of(original) if point not in self.points]
            if missing:
                raise ValueError(
                    f"{len(missing)} of the points of {original} are not measured, the first is {missing[0]}"
                )
            families.setdefault(original.family(), []).append(original)
        for members in families.values():
            members.sort(key=lambda shape: shape.macs)
        object.__setattr__(self, "_families", families)

    def ms(self, shape: LayerShape) -> float:
        """Milliseconds of one call of a layer inside a network, without the cost of calling the network.

        Linear between measured counts of channels. A count that is neither measured nor a multiple of 8 is answered
        like the next multiple of 8.

        Args:
            shape: an original, or one with fewer channels.

        Raises:
            ValueError: no original differs from it by channels only and is at least as wide.
        """
        known = self.points.get(shape)
        if known is not None:
            return known
        for original in self._families.get(shape.family(), ()):
            if shape.in_channels <= original.in_channels and shape.out_channels <= original.out_channels:
                return self._between(original, shape)
        raise ValueError(f"{shape}: expected a layer that one of the {len(self.originals)} originals covers")

    def _between(self, original: LayerShape, shape: LayerShape) -> float:
        inputs, outputs = axes_of(original)
        low, high, weight = inputs.between(shape.in_channels)
        if outputs is None:
            wide = original.out_channels // original.in_channels
            narrow, broad = (self.points[original.with_channels(n, n * wide)] for n in (low, high))
            return _mix(narrow, broad, weight)
        left, right, across = outputs.between(shape.out_channels)
        narrow, broad = (
            _mix(
                self.points[original.with_channels(n, left)],
                self.points[original.with_channels(n, right)],
                across,
            )
            for n in (low, high)
        )
        return _mix(narrow, broad, weight)


def _mix(low: float, high: float, weight: float) -> float:
    return low + (high - low) * weight
