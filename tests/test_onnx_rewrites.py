"""Each rewrite of the ONNX graph: the form it brings, and the same results before and after."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from edgekit.stages.quantize.apply import convert
from edgekit_converters.onnx import export_onnx
from edgekit_converters.onnx.graph import array, is_weight
from edgekit_converters.onnx.rewrites import (
    clamp_in_integers,
    drop_relabelings,
    fold_casts,
    fold_pads,
    linear_as_gemm,
    mean_to_global_pool,
    plain_float_weights,
    push_reshapes_after_quantize,
    quantize_biases,
    shift_to_uint8,
)
from edgekit_runtime.backends.onnx_sessions import open_session, session_options
from quantized_programs import calibrated, program

RNG = np.random.default_rng(0)
GRID = {"s": np.float32(0.05), "z": np.int8(-3)}


def graph(text: str, **constants: object) -> ir.Model:
    """A model in ONNX's own text form, with initializers and inferred shapes."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {text}')
    for node in model.graph.node:  # the text form has no word for an input that is left out
        node.input[:] = ["" if name == "none" else name for name in node.input]
    for name, value in {**GRID, **constants}.items():
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def node_of(model: ir.Model, op: str) -> ir.Node:
    (found,) = [node for node in model.graph if node.op_type == op]
    return found


