"""ONNX Runtime's `quantize_static` as its guide recommends: pre-processing, QDQ, per channel, U8S8."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from benchmarks.networks import Floats
from benchmarks.peers import float_onnx


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """ONNX Runtime's own interface to calibration samples."""

    def __init__(self, name: str, samples: Floats) -> None:
        self._feeds: Iterator[dict[str, Floats]] = ({name: samples[i : i + 1]} for i in range(len(samples)))

    def get_next(self) -> dict[str, Floats] | None:
        return next(self._feeds, None)


def build(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, calibrated by the smallest and largest value."""
    _quantize(module, calibration, out, CalibrationMethod.MinMax)


def build_percentile(module: nn.Module, calibration: Floats, out: Path) -> None:
    """Write `out`, calibrated by the 99.999th percentile."""
    _quantize(module, calibration, out, CalibrationMethod.Percentile)


def _quantize(module: nn.Module, calibration: Floats, out: Path, method: CalibrationMethod) -> None:
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        float_onnx.build(module, calibration, plain)
        quant_pre_process(plain, prepared)
        name = onnx.load(plain).graph.input[0].name
        quantize_static(
            prepared,
            out,
            _Reader(name, calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
        )
