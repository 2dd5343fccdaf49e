"""The float network as `torch.onnx` writes it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from torch import nn

from benchmarks.networks import Floats


def build(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, a float ONNX file at batch one."""
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            module, (torch.from_numpy(calibration[:1]),), out, dynamo=True, external_data=False, verbose=False
        )
