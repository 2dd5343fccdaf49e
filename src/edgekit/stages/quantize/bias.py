"""Biases on their int32 grid, and bias correction."""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.quantize.rules import WEIGHT_AXIS

qd = torch.ops.quantized_decomposed
INT32_LIMIT = float(2**31 - 1)


def round_biases(graph: GraphModule) -> int:
    """Move every bias of a quantized op to the nearest multiple of `s_in * s_w`, in place.

    The value stays float32 in the graph but is one that int32 holds, so all formats carry the same integer.
    A channel whose weights are so small that the bias leaves int32 is clamped, as the runtimes would.

    Returns:
        Number of biases rounded.
    """
    rounded = 0
    for node in graph.graph.nodes:
        steps = bias_steps(graph, node)
        if steps is None:
            continue
        bias = node.args[2]
        value = operator.attrgetter(bias.target)(graph).detach().to(torch.float64)
        integers = (value / steps).round().clamp(-INT32_LIMIT, INT32_LIMIT)
        name = f"_bias_{rounded}"
        graph.register_buffer(name, (integers * steps).to(torch.float32))
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(name)
        constant.meta = dict(bias.meta)
        node.update_arg(2, constant)
        rounded += 1
    return rounded


def bias_steps(graph: GraphModule, node: Node) -> torch.Tensor | None:
    """`s_in * s_w` per output channel, float64 `[channels]`; None if the node has no bias on the grid."""
    if node.op != "call_function" or node.target not in WEIGHT_AXIS or len(node.args) < 3:
        return None
    x, w, b = node.args[:3]
    if not all(isinstance(a, Node) for a in (x, w, b)) or b.op != "get_attr":  # type: ignore[union-attr]
        return None
    if x.target is not qd.dequantize_per_tensor.default or w.target is not qd.dequantize_per_channel.default:  # type: ignore[union-attr]
        return None
    scales = operator.attrgetter(w.args[1].target)(graph).to(torch.float64)  # type: ignore[union-attr]
    return scales * float(x.args[1])  # type: ignore[union-attr,arg-type,no-any-return]
