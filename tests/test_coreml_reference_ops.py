"""The reference evaluator's ops against coremltools' own evaluation of constants, op by op."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_converters.coreml.quiet import import_coremltools
from edgekit_converters.coreml_reference.ops.table import OPS

coremltools = pytest.importorskip("coremltools") and import_coremltools()

RNG = np.random.default_rng(7)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.25)
UNIT = np.tanh(X).astype(np.float32)
Y = RNG.normal(size=(3, 1)).astype(np.float32)
N = RNG.integers(-9, 9, size=(2, 3, 4)).astype(np.int32)
IMAGE = RNG.normal(size=(1, 4, 3, 2)).astype(np.float32)
P = X > 0
Q = X > 0.5
I8 = RNG.integers(-128, 127, size=(4, 3)).astype(np.int8)
f32, i32 = np.float32, np.int32

CASES: list[tuple[str, dict[str, Any]]] = [
    *((op, {"x": X}) for op in ("abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "relu")),
    *((op, {"x": X}) for op in ("relu6", "round", "sigmoid", "sign", "sin", "sinh", "softplus", "softsign")),
    *((op, {"x": X}) for op in ("square", "tan", "tanh", "identity", "softmax", "reduce_log_sum_exp")),
    *((op, {"x": UNIT}) for op in ("acos", "asin", "atanh")),
    *((op, {"x": POSITIVE}) for op in ("sqrt", "rsqrt", "log", "inverse", "reduce_log_sum", "reduce_prod")),
    *((op, {"x": POSITIVE, "epsilon": f32(0.5)}) for op in ("rsqrt", "log", "inverse")),
    *((op, {"x": X, "y": Y}) for op in ("add", "sub", "mul", "maximum", "minimum", "real_div")),
    *((op, {"x": X, "y": Y}) for op in ("equal", "not_equal", "greater", "greater_equal", "less")),
    ("less_equal", {"x": X, "y": Y}),
    *((op, {"x": X, "y": POSITIVE}) for op in ("floor_div", "mod")),
    *((op, {"x": N, "y": i32(3)}) for op in ("floor_div", "mod", "add", "greater")),
    *((op, {"x": P, "y": Q}) for op in ("logical_and", "logical_or", "logical_xor")),
    ("logical_not", {"x": P}),
    ("pow", {"x": POSITIVE, "y": X}),
    ("threshold", {"x": X, "alpha": f32(0.1)}),
    ("clip", {"x": X, "alpha": f32(-0.3), "beta": f32(0.4)}),
    ("select", {"cond": P, "a": X, "b": -X}),
    *(("cast", {"x": X * 3, "dtype": dtype}) for dtype in ("int32", "bool", "fp32")),
    ("cast", {"x": N, "dtype": "fp32"}),
    *((op, {"x": X, "alpha": f32(0.3)}) for op in ("elu", "leaky_relu", "thresholded_relu")),
    *(
        (op, {"x": X, "alpha": f32(0.3), "beta": f32(0.6)})
        for op in ("clamped_relu", "linear_activation", "scaled_tanh", "sigmoid_hard")
    ),
    *(("gelu", {"x": X, "mode": m}) for m in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    ("prelu", {"x": IMAGE, "alpha": np.array([0.1, 0.2, 0.3, 0.4], f32)}),
    ("softplus_parametric", {"x": IMAGE, "alpha": np.ones(4, f32), "beta": np.full(4, 0.5, f32)}),
    ("softmax", {"x": X, "axis": 1}),
    ("linear", {"x": X, "weight": RNG.normal(size=(5, 4)).astype(f32), "bias": np.ones(5, f32)}),
    ("matmul", {"x": X, "y": X, "transpose_y": True}),
    ("matmul", {"x": X, "y": X, "transpose_x": True}),
    ("einsum", {"values": (IMAGE, IMAGE.transpose(0, 3, 2, 1)), "equation": "nchw,nwhu->nchu"}),
    *(
        (op, {"x": POSITIVE, "axes": axes, "keep_dims": keep})
        for op in (
            "reduce_l1_norm", "reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp", "reduce_max",
            "reduce_mean", "reduce_min", "reduce_prod", "reduce_sum", "reduce_sum_square",
        )
        for axes, keep in (([1], False), ([0, -1], True))
    ),
    *(
        (op, {"x": X, "axis": 1, "keep_dims": keep})
        for op in ("reduce_argmax", "reduce_argmin")
        for keep in (False, True)
    ),
    ("reduce_sum", {"x": N, "axes": [1]}),
    ("l2_norm", {"x": X}),
    ("layer_norm", {"x": X, "axes": [-1], "gamma": np.full(4, 2, f32), "beta": np.ones(4, f32)}),
    ("layer_norm", {"x": X, "axes": [1], "gamma": np.full(3, 2, f32), "beta": np.ones(3, f32)}),
    ("band_part", {"x": X, "lower": 0, "upper": -1}),
    ("band_part", {"x": X, "lower": 1, "upper": 1}),
    ("concat", {"values": (X, X * 2), "axis": 1}),
    ("stack", {"values": (X, X * 2), "axis": 2}),
    ("split", {"x": X, "num_splits": 2, "axis": -1}),
    ("split", {"x": X, "split_sizes": [1, 3], "axis": 2}),
    ("expand_dims", {"x": X, "axes": [0, -1]}),
    ("squeeze", {"x": Y, "axes": [1]}),
    ("reshape", {"x": X, "shape": [4, -1]}),
    ("reshape", {"x": X, "shape": [1, -1, 0]}),
    ("reverse", {"x": X, "axes": [0, 2]}),
    ("shape", {"x": X}),
    ("slice_by_size", {"x": X, "begin": [0, 1, 0], "size": [1, -1, 2]}),
    ("slice_by_index", {"x": X, "begin": [0, 1, 1], "end": [2, 3, 4], "stride": [1, 1, 2]}),
    (
        "slice_by_index",
        {
            "x": X, "begin": [-1, 0, 0], "end": [0, 0, -1],
            "begin_mask": [False, True, True], "end_mask": [False, True, False],
            "squeeze_mask": [True, False, False],
        },
    ),
    (
        "slice_by_index",
        {
            "x": X, "begin": [0, 2, -1], "end": [2, 0, -4], "stride": [1, -1, -2],
            "begin_mask": [True, False, False], "end_mask": [True, True, False],
        },
    ),
    ("tile", {"x": X, "reps": [2, 1, 3]}),
    ("transpose", {"x": X, "perm": [2, 0, -2]}),
    *(("pad", {"x": X, "pad": [1, 2, 0, 1], "mode": m}) for m in ("constant", "reflect", "replicate")),
    ("pad", {"x": X, "pad": [1, 2], "constant_val": f32(0.5)}),
    ("argsort", {"x": X, "axis": 1}),
    ("argsort", {"x": X, "axis": -1, "ascending": True}),
    ("cumsum", {"x": X, "axis": 1}),
    ("cumsum", {"x": X, "axis": 1, "reverse": True}),
    ("fill", {"shape": [2, 3], "value": f32(0.5)}),
    ("fill_like", {"ref_tensor": X, "value": f32(0.5)}),
    ("gather", {"x": X, "indices": np.array([[1, 0], [1, 1]], i32), "axis": 0}),
    ("gather", {"x": X, "indices": np.array([[1, 0], [1, 2]], i32), "axis": 1, "batch_dims": 1}),
    ("gather_along_axis", {"x": X, "indices": np.array([[[1, 0, 2, 2]], [[0, 0, 1, 2]]], i32), "axis": 1}),
    ("non_zero", {"x": (X > 0.5).astype(f32)}),
    ("range_1d", {"start": i32(1), "end": i32(9), "step": i32(3)}),
    ("topk", {"x": X, "k": 2, "axis": 1}),
    ("topk", {"x": X, "k": 2, "axis": -1, "ascending": True}),
    ("quantize", {"input": X, "scale": f32(0.013), "zero_point": np.int8(-7), "output_dtype": "int8"}),
    ("quantize", {"input": X * 9, "scale": f32(0.02), "zero_point": np.uint8(3), "output_dtype": "uint8"}),
    ("quantize", {"input": X, "scale": np.array([0.01, 0.02, 0.03], f32), "axis": 1, "output_dtype": "int8"}),
]  # fmt: skip


def _evaluated(op: str, arguments: dict[str, Any]) -> list[np.ndarray]:
    """What coremltools' builder computes when every argument is a constant."""
    from coremltools.converters.mil.mil import Builder, Function

    with Function({}, opset_version=coremltools.target.iOS17):
        # Some of its evaluations write into their arguments.
        made = getattr(Builder, op)(**copy.deepcopy(arguments))
    return [
        np.asarray(v.val) for v in (made if isinstance(made, (tuple, list)) else [made]) if v.val is not None
    ]


