"""Follows every axis through the graph: what can be removed, and what must go together with what.

The dependencies are read from the ATen graph itself and not from an autograd trace: the graph shows shapes,
slices and padding, which decide what a narrower channel count breaks.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from edgekit.stages.prune.basics import elementwise, nothing, op_name, refused
from edgekit.stages.prune.context import Context, Layer, Value, arguments, wrapped
from edgekit.stages.prune.graphs import attribute
from edgekit.stages.prune.parts import getitem
from edgekit.stages.prune.rules import NUMBERS, POINTWISE, RULES
from edgekit.stages.prune.units import FIXED, Atoms, Axes, Labels
from edgekit_converters.program import Program


@dataclass(frozen=True)
class Structure:
    """What can be removed from a program.

    Every array holds a unit number per position; `FIXED` (-1) where the position stays.

    Attributes:
        n_units: how many there are.
        parameters: (target of a weight or constant, axis) to the units along it.
        reads: those axes whose positions belong to what a layer reads.
        nodes: node name to the units along each axis of what it gives; a list for several results.
        shapes: node name to shape or shapes, at batch one.
        layers: what costs time; their `axes` hold units.
        refused: weight to the reason why its outputs stay.
    """

    n_units: int
    parameters: Mapping[tuple[str, int], Labels]
    reads: frozenset[tuple[str, int]]
    nodes: Mapping[str, Value]
    shapes: Mapping[str, Any]
    layers: tuple[Layer, ...]
    refused: Mapping[str, str]

    def results(self, name: str) -> list[tuple[Axes, tuple[int, ...]]]:
        """Units and shape of everything that a node gives."""
        axes, shapes = self.nodes[name], self.shapes[name]
        if isinstance(axes, list):
            return list(zip(axes, shapes, strict=True))
        return [(axes, shapes)]


def trace(program: Program) -> Structure:
    """Find the units of a program.

    Where a reshape splits an axis into parts, such as heads and their width, the first part is followed along which
    anything can be removed: heads before their width.

    Args:
        program: float, not cleaned: batch norms may still be there.
    """
    shapes = _shapes(program)
    choices: dict[str, int] = {}
    settled: set[str] = set()
    best = _walk(program.graph, shapes, choices)
    while key := next((k for k in best.splits if k not in settled), None):
        settled.add(key)
        for number in range(1, best.splits[key]):
            if _free_along(best, key):
                break
            choices[key] = number
            best = _walk(program.graph, shapes, choices)
    return _structure(best)


def _walk(graph: GraphModule, shapes: Mapping[str, Any], choices: Mapping[str, int]) -> Context:
    context = Context(Atoms(), shapes, choices)
    shared: dict[int, Axes] = {}
    for node in graph.graph.nodes:
        read = node.all_input_nodes
        if read and all(operand.name in context.weights for operand in read):
            context.weights[node.name] = context.weights[read[0].name]
        value = _constant(context, node, graph, shared) if node.op == "get_attr" else _value(context, node)
        context.values[node.name] = _settled(context, node, value)
    return context


def _value(t: Context, node: Node) -> Value:
    if node.op == "output":
        return refused(t, node, "what the model gives")
    if node.target is operator.getitem:
        return getitem(t, node)
    if isinstance(node.target, torch._ops.OpOverload):
        return _operation(t, node, node.target)
    return refused(t, node, f"{node.target} is not known to pruning")  # also inputs, and arithmetic on sizes


def _operation(t: Context, node: Node, op: torch._ops.OpOverload) -> Value:
    name = op_name(node)
    if name in NUMBERS:
        return _number(t, node)
    if name in RULES and op.namespace == "aten":
        return RULES[name](t, node, arguments(node))
    if torch.Tag.pointwise in op.tags or name in POINTWISE:
        return elementwise(t, node, [n for n in node.all_input_nodes if isinstance(t.shapes[n.name], tuple)])
    return refused(t, node, f"{op.namespace}.{name} is not known to pruning")


def _number(t: Context, node: Node) -> Value:
    """A size, or a value, that the program calculates with: what it depends on stays."""
    if "dim" in (given := arguments(node)):
        labels = t.of(given["self"])
        t.pin(labels[wrapped(given["dim"], len(labels))], node, "its size is used as a number")
    else:
        refused(t, node, "its values or its size are used as numbers")
    return ()


def _settled(t: Context, node: Node, value: Value) -> Value:
    """Labels fit the shape; an axis with one position meets axes of any width, and stays."""
    shapes = t.shapes[node.name]
    if isinstance(value, list):
        return [_fitted(t, node, axes, shape) for axes, shape in zip(value, shapes, strict=True)]
    if isinstance(shapes, list):
        return refused(t, node, "its results are not told apart")
    return _fitted(t, node, value, shapes)


def _fitted(t: Context, node: Node, axes: Axes, shape: tuple[int, ...]) -> Axes:
    if len(axes) != len(shape) or any(
        a is not None and len(a) != n for a, n in zip(axes, shape, strict=True)
    ):
        refused(t, node, "its shape is not the one expected")
        for labels in axes:
            t.pin(labels, node, "its shape is not the one expected")
        return tuple(None for _ in shape)
    for labels, n in zip(axes, shape, strict=True):
        if n == 1:
            t.pin(labels, node, "one position is left of this axis")
    return tuple(labels if n > 1 else None for labels, n in zip(axes, shape, strict=True))


def _constant(t: Context, node: Node, graph: GraphModule, shared: dict[int, Axes]) -> Value:
    """Fresh labels on every axis; a tensor that is used twice has them once."""
    target = str(node.target)
    tensor = attribute(graph, target)
    if not isinstance(tensor, torch.Tensor):
        return nothing(t, node)
    t.weights[node.name] = target
    if id(tensor) not in shared:
        shared[id(tensor)] = tuple(t.atoms.fresh(n) if n > 1 else None for n in tensor.shape)
    axes = shared[id(tensor)]
    t.parameters |= {(target, k): labels for k, labels in enumerate(axes) if labels is not None}
    return axes


class _Shapes(Interpreter):  # type: ignore[misc]
    """Runs the program once and keeps the shape of everything."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.seen: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        several = isinstance(result, (tuple, list)) and n.op != "output"
        self.seen[n.name] = (
            [tuple(r.shape) for r in result] if several else tuple(getattr(result, "shape", ()))
        )
        return result


