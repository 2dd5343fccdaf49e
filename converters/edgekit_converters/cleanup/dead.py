"""Code that no output reads, and constants and calls that are there twice."""

from __future__ import annotations

import hashlib
import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import constant, replace


def run(graph: GraphModule) -> int:
    """Removes what no output depends on; inputs stay, they are the signature.

    Args:
        graph: functional program graph; edited. Attributes that no node reads are left to the caller, who
            builds the module anew from its graph.

    Returns:
        number of nodes removed.
    """
    before = len(graph.graph.nodes)
    graph.graph.eliminate_dead_code()
    return before - len(graph.graph.nodes)


def merge_duplicates(graph: GraphModule) -> int:
    """Merges equal constants, then calls with equal arguments.

    Args:
        graph: functional program graph; edited.

    Returns:
        number of nodes removed.
    """
    count = 0
    seen: dict[Any, Node] = {}
    for node in list(graph.graph.nodes):
        key = _key(graph, node)
        if key is None:
            continue
        first = seen.setdefault(key, node)
        if first is not node:
            replace(node, first)
            count += 1
    return count


def _key(graph: GraphModule, node: Node) -> Any:
    """What two nodes must share to be one; None when they must not be merged."""
    if node.op == "get_attr":
        tensor = constant(graph, node)
        return (
            None
            if tensor is None
            else ("constant", str(tensor.dtype), tuple(tensor.shape), _identity(graph, node))
        )
    if node.op != "call_function":
        return None
    if isinstance(node.target, torch._ops.OpOverload):
        random = torch.Tag.nondeterministic_seeded in node.target.tags
        if random or node.target._schema.is_mutable:
            return None
    elif node.target is not operator.getitem:
        return None
    return ("call", node.target, _frozen(node.args), _frozen(node.kwargs))


def _identity(graph: GraphModule, node: Node) -> Any:
    """Weights are one only when they are tied: two biases of zeros must stay free to differ later."""
    tensor = operator.attrgetter(str(node.target))(graph)
    if isinstance(tensor, torch.nn.Parameter):
        return tensor.data_ptr(), tensor.stride()
    return _digest(tensor)


def _frozen(value: Any) -> Any:
    """Arguments as a hashable value; the type is part of it, because 1 == 1.0 == True."""
    if isinstance(value, list | tuple):
        return ("sequence", *(_frozen(entry) for entry in value))
    if isinstance(value, dict):
        return ("mapping", *((name, _frozen(value[name])) for name in sorted(value)))
    if isinstance(value, slice):
        return ("slice", _frozen((value.start, value.stop, value.step)))
    return value if isinstance(value, Node) else (type(value), repr(value))


def _digest(tensor: torch.Tensor) -> bytes:
    # Bytes, not values: two NaN are equal here, and 0.0 and -0.0 are not.
    raw = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).digest()
