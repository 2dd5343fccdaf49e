"""What each layer costs: multiply-accumulates and weight bytes, from shapes alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.quantize.rules import RECURRENT, WEIGHT_AXIS, aten

_TRANSPOSED: Final = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input})


def macs_and_bytes(float_graph: GraphModule) -> dict[str, tuple[int, int]]:
    """Cost of every convolution, linear layer, matrix product and recurrent layer.

    Args:
        float_graph: ATen graph whose nodes carry `meta["val"]`; a symbolic batch counts as one.

    Returns:
        Node name to (multiply-accumulates of one inference at batch one, bytes of its weights in int8).
    """
    found: dict[str, tuple[int, int]] = {}
    for node in float_graph.graph.nodes:
        count = _COUNTS.get(node.target) if node.op == "call_function" else None
        if count is not None:
            weights = (a for a in _matrices(node) if a.op == "get_attr")
            found[node.name] = (count(node), sum(_elements(a) for a in weights))
    return found


def float_bytes(graph: GraphModule, node: Node) -> int:
    """Bytes of the float32 constants that a node reads directly."""
    constants = (
        operator.attrgetter(str(a.target))(graph) for a in node.all_input_nodes if a.op == "get_attr"
    )
    return sum(
        c.numel() * c.element_size()
        for c in constants
        if isinstance(c, torch.Tensor) and c.is_floating_point()
    )


def _matrices(node: Node) -> list[Node]:
    """The operands that hold weights: neither biases nor the initial state of a recurrent layer."""
    if node.target in RECURRENT:
        params: Any = next(a for a in node.args[1:] if isinstance(a, (list, tuple)) and len(a) >= 4)
        return [p for p in params if len(_shape(p)) == 2]
    return [a for a in node.all_input_nodes[1:] if len(_shape(a)) > 1]


def _weighted(node: Node) -> int:
    """An output element is a product with one filter; in a transposed convolution an input element is."""
    x, weight = node.args[:2]
    filter_elements = math.prod(_shape(weight)[1:])
    return _elements(x if node.target in _TRANSPOSED else node) * filter_elements


def _product(node: Node) -> int:
    return _elements(node) * _shape(node.args[node.target is aten.baddbmm.default])[-1]


def _attention(node: Node) -> int:
    """Scores and their product with the values."""
    query, key, value = (_shape(a) for a in node.args[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(node: Node) -> int:
    """Every weight matrix is applied once in every step; projections too."""
    x = _shape(node.args[0])
    # (input, state, params, has_biases, layers, dropout, train, bidirectional, batch_first)
    batch_first = bool(node.args[8]) if len(node.args) > 8 else False
    steps = x[1] if batch_first else x[0]
    return steps * sum(_elements(p) for p in _matrices(node))


_COUNTS: Final[dict[object, Callable[[Node], int]]] = {
    **dict.fromkeys(WEIGHT_AXIS, _weighted),
    **dict.fromkeys(RECURRENT, _recurrent),
    aten.matmul.default: _product,
    aten.bmm.default: _product,
    aten.baddbmm.default: _product,
    aten.scaled_dot_product_attention.default: _attention,
}


def _elements(node: object) -> int:
    return math.prod(_shape(node))


def _shape(node: object) -> tuple[int, ...]:
    """Shape of a node's tensor at batch one; empty when it is not one tensor."""
    val = node.meta.get("val") if isinstance(node, Node) else None
    return _at_batch_one(val.shape) if isinstance(val, torch.Tensor) else ()


def _at_batch_one(shape: Sequence[Any]) -> tuple[int, ...]:
    def fixed(extent: Any) -> int:
        if isinstance(extent, int):
            return extent
        expression = extent.node.expr
        return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))

    return tuple(fixed(extent) for extent in shape)
