"""Files with one operator without weights several times in a row, each reading what the one before it wrote."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edgekit.bench.layers.onnx_file import IR_VERSION
from edgekit.bench.layers.onnx_file import File as OnnxFile
from edgekit.bench.layers.tflite_file import File as TFLiteFile
from edgekit.bench.predict.probes import Probe
from edgekit_converters.onnx.export import GELU_OPSET, OPSET

# Results of softmax and sigmoid are between 0 and 1: the grid that both runtimes want for them.
UNIT_SCALE, SCALE = 1 / 256, 0.05
_UNIT: Final = frozenset({"softmax", "activation"})
# One beside the other, each on an input of its own: what they give does not fit what they take.
SEPARATE: Final = frozenset({"reduce", "move", "transpose", "resize"})
# From channels first to channels last, and back.
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def chain(probe: Probe, format: str, links: int) -> bytes:
    """The bytes of a file with `links` of the probe's operator.

    Args:
        probe: without a layer.
        format: "onnx" or "tflite".
        links: how many follow one another; conversions stand side by side, each on a grid of its own.
    """
    return {"onnx": _onnx, "tflite": _tflite}[format](probe, links)


def _onnx(probe: Probe, links: int) -> bytes:
    from onnx import TensorProto, helper

    file, dims = OnnxFile(np.random.default_rng(0)), _channels_first(probe.dims)
    integers, kind = probe.op.precision == "int8", probe.op.kind
    inner = TensorProto.UINT8 if integers else TensorProto.FLOAT
    ends, inputs, result = (inner, inner), ["x"], dims
    if kind == "convert":
        outputs = [_converted(file, index) for index in range(links)]
        ends = (TensorProto.FLOAT, TensorProto.UINT8)
    elif kind in SEPARATE:
        inputs = [f"x{index}" for index in range(links + (kind == "move"))]
        pairs = zip(inputs, inputs[1:] if kind == "move" else inputs, strict=False)
        outputs = [_linked(file, probe, 1, integers=integers, source=x, other=other) for x, other in pairs]
        result = _separate_result(kind, dims, channels=1)
    else:
        outputs = [_linked(file, probe, links, integers=integers)]
    graph = helper.make_graph(
        file.nodes,
        "chain",
        [helper.make_tensor_value_info(name, ends[0], dims) for name in inputs],
        [helper.make_tensor_value_info(name, ends[1], result) for name in outputs],
        file.initializers,
    )
    opsets = [helper.make_opsetid("", GELU_OPSET if kind == "gelu" else OPSET)]
    content: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    return content


def _separate_result(kind: str, dims: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """Axes of what one operator of `SEPARATE` gives; `channels` is the axis of these."""
    if kind == "reduce":
        return tuple(n if axis in (0, channels) else 1 for axis, n in enumerate(dims))
    if kind == "transpose":
        return tuple(dims[axis] for axis in (_TO_LAST if channels == 1 else _TO_FIRST))
    if kind == "resize":
        return tuple(n if axis in (0, channels) else 2 * n for axis, n in enumerate(dims))
    return tuple(2 * n if axis == channels else n for axis, n in enumerate(dims))


def _converted(file: OnnxFile, index: int) -> str:
    from onnx import helper

    scale = file.constant(f"scale{index}", np.float32(SCALE * (1 + index)))
    zero = file.constant(f"zero{index}", np.uint8(128))
    file.nodes.append(helper.make_node("QuantizeLinear", ["x", scale, zero], [f"y{index}"]))
    return f"y{index}"


def _linked(
    file: OnnxFile, probe: Probe, links: int, *, integers: bool, source: str = "x", other: str = ""
) -> str:
    """Append the operator so often, between conversions where it works on integers by way of them."""
    from onnx import helper

    kind, before = probe.op.kind, source
    op, more, attributes = _ONNX[kind]
    _constants(file, probe, integers=integers)
    converted = integers and kind not in _ON_INTEGERS
    if converted:
        file.nodes.append(helper.make_node("DequantizeLinear", [source, *_grid(False)], [f"real_{source}"]))
        before = f"real_{source}"
    first = before
    for index in range(links):
        ins = [before, *({"x": first, "other": other}.get(name, name) for name in more)]
        before = f"y{index}_{source}"
        file.nodes.append(helper.make_node(op, ins, [before], **attributes))
        if converted:
            grid, after = _grid(kind in _UNIT), f"q{index}_{source}"
            file.nodes.append(helper.make_node("QuantizeLinear", [before, *grid], [after]))
            before = after
            if index < links - 1:
                before = f"real{index}_{source}"
                file.nodes.append(helper.make_node("DequantizeLinear", [after, *grid], [before]))
    return before


def _grid(unit: bool) -> tuple[str, str]:
    """Names of scale and zero point."""
    return f"scale{unit}", f"zero{unit}"


def _constants(file: OnnxFile, probe: Probe, *, integers: bool) -> None:
    """What the operators of a chain read beside activations, once a file."""
    if file.initializers:
        return
    dtype = np.uint8 if integers else np.float32
    file.constant("weight", np.ones(probe.dims[-1], np.float32))
    file.constant("twice", np.array([1, 1, 2, 2], np.float32))
    file.constant("low", dtype(0))
    file.constant("high", dtype(6))
    for unit, (scale, zero) in {False: (SCALE, 128), True: (UNIT_SCALE, 0)}.items():
        file.constant(_grid(unit)[0], np.float32(scale))
        file.constant(_grid(unit)[1], np.uint8(zero))


# Read and written as integers, without conversions around them.
_ON_INTEGERS: Final = frozenset({"clip", "move", "transpose"})
_WINDOW: Final = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
# Operator, further inputs, attributes.
_ONNX: Final[dict[str, tuple[str, tuple[str, ...], dict[str, Any]]]] = {
    "add": ("Add", ("x",), {}),
    "mul": ("Mul", ("x",), {}),
    "clip": ("Clip", ("low", "high"), {}),
    "activation": ("Sigmoid", (), {}),
    "gelu": ("Gelu", (), {}),
    "reduce": ("GlobalAveragePool", (), {}),
    "move": ("Concat", ("other",), {"axis": 1}),
    "transpose": ("Transpose", (), {"perm": _TO_LAST}),
    "pool": ("MaxPool", (), _WINDOW),
    "average": ("AveragePool", (), _WINDOW),
    "resize": ("Resize", ("", "twice"), {"mode": "linear"}),
    "softmax": ("Softmax", (), {"axis": -1}),
    "norm": ("LayerNormalization", ("weight",), {"axis": -1}),
    "matmul": ("MatMul", ("x",), {}),
}


def _tflite(probe: Probe, links: int) -> bytes:
    kind, integers = probe.op.kind, probe.op.precision == "int8"
    file = TFLiteFile(np.random.default_rng(0), floating=not integers)
    dims = probe.dims
    if kind == "convert":
        x = file.floating_tensor(dims)
        file.graph.inputs = [x]
        for index in range(links):
            y = file.activation(dims, SCALE * (1 + index), 0)
            file.graph.outputs.append(file.operator("QUANTIZE", 1, [x], y))
        return file.content()
    if kind in SEPARATE:
        _separate(file, kind, dims, links)
        return file.content()
    x = before = file.activation(dims, SCALE, 0)
    file.graph.inputs = [x]
    name, version, more, options, fields = _options(file, kind, x)
    for _ in range(links):
        scale, zero = (UNIT_SCALE, -128) if kind in _UNIT else (SCALE, 0)
        after = file.activation(dims, scale, zero)
        before = file.operator(name, version, [before, *more], after, options, **fields)
    file.graph.outputs = [before]
    return file.content()


def _separate(file: TFLiteFile, kind: str, dims: tuple[int, ...], links: int) -> None:
    """Append operators of `SEPARATE`."""
    file.graph.inputs = [file.activation(dims, SCALE, 0) for _ in range(links + (kind == "move"))]
    for index, x in enumerate(file.graph.inputs[:links]):
        y = file.activation(_separate_result(kind, dims, channels=3), SCALE, 0)
        if kind == "reduce":
            file.operator("MEAN", 2, [x, file.integers((1, 2))], y, "ReducerOptions", keepDims=True)
        elif kind == "transpose":
            file.operator("TRANSPOSE", 2, [x, file.integers(_TO_FIRST)], y, "TransposeOptions")
        elif kind == "resize":
            size = file.integers(_separate_result(kind, dims, channels=3)[1:3])
            fields = {"alignCorners": False, "halfPixelCenters": True}
            file.operator("RESIZE_BILINEAR", 3, [x, size], y, "ResizeBilinearOptions", **fields)
        else:
            pair = [x, file.graph.inputs[index + 1]]
            file.operator("CONCATENATION", 2, pair, y, "ConcatenationOptions", axis=3)
        file.graph.outputs.append(y)


def _options(file: TFLiteFile, kind: str, x: int) -> tuple[str, int, list[int], str, dict[str, Any]]:
    """Operator, version, what it reads beside its predecessor, its options and their fields."""
    window = {"filterHeight": 3, "filterWidth": 3, "strideH": 1, "strideW": 1}
    found: dict[str, tuple[str, int, list[int], str, dict[str, Any]]] = {
        "add": ("ADD", 2, [x], "AddOptions", {}),
        "mul": ("MUL", 2, [x], "MulOptions", {}),
        "activation": ("LOGISTIC", 2, [], "", {}),
        "gelu": ("GELU", 1, [], "GeluOptions", {"approximate": False}),
        "pool": ("MAX_POOL_2D", 2, [], "Pool2DOptions", {"padding": file.schema.Padding.SAME, **window}),
        "average": (
            "AVERAGE_POOL_2D",
            2,
            [],
            "Pool2DOptions",
            {"padding": file.schema.Padding.SAME, **window},
        ),
        "softmax": ("SOFTMAX", 2, [], "SoftmaxOptions", {"beta": 1.0}),
        "matmul": ("BATCH_MATMUL", 1, [x], "BatchMatMulOptions", {}),
    }
    return found[kind]


def _channels_first(dims: tuple[int, ...]) -> tuple[int, ...]:
    return (dims[0], dims[3], dims[1], dims[2]) if len(dims) == 4 else dims