def _ours(op: str, arguments: dict[str, Any]) -> list[np.ndarray]:
    def given_as_tensor(value: Any) -> Any:
        if isinstance(value, tuple):
            return [torch.from_numpy(v) for v in value]
        return value if isinstance(value, str) else torch.as_tensor(value)

    result = OPS[op](**{k: given_as_tensor(v) for k, v in arguments.items()})
    return [r.numpy() for r in (result if isinstance(result, (tuple, list)) else [result])]


@pytest.mark.parametrize(("op", "arguments"), CASES, ids=[f"{op}-{i}" for i, (op, _) in enumerate(CASES)])
def test_op_equals_what_coremltools_computes(op: str, arguments: dict[str, Any]) -> None:
    expected, got = _evaluated(op, arguments), _ours(op, arguments)
    assert expected, f"coremltools does not evaluate {op}"
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine.astype(np.float64), theirs.astype(np.float64), rtol=2e-5, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    scale=st.floats(2**-12, 64.0, width=32),
    zero_point=st.integers(-128, 127),
)
def test_quantize_is_within_half_a_step_or_saturated(
    values: list[float], scale: float, zero_point: int
) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    step, zero = torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=torch.int8)
    q = OPS["quantize"](input=x, scale=step, zero_point=zero, output_dtype="int8")
    assert q.dtype == torch.int8
    exact = x.double() / float(step) + zero_point
    inside = (exact >= -128) & (exact <= 127)
    # A product with the rounded reciprocal may err by 2^-22 of the quotient.
    bound = 0.5 + exact.abs() * 2**-22 + 2**-18
    assert torch.all((q.double() - exact).abs()[inside] <= bound[inside])
    assert torch.all(q[exact > 127.5] == 127)
    assert torch.all(q[exact < -128.5] == -128)
    back = OPS["dequantize"](input=q, scale=step, zero_point=zero)
    assert torch.equal(OPS["quantize"](input=back, scale=step, zero_point=zero, output_dtype="int8"), q)


