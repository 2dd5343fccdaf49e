"""Saved files behind one function: batches, layouts, integer ends, names."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit_converters.errors import LoweringError
from edgekit_converters.predict import SavedModel, _from_ends, _match, _to_ends, open_saved
from edgekit_converters.program import Grid, TensorInfo


def onnx_file(path: Path, batch: int | str) -> SavedModel:
    """`y = x + mean over the batch`, which is `2 x` only in a loop over samples, and `z = -x`."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 2])
    y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 2]) for name in "yz")
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Add", ["x", "mean"], ["y"]),
        helper.make_node("Neg", ["x"], ["z"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
    graph = helper.make_graph(nodes, "g", [x], [y, z], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    ends = tuple(TensorInfo(name, (1, 2), "float32") for name in "xyz")
    return SavedModel("onnx", path, ends[:1], ends[1:])


ROWS = np.array([[1.0, 2.0], [3.0, -4.0], [0.5, 0.0]], np.float32)


def test_a_file_of_batch_one_is_run_sample_by_sample(tmp_path: Path) -> None:
    y, z = open_saved(onnx_file(tmp_path / "m.onnx", 1))([ROWS])
    assert np.array_equal(y, 2 * ROWS)
    assert np.array_equal(z, -ROWS)


def test_a_file_of_any_batch_is_run_at_once(tmp_path: Path) -> None:
    y, _ = open_saved(onnx_file(tmp_path / "m.onnx", "batch"))([ROWS])
    assert np.allclose(y, ROWS + ROWS.mean(0))


def test_outputs_come_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    saved = onnx_file(tmp_path / "m.onnx", 1)
    turned = SavedModel("onnx", saved.path, saved.inputs, saved.outputs[::-1])
    z, y = open_saved(turned)([ROWS])
    assert np.array_equal(z, -ROWS)
    assert np.array_equal(y, 2 * ROWS)


@pytest.mark.parametrize("name", ["onnx", "tflite"])
@pytest.mark.parametrize("content", [b"", b"garbage that is no model at all"], ids=["empty", "garbage"])
def test_a_file_that_its_runtime_refuses_is_an_error_that_names_it(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / f"größe.{name}"
    path.write_bytes(content)
    end = (TensorInfo("x", (1, 2), "float32"),)
    with pytest.raises(LoweringError, match="größe") as caught:
        open_saved(SavedModel(name, path, end, end))
    assert caught.value.format == name
    assert "edgekit doctor" in caught.value.way_out


@pytest.mark.parametrize("name", ["onnx", "tflite", "coreml"])
def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    end = (TensorInfo("x", (1, 2), "float32"),)
    with pytest.raises(LoweringError, match="absent"):
        open_saved(SavedModel(name, tmp_path / "absent", end, end))


def test_real_values_meet_integer_ends_on_the_grid() -> None:
    detail, grid = {"dtype": np.int8}, Grid(0.5, -10)
    x = np.array([[0.0, 0.2, 0.26, 1000.0, -1000.0]], np.float32)
    q = _to_ends(x, detail, grid)
    assert q.dtype == np.int8
    assert q.tolist() == [[-10, -10, -9, 127, -128]]
    back = _from_ends(q, detail, grid)
    assert back.dtype == np.float32
    assert back[0, :3].tolist() == [0.0, 0.0, 0.5]


def test_ties_are_rounded_to_even_as_torch_does() -> None:
    q = _to_ends(np.array([0.25, 0.75, 1.25], np.float32), {"dtype": np.int8}, Grid(0.5, 0))
    assert q.tolist() == [0, 2, 2]


def test_integers_are_passed_as_integers() -> None:
    tokens = np.array([[1, 2]], np.int64)
    assert _to_ends(tokens, {"dtype": np.int32}, None).dtype == np.int32
    already = np.array([[1, 2]], np.int8)
    assert _to_ends(already, {"dtype": np.int8}, Grid(0.5, 3)).tolist() == [[1, 2]]


def test_an_output_is_a_copy_of_the_runners_buffer() -> None:
    buffer = np.ones(3, np.float32)
    kept = _from_ends(buffer, {"dtype": np.float32}, None)
    buffer[:] = 7
    assert kept.tolist() == [1.0, 1.0, 1.0]


def test_names_are_found_though_a_format_replaces_characters() -> None:
    assert _match(["in.0", "größe"], ["gr__e", "in_0"]) == ["in_0", "gr__e"]
    with pytest.raises(ValueError, match="expected"):
        _match(["x", "y"], ["x", "z"])
