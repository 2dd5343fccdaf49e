"""Units that live on the same axes, and are ranked and counted together."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.stages.prune.trace import Structure
from edgekit.stages.prune.units import FIXED, Labels


@dataclass(frozen=True)
class Group:
    """Interchangeable units.

    Attributes:
        name: the first weight whose outputs they are.
        units: their numbers.
        width: positions that one unit takes on the narrowest of its axes: a head has as many as it is wide.
        weights: all weights whose outputs they are.
    """

    name: str
    units: Labels
    width: int
    weights: tuple[str, ...]


def groups(structure: Structure, keep: Sequence[str] = ()) -> tuple[Group, ...]:
    """Sort the units by the axes that they live on; a single unit cannot go, and is in no group.

    Args:
        structure: of `trace`.
        keep: glob patterns of layers or weights whose outputs stay.
    """
    axes = sorted(structure.parameters)
    count = np.zeros((len(axes), structure.n_units), np.int32)
    for row, key in enumerate(axes):
        units = structure.parameters[key]
        count[row] = np.bincount(units[units != FIXED], minlength=structure.n_units)
    outputs = {layer.weight: layer.axes[0] for layer in structure.layers if layer.weight}
    _, first, kind = np.unique(count.T, axis=0, return_index=True, return_inverse=True)
    found = []
    for each in np.argsort(first):
        units = np.flatnonzero(kind.ravel() == each)
        weights = tuple(
            w for w, along in outputs.items() if along is not None and np.isin(along, units).any()
        )
        if len(units) < 2 or not weights or any(_matches(w, keep) for w in weights):
            continue
        present = count[:, units[0]]
        found.append(Group(weights[0], units, int(present[present > 0].min()), weights))
    return tuple(found)


def _matches(weight: str, patterns: Sequence[str]) -> bool:
    layer = weight.rpartition(".")[0] or weight
    return any(fnmatch.fnmatchcase(name, p) for p in patterns for name in (weight, layer))
