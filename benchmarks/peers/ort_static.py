"""ONNX Runtime's `quantize_static` as its guide recommends: pre-processing, QDQ, per channel, U8S8."""

from __future__ import annotations

import tempfile
from pathlib import Path

from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from benchmarks.networks import Floats
from benchmarks.peers import float_onnx


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """ONNX Runtime's own interface to calibration samples, one at a time."""

    def __init__(self, name: str, samples: Floats) -> None:
        self._name, self._samples, self._next, self._end = name, samples, 0, len(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, Floats] | None:
        if self._next >= self._end:
            return None
        self._next += 1
        return {self._name: self._samples[self._next - 1 : self._next]}


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
            # One sample a step: histograms otherwise hold every activation of every sample in memory at once.
            extra_options={} if method is CalibrationMethod.MinMax else {"CalibStridedMinMax": 1},
        )
