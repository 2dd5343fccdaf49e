"""What a rule sees of the graph while the axes are followed through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.fx import Node

from edgekit.bench.layers import LayerShape
from edgekit.stages.prune.units import Atoms, Axes, Labels, shape_of

# Of a tensor, or of each tensor that an operation gives.
Value: TypeAlias = Axes | list[Axes]


@dataclass(frozen=True)
class Layer:
    """An operation that costs time, and the axes that its cost is proportional to.

    Attributes:
        node: its name.
        op: "conv2d", "linear", ….
        macs: multiplications at batch one, as the network is.
        axes: atoms along each axis that the cost is proportional to, outputs first, then inputs; None for an axis that
            stays.
        weight: target of its weight, or "".
        shape: what its latency is looked up by; None for what has no table.
        reads: node that it reads.
    """

    node: str
    op: str
    macs: int
    axes: Axes
    weight: str = ""
    shape: LayerShape | None = None
    reads: str = ""


@dataclass
class Context:
    """The state of one walk.

    Attributes:
        atoms: of all axes.
        shapes: of what every node gives: a shape, or a list of shapes.
        choices: name of a node that splits an axis to the number of the part that is followed.
        values: labels of what every node gives.
        parameters: (target, axis) to its labels.
        weights: name of a node that is computed from weights alone to the target of the first of them.
        reads: labels along axes of weights whose positions belong to what the layer reads.
        layers: what costs time.
        refused: weight to the reason why no rule follows what is done with it.
        splits: parts of axes with a choice, and how many there are.
        followed: the labels of the part that is followed there.
    """

    atoms: Atoms
    shapes: Mapping[str, Any]
    choices: Mapping[str, int]
    values: dict[str, Value] = field(default_factory=dict)
    parameters: dict[tuple[str, int], Labels] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    reads: list[Labels] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    followed: dict[str, Labels] = field(default_factory=dict)

    def of(self, value: Any) -> Axes:
        """Labels of an argument: of a tensor, or of nothing for numbers."""
        if not isinstance(value, Node):
            return ()
        found = self.values[value.name]
        assert isinstance(found, tuple)
        return found

    def shape(self, value: Any) -> tuple[int, ...]:
        """Shape of an argument, or of what a node gives."""
        return tuple(self.shapes[value.name]) if isinstance(value, Node) else ()

    def pin(self, labels: Labels | None, node: Node, why: str) -> None:
        """The positions stay because of a node."""
        self.atoms.pin(labels, f"{node.name}: {why}")

    def pin_all(self, node: Node, value: Any, why: str) -> None:
        """Every axis of an argument stays, or of each where it is several."""
        found = self.values[value.name] if isinstance(value, Node) else ()
        for axes in found if isinstance(found, list) else [found]:
            for labels in axes:
                self.pin(labels, node, why)

    def join(self, node: Node, one: Labels | None, other: Labels | None) -> Labels | None:
        """Two axes of equal length belong together; where one stays, the other does."""
        if one is None or other is None:
            self.pin(one if other is None else other, node, "joins what stays")
            return None
        if len(one) != len(other):
            self.pin(one, node, "joins axes of different lengths")
            self.pin(other, node, "joins axes of different lengths")
            return None
        self.atoms.join(one, other)
        return one

    def reading(self, value: Any, axis: int) -> None:
        """An axis of a weight follows what the layer reads."""
        if isinstance(value, Node) and value.name in self.weights:
            labels = self.of(value)[axis]
            if labels is not None:
                self.reads.append(labels)

    def open(self, labels: Labels | None) -> bool:
        """Does a layer give these positions, and may some go, as far as is known now?"""
        if labels is None:
            return False
        roots = self.atoms.roots()
        given = [roots[layer.axes[0]] for layer in self.layers if layer.weight and layer.axes[0] is not None]
        weighty = np.isin(roots[labels], np.concatenate(given)) if given else np.zeros(len(labels), bool)
        return bool((weighty & ~self.atoms.stays(labels)).any())

    def layer(
        self,
        node: Node,
        op: str,
        macs: float,
        axes: Sequence[Labels | None],
        weight: Any = None,
        shape: LayerShape | None = None,
    ) -> None:
        """Note what an operation costs; with a weight, the axes begin with those of its outputs."""
        target = self.weights.get(weight.name, "") if isinstance(weight, Node) else ""
        read = next((n for n in node.all_input_nodes if n.name not in self.weights), node.all_input_nodes[0])
        self.layers.append(Layer(node.name, op, int(macs), tuple(axes), target, shape, read.name))


def arguments(node: Node) -> dict[str, Any]:
    """Arguments of a call by name, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    bound = {a.name: a.default_value for a in schema if a.has_default_value()}
    bound |= {a.name: v for a, v in zip(schema, node.args, strict=False)}
    return bound | dict(node.kwargs)


def wrapped(axis: int, rank: int) -> int:
    """Axis counted from the front."""
    return axis % rank if rank else 0


def kept_shape(axes: Axes, shape: Sequence[int], keep: np.ndarray) -> tuple[int, ...]:
    """Shape of a tensor after units are removed.

    Args:
        axes: units along each axis, `FIXED` where a position stays, None for a whole axis that stays.
        shape: before.
        keep: bool for every unit; its last entry, which `FIXED` selects, is True.
    """
    return tuple(int(keep[a].sum()) if a is not None else n for a, n in zip(axes, shape, strict=True))


__all__ = ["Context", "Layer", "Value", "arguments", "kept_shape", "shape_of", "wrapped"]
