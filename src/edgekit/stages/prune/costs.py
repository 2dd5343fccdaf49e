"""What a program costs after units are removed: multiplications, or milliseconds of its INT8 layers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from edgekit.bench.layers import LatencyModel, LayerShape
from edgekit.stages.prune.branches import Branch
from edgekit.stages.prune.context import Layer
from edgekit.stages.prune.trace import Structure
from edgekit.stages.prune.units import Labels

# From a mask over units to a cost.
Cost: TypeAlias = Callable[[np.ndarray], float]


def layer_macs(layer: Layer, keep: np.ndarray) -> float:
    """Multiplications of one layer."""
    left = (float(keep[axis].mean()) for axis in layer.axes if axis is not None)
    return layer.macs * math.prod(left)


def macs(structure: Structure, among: Sequence[Branch] = ()) -> Cost:
    """Multiplications of all layers at batch one.

    Args:
        structure: of `trace`.
        among: residual branches that follow the units in masks.
    """
    return _summed(structure, among, layer_macs)


def _summed(
    structure: Structure, among: Sequence[Branch], of_layer: Callable[[Layer, np.ndarray], float]
) -> Cost:
    """The sum over all layers; from one mask to the next, only layers that it touches are computed anew."""
    rows = _rows(structure, among)
    touched: list[list[int]] = [[] for _ in range(structure.n_units + len(among) + 1)]
    for row, (layer, gates) in enumerate(rows):
        places = [gates, *(axis for axis in layer.axes if axis is not None)]
        for place in np.unique(np.concatenate(places)).tolist():
            touched[place].append(row)
    last = np.ones(structure.n_units + len(among) + 1, bool)
    values = np.array([of_layer(layer, last) for layer, _ in rows], np.float64)

    def cost(keep: np.ndarray) -> float:
        for row in {row for place in np.flatnonzero(keep != last) for row in touched[place]}:
            layer, gates = rows[row]
            values[row] = of_layer(layer, keep) if keep[gates].all() else 0.0
        last[:] = keep
        return float(values.sum())

    return cost


def _rows(structure: Structure, among: Sequence[Branch]) -> list[tuple[Layer, Labels]]:
    """Every layer with the places in a mask of the branches that it lies in."""
    return [
        (
            layer,
            np.array(
                [structure.n_units + i for i, each in enumerate(among) if layer.node in each.layers], np.int64
            ),
        )
        for layer in structure.layers
    ]


def shapes(structure: Structure) -> tuple[LayerShape, ...]:
    """What a table has to cover for `milliseconds`."""
    return tuple(layer.shape for layer in structure.layers if layer.shape is not None)


def milliseconds(structure: Structure, table: LatencyModel, among: Sequence[Branch] = ()) -> Cost:
    """Sum of the layers' latencies in one runtime.

    What has no table, such as attention and recurrent cells, counts by its multiplications, at the median rate of
    what has one.

    Args:
        structure: of `trace`.
        table: covers `shapes(structure)`.
        among: residual branches that follow the units in masks.
    """
    tabled = [layer for layer in structure.layers if layer.shape is not None]
    rates = [table.ms(layer.shape) / layer.macs for layer in tabled if layer.shape and layer.macs]
    rate = statistics.median(rates) if rates else 0.0
    return _summed(
        structure,
        among,
        lambda layer, keep: (
            rate * layer_macs(layer, keep) if layer.shape is None else table.ms(_narrowed(layer, keep))
        ),
    )


def _narrowed(layer: Layer, keep: np.ndarray) -> LayerShape:
    """The shape of a layer after units are removed."""
    shape = layer.shape
    assert shape is not None
    outputs = _left(layer.axes[0], keep, shape.out_channels)
    if shape.depthwise:
        return shape.with_channels(outputs * shape.in_channels // shape.out_channels, outputs)
    inputs = _left(layer.axes[1], keep, shape.in_channels // shape.groups)
    return shape.with_channels(inputs * shape.groups, outputs)


def _left(axis: Labels | None, keep: np.ndarray, full: int) -> int:
    return full if axis is None else int(keep[axis].sum())
