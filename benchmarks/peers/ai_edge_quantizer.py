"""ai-edge-quantizer's `static_wi8_ai8` recipe on litert-torch's float file."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.inputs import Inputs


def build(inputs: Inputs, out: Path) -> None:
    """Write `out`, int8 weights and activations, calibrated with the recipe's defaults."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    plain, samples = str(inputs.tflite), inputs.calibration()
    ((signature, ends),) = Interpreter(plain).get_signature_list().items()
    worker = quantizer.Quantizer(plain, recipe.static_wi8_ai8())
    feeds = [{ends["inputs"][0]: samples[i : i + 1]} for i in range(len(samples))]
    ranges = worker.calibrate({signature: feeds}, num_threads=1)
    worker.quantize(ranges).export_model(str(out), overwrite=True)
