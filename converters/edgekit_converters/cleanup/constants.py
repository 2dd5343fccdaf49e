"""What depends on constants only is computed once: standardised weights, resized position tables, masks."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgekit_converters.cleanup.edit import add_constant, constant, replace

# A folded tensor may be this large even if it grew out of nothing, such as `zeros` or `arange`, …
_FREE_BYTES = 1 << 20
# … and beyond that no more than this multiple of the constants it was computed from.
_GROWTH = 2


def run(graph: GraphModule) -> int:
    """Evaluates the largest constant subgraphs.

    Random calls are not constant. A result that would make the model much larger (a small table expanded to a
    large one) stays a computation.

    Args:
        graph: functional program graph; edited.

    Returns:
        number of calls that became constants.
    """
    values: dict[Node, Any] = {}
    sizes: dict[Node, int] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            tensor = constant(graph, node)
            if tensor is not None:
                values[node], sizes[node] = tensor, _bytes(tensor)
        elif _is_pure(node) and all(source in values for source in node.all_input_nodes):
            _evaluate(node, values, sizes)
    folded = [node for node in values if _is_frontier(node, values)]
    for node in folded:
        replace(node, add_constant(graph, node, f"{node.name}_constant", values[node].clone(), like=node))
    return len(folded)


def _is_pure(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return not random and not node.target._schema.is_mutable and bool(node.target._schema.returns)


def _evaluate(node: Node, values: dict[Node, Any], sizes: dict[Node, int]) -> None:
    args, kwargs = map_arg((node.args, node.kwargs), lambda argument: values[argument])
    assert callable(node.target)
    with torch.no_grad():
        result = node.target(*args, **kwargs)
    parts = result if isinstance(result, list | tuple) else [result]
    if not all(isinstance(part, torch.Tensor) for part in parts):
        return
    source_bytes = sum(sizes[source] for source in node.all_input_nodes)
    # A view of a large constant is judged by what it would take when written out.
    own_bytes = sum(_bytes(part) for part in parts)
    if own_bytes <= max(_FREE_BYTES, _GROWTH * source_bytes):
        values[node], sizes[node] = result, own_bytes


def _is_frontier(node: Node, values: dict[Node, Any]) -> bool:
    """Computed, one tensor, and read by something that is not constant itself."""
    if node.op == "get_attr" or not isinstance(values[node], torch.Tensor):
        return False
    return any(user not in values for user in node.users)


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())
