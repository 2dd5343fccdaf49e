"""Calls that do nothing in evaluation mode are removed: dropout, copies, casts, asserts."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import aten, bind, is_call, rank, replace, same_tensor_type

_COPIES = frozenset(
    {
        aten.alias.default,
        aten.detach.default,
        aten.detach_.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.lift.default,
        aten.lift_fresh.default,
        aten.lift_fresh_copy.default,
        aten.positive.default,
    }
)
_DROPOUTS = frozenset(
    {
        aten.dropout.default,
        aten.feature_dropout.default,
        aten.alpha_dropout.default,
        aten.feature_alpha_dropout.default,
    }
)
# Same element type in, same shape out: then nothing happened, whatever the other arguments say.
_IDENTITY_IF_SAME_TYPE = frozenset(
    {
        aten.to.dtype,
        aten.to.device,
        aten.to.dtype_layout,
        aten.to.other,
        aten._to_copy.default,
        aten.type_as.default,
        aten.view.dtype,
        aten.view_as.default,
        aten.reshape.default,
        aten.reshape_as.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.expand.default,
        aten.expand_as.default,
        aten.repeat.default,
    }
)
# Neutral second operand of element-wise calls on floats.
_NEUTRAL: dict[Any, float] = {
    aten.add.Tensor: 0.0,
    aten.sub.Tensor: 0.0,
    aten.mul.Tensor: 1.0,
    aten.div.Tensor: 1.0,
    aten.pow.Tensor_Scalar: 1.0,
}
_GUARD_PREFIXES = ("_assert", "sym_constrain_range")


def run(graph: GraphModule) -> int:
    """Removes calls without effect.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of calls removed.
    """
    count = 0
    for node in list(graph.graph.nodes):
        if _is_guard(node):
            graph.graph.erase_node(node)
            count += 1
        elif node.op == "call_function" and _is_identity(node):
            source = node.args[0][0] if is_call(node, aten.cat.default) else node.args[0]
            replace(node, source)
            count += 1
    return count


def _is_guard(node: Node) -> bool:
    if node.users:
        return False
    if node.op == "call_module":
        return str(node.target) == "_guards_fn"
    if node.op != "call_function":
        return False
    return getattr(node.target, "__name__", "").startswith(_GUARD_PREFIXES)


def _is_identity(node: Node) -> bool:
    target = node.target
    if target in _COPIES:
        return True
    if target in _DROPOUTS:
        arguments = bind(node)
        return not arguments["train"] or arguments["p"] == 0
    if is_call(node, aten.cat.default):
        return isinstance(node.args[0], list | tuple) and len(node.args[0]) == 1
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or not same_tensor_type(source, node):
        return False
    return target in _IDENTITY_IF_SAME_TYPE or _keeps_order(node) or _is_neutral(node)


def _keeps_order(node: Node) -> bool:
    """Slices, pads and permutations that keep every element where it is; the shapes are known to be equal."""
    arguments = bind(node) if isinstance(node.target, torch._ops.OpOverload) else {}
    dims = rank(node) or 0
    if is_call(node, aten.slice.Tensor):
        return bool(arguments["step"] == 1)
    if is_call(node, aten.pad.default, aten.constant_pad_nd.default):
        return all(isinstance(width, int) and width == 0 for width in arguments["pad"])
    if is_call(node, aten.permute.default):
        return [dim % dims for dim in arguments["dims"]] == list(range(dims))
    if is_call(node, aten.transpose.int):
        return bool(arguments["dim0"] % dims == arguments["dim1"] % dims)
    return False


def _is_neutral(node: Node) -> bool:
    if node.target not in _NEUTRAL or len(node.args) < 2 or not node.meta["val"].dtype.is_floating_point:
        return False
    operand = node.args[1]
    return isinstance(operand, int | float) and float(operand) == _NEUTRAL[node.target]
