"""Keeps the converter from spreading one tensor's grid to its neighbours.

A float tensor that is put together from parts (the steps of a recurrence, `cat`, `stack`) and then quantized: the
converter quantizes the parts instead, and where a part also belongs to another tensor, that one and all its parts
with it, on a grid that was measured for something else. Likewise it quantizes the maximum that a log-softmax takes
off, with it the constant that the maximum begins with, and with that whatever else begins with it. And a product of
two activations between integer tensors becomes an integer layer, while the plan keeps it float, because no delegate
has a kernel for it and its rounding is not that of the reference. An addition in between stops it; the number added
is the smallest normal float32, which changes no value but one that is smaller than every step.
"""

from __future__ import annotations

import operator
from typing import Final

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed

NOTHING: Final = torch.finfo(torch.float32).tiny
RECURRENT: Final = frozenset({aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input})
JOINS: Final = frozenset({aten.cat.default, aten.stack.default})
PRODUCTS: Final = frozenset({aten.matmul.default, aten.bmm.default})
LOG_SOFTMAX: Final = frozenset({aten.log_softmax.int, aten._log_softmax.default, aten.logsumexp.default})
MOVES: Final = frozenset(
    {
        operator.getitem,
        aten.index.Tensor,
        aten.select.int,
        aten.slice.Tensor,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.transpose.int,
        aten.permute.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
    }
)


def stop_spreading(graph: GraphModule) -> int:
    """Put barriers in front of log-softmax, of products, and of quantizations of tensors whose parts are shared.

    Args:
        graph: quantized graph; edited in place.

    Returns:
        number of barriers.
    """
    count = 0
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            continue
        if node.target in PRODUCTS and _is_between_integers(node):
            # After the product it would become the layer's bias.
            source = node.args[1]
            assert isinstance(source, Node)
            position = 1
        elif _spreads(node, source):
            position = 0
        else:
            continue
        with graph.graph.inserting_before(node):
            barrier = graph.graph.call_function(aten.add.Tensor, (source, NOTHING))
        barrier.meta["val"] = source.meta.get("val")
        node.update_arg(position, barrier)
        count += 1
    if count:
        graph.recompile()
    return count


def _is_between_integers(product: Node) -> bool:
    inputs = (_origin(a) for a in product.all_input_nodes)
    return all(a.target == qd.dequantize_per_tensor.default for a in inputs) and _is_quantized(product)


def _is_quantized(node: Node) -> bool:
    return any(
        user.target == qd.quantize_per_tensor.default or (user.target in MOVES and _is_quantized(user))
        for user in node.users
    )


def _origin(node: Node) -> Node:
    while node.target in MOVES and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _spreads(node: Node, source: Node) -> bool:
    if node.target in LOG_SOFTMAX:
        return bool(source.target == qd.dequantize_per_tensor.default)
    return node.target == qd.quantize_per_tensor.default and _is_joined(source)


def _is_joined(node: Node) -> bool:
    node = _origin(node)
    if node.target in JOINS:
        return any(len(part.users) > 1 for part in node.all_input_nodes)
    return node.target in RECURRENT
