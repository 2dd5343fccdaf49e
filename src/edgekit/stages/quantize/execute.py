"""Running a graph node by node, holding each value only until its last reader is done."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgekit_converters.program import Grid

Batch = tuple[torch.Tensor, ...]


def run_node(graph: GraphModule, node: Node, values: Mapping[Node, Any]) -> Any:
    """Result of one `get_attr`, `call_function` or `call_module` node.

    Args:
        graph: the module that owns the node.
        node: what to compute.
        values: results of the nodes that it reads.
    """
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(graph)
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "call_module":
        return graph.get_submodule(str(node.target))(*args, **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def last_readers(graph: GraphModule) -> dict[Node, list[Node]]:
    """For each node, the nodes whose values nobody needs once it has run."""
    dying: dict[Node, list[Node]] = {}
    seen: set[Node] = set()
    for node in reversed(graph.graph.nodes):
        fresh = [source for source in (*node.all_input_nodes, node) if source not in seen]
        seen.update(fresh)
        dying[node] = fresh
    return dying


def walk(graph: GraphModule, batch: Batch) -> Iterator[tuple[Node, Any]]:
    """Yield every node but the output with its value, in order; a value is dropped after its last reader."""
    values: dict[Node, Any] = {}
    inputs = iter(batch)
    dying = last_readers(graph)
    for node in graph.graph.nodes:
        if node.op == "output":
            return
        with torch.no_grad():
            values[node] = next(inputs) if node.op == "placeholder" else run_node(graph, node, values)
        yield node, values[node]
        for done in dying[node]:
            del values[done]


def on_grid(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """`x` after quantization to the int8 `grid` and back, in the arithmetic of the quantized graph."""
    qd = torch.ops.quantized_decomposed
    q = qd.quantize_per_tensor(x, grid.scale, grid.zero_point, -128, 127, torch.int8)
    back: torch.Tensor = qd.dequantize_per_tensor(q, grid.scale, grid.zero_point, -128, 127, torch.int8)
    return back
