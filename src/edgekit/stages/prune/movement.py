"""How axes pass through what only moves, selects, pools or reduces values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from torch.fx import Node

from edgekit.stages.prune.context import Context, Value, wrapped
from edgekit.stages.prune.layers import Rule, nothing
from edgekit.stages.prune.units import Axes, Labels, blocks, merge

LARGEST: Final = 1 << 60


def unchanged(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """The first argument's axes."""
    del a
    return t.of(node.args[0])


def reshape(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Axes are merged and split; of the parts of an axis one is followed, see `Context.choices`."""
    del a
    source = node.args[0]
    x, before, after = t.of(source), t.shape(source), t.shape(node)
    out: list[Labels | None] = []
    for i, (taken, given) in enumerate(blocks(before, after)):
        flat, dropped = merge([x[k] for k in taken], [before[k] for k in taken])
        for k in dropped:
            t.pin(x[taken[k]], node, "it is merged with another axis that may get narrower")
        sizes = [after[k] for k in given]
        out += _split(t, node, flat, sizes, i)
    return tuple(out)


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
    """`transpose(dim0, dim1)`, `t()`."""
    del node
    x = list(t.of(a["self"]))
    if len(x) > 1:
        i, j = (wrapped(a.get(key, k), len(x)) for k, key in enumerate(("dim0", "dim1")))
        x[i], x[j] = x[j], x[i]
    return tuple(x)


def expand(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`expand(size)`: new axes in front."""
    del a
    x, before, after = t.of(node.args[0]), t.shape(node.args[0]), t.shape(node)
    extra = len(after) - len(before)
    return (*(None for _ in range(extra)), *(x[k] if before[k] > 1 else None for k in range(len(before))))


def repeat(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`repeat(repeats)`: axes are tiled."""
    x, times = t.of(a["self"]), a["repeats"]
    x = (*(None for _ in range(len(times) - len(x))), *x)
    shape = t.shape(node)
    return tuple(
        None if labels is None else np.tile(labels, n // len(labels))
        for labels, n in zip(x, shape, strict=True)
    )


def concatenate(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`cat(tensors, dim)`."""
    rank = len(t.shape(node))
    dim = wrapped(a["dim"], rank)
    parts = [p for p in a["tensors"] if len(t.shape(p)) == rank]
    out = list(t.of(parts[0]))
    for part in parts[1:]:
        for k, labels in enumerate(t.of(part)):
            if k != dim:
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
        out = [t.join(node, one, two) for one, two in zip(out, t.of(other), strict=True)]
    out.insert(wrapped(a["dim"], len(out) + 1), None)
    return tuple(out)


def cut_slice(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`slice(dim, start, end, step)`; steps, and bounds that are only known at run time, pin the axis."""
    x = list(t.of(a["self"]))
    dim = wrapped(a["dim"], len(x))
    labels = x[dim]
    if labels is not None:
        start, end = a["start"], a["end"]
        if isinstance(start, int | None) and isinstance(end, int | None) and a["step"] == 1:
            x[dim] = labels[start:end]
        else:
            t.pin(labels, node, "it takes some positions by their number")
            x[dim] = None
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
    parts: list[Axes] = []
    start = 0
    for shape in t.shapes[node.name]:
        labels = x[dim]
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


def pad(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`pad(pad, mode)`, last axis first; padded positions go with what they are added to."""
    x = list(t.of(node.args[0]))
    amounts = a.get("pad", a.get("padding"))
    constant = a.get("mode", "constant") == "constant"
    for i in range(len(amounts) // 2):
        k = len(x) - 1 - i
        low, high = amounts[2 * i : 2 * i + 2]
        labels = x[k]
        if labels is None or not (low or high):
            continue
        if constant and low >= 0 and high >= 0:
            x[k] = np.concatenate([t.atoms.fresh(low), labels, t.atoms.fresh(high)])
        else:
            t.pin(labels, node, "padding copies or drops positions")
            x[k] = None
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


def pooled(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """Pooling, resizing, sampling: batch and channels pass, the rest is mixed."""
    del a
    x, shapes = t.of(node.args[0]), t.shapes[node.name]
    for labels in x[2:]:
        t.pin(labels, node, "it mixes this axis")
    several = isinstance(shapes, list)
    out = [(*x[:2], *(None for _ in s[2:])) for s in (shapes if several else [shapes])]
    return out if several else out[0]


def pooled_last(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """One-dimensional pooling of `[n, c, l]` or `[c, l]`."""
    del a
    x = t.of(node.args[0])
    t.pin(x[-1], node, "it mixes this axis")
    return (*x[:-1], None)


def mean(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`mean`, `var`, `std`, `amax`, `amin`: over fewer positions where the axis is narrower."""
    return _reduced(t, node, a, pinned=False)


def total(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`sum`, `prod`, norms: what follows may count on the number of positions."""
    return _reduced(t, node, a, pinned=True)


def _reduced(t: Context, node: Node, a: Mapping[str, Any], *, pinned: bool) -> Value:
    x = t.of(node.args[0])
    dims = a.get("dim")
    listed = (
        range(len(x)) if dims is None or dims == [] else dims if isinstance(dims, (list, tuple)) else [dims]
    )
    gone = {wrapped(k, len(x)) for k in listed}
    for k in gone if pinned else ():
        t.pin(x[k], node, "a sum over this axis")
    keep = bool(a.get("keepdim", False))
    out = tuple(None if k in gone else labels for k, labels in enumerate(x) if keep or k not in gone)
    return [out for _ in t.shapes[node.name]] if isinstance(t.shapes[node.name], list) else out


def along(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`softmax`, `cumsum`, `sort`: positions of one axis depend on one another."""
    x = t.of(node.args[0])
    dim = a.get("dim", -1)
    k = wrapped(-1 if dim is None else dim, len(x))
    t.pin(x[k], node, "its positions depend on one another")
    out = tuple(None if i == k else labels for i, labels in enumerate(x))
    shapes = t.shapes[node.name]
    if isinstance(shapes, list):
        return [out for _ in shapes]
    return out if len(shapes) == len(x) else tuple(v for i, v in enumerate(out) if i != k)


def gated(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`glu(dim)`: the second half of an axis gates the first."""
    del node
    x = list(t.of(a["self"]))
    k = wrapped(a["dim"], len(x))
    labels = x[k]
    if labels is not None:
        half = len(labels) // 2
        t.atoms.join(labels[:half], labels[half:])
        x[k] = labels[:half]
    return tuple(x)


def shuffled(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`pixel_shuffle(r)`: r² channels become the pixels of one."""
    x, factor = t.of(a["self"]), int(a["upscale_factor"])
    return _to_pixels(t, node, x, factor * factor)


def _to_pixels(t: Context, node: Node, x: Axes, each: int) -> Axes:
    for labels in x[-2:]:
        t.pin(labels, node, "pixels are moved along this axis")
    channels = x[-3]
    if channels is not None:
        rows = channels.reshape(-1, each)
        t.atoms.join(np.broadcast_to(rows[:, :1], rows.shape), rows)
        channels = rows[:, 0].copy()
    return (*x[:-3], channels, None, None)


def unshuffled(t: Context, node: Node, a: Mapping[str, Any]) -> Value:
    """`pixel_unshuffle(r)`: the pixels of one channel become r² channels."""
    x, factor = t.of(a["self"]), int(a["downscale_factor"])
    for labels in x[-2:]:
        t.pin(labels, node, "pixels are moved along this axis")
    channels = x[-3]
    return (*x[:-3], None if channels is None else np.repeat(channels, factor * factor), None, None)


MOVEMENT: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(
        ("dropout", "alpha_dropout", "feature_dropout", "clone", "contiguous", "alias", "detach", "to", "_to_copy",
         "lift_fresh_copy", "type_as", "zeros_like", "ones_like", "full_like", "rand_like", "native_dropout"),
        unchanged,
    ),
    **dict.fromkeys(
        ("reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_copy"), reshape
    ),
    "permute": permute,
    **dict.fromkeys(("transpose", "t", "swapaxes"), transpose),
    **dict.fromkeys(("expand", "broadcast_to", "expand_as"), expand),
    "repeat": repeat,
    **dict.fromkeys(("cat", "concat"), concatenate),
    "stack": stack,
    "slice": cut_slice,
    "select": select,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), split),
    "unbind": unbind,
    "flip": flip,
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    **dict.fromkeys(("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full"), filled),
    **dict.fromkeys(
        ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool3d", "avg_pool3d",
         "adaptive_avg_pool3d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
         "_upsample_bilinear2d_aa", "upsample_nearest1d", "upsample_linear1d", "upsample_nearest3d",
         "upsample_trilinear3d", "grid_sampler", "grid_sampler_2d", "max_pool2d_with_indices"),
        pooled,
    ),
    **dict.fromkeys(("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d"), pooled_last),
    **dict.fromkeys(("mean", "var", "std", "amax", "amin", "var_mean"), mean),
    **dict.fromkeys(("sum", "prod", "linalg_vector_norm", "norm", "logsumexp", "any", "all"), total),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "argmax", "argmin", "sort",
                     "topk"), along),
    "glu": gated,
    "pixel_shuffle": shuffled,
    "pixel_unshuffle": unshuffled,
}  # fmt: skip
