"""ONNX files with one operator without weights several times, for ONNX Runtime to time.

They stand in a row, each reading what the one before it wrote, or side by side where that does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from edgekit.bench.layers.onnx_file import IR_VERSION, File
from edgekit.bench.predict.light import BORDER, SCALE, STRIP_TAPS, TWICE, UNIT, UNIT_SCALE, stands_alone
from edgekit.bench.predict.ops import TO_SPACE
from edgekit.bench.predict.probe import Probe
from edgekit.bench.predict.products import GATES
from edgekit_converters.onnx.export import GELU_OPSET, OPSET

# Kinds that know nothing of channels, or whose axes are given.
_AS_GIVEN: Final = frozenset({"move", "slice", "transpose", "softmax", "norm", "strip", "collapse"})
# With channels last, as between integer convolutions, where these are moved together.
_ENLARGING: Final = frozenset({"nearest", "resize"})
# Read and written as integers, without conversions around them.
_ON_INTEGERS: Final = _ENLARGING | {"clip", "move", "slice", "transpose", "pad", "collapse", "shuffle"}
# Of two tensors, or of one and what has a number for each channel.
_PAIRED: Final = frozenset({"add", "mul"})
# Faster kernels stand between convolutions.
_BETWEEN: Final = frozenset({"pool", "average"})
_WEIGHT_SCALE: Final = 0.01
_WINDOW: Final = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
# Operator, inputs behind its predecessor, or all of them with "before" for it, attributes.
_OPERATORS: Final[dict[str, tuple[str, tuple[str, ...], dict[str, Any]]]] = {
    "add": ("Add", ("other",), {}),
    "mul": ("Mul", ("other",), {}),
    "clip": ("Clip", ("low", "high"), {}),
    "prelu": ("PRelu", ("slopes",), {}),
    "activation": ("Sigmoid", (), {}),
    "elu": ("Elu", (), {}),
    "softplus": ("Softplus", (), {}),
    "choose": ("Where", ("mask", "before", "x"), {}),
    "gelu": ("Gelu", (), {}),
    "reduce": ("GlobalAveragePool", (), {}),
    "collapse": ("ReduceMax", ("rows",), {"keepdims": 1}),
    "move": ("Concat", ("other",), {"axis": -1}),
    "slice": ("Slice", ("starts", "ends", "axes", "steps"), {}),
    "transpose": ("Transpose", (), {}),
    "pool": ("MaxPool", (), _WINDOW),
    "average": ("AveragePool", (), _WINDOW),
    "strip": ("MaxPool", (), {"kernel_shape": [STRIP_TAPS], "strides": [STRIP_TAPS]}),
    "nearest": (
        *("Resize", ("", "twice")),
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "resize": ("Resize", ("", "twice"), {"mode": "linear"}),
    "pad": ("Pad", ("border",), {}),
    "shuffle": ("SpaceToDepth", (), {"blocksize": TWICE}),
    "softmax": ("Softmax", (), {"axis": -1}),
    "norm": ("LayerNormalization", ("weight",), {"axis": -1}),
}


def onnx_chain(probe: Probe, links: int) -> bytes:
    """The bytes of a file with `links` of the probe's operator.

    Args:
        probe: without a layer.
        links: how many; conversions stand side by side, each on a grid of its own.
    """
    from onnx import TensorProto, helper

    file, kind = File(np.random.default_rng(0)), probe.op.kind
    if kind in _OWN:
        return _OWN[kind](file, probe, links)
    integers = probe.op.precision == "int8"
    dims = probe.dims if _channels_last(probe) else _channels_first(probe.dims)
    inner = TensorProto.UINT8 if integers else TensorProto.FLOAT
    ends, inputs, result = (inner, inner), ["x"], dims
    if kind == "convert":
        outputs = [_converted(file, index) for index in range(links)]
        ends = (TensorProto.FLOAT, TensorProto.UINT8)
    elif stands_alone(probe.op):
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
    return _saved(graph, GELU_OPSET if kind == "gelu" else OPSET)


def _products(file: File, probe: Probe, links: int) -> bytes:
    """Products side by side, of tensors of their own; in Einstein's notation heads come after rows, as in attention."""
    from onnx import helper

    heads, rows, depth, columns = probe.dims
    left, right = (heads, rows, depth), (heads, depth, columns)
    summed = probe.op.kind == "einsum"
    if summed:
        left, right = (rows, heads, depth), (columns, heads, depth)
    ins: list[Any] = []
    for index in range(links):
        names = [f"x{index}", f"z{index}"]
        ins += map(_real, names, (left, right))
        op, attributes = ("Einsum", {"equation": "qhd,khd->hqk"}) if summed else ("MatMul", {})
        file.nodes.append(helper.make_node(op, names, [f"y{index}"], **attributes))
    return _shared(file, ins, (heads, rows, columns), links)


def _cells(file: File, probe: Probe, links: int) -> bytes:
    """Recurrent cells side by side, on one sequence."""
    from onnx import helper

    steps, inputs, state = probe.dims
    gates = GATES * state
    for index in range(links):
        parts = {"w": (1, gates, inputs), "r": (1, gates, state), "b": (1, 2 * gates)}
        names = [file.constant(f"{part}{index}", _drawn(file, axes)) for part, axes in parts.items()]
        file.nodes.append(helper.make_node("LSTM", ["x", *names], [f"y{index}"], hidden_size=state))
    return _shared(file, [_real("x", (steps, 1, inputs))], (steps, 1, 1, state), links)


