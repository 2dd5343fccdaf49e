"""Broadcasts in one spelling, and none where arithmetic broadcasts by itself.

`x * gate.expand_as(x)` is `x * gate`: written out, the gate becomes a tensor of the size of `x` that is made, moved
and, in LiteRT, copied by a kernel without int8 form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import aten, bind, calls, insert, replace, same_extents, shape

_ARITHMETIC = frozenset(
    {
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.maximum.default,
        aten.minimum.default,
    }
)


def run(graph: GraphModule) -> int:
    """Spells `expand_as` and `reshape_as` as `expand` and `reshape`, and drops expands that change nothing.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of calls rewritten.
    """
    count = 0
    for target, rewrite in _REWRITES:
        for node in calls(graph, target):
            count += int(rewrite(graph, node))
    return count


def _reshape_as(graph: GraphModule, node: Node) -> bool:
    """The extents of the other tensor as numbers; one that depends on the batch is left to be inferred."""
    sizes = _sizes(node)
    if sizes is None:
        return False
    replace(node, insert(graph, node, aten.reshape.default, node.args[0], sizes))
    return True


def _sizes(node: Node) -> list[int] | None:
    extents = shape(node)
    if extents is None or sum(isinstance(extent, torch.SymInt) for extent in extents) > 1:
        return None
    return [-1 if isinstance(extent, torch.SymInt) else extent for extent in extents]


def _expand_as(graph: GraphModule, node: Node) -> bool:
    """`expand`, where an extent that depends on the batch is one that the tensor has already."""
    before, after = shape(node.args[0]), shape(node)
    if before is None or after is None:
        return False
    padded = (1,) * (len(after) - len(before)) + before
    added = len(after) - len(before)
    sizes: list[int] = []
    for axis, (old, new) in enumerate(zip(padded, after, strict=True)):
        if axis >= added and same_extents((old,), (new,)):
            sizes.append(-1)
        elif isinstance(new, int):
            sizes.append(new)
        else:
            return False
    replace(node, insert(graph, node, aten.expand.default, node.args[0], sizes))
    return True


def _needless(graph: GraphModule, node: Node) -> bool:
    """An expand whose readers are all arithmetic with an operand of the full shape."""
    source, wanted = node.args[0], shape(node)
    del graph
    if not isinstance(source, Node) or wanted is None or not node.users:
        return False
    if not all(_broadcasts(user, node, wanted) for user in node.users):
        return False
    replace(node, source)
    return True


def _broadcasts(user: Node, node: Node, wanted: tuple[Any, ...]) -> bool:
    if user.op != "call_function" or user.target not in _ARITHMETIC:
        return False
    operands = list(bind(user).values())[:2]
    other = operands[1] if operands[0] is node else operands[0]
    return other is not node and same_extents(shape(other), wanted)


_REWRITES: tuple[tuple[Any, Callable[[GraphModule, Node], bool]], ...] = (
    (aten.reshape_as.default, _reshape_as),
    (aten.view_as.default, _reshape_as),
    (aten.expand_as.default, _expand_as),
    (aten.expand.default, _needless),
)
