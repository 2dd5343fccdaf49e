"""Moves that ONNX Runtime has integer kernels for but computes in float between DequantizeLinear and QuantizeLinear.

Where both ends have one grid, the integers themselves can be moved. And a shortcut that takes every second pixel and
appends empty channels (He et al. 2016, section 4.2, option A) is two or three such moves, each a pass over memory at
the price of a kernel; as a convolution by ones and zeros it is a single one. Its sums are the integers that it reads,
times 1.0, so nothing is rounded.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from edgekit_converters.onnx.graph import array, drop_unused, initializer, is_dq, replace
from edgekit_converters.shortcut import Shortcut

# What ONNX Runtime's own QDQ rules leave in float (Pad, SpaceToDepth), and what a shortcut consists of besides.
ON_INTEGERS: Final = frozenset({"Pad", "SpaceToDepth", "Slice"})
# Measured: with 64 channels the products with zero take as long as the moves, with 128 a fifth longer.
MOST_CHANNELS: Final = 32
# The ends that exporters write for "up to the last".
TO_THE_END: Final = 2**31 - 1


def move_integers(model: ir.Model) -> None:
    """`DQ → move → Q` on one grid becomes the move of the integers; what a pad puts there is quantized."""
    for quantize in list(model.graph):
        if quantize.op_type != "QuantizeLinear":
            continue
        move = quantize.inputs[0].producer()
        if move is None or move.op_type not in ON_INTEGERS or len(list(move.outputs[0].uses())) != 1:
            continue
        dequantize = move.inputs[0].producer()
        if not is_dq(dequantize) or not _same_grid(dequantize, quantize):
            continue
        inputs = [dequantize.inputs[0], *move.inputs[1:]]
        if move.op_type == "Pad" and len(inputs) > 2 and inputs[2] is not None:
            if inputs[2].const_value is None:
                continue
            inputs[2] = _on_grid(model, inputs[2], quantize)
        elif move.op_type == "Pad" and _is_constant(move):
            inputs[2:3] = [quantize.inputs[2]]
        moved = ir.node(move.op_type, inputs, attributes=move.attributes)
        moved.outputs[0].dtype = dequantize.inputs[0].dtype
        replace(model, quantize, [moved])
        model.graph.remove(move, safe=True)
    drop_unused(model)


def shortcuts_as_convolutions(model: ir.Model) -> None:
    """Strided slices and pads of channels, all of integers, become one convolution by ones and zeros."""
    for last in reversed(list(model.graph)):
        whole = _shortcut(last) if last.graph is not None else None
        if whole is None:
            continue
        chain = [last]
        while (step := _step_before(chain[0])) is not None:
            chain.insert(0, chain[0].inputs[0].producer())
            whole = step.then(whole)
        source = chain[0].inputs[0]
        dequantize = next((use.node for use in last.outputs[0].uses() if is_dq(use.node)), None)
        channels = _channels(source)
        if whole.rows * whole.columns > 1 and dequantize is not None and 0 < channels <= MOST_CHANNELS:
            _convolve(model, last, source, dequantize, whole, channels)
    drop_unused(model)


def _convolve(
    model: ir.Model, last: ir.Node, source: ir.Value, like: ir.Node, whole: Shortcut, channels: int
) -> None:
    """Put the convolution in place of `last`; `like` is a DequantizeLinear with the grid of both ends."""
    name, grid = last.outputs[0].name, list(like.inputs[1:])
    weight = np.zeros((whole.before + channels + whole.behind, channels, 1, 1), np.int8)
    weight[whole.before + np.arange(channels), np.arange(channels)] = 1
    real = _real(ir.node("DequantizeLinear", [source, *grid]), f"{name}_source_real")
    constants = (
        initializer(model, f"{name}_taken", weight),
        initializer(model, f"{name}_taken_scale", np.ones(len(weight), np.float32)),
        initializer(model, f"{name}_taken_zero_point", np.zeros(len(weight), np.int8)),
    )
    taken = _real(ir.node("DequantizeLinear", constants, attributes={"axis": 0}), f"{name}_taken_real")
    attributes = {"kernel_shape": [1, 1], "strides": [whole.rows, whole.columns]}
    convolution = ir.node("Conv", [real.outputs[0], taken.outputs[0]], attributes=attributes)
    _real(convolution, f"{name}_taken_sum")
    quantize = ir.node("QuantizeLinear", [convolution.outputs[0], *grid])
    replace(model, last, [real, taken, convolution, quantize])


def _real(node: ir.Node, name: str) -> ir.Node:
    node.outputs[0].name, node.outputs[0].dtype = name, ir.DataType.FLOAT
    return node


def _step_before(node: ir.Node) -> Shortcut | None:
    """What the op in front does, if it is a part of a shortcut and nobody else reads it."""
    before = node.inputs[0].producer()
    alone = before is not None and len(list(before.outputs[0].uses())) == 1
    return _shortcut(before) if alone else None


def _shortcut(node: ir.Node) -> Shortcut | None:
    """What an op does if it takes every n-th row or column, or puts zero points around the channels."""
    if node.op_type == "Pad":
        return _channel_pad(node)
    constants = [v.const_value for v in node.inputs[1:] if v is not None]
    if node.op_type != "Slice" or len(constants) != 4 or None in constants or not _is_plane(node):
        return None
    starts, ends, axes, steps = (array(v).reshape(-1) for v in node.inputs[1:])
    if starts.any() or (ends < TO_THE_END).any() or (steps < 1).any():
        return None
    stride = {int(axis) % 4: int(step) for axis, step in zip(axes, steps, strict=True)}
    return Shortcut(stride.pop(2, 1), stride.pop(3, 1)) if set(stride) <= {2, 3} else None


def _channel_pad(pad: ir.Node) -> Shortcut | None:
    dequantize = next((use.node for use in pad.outputs[0].uses() if is_dq(use.node)), None)
    given = len(pad.inputs) == 3 and all(v.const_value is not None for v in pad.inputs[1:])
    if dequantize is None or not given or not _is_constant(pad) or not _is_plane(pad):
        return None
    pads = array(pad.inputs[1]).reshape(2, 4)
    if (pads < 0).any() or pads[:, [0, 2, 3]].any():
        return None
    zero = np.array_equal(array(pad.inputs[2]).reshape(()), array(dequantize.inputs[2]).reshape(()))
    return Shortcut(before=int(pads[0, 1]), behind=int(pads[1, 1])) if zero else None


def _is_plane(node: ir.Node) -> bool:
    """Batch, channels, rows, columns, and of 8 bits."""
    x = node.inputs[0]
    return x.shape is not None and len(x.shape) == 4 and x.dtype in {ir.DataType.UINT8, ir.DataType.INT8}


def _channels(value: ir.Value) -> int:
    extent = None if value.shape is None else value.shape[1]
    return extent if isinstance(extent, int) else 0


def _is_constant(pad: ir.Node) -> bool:
    mode = pad.attributes.get("mode")
    return mode is None or mode.as_string() == "constant"


def _on_grid(model: ir.Model, value: ir.Value, quantize: ir.Node) -> ir.Value:
    """A float constant as the integer that QuantizeLinear makes of it."""
    scale, zero_point = (array(v).reshape(()) for v in quantize.inputs[1:3])
    limits = np.iinfo(zero_point.dtype)
    steps = np.rint(array(value).astype(np.float32).reshape(()) / np.float32(scale)) + int(zero_point)
    content = np.array(np.clip(steps, limits.min, limits.max), zero_point.dtype)
    return initializer(model, f"{quantize.outputs[0].name}_value", content)


def _same_grid(dequantize: ir.Node, quantize: ir.Node) -> bool:
    if len(dequantize.inputs) < 3 or len(quantize.inputs) < 3:
        return False
    pairs = zip(dequantize.inputs[1:3], quantize.inputs[1:3], strict=True)
    return all(
        a is not None and b is not None and array(a).size == 1 and np.array_equal(array(a), array(b))
        for a, b in pairs
    )
