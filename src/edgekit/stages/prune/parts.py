"""How axes pass through what takes tensors apart, puts them together, or moves positions along an axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.fx import Node

from edgekit.stages.prune.basics import alike, refused
from edgekit.stages.prune.context import Context, Value, wrapped
from edgekit.stages.prune.units import Axes, Labels


def concatenate(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`cat(tensors, dim)`."""
    rank = len(t.shape(node))
    dim = wrapped(a["dim"], rank)
    parts = [p for p in a["tensors"] if len(t.shape(p)) == rank]
    out = list(t.of(parts[0]))
    for part in parts[1:]:
        for k, labels in enumerate(t.of(part)):
            if k != dim and t.shape(part)[k] > 1:
                out[k] = t.join(node, out[k], labels)
    along = [t.of(part)[dim] for part in parts]
    out[dim] = None
    if any(labels is not None for labels in along):
        out[dim] = np.concatenate(
            [_known(t, node, labels, t.shape(p)[dim]) for p, labels in zip(parts, along, strict=True)]
        )
    return tuple(out)


def _known(t: Context, node: Node, labels: Labels | None, size: int) -> Labels:
    """Labels of an axis; where all of it stays, pinned ones."""
    if labels is None:
        labels = t.atoms.fresh(size)
        t.pin(labels, node, "beside what stays")
    return labels


def stack(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`stack(tensors, dim)`: a new axis that stays."""
    first, *others = a["tensors"]
    out = list(t.of(first))
    for other in others:
        for k, labels in enumerate(t.of(other)):
            if t.shape(other)[k] > 1:
                out[k] = t.join(node, out[k], labels)
    out.insert(wrapped(a["dim"], len(out) + 1), None)
    return tuple(out)


def cut_slice(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`slice(dim, start, end, step)`; steps, and bounds that are only known at run time, pin the axis."""
    start, end = a["start"], a["end"]
    known = isinstance(start, int | None) and isinstance(end, int | None) and a["step"] == 1
    return _sliced(t, node, a, slice(start, end) if known else None)


def narrow(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`narrow(dim, start, length)`."""
    start, length = a["start"], a["length"]
    known = isinstance(start, int) and isinstance(length, int)
    size = t.shape(a["self"])[wrapped(a["dim"], len(t.shape(a["self"])))]
    return _sliced(t, node, a, slice(start % size, start % size + length) if known else None)


def _sliced(t: Context, node: Node, a: Mapping[str, Any], part: slice | None) -> Value:
    x = list(t.of(a["self"]))
    dim = wrapped(a["dim"], len(x))
    labels = x[dim]
    if labels is not None and part is None:
        t.pin(labels, node, "it takes some positions by their number")
    x[dim] = None if labels is None or part is None else labels[part]
    return tuple(x)


def select(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`select(dim, index)`: the position is needed."""
    x = list(t.of(a["self"]))
    labels = x.pop(wrapped(a["dim"], len(x)))
    if labels is not None:
        wanted = labels[a["index"]] if isinstance(a["index"], int) else labels
        t.pin(np.atleast_1d(wanted), node, "one position is selected")
    return tuple(x)


def split(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`split`, `split_with_sizes`, `chunk`: parts of one axis."""
    source = node.args[0]
    x, dim = t.of(source), wrapped(a["dim"], len(t.shape(source)))
    labels = x[dim]
    parts: list[Axes] = []
    start = 0
    for shape in t.shapes[node.name]:
        part = None if labels is None else labels[start : start + shape[dim]]
        parts.append((*x[:dim], part, *x[dim + 1 :]))
        start += shape[dim]
    return list(parts)


def unbind(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`unbind(dim)`: every position is needed."""
    x = list(t.of(a["self"]))
    t.pin(x.pop(wrapped(a["dim"], len(x))), node, "every position is used by itself")
    return [tuple(x) for _ in t.shapes[node.name]]


def getitem(t: Context, node: Node) -> Value:
    """One of several results."""
    source, index = node.args
    assert isinstance(source, Node)
    assert isinstance(index, int)
    found = t.values[source.name]
    assert isinstance(found, list)
    return found[index]


def flip(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`flip(dims)`."""
    del node
    x = list(t.of(a["self"]))
    for dim in a["dims"]:
        k = wrapped(dim, len(x))
        labels = x[k]
        x[k] = None if labels is None else labels[::-1]
    return tuple(x)


def roll(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`roll(shifts, dims)`: how far depends on the number of positions."""
    if not a["dims"]:
        return refused(t, node, "it moves values across axes")
    return _fixed(t, node, a["dims"], "positions are rolled along this axis")


def triangle(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`tril`, `triu`."""
    del a
    return _fixed(t, node, (-2, -1), "it depends on the position")


def _fixed(t: Context, node: Node, dims: Any, why: str) -> Value:
    """Some axes stay, the others pass."""
    x = list(t.of(node.args[0]))
    for dim in dims:
        k = wrapped(dim, len(x))
        t.pin(x[k], node, why)
        x[k] = None
    return tuple(x)


def index(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`x[:, rows, columns]`: the axes with indices stay, the others pass."""
    x, indices = t.of(a["self"]), a["indices"]
    taken = [k for k, given in enumerate(indices) if given is not None]
    for k in taken:
        t.pin(x[k], node, "positions are taken by their number")
        t.pin_all(node, indices[k], "these are numbers")
    new = max(len(t.shape(indices[k])) for k in taken)
    others = [x[k] for k in range(len(x)) if k not in taken]
    # Indices side by side leave their axes where they were; others come first.
    start = taken[0] if taken[-1] - taken[0] == len(taken) - 1 else 0
    return (*others[:start], *(None for _ in range(new)), *others[start:])


def index_select(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`index_select(dim, index)`."""
    t.pin_all(node, a["index"], "these are numbers")
    return _fixed(t, node, (a["dim"],), "positions are taken by their number")


def pad(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`pad(pad, mode)`, last axis first; padded positions go with what they are added to."""
    x = list(t.of(node.args[0]))
    amounts = a.get("pad", a.get("padding"))
    constant = a.get("mode", "constant") == "constant"
    for i in range(len(amounts) // 2):
        k = len(x) - 1 - i
        low, high = amounts[2 * i : 2 * i + 2]
        labels = x[k]
        if labels is None or (low, high) == (0, 0):
            continue
        if constant and isinstance(low, int) and isinstance(high, int) and low >= 0 and high >= 0:
            x[k] = np.concatenate([t.atoms.fresh(low), labels, t.atoms.fresh(high)])
        else:
            t.pin(labels, node, "padding copies or drops positions")
            x[k] = None
    return tuple(x)


def glu(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`glu(dim)`: the second half of an axis gates the first."""
    del node
    x = list(t.of(a["self"]))
    k = wrapped(a["dim"], len(x))
    labels = x[k]
    if labels is not None:
        first, second = np.split(labels, 2)
        t.atoms.join(first, second)
        x[k] = first
    return tuple(x)


def channel_shuffle(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`channel_shuffle(groups)`: the groups are interleaved; each keeps the same positions."""
    del node
    x, groups = t.of(a["self"]), int(a["groups"])
    alike(t, x[1], groups)
    return x if x[1] is None else (x[0], x[1].reshape(groups, -1).T.ravel(), *x[2:])
