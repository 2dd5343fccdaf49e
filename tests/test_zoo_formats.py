"""Seventeen architectures from their definitions: each format lowered, read back, and proven."""

from pathlib import Path

import numpy as np
import pytest

import zoo
from edgekit.judge import prove
from edgekit.load import load_candidate
from edgekit.stages.quantize.apply import calibrate, convert, observe
from edgekit_converters.cleanup import clean
from edgekit_converters.coreml import export_coreml
from edgekit_converters.onnx import export_onnx
from edgekit_converters.predict import SavedModel
from edgekit_converters.program import QuantizedProgram
from edgekit_converters.tflite import export_tflite

EXPORTERS = {"onnx": export_onnx, "tflite": export_tflite, "coreml": export_coreml}
SUFFIX = {"onnx": ".onnx", "tflite": ".tflite", "coreml": ".mlpackage"}

# What rounding ties may do to these: averages of four values on a shared scale, transposed convolutions in float,
# heads that amplify a step.
LOOSEST = {"densenet": 6.0, "unet": 12.0, "yolo_style": 8.0}


def quantized(name: str) -> QuantizedProgram:
    model = zoo.BY_NAME[name]
    inputs = zoo.draw(model, 32, seed=5)
    program, _ = clean(load_candidate(zoo.build(model), example=tuple(x[:1] for x in inputs)).program)
    observed = observe(program)
    calibrate(observed, [inputs])
    return convert(observed, ties=[tuple(x[:4] for x in inputs)] if program.dynamic_batch else ())


@pytest.mark.slow
@pytest.mark.parametrize("name", [model.name for model in zoo.ASKED])
def test_every_format_computes_the_reference(name: str, tmp_path: Path) -> None:
    program = quantized(name)
    ends = (program.program.inputs, program.program.outputs, program.input_grids, program.output_grids)
    saved = {}
    for form, export in EXPORTERS.items():
        path = tmp_path / f"model{SUFFIX[form]}"
        export(program, path)
        saved[form] = SavedModel(form, path, *ends)

    proofs = prove(program, saved, [np.asarray(x) for x in zoo.draw(zoo.BY_NAME[name], 16, seed=9)])

    assert set(proofs) == set(EXPORTERS)
    assert all(p.holds for p in proofs.values()), proofs
    assert all(p.max_allowed <= LOOSEST.get(name, 2.0) for p in proofs.values()), proofs