def test_quantize_rounds_half_to_even_and_gives_nan_the_zero_point() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, math.inf, -math.inf, math.nan])
    q = OPS["quantize"](
        input=x, scale=torch.tensor(1.0), zero_point=torch.tensor(5, dtype=torch.int8), output_dtype="int8"
    )
    assert q.tolist() == [5, 7, 7, 5, 3, 127, -128, 5]


def test_dequantize_follows_its_axis() -> None:
    scale = torch.tensor([0.5, 2.0, 4.0])
    zero = torch.tensor([0, 1, -1], dtype=torch.int8)
    got = OPS["dequantize"](input=torch.from_numpy(I8), scale=scale, zero_point=zero, axis=torch.tensor(1))
    assert np.array_equal(got.numpy(), (I8.astype(f32) - zero.numpy()) * scale.numpy())


def test_constexpr_weights_equal_their_dequantized_values() -> None:
    from edgekit_converters.coreml_reference.ops import quantization

    got = quantization.constexpr_affine_dequantize(
        torch.from_numpy(I8),
        torch.zeros(4, dtype=torch.int8),
        torch.tensor([1.0, 2.0, 3.0, 4.0]),
        torch.tensor(0),
    )
    assert np.array_equal(got.numpy(), I8 * np.array([[1], [2], [3], [4]], f32))


SCATTERED = {
    "update": lambda old, new: new,
    "add": lambda old, new: old + new,
    "sub": lambda old, new: old - new,
    "mul": lambda old, new: old * new,
    "div": lambda old, new: old / new,
    "max": np.maximum,
    "min": np.minimum,
}


