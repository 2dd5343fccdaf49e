"""`Model`: the answers that the toolkit reads from the same files, in every backend, and errors that say what fits."""

from __future__ import annotations

import json
import shutil
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgekit.bundle import Bundle as Written
from edgekit.bundle import read_golden as written_golden
from edgekit.bundle import write_golden
from edgekit.verify import saved_model
from edgekit_converters.predict import open_saved
from edgekit_runtime.backends import Port, Settings
from edgekit_runtime.ends import of_file
from edgekit_runtime.errors import ArtifactError, BackendError, DeviceError, InputError
from edgekit_runtime.golden import Golden, compare
from edgekit_runtime.model import Model
from support.tiny_files import write_onnx
from support.tiny_runs import bundle, call, folder, images

pytestmark = pytest.mark.slow


@cache
def integer_ends() -> Path:
    """A bundle whose TFLite file has int8 ends and channels last."""
    out = folder() / "integer-ends"
    result = call(
        "compress", folder() / "model.pt2", "--data", folder() / "data.npz", "-o", out, "--preset", "fast",
        "--allow-slower", "--format", "tflite", "--io", "int8", "--layout", "nhwc",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return out


CASES = [("bundle", "onnx"), ("bundle", "tflite"), ("integer_ends", "tflite")]
MADE = {"bundle": bundle, "integer_ends": integer_ends}


@pytest.mark.parametrize(("which", "name"), CASES)
def test_predictions_are_those_that_the_toolkit_reads_from_the_same_file(which: str, name: str) -> None:
    path, x = MADE[which](), images(5, seed=3)
    (wanted,) = open_saved(saved_model(Written.open(path), name))([x])
    model = Model.load(path, format=name)
    assert (model.info.name, model.info.format) == ("model", name)
    np.testing.assert_array_equal(model.predict_batch(x), wanted)
    np.testing.assert_array_equal(model.predict(x[:1]), wanted[:1])
    np.testing.assert_array_equal(model.predict(x[0]), wanted[0])
    np.testing.assert_array_equal(model.predict(x[:3]), wanted[:3])
    np.testing.assert_array_equal(model.predict({model.info.inputs[0].name: x[:1]}), wanted[:1])
    np.testing.assert_array_equal(model.predict(x[0].astype(np.float64)), wanted[0])
    np.testing.assert_array_equal(model.predict(x[:, :, ::-1][:1]), model.predict(x[:, :, ::-1][:1].copy()))


@pytest.mark.parametrize(("which", "name"), CASES)
def test_the_self_test_passes_on_what_was_written(which: str, name: str) -> None:
    tested = Model.load(MADE[which](), format=name).self_test()
    assert tested.ok
    assert tested.n > 1
    assert tested.worst_steps <= tested.allowed_steps


def test_the_self_test_sees_a_chip_that_computes_something_else(tmp_path: Path) -> None:
    copy = shutil.copytree(bundle(), tmp_path / "bundle")
    known = written_golden(copy / "golden.npz")
    outputs = tuple(y + 3 * step for y, step in zip(known.outputs, known.step, strict=True))
    write_golden(copy, type(known)(known.inputs, outputs, known.step, known.tolerance_steps))
    tested = Model.load(copy, format="onnx").self_test()
    assert not tested.ok
    assert tested.worst_steps >= 3


def test_the_first_backend_that_is_installed_is_taken() -> None:
    assert Model.load(bundle()).info.format == "tflite"


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_calls_from_several_threads_do_not_mix(name: str) -> None:
    model, x = Model.load(bundle(), format=name), images(4, seed=9)
    wanted = [model.predict(each) for each in x]
    wrong: list[int] = []

    def work(k: int) -> None:
        wrong.extend(k for _ in range(200) if not np.array_equal(model.predict(x[k]), wanted[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_an_answer_may_be_kept(name: str) -> None:
    model, x = Model.load(bundle(), format=name), images(2, seed=9)
    first = model.predict(x[0])
    kept = first.copy()
    model.predict(x[1])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (np.zeros((1, 3, 8, 9), np.float32), r"shape \(1, 3, 8, 9\)"),
        (np.zeros((3, 8), np.float32), r"shape \(3, 8\)"),
        (np.zeros((1, 1, 3, 8, 8), np.float32), "shape"),
        (np.float32(1), r"shape \(\)"),
        (np.zeros((1, 3, 8, 8), np.complex64), "complex64"),
        (np.full((1, 3, 8, 8), "a"), "<U1"),
        ({}, "inputs"),
        ({"other": np.zeros((1, 3, 8, 8), np.float32)}, "'other'"),
    ],
)
@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_an_input_that_does_not_fit_is_named_with_what_would(name: str, x: Any, found: str) -> None:
    model = Model.load(bundle(), format=name)
    with pytest.raises(InputError, match=found) as caught:
        model.predict(x)
    assert caught.value.code == "input"
    assert "'input_1'" in str(caught.value)
    assert np.isfinite(model.predict(images(1))).all(), "the next call is none the worse"


@pytest.mark.parametrize("x", [np.zeros((0, 3, 8, 8), np.float32), np.float32(1)])
def test_a_batch_of_nothing_is_refused(x: Any) -> None:
    with pytest.raises(InputError, match="samples"):
        Model.load(bundle(), format="onnx").predict_batch(x)


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_nan_goes_in_and_the_model_says_what_it_makes_of_it(name: str) -> None:
    x = images(1)
    x[0, 0, 0, 0] = np.nan
    assert Model.load(bundle(), format=name).predict(x).shape == (1, 4)


def test_pixels_become_what_the_manifest_says(tmp_path: Path) -> None:
    def asks(document: bytes) -> bytes:
        tree = json.loads(document)
        return json.dumps(
            {**tree, "preprocessing": {"resize": [8, 8], "mean": [0.5], "std": [0.25]}}
        ).encode()

    model = Model.load(changed(tmp_path, "manifest.json", asks), format="onnx")
    pixels = np.full((20, 30, 3), 255, np.uint8)
    np.testing.assert_array_equal(model.prepare(pixels), np.full((1, 3, 8, 8), 2.0, np.float32))
    assert model.predict(model.prepare(pixels)).shape == (1, 4)
    with pytest.raises(InputError, match="does not say how"):
        Model.load(bundle(), format="onnx").prepare(pixels)


# Files that others made


def test_a_plain_file_runs_without_a_manifest(tmp_path: Path) -> None:
    for path in (
        bundle() / "model.tflite",
        bundle() / "model.onnx",
        write_onnx(tmp_path / "net", quantized=True),
    ):
        model = Model.load(path)
        y = model.predict(np.zeros([1 if n == -1 else n for n in model.info.inputs[0].shape], np.float32))
        assert y.dtype == np.float32
        assert model.info.version == ""
        with pytest.raises(ArtifactError, match="no known answers"):
            model.self_test()


def test_a_plain_file_with_integer_ends_takes_and_gives_real_values() -> None:
    x = images(1, seed=4)
    wanted = Model.load(integer_ends()).predict(x)
    plain = Model.load(integer_ends() / "model.tflite")
    np.testing.assert_array_equal(plain.predict(x.transpose(0, 2, 3, 1)), wanted)


def test_several_inputs_and_outputs_go_by_their_names(tmp_path: Path) -> None:
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "rows"], ["picked"]),
            helper.make_node("Neg", ["table"], ["negated"]),
        ],
        "two",
        [tensor("table", TensorProto.FLOAT, ["n", 2]), tensor("rows", TensorProto.INT64, ["k"])],
        [tensor("picked", TensorProto.FLOAT, ["k", 2]), tensor("negated", TensorProto.FLOAT, ["n", 2])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, str(tmp_path / "two.onnx"))
    model = Model.load(tmp_path / "two.onnx")
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = model.predict({"rows": np.array([2, 0]), "table": table})
    np.testing.assert_array_equal(found["picked"], table[[2, 0]])
    np.testing.assert_array_equal(found["negated"], -table)
    with pytest.raises(InputError, match="'table', 'rows'"):
        model.predict(table)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty", b""),
        ("text.txt", b"hello, world"),
        ("model.tflite", b"\0" * 64),
        ("x.onnx", b""),
        ("pickle.pt", b"PK\3\4"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DeviceError) as caught:
        Model.load(tmp_path / name)
    assert name in caught.value.what
    assert caught.value.way_out


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ArtifactError) as caught:
            Model.load(path)
        assert caught.value.code == "unknown_file"


