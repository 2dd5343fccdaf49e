"""Ops that move elements without computing on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgekit_converters.coreml_reference.ops.arguments import Tensor, flag, integer, ints, number


def shape(x: Tensor) -> Tensor:
    """Sizes of all axes, int32."""
    return torch.tensor(x.shape, dtype=torch.int32)


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """New sizes; -1 is what remains, 0 the size of x counted from the right (1 past its left end)."""
    sizes = ints(shape)
    shift = x.ndim - len(sizes)
    kept = [(x.shape[i + shift] if i + shift >= 0 else 1) if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(kept)


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """Inserts axes of size one, at places in the result."""
    places = ints(axes)
    rank = x.ndim + len(places)
    for place in sorted(p % rank for p in places):
        x = x.unsqueeze(place)
    return x


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Removes axes of size one."""
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


def transpose(x: Tensor, perm: Tensor) -> Tensor:
    """Reorders the axes."""
    return x.permute(ints(perm))


def reverse(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Turns axes around."""
    return x.flip(ints(axes, list(range(x.ndim))))


def slice_by_index(
    x: Tensor,
    *,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """`x[begin:end:stride, …]`; masked bounds are open, squeezed axes take the one element at `begin`."""
    closed = [0] * x.ndim
    steps = ints(stride, [1] * x.ndim)
    open_begin, open_end, single = (ints(m, closed) for m in (begin_mask, end_mask, squeeze_mask))
    first, last = ints(begin), ints(end)
    for axis in range(x.ndim):
        size = x.shape[axis]
        if single[axis]:
            start = first[axis] if not open_begin[axis] else 0
            x = x.narrow(axis, start % size, 1)
            continue
        window = slice(
            None if open_begin[axis] else first[axis], None if open_end[axis] else last[axis], steps[axis]
        )
        places = range(*window.indices(size))
        if steps[axis] > 0:
            x = x[(slice(None),) * axis + (window,)]
        else:
            # torch has no negative steps.
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x.squeeze(tuple(axis for axis in range(x.ndim) if single[axis])) if any(single) else x


def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """`size` elements from `begin` on; -1 is all that remain."""
    for axis, (start, count) in enumerate(zip(ints(begin), ints(size), strict=True)):
        first = start % x.shape[axis] if start < 0 else start
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def crop(x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    """Cuts (before, after) off the last two axes."""
    (top, bottom), (left, right) = ints(crop_height), ints(crop_width)
    height, width = x.shape[-2:]
    return x[..., top : height - bottom, left : width - right]


def concat(values: list[Tensor], axis: Tensor, interleave: Tensor | None = None) -> Tensor:
    """Joins along an axis, element by element in turn if interleaved."""
    at = integer(axis)
    if flag(interleave):
        place = at % values[0].ndim
        return torch.stack(values, place + 1).flatten(place, place + 1)
    return torch.cat(values, at)


def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Cuts along an axis, into equal parts or given sizes."""
    at = integer(axis)
    if split_sizes is not None:
        return tuple(torch.split(x, ints(split_sizes), at))
    return tuple(torch.split(x, x.shape[at] // integer(num_splits), at))


def stack(values: list[Tensor], axis: Tensor) -> Tensor:
    """Joins along a new axis."""
    return torch.stack(values, integer(axis))


def tile(x: Tensor, reps: Tensor) -> Tensor:
    """Repeats along every axis."""
    return x.repeat(ints(reps))


def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | None = None) -> Tensor:
    """Pads the last axes: before, after, of each in order."""
    sides = ints(pad)
    first = x.ndim - len(sides) // 2
    if mode == "constant":
        order = [side for i in reversed(range(len(sides) // 2)) for side in sides[2 * i : 2 * i + 2]]
        return F.pad(x, order, value=number(constant_val))
    for i in range(len(sides) // 2):
        places = _mirrored(x.shape[first + i], sides[2 * i], sides[2 * i + 1], mode)
        x = x.index_select(first + i, places)
    return x


def _mirrored(size: int, before: int, after: int, mode: str) -> Tensor:
    places = torch.arange(-before, size + after)
    if mode == "reflect":
        places = places.abs()
        return torch.where(places >= size, 2 * (size - 1) - places, places)
    if mode == "replicate":
        return places.clamp(0, size - 1)
    raise ValueError(f"pad has no mode {mode!r}")


def pixel_shuffle(x: Tensor, upscale_factor: Tensor) -> Tensor:
    """Channels to space; a pixel's channels are adjacent."""
    return F.pixel_shuffle(x, integer(upscale_factor))


def pixel_unshuffle(x: Tensor, downscale_factor: Tensor) -> Tensor:
    """Space to channels, the inverse of `pixel_shuffle`."""
    return F.pixel_unshuffle(x, integer(downscale_factor))


def depth_to_space(x: Tensor, block_size: Tensor) -> Tensor:
    """Channels to space; a pixel's channels lie `C / block²` apart (the order of TensorFlow)."""
    n, c, h, w = x.shape
    b = integer(block_size)
    return (
        x.reshape(n, b, b, c // (b * b), h, w)
        .permute(0, 3, 4, 1, 5, 2)
        .reshape(n, c // (b * b), h * b, w * b)
    )


def space_to_depth(x: Tensor, block_size: Tensor) -> Tensor:
    """Space to channels, the inverse of `depth_to_space`."""
    n, c, h, w = x.shape
    b = integer(block_size)
    return (
        x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)
    )


def space_to_batch(x: Tensor, block_shape: Tensor, paddings: Tensor) -> Tensor:
    """Pads, then moves the positions within each block of the last two axes to the batch axis."""
    (top, bottom), (left, right) = paddings.tolist()
    x = F.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    a, b = ints(block_shape)
    return (
        x.reshape(n, c, h // a, a, w // b, b).permute(3, 5, 0, 1, 2, 4).reshape(a * b * n, c, h // a, w // b)
    )


def batch_to_space(x: Tensor, block_shape: Tensor, crops: Tensor) -> Tensor:
    """The inverse of `space_to_batch`, then crops."""
    (top, bottom), (left, right) = crops.tolist()
    a, b = ints(block_shape)
    n, c, h, w = x.shape
    wide = (
        x.reshape(a, b, n // (a * b), c, h, w)
        .permute(2, 3, 4, 0, 5, 1)
        .reshape(n // (a * b), c, h * a, w * b)
    )
    return wide[:, :, top : h * a - bottom, left : w * b - right]


def sliding_windows(x: Tensor, axis: Tensor, size: Tensor, stride: Tensor | None = None) -> Tensor:
    """All windows along an axis; their elements become the axis after it."""
    at = integer(axis) % x.ndim
    return x.unfold(at, integer(size), integer(stride, 1)).movedim(-1, at + 1)


def band_part(x: Tensor, lower: Tensor | None = None, upper: Tensor | None = None) -> Tensor:
    """Keeps a band around the diagonal of the last two axes, zeros elsewhere; -1 keeps all of a side."""
    below, above = integer(lower, -1), integer(upper, -1)
    rows, columns = torch.arange(x.shape[-2]).unsqueeze(1), torch.arange(x.shape[-1])
    keep = torch.ones(x.shape[-2:], dtype=torch.bool)
    if below >= 0:
        keep &= rows - columns <= below
    if above >= 0:
        keep &= columns - rows <= above
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))
