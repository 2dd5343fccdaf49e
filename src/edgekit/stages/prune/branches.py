"""Residual branches that can go whole: the sum that they end in becomes its other operand.

Narrow layers still cost their calls; a network that must be much faster has to be shallower as well.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.prune.graphs import drop_unused
from edgekit.stages.prune.trace import Structure
from edgekit_converters.program import Program

SUMS: Final = frozenset({torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor})


@dataclass(frozen=True)
class Branch:
    """What can be left out.

    Attributes:
        name: node of the sum.
        operand: node that goes.
        layers: nodes of the layers that go with it.
        weights: their weights, for messages and patterns.
    """

    name: str
    operand: str
    layers: frozenset[str]
    weights: tuple[str, ...]


def branches(program: Program, structure: Structure) -> tuple[Branch, ...]:
    """Find the branches, in the order of their sums.

    A branch is an operand of a sum whose layers serve nothing else and read only what the other operand is made from,
    so that without it the other operand carries on what entered. Where both operands qualify, the dearer one does.

    Args:
        program: that was traced.
        structure: of it.
    """
    macs: dict[str, int] = {}
    weights: dict[str, str] = {}
    for layer in structure.layers:
        macs[layer.node] = macs.get(layer.node, 0) + layer.macs
        weights.setdefault(layer.node, layer.weight)
    order = {node: i for i, node in enumerate(program.graph.graph.nodes)}
    found = []
    for node in program.graph.graph.nodes:
        if node.target not in SUMS or not _plain(node, structure):
            continue
        options = []
        for operand, other in ((0, 1), (1, 0)):
            gone, stays = node.args[operand], node.args[other]
            own = _exclusive(gone, node)
            layers = [n for n in own if n.name in macs and n.name not in _names(_ancestors(stays))]
            if layers and _reads(own) <= _ancestors(stays) | {stays}:
                cost = sum(macs[n.name] for n in layers)
                named = tuple(
                    weights[n.name] for n in sorted(layers, key=order.__getitem__) if weights[n.name]
                )
                options.append((cost, Branch(node.name, gone.name, frozenset(_names(layers)), named)))
        if options:
            found.append(max(options, key=lambda option: option[0])[1])
    return tuple(found)


def _plain(node: Node, structure: Structure) -> bool:
    """A sum of two tensors of the shape that it gives."""
    operands = node.args[:2]
    shapes = [structure.shapes[n.name] for n in operands if isinstance(n, Node)]
    return shapes == [structure.shapes[node.name]] * 2 and node.kwargs.get("alpha", 1) == 1


def _names(nodes: set[Node] | list[Node]) -> set[str]:
    return {node.name for node in nodes}


def _ancestors(node: Node) -> set[Node]:
    seen: set[Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        each = waiting.pop()
        if each not in seen:
            seen.add(each)
            waiting += each.all_input_nodes
    return seen


def _exclusive(node: Node, user: Node) -> set[Node]:
    """The node and those above it that nothing but `user` needs."""
    own: set[Node] = set()
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if each in own or each.op == "placeholder" or not all(u is user or u in own for u in each.users):
            continue
        own.add(each)
        waiting += each.all_input_nodes
        # What was passed over may have lost its last other user by now.
        waiting += [
            n for o in own for n in o.all_input_nodes if n not in own and all(u in own for u in n.users)
        ]
    return own


def _reads(own: set[Node]) -> set[Node]:
    """What enters a branch; its weights and sizes aside."""
    return {
        n
        for each in own
        for n in each.all_input_nodes
        if n not in own and n.op != "get_attr" and "sym_size" not in n.name
    }


def without(program: Program, gone: Sequence[Branch]) -> Program:
    """The program without some branches; what only they needed goes with them.

    Args:
        program: it is not changed. Its nodes have the names that were traced; it may be narrower.
        gone: the branches.
    """
    if not gone:
        return program
    graph = copy.deepcopy(program.graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    for branch in gone:
        node = nodes[branch.name]
        stays = next(n for n in node.args[:2] if n.name != branch.operand)
        node.replace_all_uses_with(stays)
        graph.graph.erase_node(node)
    drop_unused(graph)
    graph.graph.lint()
    graph.recompile()
    return replace(program, graph=graph)


def gated(program: Program, among: Sequence[Branch]) -> tuple[GraphModule, tuple[torch.Tensor, ...]]:
    """The program with a factor of one on every branch, that takes gradients.

    Returns:
        A copy of the graph, and the factors in the order of the branches.
    """
    graph = copy.deepcopy(program.graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    gates = []
    for i, branch in enumerate(among):
        gate = torch.nn.Parameter(torch.ones(()))
        graph.register_parameter(f"_gate_{i}", gate)
        node = nodes[branch.name]
        operand = nodes[branch.operand]
        with graph.graph.inserting_before(node):
            factor = graph.graph.get_attr(f"_gate_{i}")
            scaled = graph.graph.call_function(torch.ops.aten.mul.Tensor, (operand, factor))
        node.replace_input_with(operand, scaled)
        gates.append(gate)
    graph.recompile()
    return graph, tuple(gates)
