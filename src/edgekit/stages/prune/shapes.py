"""How axes pass through what gives a tensor another shape: reshapes, transpositions, copies, fillings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.fx import Node

from edgekit.stages.prune.basics import as_one, broadcast, nothing, refused, several
from edgekit.stages.prune.context import Context, Value, wrapped
from edgekit.stages.prune.units import Axes, Labels, blocks


def unchanged(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """The first argument's axes."""
    del a
    return several(t, node, t.of(node.args[0]))


def reshape(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Axes are merged and split; of the parts of an axis one is followed, see `Context.choices`."""
    if "dtype" in a:
        return refused(t, node, "other numbers are read from the same bytes")
    source = node.args[0]
    x, before, after = t.of(source), t.shape(source), t.shape(node)
    out: list[Labels | None] = []
    for i, (taken, given) in enumerate(blocks(before, after)):
        flat = _merged(t, node, [x[k] for k in taken], [before[k] for k in taken])
        out += _split(t, node, flat, [after[k] for k in given], i)
    return tuple(out)


def _merged(t: Context, node: Node, axes: list[Labels | None], sizes: list[int]) -> Labels | None:
    """Labels of several axes flattened to one; only one of them can be followed."""
    tracked = [k for k, labels in enumerate(axes) if labels is not None]
    if not tracked:
        return None
    kept = next((k for k in tracked if t.open(axes[k])), tracked[0]) if len(tracked) > 1 else tracked[0]
    for k in tracked:
        if k != kept:
            t.pin(axes[k], node, "it is merged with another axis that may get narrower")
    labels = axes[kept]
    assert labels is not None
    shape = [1] * len(sizes)
    shape[kept] = sizes[kept]
    return np.broadcast_to(labels.reshape(shape), sizes).reshape(-1)


def _split(t: Context, node: Node, flat: Labels | None, sizes: list[int], block: int) -> list[Labels | None]:
    """Labels of the parts of an axis."""
    wide = [k for k, n in enumerate(sizes) if n > 1]
    if flat is None or not wide:
        return [None] * len(sizes)
    if len(wide) == 1:
        return [flat if k == wide[0] else None for k in range(len(sizes))]
    roots = t.atoms.roots()[flat].reshape(sizes)
    key = f"{node.name}/{block}"
    chosen = next((k for k in wide if _constant_but_along(roots, k)), None)
    if chosen is None:
        t.splits[key] = len(wide)
        chosen = wide[t.choices.get(key, 0)]
    rows = np.moveaxis(flat.reshape(sizes), chosen, 0).reshape(sizes[chosen], -1)
    t.atoms.join(np.broadcast_to(rows[:, :1], rows.shape), rows)
    t.followed[key] = rows[:, 0].copy()
    return [t.followed[key] if k == chosen else None for k in range(len(sizes))]


def _constant_but_along(roots: Labels, axis: int) -> bool:
    rows = np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)
    return bool((rows == rows[:, :1]).all()) and len(np.unique(rows[:, 0])) > 1


def permute(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`permute(dims)`."""
    del node
    x = t.of(a["self"])
    return tuple(x[wrapped(k, len(x))] for k in a["dims"])


def transpose(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`transpose(dim0, dim1)`, `swapaxes(axis0, axis1)`, `t()`."""
    del node
    x = list(t.of(a["self"]))
    if len(x) > 1:
        i, j = (wrapped(a.get(f"dim{k}", a.get(f"axis{k}", k)), len(x)) for k in (0, 1))
        x[i], x[j] = x[j], x[i]
    return tuple(x)


def matrix_transpose(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`x.mT`."""
    del node
    *others, rows, columns = t.of(a["self"])
    return (*others, columns, rows)


def reversed_axes(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`x.T`."""
    del node
    return t.of(a["self"])[::-1]


def move_axes(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`movedim(source, destination)`."""
    del node
    x = t.of(a["self"])
    listed = [a[key] if isinstance(a[key], (list, tuple)) else [a[key]] for key in ("source", "destination")]
    source, goal = ([wrapped(k, len(x)) for k in dims] for dims in listed)
    rest = iter(k for k in range(len(x)) if k not in source)
    where = dict(zip(goal, source, strict=True))
    return tuple(x[where[k] if k in where else next(rest)] for k in range(len(x)))


def expand(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`expand(size)`: axes that are copied are as wide as what they meet."""
    x, before, after = t.of(node.args[0]), t.shape(node.args[0]), t.shape(node)
    extra = len(after) - len(before)
    x, before = (None,) * extra + x, (1,) * extra + before
    return tuple(
        labels if n == m else t.atoms.fresh(m) if isinstance(size, int) else None
        for labels, n, m, size in zip(x, before, after, a["size"], strict=True)
    )


def expand_as(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`expand_as(other)`: as wide as the other."""
    return broadcast(t, node, t.of(a["self"]), t.shape(a["self"]), t.of(a["other"]), t.shape(a["other"]))


def tile(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`repeat(repeats)`, `tile(dims)`: copies one behind the other."""
    x, shape = t.of(a["self"]), t.shape(node)
    x = (None,) * (len(shape) - len(x)) + x
    return tuple(
        None if labels is None else np.tile(labels, n // len(labels))
        for labels, n in zip(x, shape, strict=True)
    )


def repeat_interleave(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`repeat_interleave(repeats, dim)`: every position so many times."""
    x, times, dim = list(t.of(node.args[0])), a["repeats"], a.get("dim")
    if not isinstance(times, int) or dim is None:
        return refused(t, node, "positions are repeated by numbers of their own")
    k = wrapped(dim, len(x))
    labels = x[k]
    x[k] = None if labels is None else np.repeat(labels, times)
    return tuple(x)


def filled(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`zeros(size)` and its kin: as wide as what it meets."""
    size = a.get("size")
    if not isinstance(size, (list, tuple)):
        return nothing(t, node)
    return tuple(
        t.atoms.fresh(n) if isinstance(s, int) and n > 1 else None
        for s, n in zip(size, t.shape(node), strict=True)
    )


def pixel_shuffle(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`pixel_shuffle(r)`: r² neighbouring channels become the pixels of one."""
    x, factor = t.of(a["self"]), int(a["upscale_factor"])
    channels = _pixels(t, node, x)
    return (*x[:-3], None if channels is None else as_one(t, channels, factor**2), None, None)


def pixel_unshuffle(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`pixel_unshuffle(r)`: the pixels of one channel become r² neighbouring channels."""
    x, factor = t.of(a["self"]), int(a["downscale_factor"])
    channels = _pixels(t, node, x)
    return (*x[:-3], None if channels is None else np.repeat(channels, factor**2), None, None)


def _pixels(t: Context, node: Node, x: Axes) -> Labels | None:
    """The channels; the other axes stay."""
    for labels in x[-2:]:
        t.pin(labels, node, "pixels are moved along this axis")
    return x[-3]


def patches(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`unfold(kernel_size)` of images: the taps of one channel become neighbouring channels."""
    x, taps = t.of(a["self"]), int(np.prod(a["kernel_size"]))
    channels = _pixels(t, node, x)
    return (*x[:-3], None if channels is None else np.repeat(channels, taps), None)


def from_patches(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`fold(output_size, kernel_size)`: neighbouring channels become the taps of one."""
    x, taps = t.of(a["self"]), int(np.prod(a["kernel_size"]))
    t.pin(x[-1], node, "patches lie along this axis")
    channels = x[-2]
    return (*x[:-2], None if channels is None else as_one(t, channels, taps), None, None)
