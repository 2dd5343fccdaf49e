"""Which positions on which axes stand or fall together: atoms, joined and pinned, then numbered as units.

Every axis that may get narrower carries one atom per position. An operation that needs two positions to be kept
or removed together joins their atoms; one that needs a position as it is pins it. What is joined is one *unit*:
removing it takes the same positions out of every tensor that holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Labels: TypeAlias = NDArray[np.int64]
# One entry per axis of a tensor: an atom per position, or None where every position stays.
Axes: TypeAlias = tuple[Labels | None, ...]

FIXED: Final = -1


class Atoms:
    """Atoms under construction; `units` numbers what came out."""

    def __init__(self) -> None:
        self._count = 0
        self._joined: list[tuple[Labels, Labels]] = []
        self._pinned: list[tuple[Labels, str]] = []
        self._roots: Labels | None = None

    def fresh(self, size: int) -> Labels:
        """New atoms for an axis, each by itself."""
        self._roots = None
        self._count += size
        return np.arange(self._count - size, self._count)

    def join(self, one: Labels, other: Labels) -> None:
        """Position by position; arrays of equal length, or one that broadcasts."""
        if one is not other:
            self._roots = None
            self._joined.append(tuple(np.broadcast_arrays(one, other)))  # type: ignore[arg-type]

    def pin(self, labels: Labels | None, why: str) -> None:
        """These positions stay."""
        if labels is not None and labels.size:
            self._pinned.append((labels.ravel(), why))

    def roots(self) -> Labels:
        """The smallest joined atom of every atom, by pointer jumping over the pairs."""
        if self._roots is None:
            parent = np.arange(self._count)
            if self._joined:
                a = np.concatenate([one.ravel() for one, _ in self._joined])
                b = np.concatenate([other.ravel() for _, other in self._joined])
                while True:
                    of_a, of_b = parent[a], parent[b]
                    if np.array_equal(of_a, of_b):
                        break
                    low = np.minimum(of_a, of_b)
                    np.minimum.at(parent, of_a, low)
                    np.minimum.at(parent, of_b, low)
                    while not np.array_equal(parent, shorter := parent[parent]):
                        parent = shorter
            self._roots = parent
        return self._roots

    def stays(self, labels: Labels) -> NDArray[np.bool_]:
        """Which of these are pinned, as far as is known now."""
        roots = self.roots()
        pinned = np.zeros(self._count, bool)
        for found, _ in self._pinned:
            pinned[roots[found]] = True
        return pinned[roots[labels]]

    def pinned(self) -> dict[int, str]:
        """Root to the first reason why its unit stays."""
        roots = self.roots()
        found: dict[int, str] = {}
        for labels, why in self._pinned:
            for root in np.unique(roots[labels]).tolist():
                found.setdefault(root, why)
        return found

    def units(self, removable: Sequence[Labels]) -> tuple[Labels, dict[int, str]]:
        """Number the units.

        Args:
            removable: atoms that have weights; a unit without any is not worth removing and stays.

        Returns:
            Unit of every atom, `FIXED` where it stays; and root to reason for what was pinned.
        """
        roots, pinned = self.roots(), self.pinned()
        weighty = np.unique(roots[np.concatenate(removable)]) if removable else np.zeros(0, np.int64)
        free = np.setdiff1d(weighty, np.fromiter(pinned, np.int64, len(pinned)))
        number = np.full(self._count, FIXED, np.int64)
        number[free] = np.arange(len(free))
        return number[roots] if self._count else number, pinned


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """Pair the axes of two shapes of one tensor into the smallest runs with equal products.

    Args:
        before: shape of the input of a reshape.
        after: shape of its output, with the same number of values.
    """
    pairs: list[tuple[range, range]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        start_i, start_j = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while left != right:
            if left < right and i < len(before):
                left *= before[i]
                i += 1
            elif j < len(after):
                right *= after[j]
                j += 1
            else:
                raise ValueError(f"shapes {tuple(before)} and {tuple(after)} differ in size")
        pairs.append((range(start_i, i), range(start_j, j)))
    return pairs


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape of what a node gave; of nothing else than a tensor."""
    return tuple(value.shape) if hasattr(value, "shape") else ()
