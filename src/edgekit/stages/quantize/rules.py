"""Which ATen op may be on the INT8 grid, and how: one literal table.

The rules are the strictest common subset of the LiteRT 8-bit quantization specification
(https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec), ONNX QDQ as ONNX
Runtime fuses it, and Core ML W8A8.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import torch

from edgekit_converters.program import Grid

aten = torch.ops.aten


class Kind(Enum):
    """How an op behaves on the grid."""

    WEIGHTED = "weighted"
    """Convolution or linear with a constant weight: int8 per-channel weight, int32 bias, own output scale."""

    COMPUTE = "compute"
    """Arithmetic between activations: own output scale."""

    UNARY = "unary"
    """Element-wise function of one int8 tensor, so a table of 256 entries: own output scale."""

    CLAMP = "clamp"
    """relu, relu6, clamp: fused into the op before it, else shares its input's grid."""

    SHARED = "shared"
    """Moves or selects values: output shares the input's scale and zero point."""

    FIXED = "fixed"
    """Output range known beforehand: fixed scale and zero point."""


# softmax and sigmoid end in (0, 1), tanh in (-1, 1): the scales that LiteRT's kernels require.
UNIT_GRID: Final = Grid(1.0 / 256.0, -128)
TANH_GRID: Final = Grid(1.0 / 128.0, 0)

FIXED_GRIDS: Final[dict[object, Grid]] = {
    aten.sigmoid.default: UNIT_GRID,
    aten.softmax.int: UNIT_GRID,
    aten._softmax.default: UNIT_GRID,
    aten.tanh.default: TANH_GRID,
}

WEIGHT_AXIS: Final[dict[object, int]] = {
    aten.conv1d.default: 0,
    aten.conv2d.default: 0,
    aten.conv2d.padding: 0,
    aten.conv1d.padding: 0,
    aten.linear.default: 0,
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 1,
}
"""Op to the axis of its weight that holds output channels."""

RULES: Final[dict[object, Kind]] = {
    **dict.fromkeys(WEIGHT_AXIS, Kind.WEIGHTED),
    **dict.fromkeys(FIXED_GRIDS, Kind.FIXED),
    aten.add.Tensor: Kind.COMPUTE,
    aten.sub.Tensor: Kind.COMPUTE,
    aten.mul.Tensor: Kind.COMPUTE,
    aten.matmul.default: Kind.COMPUTE,
    aten.bmm.default: Kind.COMPUTE,
    aten.mean.dim: Kind.COMPUTE,
    aten.adaptive_avg_pool1d.default: Kind.COMPUTE,
    aten.adaptive_avg_pool2d.default: Kind.COMPUTE,
    aten.leaky_relu.default: Kind.UNARY,
    aten.elu.default: Kind.UNARY,
    aten.gelu.default: Kind.UNARY,
    aten.silu.default: Kind.UNARY,
    aten.hardswish.default: Kind.UNARY,
    aten.hardsigmoid.default: Kind.UNARY,
    aten.relu.default: Kind.CLAMP,
    aten.relu6.default: Kind.CLAMP,
    aten.hardtanh.default: Kind.CLAMP,
    aten.clamp.default: Kind.CLAMP,
    aten.clamp_min.default: Kind.CLAMP,
    aten.clamp_max.default: Kind.CLAMP,
    aten.max_pool1d.default: Kind.SHARED,
    aten.max_pool2d.default: Kind.SHARED,
    aten.avg_pool1d.default: Kind.SHARED,
    aten.avg_pool2d.default: Kind.SHARED,
    aten.upsample_nearest2d.vec: Kind.SHARED,
    aten.upsample_nearest2d.default: Kind.SHARED,
    aten.upsample_nearest1d.vec: Kind.SHARED,
    aten.upsample_bilinear2d.vec: Kind.SHARED,
    aten.upsample_bilinear2d.default: Kind.SHARED,
    aten.amax.default: Kind.SHARED,
    aten.cat.default: Kind.SHARED,
    aten.stack.default: Kind.SHARED,
    aten.constant_pad_nd.default: Kind.SHARED,
    aten.pad.default: Kind.SHARED,
    aten.reshape.default: Kind.SHARED,
    aten.view.default: Kind.SHARED,
    aten._unsafe_view.default: Kind.SHARED,
    aten.flatten.using_ints: Kind.SHARED,
    aten.unflatten.int: Kind.SHARED,
    aten.permute.default: Kind.SHARED,
    aten.transpose.int: Kind.SHARED,
    aten.t.default: Kind.SHARED,
    aten.unsqueeze.default: Kind.SHARED,
    aten.squeeze.dim: Kind.SHARED,
    aten.squeeze.dims: Kind.SHARED,
    aten.squeeze.default: Kind.SHARED,
    aten.slice.Tensor: Kind.SHARED,
    aten.select.int: Kind.SHARED,
    aten.narrow.default: Kind.SHARED,
    aten.expand.default: Kind.SHARED,
    aten.repeat.default: Kind.SHARED,
    aten.flip.default: Kind.SHARED,
    aten.roll.default: Kind.SHARED,
    aten.contiguous.default: Kind.SHARED,
    aten.clone.default: Kind.SHARED,
    aten.pixel_shuffle.default: Kind.SHARED,
    aten.channel_shuffle.default: Kind.SHARED,
    aten.chunk.default: Kind.SHARED,
    aten.split.Tensor: Kind.SHARED,
    aten.split_with_sizes.default: Kind.SHARED,
    aten.unbind.int: Kind.SHARED,
}

FUSES_CLAMP: Final = frozenset({Kind.WEIGHTED, Kind.COMPUTE})
"""Kinds after which a clamp costs nothing: one quantization after the activation, none between."""

RECURRENT: Final = frozenset({aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input})
"""int8 weights, float compute: no format has a static int8 kernel with per-gate scales that the others share."""
