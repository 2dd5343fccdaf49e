"""TFLite files with one operator without weights several times, for LiteRT to time.

They stand in a row, each reading what the one before it wrote, or side by side where that does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from edgekit.bench.layers.tflite_file import File
from edgekit.bench.predict.light import BORDER, SCALE, TWICE, UNIT, UNIT_SCALE, stands_alone
from edgekit.bench.predict.probe import Probe

Fields = dict[str, Any]
# Operator, version, what it reads beside its predecessor, its options and their fields.
Operator = tuple[str, int, list[int], str, Fields]


def tflite_chain(probe: Probe, links: int) -> bytes:
    """The bytes of a file with `links` of the probe's operator.

    Args:
        probe: without a layer.
        links: how many; conversions stand side by side, each on a grid of its own.
    """
    kind, integers = probe.op.kind, probe.op.precision == "int8"
    file = File(np.random.default_rng(0), floating=not integers)
    dims = probe.dims
    if kind == "convert":
        x = file.floating_tensor(dims)
        file.graph.inputs = [x]
        for index in range(links):
            y = file.activation(dims, SCALE * (1 + index), 0)
            file.graph.outputs.append(file.operator("QUANTIZE", 1, [x], y))
        return file.content()
    if kind in _OWN:
        _OWN[kind](file, dims, links)
        return file.content()
    if stands_alone(probe.op):
        _side_by_side(file, probe, links)
        return file.content()
    x = before = file.activation(dims, SCALE, 0)
    file.graph.inputs = [x]
    name, version, more, options, fields = _in_a_row(file, probe)
    for _ in range(links):
        after = file.activation(dims, *_grid(kind))
        before = file.operator(name, version, [before, *more], after, options, **fields)
    file.graph.outputs = [before]
    return file.content()


def _products(file: File, dims: tuple[int, ...], links: int) -> None:
    """Products side by side, of tensors of their own."""
    heads, rows, depth, columns = dims
    for _ in range(links):
        pair = [file.activation(axes, SCALE, 0) for axes in ((heads, rows, depth), (heads, depth, columns))]
        file.graph.inputs += pair
        y = file.activation((heads, rows, columns), SCALE, 0)
        file.graph.outputs.append(file.operator("BATCH_MATMUL", 1, pair, y, "BatchMatMulOptions"))


def _reshaped(file: File, dims: tuple[int, ...], links: int) -> None:
    """Two axes become one and two again, so often: a copy that the delegate leaves out costs nothing."""
    batch, y, x, channels = dims
    before = file.activation(dims, SCALE, 0)
    file.graph.inputs = [before]
    for index in range(links):
        result = dims if index % 2 else (batch, y * x, channels)
        fields = {"newShape": list(result)}
        after = file.activation(result, SCALE, 0)
        before = file.operator(
            "RESHAPE", 1, [before, file.integers(result)], after, "ReshapeOptions", **fields
        )
    file.graph.outputs = [before]


def _chosen(file: File, dims: tuple[int, ...], links: int) -> None:
    """A comparison, and choices by what came of it."""
    x = before = file.activation(dims, SCALE, 0)
    file.graph.inputs = [x]
    version = 1 if file.floating else 2
    mask = file.operator("GREATER", version, [x, x], file.tensor(dims, "BOOL"), "GreaterOptions")
    for _ in range(links):
        after = file.activation(dims, SCALE, 0)
        before = file.operator("SELECT", version, [mask, before, x], after, "SelectOptions")
    file.graph.outputs = [before]


def _volumes(file: File, dims: tuple[int, ...], links: int) -> None:
    """Convolutions side by side, on one volume."""
    ins, outs, *rest = dims
    kernel, size = tuple(rest[:3]), tuple(rest[3:])
    x = file.activation((1, *size, ins), SCALE, 0)
    file.graph.inputs = [x]
    steps = {f"stride{axis}": 1 for axis in "DHW"}
    fields = {"padding": file.schema.Padding.SAME, **steps}
    fields |= {f"dilation{axis}Factor": 1 for axis in "DHW"}
    for _ in range(links):
        weights = file.weights((*kernel, ins, outs), axis=4)
        y = file.activation((1, *size, outs), SCALE, 0)
        pair = [x, weights, file.bias(outs)]
        file.graph.outputs.append(file.operator("CONV_3D", 1, pair, y, "Conv3DOptions", **fields))


def _windows(file: File, dims: tuple[int, ...], links: int) -> None:
    """The maximum of windows side by side, on one volume."""
    volume, window = dims[:5], (1, 1, *dims[5:])
    x, start = file.activation(volume, SCALE, 0), _scalar(file, constant=True)
    file.graph.inputs = [x]
    result = tuple(n // step for n, step in zip(volume, window, strict=True))
    options = file.schema.StablehloReduceWindowOptionsT()
    options.windowDimensions = options.windowStrides = list(window)
    options.baseDilations = options.windowDilations = [1] * len(volume)
    options.padding, options.bodySubgraphIndex = [0] * 2 * len(volume), _larger(file)
    for _ in range(links):
        y = file.activation(result, SCALE, 0)
        file.graph.outputs.append(file.operator("STABLEHLO_REDUCE_WINDOW", 1, [x, start], y))
        written = file.graph.operators[-1]
        written.builtinOptions2Type = file.schema.BuiltinOptions2.StablehloReduceWindowOptions
        written.builtinOptions2 = options


def _larger(file: File) -> int:
    """Index of a subgraph that gives the larger of two numbers, as `MAXIMUM` does."""
    whole, file.graph = file.graph, file.schema.SubGraphT()
    file.graph.name, file.graph.tensors, file.graph.operators = "larger", [], []
    file.graph.inputs = [_scalar(file), _scalar(file)]
    version = 1 if file.floating else 2
    larger = file.operator("MAXIMUM", version, file.graph.inputs, _scalar(file), "MaximumMinimumOptions")
    file.graph.outputs = [larger]
    file.model.subgraphs.append(file.graph)
    file.graph = whole
    return len(file.model.subgraphs) - 1


def _scalar(file: File, *, constant: bool = False) -> int:
    """A tensor without axes; a constant one is the least there is."""
    if file.floating:
        return file.tensor((), "FLOAT32", np.float32(-3e38) if constant else None)
    grid = (np.float32(SCALE), np.int64(0), 0)
    return file.tensor((), "INT8", np.int8(-128) if constant else None, grid=grid)


# Files that hold their operator in another way.
_OWN: Final[Mapping[str, Callable[[File, tuple[int, ...], int], None]]] = {
    "matmul": _products,
    "volume": _volumes,
    "window": _windows,
    "copy": _reshaped,
    "choose": _chosen,
}


def _slopes(file: File, channels: int) -> int:
    """A number for each channel."""
    axes = (1, 1, channels)
    if file.floating:
        return file.tensor(axes, "FLOAT32", np.full(axes, 0.1, np.float32))
    grid = (np.float32(UNIT_SCALE), np.int64(0), 0)
    return file.tensor(axes, "INT8", np.full(axes, 26, np.int8), grid=grid)


def _beside(file: File, probe: Probe) -> int:
    """What else a sum or a product reads: a number for each channel, or a tensor that has nothing to do with it."""
    if probe.op.outs == 1:
        return _slopes(file, probe.dims[-1])
    file.graph.inputs.append(file.activation(probe.dims, SCALE, 0))
    return int(file.graph.inputs[-1])


_LOGISTIC: Final[Operator] = ("LOGISTIC", 2, [], "", {})


def _in_a_row(file: File, probe: Probe) -> Operator:
    if probe.op.kind == "prelu":
        return "PRELU", 1, [_slopes(file, probe.dims[-1])], "", {}
    other = _beside(file, probe) if probe.op.kind in ("add", "mul") else -1
    window = {
        **{"filterHeight": 3, "filterWidth": 3, "strideH": 1, "strideW": 1},
        "padding": file.schema.Padding.SAME,
    }
    found: dict[str, Operator] = {
        "add": ("ADD", 2, [other], "AddOptions", {}),
        "mul": ("MUL", 2, [other], "MulOptions", {}),
        "activation": _LOGISTIC,
        "gelu": ("GELU", 1 if file.floating else 2, [], "GeluOptions", {"approximate": False}),
        "pool": ("MAX_POOL_2D", 2, [], "Pool2DOptions", window),
        "average": ("AVERAGE_POOL_2D", 2, [], "Pool2DOptions", window),
        "softmax": ("SOFTMAX", 2, [], "SoftmaxOptions", {"beta": 1.0}),
    }
    return found[probe.op.kind]


def _side_by_side(file: File, probe: Probe, links: int) -> None:
    """Append operators that each have an input of their own; joined are every two that follow."""
    joined = probe.op.kind == "move"
    file.graph.inputs = [file.activation(probe.dims, SCALE, 0) for _ in range(links + joined)]
    result, (name, version, more, options, fields) = _SEPARATE[probe.op.kind](file, probe)
    for index, x in enumerate(file.graph.inputs[:links]):
        ins = [x, file.graph.inputs[index + 1]] if joined else [x, *more]
        y = file.activation(result, *_grid(probe.op.kind))
        file.graph.outputs.append(file.operator(name, version, ins, y, options, **fields))


def _grid(kind: str) -> tuple[float, int]:
    """Scale and zero point of a result."""
    return (UNIT_SCALE, -128) if kind in UNIT else (SCALE, 0)


Separate = tuple[tuple[int, ...], Operator]


def _reduced(file: File, probe: Probe) -> Separate:
    result = (probe.dims[0], 1, 1, probe.dims[3])
    return result, ("MEAN", 2, [file.integers((1, 2))], "ReducerOptions", {"keepDims": True})


def _collapsed(file: File, probe: Probe) -> Separate:
    across = probe.op.depth > 1
    result = (probe.dims[0], 1, probe.dims[2]) if across else (*probe.dims[:2], 1)
    return result, (
        "REDUCE_MAX",
        2,
        [file.integers((1 if across else 2,))],
        "ReducerOptions",
        {"keepDims": True},
    )


def _joined(file: File, probe: Probe) -> Separate:
    del file
    result = (*probe.dims[:-1], 2 * probe.dims[-1])
    return result, ("CONCATENATION", 2, [], "ConcatenationOptions", {"axis": len(result) - 1})


def _sliced(file: File, probe: Probe) -> Separate:
    batch, y, x, channels = probe.dims
    result = (batch, y // TWICE, x // TWICE, channels)
    ends = [file.integers(n) for n in ((0, 0, 0, 0), probe.dims, (1, TWICE, TWICE, 1))]
    return result, ("STRIDED_SLICE", 2, ends, "StridedSliceOptions", {})


def _turned(file: File, probe: Probe) -> Separate:
    result = tuple(probe.dims[axis] for axis in probe.order)
    return result, ("TRANSPOSE", 2, [file.integers(probe.order)], "TransposeOptions", {})


def _enlarged(file: File, probe: Probe) -> Separate:
    batch, y, x, channels = probe.dims
    result, linear = (batch, TWICE * y, TWICE * x, channels), probe.op.kind == "resize"
    name = "RESIZE_BILINEAR" if linear else "RESIZE_NEAREST_NEIGHBOR"
    options = "ResizeBilinearOptions" if linear else "ResizeNearestNeighborOptions"
    fields = {"alignCorners": False, "halfPixelCenters": probe.op.kind != "repeat"}
    return result, (name, 3, [file.integers(result[1:3])], options, fields)


def _bordered(file: File, probe: Probe) -> Separate:
    batch, y, x, channels = probe.dims
    result = (batch, y + 2 * BORDER, x + 2 * BORDER, channels)
    border = file.integers([(0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0)])
    if probe.op.kind == "mirror":
        mode = {"mode": file.schema.MirrorPadMode.REFLECT}
        return result, ("MIRROR_PAD", 2, [border], "MirrorPadOptions", mode)
    if file.floating:
        value = file.tensor((1,), "FLOAT32", np.zeros(1, np.float32))
    else:
        value = file.tensor((1,), "INT8", np.zeros(1, np.int8), grid=(np.float32(SCALE), np.int64(0), 0))
    return result, ("PADV2", 2, [border, value], "PadV2Options", {})


def _shuffled(file: File, probe: Probe) -> Separate:
    del file
    batch, y, x, channels = probe.dims
    result = (batch, TWICE * y, TWICE * x, channels // TWICE**2)
    return result, ("DEPTH_TO_SPACE", 2, [], "DepthToSpaceOptions", {"blockSize": TWICE})


_SEPARATE: Final[Mapping[str, Callable[[File, Probe], Separate]]] = {
    "reduce": _reduced,
    "collapse": _collapsed,
    "move": _joined,
    "slice": _sliced,
    "transpose": _turned,
    "nearest": _enlarged,
    "repeat": _enlarged,
    "resize": _enlarged,
    "pad": _bordered,
    "mirror": _bordered,
    "shuffle": _shuffled,
    "activation": lambda _, probe: (probe.dims, _LOGISTIC),
}