def test_a_backend_s_own_error_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x09" + b"\xff" * 100)
    with pytest.raises(BackendError, match=r"bad\.onnx") as caught:
        Model.load(tmp_path / "bad.onnx")
    assert caught.value.code == "load"
    assert caught.value.what.count("\n") == 0


def test_a_provider_that_is_not_there_is_named() -> None:
    with pytest.raises(BackendError, match="NoSuchProvider") as caught:
        Model.load(bundle(), format="onnx", settings=Settings(providers=("NoSuchProvider",)))
    assert "CPUExecutionProvider" in caught.value.expected


def test_a_delegate_that_is_not_there_is_named() -> None:
    with pytest.raises(BackendError, match="no-such-library") as caught:
        Model.load(bundle(), format="tflite", settings=Settings(delegates=("/no-such-library.so",)))
    assert caught.value.code == "no_delegate"


# Bundles that lie


def changed(tmp_path: Path, file: str, change: Any) -> Path:
    copy = shutil.copytree(bundle(), tmp_path / "bundle")
    path = copy / file
    path.write_bytes(change(path.read_bytes()))
    return copy


@pytest.mark.parametrize(
    ("file", "change", "code"),
    [
        ("model.onnx", lambda b: b[:-1], "damaged"),
        ("model.onnx", lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:], "damaged"),
        ("model.onnx", lambda _: b"", "damaged"),
        ("manifest.json", lambda _: b"{}", "bundle"),
        ("manifest.json", lambda b: b.replace(b'"input_1"', b'"other"'), "ends"),
        ("manifest.json", lambda b: b.replace(b"model.onnx", b"../model.onnx"), "bundle"),
        ("manifest.json", lambda b: b.replace(b"model.onnx", b"other.onnx"), "bundle"),
        ("manifest.json", lambda b: b.replace(b'"golden.npz"', b'"none.npz"'), "bundle"),
        (
            "manifest.json",
            lambda b: b.replace(b'"preprocessing": {}', b'"preprocessing": {"warp": 1}'),
            "preprocessing",
        ),
    ],
)
def test_a_bundle_that_is_not_what_it_says_is_refused_with_a_code(
    tmp_path: Path, file: str, change: Any, code: str
) -> None:
    with pytest.raises(ArtifactError) as caught:
        Model.load(changed(tmp_path, file, change), format="onnx")
    assert caught.value.code == code


