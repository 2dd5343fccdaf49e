"""ONNX files with one operator without weights several times, for ONNX Runtime to time.

They stand in a row, each reading what the one before it wrote, or side by side where that does not fit.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edgekit.bench.layers.onnx_file import IR_VERSION, File
from edgekit.bench.predict.light import BORDER, TWICE
from edgekit.bench.predict.probe import Probe
from edgekit_converters.onnx.export import GELU_OPSET, OPSET

# Results of softmax and sigmoid are between 0 and 1: the grid that both runtimes want for them.
UNIT_SCALE, SCALE = 1 / 256, 0.05
UNIT: Final = frozenset({"softmax", "activation"})
# One beside the other, each on an input of its own: what they give does not fit what they take.
SEPARATE: Final = frozenset(
    {"reduce", "move", "copy", "slice", "transpose", "nearest", "repeat", "resize", "pad", "mirror"}
    | {"shuffle"}
)
# Kinds that know nothing of channels, or whose axes are given.
_AS_GIVEN: Final = frozenset({"move", "slice", "transpose", "softmax", "norm", "matmul"})
# Read and written as integers, without conversions around them.
_ON_INTEGERS: Final = frozenset({"clip", "move", "slice", "transpose", "nearest", "pad"})
# Faster kernels stand between convolutions.
_BETWEEN: Final = frozenset({"pool", "average"})
_WEIGHT_SCALE: Final = 0.01
_WINDOW: Final = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
# Operator, further inputs, attributes.
_OPERATORS: Final[dict[str, tuple[str, tuple[str, ...], dict[str, Any]]]] = {
    "add": ("Add", ("x",), {}),
    "mul": ("Mul", ("x",), {}),
    "clip": ("Clip", ("low", "high"), {}),
    "activation": ("Sigmoid", (), {}),
    "gelu": ("Gelu", (), {}),
    "reduce": ("GlobalAveragePool", (), {}),
    "move": ("Concat", ("other",), {"axis": -1}),
    "slice": ("Slice", ("starts", "ends", "axes", "steps"), {}),
    "transpose": ("Transpose", (), {}),
    "pool": ("MaxPool", (), _WINDOW),
    "average": ("AveragePool", (), _WINDOW),
    "nearest": (
        *("Resize", ("", "twice")),
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "resize": ("Resize", ("", "twice"), {"mode": "linear"}),
    "pad": ("Pad", ("border",), {}),
    "shuffle": ("SpaceToDepth", (), {"blocksize": TWICE}),
    "softmax": ("Softmax", (), {"axis": -1}),
    "norm": ("LayerNormalization", ("weight",), {"axis": -1}),
    "matmul": ("MatMul", ("x",), {}),
}


def onnx_chain(probe: Probe, links: int) -> bytes:
    """The bytes of a file with `links` of the probe's operator.

    Args:
        probe: without a layer.
        links: how many; conversions stand side by side, each on a grid of its own.
    """
    from onnx import TensorProto, helper

    file, kind = File(np.random.default_rng(0)), probe.op.kind
    dims = probe.dims if kind in _AS_GIVEN else _channels_first(probe.dims)
    integers = probe.op.precision == "int8"
    inner = TensorProto.UINT8 if integers else TensorProto.FLOAT
    ends, inputs, result = (inner, inner), ["x"], dims
    if kind == "convert":
        outputs = [_converted(file, index) for index in range(links)]
        ends = (TensorProto.FLOAT, TensorProto.UINT8)
    elif kind in SEPARATE:
        inputs = [f"x{index}" for index in range(links + (kind == "move"))]
        pairs = zip(inputs, inputs[1:] if kind == "move" else inputs, strict=False)
        outputs = [_linked(file, probe, 1, integers=integers, source=x, other=other) for x, other in pairs]
        result = _result(probe, dims)
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


def _result(probe: Probe, dims: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of what one operator of `SEPARATE` gives."""
    kind = probe.op.kind
    if kind == "transpose":
        return tuple(dims[axis] for axis in probe.order)
    if kind == "move":
        return (*dims[:-1], 2 * dims[-1])
    if kind == "slice":
        return (dims[0], dims[1] // TWICE, dims[2] // TWICE, dims[3])
    batch, channels, *sides = dims
    if kind == "shuffle":
        return (batch, channels * TWICE**2, *(n // TWICE for n in sides))
    given = {"reduce": lambda _: 1, "pad": lambda n: n + 2 * BORDER}.get(kind, lambda n: TWICE * n)
    return (batch, channels, *map(given, sides))


def _converted(file: File, index: int) -> str:
    from onnx import helper

    scale = file.constant(f"scale{index}", np.float32(SCALE * (1 + index)))
    zero = file.constant(f"zero{index}", np.uint8(128))
    file.nodes.append(helper.make_node("QuantizeLinear", ["x", scale, zero], [f"y{index}"]))
    return f"y{index}"


def _linked(
    file: File, probe: Probe, links: int, *, integers: bool, source: str = "x", other: str = ""
) -> str:
    """Append the operator so often, between conversions where it works on integers by way of them."""
    from onnx import helper

    kind, before = probe.op.kind, source
    op, more, attributes = _OPERATORS[kind]
    if kind == "transpose":
        attributes = {"perm": probe.order}
    _constants(file, probe, integers=integers)
    converted = integers and kind not in _ON_INTEGERS
    if converted:
        before = _read(file, source)
    between = converted and kind in _BETWEEN
    if between:
        before = _read(file, _convolved(file, before, probe.dims[-1]))
    first = before
    for index in range(links):
        ins = [before, *({"x": first, "other": other}.get(name, name) for name in more)]
        before = f"y{index}_{source}"
        file.nodes.append(helper.make_node(op, ins, [before], **attributes))
        if converted:
            grid, after = _grid(kind in UNIT), f"q{index}_{source}"
            file.nodes.append(helper.make_node("QuantizeLinear", [before, *grid], [after]))
            before = after
            if index < links - 1:
                before = f"real{index}_{source}"
                file.nodes.append(helper.make_node("DequantizeLinear", [after, *grid], [before]))
    return _convolved(file, _read(file, before), probe.dims[-1]) if between else before


def _read(file: File, name: str) -> str:
    from onnx import helper

    file.nodes.append(helper.make_node("DequantizeLinear", [name, *_grid(False)], [f"real_{name}"]))
    return f"real_{name}"


def _convolved(file: File, before: str, channels: int) -> str:
    """A 1×1 convolution, small beside what stands between two of them."""
    from onnx import helper

    content, name = np.eye(channels, dtype=np.int8).reshape(channels, channels, 1, 1), f"conv_{before}"
    weight = file.dequantized(f"weight_{name}", content, _WEIGHT_SCALE, channels, axis=0)
    file.nodes.append(helper.make_node("Conv", [before, weight], [name], kernel_shape=[1, 1]))
    file.nodes.append(helper.make_node("QuantizeLinear", [name, *_grid(False)], [f"q_{name}"]))
    return f"q_{name}"


def _grid(unit: bool) -> tuple[str, str]:
    """Names of scale and zero point."""
    return f"scale{unit}", f"zero{unit}"


def _constants(file: File, probe: Probe, *, integers: bool) -> None:
    """What the operators of a chain read beside activations, once a file."""
    if file.initializers:
        return
    dtype = np.uint8 if integers else np.float32
    file.constant("weight", np.ones(probe.dims[-1], np.float32))
    file.constant("twice", np.array([1, 1, TWICE, TWICE], np.float32))
    file.constant("border", np.array([0, 0, BORDER, BORDER] * 2, np.int64))
    ends = probe.dims[1:3] if len(probe.dims) == 4 else (0, 0)
    for name, content in {"starts": (0, 0), "ends": ends, "axes": (1, 2), "steps": (TWICE, TWICE)}.items():
        file.constant(name, np.array(content, np.int64))
    file.constant("low", dtype(0))
    file.constant("high", dtype(6))
    for unit, (scale, zero) in {False: (SCALE, 128), True: (UNIT_SCALE, 0)}.items():
        file.constant(_grid(unit)[0], np.float32(scale))
        file.constant(_grid(unit)[1], np.uint8(zero))


def _channels_first(dims: tuple[int, ...]) -> tuple[int, ...]:
    return (dims[0], dims[3], dims[1], dims[2]) if len(dims) == 4 else dims