def run(model: ir.Model, **inputs: np.ndarray) -> list[np.ndarray]:
    """As written: none of ONNX Runtime's own rewrites."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    data = ir.serde.serialize_model(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, inputs)


def rewritten(model: ir.Model, rewrite, x: np.ndarray, *, atol: float = 0.0) -> ir.Model:
    """The model after the rewrite, which must compute the same."""
    before = run(model, x=x)
    after = ir.serde.deserialize_model(ir.serde.serialize_model(model))
    rewrite(after)
    after.graph.sort()
    onnx.checker.check_model(ir.serde.serialize_model(after), full_check=True)
    for a, b in zip(before, run(after, x=x), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b, a, rtol=0, atol=atol)
    assert [v.name for v in after.graph.outputs] == [v.name for v in model.graph.outputs]
    return after


def weights(*shape: int) -> dict[str, np.ndarray]:
    """`w`, `ws`, `wz`: int8 per channel of axis 0."""
    return {
        "w": RNG.integers(-127, 128, shape).astype(np.int8),
        "ws": RNG.uniform(0.01, 0.02, shape[0]).astype(np.float32),
        "wz": np.zeros(shape[0], np.int8),
    }


def image(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape or (1, 2, 5, 5)).astype(np.float32)


def test_zero_points_that_the_exporter_left_as_casts_become_constants() -> None:
    given = {**weights(3, 2, 3, 3), "wz": np.zeros(3, np.int64)}
    model = graph(
        """g (float[1,2,5,5] x) => (float[1,3,3,3] y) {
            wz8 = Cast<to=3>(wz)
            dw = DequantizeLinear<axis=0>(w, ws, wz8)
            y = Conv(x, dw)
        }""",
        **given,
    )
    assert ops(rewritten(model, fold_casts, image())) == ["DequantizeLinear", "Conv"]


def test_a_layer_of_more_outputs_than_the_exporter_folds_is_a_valid_file(tmp_path: Path) -> None:
    wide = program(lambda x, linear: torch.relu(linear(x)), nn.Linear(4, 9000), shape=(4,))
    export_onnx(convert(calibrated(wide)), tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx", session_options(1))
    x = image(1, 4)
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    (expected,) = wide.graph(torch.from_numpy(x))
    assert found.shape == (1, 9000)
    assert np.abs(found - expected.detach().numpy()).max() < 0.05 * np.abs(found).max()


def test_stored_weights_have_a_zero_point_each_though_they_are_alike(tmp_path: Path) -> None:
    twice = program(lambda x, a, b: b(torch.relu(a(x))), nn.Linear(4, 4), nn.Linear(4, 4), shape=(4,))
    export_onnx(convert(calibrated(twice)), tmp_path / "m.onnx")
    model = ir.load(tmp_path / "m.onnx")
    found = [
        node.inputs[2].name
        for node in model.graph
        if is_weight(node) and array(node.inputs[2]).dtype == np.int8
    ]
    assert len(found) == len(set(found)) == 2


def test_a_cast_of_what_is_computed_or_to_float_stays() -> None:
    model = graph(
        """g (float[1,2,5,5] x) => (float[1,2,5,5] y) {
            integers = Cast<to=3>(x)  back = Cast<to=1>(integers)
            real = Cast<to=1>(table)
            y = Add(back, real)
        }""",
        table=np.arange(5),
    )
    assert ops(rewritten(model, fold_casts, image())).count("Cast") == 3


PADDED = """g (float[1,2,5,5] x) => (float[1,3,N,M] y) {
    q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
    p = Pad<mode="MODE">(d, pads, value)
    qp = QuantizeLinear(p, s2, z)  dp = DequantizeLinear(qp, s2, z)
    dw = DequantizeLinear<axis=0>(w, ws, wz)
    y = Conv<pads=[1, 0, 0, 2]>(dp, dw)
}"""


def padded(pads: list[int], *, value: float = 0.0, mode: str = "constant", s2: float = 0.05) -> ir.Model:
    return graph(
        PADDED.replace("MODE", mode),
        pads=np.array(pads, np.int64),
        value=np.float32(value),
        s2=np.float32(s2),
        **weights(3, 2, 3, 3),
    )


def test_an_asymmetric_pad_of_zeros_becomes_the_convolutions_own() -> None:
    after = rewritten(padded([0, 0, 1, 0, 0, 0, 2, 3]), fold_pads, image())
    assert "Pad" not in ops(after)
    # Begins of both axes, then ends; the convolution's own are added.
    assert list(node_of(after, "Conv").attributes["pads"].as_ints()) == [2, 0, 2, 5]


@pytest.mark.parametrize(
    "model",
    [
        padded([0, 0, 1, 1, 0, 0, 1, 1], value=1.0),
        padded([0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"),
        padded([0, 0, 1, 1, 0, 0, 1, 1], s2=0.06),
        padded([0, 0, -1, 0, 0, 0, 0, 0]),
    ],
    ids=["of ones", "reflected", "between two grids", "that crops"],
)
def test_another_pad_stays(model: ir.Model) -> None:
    after = rewritten(model, fold_pads, image())
    assert "Pad" in ops(after)
    assert list(node_of(after, "Conv").attributes["pads"].as_ints()) == [1, 0, 0, 2]


def test_a_pad_of_channels_stays() -> None:
    model = graph(
        """g (float[1,2,5,5] x) => (float[1,3,N,M] y) {
            p = Pad(x, pads)  dw = DequantizeLinear<axis=0>(w, ws, wz)  y = Conv(p, dw)
        }""",
        pads=np.array([0, 0, 0, 0, 0, 1, 0, 0], np.int64),
        **weights(3, 3, 3, 3),
    )
    assert "Pad" in ops(rewritten(model, fold_pads, image()))


def test_a_pad_with_another_reader_serves_it_still() -> None:
    model = graph(
        """g (float[1,2,5,5] x) => (float[1,3,N,M] y, float[1,2,K,L] other) {
            p = Pad(x, pads)  dw = DequantizeLinear<axis=0>(w, ws, wz)  y = Conv(p, dw)  other = Neg(p)
        }""",
        pads=np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64),
        **weights(3, 2, 3, 3),
    )
    after = rewritten(model, fold_pads, image())
    assert list(node_of(after, "Conv").attributes["pads"].as_ints()) == [0, 0, 1, 1]
    assert ops(after).count("Pad") == 1


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_a_mean_over_both_spatial_axes_becomes_global_average_pooling(keep: int, axes: list[int]) -> None:
    shape = "1,2,1,1" if keep else "1,2"
    model = graph(
        f"g (float[1,2,5,5] x) => (float[{shape}] y) {{ y = ReduceMean<keepdims={keep}>(x, axes) }}",
        axes=np.array(axes, np.int64),
    )
    after = rewritten(model, mean_to_global_pool, image(), atol=1e-6)
    assert ops(after) == (["GlobalAveragePool"] if keep else ["GlobalAveragePool", "Squeeze"])


@pytest.mark.parametrize(
    ("shape", "out", "axes"), [("1,2,5,5", "1,2,5", [3]), ("1,2,5,5", "1,5", [1, 2]), ("2,5,5", "2", [1, 2])]
)
def test_another_mean_stays(shape: str, out: str, axes: list[int]) -> None:
    model = graph(
        f"g (float[{shape}] x) => (float[{out}] y) {{ y = ReduceMean<keepdims=0>(x, axes) }}",
        axes=np.array(axes, np.int64),
    )
    assert ops(rewritten(model, mean_to_global_pool, image(*map(int, shape.split(","))))) == ["ReduceMean"]


def test_the_squeeze_of_a_pooled_mean_goes_behind_the_quantization() -> None:
    model = graph(
        """g (float[1,2,5,5] x) => (float[1,2] y) {
            m = ReduceMean<keepdims=0>(x, axes)  q = QuantizeLinear(m, s, z)  y = DequantizeLinear(q, s, z)
        }""",
        axes=np.array([2, 3], np.int64),
    )
    after = rewritten(model, mean_to_global_pool, image())
    assert ops(after) == ["GlobalAveragePool", "QuantizeLinear", "Squeeze", "DequantizeLinear"]


LINEAR = """g (float[SHAPE] x) => (float[OUT] y) {
    q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
    dw = DequantizeLinear<axis=0>(w, ws, wz)  t = Transpose<perm=[1, 0]>(dw)
    BODY
}"""


@pytest.mark.parametrize("shape", ["4,6", "1,7,6", "2,3,5,6", "N,6", "N,7,6"])
@pytest.mark.parametrize("biased", [True, False])
def test_a_linear_layer_of_any_rank_becomes_gemm_with_its_bias(shape: str, biased: bool) -> None:
    body = "m = MatMul(d, t)  y = Add(m, b)" if biased else "y = MatMul(d, t)"
    out = shape.rsplit(",", 1)[0] + ",3"
    model = graph(
        LINEAR.replace("SHAPE", shape).replace("OUT", out).replace("BODY", body),
        b=np.float32([1, 2, 3]),
        **weights(3, 6),
    )
    x = image(*(4 if n == "N" else int(n) for n in shape.split(",")))
    after = rewritten(model, linear_as_gemm, x, atol=1e-5)
    gemm = node_of(after, "Gemm")
    assert len(gemm.inputs) == (3 if biased else 2)
    assert gemm.inputs[0].producer().op_type == gemm.inputs[1].producer().op_type == "DequantizeLinear"
    assert not {"MatMul", "Add", "Transpose"} & set(ops(after))


def test_a_product_of_two_activations_stays_a_product() -> None:
    model = graph(
        """g (float[2,3,3] x) => (float[2,3,3] y) {
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(d, d)
        }"""
    )
    assert "MatMul" in ops(rewritten(model, linear_as_gemm, image(2, 3, 3)))


def test_reshapes_go_behind_the_quantization() -> None:
    model = graph(
        """g (float[1,2,5,5] x) => (float[5,10] y) {
            a = Add(x, x)  t = Transpose<perm=[0, 2, 1, 3]>(a)  r = Reshape(t, to)
            q = QuantizeLinear(r, s, z)  y = DequantizeLinear(q, s, z)
        }""",
        to=np.array([5, 10], np.int64),
    )
    after = rewritten(model, push_reshapes_after_quantize, image())
    assert ops(after) == ["Add", "QuantizeLinear", "Transpose", "Reshape", "DequantizeLinear"]


def test_a_reshape_that_others_read_stays_where_it_is() -> None:
    model = graph(
        """g (float[1,2,5,5] x) => (float[50] y, float[50] raw) {
            a = Add(x, x)  r = Reshape(a, to)  raw = Neg(r)
            q = QuantizeLinear(r, s, z)  y = DequantizeLinear(q, s, z)
        }""",
        to=np.array([50], np.int64),
    )
    after = rewritten(model, push_reshapes_after_quantize, image())
    assert ops(after)[:2] == ["Add", "Reshape"]


CLAMPED = """g (float[1,N] x) => (int8[1,N] y) {
    a = Add(x, zero)  c = CLAMP  y = QuantizeLinear(c, s, z)
}"""
# float32 numbers of the sizes that scales and limits have.
SCALES = st.floats(2.0**-12, 4.0, width=32)
LIMITS = st.none() | st.floats(-64, 64, width=32) | st.sampled_from([0.0, 6.0, 1.0, -1.0])


def values_near(limits: list[float], scale: float) -> np.ndarray:
    """All steps of the grid and their ties, the limits, and their neighbours."""
    steps = np.arange(-140, 140, 0.5, dtype=np.float32) * np.float32(scale)
    near = [np.float32(v) for v in limits]
    around = [np.nextafter(v, np.float32(d)) for v in near for d in (-np.inf, np.inf)]
    return np.concatenate([steps, near, around, [0, 1e3, -1e3]]).astype(np.float32)[None]


@settings(max_examples=150)
@given(SCALES, st.integers(-128, 127), LIMITS, LIMITS)
# A tie in float32, which the runtime divides in, and none in float64.
@example(0.24416780471801758, 0, None, 23.806360244750977)
@example(0.05150214582681656, 0, 0.0, 6.0)
def test_a_clip_of_integers_is_the_clip_of_floats_then_rounded(
    scale: float, zero_point: int, low: float | None, high: float | None
) -> None:
    assume(low is None or high is None or low <= high)
    names = ("none" if low is None else "low", "none" if high is None else "high")
    text = CLAMPED.replace("CLAMP", f"Clip(a, {names[0]}, {names[1]})")
    model = graph(
        text,
        zero=np.float32(0),
        s=np.float32(scale),
        z=np.int8(zero_point),
        low=np.float32(low or 0),
        high=np.float32(high or 0),
    )
    x = values_near([v for v in (low, high) if v is not None], scale)
    after = rewritten(model, clamp_in_integers, x)
    assert ops(after) == ["Add", "QuantizeLinear", "Clip"]


@settings(max_examples=60)
@given(SCALES, st.integers(-128, 127))
def test_a_relu_of_integers_is_the_relu_of_floats_then_rounded(scale: float, zero_point: int) -> None:
    model = graph(
        CLAMPED.replace("CLAMP", "Relu(a)"), zero=np.float32(0), s=np.float32(scale), z=np.int8(zero_point)
    )
    after = rewritten(model, clamp_in_integers, values_near([0.0], scale))
    assert ops(after) == ["Add", "QuantizeLinear", "Clip"]


def test_a_clamp_that_others_read_stays() -> None:
    model = graph(
        """g (float[1,4] x) => (float[1,4] y, float[1,4] raw) {
            a = Add(x, x)  c = Relu(a)  raw = Neg(c)
            q = QuantizeLinear(c, s, z)  y = DequantizeLinear(q, s, z)
        }"""
    )
    assert "Relu" in ops(rewritten(model, clamp_in_integers, image(1, 4)))


@settings(max_examples=60)
@given(SCALES, st.integers(-128, 127), st.floats(2.0**-7, 8.0, width=32), st.floats(0.99, 1.01))
def test_a_rescaling_that_is_dropped_changed_no_integer(
    scale: float, zero_point: int, factor: float, drift: float
) -> None:
    constant_scale = np.float32(factor / 127)
    product = np.float32(scale) * np.float32(127 * constant_scale)
    model = graph(
        """g (float[1,N] x) => (float[1,N] y) {
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
            dc = DequantizeLinear(c, cs, cz)  m = Mul(d, dc)
            r = QuantizeLinear(m, s2, z)  y = DequantizeLinear(r, s2, z)
        }""",
        s=np.float32(scale),
        z=np.int8(zero_point),
        c=np.int8(127),
        cs=constant_scale,
        cz=np.int8(0),
        s2=np.float32(product * drift),
    )
    after = ir.serde.deserialize_model(ir.serde.serialize_model(model))
    drop_relabelings(after)
    if "Mul" in ops(after):
        assert abs(drift - 1) > 1e-4
        return
    x = values_near([], scale)
    assert np.array_equal(run(after, x=x)[0], run(model, x=x)[0])


@settings(max_examples=60)
@given(SCALES, st.integers(-100, 100), st.integers(-120, 120), st.floats(-0.6, 0.6))
def test_a_shift_that_is_dropped_changed_no_integer(
    scale: float, zero_point: int, steps: int, off: float
) -> None:
    assume(steps != 0 and -128 <= zero_point - steps <= 127)
    number = np.float32(scale) * (steps + off)
    model = graph(
        """g (float[1,N] x) => (float[1,N] y) {
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
            dc = DequantizeLinear(c, cs, cz)  m = Add(d, dc)
            r = QuantizeLinear(m, s, z2)  y = DequantizeLinear(r, s, z2)
        }""",
        s=np.float32(scale),
        z=np.int8(zero_point),
        z2=np.int8(zero_point - steps),
        c=np.int8(np.sign(number) * 127),
        cs=np.float32(max(abs(number), 1e-30) / 127),
        cz=np.int8(0),
    )
    after = ir.serde.deserialize_model(ir.serde.serialize_model(model))
    drop_relabelings(after)
    if "Add" in ops(after):
        assert abs(off) > 0.4
        return
    x = values_near([], scale)
    assert np.array_equal(run(after, x=x)[0], run(model, x=x)[0])


def conv_model(bias: np.ndarray) -> ir.Model:
    return graph(
        """g (float[1,2,5,5] x) => (float[1,3,3,3] y) {
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
            dw = DequantizeLinear<axis=0>(w, ws, wz)  y = Conv(d, dw, b)
        }""",
        b=bias,
        **weights(3, 2, 3, 3),
    )


def test_a_bias_on_the_grid_becomes_int32_of_input_times_weight_scale() -> None:
    steps = (
        np.float64(GRID["s"])
        * conv_model(np.zeros(3, np.float32)).graph.initializers["ws"].const_value.numpy()
    )
    model = conv_model(np.zeros(3, np.float32))
    steps = np.float64(GRID["s"]) * model.graph.initializers["ws"].const_value.numpy()
    bias = (np.array([7, -1234, 0]) * steps).astype(np.float32)
    model.graph.initializers["b"].const_value = ir.tensor(bias, name="b")
    after = rewritten(model, quantize_biases, image(), atol=1e-6)
    dq = node_of(after, "Conv").inputs[2].producer()
    assert dq.op_type == "DequantizeLinear"
    assert dq.inputs[0].const_value.numpy().tolist() == [7, -1234, 0]
    assert dq.inputs[0].const_value.numpy().dtype == np.int32
    np.testing.assert_allclose(dq.inputs[1].const_value.numpy(), steps.astype(np.float32), rtol=1e-7)


def test_a_bias_beyond_int32_is_clipped_not_wrapped() -> None:
    model = conv_model(np.array([1e9, -1e9, 0], np.float32))
    quantize_biases(model)
    integers = node_of(model, "Conv").inputs[2].producer().inputs[0].const_value.numpy()
    assert integers.tolist() == [2**31 - 1, -(2**31), 0]


def test_the_bias_of_a_float_convolution_stays_float() -> None:
    model = graph(
        """g (float[1,2,5,5] x) => (float[1,3,3,3] y) {
            dw = DequantizeLinear<axis=0>(w, ws, wz)  y = Conv(x, dw, b)
        }""",
        b=np.float32([1, 2, 3]),
        **weights(3, 2, 3, 3),
    )
    after = rewritten(model, quantize_biases, image())
    assert node_of(after, "Conv").inputs[2].producer() is None


def test_int8_weights_of_a_float_op_become_cast_and_mul_of_constants() -> None:
    model = graph(
        """g (float[1,2,5,5] x) => (float[1,3,3,3] y) {
            dw = DequantizeLinear<axis=0>(w, ws, wz)  y = Conv(x, dw)
        }""",
        **weights(3, 2, 3, 3),
    )
    after = rewritten(model, plain_float_weights, image(), atol=1e-6)
    assert ops(after) == ["Cast", "Mul", "Conv"]
    assert node_of(after, "Cast").inputs[0].const_value.numpy().dtype == np.int8


def test_weights_of_integer_ops_stay_dequantized() -> None:
    after = rewritten(conv_model(np.zeros(3, np.float32)), plain_float_weights, image())
    assert "Cast" not in ops(after)


def test_activations_become_uint8_with_the_same_values_and_weights_stay_int8() -> None:
    model = graph(
        """g (float[1,2,5,5] x) => (float[1,3,3,3] y) {
            q = QuantizeLinear(x, s, z)  k = Clip(q, low)  d = DequantizeLinear(k, s, z)
            dw = DequantizeLinear<axis=0>(w, ws, wz)  c = Conv(d, dw)
            qc = QuantizeLinear(c, s2, z2)  y = DequantizeLinear(qc, s2, z2)
        }""",
        low=np.int8(-3),
        s2=np.float32(0.3),
        z2=np.int8(127),
        **weights(3, 2, 3, 3),
    )
    after = rewritten(model, shift_to_uint8, image())
    points = [n.inputs[2].const_value.numpy() for n in after.graph if n.op_type.endswith("eLinear")]
    assert {p.dtype for p in points if p.ndim == 0} == {np.dtype(np.uint8)}
    assert sorted({int(p) for p in points if p.ndim == 0}) == [125, 255]
    assert after.graph.initializers["w"].const_value.numpy().dtype == np.int8
    assert node_of(after, "Clip").inputs[1].const_value.numpy() == 125


def test_a_constant_on_the_grid_is_shifted_with_its_zero_point() -> None:
    model = graph(
        """g (float[1,4] x) => (float[1,4] y) {
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
            dk = DequantizeLinear(k, s, z)  y = Add(d, dk)
        }""",
        k=np.int8([[-128, 0, 5, 127]]),
    )
    after = rewritten(model, shift_to_uint8, image(1, 4))
    assert any(
        np.array_equal(v.const_value.numpy(), [[0, 128, 133, 255]]) for v in after.graph.initializers.values()
    )
