"""What layers multiply with becomes a parameter of its own, where it is not one.

Weight norm divides a weight by its own length: whoever removes inputs of the layer changes the length of what is
left. The product alone is a weight like any other, and so is what spectral norm leaves. A frozen TorchScript file has
no parameters at all, and one and the same constant wherever the numbers were equal.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.prune.basics import op_name
from edgekit.stages.prune.context import arguments
from edgekit.stages.prune.graphs import attribute, drop_unused, set_argument
from edgekit.stages.prune.rules import POINTWISE, RULES
from edgekit_converters.program import Program

# Arguments of layers that training changes.
TRAINED: Final = ("weight", "bias", "params", "w_ih", "w_hh", "b_ih", "b_hh", "mat2")


def plain(program: Program) -> Program:
    """The same network, with weights that can be narrowed and trained.

    Args:
        program: it is not changed.

    Returns:
        A program whose remaining nodes have the same names; the program itself where there is nothing to do.
    """
    frozen = not any(True for _ in program.graph.parameters())
    if not frozen and not _computed(program.graph):
        return program
    graph = copy.deepcopy(program.graph)
    if frozen:
        _thaw(graph)
    for node in _computed(graph):
        _bake(graph, node)
    drop_unused(graph)
    graph.graph.lint()
    graph.recompile()
    return replace(program, graph=graph)


def _thaw(graph: GraphModule) -> None:
    """Constants of layers become parameters; vectors, which may be equal by chance, one for every layer."""
    made: dict[str, Node] = {}

    def thawed(old: object, place: str) -> object:
        """The node of a parameter for that of a constant."""
        if not isinstance(old, Node) or old.op != "get_attr":
            return old
        tensor = attribute(graph, str(old.target))
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            return old
        key = f"{old.target}_{place}" if tensor.dim() <= 1 else f"{old.target}_weight"
        if key not in made:
            made[key] = _parameter(graph, old, key.replace(".", "_"), tensor)
        return made[key]

    for node in list(graph.graph.nodes):
        given = arguments(node) if isinstance(node.target, torch._ops.OpOverload) else {}
        for name in TRAINED:
            if isinstance(listed := given.get(name), (list, tuple)):
                new = [thawed(old, f"{node.name}_{name}_{k}") for k, old in enumerate(listed)]
                set_argument(node, name, new)
            elif name in given and (one := thawed(given[name], f"{node.name}_{name}")) is not given[name]:
                set_argument(node, name, one)


def _parameter(graph: GraphModule, before: Node, target: str, value: torch.Tensor) -> Node:
    graph.register_parameter(target, torch.nn.Parameter(value.detach().clone()))
    with graph.graph.inserting_before(before):
        return graph.graph.get_attr(target)


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
                values[of] = attribute(graph, str(of.target))
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
