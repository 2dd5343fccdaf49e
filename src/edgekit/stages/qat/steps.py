"""Which scales of a quantized graph move together while they are learned, and which may not move at all.

The graph alone tells: a tensor that ops have only moved or selected from has the grid of its source; the result of a
product that changes no integer keeps its ratio to its factor; softmax, sigmoid and tanh have the grid that their
kernels demand.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.quantize.bias import constant_of
from edgekit.stages.quantize.rules import FIXED_GRIDS, RULES, Kind, aten

qd = torch.ops.quantized_decomposed
QUANTIZE = qd.quantize_per_tensor.default
DEQUANTIZE = qd.dequantize_per_tensor.default

# A constant is on an int8 grid of its own, so its product is known to no more digits.
SAME_RATIO = 1e-4


@dataclass(frozen=True)
class Families:
    """Quantize nodes by the parameter that their scales follow.

    Attributes:
        root: name of a quantize node to the name of the first of those that follow one parameter.
        fixed: roots whose scales stay.
    """

    root: Mapping[str, str]
    fixed: frozenset[str]

    def learned(self, name: str) -> str | None:
        """The root whose growth the scale of a quantize node follows, None where it is fixed."""
        root = self.root[name]
        return None if root in self.fixed else root


def families(graph: GraphModule) -> Families:
    """Find out which scales depend on each other.

    Args:
        graph: of a `QuantizedProgram`; it is not changed.
    """
    nodes = list(graph.graph.find_nodes(op="call_function", target=QUANTIZE))
    joined = _Joined([n.name for n in nodes])
    fixed: set[str] = set()
    for node in nodes:
        for source in _origins(node.args[0]):
            if source.args[1:3] != node.args[1:3]:
                continue
            before = source.args[0]
            assert isinstance(before, Node)
            if before.target is QUANTIZE:
                joined.join(before.name, node.name)
            else:
                # A constant among what is concatenated: its integers hold for this grid only.
                fixed.add(node.name)
        if _is_predetermined(node):
            fixed.add(node.name)
    for node, before, free_at_any_scale in _free_arithmetic(graph, nodes):
        joined.join(before.name, node.name)
        if not free_at_any_scale:
            fixed.add(node.name)
    root = {n.name: joined.root(n.name) for n in nodes}
    return Families(root, frozenset(root[name] for name in fixed))


class _Joined:
    """Union-find; the root is the first in the order of the names given."""

    def __init__(self, names: list[str]) -> None:
        self.parent = {name: name for name in names}
        self.order = {name: i for i, name in enumerate(names)}

    def root(self, name: str) -> str:
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def join(self, one: str, other: str) -> None:
        first, second = sorted((self.root(one), self.root(other)), key=self.order.__getitem__)
        self.parent[second] = first


def _origins(source: object) -> Iterator[Node]:
    """The dequantize nodes whose values arrive here unchanged but for their places and their limits."""
    if not isinstance(source, Node):
        return
    if source.target is DEQUANTIZE:
        yield source
    elif source.target is operator.getitem or RULES.get(source.target) in {Kind.SHARED, Kind.CLAMP}:
        for before in source.all_input_nodes:
            yield from _origins(before)


def _is_predetermined(node: Node) -> bool:
    source = node.args[0]
    grid = FIXED_GRIDS.get(source.target) if isinstance(source, Node) else None
    return grid is not None and (grid.scale, grid.zero_point) == node.args[1:3]


def _free_arithmetic(graph: GraphModule, nodes: list[Node]) -> Iterator[tuple[Node, Node, bool]]:
    """Quantize nodes after and before a sum or product with a number that changes no integer.

    A product stays free at any scale; a sum only while the number is a whole count of steps.
    """
    for node in nodes:
        source = node.args[0]
        while isinstance(source, Node) and RULES.get(source.target) is Kind.CLAMP:
            source = source.args[0]
        if not isinstance(source, Node) or source.target not in {aten.add.Tensor, aten.mul.Tensor}:
            continue
        sides = [a for a in source.args[:2] if isinstance(a, Node) and a.target is DEQUANTIZE]
        tensors = [a.args[0] for a in sides if isinstance(a.args[0], Node) and a.args[0].target is QUANTIZE]
        numbers = [v for a in sides if (v := _number(graph, a)) is not None]
        if len(tensors) != 1 or len(numbers) != 1:
            continue
        before = tensors[0]
        if source.target is aten.add.Tensor and before.args[1] == node.args[1]:
            yield node, before, False
        elif source.target is aten.mul.Tensor and math.isclose(
            float(node.args[1]), float(before.args[1]) * numbers[0], rel_tol=SAME_RATIO
        ):
            yield node, before, True


def _number(graph: GraphModule, dequantize: Node) -> float | None:
    """Value of a constant on the grid that has one element."""
    source, scale, zero_point = dequantize.args[:3]
    if not isinstance(source, Node) or source.op != "get_attr":
        return None
    value = constant_of(graph, source)
    return (float(value) - int(zero_point)) * float(scale) if value.numel() == 1 else None
