"""Families that people bring: decoded boxes, faces, lines of text, recommendation, video, upscaling, sound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.networks.mobile import conv_bn


class CrossStage(nn.Module):
    """YOLOv8's C2f: split, bottlenecks on one half, everything concatenated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.enter = conv_bn(inputs, outputs, 1, act=nn.SiLU)
        self.body = nn.Sequential(conv_bn(half, half, 3, act=nn.SiLU), conv_bn(half, half, 3, act=nn.SiLU))
        self.leave = conv_bn(3 * half, outputs, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` to `[n, outputs, h, w]`."""
        left, right = self.enter(x).chunk(2, 1)
        return self.leave(torch.cat([left, right, right + self.body(right)], 1))


class YoloDecoded(nn.Module):
    """YOLOv8 in small: two scales, pooled pyramid, box sides as the mean of bins, anchors inside of the graph."""

    BINS = 8

    def __init__(self, side: int = 64, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        wide = 2 * width
        self.fine = nn.Sequential(
            conv_bn(3, width, 3, 2, act=nn.SiLU), conv_bn(width, width, 3, 2, act=nn.SiLU)
        )
        self.coarse = nn.Sequential(conv_bn(width, wide, 3, 2, act=nn.SiLU), CrossStage(wide, wide))
        self.squeeze, self.pool = conv_bn(wide, width, 1, act=nn.SiLU), nn.MaxPool2d(5, 1, 2)
        self.spread = conv_bn(4 * width, wide, 1, act=nn.SiLU)
        self.merge = CrossStage(wide + width, width)
        self.classes = classes
        self.heads = nn.ModuleList(nn.Conv2d(c, 4 * self.BINS + classes, 1) for c in (width, wide))
        self.mean = nn.Conv2d(self.BINS, 1, 1, bias=False)
        grids = [torch.arange(side // stride) + 0.5 for stride in (4, 8)]
        points = [torch.stack(torch.meshgrid(g, g, indexing="xy")).flatten(1) for g in grids]
        self.register_buffer("anchors", torch.cat(points, 1))
        strides = [torch.full((p.shape[1],), float(s)) for p, s in zip(points, (4, 8), strict=True)]
        self.register_buffer("strides", torch.cat(strides))

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, side, side]` to `[n, 4 + classes, anchors]`: centre, size, class probabilities."""
        fine = self.fine(x)
        pools = [self.squeeze(self.coarse(fine))]
        for _ in range(3):
            pools.append(self.pool(pools[-1]))
        coarse = self.spread(torch.cat(pools, 1))
        fine = self.merge(torch.cat([F.interpolate(coarse, scale_factor=2.0, mode="nearest"), fine], 1))
        found = torch.cat([head(y).flatten(2) for head, y in zip(self.heads, (fine, coarse), strict=True)], 2)
        bins, scores = found.split((4 * self.BINS, self.classes), 1)
        sides = self.mean(bins.unflatten(1, (4, self.BINS)).transpose(1, 2).softmax(1)).squeeze(1)
        low, high = self.anchors - sides[:, :2], self.anchors + sides[:, 2:]
        boxes = torch.cat([(low + high) / 2, high - low], 1) * self.strides
        return torch.cat([boxes, scores.sigmoid()], 1)


class FaceBlock(nn.Module):
    """BlazeFace: 5 × 5 depth-wise, padded as in TensorFlow; the shortcut is pooled and gets empty channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, outputs - inputs
        self.deep = nn.Conv2d(inputs, inputs, 5, stride, 2 if stride == 1 else 0, groups=inputs)
        self.point = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w]` to `[n, outputs, h/stride, w/stride]`."""
        y = self.point(self.deep(x if self.stride == 1 else F.pad(x, (1, 2, 1, 2))))
        x = F.pad(x if self.stride == 1 else F.max_pool2d(x, 2), (0, 0, 0, 0, 0, self.added))
        return F.relu(x + y)


class FaceFinder(nn.Module):
    """Bazarevsky et al. 2019 in small: boxes and clamped scores for two anchors a place."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 5, 2)
        self.blocks = nn.Sequential(
            FaceBlock(width, width + 8, 1), FaceBlock(width + 8, width + 16, 2), FaceBlock(width + 16, 48, 1)
        )
        self.boxes, self.scores = nn.Conv2d(48, 8, 1), nn.Conv2d(48, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[n, 3, h, w]` to boxes `[n, anchors, 4]` and probabilities `[n, anchors]`."""
        y = self.blocks(F.relu(self.enter(F.pad(x, (1, 2, 1, 2)))))
        boxes = self.boxes(y).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4)
        return boxes, self.scores(y).permute(0, 2, 3, 1).flatten(1).clamp(-100, 100).sigmoid()


class LineReader(nn.Module):
    """Shi et al. 2015: columns of an image as a sequence, an LSTM in both directions, one symbol a step."""

    def __init__(self, width: int = 8, hidden: int = 8, symbols: int = 11) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(1, width, 3, act=nn.ReLU), conv_bn(width, 2 * width, 3, act=nn.ReLU)
        self.cell = nn.LSTM(2 * width * 2, hidden, 2, bidirectional=True)
        self.head = nn.Linear(2 * hidden, symbols)

    def forward(self, x: Tensor) -> Tensor:
        """Lines `[n, 1, 16, w]` to log-probabilities `[w / 2 + 1, n, symbols]`."""
        y = F.max_pool2d(self.conv2(F.max_pool2d(self.conv1(x), 2)), (2, 1))
        y = F.max_pool2d(y, 2, (2, 1), (0, 1))
        y, _ = self.cell(y.flatten(1, 2).permute(2, 0, 1))
        return F.log_softmax(self.head(y), 2)


class Recommender(nn.Module):
    """Naumov et al. 2019: embeddings and dense features, products of all pairs, a click probability."""

    def __init__(self, tables: tuple[int, ...] = (50, 20, 10), dense: int = 6, width: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for rows in tables)
        self.below = nn.Sequential(
            nn.Linear(dense, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU()
        )
        count = len(tables) + 1
        rows, columns = torch.tril_indices(count, count, -1)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.above = nn.Sequential(nn.Linear(width + len(rows), 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, features: Tensor, user: Tensor, item: Tensor, place: Tensor) -> Tensor:
        """Features `[n, dense]` and three indices `[n]` to a probability `[n, 1]`."""
        below = self.below(features)
        found = [table(index) for table, index in zip(self.tables, (user, item, place), strict=True)]
        stacked = torch.stack([below, *found], 1)
        pairs = torch.bmm(stacked, stacked.transpose(1, 2))[:, self.rows, self.columns]
        return torch.sigmoid(self.above(torch.cat([below, pairs], 1)))


class VideoNet(nn.Module):
    """Tran et al. 2015 and 2018: a full convolution in space and time, then one split into both."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(3, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU(), nn.MaxPool3d((1, 2, 2)),
            nn.Conv3d(width, 2 * width, (1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.ReLU(),
            nn.Conv3d(2 * width, 2 * width, (3, 1, 1), (2, 1, 1), (1, 0, 0)), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(2 * width, classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Clips `[n, 3, time, h, w]` to logits `[n, classes]`."""
        return self.head(F.adaptive_avg_pool3d(self.layers(clip), 1).flatten(1))


class FastUpscaler(nn.Module):
    """Dong et al. 2016: PReLU, and a transposed convolution with output padding that triples the side."""

    def __init__(self, width: int = 16, narrow: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2), nn.PReLU(width), nn.Conv2d(width, narrow, 1), nn.PReLU(narrow),
            nn.Conv2d(narrow, narrow, 3, padding=1), nn.PReLU(), nn.Conv2d(narrow, width, 1), nn.PReLU(width),
        )  # fmt: skip
        self.leave = nn.ConvTranspose2d(width, 1, 9, 3, 4, output_padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """Luminance `[n, 1, h, w]` to `[n, 1, 3h, 3w]`."""
        return self.leave(self.layers(x))


class GatedSound(nn.Module):
    """Van den Oord et al. 2016: dilated causal convolutions, `tanh · sigmoid`, residuals and skips."""

    def __init__(self, width: int = 12, depth: int = 3, classes: int = 8) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, width, 1)
        self.filters = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=1 << i) for i in range(depth))
        self.residuals = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(depth))
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(depth))
        self.leave = nn.Sequential(nn.ReLU(), nn.Conv1d(width, classes, 1))

    def forward(self, sound: Tensor) -> Tensor:
        """`[n, 1, samples]` to logits `[n, classes, samples]`; nothing looks ahead."""
        x = self.enter(sound)
        total = torch.zeros_like(x)
        for i, (both, residual, skip) in enumerate(
            zip(self.filters, self.residuals, self.skips, strict=True)
        ):
            value, gate = both(F.pad(x, (1 << i, 0))).chunk(2, 1)
            y = torch.tanh(value) * torch.sigmoid(gate)
            x, total = x + residual(y), total + skip(y)
        return self.leave(total)
