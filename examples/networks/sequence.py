"""Networks over time: causal TCN, LSTM and GRU classifiers, a text transformer, and two streams fused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.networks.mobile import conv_bn


class CausalBlock(nn.Module):
    """Two dilated causal convolutions and a shortcut (Bai et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.left = (kernel - 1) * dilation
        self.conv1 = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)
        self.norm1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, kernel, dilation=dilation)
        self.norm2 = nn.BatchNorm1d(outputs)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, time]` to `[n, outputs, time]`; nothing looks ahead."""
        y = F.relu(self.norm1(self.conv1(F.pad(x, (self.left, 0)))))
        y = F.relu(self.norm2(self.conv2(F.pad(y, (self.left, 0)))))
        return F.relu(y + self.shortcut(x))


class TCN(nn.Module):
    """Causal convolutions with doubling dilation; classifies from the last time step.

    Args:
        inputs: channels of the signal.
        widths: channels per block.
        kernel: taps.
        classes: number of logits.
    """

    def __init__(
        self, inputs: int = 9, widths: tuple[int, ...] = (32, 32, 64, 64), kernel: int = 3, classes: int = 6
    ) -> None:
        super().__init__()
        pairs = zip((inputs, *widths), widths, strict=False)
        self.blocks = nn.Sequential(*(CausalBlock(a, b, kernel, 1 << i) for i, (a, b) in enumerate(pairs)))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, signal: Tensor) -> Tensor:
        """`[n, inputs, time]` to logits `[n, classes]`."""
        return self.head(self.blocks(signal)[:, :, -1])


class RecurrentClassifier(nn.Module):
    """Recurrent layers over a feature sequence, then a linear on the last step.

    Args:
        cell: `nn.LSTM` or `nn.GRU`.
        inputs: features per step.
        hidden: width of the state.
        layers: number of stacked layers.
        classes: number of logits.
    """

    def __init__(
        self,
        cell: type[nn.LSTM | nn.GRU],
        inputs: int = 13,
        hidden: int = 64,
        layers: int = 2,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.rnn = cell(inputs, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, frames: Tensor) -> Tensor:
        """`[n, time, inputs]` to logits `[n, classes]`."""
        states, _ = self.rnn(frames)
        return self.head(states[:, -1])


class ConvBiLSTM(nn.Module):
    """Strided 1-D convolutions, a bidirectional LSTM, logits per frame (speech recognisers with CTC).

    Args:
        inputs: features per frame.
        width: channels of the convolutions.
        hidden: state of each direction.
        classes: symbols.
    """

    def __init__(self, inputs: int = 40, width: int = 64, hidden: int = 64, classes: int = 29) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, width, 5, 2, 2)
        self.norm1 = nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1)
        self.rnn = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, spectrum: Tensor) -> Tensor:
        """`[n, inputs, time]` to log-probabilities `[n, time/2, classes]`."""
        x = F.relu(self.norm1(self.conv1(spectrum)))
        x = F.hardtanh(self.conv2(x), 0.0, 20.0)
        states, _ = self.rnn(x.transpose(1, 2))
        return F.log_softmax(self.head(states), -1)


class MaskedAttention(nn.Module):
    """Attention written out: separate projections, scores, mask, softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        n, time, width = x.shape
        return x.view(n, time, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`[n, time, width]` and an additive bias `[n, 1, 1, time]` to `[n, time, width]`."""
        scores = self._split(self.query(x)) @ self._split(self.key(x)).transpose(-1, -2) * self.scale
        y = torch.softmax(scores + bias, -1) @ self._split(self.value(x))
        return self.out(y.transpose(1, 2).contiguous().view(x.shape))


class TextBlock(nn.Module):
    """Post-norm block, as in BERT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = MaskedAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`[n, time, width]` and a bias `[n, 1, 1, time]` to `[n, time, width]`."""
        x = self.norm1(x + self.attention(x, bias))
        return self.norm2(x + self.project(F.gelu(self.expand(x))))


class TextTransformer(nn.Module):
    """Devlin et al. 2019 in small: token and position embeddings, masked attention, tanh pooler.

    Args:
        vocabulary: number of tokens.
        length: longest text in tokens.
        width: embedding width.
        depth: number of blocks.
        heads: attention heads.
        classes: number of logits.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 8000,
        length: int = 128,
        width: int = 128,
        depth: int = 2,
        heads: int = 2,
        classes: int = 2,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.positions = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.pooler = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """int64 `tokens` and `mask` (1 where there is text), both `[n, time]`, to logits `[n, classes]`."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.words(tokens) + self.positions(places))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        for block in self.blocks:
            x = block(x, bias)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class TwoStreams(nn.Module):
    """An image and a vector of readings, fused; logits and an embedding of unit length come out.

    Args:
        width: channels of the image branch.
        readings: length of the vector.
        classes: number of logits.
    """

    def __init__(self, width: int = 32, readings: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.image = nn.Sequential(
            conv_bn(3, width, 3, 2, act=nn.ReLU), conv_bn(width, width, 3, 2, act=nn.ReLU)
        )
        self.readings = nn.Sequential(
            nn.Linear(readings, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU()
        )
        self.fuse = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor, readings: Tensor) -> dict[str, Tensor]:
        """`[n, 3, h, w]` and `[n, readings]` to `logits [n, classes]` and `embedding [n, width]`."""
        joined = torch.cat([self.image(image).amax((2, 3)), self.readings(readings)], 1)
        hidden = F.relu(self.fuse(joined))
        return {"logits": self.head(hidden), "embedding": F.normalize(hidden, dim=1)}