@pytest.mark.parametrize("mode", SCATTERED)
def test_scatter_merges_by_its_mode(mode: str) -> None:
    data, updates, rows = torch.from_numpy(X[0]), torch.from_numpy(POSITIVE[0, :2]), torch.tensor([2, 0])
    expected = X[0].copy()
    expected[[2, 0]] = SCATTERED[mode](expected[[2, 0]], POSITIVE[0, :2])
    whole = OPS["scatter"](data=data, indices=rows, updates=updates, axis=torch.tensor(0), mode=mode)
    tuples = OPS["scatter_nd"](data=data, indices=rows.unsqueeze(-1), updates=updates, mode=mode)
    np.testing.assert_allclose(whole.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(tuples.numpy(), expected, rtol=1e-6)


def test_block_ops_undo_each_other() -> None:
    x, block = torch.arange(2 * 4 * 6 * 4, dtype=torch.float32).reshape(2, 4, 6, 4), torch.tensor(2)
    assert torch.equal(
        OPS["depth_to_space"](x=OPS["space_to_depth"](x=x, block_size=block), block_size=block), x
    )
    assert torch.equal(
        OPS["pixel_shuffle"](x=OPS["pixel_unshuffle"](x=x, downscale_factor=block), upscale_factor=block), x
    )
    shape, none = torch.tensor([3, 2]), torch.zeros((2, 2), dtype=torch.int32)
    there = OPS["space_to_batch"](x=x, block_shape=shape, paddings=none)
    assert there.shape == (12, 4, 2, 2)
    assert torch.equal(OPS["batch_to_space"](x=there, block_shape=shape, crops=none), x)


@pytest.mark.parametrize(
    ("mode", "size", "grid"),
    [
        # The examples of MIL's resize_bilinear for an input of two points, 0 and 1.
        ("UNALIGN_CORNERS", 5, [0.0, 0.1, 0.5, 0.9, 1.0]),
        ("STRICT_ALIGN_CORNERS", 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("ALIGN_CORNERS", 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("ALIGN_CORNERS", 1, [0.5]),
        ("DEFAULT", 5, [0.0, 0.4, 0.8, 1.0, 1.0]),
        ("OFFSET_CORNERS", 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
    ],
)
def test_resize_samples_where_mil_says(mode: str, size: int, grid: list[float]) -> None:
    x = torch.tensor([[[0.0, 1.0]]])
    one, wide = torch.tensor(1), torch.tensor(size)
    got = OPS["resize_bilinear"](x=x, target_size_height=one, target_size_width=wide, sampling_mode=mode)
    np.testing.assert_allclose(got.numpy().ravel(), grid, atol=1e-6)
    same = OPS["resize"](x=x, shape=torch.tensor([0, size]), resized_dims=torch.tensor(2), sampling_mode=mode)
    assert torch.equal(same, got)


@pytest.mark.parametrize("pad_type", ["same", "same_lower"])
def test_same_padding_puts_the_odd_element_where_its_name_says(pad_type: str) -> None:
    x, weight = torch.arange(1.0, 6.0).reshape(1, 1, 5), torch.tensor([[[1.0, 10.0]]])
    got = OPS["conv"](x=x, weight=weight, pad_type=pad_type)
    expected = [21, 32, 43, 54, 5] if pad_type == "same" else [10, 21, 32, 43, 54]
    assert got.ravel().tolist() == expected


def test_one_hot_leaves_out_what_lies_outside() -> None:
    got = OPS["one_hot"](
        indices=torch.tensor([1, -1, 3], dtype=torch.int32), one_hot_vector_size=torch.tensor(3)
    )
    assert got.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_exclusive_cumsum_starts_at_zero() -> None:
    got = OPS["cumsum"](x=torch.tensor([1.0, 2.0, 3.0]), axis=torch.tensor(0), exclusive=torch.tensor(True))
    assert got.tolist() == [0.0, 1.0, 3.0]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_lstm_follows_torch_in_either_direction(direction: str) -> None:
    torch.manual_seed(0)
    net = torch.nn.LSTM(3, 4)
    x, order = torch.randn(5, 1, 3), [0, 1, 3, 2]
    weights = [p.detach().reshape(4, 4, *p.shape[1:])[order].reshape(p.shape) for p in net.parameters()]
    turned = x.flip(0) if direction == "reverse" else x
    with torch.no_grad():
        expected, (h, c) = net(turned)
    zeros = torch.zeros(1, 4)
    y, h_last, c_last = OPS["lstm"](
        x=x, initial_h=zeros, initial_c=zeros, weight_ih=weights[0], weight_hh=weights[1],
        bias=weights[2] + weights[3], direction=direction, output_sequence=torch.tensor(True),
    )  # fmt: skip
    expected = expected.flip(0) if direction == "reverse" else expected
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(h_last, h[0])
    torch.testing.assert_close(c_last, c[0])


def test_interleaved_concat_takes_turns() -> None:
    a, b = torch.tensor([[1, 2]]), torch.tensor([[3, 4]])
    got = OPS["concat"](values=[a, b], axis=torch.tensor(-1), interleave=torch.tensor(True))
    assert got.tolist() == [[1, 3, 2, 4]]


def test_gather_nd_takes_slices_at_tuples_within_each_batch() -> None:
    x, tuples = torch.from_numpy(X), torch.tensor([[0, 1], [1, 2]])
    assert np.array_equal(OPS["gather_nd"](x=x, indices=tuples).numpy(), X[[0, 1], [1, 2]])
    rows = OPS["gather_nd"](x=x, indices=torch.tensor([[[2]], [[0]]]), batch_dims=torch.tensor(1))
    assert np.array_equal(rows.numpy(), np.stack([X[0, [2]], X[1, [0]]]))


def test_topk_gives_equal_elements_in_their_order() -> None:
    values, places = OPS["topk"](x=torch.tensor([1.0, 3.0, 3.0, 2.0]), k=torch.tensor(3))
    assert (values.tolist(), places.tolist()) == ([3.0, 3.0, 2.0], [1, 2, 3])
