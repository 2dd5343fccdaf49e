"""Resizing of the last two axes, and sampling at coordinates."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgekit_converters.coreml_reference.ops.arguments import Tensor, flag, integer, ints, number


def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: Tensor | None = None, scale_factor_width: Tensor | None = None
) -> Tensor:
    """Repeats the nearest element; the size is the floor of the scaled size."""
    return _nearest(x, _scaled(x, scale_factor_height, scale_factor_width))


def resize_nearest_neighbor(x: Tensor, target_size_height: Tensor, target_size_width: Tensor) -> Tensor:
    """Repeats the nearest element to a given size."""
    return _nearest(x, [integer(target_size_height), integer(target_size_width)])


def upsample_bilinear(
    x: Tensor,
    *,
    scale_factor_height: Tensor | None = None,
    scale_factor_width: Tensor | None = None,
    align_corners: Tensor | None = None,
    half_pixel_centers: Tensor | None = None,
) -> Tensor:
    """Bilinear to the floor of the scaled size; the scale is computed again from the sizes."""
    aligned = flag(align_corners, True)
    centred = flag(half_pixel_centers, not aligned)
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if centred else "DEFAULT"
    return _bilinear(x, _scaled(x, scale_factor_height, scale_factor_width), mode)


def resize_bilinear(
    x: Tensor,
    target_size_height: Tensor | None = None,
    target_size_width: Tensor | None = None,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Bilinear to a given size; the mode says where the samples lie."""
    return _bilinear(x, [integer(target_size_height, 1), integer(target_size_width, 1)], sampling_mode)


def resize(
    x: Tensor,
    *,
    shape: Tensor,
    resized_dims: Tensor,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Resizes the last `resized_dims` axes to the last entries of `shape`; 0 keeps a size."""
    count = integer(resized_dims)
    sizes = [n or old for n, old in zip(ints(shape)[-count:], x.shape[-count:], strict=True)]
    for axis, size in enumerate(sizes, x.ndim - count):
        if interpolation_mode == "NEAREST_NEIGHBOR":
            x = _nearest_axis(x, axis, size)
        else:
            x = _linear_axis(x, axis, _grid(x.shape[axis], size, sampling_mode))
    return x


def resample(
    x: Tensor,
    *,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Tensor,
    coordinates_mode: str,
    align_corners: Tensor,
) -> Tensor:
    """Samples x (n, C, H, W) at (x, y) pairs, coordinates (n, H₂, W₂, 2).

    Raises:
        ValueError: a mode that torch's `grid_sample` does not have, which this op is emitted for.
    """
    paddings = {"constant": "zeros", "border": "border", "reflection": "reflection"}
    if (
        coordinates_mode != "normalized_minus_one_to_one"
        or padding_mode not in paddings
        or number(padding_value)
    ):
        raise ValueError(f"resample with {coordinates_mode!r}, {padding_mode!r}, {number(padding_value)}")
    return F.grid_sample(
        x, coordinates.to(x.dtype), sampling_mode, paddings[padding_mode], flag(align_corners)
    )


def _scaled(x: Tensor, height: Tensor | None, width: Tensor | None) -> list[int]:
    return [int(n * number(f, 1.0)) for n, f in zip(x.shape[-2:], (height, width), strict=True)]


def _nearest(x: Tensor, sizes: list[int]) -> Tensor:
    return _nearest_axis(_nearest_axis(x, x.ndim - 2, sizes[0]), x.ndim - 1, sizes[1])


def _nearest_axis(x: Tensor, axis: int, size: int) -> Tensor:
    if size == x.shape[axis]:
        return x
    # floor(i · in / out) in whole numbers, as float32 would round some places to a neighbour.
    return x.index_select(axis, torch.arange(size) * x.shape[axis] // size)


def _bilinear(x: Tensor, sizes: list[int], mode: str) -> Tensor:
    for axis, size in enumerate(sizes, x.ndim - 2):
        x = _linear_axis(x, axis, _grid(x.shape[axis], size, mode))
    return x


def _grid(size: int, target: int, mode: str) -> Tensor:
    """Places of `target` samples on `[0, size − 1]`, float64, by the formulas of MIL's `resize_bilinear`."""
    i = torch.arange(target, dtype=torch.float64)
    last = max(target - 1, 1)
    if mode == "STRICT_ALIGN_CORNERS":
        grid = i * (size - 1) / last
    elif mode == "ALIGN_CORNERS":
        grid = i * (size - 1) / last if target > 1 else torch.full((1,), (size - 1) / 2, dtype=torch.float64)
    elif mode == "DEFAULT":
        grid = i * (size / target)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / target
        grid = 0.5 * delta + i * delta
    elif mode == "UNALIGN_CORNERS":
        grid = (i + 0.5) * (size / target) - 0.5
    else:
        raise ValueError(f"there is no sampling mode {mode!r}")
    return grid.clamp(0, size - 1)


def _linear_axis(x: Tensor, axis: int, grid: Tensor) -> Tensor:
    low = grid.floor().to(torch.int64)
    high = (low + 1).clamp_max(x.shape[axis] - 1)
    weight = (grid - low).to(x.dtype).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight
