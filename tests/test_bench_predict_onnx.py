"""Operators that are read from ONNX files: what ONNX Runtime fuses, how it puts axes, and what lies side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from edgekit.bench.layers import LayerShape
from edgekit.bench.layers.onnx_file import onnx_file
from edgekit.bench.predict import Op, predict, read_ops
from edgekit_devices import load_profile

CONV = LayerShape("conv2d", 16, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 8))
SQUARE = np.ones((16, 16, 1, 1), np.float32)


def onnx_ops_of(text: str, folder: Path, **constants: object) -> tuple[Op, ...]:
    """Operators of a model in ONNX's own text form."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {text}')
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    onnx.save(model, folder / "m.onnx")
    return read_ops(folder / "m.onnx")


def test_softmax_over_another_than_the_last_axis_is_turned_there_and_back(tmp_path: Path) -> None:
    text = "g (float[1,8,4,100] x) => (float[1,8,4,100] y) { y = Softmax<axis=AXIS>(x) }"
    found = onnx_ops_of(text.replace("AXIS", "1"), tmp_path)
    assert [op.kind for op in found] == ["softmax", "transpose", "transpose"]
    assert found[0].shape == (8, 1, 1, 400)
    assert [op.shape for op in onnx_ops_of(text.replace("AXIS", "-1"), tmp_path)] == [(100, 1, 1, 32)]


def test_what_onnx_runtime_fuses_is_counted_once(tmp_path: Path) -> None:
    weight = np.ones((8, 8, 1, 1), np.float32)
    swish = """g (float[1,8,4,4] x) => (float[1,8,4,4] y) {
        c = Conv(x, w)  s = Sigmoid(c)  y = Mul(c, s)
    }"""
    assert [op.kind for op in onnx_ops_of(swish, tmp_path, w=weight)] == ["conv", "activation"]
    bent = "g (float[1,8,4,4] x) => (float[1,8,4,4] y) { c = Conv(x, w)  y = HardSigmoid(c) }"
    assert [op.kind for op in onnx_ops_of(bent, tmp_path, w=weight)] == ["conv"]


@pytest.mark.parametrize(
    ("equation", "right", "out", "kind", "seen"),
    [
        ("bqhd, bkhd -> bhqk", "1,6,2,3", "1,2,5,6", "einsum", (3, 6, 1, 10)),
        ("bqhd,bqhd->bqh", "1,5,2,3", "1,5,2", "einsum", (3, 1, 1, 10)),
        ("...d,...d->...d", "1,5,2,3", "1,5,2,3", "add", (1, 2, 1, 30)),
    ],
)
def test_sums_in_einsteins_notation_are_products(
    equation: str, right: str, out: str, kind: str, seen: tuple[int, ...], tmp_path: Path
) -> None:
    text = f'g (float[1,5,2,3] x, float[{right}] z) => (float[{out}] y) {{ y = Einsum<equation="{equation}">(x, z) }}'
    (found,) = onnx_ops_of(text, tmp_path)
    assert (found.kind, found.shape) == (kind, seen)


def test_an_operator_of_which_nothing_is_known_is_named(tmp_path: Path) -> None:
    text = "g (float[1,1,8] x) => (float[1,1,8] y) { y = CumSum(x, axis) }"
    (found,) = onnx_ops_of(text, tmp_path, axis=np.int64(2))
    assert (found.kind, found.unknown) == ("add", "CumSum")
    prediction = predict(tmp_path / "m.onnx", load_profile("raspberry-pi-4"))
    assert prediction.to_dict()["unknown"] == ["CumSum"]
    assert "nothing is known of CumSum" in prediction.doubt()
    (tmp_path / "known.onnx").write_bytes(onnx_file(CONV, 2))
    assert not predict(tmp_path / "known.onnx", load_profile("raspberry-pi-4")).doubt()


@pytest.mark.parametrize(
    ("axes", "run", "pieces"),
    [((2,), 1, 60), ((-1,), 1, 60), ((1,), 5, 12), ((0, 1), 5, 12), ((1, 2), 1, 60), ((0,), 20, 3)],
)
def test_what_lies_behind_a_reduced_axis_is_reduced_together(
    axes: tuple[int, ...], run: int, pieces: int, tmp_path: Path
) -> None:
    text = "g (float[3,4,5] x) => (float y) { y = ReduceMax<keepdims=0>(x, axes) }"
    (found,) = onnx_ops_of(text, tmp_path, axes=np.array(axes, np.int64))
    assert (found.kind, found.depth, found.positions) == ("collapse", run, pieces)


