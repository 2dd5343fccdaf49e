"""Crops of the real photographs that scikit-learn and scikit-image carry, for networks trained on ImageNet.

They have no ImageNet labels; what is measured on them is agreement with the float network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import skimage
import sklearn
from PIL import Image

SIDE: Final = 224
# Only what lies in the wheels may be named below these: scikit-image would download its other pictures.
SKLEARN: Final = Path(sklearn.__file__).parent / "datasets" / "images"
SKIMAGE: Final = Path(skimage.__file__).parent / "data"


def crops(photos: Sequence[Path], n: int, *, side: int = SIDE, seed: int = 0) -> npt.NDArray[np.float32]:
    """Random square crops, half of them mirrored, as EfficientNet-Lite wants its input.

    Args:
        photos: image files; they take turns.
        n: number of crops.
        side: of the result in pixels.
        seed: same seed, same crops.

    Returns:
        float32 `[n, 3, side, side]`, `(pixel − 127) / 128`.
    """
    random = np.random.default_rng(seed)
    opened = [Image.open(path).convert("RGB") for path in photos]
    batch = np.empty((n, 3, side, side), np.float32)
    for i in range(n):
        batch[i] = (_crop(opened[i % len(opened)], side, random).transpose(2, 0, 1) - 127.0) / 128.0
    return batch


def _crop(photo: Image.Image, side: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """A square of 40 to 100% of the short edge: smaller ones hold no object."""
    edge = int(min(photo.size) * random.uniform(0.4, 1.0))
    left = int(random.integers(0, photo.width - edge + 1))
    top = int(random.integers(0, photo.height - edge + 1))
    box = (left, top, left + edge, top + edge)
    pixels = np.asarray(photo.resize((side, side), Image.Resampling.BICUBIC, box), np.float32)
    return pixels[:, ::-1] if random.random() < 0.5 else pixels
