"""A layer as ONNX Runtime meets it in an exported file: QDQ with uint8 activations and int8 weights.

The layer stands in the file several times, side by side, each with weights of its own: the cost of the call itself is
shared, and what is measured is the kernel. The ends are integers with channels last, because inside a network ONNX
Runtime keeps the activations between integer convolutions that way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from edgekit.bench.layers.shape import LayerShape
from edgekit_converters.onnx.export import OPSET
from edgekit_converters.onnx.stem import MOST_CHANNELS, MOST_WORK, blocks_of

# What the exporter's files have; the newest that the library knows may be news to ONNX Runtime.
IR_VERSION: Final = 10
_SCALE, _WEIGHT_SCALE, _OUT_SCALE = 0.05, 0.01, 0.2


def onnx_file(shape: LayerShape, copies: int, *, seed: int = 0) -> bytes:
    """The bytes of a file with one input `[1, *size, in_channels]` uint8 and `copies` outputs.

    Args:
        shape: the layer.
        copies: how many stand side by side.
        seed: of the weights.
    """
    from onnx import TensorProto, helper

    shape = as_exported(shape)
    file = File(np.random.default_rng(seed))
    outputs = [file.layer(shape, index) for index in range(copies)]
    ends = [_ends(shape.size, shape.in_channels), _ends(shape.output_size, shape.out_channels)]
    if shape.op == "linear":
        ends = [(shape.size[0], shape.in_channels), (shape.size[0], shape.out_channels)]
    graph = helper.make_graph(
        [*file.head(shape), *file.nodes],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ends[0])],
        [helper.make_tensor_value_info(name, TensorProto.UINT8, ends[1]) for name in outputs],
        file.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    content: bytes = model.SerializeToString()
    return content


def as_exported(shape: LayerShape) -> LayerShape:
    """The layer that the exporter writes: a strided convolution over few channels reads blocks of pixels."""
    strided = shape.op == "conv2d" and shape.groups == 1 and shape.dilation == (1, 1)
    stride = shape.stride[0] if strided else 1
    if stride < 2 or shape.stride[1] != stride or shape.in_channels > MOST_CHANNELS:
        return shape
    axes = [blocks_of(shape.size[i], shape.kernel[i], stride, *shape.pads[i]) for i in range(2)]
    y, x = axes
    if y is None or x is None:
        return shape
    if math.prod(axis.kernel * stride / n for axis, n in zip((y, x), shape.kernel, strict=True)) > MOST_WORK:
        return shape
    return LayerShape(
        "conv2d",
        shape.in_channels * stride * stride,
        shape.out_channels,
        kernel=(y.kernel, x.kernel),
        stride=(1, 1),
        dilation=(1, 1),
        padding=(y.begin, x.begin, y.end, x.end),
        size=(shape.size[0] // stride, shape.size[1] // stride),
    )


def _ends(size: Sequence[int], channels: int) -> tuple[int, ...]:
    return (1, *size, channels)


class File:
    """Nodes and constants, as they come together."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, name: str, content: Any) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.asarray(content), name))
        return name

    def head(self, shape: LayerShape) -> list[Any]:
        """The nodes that all copies read."""
        from onnx import helper

        scale, zero = self.constant("scale", np.float32(_SCALE)), self.constant("zero", np.uint8(128))
        read = helper.make_node("DequantizeLinear", ["moved", scale, zero], ["real"])
        rank = len(shape.size) + 2
        if shape.op == "linear":
            return [helper.make_node("DequantizeLinear", ["x", scale, zero], ["real"])]
        first = [0, rank - 1, *range(1, rank - 1)]
        return [helper.make_node("Transpose", ["x"], ["moved"], perm=first), read]

    def layer(self, shape: LayerShape, index: int) -> str:
        """Write one copy and return the name of its output."""
        from onnx import helper

        weight, bias = self.weights(shape, index), self.bias(shape, index)
        op, attributes = spelled(shape)
        self.nodes.append(helper.make_node(op, ["real", weight, bias], [f"sum{index}"], **attributes))
        if not index:
            self.constant("out_scale", np.float32(_OUT_SCALE))
            self.constant("out_zero", np.uint8(128))
        self.nodes.append(
            helper.make_node("QuantizeLinear", [f"sum{index}", "out_scale", "out_zero"], [f"q{index}"])
        )
        if shape.op == "linear":
            return f"q{index}"
        rank = len(shape.size) + 2
        last = [0, *range(2, rank), 1]
        self.nodes.append(helper.make_node("Transpose", [f"q{index}"], [f"y{index}"], perm=last))
        return f"y{index}"

    def weights(self, shape: LayerShape, index: int) -> str:
        """Int8 weights behind their DequantizeLinear, one scale for each output channel."""
        first, second = shape.out_channels, shape.in_channels // shape.groups
        if shape.transposed:
            first, second = shape.in_channels, shape.out_channels // shape.groups
        content = self.generator.integers(-127, 128, (first, second, *shape.kernel), dtype=np.int8)
        scales = second if shape.transposed else first
        return self.dequantized(f"w{index}", content, _WEIGHT_SCALE, scales, axis=int(shape.transposed))

    def bias(self, shape: LayerShape, index: int) -> str:
        """Int32 bias behind its DequantizeLinear; the float layers have it too."""
        n = shape.out_channels
        content = self.generator.integers(-1000, 1000, n, dtype=np.int32)
        return self.dequantized(f"b{index}", content, _WEIGHT_SCALE * _SCALE, n, axis=0)

    def dequantized(self, name: str, content: Any, scale: float, n: int, *, axis: int) -> str:
        """Integers behind their DequantizeLinear, one scale for each of `n` along `axis`."""
        from onnx import helper

        inputs = [
            self.constant(name, content),
            self.constant(f"{name}_scale", np.full(n, scale, np.float32)),
            self.constant(f"{name}_zero", np.zeros(n, content.dtype)),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_real"], axis=axis))
        return f"{name}_real"


def spelled(shape: LayerShape) -> tuple[str, dict[str, Any]]:
    """Operator and attributes."""
    if shape.op == "linear":
        return "Gemm", {"transB": 1}
    attributes = {
        "kernel_shape": shape.kernel,
        "strides": shape.stride,
        "dilations": shape.dilation,
        "pads": [*(begin for begin, _ in shape.pads), *(end for _, end in shape.pads)],
        "group": shape.groups,
    }
    return "ConvTranspose" if shape.transposed else "Conv", attributes
