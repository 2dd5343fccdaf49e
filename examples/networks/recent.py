"""Families that stress a lowering: shifted windows, causal decoding, stock attention, atrous pyramids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.networks.mobile import SqueezeExcite, conv_bn


class WindowBlock(nn.Module):
    """Attention inside windows of a map, every other block shifted by half a window (Liu et al. 2021)."""

    def __init__(self, width: int, heads: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, window // 2 if shifted else 0
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.position = nn.Parameter(torch.zeros(heads, window**2, window**2))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def _attend(self, x: Tensor) -> Tensor:
        windows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + self.position
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(x.shape))

    def forward(self, x: Tensor) -> Tensor:
        """`[n, h, w, width]` to the same shape; `h` and `w` are multiples of the window."""
        n, height, width, channels = x.shape
        side, rows, columns = self.window, height // self.window, width // self.window
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2)) if self.shift else self.norm1(x)
        y = y.view(n, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side * side, channels)
        y = self._attend(y).view(n, rows, columns, side, side, channels).transpose(2, 3).reshape(x.shape)
        x = x + (torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y)
        return x + self.mlp(self.norm2(x))


class SwinStyle(nn.Module):
    """Patches, two window blocks, patch merging by strided slices, two more blocks."""

    def __init__(
        self, width: int = 96, heads: int = 3, window: int = 7, patch: int = 4, classes: int = 1000
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.early = nn.Sequential(*(WindowBlock(width, heads, window, shifted=s) for s in (False, True)))
        self.merge_norm, self.merge = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)
        self.late = nn.Sequential(
            *(WindowBlock(2 * width, 2 * heads, window, shifted=s) for s in (False, True))
        )
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`."""
        x = self.early(self.embed(x).permute(0, 2, 3, 1))
        parts = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        x = self.late(self.merge(self.merge_norm(torch.cat(parts, -1))))
        return self.head(self.norm(x).mean((1, 2)))


class GPTStyle(nn.Module):
    """Causal decoder over tokens: fused attention with `is_causal`, GELU by tanh, tied output weights."""

    def __init__(
        self, vocabulary: int = 256, length: int = 64, width: int = 64, heads: int = 4, depth: int = 2
    ) -> None:
        super().__init__()
        self.heads = heads
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Parameter(torch.zeros(length, width))
        self.norms1 = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.qkvs = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.projs = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norms2 = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 `[n, time]` to logits `[n, time, vocabulary]`."""
        n, time = tokens.shape
        x = self.words(tokens) + self.positions[:time]
        layers = zip(self.norms1, self.qkvs, self.projs, self.norms2, self.mlps, strict=True)
        for norm1, qkv, proj, norm2, mlp in layers:
            query, key, value = qkv(norm1(x)).view(n, time, 3 * self.heads, -1).transpose(1, 2).chunk(3, 1)
            y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + proj(y.transpose(1, 2).reshape(n, time, -1))
            x = x + mlp(norm2(x))
        return F.linear(self.norm(x), self.words.weight)


class StockEncoder(nn.Module):
    """torch's own `TransformerEncoder` over frames, mean over time."""

    def __init__(
        self, inputs: int = 16, width: int = 64, heads: int = 4, depth: int = 2, classes: int = 8
    ) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, batch_first=True, norm_first=True)
        self.enter = nn.Linear(inputs, width)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, frames: Tensor) -> Tensor:
        """`[n, time, inputs]` to logits `[n, classes]`."""
        return self.head(self.encoder(self.enter(frames)).mean(1))


class InceptionBlock(nn.Module):
    """Four branches side by side: 1×1, 1×5 then 5×1, two 3×3, average pool without counting the padding."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.one = conv_bn(inputs, width, 1, act=nn.ReLU)
        self.factored = nn.Sequential(
            nn.Conv2d(inputs, width, (1, 5), padding=(0, 2)),
            nn.ReLU(),
            nn.Conv2d(width, width, (5, 1), padding=(2, 0)),
        )
        self.twice = nn.Sequential(
            conv_bn(inputs, width, 3, act=nn.ReLU), conv_bn(width, width, 3, act=nn.ReLU)
        )
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.after = nn.Conv2d(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` to `[n, 4·width, h, w]`."""
        return torch.cat(
            [self.one(x), F.relu(self.factored(x)), self.twice(x), F.relu(self.after(self.pool(x)))], 1
        )


