"""Units that live on the same axes, and are ranked and counted together."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
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
        width: positions that one unit takes on the narrowest axis of a layer: a head has as many as it is wide.
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
    kind, width = _kinds(structure)
    along: dict[int, list[str]] = {}
    for layer in structure.layers:
        outputs = layer.axes[0]
        if layer.weight and outputs is not None:
            for each in np.unique(kind[outputs[outputs != FIXED]]).tolist():
                along.setdefault(each, []).append(layer.weight)
    found = []
    for units in _classes(kind):
        weights = tuple(dict.fromkeys(along.get(int(kind[units[0]]), ())))
        if len(units) > 1 and weights and not any(matches(w, keep) for w in weights):
            found.append(Group(weights[0], units, int(width[units[0]]), weights))
    return tuple(found)


def _kinds(structure: Structure) -> tuple[Labels, Labels]:
    """A number per unit, the same for those that live on the same axes; and its positions on the narrowest one.

    Axes of results count as well as those of weights: where a part of an axis is used by itself, some of it is left.
    """
    n = structure.n_units
    kind, width = np.zeros(n, np.int64), np.full(n, np.iinfo(np.int64).max)
    seen: set[bytes] = set()
    for of_layer, units in _axes(structure):
        if (key := units.tobytes()) in seen:
            continue
        seen.add(key)
        count = np.bincount(units[units != FIXED], minlength=n)
        _, kind = np.unique(kind * (int(count.max(initial=0)) + 1) + count, return_inverse=True)
        if of_layer:
            width = np.where(count > 0, np.minimum(width, count), width)
    return kind, width


def _axes(structure: Structure) -> Iterator[tuple[bool, Labels]]:
    """Units along every axis, and whether a layer computes along it; those first."""
    for layer in structure.layers:
        if layer.weight:
            yield from ((True, units) for units in layer.axes if units is not None)
    for key in sorted(structure.parameters):
        yield False, structure.parameters[key]
    for name in structure.nodes:
        for axes, _ in structure.results(name):
            yield from ((False, units) for units in axes if units is not None)


def _classes(kind: Labels) -> list[Labels]:
    """Units of the same kind, in the order of the first of each."""
    order = np.argsort(kind, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(kind[order])) + 1) if len(kind) else []
    return sorted(parts, key=lambda units: int(units[0]))


def matches(weight: str, patterns: Sequence[str]) -> bool:
    """Does a pattern name a weight or its layer?"""
    layer = weight.rpartition(".")[0] or weight
    return any(fnmatch.fnmatchcase(name, p) for p in patterns for name in (weight, layer))
