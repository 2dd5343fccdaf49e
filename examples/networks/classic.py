"""Classic convolutional families: ResNet (also ResNeXt and RegNet), VGG, SqueezeNet, DenseNet, U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.networks.mobile import SqueezeExcite, conv_bn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2016)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1, squeeze: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(inputs, width, 3, stride, groups=groups, act=nn.ReLU), conv_bn(width, width, 3, act=None)
        )
        self.squeeze = SqueezeExcite(width, max(width // 4, 4), nn.Sigmoid) if squeeze else nn.Identity()
        same = stride == 1 and inputs == width
        self.shortcut = nn.Identity() if same else conv_bn(inputs, width, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` to `[n, width, h/stride, w/stride]`."""
        return F.relu(self.squeeze(self.body(x)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 (grouped in ResNeXt, with squeeze-and-excite in RegNet-Y), 1×1 and a shortcut."""

    expansion = 2

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1, squeeze: bool = False) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.reduce = conv_bn(inputs, width, 1, act=nn.ReLU)
        self.spatial = conv_bn(width, width, 3, stride, groups=groups, act=nn.ReLU)
        self.squeeze = SqueezeExcite(width, max(width // 4, 4), nn.Sigmoid) if squeeze else nn.Identity()
        self.expand = conv_bn(width, outputs, 1, act=None)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` to `[n, 2·width, h/stride, w/stride]`."""
        return F.relu(self.expand(self.squeeze(self.spatial(self.reduce(x)))) + self.shortcut(x))


class ResNet(nn.Module):
    """He et al. 2016, with the max-pool stem; every stage after the first halves the image.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks per stage.
        widths: channels per stage, before the block's expansion.
        classes: number of logits.
        groups: of the 3×3 convolutions (ResNeXt).
        squeeze: squeeze-and-excite in every block (RegNet-Y, SE-ResNet).
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck] = BasicBlock,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        classes: int = 1000,
        *,
        groups: int = 1,
        squeeze: bool = False,
    ) -> None:
        super().__init__()
        channels = widths[0]
        layers: list[nn.Module] = [conv_bn(3, channels, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for step in range(depth):
                stride = 2 if index and step == 0 else 1
                layers.append(block(channels, width, stride, groups, squeeze))
                channels = width * block.expansion
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`."""
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))


class VGG(nn.Module):
    """Simonyan and Zisserman 2015: 3×3 convolutions with bias, max-pool, three linears; no batch norm.

    Args:
        plan: channels of each convolution; 0 is a max-pool.
        image: side of the square input in pixels.
        hidden: width of the linears.
        classes: number of logits.
    """

    def __init__(
        self,
        plan: tuple[int, ...] = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
        image: int = 224,
        hidden: int = 4096,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in plan:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2, 2))
        side = image >> plan.count(0)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * side * side, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, image, image]` to logits `[n, classes]`."""
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class Fire(nn.Module):
    """Squeeze 1×1, expand by 1×1 and 3×3 side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` to `[n, 2·expanded, h, w]`."""
        x = F.relu(self.squeeze(x), inplace=True)
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)


class SqueezeNet(nn.Module):
    """Iandola et al. 2016, version 1.1: fire modules, ceil-mode pooling, a convolution as the classifier.

    Args:
        width: channels of the stem.
        fires: `(squeezed, expanded)` of each module; `None` is a max-pool.
        classes: number of logits.
    """

    full = (
        None,
        (16, 64),
        (16, 64),
        None,
        (32, 128),
        (32, 128),
        None,
        (48, 192),
        (48, 192),
        (64, 256),
        (64, 256),
    )

    def __init__(
        self, width: int = 64, fires: tuple[tuple[int, int] | None, ...] = full, classes: int = 1000
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2), nn.ReLU(inplace=True)]
        channels = width
        for fire in fires:
            if fire is None:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            else:
                layers.append(Fire(channels, *fire))
                channels = 2 * fire[1]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Conv2d(channels, classes, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d((1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`, never negative."""
        return torch.flatten(self.classifier(self.features(x)), 1)


class DenseLayer(nn.Module):
    """Batch norm before each convolution; the output is appended to the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` to `[n, inputs + growth, h, w]`."""
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """Huang et al. 2017: dense blocks with transitions of 1×1 and average pooling.

    Args:
        growth: channels that each layer adds.
        depths: layers per block.
        classes: number of logits.
    """

    def __init__(
        self, growth: int = 32, depths: tuple[int, ...] = (6, 12, 24, 16), classes: int = 1000
    ) -> None:
        super().__init__()
        channels = 2 * growth
        layers: list[nn.Module] = [conv_bn(3, channels, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
        for index, depth in enumerate(depths):
            if index:
                half = channels // 2
                layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, half, 1, bias=False)]
                layers.append(nn.AvgPool2d(2, 2))
                channels = half
            for _ in range(depth):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`."""
        x = F.adaptive_avg_pool2d(F.relu(self.features(x), inplace=True), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class UNet(nn.Module):
    """Ronneberger et al. 2015 with "same" padding: encoder, transposed convolutions, skip concatenations.

    Args:
        width: channels of the first level; each level doubles.
        levels: number of halvings.
        classes: channels of the output mask.
    """

    def __init__(self, width: int = 64, levels: int = 4, classes: int = 2) -> None:
        super().__init__()
        widths = [width << level for level in range(levels + 1)]
        self.down = nn.ModuleList(self._double(a, b) for a, b in zip([3, *widths], widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, shallow, 2, 2) for deep, shallow in pairs)
        self.merge = nn.ModuleList(self._double(deep, shallow) for deep, shallow in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            conv_bn(inputs, outputs, 3, act=nn.ReLU), conv_bn(outputs, outputs, 3, act=nn.ReLU)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to mask logits `[n, classes, h, w]`; sides are multiples of `2**levels`."""
        skips: list[Tensor] = []
        for index, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if index else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)
