"""ONNX Runtime's `quantize_static` as its guide recommends: pre-processing, QDQ, per channel, U8S8."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peers.inputs import Inputs


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """ONNX Runtime's own interface to calibration samples, one at a time."""

    def __init__(self, name: str, samples: Any) -> None:
        self._name, self._samples, self._next, self._end = name, samples, 0, len(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, Any] | None:
        if self._next >= self._end:
            return None
        self._next += 1
        return {self._name: self._samples[self._next - 1 : self._next]}


def build(inputs: Inputs, out: Path) -> None:
    """Write `out`, calibrated by the smallest and largest value."""
    _quantize(inputs, out, CalibrationMethod.MinMax)


def build_percentile(inputs: Inputs, out: Path) -> None:
    """Write `out`, calibrated by the 99.999th percentile."""
    _quantize(inputs, out, CalibrationMethod.Percentile)


def _quantize(inputs: Inputs, out: Path, method: CalibrationMethod) -> None:
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(inputs.onnx, prepared)
        name = onnx.load(inputs.onnx).graph.input[0].name
        quantize_static(
            prepared,
            out,
            _Reader(name, inputs.calibration()),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            # One sample a step: histograms otherwise hold every activation of every sample in memory at once.
            extra_options={} if method is CalibrationMethod.MinMax else {"CalibStridedMinMax": 1},
        )
