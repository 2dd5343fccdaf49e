"""The float files, as every peer gets them."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.peers.inputs import Inputs


def onnx(inputs: Inputs, out: Path) -> None:
    """Write `out`, the float ONNX file."""
    shutil.copyfile(inputs.onnx, out)


def tflite(inputs: Inputs, out: Path) -> None:
    """Write `out`, the float TFLite file."""
    if not inputs.tflite.exists():
        raise FileNotFoundError("litert-torch does not convert this network")
    shutil.copyfile(inputs.tflite, out)
