"""NNCF's post-training quantization of OpenVINO's model of the network."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.inputs import Inputs


def build(inputs: Inputs, out: Path) -> None:
    """Write `out` and its weights, with NNCF's scheme for transformers where there is attention."""
    import nncf
    import openvino

    model, samples = openvino.convert_model(str(inputs.onnx)), inputs.calibration()
    attends = any(each.get_type_name() == "Softmax" for each in model.get_ops())
    found = nncf.quantize(
        model,
        nncf.Dataset([samples[i : i + 1] for i in range(len(samples))]),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER if attends else None,
    )
    openvino.save_model(found, str(out), compress_to_fp16=False)


def build_float(inputs: Inputs, out: Path) -> None:
    """Write `out` and its weights, as they are."""
    import openvino

    openvino.save_model(openvino.convert_model(str(inputs.onnx)), str(out), compress_to_fp16=False)
