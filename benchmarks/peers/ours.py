"""edgekit with its default preset, as a user calls it."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.compressed import compressed
from benchmarks.peers.inputs import Inputs


def build(inputs: Inputs, out: Path) -> None:
    """Write `out`, by its ending the ONNX or the TFLite file of a bundle with both."""
    _compress(inputs, out, formats=("onnx", "tflite"))


def build_tflite_int8_ends(inputs: Inputs, out: Path) -> None:
    """Write `out`, a TFLite file with int8 input and output, as ai-edge-quantizer makes them."""
    _compress(inputs, out, formats=("tflite",), io="int8")


def _compress(inputs: Inputs, out: Path, *, formats: tuple[str, ...], io: str = "float32") -> None:
    bundle = out.parent / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    compressed(inputs.module(), inputs.calibration(), bundle, formats=formats, io=io)
    (bundle / f"model{out.suffix}").rename(out)
    shutil.rmtree(bundle)
    bundle.with_suffix(".toml").unlink()
