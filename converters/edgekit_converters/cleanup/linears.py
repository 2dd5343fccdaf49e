"""Products with a constant matrix become `aten.linear`, and einsum of two activations becomes `matmul`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import add_constant, aten, bind, calls, constant, insert, rank, replace


def run(graph: GraphModule) -> int:
    """Rewrites products to `linear` where the right side is a constant matrix.

    Args:
        graph: functional program graph with `val` meta, constants folded; edited.

    Returns:
        number of products rewritten.
    """
    count = 0
    for target, rewrite in _REWRITES:
        for node in calls(graph, target):
            count += int(rewrite(graph, node))
    return count


def _product(graph: GraphModule, node: Node) -> bool:
    left, right = node.args[0], node.args[1]
    matrix = constant(graph, right)
    if matrix is None or matrix.dim() != 2 or (rank(left) or 0) < 2:
        return False
    assert isinstance(right, Node)
    weight = add_constant(graph, node, f"{right.target}_transposed", matrix.t(), like=right)
    replace(node, insert(graph, node, aten.linear.default, left, weight))
    return True


def _addmm(graph: GraphModule, node: Node) -> bool:
    """`addmm(bias, x, W)` with a bias per column."""
    a = bind(node)
    matrix, bias = constant(graph, a["mat2"]), constant(graph, a["self"])
    if matrix is None or bias is None or a["alpha"] != 1 or a["beta"] != 1 or bias.shape != matrix.shape[1:]:
        return False
    weight = add_constant(graph, node, f"{a['mat2'].target}_transposed", matrix.t(), like=a["mat2"])
    replace(node, insert(graph, node, aten.linear.default, a["mat1"], weight, a["self"]))
    return True


def _einsum(graph: GraphModule, node: Node) -> bool:
    """Two operands, no repeated index, no ellipsis."""
    equation, operands = node.args[0], node.args[1]
    terms = str(equation).replace(" ", "").split("->")
    if len(terms) != 2 or not isinstance(operands, list | tuple) or len(operands) != 2:
        return False
    inputs, output = terms[0].split(","), terms[1]
    if any(not term.isalpha() or len(set(term)) != len(term) for term in (*inputs, output)):
        return False
    left, right = operands
    if constant(graph, left) is not None:
        left, right, inputs = right, left, inputs[::-1]
    if set(output) - set(inputs[0] + inputs[1]) or not isinstance(left, Node) or not isinstance(right, Node):
        return False
    if _summed_alone(inputs, output):
        return False
    if constant(graph, right) is not None:
        return _einsum_linear(graph, node, (left, right), inputs, output)
    return _einsum_matmul(graph, node, (left, right), inputs, output)


def _summed_alone(inputs: list[str], output: str) -> bool:
    """An index of one operand alone that the result does not have: a sum, not a product."""
    return any(set(mine) - set(other) - set(output) for mine, other in (inputs, inputs[::-1]))


def _einsum_linear(
    graph: GraphModule, node: Node, operands: tuple[Node, Node], inputs: list[str], output: str
) -> bool:
    """`…k,kn->…n` with a constant: one contracted index, one new one, in any places."""
    left, right = inputs
    contracted = [index for index in left if index in right and index not in output]
    new = [index for index in right if index not in left]
    if len(contracted) != 1 or len(new) != 1 or len(right) != 2:
        return False
    matrix = constant(graph, operands[1])
    assert matrix is not None
    order = [index for index in left if index not in contracted] + contracted
    source = _permuted(graph, node, operands[0], left, "".join(order))
    value = matrix if right == new[0] + contracted[0] else matrix.t()
    weight = add_constant(graph, node, f"{operands[1].target}_linear", value, like=operands[1])
    result = insert(graph, node, aten.linear.default, source, weight)
    replace(node, _permuted(graph, node, result, "".join([*order[:-1], *new]), output))
    return True


def _einsum_matmul(
    graph: GraphModule, node: Node, operands: tuple[Node, Node], inputs: list[str], output: str
) -> bool:
    """Batched product of two activations with one row, one inner and one column index."""
    left, right = inputs
    batch = [index for index in output if index in left and index in right]
    rows = [index for index in left if index not in right]
    inner = [index for index in left if index in right and index not in output]
    columns = [index for index in right if index not in left]
    if not len(rows) == len(inner) == len(columns) == 1:
        return False
    first = _permuted(graph, node, operands[0], left, "".join(batch + rows + inner))
    second = _permuted(graph, node, operands[1], right, "".join(batch + inner + columns))
    result = insert(graph, node, aten.matmul.default, first, second)
    replace(node, _permuted(graph, node, result, "".join(batch + rows + columns), output))
    return True


def _permuted(graph: GraphModule, before: Node, source: Node, have: str, want: str) -> Node:
    if have == want:
        return source
    return insert(graph, before, aten.permute.default, source, [have.index(index) for index in want])


_REWRITES: tuple[tuple[Any, Callable[[GraphModule, Node], bool]], ...] = (
    (aten.einsum.default, _einsum),
    (aten.matmul.default, _product),
    (aten.mm.default, _product),
    (aten.addmm.default, _addmm),
)
