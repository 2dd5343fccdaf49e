"""Activations that some format has no form for, by those that all have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import aten, bind, calls, insert, is_float, replace


def run(graph: GraphModule) -> int:
    """Rewrites log-sigmoid, threshold, hard-shrink, and the leaky ReLU that is random in training.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of activations rewritten.
    """
    count = 0
    for target, rewrite in _REWRITES:
        for node in calls(graph, target):
            count += int(is_float(node) and rewrite(graph, node))
    return count


def _log_sigmoid(graph: GraphModule, node: Node) -> bool:
    """`-softplus(-x)`."""
    turned = insert(graph, node, aten.neg.default, node.args[0])
    replace(node, insert(graph, node, aten.neg.default, insert(graph, node, aten.softplus.default, turned)))
    return True


def _threshold(graph: GraphModule, node: Node) -> bool:
    """`x` above the threshold, else the value."""
    a = bind(node)
    above = insert(graph, node, aten.gt.Scalar, a["self"], a["threshold"])
    replace(node, insert(graph, node, aten.where.ScalarOther, above, a["self"], float(a["value"])))
    return True


def _hard_shrink(graph: GraphModule, node: Node) -> bool:
    """`x` where it is further from zero than the limit, else zero."""
    a = bind(node)
    size = insert(graph, node, aten.abs.default, a["self"])
    outside = insert(graph, node, aten.gt.Scalar, size, a["lambd"])
    replace(node, insert(graph, node, aten.where.ScalarOther, outside, a["self"], 0.0))
    return True


def _random_leaky_relu(graph: GraphModule, node: Node) -> bool:
    """In evaluation mode the slope is the mean of its limits."""
    a = bind(node)
    if a["training"]:
        return False
    slope = (float(a["lower"]) + float(a["upper"])) / 2
    replace(node, insert(graph, node, aten.leaky_relu.default, a["self"], slope))
    return True


_REWRITES: tuple[tuple[Any, Callable[[GraphModule, Node], bool]], ...] = (
    (aten.log_sigmoid.default, _log_sigmoid),
    (aten.threshold.default, _threshold),
    (aten.hardshrink.default, _hard_shrink),
    (aten.rrelu.default, _random_leaky_relu),
)
