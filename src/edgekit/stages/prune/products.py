"""How axes pass through products: linear, matrix products, einsum, attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from edgekit.bench.layers import LayerShape
from edgekit.stages.prune.basics import broadcast, broadcast_all, refused
from edgekit.stages.prune.context import Context, Value
from edgekit.stages.prune.units import Axes, Labels


def linear(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`[…, k]` with weights `[n, k]`."""
    x, weight = t.of(a["input"]), t.of(a["weight"])
    if len(weight) != 2:
        return refused(t, node, "a linear layer with one output")
    t.join(node, x[-1], weight[1])
    t.reading(a["weight"], 1)
    if isinstance(a["bias"], Node):
        t.join(node, weight[0], t.of(a["bias"])[-1])
    rows = math.prod(t.shape(node)[:-1])
    n, k = t.shape(a["weight"])
    shape = LayerShape("linear", k, n, size=(rows,))
    t.layer(node, "linear", rows * n * k, (weight[0], weight[1]), a["weight"], shape)
    return (*x[:-1], weight[0])


def product(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`mm`, `bmm`, `matmul`: `[…, m, k]` by `[…, k, n]`."""
    return _product(t, node, a["self"], a["other" if "other" in a else "mat2"])


def added_product(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`addmm`, `baddbmm`: a product and a summand that broadcasts."""
    left, right = ("mat1", "mat2") if "mat1" in a else ("batch1", "batch2")
    out = _product(t, node, a[left], a[right])
    return broadcast(t, node, out, t.shape(node), t.of(a["self"]), t.shape(a["self"]))


def _product(t: Context, node: Node, left: Node, right: Node) -> Axes:
    x, y = t.of(left), t.of(right)
    if len(x) == 1 or len(y) == 1:
        refused(t, node, "a product with a vector")
        return tuple(None for _ in t.shape(node))
    inner = t.join(node, x[-1], y[-2])
    outer = broadcast(t, node, x[:-2], t.shape(left)[:-2], y[:-2], t.shape(right)[:-2])
    macs = math.prod(t.shape(node)) * t.shape(left)[-1]
    if right.name in t.weights:
        t.reading(right, -2)
        axes, weight = (y[-1], inner, *outer, x[-2]), right
    else:
        t.reading(left, -1)
        axes, weight = (x[-2], inner, *outer, y[-1]), left
    t.layer(node, "matmul", macs, axes, weight)
    return (*outer, x[-2], y[-1])


def einsum(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Letters are axes: one that several operands have is joined, one that nobody gives is summed over."""
    read, given = _letters(a["equation"], [len(t.shape(x)) for x in a["tensors"]])
    labels: dict[str, Labels | None] = {}
    size: dict[str, int] = {}
    for operand, letters in zip(a["tensors"], read, strict=True):
        for letter, mine, n in zip(letters, t.of(operand), t.shape(operand), strict=True):
            if n > 1:
                labels[letter] = t.join(node, labels[letter], mine) if letter in labels else mine
            size[letter] = max(n, size.get(letter, 1))
    for letter, mine in labels.items():
        if letters_of(read, letter) < 2 and letter not in given:
            t.pin(mine, node, "a sum over this axis")
        if any(letters.count(letter) > 1 for letters in (*read, given)):
            t.pin(mine, node, "a diagonal along this axis")
    weight = next((x for x in a["tensors"] if x.name in t.weights), None)
    for operand, letters in zip(a["tensors"], read, strict=True):
        for k, letter in enumerate(letters):
            if letter not in given:
                t.reading(operand, k)
    outputs = [] if weight is None else [c for c in read[a["tensors"].index(weight)] if c in given]
    order = [*outputs, *(c for c in size if c not in outputs)]
    t.layer(node, "einsum", math.prod(size.values()), [labels.get(c) for c in order], weight)
    for letter in outputs[1:]:
        t.layer(node, "einsum", 0, (labels.get(letter),), weight)
    return tuple(labels.get(letter) for letter in given)


def letters_of(read: list[list[str]], letter: str) -> int:
    """Number of operands that have it."""
    return sum(letter in letters for letters in read)


def _letters(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """Axes of every operand and of the result; those under an ellipsis are numbered from the last."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = max(rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True))

    def spelled(term: str, under: int) -> list[str]:
        front, dots, back = term.partition("...")
        return [*front, *(str(k) for k in range(under, 0, -1) if dots), *back]

    read = [
        spelled(term, rank - len(term.replace("...", ""))) for term, rank in zip(terms, ranks, strict=True)
    ]
    if arrow:
        return read, spelled(right, hidden)
    once = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
    return read, [*(str(k) for k in range(hidden, 0, -1)), *once]


def attention(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`scaled_dot_product_attention`: q `[…, l, e]`, k `[…, s, e]`, v `[…, s, ev]`."""
    q, k, v = (t.of(a[key]) for key in ("query", "key", "value"))
    sizes = [t.shape(a[key]) for key in ("query", "key", "value")]
    if a.get("enable_gqa"):
        return refused(t, node, "attention whose heads share keys")
    inner = t.join(node, q[-1], k[-1])
    for labels in (q[-2], k[-2], v[-2]):
        t.pin(labels, node, "attention mixes positions")
    meeting = [(axes[:-2], size[:-2]) for axes, size in zip((q, k, v), sizes, strict=True)]
    if isinstance(mask := a.get("attn_mask"), Node):
        for labels in t.of(mask)[-2:]:
            t.pin(labels, node, "attention mixes positions")
        meeting.append((t.of(mask)[:-2], t.shape(mask)[:-2]))
    outer = broadcast_all(t, node, meeting)
    scores = math.prod(sizes[0][:-1]) * sizes[1][-2]
    t.layer(node, "attention", scores * sizes[0][-1], (*outer, inner))
    t.layer(node, "attention", scores * sizes[2][-1], (*outer, v[-1]))
    return (*outer, None, v[-1])
