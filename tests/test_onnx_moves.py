"""Moves of integers instead of floats, and shortcuts as one convolution: the same integers, by another way."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_converters.onnx.moves import MOST_CHANNELS, Shortcut, move_integers, shortcuts_as_convolutions
from edgekit_converters.onnx.rewrites import shift_to_uint8
from test_onnx_rewrites import graph, node_of, ops, rewritten, run

LAST = np.iinfo(np.int64).max


def between(body: str, shape: str, *, reader: str = "", **constants: object) -> ir.Model:
    """`d` is a dequantized input, `m` what is quantized again, on a grid of its own if `s2` is given."""
    scale = "s2" if "s2" in constants else "s"
    return graph(
        f"""g (float[{shape}] x) => (float[A,B,C,D] y) {{
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  {body}
            r = QuantizeLinear(m, {scale}, z)  y = DequantizeLinear(r, {scale}, z)  {reader}
        }}""",
        **constants,
    )


def values(*shape: int) -> np.ndarray:
    """Over the ends of the grid, too."""
    return np.random.default_rng(7).normal(size=shape).astype(np.float32) * 4


def pads(*widths: int) -> np.ndarray:
    return np.array(widths, np.int64)


def vector(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("m = Pad(d, w)", {"w": pads(0, 1, 0, 2, 0, 0, 1, 0)}),
        ("m = Pad(d, w, v)", {"w": pads(0, 1, 0, 2, 0, 0, 1, 0), "v": np.float32(-1.52)}),
        ("m = Pad(d, w, v)", {"w": pads(0, 0, 1, 1, 0, 0, 1, 1), "v": np.float32("-inf")}),
        ("m = Pad(d, w, v, a)", {"w": vector(1, 2), "v": np.float32(0.3), "a": vector(3)}),
        ("m = Pad(d, w, none, a)", {"w": vector(1, 2), "a": vector(2)}),
        ('m = Pad<mode="reflect">(d, w)', {"w": pads(0, 0, 1, 2, 0, 0, 1, 0)}),
        ('m = Pad<mode="edge">(d, w)', {"w": pads(0, 0, 1, 2, 0, 0, 1, 0)}),
        ("m = SpaceToDepth<blocksize=2>(d)", {}),
        ("m = Slice(d, i, e, a, t)", {"i": vector(1), "e": vector(4), "a": vector(3), "t": vector(2)}),
    ],
    ids=[
        "zeros",
        "a value",
        "minus infinity",
        "one axis",
        "zeros on an axis",
        "mirror",
        "edge",
        "blocks",
        "slice",
    ],
)
def test_a_move_on_one_grid_moves_integers(body: str, constants: dict[str, np.ndarray]) -> None:
    after = rewritten(between(body, "1,2,4,6", **constants), move_integers, values(1, 2, 4, 6))
    assert len(after.graph) == 3
    assert [o for o in ops(after) if o.endswith("Linear")] == ["QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize(
    "model",
    [
        between("m = Pad(d, w)", "1,2,4,6", w=pads(0, 1, 0, 0, 0, 0, 0, 0), s2=np.float32(0.06)),
        between("m = Neg(d)", "1,2,4,6"),
        between("m = Pad(d, w)", "1,2,4,6", reader="n = Neg(m)", w=pads(0, 1, 0, 0, 0, 0, 0, 0)),
        between("v = ReduceMin<keepdims=0>(d)  m = Pad(d, w, v)", "1,2,4,6", w=pads(0, 1, 0, 0, 0, 0, 0, 0)),
    ],
    ids=["to another grid", "that computes", "that others read", "of a value known at run time"],
)
def test_another_op_stays_between_floats(model: ir.Model) -> None:
    assert ops(rewritten(model, move_integers, values(1, 2, 4, 6))).count("QuantizeLinear") == 2


def option_a(
    channels: int, steps: tuple[int, int], before: int, behind: int, shape: str = "1,{},7,9"
) -> ir.Model:
    """The shortcut of He et al. 2016 as exporters write it: an axis at a time, then empty channels."""
    return between(
        "a1 = Slice(d, i, e, rows, t1)  q1 = QuantizeLinear(a1, s, z)  d1 = DequantizeLinear(q1, s, z)"
        "a2 = Slice(d1, i, e, columns, t2)  q2 = QuantizeLinear(a2, s, z)  d2 = DequantizeLinear(q2, s, z)"
        "m = Pad(d2, w)",
        shape.format(channels),
        i=vector(0), e=vector(LAST), rows=vector(2), columns=vector(-1), t1=vector(steps[0]),
        t2=vector(steps[1]), w=pads(0, before, 0, 0, 0, behind, 0, 0),
    )  # fmt: skip


def convolved(model: ir.Model) -> None:
    for rewrite in (shift_to_uint8, move_integers, shortcuts_as_convolutions):
        rewrite(model)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5), st.tuples(st.integers(1, 3), st.integers(1, 3)).filter(lambda s: s != (1, 1)),
    st.integers(0, 3), st.integers(0, 3),
)  # fmt: skip
def test_a_shortcut_is_one_convolution_of_the_same_integers(
    channels: int, steps: tuple[int, int], before: int, behind: int
) -> None:
    after = rewritten(option_a(channels, steps, before, behind), convolved, values(1, channels, 7, 9))
    assert not {"Slice", "Pad"} & set(ops(after))
    assert tuple(node_of(after, "Conv").attributes["strides"].as_ints()) == steps


def test_the_kernels_of_the_runtime_give_the_same_integers_at_both_ends_of_the_grid() -> None:
    import onnxruntime as ort

    model = option_a(16, (2, 2), 8, 8)
    x = values(1, 16, 7, 9) * 10
    (before,) = run(model, x=x)
    convolved(model)
    model.graph.sort()
    data = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    (after,) = session.run(None, {"x": x})
    assert {before.min(), before.max()} == {np.float32(-125 * 0.05), np.float32(130 * 0.05)}
    np.testing.assert_array_equal(after, before)


def test_a_free_batch_does_not_matter_and_free_channels_stay() -> None:
    after = rewritten(option_a(3, (2, 2), 1, 1, "N,{},7,9"), convolved, values(4, 3, 7, 9))
    assert "Conv" in ops(after)
    after = rewritten(option_a(3, (2, 2), 1, 1, "1,N,7,9"), convolved, values(1, 3, 7, 9))
    assert "Conv" not in ops(after)


def test_a_wide_shortcut_stays_a_move_of_integers() -> None:
    after = rewritten(
        option_a(MOST_CHANNELS + 1, (2, 2), 1, 1), convolved, values(1, MOST_CHANNELS + 1, 7, 9)
    )
    assert ops(after) == ["QuantizeLinear", "Slice", "Slice", "Pad", "DequantizeLinear"]


def sliced(**changed: np.ndarray) -> ir.Model:
    given_ = {"i": vector(0), "e": vector(LAST), "a": vector(2), "t": vector(2), **changed}
    return between("m = Slice(d, i, e, a, t)", "1,2,6,6", **given_)


@pytest.mark.parametrize(
    "model",
    [
        sliced(i=vector(1)),
        sliced(e=vector(4)),
        sliced(e=vector(-1)),
        sliced(a=vector(1)),
        sliced(t=vector(1)),
        sliced(i=vector(-1), e=vector(np.iinfo(np.int64).min), t=vector(-1)),
        between("m = Pad(d, w)", "1,2,6,6", w=pads(0, 1, 0, 0, 0, 1, 0, 0)),
    ],
    ids=[
        "from the second",
        "to the fourth",
        "but the last",
        "channels",
        "every one",
        "backwards",
        "only channels",
    ],
)
def test_what_is_no_shortcut_stays(model: ir.Model) -> None:
    assert "Conv" not in ops(rewritten(model, convolved, values(1, 2, 6, 6)))


def test_a_pad_of_ones_or_of_pixels_behind_a_slice_stays() -> None:
    for widths, value in ((pads(0, 1, 0, 0, 0, 0, 0, 0), 1.0), (pads(0, 1, 1, 0, 0, 0, 0, 0), 0.0)):
        model = between(
            "a1 = Slice(d, i, e, a, t)  q1 = QuantizeLinear(a1, s, z)  d1 = DequantizeLinear(q1, s, z)"
            "m = Pad(d1, w, v)",
            "1,2,6,6",
            i=vector(0), e=vector(LAST), a=vector(2), t=vector(2), w=widths, v=np.float32(value),
        )  # fmt: skip
        assert "Pad" in ops(rewritten(model, convolved, values(1, 2, 6, 6)))


def test_a_slice_that_others_read_serves_them_still() -> None:
    model = graph(
        """g (float[1,2,6,6] x) => (float[1,4,3,6] y, float[1,2,3,6] other) {
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
            a1 = Slice(d, i, e, a, t)  q1 = QuantizeLinear(a1, s, z)
            d1 = DequantizeLinear(q1, s, z)  other = DequantizeLinear(q1, s, z)
            m = Pad(d1, w)  r = QuantizeLinear(m, s, z)  y = DequantizeLinear(r, s, z)
        }""",
        i=vector(0), e=vector(LAST), a=vector(2), t=vector(2), w=pads(0, 1, 0, 0, 0, 1, 0, 0),
    )  # fmt: skip
    after = rewritten(model, convolved, values(1, 2, 6, 6))
    assert ops(after).count("Conv") == 1
    assert ops(after).count("Pad") == 1


def test_steps_add_up_in_any_order() -> None:
    first, second = Shortcut(rows=2, before=1), Shortcut(2, 3, 4, 5)
    assert first.then(second) == second.then(first) == Shortcut(4, 3, 5, 5)