def test_a_link_in_a_bundle_is_not_followed(tmp_path: Path) -> None:
    copy = shutil.copytree(bundle(), tmp_path / "bundle")
    (copy / "model.onnx").rename(tmp_path / "elsewhere")
    (copy / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="neither a file nor a directory"):
        Model.load(copy, format="onnx")


# The grid


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=20),
    st.floats(2**-20, 8.0, width=32),
    st.integers(-128, 127),
)
def test_any_value_lands_on_the_nearest_step_of_the_grid_or_on_its_end(
    values: list[float], scale: float, zero_point: int
) -> None:
    port = Port("x", np.dtype(np.int8), (len(values),), scale, zero_point)
    ((onto,), (off,)) = (of_file([port], into=into) for into in (True, False))
    x = np.array(values, np.float32)
    assert onto.convert is not None
    assert off.convert is not None
    q = onto.convert(x)
    assert q.dtype == np.int8
    back = off.convert(q)
    low, high = off.convert(np.array([-128, 127], np.int8))
    inside = (x >= low) & (x <= high)
    assert (np.abs(back[inside] - x[inside]) <= np.float32(scale) * 0.501 + 1e-6 * np.abs(x[inside])).all()
    assert (q[x > high] == 127).all()
    assert (q[(x < low) | np.isnan(x)] == -128).all()


# Known answers


def known() -> Golden:
    return Golden((np.zeros((2, 1)),), (np.ones((2, 3)), np.ones((2, 1))), (0.5, 0.1), (1.0, 2.0))


@pytest.mark.parametrize(
    ("first", "second", "ok", "worst"),
    [
        (1.0, 1.0, True, 0.0),
        (1.5, 1.0, True, 1.0),
        (2.0, 1.0, False, 2.0),
        (1.0, 1.3, False, 3.0),
        (1.0, np.nan, False, np.inf),
    ],
)
def test_the_output_that_is_farthest_off_decides(first: float, second: float, ok: bool, worst: float) -> None:
    tested = compare(known(), [np.full((2, 3), first), np.full((2, 1), second)])
    assert (tested.ok, tested.n) == (ok, 2)
    assert tested.worst_steps == pytest.approx(worst)


def test_outputs_of_another_shape_are_infinitely_far() -> None:
    assert not compare(known(), [np.ones((2, 4)), np.ones((2, 1))]).ok
