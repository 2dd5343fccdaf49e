"""edgekit as a user calls it from Python, with the number of calibration samples said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from benchmarks.networks import Floats


def compressed(
    module: nn.Module,
    calibration: Floats,
    out: Path,
    *,
    formats: tuple[str, ...],
    evaluation: Floats | None = None,
    labels: npt.NDArray[np.int64] | None = None,
    io: str = "float32",
) -> Path:
    """Compress with the default preset.

    Args:
        module: the float network.
        calibration: samples, float32 `[n, …]`; every one is used.
        out: the bundle's folder, which must not exist.
        formats: of "onnx", "tflite", "coreml".
        evaluation: samples that candidates are chosen by; without them the calibration samples serve, so that
            edgekit sees no more than its peers.
        labels: of `evaluation`.
        io: ends of the TFLite file, "float32" or "int8".

    Returns:
        The bundle's folder, with `model.onnx` and `model.tflite` in it.
    """
    import edgekit

    data: dict[str, npt.NDArray[Any]] = {
        "calib_x": calibration,
        "eval_x": calibration if evaluation is None else evaluation,
    }
    if labels is not None:
        data["eval_y"] = labels
    recipe = out.with_suffix(".toml")
    recipe.write_text(f"[quantize]\ncalibration_size = {len(calibration)}\n")
    # A file that is slower than float is a result here, not a reason to stop.
    edgekit.compress(module, data=data, out=out, formats=formats, io=io, recipe=recipe, allow_slower=True)
    return out
