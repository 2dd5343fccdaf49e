"""Crops of the real photographs that scikit-learn and scikit-image carry, for networks trained on ImageNet.

They have no ImageNet labels; what is measured on them is agreement with the float network. Photographs that
calibrate and photographs that judge are different ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage
import sklearn
from PIL import Image

_SKLEARN = Path(sklearn.__file__).parent / "datasets" / "images"
_SKIMAGE = Path(skimage.__file__).parent / "data"
CALIBRATION = (
    _SKLEARN / "china.jpg",
    _SKIMAGE / "coffee.png",
    _SKIMAGE / "rocket.jpg",
    _SKIMAGE / "camera.png",
    _SKIMAGE / "retina.jpg",
    _SKIMAGE / "gravel.png",
)
EVALUATION = (
    _SKLEARN / "flower.jpg",
    _SKIMAGE / "astronaut.png",
    _SKIMAGE / "chelsea.png",
    _SKIMAGE / "motorcycle_left.png",
    _SKIMAGE / "coins.png",
    _SKIMAGE / "hubble_deep_field.jpg",
)


def crops(photos: tuple[Path, ...], n: int, *, side: int = 224, seed: int = 0) -> npt.NDArray[np.float32]:
    """Random square crops, half of them mirrored, as EfficientNet-Lite wants them.

    Args:
        photos: image files; they take turns.
        n: number of crops.
        side: of the result in pixels.
        seed: same seed, same crops.

    Returns:
        float32 `[n, 3, side, side]`, `(pixel − 127) / 128`.
    """
    rng = np.random.default_rng(seed)
    opened = [Image.open(path).convert("RGB") for path in photos]
    pixels = np.stack([_crop(opened[i % len(opened)], side, rng) for i in range(n)])
    return np.ascontiguousarray((pixels.transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128)


def _crop(photo: Image.Image, side: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A square of 40 to 100% of the short edge, resized; smaller ones hold no object."""
    edge = int(min(photo.size) * rng.uniform(0.4, 1.0))
    left = int(rng.integers(0, photo.width - edge + 1))
    top = int(rng.integers(0, photo.height - edge + 1))
    square = photo.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge))
    return np.asarray(square)[:, ::-1] if rng.random() < 0.5 else np.asarray(square)
