"""Activations in the one form that every runtime runs in int8.

ReLU-like clamps are `aten.hardtanh(x, low, high)`, which LiteRT, ONNX Runtime and Core ML fuse into the
layer before. Hard-swish is `x * (relu6(x + 3) * (1/6))` and hard-sigmoid `relu6(x + 3) * (1/6)` (Howard et
al. 2019, section 5.2): LiteRT's int8 HARD_SWISH leaves the XNNPACK delegate, and so does a clamp to [0, 1].
SiLU is `x * sigmoid(x)`, because no format has a fused int8 kernel for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import aten, bind, calls, insert, is_call, is_float, number, replace
from edgekit_converters.cleanup.match import close, factors, scaled_sum

_SIXTH = 1.0 / 6.0


def run(graph: GraphModule) -> int:
    """Rewrites activations to the forms in the module docstring.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of activations rewritten.
    """
    count = 0
    for target, rewrite in _REWRITES:
        for node in calls(graph, target):
            count += int(bool(node.users) and rewrite(graph, node))
    return count


def _division(graph: GraphModule, node: Node) -> bool:
    """Division by a number is multiplication by its reciprocal, to within one unit in the last place."""
    divisor = node.args[1]
    if (
        not is_float(node)
        or not is_float(node.args[0])
        or not isinstance(divisor, int | float)
        or divisor == 0
    ):
        return False
    reciprocal = 1.0 / divisor
    if not math.isfinite(reciprocal):
        return False
    replace(node, insert(graph, node, aten.mul.Tensor, node.args[0], reciprocal))
    return True


def _subtraction(graph: GraphModule, node: Node) -> bool:
    """`x - 2` is `x + (-2)`: one rule of the grid instead of two."""
    arguments = bind(node)
    other, alpha = arguments["other"], arguments["alpha"]
    if not is_float(node) or not isinstance(other, int | float) or not isinstance(alpha, int | float):
        return False
    replace(node, insert(graph, node, aten.add.Tensor, node.args[0], -float(other) * alpha))
    return True


def _relu6(graph: GraphModule, node: Node) -> bool:
    replace(node, insert(graph, node, aten.hardtanh.default, node.args[0], 0.0, 6.0))
    return True


def _clamp(graph: GraphModule, node: Node) -> bool:
    arguments = bind(node)
    low, high = arguments.get("min"), arguments.get("max")
    if not is_float(node) or any(isinstance(bound, Node) for bound in (low, high)):
        return False
    return _bounded(graph, node, low, high)


def _bounded(graph: GraphModule, node: Node, low: Any, high: Any) -> bool:
    high = None if high is not None and math.isinf(high) and high > 0 else high
    if low == 0 and high is None:
        replace(node, insert(graph, node, aten.relu.default, node.args[0]))
        return True
    if low is None and high is not None:
        return _upper_bound(graph, node, high)
    if low is None or high is None:
        return False
    replace(node, insert(graph, node, aten.hardtanh.default, node.args[0], float(low), float(high)))
    return True


def _upper_bound(graph: GraphModule, node: Node, high: float) -> bool:
    """`min(relu(x), 6)`, the spelling of some ports of relu6."""
    source = node.args[0]
    if high <= 0 or not is_call(source, aten.relu.default):
        return False
    assert isinstance(source, Node)
    replace(node, insert(graph, node, aten.hardtanh.default, source.args[0], 0.0, float(high)))
    return True


def _hardtanh(graph: GraphModule, node: Node) -> bool:
    """Bounds as floats, written out; `clamp(x / 6 + 0.5, 0, 1)` is a hard-sigmoid."""
    arguments = bind(node)
    low, high = float(arguments["min_val"]), float(arguments["max_val"])
    if (low, high) == (0.0, 1.0):
        inner = scaled_sum(graph, arguments["self"])
        if inner is not None and close(inner.scale, _SIXTH) and close(inner.offset, 0.5):
            replace(node, _gate(graph, node, inner.source))
            return True
    source = arguments["self"]
    if is_call(source, aten.relu.default) and low <= 0 < high:
        source, low = source.args[0], 0.0
    canonical = (source, low, high)
    if (
        node.args == canonical
        and all(isinstance(bound, float) for bound in node.args[1:])
        and not node.kwargs
    ):
        return False
    replace(node, insert(graph, node, aten.hardtanh.default, *canonical))
    return True


def _relu(_: GraphModule, node: Node) -> bool:
    """A relu of something that a clamp already keeps at or above zero."""
    source = node.args[0]
    if not is_call(source, aten.hardtanh.default, aten.relu.default):
        return False
    assert isinstance(source, Node)
    if is_call(source, aten.hardtanh.default) and bind(source)["min_val"] < 0:
        return False
    replace(node, source)
    return True


def _hardswish(graph: GraphModule, node: Node) -> bool:
    source = node.args[0]
    assert isinstance(source, Node)
    replace(node, insert(graph, node, aten.mul.Tensor, source, _gate(graph, node, source)))
    return True


def _hardsigmoid(graph: GraphModule, node: Node) -> bool:
    source = node.args[0]
    assert isinstance(source, Node)
    replace(node, _gate(graph, node, source))
    return True


def _silu(graph: GraphModule, node: Node) -> bool:
    source = node.args[0]
    replace(
        node, insert(graph, node, aten.mul.Tensor, source, insert(graph, node, aten.sigmoid.default, source))
    )
    return True


def _gate(graph: GraphModule, before: Node, source: Node) -> Node:
    """Inserts `relu6(source + 3) * (1/6)`."""
    shifted = insert(graph, before, aten.add.Tensor, source, 3.0)
    clamped = insert(graph, before, aten.hardtanh.default, shifted, 0.0, 6.0)
    return insert(graph, before, aten.mul.Tensor, clamped, _SIXTH)


def _spelled_hardswish(graph: GraphModule, node: Node) -> bool:
    """Any order of the factors `x`, `relu6(x + 3)` and `1/6`."""
    product = factors(graph, node)
    if not close(product.scale, _SIXTH) or len(product.nodes) != 2:
        return False
    for gate, source in (product.nodes, product.nodes[::-1]):
        if _is_shifted_relu6(graph, gate, source):
            break
    else:
        return False
    if _is_canonical_swish(node, gate, source):
        return False
    scaled = insert(graph, node, aten.mul.Tensor, gate, _SIXTH)
    replace(node, insert(graph, node, aten.mul.Tensor, source, scaled))
    return True


def _is_shifted_relu6(graph: GraphModule, gate: Node, source: Node) -> bool:
    if not is_call(gate, aten.hardtanh.default) or tuple(gate.args[1:]) != (0.0, 6.0):
        return False
    inner = scaled_sum(graph, gate.args[0])
    return inner is not None and inner.source is source and inner.scale == 1.0 and inner.offset == 3.0


def _is_canonical_swish(node: Node, gate: Node, source: Node) -> bool:
    if node.args[0] is not source or not is_call(node.args[1], aten.mul.Tensor):
        return False
    scaled = node.args[1]
    return isinstance(scaled, Node) and scaled.args == (gate, _SIXTH)


def _number_last(graph: GraphModule, node: Node) -> bool:
    """A one-element constant beside a float tensor is written as a number, last."""
    left, right = node.args[0], node.args[1]
    if len(node.args) > 2 or node.kwargs or not is_float(node):
        return False
    if not isinstance(left, Node) or number(graph, left) is not None:
        left, right = right, left
    value = number(graph, right)
    if not isinstance(left, Node) or value is None or (left, value) == node.args:
        return False
    if left.meta["val"].shape != node.meta["val"].shape or left.meta["val"].dtype != node.meta["val"].dtype:
        return False
    node.args = (left, value)
    return True


_REWRITES: tuple[tuple[Any, Callable[[GraphModule, Node], bool]], ...] = (
    (aten.div.Tensor, _division),
    (aten.sub.Tensor, _subtraction),
    (aten.mul.Tensor, _number_last),
    (aten.add.Tensor, _number_last),
    (aten.relu6.default, _relu6),
    (aten.clamp_max.default, _clamp),
    (aten.clamp.default, _clamp),
    (aten.clamp_min.default, _clamp),
    (aten.hardtanh.default, _hardtanh),
    (aten.relu.default, _relu),
    (aten.hardswish.default, _hardswish),
    (aten.hardsigmoid.default, _hardsigmoid),
    (aten.silu.default, _silu),
    (aten.mul.Tensor, _spelled_hardswish),
)
