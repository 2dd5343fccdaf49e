"""Operators that a calibration times: shapes spread over what networks have, and of no network in particular."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from edgekit.bench.layers import LayerShape
from edgekit.bench.layers.onnx_file import as_exported
from edgekit.bench.predict.light import light
from edgekit.bench.predict.ops import BYTES, Op, convolution, elementwise, weighted
from edgekit.bench.predict.probe import Probe
from edgekit.bench.predict.products import products

# Input and output channels of 1×1 convolutions, of square and of widening and narrowing ones.
POINTWISE: Final = (
    *((8, 8), (16, 16), (16, 64), (64, 16), (32, 32), (32, 128), (128, 32), (64, 64), (64, 256), (256, 64)),
    *((128, 128), (128, 512), (512, 128), (256, 256), (256, 1024), (1024, 256), (512, 512), (1024, 1024)),
    *((24, 72), (72, 24), (88, 40), (58, 58), (116, 116), (232, 232), (48, 120), (576, 96)),
    *((24, 144), (144, 24), (96, 40), (40, 240), (240, 80), (480, 112)),
    *((8, 1), (32, 2), (64, 4), (256, 3), (128, 1)),
)
SQUARE: Final = (
    *(
        (8, 8),
        (16, 16),
        (16, 32),
        (32, 32),
        (32, 64),
        (64, 64),
        (64, 128),
        (128, 128),
        (128, 256),
        (256, 256),
    ),
    (512, 512),
    *((16, 1), (32, 3), (32, 4), (64, 2), (128, 6), (24, 24), (40, 40), (24, 48), (72, 72)),
    # Of an image of three channels, as exported.
    *((4, 16), (4, 64)),
)
# Channels and groups of what is between ordinary and depthwise convolutions, by the size of their kernel.
GROUPED: Final = {
    1: ((240, 3), (64, 2), (256, 8)),
    3: ((32, 4), (64, 4), (128, 4), (64, 16), (128, 32), (256, 8), (256, 64)),
}
# Channels of depthwise convolutions by the size of their kernel.
DEPTHWISE: Final = {
    1: (16, 64, 240),
    3: (8, 16, 24, 58, 72, 116, 32, 64, 96, 144, 240, 480, 960),
    5: (16, 32, 40, 72, 144, 240, 480),
    7: (40, 48, 96, 192, 384),
}
# Channels in and out, kernel, stride, padding, side.
STRIDED: Final = (
    *((3, 16, 3, 2, 1, 224), (3, 32, 3, 2, 1, 96), (1, 16, 3, 1, 1, 32), (3, 16, 3, 1, 1, 32)),
    *((3, 64, 7, 2, 3, 224), (3, 96, 4, 4, 0, 224), (3, 192, 16, 16, 0, 224), (96, 192, 2, 2, 0, 56)),
    *(
        (1, 32, 5, 1, 2, 56),
        (1, 64, 3, 1, 1, 56),
        (1, 8, 7, 2, 3, 112),
        (1, 48, 7, 1, 3, 14),
        (1, 32, 5, 1, 2, 14),
        (1, 32, 5, 1, 2, 112),
        (1, 16, 3, 1, 1, 112),
    ),
    *((32, 64, 3, 2, 1, 56), (64, 128, 3, 2, 1, 56), (16, 32, 5, 1, 2, 28), (64, 64, 5, 1, 2, 14)),
)
# Channels in and out, kernel, stride and length of convolutions over time.
TEMPORAL: Final = (
    *(
        (1, 64, 10, 5, 4000),
        (1, 32, 80, 4, 2000),
        (64, 64, 3, 1, 500),
        (40, 128, 9, 1, 98),
        (128, 128, 3, 2, 250),
    ),
    *((32, 32, 2, 1, 1000), (16, 64, 1, 1, 1000), (1, 96, 32, 8, 8000), (1, 48, 16, 4, 6000)),
)
# Rows, inputs and outputs of linear layers.
LINEAR: Final = (
    *(
        (1, 8, 16),
        (1, 32, 32),
        (1, 64, 10),
        (1, 256, 256),
        (1, 512, 512),
        (1, 1024, 1024),
        (1, 1280, 1000),
        (1, 4096, 1024),
    ),
    *((1, 128, 128), (1, 64, 512), (1, 512, 64), (1, 128, 512), (1, 512, 128), (1, 2048, 512)),
    *((16, 32, 64), (16, 128, 128), (49, 384, 384), (197, 192, 192), (197, 192, 576), (197, 192, 768)),
    *((197, 768, 192), (196, 256, 1024), (3136, 96, 384), (3136, 384, 96), (784, 192, 768), (49, 768, 3072)),
)
# Input and output channels, kernel, stride and side of transposed convolutions.
UPWARD: Final = (
    *((16, 8, 2, 2, 48), (32, 16, 2, 2, 24), (64, 32, 2, 2, 12), (128, 64, 2, 2, 28), (256, 128, 2, 2, 14)),
    *((64, 64, 4, 2, 14), (32, 16, 3, 2, 28), (16, 3, 4, 2, 28), (64, 2, 2, 2, 28), (32, 1, 9, 3, 24)),
)
SIDES: Final = (112, 56, 28, 14, 7, 4)
LEAST_MACS, MOST_MACS = 30_000, 60_000_000
MOST_ELEMENTS: Final = 800_000

# Of ONNX Runtime; processors differ, and of some fewer channels than half are read as they are.
CHANNELS_IN_BLOCK: Final = 16

# Linear layers of one row, with weights of so many bytes each and so many together: from when on they come from the
# outer caches, and from main memory.
STREAMED: Final = (
    *((2**18, kb * 2**10) for kb in (256, 512, 1024, 2048)),
    *((2**20, mb * 2**20) for mb in (4, 16, 64, 160)),
)
STREAMED_OUTS: Final = 256


def probes(format: str, precision: str) -> tuple[Probe, ...]:
    """What is timed in one runtime with one precision.

    Args:
        format: "onnx" or "tflite"; they stand for one another with other operators.
        precision: "int8" or "float32".
    """
    found = [_of_layer(shape, format, precision) for shape in layers()]
    if precision == "float32" or format == "tflite":
        # In integers neither runtime has them; LiteRT has another kernel where the weights come from integers.
        found += [_of_layer(shape, format, precision) for shape in upward()]
    found += [_streamed(precision, size, total) for size, total in STREAMED]
    found += light(format, precision)
    return (*found, *products(format)) if precision == "float32" else tuple(found)


def layers() -> tuple[LayerShape, ...]:
    """Shapes of all layers with weights, without doubles."""
    found: list[LayerShape] = []
    for ins, outs in POINTWISE:
        found += _sized([square(ins, outs, 1, side) for side in SIDES], 3)
    for ins, outs in SQUARE:
        found += _sized([square(ins, outs, 3, side) for side in SIDES], 3)
    for kernel, widths in DEPTHWISE.items():
        for n in widths:
            found += _sized([square(n, n, kernel, side, groups=n) for side in SIDES], 3)
    for n in (32, 96, 240, 480):
        found += _sized([square(n, n, 3, side, groups=n, stride=2) for side in SIDES], 1)
    for kernel, pairs in GROUPED.items():
        for n, groups in pairs:
            found += _sized([square(n, n, kernel, side, groups=groups) for side in SIDES], 3)
    for ins, outs, kernel, stride, padding, side in STRIDED:
        pair = (kernel,) * 2, (stride,) * 2, (1, 1), (padding,) * 2
        found.append(LayerShape("conv2d", ins, outs, *pair, 1, (side, side)))
    for ins, outs, kernel, stride, length in TEMPORAL:
        axis = (kernel,), (stride,), (1,), (0,)
        found.append(LayerShape("conv1d", ins, outs, *axis, 1, (length,)))
    found += [LayerShape("linear", ins, outs, size=(rows,)) for rows, ins, outs in LINEAR]
    return tuple(dict.fromkeys(found))


def upward() -> tuple[LayerShape, ...]:
    """Shapes of transposed convolutions."""
    return tuple(
        LayerShape(
            *("conv_transpose2d", ins, outs, (kernel,) * 2, (stride,) * 2), (1, 1), (0, 0), 1, (side, side)
        )
        for ins, outs, kernel, stride, side in UPWARD
    )


def square(ins: int, outs: int, kernel: int, side: int, *, groups: int = 1, stride: int = 1) -> LayerShape:
    """A convolution over a square that keeps its size, or has it by the stride."""
    return LayerShape(
        "conv2d", ins, outs, (kernel,) * 2, (stride,) * 2, (1, 1), (kernel // 2,) * 2, groups, (side, side)
    )


def ahead_of(probe: Probe, format: str) -> LayerShape | None:
    """What else the file of an operator computes: ONNX Runtime turns what it reads into blocks of channels, in float.

    Returns:
        A layer that takes its input and computes a single pixel of it; None where nothing is turned.
    """
    shape = probe.layer
    if format != "onnx" or probe.op.precision != "float32":
        return None
    if shape is None and probe.op.kind == "reduce":
        _, side, _, channels = probe.dims
        shape = square(channels, channels, 1, side)
    if shape is None or shape.op != "conv2d" or shape.in_channels < CHANNELS_IN_BLOCK // 2:
        return None
    # Where kernels take no blocks for so many channels or groups, nothing is turned here either.
    outs = shape.in_channels if shape.groups > 1 else CHANNELS_IN_BLOCK
    return LayerShape(
        *("conv2d", shape.in_channels, outs, (1, 1), shape.size, (1, 1), (0, 0), shape.groups, shape.size)
    )


def is_turned(ahead: LayerShape) -> bool:
    """Is what it reads turned on every processor, whole and once?"""
    return ahead.groups == 1 and ahead.in_channels % CHANNELS_IN_BLOCK == 0


def blocks_op(ahead: LayerShape) -> Op:
    """What `ahead_of` found, as an operator."""
    pixels = math.prod(ahead.size)
    return elementwise("blocks", "float32", ahead.in_channels * pixels, run=pixels)


def op_of(shape: LayerShape, precision: str) -> Op:
    """A layer as the readers of files see it."""
    rows = shape.op == "linear"
    depth, taps = shape.in_channels // shape.groups, math.prod(shape.kernel)
    positions = math.prod(shape.size if shape.transposed else shape.output_size)
    reads = shape.in_channels * math.prod(shape.size)
    if rows or shape.transposed:
        kind = "linear" if rows else "transposed"
        return weighted(kind, precision, (depth, shape.out_channels, taps, positions), reads=reads)
    weight, result = (shape.out_channels, depth, *shape.kernel), (1, shape.out_channels, *shape.output_size)
    return convolution(precision, weight, shape.groups, result, reads, "")


def _of_layer(shape: LayerShape, format: str, precision: str) -> Probe:
    exported = as_exported(shape) if format == "onnx" else shape
    return Probe(op_of(exported, precision), layer=shape)


def _streamed(precision: str, size: int, total: int) -> Probe:
    # Many inputs, so that a row is read and not computed.
    shape = LayerShape("linear", size // (STREAMED_OUTS * BYTES[precision]), STREAMED_OUTS, size=(1,))
    return Probe(op_of(shape, precision), layer=shape, copies=total // size)


def _sized(shapes: Iterable[LayerShape], n: int) -> Sequence[LayerShape]:
    """The largest that is not too large, and smaller ones in steps of two."""
    fitting = [s for s in shapes if LEAST_MACS <= s.macs <= MOST_MACS and _elements(s) <= MOST_ELEMENTS]
    return fitting[: 2 * n : 2]


def _elements(shape: LayerShape) -> int:
    return max(shape.in_channels, shape.out_channels) * math.prod(shape.size)
