"""edgekit with its default preset, as a user calls it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from torch import nn

from benchmarks.compressed import compressed
from benchmarks.networks import Floats

# One compression gives both files; bundles live as long as this process.
_bundles: dict[str, tempfile.TemporaryDirectory[str]] = {}


def build_onnx(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, the ONNX file of a bundle."""
    shutil.copyfile(_bundle(module, calibration, ("onnx", "tflite")) / "model.onnx", out)


def build_tflite(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, the TFLite file of the same bundle."""
    shutil.copyfile(_bundle(module, calibration, ("onnx", "tflite")) / "model.tflite", out)


def build_tflite_int8_ends(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, a TFLite file with int8 input and output, as ai-edge-quantizer makes them."""
    shutil.copyfile(_bundle(module, calibration, ("tflite",), io="int8") / "model.tflite", out)


def _bundle(module: nn.Module, calibration: Floats, formats: tuple[str, ...], io: str = "float32") -> Path:
    digest = hashlib.sha256(calibration.tobytes() + repr((formats, io)).encode())
    for value in module.state_dict().values():
        digest.update(value.numpy().tobytes())
    key = digest.hexdigest()
    if key not in _bundles:
        folder = tempfile.TemporaryDirectory()
        compressed(module, calibration, Path(folder.name) / "bundle", formats=formats, io=io)
        _bundles[key] = folder
    return Path(_bundles[key].name) / "bundle"
