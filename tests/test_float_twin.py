"""Every file has a float twin to be timed beside, also where the network as it was loaded has no such file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgekit


class ThreeAxes(nn.Module):
    """Attention over `[n, tokens, width]` without heads, which torch.onnx refuses as it is written here."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(16, 48), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(query, key, value).mean(1))


@pytest.mark.slow
def test_a_twin_that_a_converter_refuses_is_made_from_the_cleaned_network(tmp_path: Path) -> None:
    torch.manual_seed(0)

    bundle = edgekit.compress(
        ThreeAxes(),
        input_shape=(1, 8, 16),
        out=tmp_path / "out",
        formats=["onnx"],
        preset="fast",
        allow_slower=True,
    )

    artifact = bundle.report["artifacts"]["onnx"]
    assert artifact["float_latency_ms"]["p50"] > 0
    assert artifact["float_size_bytes"] > 0
