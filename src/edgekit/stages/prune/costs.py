"""What a program costs after units are removed: multiplications, or milliseconds of its INT8 layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from edgekit.stages.prune.context import Layer
from edgekit.stages.prune.trace import Structure

# From a mask over units to a cost.
Cost: TypeAlias = Callable[[np.ndarray], float]


def layer_macs(layer: Layer, keep: np.ndarray) -> float:
    """Multiplications of one layer."""
    share = 1.0
    for axis in layer.axes:
        share *= keep[axis].sum() / len(axis)
    return layer.macs * share


def macs(structure: Structure) -> Cost:
    """Multiplications of all layers at batch one."""
    return lambda keep: float(sum(layer_macs(layer, keep) for layer in structure.layers))
