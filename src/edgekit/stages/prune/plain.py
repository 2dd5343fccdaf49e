"""Weights that a program computes from other weights become weights themselves.

Weight norm divides a weight by its own length: whoever removes inputs of the layer changes the length of what is
left. The product alone is a weight like any other, and so is what spectral norm leaves.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.prune.basics import op_name
from edgekit.stages.prune.rules import POINTWISE, RULES
from edgekit_converters.program import Program


def plain(program: Program) -> Program:
    """The same network, without operations on weights that pruning cannot follow.

    Args:
        program: it is not changed.

    Returns:
        A program whose remaining nodes have the same names; the program itself where there is nothing to do.
    """
    if not _computed(program.graph):
        return program
    graph = copy.deepcopy(program.graph)
    for node in _computed(graph):
        _bake(graph, node)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    return replace(program, graph=graph)


def _computed(graph: GraphModule) -> list[Node]:
    """Nodes that depend on weights alone, do what no rule follows, and give one tensor."""
    constant: set[Node] = set()
    found = []
    for node in graph.graph.nodes:
        read = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and read and constant.issuperset(read)):
            constant.add(node)
            if isinstance(node.target, torch._ops.OpOverload) and not _followed(node.target, op_name(node)):
                found.append(node)
    return found


def _followed(op: torch._ops.OpOverload, name: str) -> bool:
    return name in RULES or name in POINTWISE or torch.Tag.pointwise in op.tags


def _bake(graph: GraphModule, node: Node) -> None:
    """Put a parameter in the place of a node."""
    values: dict[Node, object] = {}

    def value(of: Node) -> object:
        if of not in values:
            if of.op == "get_attr":
                values[of] = _attribute(graph, str(of.target))
            else:
                assert callable(of.target)
                args, kwargs = (torch.fx.map_arg(given, value) for given in (of.args, of.kwargs))
                values[of] = of.target(*args, **kwargs)
        return values[of]

    with torch.no_grad():
        made = value(node)
    if not isinstance(made, torch.Tensor):
        return
    target = _place(graph, node)
    owner, _, name = target.rpartition(".")
    # A number by itself is a scale that was settled; what has axes is trained on.
    if made.is_floating_point() and made.dim():
        graph.get_submodule(owner).register_parameter(name, torch.nn.Parameter(made.clone()))
    else:
        graph.get_submodule(owner).register_buffer(name, made.clone())
    with graph.graph.inserting_before(node):
        weight = graph.graph.get_attr(target)
    node.replace_all_uses_with(weight)
    graph.graph.erase_node(node)


def _place(graph: GraphModule, node: Node) -> str:
    """Where the layer would have its weight: `conv.weight` for `conv.parametrizations.weight.original0`."""
    first = node
    while first.op != "get_attr":
        first = first.all_input_nodes[0]
    layer, parametrized, rest = str(first.target).partition(".parametrizations.")
    wanted = f"{layer}.{rest.partition('.')[0]}" if parametrized else f"{first.target}_{node.name}"
    owner, _, name = wanted.rpartition(".")
    taken = hasattr(graph.get_submodule(owner), name)
    return f"{wanted}_{node.name}" if taken else wanted


def _attribute(graph: GraphModule, target: str) -> object:
    owner, _, name = target.rpartition(".")
    return getattr(graph.get_submodule(owner), name)
