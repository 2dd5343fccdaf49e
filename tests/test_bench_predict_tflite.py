"""Operators that are read from TFLite files: what XNNPACK looks up in one table, and what it has no kernels for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.bench.layers.tflite_file import File
from edgekit.bench.predict import Op, read_ops
from edgekit.bench.predict.calibrate import content_of, count_of
from edgekit.bench.predict.probes import probes
from edgekit.bench.runners import tflite_runner

DIMS = (1, 4, 4, 8)
GRID, UNIT = (0.05, 0), (1 / 256, -128)
Build = Callable[[File, int], int]


def ops_of(build: Build, folder: Path, *, floating: bool = False) -> tuple[Op, ...]:
    """Operators of a file in which so much is made of one input; LiteRT runs it, too."""
    file = File(np.random.default_rng(0), floating=floating)
    x = file.activation(DIMS, *GRID)
    file.graph.inputs = [x]
    file.graph.outputs = [build(file, x)]
    path = folder / "m.tflite"
    path.write_bytes(file.content())
    tflite_runner(path)()
    return read_ops(path)


def sigmoid(file: File, x: int) -> int:
    return file.operator("LOGISTIC", 2, [x], file.activation(DIMS, *UNIT))


def times(file: File, x: int, y: int) -> int:
    return file.operator("MUL", 2, [x, y], file.activation(DIMS, *GRID), "MulOptions")


def numbers(file: File, count: int) -> int:
    axes = (1, 1, count)
    if file.floating:
        return file.tensor(axes, "FLOAT32", np.full(axes, 0.1, np.float32))
    return file.tensor(axes, "INT8", np.full(axes, 26, np.int8), grid=(np.float32(UNIT[0]), np.int64(0), 0))


def swish(file: File, x: int) -> int:
    return times(file, x, sigmoid(file, x))


def hard_swish(file: File, x: int) -> int:
    """As exporters write it: of sums and products with numbers."""
    added = file.operator("ADD", 2, [x, numbers(file, 1)], file.activation(DIMS, *GRID), "AddOptions")
    return times(file, x, times(file, added, numbers(file, 1)))


def sigmoids(file: File, x: int) -> int:
    for _ in range(3):
        x = sigmoid(file, x)
    return x


@pytest.mark.parametrize("build", [swish, hard_swish, sigmoids])
def test_integers_that_follow_from_one_tensor_are_looked_up_once(build: Build, tmp_path: Path) -> None:
    assert [op.kind for op in ops_of(build, tmp_path)] == ["activation"]
    assert len(ops_of(build, tmp_path, floating=True)) > 1


def test_what_something_else_reads_as_well_is_looked_up_by_itself(tmp_path: Path) -> None:
    def build(file: File, x: int) -> int:
        gate = sigmoid(file, x)
        return times(file, times(file, x, gate), gate)

    assert [op.kind for op in ops_of(build, tmp_path)] == ["activation", "mul", "mul"]


def test_a_square_is_looked_up_but_nothing_joins_it(tmp_path: Path) -> None:
    def build(file: File, x: int) -> int:
        return times(file, times(file, x, x), x)

    assert [op.kind for op in ops_of(build, tmp_path)] == ["activation", "mul"]


def test_what_is_given_back_is_looked_up_by_itself(tmp_path: Path) -> None:
    file = File(np.random.default_rng(0), floating=False)
    x = file.activation(DIMS, *GRID)
    gate = sigmoid(file, x)
    file.graph.inputs, file.graph.outputs = [x], [gate, times(file, x, gate)]
    (tmp_path / "m.tflite").write_bytes(file.content())
    assert [op.kind for op in read_ops(tmp_path / "m.tflite")] == ["activation", "mul"]


def test_a_table_holds_ten_operators_at_most(tmp_path: Path) -> None:
    def build(file: File, x: int) -> int:
        for _ in range(11):
            x = sigmoid(file, x)
        return x

    assert [op.kind for op in ops_of(build, tmp_path)] == ["activation"] * 2


@pytest.mark.parametrize(("name", "kind"), [("HARD_SWISH", "prelu"), ("RELU6", "prelu"), ("EXP", "gelu")])
def test_integers_without_a_kernel_of_xnnpack_take_what_the_interpreter_takes(
    name: str, kind: str, tmp_path: Path
) -> None:
    def build(file: File, x: int) -> int:
        return file.operator(name, 2 if name == "EXP" else 1, [x], file.activation(DIMS, *GRID))

    assert [op.kind for op in ops_of(build, tmp_path)] == [kind]
    assert [op.kind for op in ops_of(build, tmp_path, floating=True)] != [kind]


def test_products_with_a_number_for_each_channel_know_how_many_there_are(tmp_path: Path) -> None:
    def build(file: File, x: int) -> int:
        return times(file, x, numbers(file, DIMS[-1]))

    for floating in (False, True):
        (found,) = ops_of(build, tmp_path, floating=floating)
        assert (found.kind, found.shape) == ("mul", (8, 1, 1, 16))


def test_a_single_number_is_not_read_anew_for_each_pixel(tmp_path: Path) -> None:
    (found,) = ops_of(lambda file, x: times(file, x, numbers(file, 1)), tmp_path, floating=True)
    assert (found.kind, found.shape) == ("mul", (1, 2, 1, 128))


@pytest.mark.parametrize(
    ("name", "result", "seen"),
    [("DEPTH_TO_SPACE", (1, 8, 8, 2), (1, 2, 1, 128)), ("SPACE_TO_DEPTH", (1, 2, 2, 32), (1, 1, 1, 128))],
)
def test_channels_that_become_pixels_are_told_from_pixels_that_become_channels(
    name: str, result: tuple[int, ...], seen: tuple[int, ...], tmp_path: Path
) -> None:
    options = {"DEPTH_TO_SPACE": "DepthToSpaceOptions", "SPACE_TO_DEPTH": "SpaceToDepthOptions"}[name]

    def build(file: File, x: int) -> int:
        return file.operator(name, 1, [x], file.activation(result, *GRID), options, blockSize=2)

    (found,) = ops_of(build, tmp_path)
    assert (found.kind, found.shape) == ("shuffle", seen)


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_a_calibration_file_has_as_many_operators_as_its_time_is_divided_by(
    precision: str, tmp_path: Path
) -> None:
    for probe in probes("tflite", precision):
        if probe.layer is None and probe.op.kind not in ("convert", "choose") and probe.op.work < 10_000:
            (tmp_path / "m.tflite").write_bytes(content_of(probe, "tflite"))
            counted = [op for op in read_ops(tmp_path / "m.tflite") if op.kind == probe.op.kind]
            assert len(counted) == count_of(probe), probe
