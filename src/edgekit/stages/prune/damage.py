"""How far the answers move when part of the network goes, measured by leaving it out.

Estimates from gradients rank the units of one layer well, but half of a layer or a whole residual branch is no small
change: on ResNet-20 they are off by factors between 3 and 400, differently from layer to layer. So estimates say in
which order units go, and these measurements say how many of them, and where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from edgekit.evaluate import class_axis
from edgekit.stages.prune.branches import Branch, gated
from edgekit.stages.prune.costs import macs
from edgekit.stages.prune.groups import Group
from edgekit.stages.prune.importance import followers, not_finite, weights_of
from edgekit.stages.prune.trace import Structure, keep_all
from edgekit.stages.prune.units import Labels
from edgekit_converters.program import Program

Batch = tuple[Tensor, ...]

# Widths of a group that are measured, and samples that are looked at. Both are fewer where a network is large, so that
# measuring ends after a minute or two. Between two widths the damage is a straight line.
LEVELS: Final = (16, 8, 4)
SAMPLES, FEWEST, BATCH = 256, 8, 32
MULTIPLICATIONS: Final = 3e12
# Values of answers that are kept to compare with, and of a batch.
KEPT, AT_ONCE = 1 << 26, 1 << 22
# What no finite divergence was measured for is worse than everything else.
WORST: Final = 1e9


@dataclass(frozen=True)
class Curve:
    """What narrowing a group does, or leaving a branch out.

    Attributes:
        order: units, those first that go first.
        left: counts of units that may be left, ascending; the last one is all of them.
        damage: mean divergence of a sample's answers with so many left; falls to zero.
    """

    order: Labels
    left: tuple[int, ...]
    damage: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.left) != len(self.damage) or self.left[-1] != len(self.order):
            raise ValueError(f"{len(self.damage)} values for {self.left} of {len(self.order)} units")
        if any(a >= b for a, b in zip(self.left, self.left[1:], strict=False)):
            raise ValueError(f"counts do not rise: {self.left}")
        if any(a < b for a, b in zip(self.damage, self.damage[1:], strict=False)) or self.damage[-1]:
            raise ValueError(f"damage does not fall to zero: {self.damage}")

    def at(self, n: int) -> float:
        """Damage where `n` units are left, between `left[0]` and all."""
        return float(np.interp(n, self.left, self.damage))


def block_of(group: Group, multiple: int) -> int:
    """So many units of a group stand for `multiple` positions."""
    return max(1, multiple // group.width)


def measure(
    program: Program,
    structure: Structure,
    among: Sequence[Group],
    blocks: Sequence[Branch],
    importance: np.ndarray,
    batches: Iterable[Batch],
    *,
    multiple: int,
    step: Callable[[str], None],
) -> tuple[Curve, ...]:
    """Measure every group at several widths, and every branch.

    Args:
        program: that was traced.
        structure: of it.
        among: groups that may be narrowed.
        blocks: branches that may go.
        importance: of every unit; the least important go first.
        batches: calibration inputs.
        multiple: of positions that a group keeps.
        step: told the progress.

    Returns:
        One curve per group, then one per branch, which counts as a unit of its own after those of the structure.

    Raises:
        UsageError: the network gives NaN or infinity for an input.
    """
    plans, n_samples = _effort(structure, among, multiple, len(blocks))
    n_runs = sum(map(len, plans)) + len(blocks)
    run = _Left(program, structure, blocks, _some(program, batches, n_samples))
    orders = [group.units[np.argsort(importance[group.units], kind="stable")] for group in among]
    done, curves = 0, []
    for group, order, levels in zip(among, orders, plans, strict=True):
        found = []
        for n in levels:
            done += 1
            step(
                f"measuring {group.name.removesuffix('.weight')} with {n} of {len(order)} · {done} of {n_runs}"
            )
            found.append(run.without(order[: len(order) - n]))
        # More units are never worse: what the samples say else is noise.
        falling = np.maximum.accumulate(found[::-1])[::-1].tolist() if found else []
        curves.append(Curve(order, (*levels, len(order)), (*falling, 0.0)))
    for i, branch in enumerate(blocks):
        done += 1
        step(f"measuring without {branch.name} · {done} of {n_runs}")
        unit = np.array([structure.n_units + i])
        curves.append(Curve(unit, (0, 1), (run.without(unit), 0.0)))
    return tuple(curves)


def _effort(
    structure: Structure, among: Sequence[Group], multiple: int, branches: int
) -> tuple[list[list[int]], int]:
    """Widths of every group, and samples: as many as the network allows, so that results repeat."""
    plans: list[list[int]] = []
    allowed = 0.0
    for most in LEVELS:
        plans = [_levels(len(group.units), block_of(group, multiple), most) for group in among]
        runs = sum(map(len, plans)) + branches
        allowed = MULTIPLICATIONS / max(1.0, macs(structure)(keep_all(structure)) * runs)
        if allowed >= FEWEST:
            break
    return plans, int(np.clip(allowed, FEWEST, SAMPLES))


def _levels(n: int, block: int, most: int) -> list[int]:
    """Multiples of a block below `n`, ascending; at most so many, at about even distances."""
    whole = np.arange(block, n, block)
    if len(whole) <= most:
        return [int(k) for k in whole]
    return [int(whole[i]) for i in np.unique(np.linspace(0, len(whole) - 1, most).round().astype(int))]


def _some(program: Program, batches: Iterable[Batch], wanted: int) -> list[Batch]:
    """The first samples, in batches that memory bears."""
    answers = max(1, sum(math.prod(info.shape) for info in program.outputs))
    wanted = min(wanted, max(1, KEPT // answers))
    size = min(BATCH, max(1, AT_ONCE // answers)) if program.dynamic_batch else 1
    found: list[Batch] = []
    for batch in batches:
        for i in range(0, len(batch[0]), size):
            if wanted <= 0:
                return found
            found.append(tuple(x[i : i + min(size, wanted)] for x in batch))
            wanted -= len(found[-1][0])
    return found


class _Left:
    """The network with some of its units at zero."""

    def __init__(
        self, program: Program, structure: Structure, blocks: Sequence[Branch], samples: Sequence[Batch]
    ) -> None:
        graph, gates = gated(program, blocks)
        self._graph, self._gates, self._samples = graph, gates, samples
        self._n_units = structure.n_units
        self._weights = weights_of(graph, structure)
        self._axes = {key: units for key, units in followers(structure).items() if key[0] in self._weights}
        self._whole = [self._answers(batch) for batch in samples]
        if not all(bool(y.isfinite().all()) for ys in self._whole for y in ys if y.is_floating_point()):
            raise not_finite()
        self._spreads = [
            spread(torch.cat([y.flatten() for y in ys])) for ys in zip(*self._whole, strict=True)
        ]

    def without(self, gone: Labels) -> float:
        """Mean divergence of a sample's answers without some units or branches."""
        kept: dict[str, Tensor] = {}
        with torch.no_grad():
            for gate in (self._gates[unit - self._n_units] for unit in gone if unit >= self._n_units):
                gate.zero_()
            for (target, axis), units in self._axes.items():
                positions = np.flatnonzero(np.isin(units, gone))
                if len(positions):
                    weight = self._weights[target]
                    kept.setdefault(target, weight.detach().clone())
                    weight.index_fill_(axis, torch.from_numpy(positions), 0.0)
            try:
                total = sum(
                    divergence(whole, self._answers(batch), self._spreads)
                    for whole, batch in zip(self._whole, self._samples, strict=True)
                )
            finally:
                for target, value in kept.items():
                    self._weights[target].copy_(value)
                for gate in self._gates:
                    gate.fill_(1.0)
        mean = total / sum(len(batch[0]) for batch in self._samples)
        return float(np.clip(mean, 0.0, WORST)) if np.isfinite(mean) else WORST

    def _answers(self, batch: Batch) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(self._graph(*batch))


