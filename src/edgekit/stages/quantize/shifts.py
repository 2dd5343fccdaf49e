"""`x + c` and `x · c` with a number `c`: grids on which they change no integer at all.

With `c` a whole number `k` of steps, `x + c` on the grid of `x` with the zero point moved by `k` has the integers of
`x`. A product by `c > 0` has them when its scale is that of `x` times `c`. A hard-swish, `x · clamp(x + 3, 0, 6) / 6`,
is then one clamp of integers and one product, and its sum is not rounded.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.stages.quantize.plan import GridPlan
from edgekit.stages.quantize.rules import RULES, Kind, aten
from edgekit_converters.program import Grid

# With fewer steps in `c`, making it a whole number of them would cost more than a rounding of the sum does.
FEWEST_STEPS: Final = 16
LOWEST, HIGHEST = -128, 127


@dataclass(frozen=True)
class FreeArithmetic:
    """What `free_arithmetic` decided.

    Attributes:
        grids: root of a group to its new grid.
        settled: roots whose grids now depend on each other and must stay.
    """

    grids: Mapping[str, Grid]
    settled: frozenset[str]


def free_arithmetic(graph: GraphModule, plan: GridPlan, grids: Mapping[str, Grid]) -> FreeArithmetic:
    """Choose grids that make sums and products with one number free.

    Args:
        graph: the float graph that was planned.
        plan: which tensors share a grid.
        grids: of every tensor on the grid, as observed.

    Returns:
        The grids that change.
    """
    members = Counter(plan.group.values())
    found: dict[str, Grid] = {}
    settled: set[str] = set()
    for node in graph.graph.nodes:
        if node.name not in plan.seeds or node.kwargs or (sides := _tensor_and_number(graph, node)) is None:
            continue
        before, after = plan.group.get(sides[0].name), plan.group.get(_result(node, plan.group).name)
        # A result that shares its grid with other tensors is not free to take this one.
        if before is None or after is None or after in {before, *plan.fixed, *settled} or members[after] > 1:
            continue
        old = found.get(before, grids[before])
        if node.target is aten.mul.Tensor:
            pair = scaled(old, sides[1]) if after == node.name else None
        else:
            pair = None if before in settled or before in plan.fixed else shifted(old, sides[1])
        if pair is not None:
            found |= {before: pair[0], after: pair[1]}
            settled |= {before, after}
    return FreeArithmetic(found, frozenset(settled))


def shifted(grid: Grid, constant: float) -> tuple[Grid, Grid] | None:
    """Grids of `x` and of `x + constant` that have the same integers.

    Args:
        grid: of `x`; its scale grows by at most 1 / `FEWEST_STEPS`, so no value is cut off that was not before.
        constant: any finite number.

    Returns:
        The two grids, or None where the constant is too few steps or the zero point leaves int8.
    """
    steps = math.floor(abs(constant) / grid.scale)
    zero_point = grid.zero_point - int(math.copysign(steps, constant))
    if steps < FEWEST_STEPS or not LOWEST <= zero_point <= HIGHEST:
        return None
    scale = float(np.float32(abs(constant) / steps))
    return Grid(scale, grid.zero_point), Grid(scale, zero_point)


def scaled(grid: Grid, constant: float) -> tuple[Grid, Grid] | None:
    """Grids of `x`, unchanged, and of `x * constant` that have the same integers; None unless `constant > 0`."""
    if constant <= 0:
        return None
    return grid, Grid(float(np.float32(grid.scale * constant)), grid.zero_point)


def _tensor_and_number(graph: GraphModule, node: Node) -> tuple[Node, float] | None:
    """The two sides of a sum or product with a constant of one element."""
    if node.target not in {aten.add.Tensor, aten.mul.Tensor}:
        return None
    sides = [a for a in node.args[:2] if isinstance(a, Node)]
    numbers = [a for a in sides if a.op == "get_attr"]
    tensors = [a for a in sides if a.op != "get_attr"]
    if len(numbers) != 1 or len(tensors) != 1:
        return None
    value: torch.Tensor = operator.attrgetter(str(numbers[0].target))(graph)
    return (tensors[0], float(value)) if value.numel() == 1 else None


def _result(node: Node, group: Mapping[str, str]) -> Node:
    """The tensor that is quantized: behind a clamp that disappears into the op, else its own."""
    readers = list(node.users)
    if node.name not in group and len(readers) == 1 and RULES.get(readers[0].target) is Kind.CLAMP:
        return readers[0]
    return node
