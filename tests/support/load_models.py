"""Small networks of every family that people bring, for the tests of the loader."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def _norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm whose statistics are not the trivial ones."""
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.running_mean, -0.2, 0.2)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return norm


class Residual(nn.Module):
    """A ResNet block with in-place ops between two convolutions, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = _norm(8)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.stem(x)))
        y = self.second(x)
        y += x
        y = self.act(y)
        return self.head(self.drop(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)))


class Inverted(nn.Module):
    """MobileNetV2-like: depthwise convolution, relu6, hard-swish, squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 1), _norm(12), nn.ReLU6(inplace=True),
            nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12), _norm(12), nn.Hardswish(inplace=True),
        )  # fmt: skip
        self.squeeze = nn.Conv2d(12, 4, 1)
        self.excite = nn.Conv2d(4, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        scale = F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head((x * scale).mean((2, 3)))


class UNet(nn.Module):
    """Down, up by a transposed convolution, skip by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.out = nn.Conv2d(7, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.up(F.relu(self.down(x))))
        return F.interpolate(self.out(torch.cat([y, x], 1)), scale_factor=2.0, mode="nearest")


class Transformer(nn.Module):
    """ViT: patches, class token, torch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.1)
        self.position = nn.Parameter(torch.randn(1, 5, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.encoder(x)[:, 0])


class Recurrent(nn.Module):
    """Tokens → embedding → bidirectional LSTM → GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.lstm = nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 5, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, _ = self.lstm(self.table(tokens))
        x, _ = self.gru(x)
        return x


class TwoHeads(nn.Module):
    """Two inputs, two named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(1, 4, 3)
        self.joint = nn.Linear(7, 3)

    def forward(self, image: torch.Tensor, meta: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = self.image(image).mean((2, 3))
        logits = self.joint(torch.cat([pooled, meta], 1))
        return {"logits": logits, "score": torch.sigmoid(logits.sum(1, keepdim=True))}


class FixedBatch(nn.Module):
    """The author wrote the batch into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.reshape(1, 12)).reshape(1, 2, 2)


class OverBatch(nn.Module):
    """Normalises over the batch, so that the rows are not independent."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True) + x.sum()


class Branching(nn.Module):
    """Control flow that depends on the values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


class ViewThenChange(nn.Module):
    """Changes a tensor through a view and reads the whole afterwards."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, :1] = 0.5
        return y + 1


# name → (module, shape of every input, dtype of every input)
FAMILIES: dict[str, tuple[type[nn.Module], tuple[tuple[int, ...], ...], torch.dtype]] = {
    "residual": (Residual, ((1, 3, 8, 8),), torch.float32),
    "inverted": (Inverted, ((1, 3, 8, 8),), torch.float32),
    "unet": (UNet, ((1, 3, 8, 8),), torch.float32),
    "transformer": (Transformer, ((1, 3, 8, 8),), torch.float32),
    "recurrent": (Recurrent, ((1, 6),), torch.int64),
    "two heads": (TwoHeads, ((1, 1, 6, 6), (1, 3)), torch.float32),
}


def make(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A seeded network in evaluation mode and inputs for it."""
    kind, shapes, dtype = FAMILIES[name]
    torch.manual_seed(3)
    module = kind().eval()
    if dtype == torch.int64:
        return module, tuple(torch.randint(0, 11, shape) for shape in shapes)
    return module, tuple(torch.randn(shape) for shape in shapes)
