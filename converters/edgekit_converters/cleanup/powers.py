"""Powers with a small constant exponent as products and roots.

A product of two tensors is on the grid, a power is not; LiteRT has no power of a tensor by a number at all.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import aten, calls, insert, is_float, replace

_ROOTS = {0.5: aten.sqrt.default, -0.5: aten.rsqrt.default, -1.0: aten.reciprocal.default}
_FACTORS = {2.0: 2, 3.0: 3, 4.0: 4}


def run(graph: GraphModule) -> int:
    """Rewrites `x ** 2`, `x ** 3`, `x ** 4`, `square`, and the exponents 1/2, -1/2 and -1, of floats.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of powers rewritten.
    """
    count = 0
    for node in calls(graph, aten.square.default, aten.pow.Tensor_Scalar):
        exponent = 2.0 if node.target == aten.square.default else node.args[1]
        source = node.args[0]
        if not isinstance(source, Node) or not is_float(source) or not isinstance(exponent, int | float):
            continue
        count += int(_rewrite(graph, node, source, float(exponent)))
    return count


def _rewrite(graph: GraphModule, node: Node, source: Node, exponent: float) -> bool:
    if exponent in _ROOTS:
        replace(node, insert(graph, node, _ROOTS[exponent], source))
        return True
    if exponent not in _FACTORS:
        return False
    product = insert(graph, node, aten.mul.Tensor, source, source)
    if _FACTORS[exponent] == 3:
        product = insert(graph, node, aten.mul.Tensor, product, source)
    if _FACTORS[exponent] == 4:
        product = insert(graph, node, aten.mul.Tensor, product, product)
    replace(node, product)
    return True