def test_a_reduction_of_everything_reads_all_of_it_in_one_piece(tmp_path: Path) -> None:
    (found,) = onnx_ops_of("g (float[3,4,5] x) => (float y) { y = ReduceMax<keepdims=0>(x) }", tmp_path)
    assert (found.kind, found.shape, found.work) == ("collapse", (1, 1, 1, 60), 60)


def test_behind_integer_convolutions_channels_are_last_and_the_maximum_goes_across_them(
    tmp_path: Path,
) -> None:
    text = """g (float[1,16,40] x) => (float y) {
        xq = QuantizeLinear(x, scale, zero)  xr = DequantizeLinear(xq, scale, zero)
        wr = DequantizeLinear(w, scale, none)
        c = Conv(xr, wr)  cq = QuantizeLinear(c, scale, zero)  cr = DequantizeLinear(cq, scale, zero)
        m = ReduceMax<keepdims=0>(cr, axes)  mq = QuantizeLinear(m, scale, zero)
        y = DequantizeLinear(mq, scale, zero)
    }"""
    constants = {
        **{"scale": np.float32(0.1), "zero": np.uint8(128), "none": np.int8(0)},
        **{"axes": np.array([2], np.int64), "w": np.ones((24, 16, 1), np.int8)},
    }
    (found,) = (op for op in onnx_ops_of(text, tmp_path, **constants) if op.kind == "collapse")
    assert (found.precision, found.depth, found.work) == ("int8", 24, 24 * 40)


@pytest.mark.parametrize(("other", "tensors"), [("x", 2), ("z", 1), ("number", 1)])
def test_products_of_two_whole_tensors_are_told_from_those_with_a_number_for_each_channel(
    other: str, tensors: int, tmp_path: Path
) -> None:
    text = f"g (float[1,8,4,4] x, float[1,8,1,1] z) => (float[1,8,4,4] y) {{ y = Mul(x, {other}) }}"
    (found,) = onnx_ops_of(text, tmp_path, number=np.float32(2))
    assert (found.kind, found.outs, found.work) == ("mul", tensors, 128)


def kinds_of(text: str, folder: Path) -> list[str]:
    return [op.kind for op in onnx_ops_of(text, folder, w=SQUARE, scales=np.array([1, 1, 2, 2], np.float32))]


def test_float_images_are_taken_out_of_their_blocks_and_put_back_for_linear_resizing_only(
    tmp_path: Path,
) -> None:
    text = """g (float[1,16,8,8] x) => (float[1,16,16,16] y) {
        c = Conv(x, w)  r = Resize<mode="MODE">(c, , scales)  y = Conv(r, w)
    }"""
    assert kinds_of(text.replace("MODE", "nearest"), tmp_path) == ["conv", "nearest", "conv"]
    turned = kinds_of(text.replace("MODE", "linear"), tmp_path)
    assert turned == ["conv", "resize", "blocks", "conv", "blocks"]


def test_joined_images_stay_in_blocks_where_all_of_them_are(tmp_path: Path) -> None:
    text = """g (float[1,16,8,8] x, float[1,16,8,8] z) => (float[1,32,7,7] y) {
        c = Conv(x, w)  d = Conv(OTHER, w)  j = Concat<axis=1>(c, PART)
        y = MaxPool<kernel_shape=[2,2]>(j)
    }"""
    both = kinds_of(text.replace("OTHER", "z").replace("PART", "d"), tmp_path)
    assert both == ["conv", "conv", "move", "pool"]
    mixed = kinds_of(text.replace("OTHER", "z").replace("PART", "x"), tmp_path)
    assert mixed == ["conv", "conv", "move", "blocks", "pool", "blocks"]


@pytest.mark.parametrize(
    ("name", "out", "seen"),
    [("DepthToSpace", "1,4,8,8", (1, 2, 1, 256)), ("SpaceToDepth", "1,64,2,2", (1, 1, 1, 256))],
)
def test_channels_that_become_pixels_are_told_from_pixels_that_become_channels(
    name: str, out: str, seen: tuple[int, ...], tmp_path: Path
) -> None:
    text = f"g (float[1,16,4,4] x) => (float[{out}] y) {{ y = {name}<blocksize=2>(x) }}"
    (found,) = onnx_ops_of(text, tmp_path)
    assert (found.kind, found.shape) == ("shuffle", seen)
