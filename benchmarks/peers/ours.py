"""edgekit with its default preset, as a user calls it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from torch import nn

from benchmarks.compressed import compressed
from benchmarks.networks import Floats


def build_onnx(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, the ONNX file of a bundle."""
    _build(module, calibration, out, "onnx")


def build_tflite(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, the TFLite file of a bundle."""
    _build(module, calibration, out, "tflite")


def _build(module: nn.Module, calibration: Floats, out: Path, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = compressed(module, calibration, Path(folder) / "bundle", formats=(suffix,))
        shutil.copyfile(bundle / f"model.{suffix}", out)
