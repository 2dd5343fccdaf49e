"""Smaller families whose operators the others lack: shuffles, mixers, norms, einsum, resampling."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.networks.mobile import conv_bn


class ShuffleUnit(nn.Module):
    """Ma et al. 2018: work on half of the channels, then shuffle; both halves work when the stride is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, outputs // 2
        self.shortcut = nn.Sequential(
            conv_bn(inputs, inputs, 3, stride, groups=inputs, act=None), conv_bn(inputs, half, 1, act=nn.ReLU)
        )
        self.body = nn.Sequential(
            conv_bn(inputs if stride > 1 else half, half, 1, act=nn.ReLU),
            conv_bn(half, half, 3, stride, groups=half, act=None),
            conv_bn(half, half, 1, act=nn.ReLU),
        )
        if stride == 1:
            self.shortcut = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` to `[n, outputs, h/stride, w/stride]`."""
        left, right = (x, x) if self.stride > 1 else x.chunk(2, 1)
        y = torch.cat([self.shortcut(left), self.body(right)], 1)
        n, channels, height, width = y.shape
        return y.view(n, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(y.shape)


class ShuffleNetV2(nn.Module):
    """Ma et al. 2018: stages of shuffle units."""

    def __init__(
        self,
        widths: tuple[int, ...] = (24, 116, 232, 464),
        depths: tuple[int, ...] = (4, 8, 4),
        classes: int = 1000,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, widths[0], 3, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
        for inputs, outputs, depth in zip(widths, widths[1:], depths, strict=False):
            layers.append(ShuffleUnit(inputs, outputs, 2))
            layers += [ShuffleUnit(outputs, outputs, 1) for _ in range(depth - 1)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`."""
        return self.fc(self.features(x).mean([2, 3]))


class MLP(nn.Module):
    """Linear, batch norm, ReLU, repeated; class probabilities come out."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 64), classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.1)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], classes), nn.Softmax(-1))

    def forward(self, features: Tensor) -> Tensor:
        """`[n, features]` to probabilities `[n, classes]`."""
        return self.layers(features)


class MixerBlock(nn.Module):
    """Mix over patches, then over channels."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(
            nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches)
        )
        self.channels = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """`[n, patches, width]` to the same shape."""
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """Tolstikhin et al. 2021."""

    def __init__(
        self, image: int = 224, patch: int = 16, width: int = 256, depth: int = 8, classes: int = 1000
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*(MixerBlock((image // patch) ** 2, width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, image, image]` to logits `[n, classes]`."""
        x = self.blocks(self.embed(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


class Activations(nn.Module):
    """One convolution each for PReLU, leaky ReLU, ELU, softplus, mish and GELU by tanh."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        acts = (nn.PReLU(width), nn.LeakyReLU(0.1), nn.ELU(), nn.Softplus(), nn.Mish(), nn.GELU("tanh"))
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1)]
        for act in acts:
            layers += [act, nn.Conv2d(width, width, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`."""
        return self.head(self.layers(x).amax((2, 3)))


class NormNet(nn.Module):
    """Instance norm and group norm in a style-transfer body: reflection padding, residuals, tanh."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, width, 3), nn.InstanceNorm2d(width, affine=True), nn.ReLU()
        )
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(4, 2 * width), nn.ReLU())
        self.middle = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, padding_mode="replicate"),
            nn.InstanceNorm2d(2 * width),
        )
        self.leave = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to images in (−1, 1) of the same shape."""
        y = self.down(self.enter(x))
        y = F.relu(y + self.middle(y))
        return torch.tanh(self.leave(F.interpolate(y, scale_factor=2.0, mode="nearest")))


class Autoencoder(nn.Module):
    """Strided encoder to a code, bilinear decoder back to the image."""

    def __init__(self, width: int = 16, code: int = 16, image: int = 32) -> None:
        super().__init__()
        self.side = image // 4
        self.encode = nn.Sequential(
            conv_bn(3, width, 3, 2, act=nn.ReLU), conv_bn(width, width, 3, 2, act=nn.ReLU)
        )
        self.code = nn.Linear(width * self.side**2, code)
        self.decode = nn.Linear(code, width * self.side**2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[n, 3, image, image]` to images in (0, 1) of that shape, and codes `[n, code]`."""
        code = self.code(self.encode(x).flatten(1))
        y = self.decode(code).reshape(x.shape[0], -1, self.side, self.side)
        y = F.relu(self.conv1(self.up(y)))
        return torch.sigmoid(self.conv2(self.up(y))), code


class EinsumAttention(nn.Module):
    """Attention over pixels of a feature map, every product an einsum; RMS norm as a formula."""

    def __init__(self, width: int = 32, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.gain = nn.Parameter(torch.ones(width))
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, classes)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`."""
        x = self.embed(x).flatten(2).permute(0, 2, 1)
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain
        query, key, value = self._heads(self.query(y)), self._heads(self.key(y)), self._heads(self.value(y))
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
        return self.head((x + self.out(mixed.flatten(2))).mean(1))


class SuperResolution(nn.Module):
    """Shi et al. 2016: convolutions at low resolution, then pixel shuffle; a skip by nearest resize."""

    def __init__(self, width: int = 32, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.conv1 = nn.Conv2d(1, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, factor**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Luma `[n, 1, h, w]` to `[n, 1, factor·h, factor·w]`."""
        y = self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
        skip = F.interpolate(x, scale_factor=float(self.factor), mode="nearest")
        return F.pixel_shuffle(y, self.factor) + skip
