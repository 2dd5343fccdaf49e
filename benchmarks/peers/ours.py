"""edgekit with its default preset, as a user calls it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from torch import nn

from benchmarks.networks import Floats


def build_onnx(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, the ONNX file of a bundle."""
    _build(module, calibration, out, "onnx")


def build_tflite(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, the TFLite file of a bundle."""
    _build(module, calibration, out, "tflite")


def _build(module: nn.Module, calibration: Floats, out: Path, fmt: str) -> None:
    """Like its peers, edgekit sees the calibration samples and nothing else."""
    import edgekit

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, calib_x=calibration, eval_x=calibration)
        bundle = edgekit.compress(module, data=data, out=Path(folder) / "bundle", formats=(fmt,))
        shutil.copyfile(Path(bundle.path) / f"model.{fmt}", out)
