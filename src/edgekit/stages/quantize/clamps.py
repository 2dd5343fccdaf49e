"""Clamps that the quantization after them already performs."""

from __future__ import annotations

import math

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.quantize.rules import RULES, Kind, aten

qd = torch.ops.quantized_decomposed


def elide_clamps(graph: GraphModule) -> int:
    """Remove every clamp whose limits the following quantization saturates at, in place.

    `quantize(clamp(x, lo, hi)) == quantize(x)` for all `x` exactly when `lo` maps to the lowest integer and
    `hi` to the highest; both are checked in integers. Every runtime then meets a bare convolution.

    Returns:
        Number of clamps removed.
    """
    elided = 0
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or RULES.get(node.target) is not Kind.CLAMP:
            continue
        readers = list(node.users)
        if not readers or any(u.target is not qd.quantize_per_tensor.default for u in readers):
            continue
        low, high = clamp_limits(node)
        if all(_saturates(u, low, high) for u in readers):
            source = node.args[0]
            assert isinstance(source, Node)
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
            elided += 1
    return elided


def clamp_limits(node: Node) -> tuple[float, float]:
    """Lower and upper limit of a clamp-like node; infinite where there is none."""
    number = {i: float(a) for i, a in enumerate(node.args) if isinstance(a, (int, float))}
    target = node.target
    if target is aten.relu.default:
        return 0.0, math.inf
    if target is aten.relu6.default:
        return 0.0, 6.0
    if target is aten.hardtanh.default:
        return number.get(1, -1.0), number.get(2, 1.0)
    if target is aten.clamp_min.default:
        return number.get(1, -math.inf), math.inf
    if target is aten.clamp_max.default:
        return -math.inf, number.get(1, math.inf)
    named = {k: float(v) for k, v in node.kwargs.items() if isinstance(v, (int, float))}
    return number.get(1, named.get("min", -math.inf)), number.get(2, named.get("max", math.inf))


def _saturates(quantize: Node, low: float, high: float) -> bool:
    """Both limits land on the ends of the integers, in the arithmetic of the graph, which is monotonous."""
    low_q, high_q = qd.quantize_per_tensor(torch.tensor([low, high]), *quantize.args[1:]).tolist()
    return bool(low_q == quantize.args[3] and high_q == quantize.args[4])
