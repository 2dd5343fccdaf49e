"""Reading and changing graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node


def attribute(graph: GraphModule, target: str) -> Any:
    """What a `get_attr` node gives."""
    owner, _, name = target.rpartition(".")
    return getattr(graph.get_submodule(owner), name)


def set_argument(node: Node, name: str, value: Any) -> None:
    """Give an argument of an operation by its name, wherever it stands."""
    assert isinstance(node.target, torch._ops.OpOverload)
    index = [a.name for a in node.target._schema.arguments].index(name)
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)


def drop_unused(graph: GraphModule) -> None:
    """Remove operations whose results nobody needs, and weights that no operation reads."""
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    used = {str(node.target) for node in graph.graph.find_nodes(op="get_attr")}
    for target in {*dict(graph.named_parameters()), *dict(graph.named_buffers())} - used:
        owner, _, name = target.rpartition(".")
        delattr(graph.get_submodule(owner), name)
