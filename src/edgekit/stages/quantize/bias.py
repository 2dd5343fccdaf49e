"""Biases on their int32 grid."""

from __future__ import annotations

import operator
from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.quantize.rules import WEIGHT_AXIS

qd = torch.ops.quantized_decomposed

# int32 less one bit, so that the products which are summed on top of the bias cannot overflow.
BIAS_LIMIT: Final = float(2**30)


def round_biases(graph: GraphModule) -> int:
    """Move every bias of a quantized op to the nearest multiple of `s_in * s_w`, in place.

    The value stays float32 in the graph but is one that int32 holds, so all formats carry the same integer.
    May be called again after biases have changed.

    A channel whose weights are so small that its bias would leave int32 (dead channels of trained networks do
    after batch-norm folding) gets a coarser weight scale first: its products are then far below one step of
    the bias, where a clipped bias would be a wrong output.

    Returns:
        Number of biases rounded.
    """
    # All scales first: two ops may share one weight.
    for node in graph.graph.nodes:
        _coarsen(graph, node)
    rounded = 0
    for node in list(graph.graph.nodes):
        steps = bias_steps(graph, node)
        if steps is None:
            continue
        integers = (constant_of(graph, node.args[2]).to(torch.float64) / steps).round()
        set_bias(graph, node, (integers * steps).to(torch.float32))
        rounded += 1
    return rounded


def bias_steps(graph: GraphModule, node: Node) -> torch.Tensor | None:
    """`s_in * s_w` per output channel, float64 `[channels]`; None if the node has no bias on the grid."""
    if node.op != "call_function" or node.target not in WEIGHT_AXIS or len(node.args) < 3:
        return None
    x, w, b = node.args[:3]
    if not (isinstance(x, Node) and isinstance(w, Node) and isinstance(b, Node)) or b.op != "get_attr":
        return None
    if x.target is not qd.dequantize_per_tensor.default or w.target is not qd.dequantize_per_channel.default:
        return None
    return constant_of(graph, w.args[1]).to(torch.float64) * float(x.args[1])


def set_bias(graph: GraphModule, node: Node, value: torch.Tensor) -> None:
    """Give a weighted op its own bias constant, float32 `[channels]`, in place."""
    name = f"_bias_of_{node.name}"
    old = node.args[2] if len(node.args) > 2 else None
    graph.register_buffer(name, value)
    if isinstance(old, Node) and old.target == name:
        return
    with graph.graph.inserting_before(node):
        constant = graph.graph.get_attr(name)
    constant.meta = dict(old.meta) if isinstance(old, Node) else {"val": value}
    node.args = (*node.args[:2], constant, *node.args[3:])


def _coarsen(graph: GraphModule, node: Node) -> None:
    steps = bias_steps(graph, node)
    if steps is None:
        return
    needed = constant_of(graph, node.args[2]).to(torch.float64).abs() / BIAS_LIMIT
    small = steps < needed
    if not small.any():
        return
    dequantize = node.args[1]
    assert isinstance(dequantize, Node)
    weight, scales = constant_of(graph, dequantize.args[0]), constant_of(graph, dequantize.args[1])
    axis = int(dequantize.args[3])
    growth = torch.where(small, needed / steps, torch.ones_like(steps))
    shape = [-1 if i == axis else 1 for i in range(weight.dim())]
    weight.copy_((weight.to(torch.float64) / growth.reshape(shape)).round().to(weight.dtype))
    scales.copy_((scales.to(torch.float64) * growth).to(scales.dtype))


def constant_of(graph: GraphModule, node: object) -> torch.Tensor:
    """The tensor behind a `get_attr` node."""
    assert isinstance(node, Node)
    value = operator.attrgetter(str(node.target))(graph)
    assert isinstance(value, torch.Tensor)
    return value.detach()
