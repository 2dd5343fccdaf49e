"""Keeps the converter from spreading one tensor's grid to its neighbours.

A float tensor that is put together from parts (the steps of a recurrence, `cat`, `stack`) and then quantized: the
converter quantizes the parts instead, and where a part also belongs to another tensor, that one and all its parts
with it, on a grid that was measured for something else. Likewise it quantizes the maximum that a log-softmax takes
off, with it the constant that the maximum begins with, and with that whatever else begins with it. An addition in
between stops it; the number added is the smallest normal float32, which changes no value but one that is smaller
than every step.
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
LOG_SOFTMAX: Final = frozenset({aten.log_softmax.int, aten._log_softmax.default, aten.logsumexp.default})
MOVES: Final = frozenset(
    {
        operator.getitem,
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
    """Put barriers in front of log-softmax, and of quantizations of tensors whose parts are shared, in place.

    Args:
        graph: quantized graph; edited.

    Returns:
        number of barriers.
    """
    count = 0
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, Node) or not _spreads(node, source):
            continue
        with graph.graph.inserting_before(node):
            barrier = graph.graph.call_function(aten.add.Tensor, (source, NOTHING))
        barrier.meta["val"] = source.meta.get("val")
        node.update_arg(0, barrier)
        count += 1
    if count:
        graph.recompile()
    return count


def _spreads(node: Node, source: Node) -> bool:
    if node.target in LOG_SOFTMAX:
        return bool(source.target == qd.dequantize_per_tensor.default)
    return node.target == qd.quantize_per_tensor.default and _is_joined(source)


def _is_joined(node: Node) -> bool:
    while node.target in MOVES and isinstance(node.args[0], Node):
        node = node.args[0]
    if node.target in JOINS:
        return any(len(part.users) > 1 for part in node.all_input_nodes)
    return node.target in RECURRENT