def _volumes(file: File, probe: Probe, links: int) -> bytes:
    """Convolutions side by side, on one volume."""
    from onnx import helper

    ins, outs, *rest = probe.dims
    kernel, size = rest[:3], rest[3:]
    pads = [n // 2 for n in kernel] * 2
    for index in range(links):
        weight = file.constant(f"w{index}", _drawn(file, (outs, ins, *kernel)))
        file.nodes.append(helper.make_node("Conv", ["x", weight], [f"y{index}"], pads=pads))
    return _shared(file, [_real("x", (1, ins, *size))], (1, outs, *size), links)


def _drawn(file: File, axes: tuple[int, ...]) -> Any:
    return file.generator.standard_normal(axes, dtype=np.float32)


def _real(name: str, axes: tuple[int, ...]) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)


def _shared(file: File, ins: list[Any], result: tuple[int, ...], links: int) -> bytes:
    """A file with so many outputs of one shape."""
    from onnx import helper

    outs = [_real(f"y{index}", result) for index in range(links)]
    return _saved(helper.make_graph(file.nodes, "chain", ins, outs, file.initializers), OPSET)


# Files that hold their operator in another way.
_OWN: Final[Mapping[str, Callable[[File, Probe, int], bytes]]] = {
    "matmul": _products,
    "einsum": _products,
    "recurrent": _cells,
    "volume": _volumes,
}


def _saved(graph: Any, opset: int) -> bytes:
    from onnx import helper

    opsets = [helper.make_opsetid("", opset)]
    content: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    return content


def _result(probe: Probe, dims: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of what one operator with an input of its own gives."""
    if probe.op.kind in _RESULTS:
        return _RESULTS[probe.op.kind](probe, dims)
    y, x = (1, 2) if _channels_last(probe) else (2, 3)
    found, side = list(dims), _SIDES.get(probe.op.kind, _doubled)
    found[y], found[x] = side(dims[y]), side(dims[x])
    return tuple(found)


def _collapsed(probe: Probe, dims: tuple[int, ...]) -> tuple[int, ...]:
    return (dims[0], 1, dims[2]) if probe.op.depth > 1 else (*dims[:2], 1)


def _shuffled(probe: Probe, dims: tuple[int, ...]) -> tuple[int, ...]:
    batch, channels, *sides = dims
    if probe.op.outs == TO_SPACE:
        return (batch, channels // TWICE**2, *(TWICE * n for n in sides))
    return (batch, channels * TWICE**2, *(n // TWICE for n in sides))


_RESULTS: Final[Mapping[str, Callable[[Probe, tuple[int, ...]], tuple[int, ...]]]] = {
    "activation": lambda _, dims: dims,
    "transpose": lambda probe, dims: tuple(dims[axis] for axis in probe.order),
    "move": lambda _, dims: (*dims[:-1], 2 * dims[-1]),
    "strip": lambda _, dims: (*dims[:-1], dims[-1] // STRIP_TAPS),
    "collapse": _collapsed,
    "shuffle": _shuffled,
}


def _channels_last(probe: Probe) -> bool:
    kind, together = probe.op.kind, probe.op.depth > 1
    return kind in _AS_GIVEN or (kind in _ENLARGING and together)


def _doubled(side: int) -> int:
    return TWICE * side


# What becomes of a side.
_SIDES: Final[Mapping[str, Callable[[int], int]]] = {
    "reduce": lambda _: 1,
    "pad": lambda n: n + 2 * BORDER,
    "slice": lambda n: n // TWICE,
}


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
    if probe.op.outs == TO_SPACE and kind == "shuffle":
        op = "DepthToSpace"
    _constants(file, probe, integers=integers)
    converted = integers and kind not in _ON_INTEGERS
    if converted:
        before = _read(file, source)
    between = converted and kind in _BETWEEN
    if between:
        before = _read(file, _convolved(file, before, probe.dims[-1]))
    if "mask" in more:
        file.nodes.append(helper.make_node("Greater", ["x", "low"], ["mask"]))
    first = before
    if kind in _PAIRED:
        other = first if probe.op.outs > 1 else _slopes(file, probe, integers=integers)
    for index in range(links):
        names = more if "before" in more else ("before", *more)
        ins = [{"before": before, "x": first, "other": other}.get(name, name) for name in names]
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


def _slopes(file: File, probe: Probe, *, integers: bool) -> str:
    """A number for each channel."""
    from onnx import helper

    if not integers:
        return "slopes"
    whole = np.full((probe.dims[-1], 1, 1), 26, np.uint8)
    ins = [file.constant("whole_slopes", whole), *_grid(True)]
    file.nodes.append(helper.make_node("DequantizeLinear", ins, ["real_slopes"]))
    return "real_slopes"


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
    file.constant("slopes", np.full((probe.dims[-1], 1, 1), 0.1, np.float32))
    file.constant(
        "twice", np.array([1, TWICE, TWICE, 1] if _channels_last(probe) else [1, 1, TWICE, TWICE], np.float32)
    )
    file.constant("border", np.array([0, 0, BORDER, BORDER] * 2, np.int64))
    ends = probe.dims[1:3] if len(probe.dims) == 4 else (0, 0)
    for name, content in {"starts": (0, 0), "ends": ends, "axes": (1, 2), "steps": (TWICE, TWICE)}.items():
        file.constant(name, np.array(content, np.int64))
    file.constant("rows", np.array([1 if probe.op.depth > 1 else 2], np.int64))
    file.constant("low", dtype(0))
    file.constant("high", dtype(6))
    for unit, (scale, zero) in {False: (SCALE, 128), True: (UNIT_SCALE, 0)}.items():
        file.constant(_grid(unit)[0], np.float32(scale))
        file.constant(_grid(unit)[1], np.uint8(zero))


def _channels_first(dims: tuple[int, ...]) -> tuple[int, ...]:
    return (dims[0], dims[3], dims[1], dims[2]) if len(dims) == 4 else dims
