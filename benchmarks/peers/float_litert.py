"""The float network as litert-torch writes it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from benchmarks.networks import Floats


def build(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, a float TFLite file at batch one."""
    import litert_torch

    litert_torch.convert(module, (torch.from_numpy(calibration[:1]),)).export(str(out))
