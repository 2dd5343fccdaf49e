"""Saved files run as callables, and the census names what runs in integers and what does not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench import delegated_partitions, interleave, onnx_ops, runner, tflite_ops
from edgekit.errors import UsageError
from support.tiny_files import write_onnx, write_tflite


def test_every_kind_of_file_runs_on_inputs_of_its_own_signature(tmp_path: Path) -> None:
    files = [
        write_onnx(tmp_path / "größe.onnx", quantized=True, dynamic=True),
        write_onnx(tmp_path / "float.onnx", quantized=False),
        write_tflite(tmp_path / "tiny.tflite"),
    ]
    found = interleave({file.name: runner(file) for file in files}, min_rounds=3, warmup=2, max_seconds=0.5)
    assert all(0 < each.p50_ms <= each.p99_ms for each in found.values())


def test_given_inputs_are_used_and_a_free_batch_grows(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "free.onnx", quantized=False, dynamic=True)
    calls = {n: runner(file, inputs=[np.ones((n, 3, 8, 8), np.float32)]) for n in (1, 512)}
    found = interleave({str(n): call for n, call in calls.items()}, min_rounds=5, warmup=2, max_seconds=0.5)
    assert found["512"].p50_ms > 4 * found["1"].p50_ms


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [np.ones((1, 3, 8, 8), np.float64)],
        [np.ones((1, 3, 9, 8), np.float32)],
        [np.ones((1, 3, 8, 8), np.float32)] * 2,
    ],
)
@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_inputs_that_do_not_fit_are_refused_before_timing(
    tmp_path: Path, inputs: list[Any], kind: str
) -> None:
    path = tmp_path / f"tiny.{kind}"
    file = write_onnx(path, quantized=False) if kind == "onnx" else write_tflite(path)
    with pytest.raises(UsageError, match=f"tiny.{kind}"):
        runner(file, inputs=inputs)


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x00\x00\x00\x00TFL3garbage"])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=name):
        runner(path)


def test_a_missing_file_and_another_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        runner(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="cannot be timed"):
        runner(tmp_path / "model.mlpackage")


def test_fused_onnx_counts_as_integer(tmp_path: Path) -> None:
    found = onnx_ops(write_onnx(tmp_path / "u8.onnx", quantized=True))
    assert found.int8["QLinearConv"] == 1
    assert found.floating == Counter({"Erf": 1})
    assert found.unfused == Counter({"Erf": 1})
    assert found.int8_ops >= 1


def test_unfused_onnx_is_named(tmp_path: Path) -> None:
    found = onnx_ops(write_onnx(tmp_path / "s8.onnx", quantized=True, signed=True))
    in_float = found.floating["Conv"] + found.floating["FusedConv"]
    assert found.int8["QLinearConv"] + in_float == 1
    # Whether signed activations fuse depends on the processor; if they do not, they are named.
    assert found.unfused["Conv"] + found.unfused["FusedConv"] == in_float


def test_float_onnx_has_no_integer_kernel(tmp_path: Path) -> None:
    found = onnx_ops(write_onnx(tmp_path / "float.onnx", quantized=False))
    assert found.int8_ops == 0
    assert not found.boundary
    assert found.floating["Erf"] == 1
    assert {"Conv", "FusedConv"} & set(found.floating)


def test_a_census_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    onnx_ops(write_onnx(tmp_path / "float.onnx", quantized=False))
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]


def test_tflite_ops_are_told_apart_by_their_dtypes(tmp_path: Path) -> None:
    found = tflite_ops(write_tflite(tmp_path / "tiny.tflite"))
    assert found.int8 == Counter({"ADD": 1})
    assert found.floating == Counter({"ADD": 2, "CUMSUM": 1})
    assert found.boundary == Counter({"QUANTIZE": 1})


def test_an_op_that_the_delegate_leaves_out_splits_the_graph(tmp_path: Path) -> None:
    path = write_tflite(tmp_path / "tiny.tflite")
    assert tflite_ops(path).outside == Counter({"CUMSUM": 1})
    assert delegated_partitions(path) == 2
