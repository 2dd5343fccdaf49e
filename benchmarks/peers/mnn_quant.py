"""MNN's converter and its offline quantizer.

Both are called as functions: the commands of the wheel install a package for statistics first, and the one that
quantizes hands over its arguments in another way than the wheel's own library takes them (3.6.1).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.peers.inputs import Inputs


def build(inputs: Inputs, out: Path) -> None:
    """Write `out`, with the ranges by KL divergence that its guide starts with."""
    import _tools
    import MNN

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain, samples, settings = folder / "float.mnn", folder / "samples", folder / "settings.json"
        build_float(inputs, plain)
        interpreter = MNN.Interpreter(str(plain))
        session = interpreter.createSession()
        (source,), (target,) = (
            ends(session) for ends in (interpreter.getSessionInputAll, interpreter.getSessionOutputAll)
        )
        given = inputs.calibration()
        for index, sample in enumerate(given):
            place = samples / f"{index:05}"
            place.mkdir(parents=True)
            np.savetxt(place / f"{source}.txt", sample.reshape(-1), fmt="%.7g")
            shapes = {"inputs": [{"name": source, "shape": [1, *sample.shape]}], "outputs": [target]}
            (place / "input.json").write_text(json.dumps(shapes))
        wanted = {
            "format": "GRAY",
            "input_type": "sequence",
            "path": str(samples),
            "used_sample_num": len(given),
            "feature_quantize_method": "KL",
            "weight_quantize_method": "MAX_ABS",
            "batch_size": 1,
        }
        settings.write_text(json.dumps(wanted))
        _tools.mnnquant(["mnnquant", str(plain), str(out), str(settings)])


def build_float(inputs: Inputs, out: Path) -> None:
    """Write `out`, as it is."""
    import _tools

    given = ["-f", "ONNX", "--modelFile", str(inputs.onnx), "--MNNModel", str(out), "--bizCode", "edgekit"]
    _tools.mnnconvert(["mnnconvert", *given])
