"""Folded int8 weights back to `float → quantize → dequantize`, the form that litert-torch reads."""

from __future__ import annotations

import copy
import operator

import torch
from torch.fx import GraphModule, Node

qd = torch.ops.quantized_decomposed

QUANTIZE = {
    qd.dequantize_per_channel.default: qd.quantize_per_channel.default,
    qd.dequantize_per_tensor.default: qd.quantize_per_tensor.default,
}


def unfold_weights(graph: GraphModule) -> GraphModule:
    """Copy the graph with every int8 constant spelled as a float constant and a quantize op.

    The float value is `scale * (q - zero_point)`, so quantizing it gives `q` again: the grid is untouched.

    Args:
        graph: quantized graph with folded weights.

    Returns:
        A new graph module of the same function.
    """
    graph = copy.deepcopy(graph)
    for node in list(graph.graph.nodes):
        if node.target not in QUANTIZE:
            continue
        source = node.args[0]
        if not (isinstance(source, Node) and source.op == "get_attr"):
            continue
        integers = operator.attrgetter(str(source.target))(graph)
        value = node.target(integers, *(_literal(graph, a) for a in node.args[1:]))
        name = f"{str(source.target).replace('.', '_')}_real"
        graph.register_buffer(name, value)
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(name)
            constant.meta["val"] = value
            quantized = graph.graph.call_function(QUANTIZE[node.target], (constant, *node.args[1:]))
        node.update_arg(0, quantized)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _literal(graph: GraphModule, arg: object) -> object:
    return operator.attrgetter(str(arg.target))(graph) if isinstance(arg, Node) else arg
