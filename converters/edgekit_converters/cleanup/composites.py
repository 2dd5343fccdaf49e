"""Formulas written out by hand become the op they are: GELU, softmax, layer norm, RMS norm.

A converter has one kernel for the op and keeps it in one piece, on the grid or in float; the formula would be
quantized step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import (
    aten,
    bind,
    calls,
    constant,
    insert,
    is_call,
    is_float,
    number,
    only_user,
    rank,
    replace,
    shape,
)
from edgekit_converters.cleanup.match import addends, close, factors, scaled_sum

_CUBIC = 0.044715


def run(graph: GraphModule) -> int:
    """Recognises the formulas in the module docstring.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of formulas replaced.
    """
    count = 0
    for target, rewrite in _FORMULAS:
        # The last call of a formula holds all of it; the calls it replaces must not be tried on their own.
        for node in reversed(list(calls(graph, target))):
            count += int(bool(node.users) and is_float(node) and rewrite(graph, node))
    return count


def _gelu(graph: GraphModule, node: Node) -> bool:
    """`x / 2 * (1 + erf(x / sqrt(2)))` or its tanh form (Hendrycks and Gimpel 2016, section 2)."""
    product = factors(graph, node)
    if not close(product.scale, 0.5) or len(product.nodes) != 2:
        return False
    for source, bracket in (product.nodes, product.nodes[::-1]):
        inner = addends(graph, bracket)
        if inner is None or not close(inner[1], 1.0):
            continue
        if is_call(inner[0], aten.erf.default):
            argument = factors(graph, inner[0].args[0])
            if argument.nodes == (source,) and close(argument.scale, math.sqrt(0.5)):
                replace(node, insert(graph, node, aten.gelu.default, source))
                return True
        if is_call(inner[0], aten.tanh.default) and _is_tanh_argument(graph, inner[0].args[0], source):
            replace(node, insert(graph, node, aten.gelu.default, source, approximate="tanh"))
            return True
    return False


def _is_tanh_argument(graph: GraphModule, value: object, source: Node) -> bool:
    """`sqrt(2 / pi) * (x + 0.044715 x^3)`, also as `sqrt(2 / pi) * x * (1 + 0.044715 x^2)`."""
    product = factors(graph, value)
    if not close(product.scale, math.sqrt(2.0 / math.pi)):
        return False
    if len(product.nodes) == 1 and is_call(product.nodes[0], aten.add.Tensor):
        left, right = product.nodes[0].args[:2]
        cubes = (right,) if left is source else (left,) if right is source else ()
        return any(_is_power(graph, cube, source, 3, _CUBIC) for cube in cubes)
    if len(product.nodes) == 2 and source in product.nodes:
        bracket = product.nodes[1] if product.nodes[0] is source else product.nodes[0]
        inner = addends(graph, bracket)
        return inner is not None and inner[1] == 1.0 and _is_power(graph, inner[0], source, 2, _CUBIC)
    return False


def _is_power(graph: GraphModule, value: object, source: Node, exponent: int, scale: float) -> bool:
    """Whether `value` is `scale * source ** exponent`."""
    if not isinstance(value, Node):
        return False
    product = factors(graph, value)
    found = sum(_exponent(graph, factor, source) for factor in product.nodes)
    return found == exponent and close(product.scale, scale)


def _exponent(graph: GraphModule, factor: Node, source: Node) -> float:
    """The power of `source` that `factor` is, NaN when it is something else."""
    if factor is source:
        return 1.0
    if is_call(factor, aten.square.default) and factor.args[0] is source:
        return 2.0
    if is_call(factor, aten.pow.Tensor_Scalar) and factor.args[0] is source:
        return number(graph, factor.args[1]) or math.nan
    # A square that is read twice, as in `y = x * x; ... y * x ...`.
    squared = is_call(factor, aten.mul.Tensor) and factor.args[:2] == (source, source)
    return 2.0 if squared else math.nan


def _softmax(graph: GraphModule, node: Node) -> bool:
    """`exp(x) / sum(exp(x))`, with or without the maximum taken off before."""
    above, below = node.args[0], node.args[1]
    if not is_call(above, aten.exp.default) or not is_call(below, aten.sum.dim_IntList):
        return False
    assert isinstance(below, Node)
    assert isinstance(above, Node)
    total = bind(below)
    if total["self"] is not above or not total["keepdim"] or len(total["dim"] or ()) != 1:
        return False
    source, dim = above.args[0], total["dim"][0]
    if is_call(source, aten.sub.Tensor) and isinstance(source, Node) and _is_maximum(source, dim):
        source = source.args[0]
    if not isinstance(source, Node):
        return False
    replace(node, insert(graph, node, aten.softmax.int, source, dim))
    return True


def _is_maximum(difference: Node, dim: int) -> bool:
    source, maximum = difference.args[0], difference.args[1]
    if not is_call(maximum, aten.amax.default) or bind(difference)["alpha"] != 1:
        return False
    assert isinstance(maximum, Node)
    arguments, dims = bind(maximum), rank(difference) or 1
    same_axis = [axis % dims for axis in arguments["dim"]] == [dim % dims]
    return arguments["self"] is source and same_axis and bool(arguments["keepdim"])


def _normalised(graph: GraphModule, node: Node) -> bool:
    """`d / sqrt(var + eps)` and `d * rsqrt(var + eps)`: layer norm where `d` is centred, else RMS norm."""
    for value, divisor in _quotients(node):
        parts = scaled_sum(graph, divisor)
        if parts is None or parts.scale != 1.0 or parts.offset < 0:
            continue
        found = _layer_norm_source(graph, value, parts.source)
        target = aten.layer_norm.default
        if found is None:
            found, target = _rms_norm_source(graph, value, parts.source), aten.rms_norm.default
        if found is not None:
            _finish(graph, node, target, found, parts.offset)
            return True
    return False


def _quotients(node: Node) -> list[tuple[Node, object]]:
    """(value, v) for `value / sqrt(v)` or `value * rsqrt(v)`."""
    left, right = node.args[0], node.args[1]
    if is_call(node, aten.div.Tensor) and _is_root(right):
        return [(left, right.args[0])]
    if not is_call(node, aten.mul.Tensor):
        return []
    pairs = ((left, right), (right, left))
    return [
        (value, root.args[0])
        for value, root in pairs
        if isinstance(value, Node) and isinstance(root, Node) and is_call(root, aten.rsqrt.default)
    ]


def _is_root(value: object) -> bool:
    if is_call(value, aten.pow.Tensor_Scalar):
        assert isinstance(value, Node)
        return bool(value.args[1] == 0.5)
    return is_call(value, aten.sqrt.default)


def _layer_norm_source(graph: GraphModule, centred: Node, variance: Node) -> Node | None:
    """`x` when `centred` is `x - mean(x)` over the last axis and `variance` the biased variance of it."""
    if not is_call(centred, aten.sub.Tensor) or bind(centred)["alpha"] != 1:
        return None
    source, mean = centred.args[0], centred.args[1]
    if not isinstance(source, Node) or not _is_last_mean(mean) or mean.args[0] is not source:
        return None
    if is_call(variance, aten.var.correction, aten.var.dim):
        arguments = bind(variance)
        biased = arguments.get("correction") == 0 or arguments.get("unbiased") is False
        fits = arguments["self"] in (source, centred) and biased and bool(arguments["keepdim"])
        return source if fits and _is_last(variance, arguments) else None
    if _is_last_mean(variance) and _is_power(graph, variance.args[0], centred, 2, 1.0):
        return source
    return None


def _rms_norm_source(graph: GraphModule, value: Node, mean_square: Node) -> Node | None:
    if _is_last_mean(mean_square) and _is_power(graph, mean_square.args[0], value, 2, 1.0):
        return value
    return None


def _is_last_mean(value: object) -> bool:
    if not is_call(value, aten.mean.dim):
        return False
    assert isinstance(value, Node)
    arguments = bind(value)
    return bool(arguments["keepdim"]) and arguments["dtype"] is None and _is_last(value, arguments)


def _is_last(node: Node, arguments: dict[str, Any]) -> bool:
    dims = rank(arguments["self"]) or 1
    return dims == rank(node) and [axis % dims for axis in arguments["dim"] or ()] == [dims - 1]


def _finish(graph: GraphModule, node: Node, target: Any, source: Node, eps: float) -> None:
    """Takes a following gain, and for a layer norm an offset, of one number per feature into the op."""
    extents = shape(source)
    assert extents is not None
    features = extents[-1]
    end, gain = _with_operand(graph, node, aten.mul.Tensor, features)
    offset: Node | None = None
    if target == aten.layer_norm.default:
        end, offset = _with_operand(graph, end, aten.add.Tensor, features)
        new = insert(graph, end, target, source, [features], gain, offset, eps)
    else:
        new = insert(graph, end, target, source, [features], gain, eps)
    replace(end, new)


def _with_operand(graph: GraphModule, node: Node, target: Any, features: Any) -> tuple[Node, Node | None]:
    user = only_user(node)
    if user is None or not is_call(user, target) or bind(user).get("alpha", 1) != 1:
        return node, None
    operand = user.args[1] if user.args[0] is node else user.args[0]
    tensor = constant(graph, operand)
    if tensor is None or tuple(tensor.shape) != (features,):
        return node, None
    assert isinstance(operand, Node)
    return user, operand


_FORMULAS: tuple[tuple[Any, Callable[[GraphModule, Node], bool]], ...] = (
    (aten.mul.Tensor, _gelu),
    (aten.div.Tensor, _softmax),
    (aten.div.Tensor, _normalised),
    (aten.mul.Tensor, _normalised),
)