def _shapes(program: Program) -> dict[str, Any]:
    run = _Shapes(program.graph)
    with torch.no_grad():
        run.run(*program.example)
    return run.seen


def _removable(t: Context) -> list[Labels]:
    """Atoms along the outputs of layers: where there is no weight, there is nothing to save."""
    return [axis for axis in (layer.axes[0] for layer in t.layers if layer.weight) if axis is not None]


def _free_along(t: Context, key: str) -> bool:
    """Can one position of a split be removed and another one stay?"""
    unit, _ = t.atoms.units(_removable(t))
    along = unit[t.followed[key]]
    return len(np.unique(along[along != FIXED])) > 1


def _structure(t: Context) -> Structure:
    unit, pinned = t.atoms.units(_removable(t))
    roots = t.atoms.roots()

    def numbered(value: Value) -> Value:
        if isinstance(value, list):
            return [tuple(None if a is None else unit[a] for a in axes) for axes in value]
        return tuple(None if a is None else unit[a] for a in value)

    reasons, free = dict(t.refused), set()
    for layer in t.layers:
        outputs = layer.axes[0]
        if not layer.weight or outputs is None:
            continue
        left = unit[outputs]
        if (left == FIXED).all():
            reasons[layer.weight] = pinned[int(roots[outputs[0]])]
        elif (left == left[0]).all():
            reasons[layer.weight] = "its outputs depend on one another and could only go all together"
        else:
            free.add(layer.weight)
    layers = tuple(
        replace(layer, axes=tuple(None if a is None else unit[a] for a in layer.axes)) for layer in t.layers
    )
    return Structure(
        n_units=int(unit.max(initial=FIXED)) + 1,
        parameters={key: unit[labels] for key, labels in t.parameters.items()},
        reads=_reads(t),
        nodes={name: numbered(value) for name, value in t.values.items()},
        shapes=t.shapes,
        layers=layers,
        refused={weight: why for weight, why in reasons.items() if weight not in free},
    )


def _reads(t: Context) -> frozenset[tuple[str, int]]:
    """Axes of weights that lie along what a layer reads."""
    if not t.reads:
        return frozenset()
    read = np.unique(np.concatenate(t.reads))
    return frozenset(key for key, labels in t.parameters.items() if np.isin(labels, read).any())


def keep_all(structure: Structure) -> np.ndarray:
    """A mask that removes nothing: one bool per unit and a last one that `FIXED` selects."""
    return np.ones(structure.n_units + 1, bool)
