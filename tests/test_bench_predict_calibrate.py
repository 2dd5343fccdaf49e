"""Calibrations: how often an operator stands in its file, what else the file does, and what is taken off for that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgekit.bench.layers import LayerShape
from edgekit.bench.layers.float_onnx import float_onnx_file
from edgekit.bench.predict import read_ops
from edgekit.bench.predict.calibrate import NEAR_BYTES, calibrate, count_of
from edgekit.bench.predict.ops import elementwise
from edgekit.bench.predict.probe import LINKS, Probe
from edgekit.bench.predict.probes import STREAMED, ahead_of, op_of, probes
from edgekit.bench.predict.rates import STREAM
from edgekit_devices import Calibration, load_profile

DENSE = LayerShape("conv2d", 32, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, (20, 20))
DEPTHWISE = LayerShape("conv2d", 48, 48, (5, 5), (2, 2), (1, 1), (2, 2), 48, (20, 20))
REDUCED = Probe(elementwise("reduce", "float32", 32 * 20 * 20), dims=(1, 20, 20, 32))


def probe_of(shape: LayerShape, precision: str = "float32") -> Probe:
    return Probe(op_of(shape, precision), layer=shape)


def test_a_layer_stands_in_its_file_as_often_as_its_weights_stay_near() -> None:
    for format in ("onnx", "tflite"):
        for probe in probes(format, "float32"):
            if probe.copies is None and probe.layer is not None:
                count = count_of(probe)
                assert count == 1 or count * probe.op.weight_bytes <= NEAR_BYTES


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_streams_read_as_many_bytes_as_they_say_in_layers_of_one_row(precision: str) -> None:
    found = [probe for probe in probes("onnx", precision) if probe.copies is not None]
    assert [(p.op.weight_bytes, count_of(p) * p.op.weight_bytes) for p in found] == list(STREAMED)
    assert {probe.op.positions for probe in found} == {1}


@pytest.mark.parametrize(
    "shape", [DENSE, DEPTHWISE, replace(DENSE, in_channels=24), replace(DENSE, in_channels=8)]
)
def test_what_goes_ahead_of_a_layer_turns_what_the_layer_turns_and_computes_one_pixel(
    shape: LayerShape, tmp_path: Path
) -> None:
    ahead = ahead_of(probe_of(shape), "onnx")
    assert ahead is not None
    assert (ahead.size, ahead.in_channels, ahead.output_size) == (shape.size, shape.in_channels, (1, 1))
    assert turned_in(ahead, tmp_path) == turned_in(shape, tmp_path)


def turned_in(shape: LayerShape, folder: Path) -> int:
    """How often ONNX Runtime puts something into blocks, in a file with the layer."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(float_onnx_file(shape, 1), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)["ReorderInput"]


@pytest.mark.parametrize(
    ("probe", "format"),
    [
        (probe_of(DENSE, "int8"), "onnx"),
        (probe_of(DENSE), "tflite"),
        (probe_of(replace(DENSE, in_channels=3)), "onnx"),
        (probe_of(LayerShape("linear", 64, 10, size=(3,))), "onnx"),
        (probe_of(LayerShape("conv1d", 64, 64, (3,), (1,), (1,), (1,), 1, (20,))), "onnx"),
        (Probe(elementwise("add", "float32", 64, wide=2), dims=(1, 1, 1, 64)), "onnx"),
    ],
    ids=("integers", "LiteRT", "few channels", "linear", "over time", "no layer"),
)
def test_where_nothing_is_put_into_blocks_nothing_goes_ahead(probe: Probe, format: str) -> None:
    assert ahead_of(probe, format) is None


SIZE = (32, 20, 20)
CALL_MS, MACS_A_MS, TURNED_A_MS, BYTES_A_MS = 0.005, 1e7, 1e6, 1e8


def imagined(files: Mapping[str, Path], threads: int) -> dict[str, float]:
    """A machine that takes so long for each multiplication, and in float for each element that is put into blocks."""
    del threads
    found = {}
    for name, path in files.items():
        graph = onnx.load(path).graph
        axes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input]
        turned = sum(math.prod(SIZE) for each in axes if each[1:] == list(SIZE))
        ops = [op for op in read_ops(path) if op.kind in ("conv", "reduce", "add", "linear")]
        computed = sum(
            op.weight_bytes / BYTES_A_MS if op.kind == "linear" else op.work / MACS_A_MS for op in ops
        )
        found[name] = CALL_MS + computed + turned / TURNED_A_MS
    return found


def calibrated(monkeypatch: pytest.MonkeyPatch, *chosen: Probe) -> Calibration:
    def times(*_: Any) -> Callable[..., dict[str, float]]:
        return imagined

    monkeypatch.setattr("edgekit.bench.predict.calibrate.local_times", times)
    monkeypatch.setattr("edgekit.bench.predict.calibrate.probes", lambda *_: chosen)
    tables = calibrate(load_profile("generic"), formats=["onnx"]).calibration
    return next(table for table in tables if table.precision == "float32")


def test_what_is_put_into_blocks_counts_for_itself_and_not_for_the_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = calibrated(monkeypatch, probe_of(DENSE), REDUCED)
    by_kind = {point.kind: point for point in table.points}
    assert by_kind["conv"].ms == pytest.approx(DENSE.macs / MACS_A_MS, rel=0.01)
    assert by_kind["reduce"].ms == pytest.approx(REDUCED.op.work / MACS_A_MS, rel=0.05)
    assert by_kind["blocks"].ms == pytest.approx(math.prod(SIZE) / TURNED_A_MS, rel=0.01)
    assert by_kind["blocks"].work == math.prod(SIZE)
    assert count_of(REDUCED) == min(LINKS, NEAR_BYTES // REDUCED.op.moved_bytes)


def test_streams_are_what_reading_takes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = next(probe for probe in probes("onnx", "float32") if probe.copies == 2)
    table = calibrated(monkeypatch, streamed)
    point = next(point for point in table.points if point.kind == STREAM)
    assert point.ms == pytest.approx(point.work / BYTES_A_MS, rel=0.01)
    assert table.call_ms == pytest.approx(CALL_MS, rel=0.01)
