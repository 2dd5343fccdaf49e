"""ai-edge-quantizer's `static_wi8_ai8` recipe on litert-torch's float file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from benchmarks.networks import Floats
from benchmarks.peers import float_litert


def build(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, int8 weights and activations, calibrated with the recipe's defaults."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "float.tflite"
        float_litert.build(module, calibration, plain)
        ((signature, ends),) = Interpreter(str(plain)).get_signature_list().items()
        worker = quantizer.Quantizer(str(plain), recipe.static_wi8_ai8())
        feeds = [{ends["inputs"][0]: calibration[i : i + 1]} for i in range(len(calibration))]
        ranges = worker.calibrate({signature: feeds}, num_threads=1)
        worker.quantize(ranges).export_model(str(out), overwrite=True)
