"""Networks made for small devices: MobileNetV1, V2, V3-small, EfficientNet-Lite, and DS-CNN for keywords."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def divisible(channels: float, by: int = 8) -> int:
    """Round to a multiple of `by`, never more than 10% down (Sandler et al. 2018, reference code)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU6,
) -> nn.Sequential:
    """Convolution with symmetric "same" padding, batch norm, and an activation unless `act` is None."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([act()] if act else []))


class MobileNetV1(nn.Module):
    """Howard et al. 2017: depthwise 3×3 and pointwise 1×1 in turn.

    Args:
        width: multiplier of all channel counts.
        classes: number of logits.
        blocks: `(channels, stride)` of each separable block.
    """

    full = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))

    def __init__(
        self, width: float = 1.0, classes: int = 1000, blocks: tuple[tuple[int, int], ...] = full
    ) -> None:
        super().__init__()
        channels = divisible(32 * width)
        layers: list[nn.Module] = [conv_bn(3, channels, 3, 2, act=nn.ReLU)]
        for base, stride in blocks:
            outputs = divisible(base * width)
            layers.append(conv_bn(channels, channels, 3, stride, groups=channels, act=nn.ReLU))
            layers.append(conv_bn(channels, outputs, 1, act=nn.ReLU))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`."""
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class Stage(NamedTuple):
    """A run of inverted residuals in MobileNetV2 and EfficientNet-Lite."""

    expand: int
    channels: int
    repeats: int
    stride: int
    kernel: int = 3


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise, project 1×1; a shortcut where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers = [conv_bn(inputs, hidden, 1)] if expand != 1 else []
        layers += [conv_bn(hidden, hidden, 3, stride, groups=hidden), conv_bn(hidden, outputs, 1, act=None)]
        self.body = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` to `[n, outputs, h/stride, w/stride]`."""
        return x + self.body(x) if self.shortcut else self.body(x)


class MobileNetV2(nn.Module):
    """Sandler et al. 2018: inverted residuals with linear bottlenecks and ReLU6.

    Args:
        width: multiplier of all channel counts.
        classes: number of logits.
        stages: table 2 of the paper, or a shorter one.
        head: channels of the last 1×1 convolution.
    """

    full = (
        Stage(1, 16, 1, 1),
        Stage(6, 24, 2, 2),
        Stage(6, 32, 3, 2),
        Stage(6, 64, 4, 2),
        Stage(6, 96, 3, 1),
        Stage(6, 160, 3, 2),
        Stage(6, 320, 1, 1),
    )

    def __init__(
        self, width: float = 1.0, classes: int = 1000, stages: tuple[Stage, ...] = full, head: int = 1280
    ) -> None:
        super().__init__()
        channels = divisible(32 * width)
        layers: list[nn.Module] = [conv_bn(3, channels, 3, 2)]
        for stage in stages:
            outputs = divisible(stage.channels * width)
            for index in range(stage.repeats):
                stride = stage.stride if index == 0 else 1
                layers.append(InvertedResidual(channels, outputs, stride, stage.expand))
                channels = outputs
        self.features = nn.Sequential(*layers, conv_bn(channels, head, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`."""
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class SqueezeExcite(nn.Module):
    """Hu et al. 2018; `gate` is hard-sigmoid in MobileNetV3 and sigmoid elsewhere."""

    def __init__(self, channels: int, squeezed: int, gate: type[nn.Module] = nn.Hardsigmoid) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """`[n, channels, h, w]`, scaled per image and channel."""
        return x * self.gate(self.expand(F.relu(self.reduce(self.pool(x)))))


class Bneck(NamedTuple):
    """One row of table 2 of the MobileNetV3 paper."""

    kernel: int
    expanded: int
    channels: int
    squeeze: bool
    act: type[nn.Module]
    stride: int


class MobileNetV3Block(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project."""

    def __init__(self, inputs: int, outputs: int, hidden: int, row: Bneck) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(inputs, hidden, 1, act=row.act)] if hidden != inputs else []
        layers.append(conv_bn(hidden, hidden, row.kernel, row.stride, groups=hidden, act=row.act))
        if row.squeeze:
            layers.append(SqueezeExcite(hidden, divisible(hidden / 4)))
        self.body = nn.Sequential(*layers, conv_bn(hidden, outputs, 1, act=None))
        self.shortcut = row.stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` to `[n, outputs, h/stride, w/stride]`."""
        return x + self.body(x) if self.shortcut else self.body(x)


class MobileNetV3Small(nn.Module):
    """Howard et al. 2019, table 2: hard-swish, hard-sigmoid squeeze-and-excite.

    Args:
        width: multiplier of all channel counts.
        classes: number of logits.
        rows: the blocks.
        head: width of the hidden classifier layer.
    """

    full = (
        Bneck(3, 16, 16, True, nn.ReLU, 2),
        Bneck(3, 72, 24, False, nn.ReLU, 2),
        Bneck(3, 88, 24, False, nn.ReLU, 1),
        Bneck(5, 96, 40, True, nn.Hardswish, 2),
        Bneck(5, 240, 40, True, nn.Hardswish, 1),
        Bneck(5, 240, 40, True, nn.Hardswish, 1),
        Bneck(5, 120, 48, True, nn.Hardswish, 1),
        Bneck(5, 144, 48, True, nn.Hardswish, 1),
        Bneck(5, 288, 96, True, nn.Hardswish, 2),
        Bneck(5, 576, 96, True, nn.Hardswish, 1),
        Bneck(5, 576, 96, True, nn.Hardswish, 1),
    )

    def __init__(
        self, width: float = 1.0, classes: int = 1000, rows: tuple[Bneck, ...] = full, head: int = 1024
    ) -> None:
        super().__init__()
        channels = divisible(16 * width)
        layers: list[nn.Module] = [conv_bn(3, channels, 3, 2, act=nn.Hardswish)]
        for row in rows:
            outputs = divisible(row.channels * width)
            layers.append(MobileNetV3Block(channels, outputs, divisible(row.expanded * width), row))
            channels = outputs
        self.features = nn.Sequential(*layers, conv_bn(channels, 6 * channels, 1, act=nn.Hardswish))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, head), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(head, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`."""
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class SameConv2d(nn.Conv2d):
    """TensorFlow's SAME padding, which is larger at the bottom and right when the total is odd."""

    def forward(self, input: Tensor) -> Tensor:
        """`[n, c, h, w]` to `[n, outputs, ceil(h/stride), ceil(w/stride)]`."""
        pads: list[int] = []
        for size, kernel, stride in zip(
            input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(
            F.pad(input, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class EfficientNetLite(nn.Module):
    """EfficientNet without squeeze-and-excite and swish, as TensorFlow trains it: SAME padding, ReLU6.

    Args:
        width: multiplier of all channel counts.
        classes: number of logits.
        stages: the B0 stages.
        head: channels of the last 1×1 convolution.
    """

    full = (
        Stage(1, 16, 1, 1, 3),
        Stage(6, 24, 2, 2, 3),
        Stage(6, 40, 2, 2, 5),
        Stage(6, 80, 3, 2, 3),
        Stage(6, 112, 3, 1, 5),
        Stage(6, 192, 4, 2, 5),
        Stage(6, 320, 1, 1, 3),
    )

    class Block(nn.Module):
        """Inverted residual with SAME padding."""

        def __init__(self, inputs: int, outputs: int, stride: int, stage: Stage) -> None:
            super().__init__()
            hidden = inputs * stage.expand
            self.expand = conv_bn(inputs, hidden, 1) if stage.expand != 1 else nn.Identity()
            self.depthwise = SameConv2d(hidden, hidden, stage.kernel, stride, groups=hidden, bias=False)
            self.norm = nn.BatchNorm2d(hidden, eps=1e-3)
            self.project = conv_bn(hidden, outputs, 1, act=None)
            self.shortcut = stride == 1 and inputs == outputs

        def forward(self, x: Tensor) -> Tensor:
            """`[n, inputs, h, w]` to `[n, outputs, h/stride, w/stride]`."""
            y = self.project(F.relu6(self.norm(self.depthwise(self.expand(x)))))
            return x + y if self.shortcut else y

    def __init__(
        self, width: float = 1.0, classes: int = 1000, stages: tuple[Stage, ...] = full, head: int = 1280
    ) -> None:
        super().__init__()
        channels = divisible(32 * width)
        self.stem = SameConv2d(3, channels, 3, 2, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels, eps=1e-3)
        blocks: list[nn.Module] = []
        for stage in stages:
            outputs = divisible(stage.channels * width)
            for index in range(stage.repeats):
                blocks.append(self.Block(channels, outputs, stage.stride if index == 0 else 1, stage))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_bn(channels, head, 1)
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`."""
        x = F.relu6(self.stem_norm(self.stem(x)))
        return self.classifier(self.head(self.blocks(x)).mean((2, 3)))


class DSCNN(nn.Module):
    """Zhang et al. 2017, the small size, as in MLPerf Tiny: 49 frames of 10 MFCC to 12 keywords.

    Args:
        channels: width of every layer.
        blocks: number of separable blocks.
        classes: number of logits.
    """

    def __init__(self, channels: int = 64, blocks: int = 4, classes: int = 12) -> None:
        super().__init__()
        self.stem = SameConv2d(1, channels, (10, 4), 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        layers: list[nn.Module] = []
        for _ in range(blocks):
            layers.append(conv_bn(channels, channels, 3, groups=channels, act=nn.ReLU))
            layers.append(conv_bn(channels, channels, 1, act=nn.ReLU))
        self.blocks = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.pool = nn.AvgPool2d((25, 5))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, mfcc: Tensor) -> Tensor:
        """`[n, 1, 49, 10]` to logits `[n, classes]`."""
        x = self.dropout(F.relu(self.norm(self.stem(mfcc))))
        return self.classifier(torch.flatten(self.pool(self.blocks(x)), 1))
