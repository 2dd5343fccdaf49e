"""A layer as LiteRT meets it in an exported file: int8 with channels last, one scale for each output channel.

As in the ONNX files, the layer stands in the file several times side by side, each with weights of its own.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from edgekit.bench.layers.shape import LayerShape
from edgekit.errors import UsageError

_SCALE, _WEIGHT_SCALE, _OUT_SCALE = 0.05, 0.01, 0.2


def tflite_file(shape: LayerShape, copies: int, *, seed: int = 0, floating: bool = False) -> bytes:
    """The bytes of a file with one input `[1, h, w, in_channels]` and `copies` outputs, int8 or float32.

    One spatial axis becomes two, the first of extent 1; a linear layer reads `[rows, in_channels]`.

    Args:
        shape: the layer.
        copies: how many stand side by side.
        seed: of the weights.
        floating: float32 throughout.

    Raises:
        UsageError: the schema of TFLite files is not installed.
    """
    file = File(np.random.default_rng(seed), floating=floating)
    x = file.input(shape)
    for _ in range(copies):
        _LAYERS[shape.op](file, shape, x)
    return file.content()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"TFLite files cannot be written ({error})",
            expected="ai-edge-litert",
            way_out="pip install 'edgekit[tflite]'",
        ) from error


class File:
    """Tensors and operators, as they come together."""

    def __init__(self, generator: np.random.Generator, *, floating: bool = False) -> None:
        self.floating = floating
        self.schema, self.generator = _library("ai_edge_litert.schema_py_generated"), generator
        self.builder = _library("flatbuffers").Builder
        self.model, self.graph = self.schema.ModelT(), self.schema.SubGraphT()
        self.model.version, self.model.description = 3, "layer"
        self.model.buffers, self.model.operatorCodes = [self.schema.BufferT()], []
        self.model.subgraphs = [self.graph]
        self.graph.name, self.graph.tensors, self.graph.operators = "main", [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.codes: dict[tuple[str, int], int] = {}

    def content(self) -> bytes:
        """The bytes of the file."""
        builder = self.builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def input(self, shape: LayerShape) -> int:
        """The tensor that all copies read."""
        x = self.activation(_planes(shape.size, shape, shape.in_channels), _SCALE, 0)
        self.graph.inputs = [x]
        return x

    def output(self, shape: LayerShape) -> int:
        """A new tensor for the result of one copy."""
        y = self.activation(_planes(shape.output_size, shape, shape.out_channels), _OUT_SCALE, 0)
        self.graph.outputs.append(y)
        return y

    def activation(self, dims: tuple[int, ...], scale: float, zero: int) -> int:
        """A tensor on a grid, or float32 where the file is."""
        if self.floating:
            return self.floating_tensor(dims)
        return self.tensor(dims, "INT8", grid=(np.float32(scale), np.int64(zero), 0))

    def floating_tensor(self, dims: tuple[int, ...]) -> int:
        """A float32 tensor, whatever the file is."""
        return self.tensor(dims, "FLOAT32")

    def integers(self, content: Any) -> int:
        """An int32 constant without a grid."""
        array = np.asarray(content, np.int32)
        return self.tensor(array.shape, "INT32", array)

    def floats(self, n: int) -> int:
        """A float32 constant of `n` drawn values."""
        return self.tensor((n,), "FLOAT32", self.generator.standard_normal(n, dtype=np.float32))

    def weights(self, dims: tuple[int, ...], axis: int) -> int:
        """Drawn weights, in int8 with a scale for each along `axis`."""
        if self.floating:
            return self.tensor(dims, "FLOAT32", self.generator.standard_normal(dims, dtype=np.float32))
        content = self.generator.integers(-127, 128, dims, dtype=np.int8)
        n = dims[axis]
        return self.tensor(
            dims, "INT8", content, grid=(np.full(n, _WEIGHT_SCALE), np.zeros(n, np.int64), axis)
        )

    def bias(self, n: int) -> int:
        """A drawn bias, int32 or float32."""
        if self.floating:
            return self.floats(n)
        content = self.generator.integers(-1000, 1000, n, dtype=np.int32)
        steps = np.full(n, _SCALE * _WEIGHT_SCALE)
        return self.tensor((n,), "INT32", content, grid=(steps, np.zeros(n, np.int64), 0))

    def tensor(
        self, dims: tuple[int, ...], dtype: str, content: Any = None, grid: tuple[Any, Any, int] | None = None
    ) -> int:
        """Add a tensor and return its index; `grid` is scales, zero points and the axis that they belong to."""
        tensor = self.schema.TensorT()
        tensor.shape, tensor.type = list(dims), getattr(self.schema.TensorType, dtype)
        tensor.name, tensor.buffer = f"t{len(self.graph.tensors)}", 0
        if content is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(content.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        if grid is not None:
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(grid[0]).astype(np.float32)
            tensor.quantization.zeroPoint = np.atleast_1d(grid[1])
            tensor.quantization.quantizedDimension = grid[2]
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(
        self, name: str, version: int, ins: list[int], out: int, options: str = "", **fields: Any
    ) -> int:
        """Append an operator; `fields` are those of its options table."""
        if (name, version) not in self.codes:
            code = self.schema.OperatorCodeT()
            code.builtinCode = getattr(self.schema.BuiltinOperator, name)
            code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
            self.codes[name, version] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(code)
        op = self.schema.OperatorT()
        op.opcodeIndex, op.inputs, op.outputs = self.codes[name, version], ins, [out]
        if options:
            op.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            op.builtinOptions = getattr(self.schema, f"{options}T")()
            for field, value in fields.items():
                setattr(op.builtinOptions, field, value)
        self.graph.operators.append(op)
        return out


def _convolution(file: File, shape: LayerShape, x: int) -> None:
    kernel, stride, dilation = (_two(v, 1) for v in (shape.kernel, shape.stride, shape.dilation))
    same = shape.pads == _same_pads(shape)
    source = x if same or not any(map(sum, shape.pads)) else _padded(file, shape, x)
    fields = {
        "padding": file.schema.Padding.SAME if same else file.schema.Padding.VALID,
        "strideH": stride[0],
        "strideW": stride[1],
        "dilationHFactor": dilation[0],
        "dilationWFactor": dilation[1],
    }
    n, bias, y = shape.out_channels, file.bias(shape.out_channels), file.output(shape)
    if shape.depthwise:
        weights = file.weights((1, *kernel, n), axis=3)
        fields["depthMultiplier"] = n // shape.in_channels
        name = "DEPTHWISE_CONV_2D"
        file.operator(name, 3, [source, weights, bias], y, "DepthwiseConv2DOptions", **fields)
        return
    weights = file.weights((n, *kernel, shape.in_channels // shape.groups), axis=0)
    version = 3 if shape.groups == 1 else 6
    file.operator("CONV_2D", version, [source, weights, bias], y, "Conv2DOptions", **fields)


def _transposed(file: File, shape: LayerShape, x: int) -> None:
    """As it is exported: in float between integer tensors, with weights that are turned in every call."""
    if shape.groups > 1 or max(shape.dilation) > 1:
        raise UsageError(
            f"{shape}: a transposed convolution that TFLite does not have",
            expected="one group and no dilation",
            way_out="Leave this layer out of the table for LiteRT.",
        )
    kernel, stride = _two(shape.kernel, 1), _two(shape.stride, 1)
    ins, outs = shape.in_channels, shape.out_channels
    # The padding of a transposed convolution cuts the result; the whole of it is what takes the time.
    whole = tuple((n - 1) * s + k for n, s, k in zip(_two(shape.size, 1), stride, kernel, strict=True))
    target, bias = file.integers((1, *whole, outs)), file.floats(outs)
    if file.floating:
        last = file.weights((outs, *kernel, ins), axis=0)
        y = file.floating_tensor((1, *whole, outs))
        file.graph.outputs.append(y)
        fields = {"padding": file.schema.Padding.VALID, "strideH": stride[0], "strideW": stride[1]}
        file.operator("TRANSPOSE_CONV", 3, [target, last, x, bias], y, "TransposeConvOptions", **fields)
        return
    weights, real = _turned(file, (ins, outs, *kernel)), file.floating_tensor(_planes(shape.size, shape, ins))
    file.operator("DEQUANTIZE", 5, [x], real)
    summed = file.floating_tensor((1, *whole, outs))
    fields = {"padding": file.schema.Padding.VALID, "strideH": stride[0], "strideW": stride[1]}
    file.operator(
        "TRANSPOSE_CONV", 3, [target, weights, real, bias], summed, "TransposeConvOptions", **fields
    )
    y = file.activation((1, *whole, outs), _OUT_SCALE, 0)
    file.graph.outputs.append(file.operator("QUANTIZE", 1, [summed], y))


def _turned(file: File, dims: tuple[int, ...]) -> int:
    """Weights `[in, out, y, x]` in int8 become float `[out, y, x, in]`; turned over twice, they stay as they are."""
    ins, outs, *kernel = dims
    real = file.operator("DEQUANTIZE", 5, [file.weights(dims, axis=1)], file.floating_tensor(dims))
    over = file.operator(
        "REVERSE_V2", 1, [real, file.integers((2, 3))], file.floating_tensor(dims), "ReverseV2Options"
    )
    last = (outs, *kernel, ins)
    moved = file.operator(
        "TRANSPOSE", 2, [over, file.integers((1, 2, 3, 0))], file.floating_tensor(last), "TransposeOptions"
    )
    return file.operator(
        "REVERSE_V2", 1, [moved, file.integers((1, 2))], file.floating_tensor(last), "ReverseV2Options"
    )


def _linear(file: File, shape: LayerShape, x: int) -> None:
    weights, bias = (
        file.weights((shape.out_channels, shape.in_channels), axis=0),
        file.bias(shape.out_channels),
    )
    y = file.output(shape)
    file.operator("FULLY_CONNECTED", 5, [x, weights, bias], y, "FullyConnectedOptions", keepNumDims=True)


_LAYERS = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv_transpose1d": _transposed,
    "conv_transpose2d": _transposed,
    "linear": _linear,
}


def _same_pads(shape: LayerShape) -> tuple[tuple[int, int], ...]:
    """What the format's SAME means: as many outputs as strides fit, the odd zero behind."""
    axes = zip(shape.size, shape.kernel, shape.stride, shape.dilation, strict=True)
    totals = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in axes]
    return tuple((total // 2, total - total // 2) for total in totals)


def _padded(file: File, shape: LayerShape, x: int) -> int:
    pads = ((0, 0),) * (2 - len(shape.pads)) + shape.pads
    size = tuple(n + sum(p) for n, p in zip(_two(shape.size, 1), pads, strict=True))
    y = file.activation((1, *size, shape.in_channels), _SCALE, 0)
    return file.operator("PAD", 2, [x, file.integers([(0, 0), *pads, (0, 0)])], y, "PadOptions")


def _two(values: tuple[int, ...], missing: int) -> tuple[int, ...]:
    return (missing,) * (2 - len(values)) + values


def _planes(size: tuple[int, ...], shape: LayerShape, channels: int) -> tuple[int, ...]:
    return (size[0], channels) if shape.op == "linear" else (1, *_two(size, 1), channels)
