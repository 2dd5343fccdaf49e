"""The strided convolution that reads the image: blocks of pixels become channels first.

ONNX Runtime's integer convolution collects its inputs pixel by pixel, three bytes at a time for an RGB image; for the
first layer of a small network that takes longer than the multiplication. With every block of `s x s` pixels gathered
into channels (SpaceToDepth) the stride is gone, each copy is `s * s` times as long, and there are fewer of them. The
weights are the same integers among zeros, so every sum is the same.

Where there is no stride, empty channels are put behind those of the image: the kernel that multiplies without
collecting takes channels four at a time, and at least sixteen outputs (onnxruntime/core/mlas/lib/convsym.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from edgekit_converters.onnx.graph import array, drop_unused, initializer, is_dq, is_weight, replace

# With more channels the copies are long enough.
MOST_CHANNELS: Final = 4
# Zeros among the weights are multiplied too; more than this many times the work is not worth it.
MOST_WORK: Final = 2.0
# Channels in and out that the kernel without collecting takes.
CHANNELS_AT_ONCE: Final = 4
LEAST_OUTPUTS: Final = 16


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the convolution on blocks.

    Attributes:
        offset: zeros in front of the kernel.
        kernel: blocks that an output reads.
        begin: padding in front, in blocks.
        end: padding behind, in blocks.
    """

    offset: int
    kernel: int
    begin: int
    end: int


