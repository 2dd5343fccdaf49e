"""Torch ops through the saved package against torch, many at a time: one network with an output for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreml_nets import example_program
from edgekit_converters.coreml import export_coreml
from edgekit_converters.coreml_reference import CoreMLReference
from edgekit_converters.program import QuantizedProgram

pytest.importorskip("coremltools")

Ops = dict[str, Callable[[Tensor], Any]]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make().eval()


class Of(nn.Module):
    """A layer of a part of the input."""

    def __init__(self, part: Callable[[Tensor], Tensor], make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.part, self.layer = part, seeded(make)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.part(x))


def row(x: Tensor) -> Tensor:
    return x[:, 0]


ELEMENTWISE: Ops = {
    "abs": torch.abs,
    "add with alpha": lambda x: torch.add(x, x * 2, alpha=3),
    "sub with alpha": lambda x: torch.sub(x, x.square(), alpha=0.5),
    "rsub": lambda x: 1 - x,
    "neg": torch.neg,
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 0.02),
    "one over": lambda x: 1 / (x.abs() + 0.02),
    "div floor": lambda x: torch.div(x, 0.7, rounding_mode="floor"),
    "div trunc": lambda x: torch.div(x, 0.7, rounding_mode="trunc"),
    "trunc": lambda x: torch.trunc(x * 3),
    "fmod": lambda x: torch.fmod(x, 0.7),
    "remainder": lambda x: torch.remainder(x, 0.7),
    "log1p": lambda x: torch.log1p(x.abs()),
    "expm1": torch.expm1,
    "rsqrt": lambda x: (x.abs() + 0.1).rsqrt(),
    "pow": lambda x: x.abs() ** 1.5,
    "rpow": lambda x: 2**x,
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "where with a number": lambda x: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, -1.0),
    "and or": lambda x: ((x > 0) & (x < 1) | (x < -1)).float(),
    "xor": lambda x: ((x > 0) ^ (x < 1)).float(),
    "isinf": lambda x: (1 / F.relu(x)).isinf().float(),
    "isnan": lambda x: torch.isnan(x).float(),
    "clamp": lambda x: x.clamp(-0.3, 0.4),
    "clamp min": lambda x: x.clamp(min=0.1),
    "to int": lambda x: (x * 3).to(torch.int32),
}
ACTIVATIONS: Ops = {
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 0.5),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 1.5),
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "hardshrink": F.hardshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 0.2),
    "glu": lambda x: F.glu(x, 1),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "prelu": seeded(lambda: nn.PReLU(4, 0.3)),
}
CONVOLUTIONS: Ops = {
    "stride and uneven padding": seeded(lambda: nn.Conv2d(4, 3, 3, stride=2, padding=(0, 1))),
    "dilation": seeded(lambda: nn.Conv2d(4, 3, 3, padding=2, dilation=2)),
    "depthwise": seeded(lambda: nn.Conv2d(4, 8, 3, groups=4)),
    "same, even kernel": seeded(lambda: nn.Conv2d(4, 4, 4, padding="same")),
    "reflected": seeded(lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
    "circular": seeded(lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
    "pad then conv": Of(lambda x: F.pad(x, (0, 1, 0, 1)), lambda: nn.Conv2d(4, 3, 3, stride=2)),
    "conv1d": Of(row, lambda: nn.Conv1d(9, 3, 3, padding=2, dilation=2)),
    "conv3d": Of(lambda x: x[:, None], lambda: nn.Conv3d(1, 2, 3, padding=1)),
    "transposed": seeded(lambda: nn.ConvTranspose2d(4, 3, 2, 2)),
    "transposed, padded": seeded(lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1)),
    "transposed, output padding": seeded(lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1)),
    "transposed, groups": seeded(lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, groups=2)),
    "transposed 1d": Of(row, lambda: nn.ConvTranspose1d(9, 4, 4, 2, 1)),
    "linear": seeded(lambda: nn.Linear(11, 3)),
    "einsum": lambda x: torch.einsum("bhqd,bhkd->bhqk", x, x),
}
POOLS: Ops = {
    "max": lambda x: F.max_pool2d(x, 2),
    "max padded": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max ceiling": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max ceiling unpadded": lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    "max 1d": lambda x: F.max_pool1d(x[:, 0], 2),
    "mean": lambda x: F.avg_pool2d(x, 2),
    "mean padded": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "mean without padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "mean ceiling": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "mean ceiling without padding": lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
    "mean ceiling unpadded": lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
    "mean 1d": lambda x: F.avg_pool1d(x[:, 0], 3, 1, 1),
    "global": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 4)),
    "sum": lambda x: x.sum((2, 3)),
    "mean of axes": lambda x: x.mean((2, 3), keepdim=True),
    "var": lambda x: x.var(1),
    "std": lambda x: x.std(-1),
    "largest": lambda x: x.max(1)[0],
    "argmax": lambda x: x.argmax(1),
    "prod": lambda x: x.prod(1),
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "cosine": lambda x: F.cosine_similarity(x, x * 2 + 1, dim=1),
    "cumsum": lambda x: x.cumsum(1),
    "topk": lambda x: x.topk(2, 1)[0],
    "topk places": lambda x: x.topk(2, 1)[1],
}
SHAPES: Ops = {
    "reshape": lambda x: x.reshape(1, -1, 11) * 1,
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "cat": lambda x: torch.cat([x, x * 2], 1),
    "split": lambda x: x.split([1, 3], 1)[1],
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "slice": lambda x: x[:, 1:, ::2, 1:-1:3],
    "last": lambda x: x[:, -1],
    "list of places": lambda x: x[:, [2, 0, 1]],
    "flip": lambda x: x.flip(-1),
    "roll": lambda x: x.roll((1, 2), (2, 3)),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x[..., :8, :10], 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "windows": lambda x: x.unfold(2, 3, 2),
    "tril": torch.tril,
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "pad reflected": lambda x: F.pad(x, (1, 2, 3, 1), mode="reflect"),
    "pad replicated": lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"),
    "pad circular": lambda x: F.pad(x, (1, 2, 0, 1), mode="circular"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest to size": lambda x: F.interpolate(x, size=(13, 17)),
    "nearest by 1.5": lambda x: F.interpolate(x, scale_factor=1.5),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear by corners": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "bilinear to size": lambda x: F.interpolate(x, size=(5, 20), mode="bilinear"),
    "bilinear by 1.5": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "grid_sample": lambda x: F.grid_sample(x, x[:, :2].tanh().permute(0, 2, 3, 1), align_corners=False),
}
NORMS_AND_ATTENTION: Ops = {
    "batch norm": seeded(lambda: nn.BatchNorm2d(4)),
    "instance norm": seeded(lambda: nn.InstanceNorm2d(4, affine=True)),
    "layer norm": seeded(lambda: nn.LayerNorm(11)),
    "layer norm of channels": lambda x: F.layer_norm(x.movedim(1, -1), (4,)).movedim(-1, 1),
    "group norm": seeded(lambda: nn.GroupNorm(2, 4)),
    "rms norm": seeded(lambda: nn.RMSNorm(11)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 0.5, x + 1),
    "attention with a scale": lambda x: F.scaled_dot_product_attention(x, x, x + 1, scale=0.1),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x * 0.5, x + 1, is_causal=True),
    "masked attention": lambda x: F.scaled_dot_product_attention(
        x, x, x + 1, attn_mask=torch.ones(9, 9).tril().bool()
    ),
    "encoder layer": Of(row, lambda: nn.TransformerEncoderLayer(11, 1, 16, batch_first=True)),
}  # fmt: skip


class EachOp(nn.Module):
    """One output for each op."""

    def __init__(self, ops: Ops) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {str(i): op for i, op in enumerate(ops.values()) if isinstance(op, nn.Module)}
        )
        self.ops = tuple(ops.values())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(op(x) for op in self.ops)


@pytest.mark.parametrize(
    "ops",
    [ELEMENTWISE, ACTIVATIONS, CONVOLUTIONS, POOLS, SHAPES, NORMS_AND_ATTENTION],
    ids=["elementwise", "activations", "convolutions", "pools", "shapes", "norms"],
)
def test_saved_ops_compute_what_torch_does(ops: Ops, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 9, 11)
    program = example_program(EachOp(ops), (x,))
    grids = (None,) * len(ops)
    export_coreml(QuantizedProgram(program, (None,), grids), tmp_path / "ops.mlpackage")
    got = CoreMLReference(tmp_path / "ops.mlpackage").predict({"x": x.numpy()})
    with torch.no_grad():
        expected = program.graph(x)
    wrong = {}
    for name, mine, torchs in zip(ops, got.values(), expected, strict=True):
        assert mine.shape == tuple(torchs.shape), name
        error = np.abs(mine.astype(np.float64) - torchs.numpy()).max()
        if not error <= 3e-5 * max(1.0, float(torchs.abs().max())):
            wrong[name] = error
    assert wrong == {}