def divergence(whole: Sequence[Tensor], left: Sequence[Tensor], spreads: Sequence[float]) -> float:
    """How far answers have moved, summed over samples and outputs.

    Kullback and Leibler's divergence for classes; half the squared distance in units of the spread for other values,
    which is that of normal distributions; the share that differs for whole numbers.

    Args:
        whole: outputs of the whole network.
        left: of the other one, of the same shapes.
        spreads: of each output over all samples.
    """
    total = 0.0
    for a, b, unit in zip(whole, left, spreads, strict=True):
        axis = class_axis(a.numpy())
        if not a.is_floating_point():
            total += float((a != b).double().mean()) * (len(a) if a.dim() else 1)
        elif axis is None:
            total += float((((a - b).double() / unit) ** 2).sum()) / 2
        else:
            p, q = (y.double().log_softmax(axis) for y in (a, b))
            total += float((p.exp() * (p - q)).sum())
    return total


def spread(values: Tensor) -> float:
    """Standard deviation of an output; its size where it is the same for all samples, or one where that is zero."""
    values = values.double()
    return float(values.std(correction=0)) or float(values.abs().mean()) or 1.0


def to_arrays(curves: Sequence[Curve]) -> dict[str, np.ndarray]:
    """Curves as named arrays, to be kept in a file."""
    return {
        f"{name}_{i}": np.asarray(getattr(curve, name))
        for i, curve in enumerate(curves)
        for name in ("order", "left", "damage")
    }


def from_arrays(arrays: Mapping[str, np.ndarray], n: int) -> tuple[Curve, ...]:
    """`n` curves out of `to_arrays`."""
    return tuple(
        Curve(
            arrays[f"order_{i}"], tuple(arrays[f"left_{i}"].tolist()), tuple(arrays[f"damage_{i}"].tolist())
        )
        for i in range(n)
    )