def blocks_of(size: int, kernel: int, stride: int, begin: int, end: int) -> Axis | None:
    """An axis of `size` pixels in blocks of `stride`; None where blocks do not fit.

    Args:
        size: pixels.
        kernel: taps.
        stride: pixels from one output to the next, and of a block.
        begin: padding in front, in pixels.
        end: padding behind, in pixels.
    """
    outputs = (size + begin + end - kernel) // stride + 1
    front = -(-begin // stride)
    offset = front * stride - begin
    reach = -(-(offset + kernel) // stride)
    behind = outputs + reach - 1 - size // stride - front
    return Axis(offset, reach, front, behind) if size % stride == 0 and behind >= 0 else None


def gather_blocks(model: ir.Model) -> None:
    """`x → Q → DQ → Conv` with a stride and few channels reads blocks of pixels as channels."""
    inputs = {id(x) for x in model.graph.inputs}
    for node in list(model.graph):
        if node.op_type != "Conv":
            continue
        pair = _pair_before(node)
        if pair is None or id(pair[0].inputs[0]) not in inputs:
            continue
        axes = _axes(node, pair[0].inputs[0])
        if axes is not None:
            _rewrite(model, node, *pair, axes)
    drop_unused(model)


def fill_channels(model: ir.Model) -> None:
    """Give the convolution that reads the image a number of channels that ONNX Runtime's direct kernel takes.

    For graphs whose activations are uint8: the channels that are added hold the zero point.
    """
    inputs = {id(value) for value in model.graph.inputs}
    for conv in list(model.graph):
        if conv.op_type != "Conv" or len(conv.inputs) < 2:
            continue
        pair = _pair_before(conv)
        if pair is None or id(pair[0].inputs[0]) not in inputs or _group(conv) != 1:
            continue
        outputs, channels, *kernel = array(conv.inputs[1].producer().inputs[0]).shape
        missing = -channels % CHANNELS_AT_ONCE
        fits = outputs >= LEAST_OUTPUTS and outputs % CHANNELS_AT_ONCE == 0
        if missing and fits and len(kernel) == 2:
            _fill(model, conv, pair[1], missing)
    drop_unused(model)


def _fill(model: ir.Model, conv: ir.Node, dq: ir.Node, missing: int) -> None:
    name, weight_dq = conv.outputs[0].name, conv.inputs[1].producer()
    widths = initializer(model, f"{name}_fill", np.array([0, 0, 0, 0, 0, missing, 0, 0], np.int64))
    pad = ir.node("Pad", [dq.inputs[0], widths, dq.inputs[2]])
    pad.outputs[0].name, pad.outputs[0].dtype = f"{name}_filled", dq.inputs[0].dtype
    real = ir.node("DequantizeLinear", [pad.outputs[0], *dq.inputs[1:]], attributes=dq.attributes)
    real.outputs[0].name, real.outputs[0].dtype = f"{name}_filled_real", ir.DataType.FLOAT
    content = np.pad(array(weight_dq.inputs[0]), ((0, 0), (0, missing), (0, 0), (0, 0)))
    weight = ir.node(
        "DequantizeLinear",
        [initializer(model, f"{weight_dq.inputs[0].name}_filled", content), *weight_dq.inputs[1:]],
        attributes=weight_dq.attributes,
    )
    weight.outputs[0].name, weight.outputs[0].dtype = f"{name}_filled_weight", ir.DataType.FLOAT
    model.graph.insert_before(conv, [pad, real, weight])
    conv.replace_input_with(0, real.outputs[0])
    conv.replace_input_with(1, weight.outputs[0])


def _group(conv: ir.Node) -> int:
    group = conv.attributes.get("group")
    return 1 if group is None else int(group.as_int())


def _pair_before(conv: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """QuantizeLinear and DequantizeLinear that only this convolution reads."""
    dq, weight = conv.inputs[0].producer(), conv.inputs[1].producer()
    if not is_dq(dq) or not is_dq(weight) or not is_weight(weight) or weight.inputs[0].const_value is None:
        return None
    q = dq.inputs[0].producer()
    alone = all(len(list(n.outputs[0].uses())) == 1 for n in (q, dq) if n is not None)
    return (q, dq) if q is not None and q.op_type == "QuantizeLinear" and alone else None


def _axes(conv: ir.Node, x: ir.Value) -> tuple[Axis, Axis] | None:
    shape = x.shape
    if shape is None or len(shape) != 4 or not all(isinstance(n, int) for n in shape[1:]):
        return None
    channels, *size = (int(n) for n in shape[1:])
    kernel = array(conv.inputs[1].producer().inputs[0]).shape[2:]
    strides = _ints(conv, "strides", 1)
    padding = conv.attributes.get("auto_pad")
    named = padding is not None and padding.as_string() != "NOTSET"
    if named or _ints(conv, "dilations", 1) != [1, 1] or _group(conv) != 1:
        return None
    if channels > MOST_CHANNELS or strides[0] < 2 or strides[0] != strides[1]:
        return None
    pads = _ints(conv, "pads", 0, count=4)
    found = [blocks_of(size[i], kernel[i], strides[i], pads[i], pads[i + 2]) for i in range(2)]
    if found[0] is None or found[1] is None:
        return None
    work = np.prod([axis.kernel * strides[0] / n for axis, n in zip(found, kernel, strict=True) if axis])
    return (found[0], found[1]) if work <= MOST_WORK else None


def _ints(node: ir.Node, name: str, default: int, count: int = 2) -> list[int]:
    attribute = node.attributes.get(name)
    return [default] * count if attribute is None else [int(v) for v in attribute.as_ints()]


def _rewrite(model: ir.Model, conv: ir.Node, q: ir.Node, dq: ir.Node, axes: tuple[Axis, Axis]) -> None:
    stride = _ints(conv, "strides", 1)[0]
    name, x, weight_dq = conv.outputs[0].name, q.inputs[0], conv.inputs[1].producer()
    assert x is not None
    gathered = ir.node("SpaceToDepth", [x], attributes={"blocksize": stride})
    gathered.outputs[0].name, gathered.outputs[0].dtype = f"{name}_blocks", ir.DataType.FLOAT
    quantize = ir.node("QuantizeLinear", [gathered.outputs[0], *q.inputs[1:]], attributes=q.attributes)
    quantize.outputs[0].name, quantize.outputs[0].dtype = f"{name}_blocks_q", q.outputs[0].dtype
    real = ir.node("DequantizeLinear", [quantize.outputs[0], *dq.inputs[1:]], attributes=dq.attributes)
    real.outputs[0].name, real.outputs[0].dtype = f"{name}_blocks_real", ir.DataType.FLOAT
    content = _in_blocks(array(weight_dq.inputs[0]), stride, axes)
    weight = ir.node(
        "DequantizeLinear",
        [initializer(model, f"{weight_dq.inputs[0].name}_blocks", content), *weight_dq.inputs[1:]],
        attributes=weight_dq.attributes,
    )
    weight.outputs[0].name, weight.outputs[0].dtype = f"{name}_blocks_weight", ir.DataType.FLOAT
    blocked = ir.node(
        "Conv",
        [real.outputs[0], weight.outputs[0], *conv.inputs[2:]],
        attributes={
            "kernel_shape": [axis.kernel for axis in axes],
            "strides": [1, 1],
            "pads": [*(axis.begin for axis in axes), *(axis.end for axis in axes)],
        },
    )
    replace(model, conv, [gathered, quantize, real, weight, blocked])


def _in_blocks(weight: np.ndarray, stride: int, axes: tuple[Axis, Axis]) -> np.ndarray:
    """`[out, in, y, x]` as `[out, stride * stride * in, blocks_y, blocks_x]`, channels as SpaceToDepth orders them."""
    out, channels, height, width = weight.shape
    y, x = axes
    padded = np.zeros((out, channels, y.kernel * stride, x.kernel * stride), weight.dtype)
    padded[:, :, y.offset : y.offset + height, x.offset : x.offset + width] = weight
    split = padded.reshape(out, channels, y.kernel, stride, x.kernel, stride)
    return split.transpose(0, 3, 5, 1, 2, 4).reshape(out, -1, y.kernel, x.kernel)
