"""Multiplications and additions by constants are folded into the convolution or linear layer before them.

Layer scale (ConvNeXt), frozen batch norm as `x * a + b`, a bias added by hand, the factor of attention.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.batch_norm import output_channels, scale_output
from edgekit_converters.cleanup.edit import (
    aten,
    bind,
    calls,
    constant,
    number,
    only_user,
    rank,
    replace,
    same_tensor_type,
    static_shape,
)

# A factor for the whole tensor passes through these unchanged.
_MOVES = frozenset(
    {
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.permute.default,
        aten.transpose.int,
        aten.unsqueeze.default,
        aten.squeeze.dim,
    }
)


def run(graph: GraphModule) -> int:
    """Folds constant factors and offsets, per tensor or per output channel.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of calls folded.
    """
    return sum(_fold(graph, node) for node in calls(graph, aten.mul.Tensor, aten.add.Tensor))


def _fold(graph: GraphModule, node: Node) -> bool:
    left, right = node.args[0], node.args[1]
    if constant(graph, left) is not None or not isinstance(left, Node):
        left, right = right, left
    if not isinstance(left, Node) or bind(node).get("alpha", 1) != 1 or not same_tensor_type(left, node):
        return False
    multiplies = node.target == aten.mul.Tensor
    layer = _layer_before(left, node, through_moves=multiplies and number(graph, right) is not None)
    if layer is None:
        return False
    values = _per_channel(graph, layer, right)
    if values is None or not bool(values.isfinite().all()):
        return False
    neutral = torch.ones_like(values) if not multiplies else torch.zeros_like(values)
    scale, shift = (values, neutral) if multiplies else (neutral, values)
    if not scale_output(graph, layer, scale, shift):
        return False
    replace(node, left)
    return True


def _layer_before(source: Node, user: Node, *, through_moves: bool) -> Node | None:
    while through_moves and source.target in _MOVES and only_user(source) is user:
        inner = source.args[0]
        if not isinstance(inner, Node):
            return None
        source, user = inner, source
    is_layer = source.op == "call_function" and output_channels(source) is not None
    return source if is_layer and only_user(source) is user else None


def _per_channel(graph: GraphModule, layer: Node, operand: object) -> torch.Tensor | None:
    """The operand as one float64 per output channel of the layer, None when it is something else."""
    axis, dims = output_channels(layer), rank(layer)
    extents = layer.meta["val"].shape
    if axis is None or dims is None or not isinstance(extents[axis], int):
        return None
    value = number(graph, operand)
    if value is not None:
        return torch.full((extents[axis],), value, dtype=torch.float64)
    tensor, shape = constant(graph, operand), static_shape(operand)
    if tensor is None or shape is None or not tensor.is_floating_point() or len(shape) > dims:
        return None
    aligned = (1,) * (dims - len(shape)) + shape
    if any(extent != 1 for index, extent in enumerate(aligned) if index != axis) or aligned[axis] == 1:
        return None
    return tensor.double().reshape(-1)