class InceptionStyle(nn.Module):
    """Szegedy et al. 2016 in small."""

    def __init__(self, width: int = 32, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, width, 3, 2, act=nn.ReLU), nn.MaxPool2d(3, 2))
        self.blocks = nn.Sequential(InceptionBlock(width, width // 2), InceptionBlock(2 * width, width // 2))
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`."""
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class AtrousSegmenter(nn.Module):
    """Chen et al. 2017: dilated branches and image-level pooling, resized bilinearly to the input."""

    def __init__(self, width: int = 32, classes: int = 21, rates: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_bn(3, width, 3, 2, act=nn.ReLU), conv_bn(width, width, 3, 2, act=nn.ReLU)
        )
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=rate, dilation=rate, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for rate in rates
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.ReLU())
        self.merge = conv_bn(width * (len(rates) + 1), width, 1, act=nn.ReLU)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to class logits `[n, classes, h, w]`."""
        y = self.stem(x)
        level = F.interpolate(self.pooled(y), size=y.shape[2:], mode="bilinear", align_corners=False)
        y = self.head(self.merge(torch.cat([*(branch(y) for branch in self.branches), level], 1)))
        return F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)


class EfficientNetStyle(nn.Module):
    """MBConv with SiLU and sigmoid squeeze-and-excite (Tan and Le 2019), two blocks."""

    def __init__(self, width: int = 32, classes: int = 1000) -> None:
        super().__init__()
        wide = 4 * width
        self.stem = conv_bn(3, width, 3, 2, act=nn.SiLU)
        self.block1 = self._mbconv(width, wide, 5)
        self.block2 = self._mbconv(width, wide, 3)
        self.top = conv_bn(width, wide, 1, act=nn.SiLU)
        self.head = nn.Linear(wide, classes)

    @staticmethod
    def _mbconv(width: int, wide: int, kernel: int) -> nn.Sequential:
        return nn.Sequential(
            conv_bn(width, wide, 1, act=nn.SiLU),
            conv_bn(wide, wide, kernel, groups=wide, act=nn.SiLU),
            SqueezeExcite(wide, width // 4, nn.Sigmoid),
            conv_bn(wide, width, 1, act=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, h, w]` to logits `[n, classes]`."""
        x = self.stem(x)
        x = x + self.block1(x)
        x = x + self.block2(x)
        return self.head(self.top(x).mean((-2, -1)))


class PointNet(nn.Module):
    """Qi et al. 2017 without the transform: the same layers on every point, then the maximum over sets."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256), classes: int = 40) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.points = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(widths[-1], widths[0]), nn.ReLU(), nn.Linear(widths[0], classes))

    def forward(self, points: Tensor) -> Tensor:
        """`[n, points, 3]` to log-probabilities `[n, classes]`."""
        features = self.points(points.transpose(1, 2))
        return F.log_softmax(self.head(torch.max(features, 2)[0]), 1)


class RawAudio(nn.Module):
    """Dai et al. 2017: a waveform, long strided kernels, pooling; half a second in, one label out."""

    def __init__(self, width: int = 32, classes: int = 35) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(1, width, 20, 4), nn.BatchNorm1d(width)
        self.conv2, self.norm2 = nn.Conv1d(width, 2 * width, 3), nn.BatchNorm1d(2 * width)
        self.pool = nn.MaxPool1d(4)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, waveform: Tensor) -> Tensor:
        """`[n, 1, samples]` to log-probabilities `[n, classes]`."""
        x = self.pool(F.relu(self.norm1(self.conv1(waveform))))
        x = self.pool(F.relu(self.norm2(self.conv2(x))))
        return F.log_softmax(self.head(F.avg_pool1d(x, x.shape[-1]).squeeze(-1)), -1)
