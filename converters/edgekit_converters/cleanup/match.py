"""Algebra on small expressions, so that a formula is recognised however its author ordered it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import aten, bind, is_call, number


@dataclass(frozen=True, slots=True)
class Product:
    """`scale` times the product of `nodes`."""

    scale: float
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class ScaledSum:
    """`scale * source + offset`."""

    source: Node
    scale: float
    offset: float


def close(value: float, expected: float) -> bool:
    """Equal to within the rounding of a literal written to about seven digits or stored as float32."""
    return math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-12)


def factors(graph: GraphModule, node: object) -> Product:
    """Flattens nested multiplications, also by numbers, and divisions by numbers.

    An inner product that is read elsewhere too is kept as one factor.
    """
    return _factors(graph, node, root=True)


def _factors(graph: GraphModule, value: object, *, root: bool = False) -> Product:
    literal = number(graph, value)
    if literal is not None:
        return Product(literal, ())
    assert isinstance(value, Node)
    if not root and len(value.users) != 1:
        return Product(1.0, (value,))
    if is_call(value, aten.mul.Tensor):
        left, right = (_factors(graph, argument) for argument in value.args[:2])
        return Product(left.scale * right.scale, left.nodes + right.nodes)
    if is_call(value, aten.div.Tensor):
        divisor = number(graph, value.args[1])
        if divisor:
            left = _factors(graph, value.args[0])
            return Product(left.scale / divisor, left.nodes)
    if is_call(value, aten.neg.default):
        left = _factors(graph, value.args[0])
        return Product(-left.scale, left.nodes)
    return Product(1.0, (value,))


def addends(graph: GraphModule, node: object) -> tuple[Node, float] | None:
    """`(y, c)` when `node` is `y + c`, `c + y` or `y - c` with a number `c`."""
    if not is_call(node, aten.add.Tensor, aten.sub.Tensor):
        return None
    assert isinstance(node, Node)
    arguments = bind(node)
    left, right, alpha = arguments["self"], arguments["other"], number(graph, arguments["alpha"])
    if alpha is None:
        return None
    sign = -alpha if is_call(node, aten.sub.Tensor) else alpha
    offset = number(graph, right)
    if offset is not None and isinstance(left, Node):
        return left, sign * offset
    offset = number(graph, left)
    if offset is not None and isinstance(right, Node) and sign == 1:
        return right, offset
    return None


def scaled_sum(graph: GraphModule, node: object) -> ScaledSum | None:
    """Reads `scale * source + offset`; a missing scale is 1, and a missing offset gives None."""
    parts = addends(graph, node)
    if parts is None:
        return None
    inner, offset = parts
    product = factors(graph, inner)
    if len(product.nodes) != 1:
        return ScaledSum(inner, 1.0, offset)
    return ScaledSum(product.nodes[0], product.scale, offset)
