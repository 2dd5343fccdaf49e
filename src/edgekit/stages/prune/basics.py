"""What all rules share: refusal, and values that meet at the same place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch.fx import Node

from edgekit.stages.prune.context import Context, Value
from edgekit.stages.prune.units import Axes, Labels

# From the arguments of a call by name to the labels of what it gives.
Rule: TypeAlias = Callable[[Context, Node, Mapping[str, Any]], Value]


def op_name(node: Node) -> str:
    """`conv2d` of `aten.conv2d.default`."""
    return str(node.target).split(".")[1]


def refused(t: Context, node: Node, why: str) -> Value:
    """Nothing that enters a node gets narrower."""
    for operand in node.all_input_nodes:
        t.pin_all(node, operand, why)
        if operand.name in t.weights and any(labels is not None for labels in t.of(operand)):
            t.refused.setdefault(t.weights[operand.name], f"{node.name}: {why}")
    return nothing(t, node)


def nothing(t: Context, node: Node) -> Value:
    """Every axis of what a node gives stays."""
    shape = t.shapes[node.name]
    if isinstance(shape, list):
        return [tuple(None for _ in s) for s in shape]
    return tuple(None for _ in shape)


def several(t: Context, node: Node, axes: Axes) -> Value:
    """The same axes for every result of a node that gives several."""
    shapes = t.shapes[node.name]
    return [axes for _ in shapes] if isinstance(shapes, list) else axes


def broadcast(t: Context, node: Node, x: Axes, xs: Sequence[int], y: Axes, ys: Sequence[int]) -> Axes:
    """Labels after two tensors met; the shapes are aligned at their last axes."""
    rank = max(len(x), len(y))
    x, xs = (None,) * (rank - len(x)) + x, (1,) * (rank - len(xs)) + tuple(xs)
    y, ys = (None,) * (rank - len(y)) + y, (1,) * (rank - len(ys)) + tuple(ys)
    out: list[Labels | None] = []
    for one, n, other, m in zip(x, xs, y, ys, strict=True):
        if n == 1 or m == 1:
            out.append(other if n == 1 else one)
        else:
            out.append(t.join(node, one, other))
    return tuple(out)


def elementwise(t: Context, node: Node, operands: Sequence[Node]) -> Axes:
    """Values at the same place, after broadcasting."""
    return broadcast_all(t, node, [(t.of(operand), t.shape(operand)) for operand in operands])


def broadcast_all(t: Context, node: Node, operands: Sequence[tuple[Axes, Sequence[int]]]) -> Axes:
    """Labels after several tensors met, each given by its labels and its shape."""
    out: Axes = ()
    shape: tuple[int, ...] = ()
    for axes, size in operands:
        out = broadcast(t, node, out, shape, axes, size)
        shape = tuple(np.broadcast_shapes(shape, tuple(size)))
    return out


def alike(t: Context, labels: Labels | None, groups: int) -> None:
    """The same positions of every group stay."""
    if labels is not None:
        by_group = labels.reshape(groups, -1)
        t.atoms.join(np.broadcast_to(by_group[:1], by_group.shape), by_group)


def as_one(t: Context, labels: Labels, each: int) -> Labels:
    """So many neighbours stay or go as one; the first of each."""
    rows = labels.reshape(-1, each)
    t.atoms.join(np.broadcast_to(rows[:, :1], rows.shape), rows)
    return rows[:, 0].copy()
