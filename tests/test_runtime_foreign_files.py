"""Single files that others made: each kind runs with the right numbers, or is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from coremltools.proto import Model_pb2
from onnx import TensorProto, helper

from edgekit_runtime import Model
from edgekit_runtime.backends import Array, Port, coreml
from edgekit_runtime.ends import End, of_file
from edgekit_runtime.errors import ArtifactError, BackendError, DeviceError, InputError
from edgekit_runtime.model import Info
from support.foreign import Op, T, end, onnx_file, tflite
from support.foreign_graphs import joined

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


class Fake:
    """A session that answers by a function of its inputs."""

    def __init__(self, inputs: Sequence[Port], answer: Callable[[Sequence[Array]], list[Array]]) -> None:
        self.inputs, self.outputs, self.run = tuple(inputs), (Port("y", np.dtype(np.float32), (1,)),), answer


def faked(session: Fake, inputs: tuple[End, ...]) -> Model:
    return Model(session, Info("m", "", "onnx", "", (), inputs, of_file(session.outputs, into=False)), None)


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


def test_a_model_that_remembers_and_cannot_be_reset_is_refused(tmp_path: Path) -> None:
    tensors = [T("x", shape=(1, 1)), T("v", "RESOURCE", ()), T("r", shape=(1, 1)), T("y", shape=(1, 1))]
    ops = [
        Op("VAR_HANDLE", (), (1,), "VarHandleOptions"), Op("READ_VARIABLE", (1,), (2,), "ReadVariableOptions"),
        Op("ADD", (0, 2), (3,), "AddOptions"), Op("ASSIGN_VARIABLE", (1, 3), (), "AssignVariableOptions"),
    ]  # fmt: skip
    with pytest.raises(BackendError, match="remembers") as caught:
        Model.load(tflite(tmp_path / "m.tflite", tensors, ops, [0], [3]))
    assert caught.value.code == "state"
    assert Model.load(tflite(tmp_path / "reads.tflite", tensors, ops[:3], [0], [3])).info.format == "tflite"


@pytest.mark.parametrize(("chosen", "found"), [(True, 7.0), (False, 10.0)])
def test_a_model_of_several_graphs_takes_its_branch(tmp_path: Path, chosen: bool, found: float) -> None:
    branches = [
        tflite(tmp_path / f"{op.code}.tflite", [T("a"), T("b"), T("c")], [op], [0, 1], [2])
        for op in (Op("ADD", (0, 1), (2,), "AddOptions"), Op("MUL", (0, 1), (2,), "MulOptions"))
    ]
    tensors = [T("which", "BOOL", (1,)), T("x"), T("z"), T("y")]
    main = tflite(tmp_path / "if", tensors, [Op("IF", (0, 1, 2), (3,), "IfOptions")], [0, 1, 2], [3])
    model = Model.load(joined(tmp_path / "m.tflite", [main, *branches]))
    answer = model.predict({"which": np.array([chosen]), "x": 2 * ONES, "z": 5 * ONES})
    assert answer.tolist() == [[found] * 3]


@pytest.mark.parametrize("kind", ["FLOAT16", "FLOAT64", "BOOL", "INT64", "UINT32"])
def test_ends_of_any_numbers_are_taken_as_they_are(tmp_path: Path, kind: str) -> None:
    model = Model.load(copies(tmp_path, kind))
    assert model.info.inputs[0].dtype.name == kind.lower()
    assert model.predict([[1, 0, 1]]).tolist() == [[1, 0, 1]]


def test_an_axis_of_no_length_is_taken(tmp_path: Path) -> None:
    assert Model.load(adds_to_itself(tmp_path, shape=(1, 0))).predict(np.ones((1, 0))).shape == (1, 0)


def test_a_file_without_inputs_or_outputs_runs(tmp_path: Path) -> None:
    tensors, ops = [T("x", data=ONES), T("y")], [Op("ADD", (0, 0), (1,), "AddOptions")]
    model = Model.load(tflite(tmp_path / "in.tflite", tensors, ops, [], [1]))
    assert np.array_equal(model.predict({}), 2 * ONES)
    tensors = [T("x"), T("y")]
    assert Model.load(tflite(tmp_path / "out.tflite", tensors, ops, [0], [])).predict(ONES) == {}


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


@pytest.mark.parametrize(
    ("names", "inputs", "outputs"),
    [
        (("x", "x", "y", "y"), ["x", "x_1"], ["y", "y_1"]),
        (("", "", "", ""), ["input_0", "input_1"], ["output_0", "output_1"]),
        (("input_1", "", "", "output_0"), ["input_1", "input_2"], ["output_1", "output_0"]),
    ],
)
def test_tensors_of_one_name_or_none_are_told_apart(
    tmp_path: Path, names: tuple[str, ...], inputs: list[str], outputs: list[str]
) -> None:
    model = Model.load(tflite(tmp_path / "m.tflite", [T(name) for name in names], ADD_MUL, [0, 1], [2, 3]))
    assert [each.name for each in model.info.inputs] == inputs
    answer = model.predict({inputs[0]: 2 * ONES, inputs[1]: 5 * ONES})
    assert {name: float(y[0, 0]) for name, y in answer.items()} == dict(
        zip(outputs, (7.0, 10.0), strict=True)
    )


def test_a_new_name_is_not_one_that_another_tensor_has(tmp_path: Path) -> None:
    tensors = [T("x"), T("x"), T("x_1"), T("y")]
    adds = [Op("ADD_N", (0, 1, 2), (3,), "AddNOptions")]
    model = Model.load(tflite(tmp_path / "m.tflite", tensors, adds, [0, 1, 2], [3]))
    assert [each.name for each in model.info.inputs] == ["x", "x_2", "x_1"]
    given = {"x": ONES, "x_2": 10 * ONES, "x_1": 100 * ONES}
    assert np.array_equal(model.predict(given), 111 * ONES)


def test_an_input_that_is_listed_twice_is_one(tmp_path: Path) -> None:
    tensors, ops = [T("x"), T("y")], [Op("ADD", (0, 0), (1,), "AddOptions")]
    model = Model.load(tflite(tmp_path / "m.tflite", tensors, ops, [0, 0], [1, 1]))
    assert [each.name for each in model.info.inputs] == ["x"]
    assert {name: float(y[0, 0]) for name, y in model.predict(ONES).items()} == {"y": 2.0, "y_1": 2.0}


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
    again = tflite(
        tmp_path / "again.tflite", tensors, ADD_MUL, [0, 1], [2, 3], ({"p": 0, "q": 1, "r": 1}, {"u": 2, "v": 3})
    )  # fmt: skip
    assert {e.name for e in Model.load(again).info.inputs} == {"a", "b"}


def test_a_signature_of_another_graph_names_nothing_of_the_first(tmp_path: Path) -> None:
    names = [[T(f"{name}{k}") for name in "abyz"] for k in range(2)]
    signature = ({"p": 0, "q": 1}, {"sum": 2, "mul": 3})
    first = tflite(tmp_path / "first", names[0], ADD_MUL, [0, 1], [2, 3])
    second = tflite(tmp_path / "second", names[1], ADD_MUL, [0, 1], [2, 3], signature)
    model = Model.load(joined(tmp_path / "m.tflite", [first, second], signature_of=1))
    assert [each.name for each in model.info.inputs] == ["a0", "b0"]


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


def test_several_outputs_lose_their_first_axis_each_for_itself(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["boxes"]), *NEG]
    model = Model.load(
        onnx_file(
            tmp_path / "m.onnx", nodes, [end("x", [1, 8])], [end("boxes", ["n", 4]), end("y", [1, 8])],
            {"s": np.array([-1, 4])},
        )
    )  # fmt: skip
    found = model.predict(np.ones(8, np.float32))
    assert {name: y.shape for name, y in found.items()} == {"boxes": (2, 4), "y": (8,)}
    with pytest.raises(InputError, match="the output 'boxes'"):
        model.predict_batch(np.ones((2, 8), np.float32))


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


@pytest.mark.parametrize("first", ["x", "t"])
@pytest.mark.parametrize("n", ["n", 1])
def test_a_single_number_beside_samples_is_a_setting(tmp_path: Path, first: str, n: str | int) -> None:
    inputs = {"x": end("x", [n, 3]), "t": end("t", [])}
    ordered = [inputs.pop(first), *inputs.values()]
    node = helper.make_node("Mul", ["x", "t"], ["y"])
    model = Model.load(onnx_file(tmp_path / "m.onnx", [node], ordered, [end("y", [n, 3])]))
    assert model.predict({"x": ONES, "t": 2.0}).tolist() == [[2.0] * 3]
    assert model.predict({"x": ONES[0], "t": 2.0}).tolist() == [2.0] * 3
    several = {"x": np.ones((4, 3), np.float32), "t": 2.0}
    if n == "n":
        assert model.predict(several).shape == (4, 3)
    else:
        with pytest.raises(InputError, match="samples"):
            model.predict(several)


def test_a_batch_of_the_length_that_the_file_has_runs_at_once(tmp_path: Path) -> None:
    model = Model.load(onnx_file(tmp_path / "m.onnx", NEG, [end("x", [2, 3])], [end("y", [2, 3])]))
    assert model.predict_batch(np.ones((2, 3))).shape == (2, 3)
    with pytest.raises(InputError, match=r"has the shape \(4, 3\)"):
        model.predict_batch(np.ones((4, 3)))


@pytest.mark.parametrize("first", [1, "n"])
def test_a_sample_is_not_taken_apart_into_a_batch(tmp_path: Path, first: int | str) -> None:
    ends = [end(name, [first, "length"]) for name in ("x", "y")]
    model = Model.load(onnx_file(tmp_path / "m.onnx", NEG, ends[:1], ends[1:]))
    for length in (5, 7):
        assert model.predict(np.ones(length, np.float32)).shape == (length,)
        assert model.predict_batch(np.ones((2, length), np.float32)).shape == (2, length)
    with pytest.raises(InputError, match=r"has the shape \(5,\)"):
        model.predict_batch(np.ones(5, np.float32))


def test_a_number_that_the_manifest_calls_single_is_single() -> None:
    port, spec = Port("t", np.dtype(np.float32), ()), End("t", 0, np.dtype(np.float32), (), None)
    model = faked(Fake([port], lambda arrays: [np.reshape(arrays[0], (1,))]), (spec,))
    assert model.predict(3.0).tolist() == [3.0]
    assert model.predict_batch([3.0, 4.0]).tolist() == [3.0, 4.0]
    with pytest.raises(InputError, match="single number") as caught:
        model.predict(np.ones((1, 1), np.float32))
    assert caught.value.code == "input"


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


def test_what_a_backend_says_at_length_is_cut_and_its_want_of_memory_left_as_it_is() -> None:
    def failing(error: Exception) -> Model:
        def answer(arrays: Sequence[Array]) -> list[Array]:
            raise error

        session = Fake([Port("x", np.dtype(np.float32), (1, 3))], answer)
        return faked(session, of_file(session.inputs, into=True))

    with pytest.raises(BackendError) as caught:
        failing(RuntimeError("a" * 5000 + "\nb")).predict(ONES)
    assert caught.value.what == "m: " + "a" * 300
    with pytest.raises(BackendError, match="RuntimeError"):
        failing(RuntimeError()).predict_batch(ONES)
    with pytest.raises(MemoryError):
        failing(MemoryError()).predict(ONES)


TENSOR = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
PROBABILITIES = helper.make_map_type_proto(
    TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
)
NOT_TENSORS = {
    "a sequence": (
        helper.make_node("SequenceConstruct", ["x"], ["y"]), TENSOR, helper.make_sequence_type_proto(TENSOR),
    ),
    "classes to probabilities": (
        helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]), TENSOR,
        helper.make_sequence_type_proto(PROBABILITIES),
    ),
    "what need not be there": (
        helper.make_node("OptionalGetElement", ["x"], ["y"]), helper.make_optional_type_proto(TENSOR), TENSOR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_TENSORS)
def test_ends_that_are_no_tensors_are_refused(tmp_path: Path, kind: str) -> None:
    node, *types = NOT_TENSORS[kind]
    x, y = (helper.make_value_info(name, each) for name, each in zip("xy", types, strict=True))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph([node], "foreign", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(tmp_path / "m.onnx"))
    with pytest.raises(BackendError, match="tensors of numbers") as caught:
        Model.load(tmp_path / "m.onnx")
    assert caught.value.code == "ends"


def test_numbers_that_numpy_has_no_dtype_for_are_refused(tmp_path: Path) -> None:
    ends = [end(name, [1, 2], TensorProto.BFLOAT16) for name in ("x", "y")]
    with pytest.raises(BackendError) as caught:
        Model.load(onnx_file(tmp_path / "m.onnx", SAME, ends[:1], ends[1:]))
    assert caught.value.code == "ends"


def test_weights_that_lie_elsewhere_and_are_not_there_are_said(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = {"w": np.ones((300, 3), np.float32)}
    path = onnx_file(tmp_path / "m.onnx", [node], [end("x", ["n", 300])], [end("y", ["n", 3])], weights)
    whole = onnx.load(str(path))
    onnx.save_model(whole, str(path), save_as_external_data=True, location="weights", size_threshold=0)
    assert Model.load(path).predict(np.ones((1, 300), np.float32)).tolist() == [[300.0] * 3]
    (tmp_path / "weights").unlink()
    with pytest.raises(BackendError, match="weights") as caught:
        Model.load(path)
    assert caught.value.code == "load"


@pytest.mark.parametrize(("chosen", "found"), [(True, -1.0), (False, 1.0)])
def test_an_onnx_model_of_several_graphs_takes_its_branch(tmp_path: Path, chosen: bool, found: float) -> None:
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(op, ["x"], ["z"])], name, [], [end("z", None)])
        for name, op in (("then", "Neg"), ("else", "Abs"))
    }
    node = helper.make_node("If", ["which"], ["y"], **branches)
    inputs = [end("which", [], TensorProto.BOOL), end("x", [1, 3])]
    model = Model.load(onnx_file(tmp_path / "m.onnx", [node], inputs, [end("y", [1, 3])]))
    assert model.predict({"which": chosen, "x": ONES}).tolist() == [[found] * 3]
    assert model.predict({"which": chosen, "x": ONES[0]}).tolist() == [found] * 3


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 1, 7), (4, 5), (3, 4, 5)])
def test_axes_that_the_file_leaves_open_take_any_length(tmp_path: Path, shape: tuple[int, ...]) -> None:
    ends = [end(name, [1, "h", "w"]) for name in ("x", "y")]
    model = Model.load(onnx_file(tmp_path / "m.onnx", NEG, ends[:1], ends[1:]))
    assert model.predict(np.ones(shape, np.float32)).shape == shape


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
    ("dtype", "given", "found"),
    [
        ("int32", np.array([[2**40 + 7, 1]]), f"holds {2**40 + 7}, beyond {-(2**31)}…{2**31 - 1}"),
        ("int8", np.array([[200, 0]], np.uint8), "holds 200, beyond -128…127"),
        ("float16", np.array([[-1e6, 0]], np.float32), r"holds -1000000\.0, beyond ±65504\.0"),
        ("float16", np.array([[-(2**63), 0]]), f"holds {-(2**63)}, beyond"),
    ],
)
def test_a_number_that_does_not_fit_is_named_with_the_range(
    tmp_path: Path, dtype: str, given: Any, found: str
) -> None:
    with pytest.raises(InputError, match=found):
        copier(tmp_path, dtype).predict(given)


@pytest.mark.parametrize("error", [TypeError("on another device"), RuntimeError("waits for gradients")])
def test_what_does_not_become_an_array_is_refused(tmp_path: Path, error: Exception) -> None:
    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise error

    for call in (copier(tmp_path, "int8").predict, copier(tmp_path, "int8").predict_batch):
        with pytest.raises(InputError, match=str(error)):
            call(Tensor())


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


# Core ML


@pytest.mark.parametrize("kind", ["imageType", "stringType", "dictionaryType", "sequenceType"])
def test_what_is_no_array_at_the_end_of_a_package_is_refused(kind: str) -> None:
    description = Model_pb2.Model().description
    feature = description.input.add(name="x")
    getattr(feature.type, kind).SetInParent()
    package = SimpleNamespace(get_spec=lambda: SimpleNamespace(description=description))
    with pytest.raises(BackendError, match=kind) as caught:
        coreml._Session(package)
    assert caught.value.code == "ends"
    feature.type.multiArrayType.shape.extend([1, 3])
    assert coreml._Session(package).inputs[0].shape == (1, 3)


# Paths


@pytest.mark.parametrize("path", ["x" * 5000, "nul\0nul", "no/such/place", ""])
def test_a_path_that_leads_nowhere_is_said(path: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        Model.load(path)
    assert caught.value.code == "unknown_file"


@pytest.mark.parametrize("name", ["nul\0nul", "none"])
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_path_that_leads_nowhere_is_said_whatever_the_format(
    tmp_path: Path, format: str, name: str
) -> None:
    onnx_file(tmp_path / "nul", NEG, [end("x", [1, 3])], [end("y", [1, 3])])
    with pytest.raises(ArtifactError) as caught:
        Model.load(tmp_path / name, format=format)
    assert caught.value.code == "unknown_file"


def test_a_format_that_nobody_knows_is_said(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="one of") as caught:
        Model.load(adds_to_itself(tmp_path), format="nonsense")
    assert caught.value.code == "option"
