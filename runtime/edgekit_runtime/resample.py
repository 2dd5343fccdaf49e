"""Resizes pixels as the reference does that models were evaluated with: Pillow's separable filters, bit for bit.

Each output pixel is a weighted mean of the input pixels below it; when an image gets smaller, the filter gets wider.
Weights are fixed-point numbers of 22 bits, and the first pass rounds to 8 bits before the second. Accuracy on a device
hangs on such details: a resize that is only nearly the same costs a classifier up to a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

# What is left of 32 bits beside 8 bits of a pixel, a sign, and weights that may overshoot 1.
PRECISION: Final = 32 - 8 - 2


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _bicubic(x: float) -> float:
    """Keys's cubic convolution with a = -0.5."""
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * a if x < 2.0 else 0.0


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(math.pi * x) / (math.pi * x)


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3.0) if -3.0 <= x < 3.0 else 0.0


# Filter, and how far it reaches in pixels of the coarser image.
FILTERS: Final[Mapping[str, tuple[Callable[[float], float], float]]] = MappingProxyType(
    {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0), "lanczos": (_lanczos, 3.0)}
)
NEAREST: Final = "nearest"


def resize(pixels: Pixels, height: int, width: int, method: str) -> Pixels:
    """Resize an image.

    Args:
        pixels: uint8 [height, width, channels].
        height: of the result, at least 1.
        width: of the result, at least 1.
        method: "nearest", or a key of `FILTERS`.

    Returns:
        uint8 [height, width, channels].
    """
    if method == NEAREST:
        return pixels[_nearest(pixels.shape[0], height)][:, _nearest(pixels.shape[1], width)]
    # The order decides where is rounded. Pillow 13 begins with the rows where that saves most; older ones never did.
    fewer_rows, fewer_columns = pixels.shape[0] - height, pixels.shape[1] - width
    if fewer_rows > max(0, 2 * fewer_columns):
        return np.ascontiguousarray(_columns(_rows(pixels, height, method), width, method))
    return np.ascontiguousarray(_rows(_columns(pixels, width, method), height, method))


def _nearest(length: int, wanted: int) -> NDArray[np.intp]:
    """The pixel below the centre of each output pixel; by steps, as the reference walks, for the same rounding."""
    step = length / wanted
    centre, places = 0.5 * step, []
    for _ in range(wanted):
        places.append(min(int(centre), length - 1))
        centre += step
    return np.array(places, np.intp)


def _columns(pixels: Pixels, wanted: int, method: str) -> Pixels:
    return _rows(pixels.transpose(1, 0, 2), wanted, method).transpose(1, 0, 2)


def _rows(pixels: Pixels, wanted: int, method: str) -> Pixels:
    """Resize axis 0."""
    if wanted == pixels.shape[0]:
        return pixels
    first, weights = _weights(pixels.shape[0], wanted, method)
    out = np.empty((wanted, *pixels.shape[1:]), np.uint8)
    for row in range(wanted):
        kernel = weights[row]
        below = pixels[first[row] : first[row] + len(kernel)].astype(np.int32)
        total = np.tensordot(kernel, below, axes=(0, 0)) + (1 << (PRECISION - 1))
        np.clip(total >> PRECISION, 0, 255, out=total)
        out[row] = total
    return out


@lru_cache(maxsize=16)
def _weights(length: int, wanted: int, method: str) -> tuple[list[int], list[NDArray[Any]]]:
    """First pixel and fixed-point weights for each output pixel; a camera asks for the same ones again and again."""
    function, reach = FILTERS[method]
    scale = length / wanted
    widened = max(scale, 1.0)
    support = reach * widened
    first, weights = [], []
    for place in range(wanted):
        centre = (place + 0.5) * scale
        low = max(0, int(centre - support + 0.5))
        high = min(length, int(centre + support + 0.5))
        real = [function((k - centre + 0.5) / widened) for k in range(low, high)]
        total = sum(real)
        exact = [w / total * (1 << PRECISION) for w in real]
        first.append(low)
        weights.append(np.array([int(w + math.copysign(0.5, w)) for w in exact], np.int32))
    return first, weights
