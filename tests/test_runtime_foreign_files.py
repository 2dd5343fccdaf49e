"""Single files that others made: each kind runs with the right numbers, or is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgekit_runtime import Model
from edgekit_runtime.errors import ArtifactError, BackendError, DeviceError, InputError
from support.foreign import Op, T, end, onnx_file, tflite

ONES = np.ones((1, 3), np.float32)
NEG = [helper.make_node("Neg", ["x"], ["y"])]
SAME = [helper.make_node("Identity", ["x"], ["y"])]
ADD_MUL = [Op("ADD", (0, 1), (2,), "AddOptions"), Op("MUL", (0, 1), (3,), "MulOptions")]


def adds_to_itself(path: Path, **of: Any) -> Path:
    return tflite(
        path / "m.tflite", [T("x", **of), T("y", **of)], [Op("ADD", (0, 0), (1,), "AddOptions")], [0], [1]
    )


def copies(path: Path, kind: str, **of: Any) -> Path:
    tensors = [T("x", kind, **of), T("s", "INT32", (2,), data=np.array([1, 3], np.int32)), T("y", kind, **of)]
    return tflite(path / "m.tflite", tensors, [Op("RESHAPE", (0, 1), (2,), "ReshapeOptions")], [0], [2])


# TFLite


def test_what_a_call_leaves_in_variables_is_not_for_the_next(tmp_path: Path) -> None:
    one = np.ones((1, 1), np.float32)
    tensors = [
        T("x", shape=(1, 2, 1)), T("w", shape=(1, 1), data=one), T("r", shape=(1, 1), data=one),
        T("b", shape=(1,), data=np.zeros(1, np.float32)), T("h", shape=(1, 1), variable=True), T("y", shape=(1, 2, 1)),
    ]  # fmt: skip
    ops = [Op("UNIDIRECTIONAL_SEQUENCE_RNN", (0, 1, 2, 3, 4), (5,), "SequenceRNNOptions")]
    model = Model.load(tflite(tmp_path / "m.tflite", tensors, ops, [0], [5]))
    x = np.ones((1, 2, 1), np.float32)
    first = model.predict(x)
    assert np.ravel(first).tolist() == [1.0, 2.0]
    assert np.array_equal(model.predict(x), first)
    assert np.array_equal(model.predict_batch(np.tile(x, (3, 1, 1))), np.tile(first, (3, 1, 1)))


def test_a_shape_that_does_not_fit_costs_that_call_and_no_other(tmp_path: Path) -> None:
    tensors = [T("x", shape=(1, 1), open=(-1, -1)), T("c", data=ONES), T("y", open=(-1, -1))]
    model = Model.load(
        tflite(tmp_path / "m.tflite", tensors, [Op("ADD", (0, 1), (2,), "AddOptions")], [0], [2])
    )
    good = np.ones((2, 3), np.float32)
    assert model.predict(good).shape == (2, 3)
    with pytest.raises(BackendError) as caught:
        model.predict(np.ones((2, 5), np.float32))
    assert caught.value.code == "run"
    for _ in range(2):
        assert model.predict(good).shape == (2, 3)


@pytest.mark.parametrize("value", [3.0, np.float32(3), np.array(3, np.float32), {"x": 3}])
def test_a_single_number_is_taken(tmp_path: Path, value: Any) -> None:
    model = Model.load(adds_to_itself(tmp_path, shape=()))
    if isinstance(value, dict):
        value = {"x": np.float32(3)}
    assert np.shape(model.predict(value)) == ()
    assert float(model.predict(value)) == 6.0


def test_real_ends_with_a_grid_that_nobody_needs_are_real(tmp_path: Path) -> None:
    assert np.array_equal(Model.load(adds_to_itself(tmp_path, scale=0.1)).predict(ONES), 2 * ONES)


@pytest.mark.parametrize(
    ("kind", "given", "found"),
    [
        ("INT8", [[1.0, -3.0, 1e12]], [[1.0, -3.0, 63.5]]),
        ("UINT8", [[1.0, -3.0, 1e12]], [[1.0, 0.0, 127.5]]),
        ("INT16", [[1.0, -3.0, 1e12]], [[1.0, -3.0, 16383.5]]),
        ("INT32", [[1, -3, 7]], [[1, -3, 7]]),
    ],
)
def test_ends_on_a_grid_take_and_give_real_values_where_the_grid_is_small(
    tmp_path: Path, kind: str, given: Any, found: Any
) -> None:
    assert Model.load(copies(tmp_path, kind, scale=0.5)).predict(np.array(given)).tolist() == found


@pytest.mark.parametrize("names", [("x", "x", "y", "y"), ("", "", "", "")])
def test_tensors_of_one_name_or_none_are_told_apart(tmp_path: Path, names: tuple[str, ...]) -> None:
    model = Model.load(tflite(tmp_path / "m.tflite", [T(name) for name in names], ADD_MUL, [0, 1], [2, 3]))
    first, second = (each.name for each in model.info.inputs)
    answer = model.predict({first: 2 * ONES, second: 5 * ONES})
    assert [float(y[0, 0]) for y in answer.values()] == [7.0, 10.0]


def test_a_signature_names_tensors_only_where_it_names_all(tmp_path: Path) -> None:
    tensors = [T("a"), T("b"), T("y"), T("z")]
    whole = tflite(
        tmp_path / "whole.tflite", tensors, ADD_MUL, [0, 1], [2, 3], ({"q": 1, "p": 0}, {"mul": 3, "sum": 2})
    )
    assert {e.name for e in Model.load(whole).info.inputs} == {"p", "q"}
    answer = Model.load(whole).predict({"p": 2 * ONES, "q": 5 * ONES})
    assert {name: float(y[0, 0]) for name, y in answer.items()} == {"sum": 7.0, "mul": 10.0}
    part = tflite(tmp_path / "part.tflite", tensors, ADD_MUL, [0, 1], [2, 3], ({"first": 0}, {"sum": 2}))
    assert {e.name for e in Model.load(part).info.inputs} == {"a", "b"}


def test_texts_are_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="tensors of numbers") as caught:
        Model.load(copies(tmp_path, "STRING"))
    assert caught.value.code == "ends"
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [end(name, [1], TensorProto.STRING) for name in ("x", "y")]
    with pytest.raises(BackendError, match="tensors of numbers"):
        Model.load(onnx_file(tmp_path / "m.onnx", [node], ends[:1], ends[1:]))


# ONNX


def test_outputs_without_an_axis_for_samples_are_given_whole(tmp_path: Path) -> None:
    model = Model.load(
        onnx_file(
            tmp_path / "m.onnx", [helper.make_node("Reshape", ["x", "s"], ["y"])], [end("x", [1, 8])],
            [end("y", ["n", 4])], {"s": np.array([-1, 4])},
        )
    )  # fmt: skip
    x = np.arange(8, dtype=np.float32)
    assert model.predict(x).shape == model.predict(x[None]).shape == (2, 4)
    with pytest.raises(InputError, match="does not tell samples apart"):
        model.predict_batch(np.stack([x, x]))


def test_an_output_that_is_a_single_number_is_given_as_it_is(tmp_path: Path) -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    model = Model.load(onnx_file(tmp_path / "m.onnx", [node], [end("x", [1, 3])], [end("y", [])]))
    assert float(model.predict(ONES[0])) == 3.0
    with pytest.raises(InputError, match="does not tell samples apart"):
        model.predict_batch(np.ones((2, 3), np.float32))


@pytest.mark.parametrize("shape", [[2, 3], [5]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_first_axis_of_a_fixed_length_is_kept_whatever_the_dtype(
    tmp_path: Path, shape: list[int], dtype: Any
) -> None:
    model = Model.load(onnx_file(tmp_path / "m.onnx", NEG, [end("x", shape)], [end("y", shape)]))
    assert model.predict(np.ones(shape, dtype)).shape == tuple(shape)
    for n in (1, shape[0] + 1):
        with pytest.raises(InputError, match="has the shape"):
            model.predict(np.ones((n, *shape[1:]), dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_several_samples_for_a_file_that_takes_one_run_one_after_the_other(
    tmp_path: Path, dtype: Any
) -> None:
    model = Model.load(onnx_file(tmp_path / "m.onnx", NEG, [end("x", [1, 3])], [end("y", [1, 3])]))
    assert model.predict(np.ones((4, 3), dtype)).shape == (4, 3)


def test_a_rank_that_the_file_leaves_open_is_the_backend_s_to_judge(tmp_path: Path) -> None:
    model = Model.load(onnx_file(tmp_path / "m.onnx", NEG, [end("x", None)], [end("y", None)]))
    for shape in ((), (3,), (2, 3), (1, 2, 3, 4)):
        assert model.predict(np.ones(shape, np.float32)).shape == shape


def test_a_model_without_inputs_answers_nothing_but_nothing(tmp_path: Path) -> None:
    node = helper.make_node("Constant", [], ["y"], value_float=1.0)
    model = Model.load(onnx_file(tmp_path / "m.onnx", [node], [], [end("y", [])]))
    assert float(model.predict({})) == 1.0
    for call in (model.predict, model.predict_batch):
        with pytest.raises(InputError):
            call(ONES)


def test_what_fails_in_the_backend_has_a_code_and_the_next_call_runs(tmp_path: Path) -> None:
    model = Model.load(
        onnx_file(
            tmp_path / "m.onnx", [helper.make_node("Reshape", ["x", "s"], ["y"])], [end("x", ["n", 3])],
            [end("y", [2, 3])], {"s": np.array([2, 3])},
        )
    )  # fmt: skip
    with pytest.raises(BackendError) as caught:
        model.predict(ONES)
    assert caught.value.code == "run"
    assert len(str(caught.value)) < 1000
    assert model.predict(np.ones((2, 3), np.float32)).shape == (2, 3)


def test_ends_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1, 2])
    with pytest.raises(BackendError) as caught:
        Model.load(onnx_file(tmp_path / "m.onnx", [node], [end("x", [1, 2])], [sequence]))
    assert caught.value.code == "ends"


DTYPES = {
    "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE, "bool": TensorProto.BOOL, "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "int64": TensorProto.INT64, "uint16": TensorProto.UINT16,
}  # fmt: skip


def copier(tmp_path: Path, dtype: str) -> Model:
    ends = [end(name, ["n", 2], DTYPES[dtype]) for name in ("x", "y")]
    return Model.load(onnx_file(tmp_path / "m.onnx", SAME, ends[:1], ends[1:]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_fit_are_taken_from_any_dtype(tmp_path: Path, dtype: str) -> None:
    model = copier(tmp_path, dtype)
    for given in (
        np.array([[1, 0]], dtype),
        [[1, 0]],
        np.array([[1, 0]], np.uint8),
        np.array([[1, 0]], np.int64),
    ):
        found = model.predict(given)
        assert (found.dtype.name, found.tolist()) == (dtype, [[1, 0]])


@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        ("int32", np.array([[2**40 + 7, 1]])), ("int8", np.array([[200, 0]], np.uint8)), ("uint8", np.array([[-1, 0]])),
        ("bool", np.array([[2, 0]])), ("float16", np.array([[1e6, 0]])), ("float16", np.array([[70000, 0]])),
        ("int8", np.array([[0.5, 0]])), ("int64", [[10**30, 0]]), ("int64", [["a", "b"]]), ("int64", [[1], [1, 2]]),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused_and_not_changed(tmp_path: Path, dtype: str, given: Any) -> None:
    with pytest.raises(InputError):
        copier(tmp_path, dtype).predict(given)


def test_infinity_stays_what_it_is(tmp_path: Path) -> None:
    assert copier(tmp_path, "float16").predict(np.array([[np.inf, np.nan]]))[0, 0] == np.inf


# Paths


@pytest.mark.parametrize("path", ["x" * 5000, "nul\0nul", "no/such/place", ""])
def test_a_path_that_leads_nowhere_is_said(path: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        Model.load(path)
    assert caught.value.code == "unknown_file"


def test_a_format_that_nobody_knows_is_said(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="one of") as caught:
        Model.load(adds_to_itself(tmp_path), format="nonsense")
    assert caught.value.code == "option"
