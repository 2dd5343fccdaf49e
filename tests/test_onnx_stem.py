"""The first convolution on blocks of pixels: the same integers, by another way."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgekit_converters.onnx.graph import array
from edgekit_converters.onnx.rewrites import shift_to_uint8
from edgekit_converters.onnx.stem import blocks_of, fill_channels, gather_blocks
from test_onnx_rewrites import graph, node_of, ops, rewritten, run, weights

RNG = np.random.default_rng(3)


def stem(
    shape: tuple[int, ...], kernel: tuple[int, int], attributes: str, *, out: int = 5, reader: str = ""
) -> ir.Model:
    dims = ",".join(str(n) for n in shape)
    return graph(
        f"""g (float[{dims}] x) => (float[A,B,C,D] y) {{
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
            dw = DequantizeLinear<axis=0>(w, ws, wz)  c = Conv<{attributes}>(d, dw, b)
            r = QuantizeLinear(c, so, z)  y = DequantizeLinear(r, so, z)  {reader}
        }}""",
        so=np.float32(0.3),
        b=RNG.normal(size=out).astype(np.float32),
        **weights(out, shape[1], *kernel),
    )


def gathered(model: ir.Model) -> ir.Model:
    after = ir.serde.deserialize_model(ir.serde.serialize_model(model))
    gather_blocks(after)
    return after


@settings(max_examples=60)
@given(
    st.integers(2, 4), st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(*[st.integers(0, 3)] * 4), st.tuples(st.integers(2, 6), st.integers(2, 6)), st.integers(1, 4),
)  # fmt: skip
def test_every_output_is_the_same_number(
    stride: int, kernel: tuple[int, int], pads: tuple[int, ...], blocks: tuple[int, int], channels: int
) -> None:
    size = [n * stride for n in blocks]
    assume(all(size[i] + pads[i] + pads[i + 2] >= kernel[i] for i in range(2)))
    attributes = f"strides=[{stride},{stride}], pads=[{','.join(map(str, pads))}]"
    model = stem((1, channels, *size), kernel, attributes)
    x = RNG.normal(size=(1, channels, *size)).astype(np.float32) * 4

    after = gathered(model)

    assert np.array_equal(run(after, x=x)[0], run(model, x=x)[0])
    if "SpaceToDepth" in ops(after):
        assert node_of(after, "Conv").attributes["strides"].as_ints() == (1, 1)


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((3, 3), "strides=[2,2], pads=[1,1,1,1]"),
        ((3, 3), "strides=[2,2], pads=[0,0,1,1]"),
        ((7, 7), "strides=[2,2], pads=[3,3,3,3]"),
        ((4, 4), "strides=[4,4]"),
        ((3, 3), 'strides=[2,2], pads=[1,1,1,1], dilations=[1,1], group=1, auto_pad="NOTSET"'),
    ],
)
def test_stems_of_common_networks_are_gathered(kernel: tuple[int, int], attributes: str) -> None:
    assert "SpaceToDepth" in ops(gathered(stem((1, 3, 16, 16), kernel, attributes)))


@pytest.mark.parametrize(
    ("shape", "kernel", "attributes", "why"),
    [
        ((1, 3, 15, 16), (3, 3), "strides=[2,2], pads=[1,1,1,1]", "an odd side"),
        ((1, 3, 16, 16), (3, 3), "strides=[1,1]", "no stride"),
        ((1, 3, 16, 16), (3, 3), "strides=[2,1]", "two strides"),
        ((1, 3, 16, 16), (3, 3), "strides=[2,2], dilations=[2,2]", "dilation"),
        ((1, 8, 16, 16), (3, 3), "strides=[2,2]", "many channels"),
        ((1, 3, 16, 16), (3, 3), 'strides=[2,2], auto_pad="SAME_UPPER"', "padding by name"),
        ((1, 3, 16, 16), (1, 1), "strides=[2,2]", "four times the work"),
    ],
)
def test_what_gains_nothing_or_does_not_fit_stays(
    shape: tuple[int, ...], kernel: tuple[int, int], attributes: str, why: str
) -> None:
    assert "SpaceToDepth" not in ops(gathered(stem(shape, kernel, attributes))), why


def test_an_image_that_others_read_too_stays() -> None:
    model = stem((1, 3, 16, 16), (3, 3), "strides=[2,2], pads=[1,1,1,1]", reader="unused = Relu(d)")
    model.graph.outputs.append(next(n for n in model.graph if n.op_type == "Relu").outputs[0])

    assert "SpaceToDepth" not in ops(gathered(model))


def test_a_free_side_stays_and_a_free_batch_does_not_matter() -> None:
    free = stem((1, 3, 16, 16), (3, 3), "strides=[2,2], pads=[1,1,1,1]")
    free.graph.inputs[0].shape = ir.Shape(["batch", 3, "height", 16])
    batch = stem((1, 3, 16, 16), (3, 3), "strides=[2,2], pads=[1,1,1,1]")
    batch.graph.inputs[0].shape = ir.Shape(["batch", 3, 16, 16])

    assert "SpaceToDepth" not in ops(gathered(free))
    assert "SpaceToDepth" in ops(gathered(batch))


@given(st.integers(1, 40), st.integers(1, 9), st.integers(2, 5), st.integers(0, 4), st.integers(0, 4))
def test_blocks_hold_every_tap_of_every_output(
    size: int, kernel: int, stride: int, begin: int, end: int
) -> None:
    assume(size + begin + end >= kernel)
    axis = blocks_of(size, kernel, stride, begin, end)
    if axis is None:
        return
    outputs = (size + begin + end - kernel) // stride + 1
    assert (size // stride + axis.begin + axis.end - axis.kernel) + 1 == outputs
    assert 0 <= axis.offset < stride
    assert axis.offset + kernel <= axis.kernel * stride
    # The first tap of the first output is where it was.
    assert axis.offset - axis.begin * stride == -begin


def filled(model: ir.Model) -> None:
    shift_to_uint8(model)
    fill_channels(model)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize("attributes", ["pads=[1,1,1,1]", "strides=[2,2], pads=[0,1,1,0], dilations=[1,2]"])
def test_an_image_is_filled_up_to_four_channels_and_every_output_is_the_same(
    channels: int, attributes: str
) -> None:
    model = stem((1, channels, 7, 8), (3, 3), attributes, out=16)
    after = rewritten(model, filled, RNG.normal(size=(1, channels, 7, 8)).astype(np.float32) * 4)
    conv = node_of(after, "Conv")
    assert node_of(after, "Pad").inputs[0].producer().op_type == "QuantizeLinear"
    assert array(conv.inputs[1].producer().inputs[0]).shape == (16, -(-channels // 4) * 4, 3, 3)


@pytest.mark.parametrize(
    "model",
    [
        stem((1, 4, 8, 8), (3, 3), "pads=[1,1,1,1]", out=16),
        stem((1, 3, 8, 8), (3, 3), "pads=[1,1,1,1]", out=12),
        stem((1, 3, 8, 8), (3, 3), "pads=[1,1,1,1]", out=18),
        stem((1, 3, 8, 8), (3, 3), "group=1", out=16, reader="other = Neg(d)"),
    ],
    ids=["four channels", "few outputs", "outputs not by four", "read by others"],
)
def test_an_image_that_gains_nothing_stays(model: ir.Model) -> None:
    channels = model.graph.inputs[0].shape[1]
    after = rewritten(model, filled, RNG.normal(size=(1, channels, 8, 8)).astype(np.float32))
    assert "Pad" not in ops(after)


def test_a_layer_inside_the_network_is_not_filled() -> None:
    model = graph(
        """g (float[1,3,8,8] x) => (float[A,B,C,D] y) {
            n = Relu(x)  q = QuantizeLinear(n, s, z)  d = DequantizeLinear(q, s, z)
            dw = DequantizeLinear<axis=0>(w, ws, wz)  y = Conv(d, dw)
        }""",
        **weights(16, 3, 3, 3),
    )
    assert "Pad" not in ops(rewritten(model, filled, RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)))
