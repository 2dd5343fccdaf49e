"""How axes pass through pooling, resizing, sums and what else mixes positions of an axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from edgekit.stages.prune.basics import elementwise, op_name, several
from edgekit.stages.prune.context import Context, Value, wrapped


def pooled(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Pooling and resizing over the last axes; batch and channels pass."""
    del a
    x = t.of(node.args[0])
    mixed = next(n for n in (1, 2, 3) if f"{n}d" in op_name(node))
    for labels in x[-mixed:]:
        t.pin(labels, node, "it mixes this axis")
    return several(t, node, (*x[:-mixed], *(None for _ in range(mixed))))


def sampled(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`grid_sampler(input, grid)`: batch and channels pass, the places are needed."""
    t.pin_all(node, a["grid"], "these are places")
    x = t.of(a["input"])
    for labels in (x[0], *x[2:]):
        t.pin(labels, node, "it mixes this axis")
    return (None, x[1], *(None for _ in x[2:]))


def mean(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`mean`, `var`, `amax`, norms: over fewer positions where the axis is narrower."""
    return _reduced(t, node, a, pinned=False)


def total(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`sum`, `prod`, `argmax`: what follows may count on the number of positions, or on their places."""
    return _reduced(t, node, a, pinned=True)


def extreme(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`max`, `min`: of two tensors, of everything, or along an axis, where the place may count."""
    if "other" in a:
        return elementwise(t, node, [a["self"], a["other"]])
    places = [user for user in node.users if user.args[1:] == (1,) and user.users]
    return _reduced(t, node, a, pinned="dim" not in a or bool(places))


def _reduced(t: Context, node: Node, a: Mapping[str, Any], *, pinned: bool) -> Value:
    x, dims = t.of(node.args[0]), a.get("dim")
    listed = dims if isinstance(dims, (list, tuple)) else [] if dims is None else [dims]
    gone = {wrapped(k, len(x)) for k in listed or range(len(x))}
    for k in gone if pinned else ():
        t.pin(x[k], node, "it is reduced over this axis")
    keep = bool(a.get("keepdim", False))
    return several(t, node, tuple(None if k in gone else v for k, v in enumerate(x) if keep or k not in gone))


def along(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`softmax`, `cumsum`, `sort`, `topk`: positions of one axis depend on one another."""
    x = list(t.of(node.args[0]))
    k = wrapped(a["dim"], len(x))
    t.pin(x[k], node, "its positions depend on one another")
    x[k] = None
    return several(t, node, tuple(x))
