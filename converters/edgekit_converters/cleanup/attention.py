"""Attention is written out, so that its products can be on the grid while its softmax stays float.

`softmax(q k^T / sqrt(d) + mask) v` (Vaswani et al. 2017, equation 1). Masked places get -10000, not minus
infinity: `exp` of it is zero in float32, and it is a number in float16 and on a grid.
"""

from __future__ import annotations

import math

import torch
from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import (
    add_constant,
    aten,
    bind,
    calls,
    constant,
    dtype,
    insert,
    rank,
    replace,
)

_MASKED = -10000.0


def run(graph: GraphModule) -> int:
    """Writes out every attention without dropout.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of attentions written out; one whose causal mask depends on the batch stays as it is.
    """
    return sum(_write_out(graph, node) for node in calls(graph, aten.scaled_dot_product_attention.default))


def _write_out(graph: GraphModule, node: Node) -> bool:
    a = bind(node)
    query, key, value = a["query"], a["key"], a["value"]
    width = query.meta["val"].shape[-1]
    if a["dropout_p"] or not isinstance(width, int) or (a["is_causal"] and _causal(query, key) is None):
        return False
    if a["enable_gqa"]:
        if rank(query) != 4:
            return False
        key, value = (_repeated(graph, node, query, source) for source in (key, value))
    scale = 1.0 / math.sqrt(width) if a["scale"] is None else float(a["scale"])
    # The factor goes to the query: it is the smaller tensor, and often a linear layer takes the factor up.
    scaled = insert(graph, node, aten.mul.Tensor, query, scale)
    turned = insert(graph, node, aten.transpose.int, key, -2, -1)
    scores = insert(graph, node, aten.matmul.default, scaled, turned)
    mask = _mask(graph, node, a["attn_mask"], query, key, causal=a["is_causal"])
    if mask is not None:
        scores = insert(graph, node, aten.add.Tensor, scores, mask)
    weights = insert(graph, node, aten.softmax.int, scores, -1)
    replace(node, insert(graph, node, aten.matmul.default, weights, value))
    return True


def _repeated(graph: GraphModule, before: Node, query: Node, source: Node) -> Node:
    """Grouped queries: each key and value head serves several query heads."""
    times = query.meta["val"].shape[1] // source.meta["val"].shape[1]
    if times == 1:
        return source
    wide = insert(graph, before, aten.unsqueeze.default, source, 2)
    wide = insert(graph, before, aten.expand.default, wide, [-1, -1, times, -1, -1])
    return insert(graph, before, aten.flatten.using_ints, wide, 1, 2)


def _causal(query: Node, key: Node) -> torch.Tensor | None:
    rows, columns = query.meta["val"].shape[-2], key.meta["val"].shape[-2]
    if not isinstance(rows, int) or not isinstance(columns, int):
        return None
    seen = torch.ones(rows, columns, dtype=torch.bool).tril()
    return torch.where(seen, 0.0, _MASKED)


def _mask(
    graph: GraphModule, node: Node, mask: Node | None, query: Node, key: Node, *, causal: bool
) -> Node | None:
    """The mask as a float tensor to add, None when there is none."""
    if causal:
        tensor = _causal(query, key)
        assert tensor is not None
        return add_constant(graph, node, "causal_mask", tensor.to(dtype(query)), like=node)
    if mask is None:
        return None
    known = constant(graph, mask)
    kind = dtype(query) or torch.float32
    if known is not None:
        if known.dtype == torch.bool:
            known = torch.where(known, 0.0, _MASKED)
        return add_constant(graph, node, "attention_mask", known.to(kind).clamp(min=_MASKED), like=node)
    if dtype(mask) != torch.bool:
        return mask
    # 1 where a place is seen: (seen - 1) * 10000 is 0 or -10000, exactly.
    seen = insert(graph, node, aten.to.dtype, mask, kind)
    return insert(graph, node, aten.mul.Tensor, insert(graph, node, aten.add.Tensor, seen, -1.0), -_MASKED)
