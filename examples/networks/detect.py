"""A one-stage detector in the manner of YOLOv5 and v8: backbone, pyramid, decoupled heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.networks.mobile import conv_bn


class C2f(nn.Module):
    """Split in two, a chain of bottlenecks on one half, concatenate everything."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        half = outputs // 2
        self.enter = conv_bn(inputs, outputs, 1, act=nn.SiLU)
        self.chain = nn.ModuleList(
            nn.Sequential(conv_bn(half, half, 3, act=nn.SiLU), conv_bn(half, half, 3, act=nn.SiLU))
            for _ in range(depth)
        )
        self.leave = conv_bn((2 + depth) * half, outputs, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` to `[n, outputs, h, w]`."""
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.chain:
            parts.append(parts[-1] + block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling by three 5×5 max-pools in a row."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = conv_bn(channels, channels // 2, 1, act=nn.SiLU)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = conv_bn(2 * channels, channels, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, channels, h, w]` to the same shape."""
        x = self.enter(x)
        y = self.pool(x)
        z = self.pool(y)
        return self.leave(torch.cat([x, y, z, self.pool(z)], 1))


class YoloStyle(nn.Module):
    """Backbone of three levels, top-down pyramid with nearest resize, one head per level.

    Args:
        width: channels of the stem.
        classes: number of object classes.
    """

    def __init__(self, width: int = 32, classes: int = 80) -> None:
        super().__init__()
        self.classes = classes
        self.stem = nn.Sequential(
            conv_bn(3, width, 3, 2, act=nn.SiLU), conv_bn(width, width, 3, 2, act=nn.SiLU)
        )
        self.level3 = nn.Sequential(
            conv_bn(width, 2 * width, 3, 2, act=nn.SiLU), C2f(2 * width, 2 * width, 1)
        )
        self.level4 = nn.Sequential(
            conv_bn(2 * width, 4 * width, 3, 2, act=nn.SiLU), C2f(4 * width, 4 * width, 1), SPPF(4 * width)
        )
        self.merge = C2f(6 * width, 2 * width, 1)
        self.heads = nn.ModuleList(
            nn.Sequential(conv_bn(channels, width, 3, act=nn.SiLU), nn.Conv2d(width, 4 + classes, 1))
            for channels in (2 * width, 4 * width)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[n, 3, h, w]` to distances `[n, 4, cells]` and scores in (0, 1) `[n, classes, cells]`."""
        fine = self.level3(self.stem(x))
        coarse = self.level4(fine)
        upper = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        merged = self.merge(torch.cat([upper, fine], 1))
        maps = [head(level).flatten(2) for head, level in zip(self.heads, (merged, coarse), strict=True)]
        boxes, scores = torch.cat(maps, 2).split((4, self.classes), 1)
        return F.relu(boxes), scores.sigmoid()
