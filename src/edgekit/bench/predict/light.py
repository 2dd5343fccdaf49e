"""Operators without weights that a calibration times: those for each element, and those that move data in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from edgekit.bench.predict.ops import MOVING, TO_SPACE, Op, elementwise, turned
from edgekit.bench.predict.probe import Probe

# Of one tensor: from what a cache holds to what it does not.
ELEMENTS: Final = (512, 8_192, 65_536, 131_072, 262_144)
STRIP_TAPS: Final = 4
FEWER: Final = (2_048, 65_536)
CHANNELS: Final = 32
POOL_TAPS: Final = 9
# Windows over time, height and width, which step as wide as they are.
WINDOWS: Final = ((1, 2, 2), (2, 2, 2))
DEEP: Final = 4
# Of attention between all positions of an image: what several threads bring shows where there is enough for each.
MANY: Final = 1_048_576
# What softmax goes over, what norms go over, and what lies side by side where data are moved.
ROWS: Final = (8, 32, 64, 197, 512, 1000)
NORMED: Final = (64, 384)
PIECES: Final = (8, 32, 512)
# Besides 32, channels that have a number each.
OTHER_CHANNELS: Final = (8, 16, 128)
ENLARGED: Final = (1, 8, 32)
# Channels of images that are turned, and width of heads of attention.
TURNED: Final = (2, 8, 32, 128)
HEADS: Final = (16, 64)
# How much wider and higher pictures become, and how much of a border they get.
TWICE, BORDER = 2, 1

# Results of softmax and sigmoid are between 0 and 1: the grid that both runtimes want for them.
UNIT_SCALE, SCALE = 1 / 256, 0.05
UNIT: Final = frozenset({"softmax", "activation"})
# One beside the other, each on an input of its own: what they give does not fit what they take.
SEPARATE: Final = frozenset(
    {"reduce", "move", "slice", "transpose", "nearest", "repeat", "resize", "pad", "mirror"}
    | {"shuffle", "strip", "collapse"}
)


def stands_alone(op: Op) -> bool:
    """Does every operator of a file have an input of its own? XNNPACK would make one table of tables in a row."""
    return op.kind in SEPARATE or (op.kind, op.precision) == ("activation", "int8")


# Kinds that are not timed, by format and precision.
_ABSENT: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    # LiteRT makes several operators of norms and softplus, clips in what comes before, and pools images only.
    ("tflite", "int8"): frozenset({"norm", "clip", "strip", "elu", "softplus", "blocks"}),
    ("tflite", "float32"): frozenset({"norm", "clip", "strip", "elu", "softplus", "convert", "blocks"}),
    # In float between conversions; other axes cost nothing, and mirrored borders are borders.
    ("onnx", "int8"): frozenset(
        {"norm", "gelu", "elu", "softplus", "prelu", "choose", "strip", "resize", "copy", "mirror"}
        | {"repeat", "window", "blocks"}
    ),
    # What turns data into blocks of channels is timed with the layers that read them.
    ("onnx", "float32"): frozenset({"convert", "copy", "mirror", "repeat", "window", "blocks"}),
}


def light(format: str, precision: str) -> Iterator[Probe]:
    """What is timed in one runtime with one precision.

    Args:
        format: "onnx" or "tflite".
        precision: "int8" or "float32".
    """
    for kind in MOVING:
        if kind not in _ABSENT[format, precision]:
            yield from _BY_KIND.get(kind, _plain)(kind, format, precision)


def _plain(kind: str, format: str, precision: str) -> Iterator[Probe]:
    del format
    taps = POOL_TAPS if kind in ("pool", "average") else 1
    for elements in ELEMENTS:
        dims = _image(elements, CHANNELS)
        yield Probe(elementwise(kind, precision, math.prod(dims), taps=taps), dims=dims)


def _strips(kind: str, format: str, precision: str) -> Iterator[Probe]:
    """The maximum of every few that follow one another."""
    del format
    for elements in ELEMENTS:
        dims = (1, CHANNELS, elements // CHANNELS)
        work = math.prod(dims) // STRIP_TAPS
        yield Probe(elementwise(kind, precision, work, taps=STRIP_TAPS), dims=dims)


def _windows(kind: str, format: str, precision: str) -> Iterator[Probe]:
    """The maximum of windows over three axes, channels first."""
    del format
    for elements in FEWER:
        for window in WINDOWS:
            side = max(4, math.isqrt(elements // (CHANNELS * DEEP)) // TWICE * TWICE)
            volume, taps = (1, CHANNELS, DEEP, side, side), math.prod(window)
            op = elementwise(kind, precision, math.prod(volume) // taps, taps=taps)
            yield Probe(op, dims=(*volume, *window))


def _rows(kind: str, format: str, precision: str) -> Iterator[Probe]:
    del format
    for row in ROWS if kind == "softmax" else NORMED:
        for elements in (*FEWER, MANY) if kind == "softmax" else FEWER:
            dims = (max(1, elements // row), row)
            yield Probe(elementwise(kind, precision, math.prod(dims), run=row), dims=dims)


def _collapsed(kind: str, format: str, precision: str) -> Iterator[Probe]:
    """The largest of all rows, and of each row."""
    del format
    for row in NORMED:
        for elements in (*FEWER, ELEMENTS[-1]):
            dims = (1, max(2, elements // row), row)
            for run in (1, row):
                yield Probe(elementwise(kind, precision, math.prod(dims), run=run), dims=dims)


def _paired(kind: str, format: str, precision: str) -> Iterator[Probe]:
    """Of two tensors, and of one and a number for each channel, which LiteRT reads anew for each pixel."""
    last = format == "tflite"
    for elements in ELEMENTS:
        dims = _image(elements, CHANNELS)
        yield Probe(elementwise(kind, precision, math.prod(dims), wide=2), dims=dims)
        yield Probe(elementwise(kind, precision, math.prod(dims), run=CHANNELS if last else 1), dims=dims)
    for channels in OTHER_CHANNELS if last else ():
        for elements in (*FEWER, ELEMENTS[-1]):
            dims = _image(elements, channels)
            yield Probe(elementwise(kind, precision, math.prod(dims), run=channels), dims=dims)


def _copied(kind: str, format: str, precision: str) -> Iterator[Probe]:
    del format
    for elements in ELEMENTS:
        dims = _image(elements, CHANNELS)
        whole = math.prod(dims)
        yield Probe(elementwise(kind, precision, whole, run=whole), dims=dims)


def _moved(kind: str, format: str, precision: str) -> Iterator[Probe]:
    """Two tensors are joined along their last axis."""
    del format
    for channels in PIECES:
        for elements in ELEMENTS[1:]:
            dims = _image(elements // 2, channels)
            yield Probe(elementwise(kind, precision, 2 * math.prod(dims), run=channels), dims=dims)


def _sliced(kind: str, format: str, precision: str) -> Iterator[Probe]:
    """Every other row and column."""
    del format
    for channels in PIECES[:2]:
        for elements in FEWER:
            dims = _image(TWICE * TWICE * elements, channels, even=True)
            yield Probe(elementwise(kind, precision, math.prod(dims) // TWICE**2), dims=dims)


def _enlarged(kind: str, format: str, precision: str) -> Iterator[Probe]:
    # ONNX Runtime takes several threads for large ones only.
    sizes = (*FEWER, ELEMENTS[-1]) if (kind, format) == ("resize", "onnx") else FEWER
    # It has channels together between convolutions, and first elsewhere.
    together = kind == "resize" or precision == "int8"
    for channels in ENLARGED:
        runs = {channels} if format == "tflite" else {1, channels} if together else {1}
        for elements in sizes:
            dims = _image(elements // TWICE**2, channels)
            for run in sorted(runs):
                yield Probe(elementwise(kind, precision, math.prod(dims) * TWICE**2, run=run), dims=dims)


def _shuffled(kind: str, format: str, precision: str) -> Iterator[Probe]:
    """Channels become pixels, and in ONNX pixels become channels, as exported files begin."""
    for channels, wide in ((3, 1), (16, TO_SPACE)):
        for elements in (*FEWER, ELEMENTS[-1]) if wide == TO_SPACE or format == "onnx" else ():
            dims = _image(elements, channels, even=True)
            yield Probe(elementwise(kind, precision, math.prod(dims), wide=wide), dims=dims)


def _bordered(kind: str, format: str, precision: str) -> Iterator[Probe]:
    for channels in PIECES[:2]:
        for elements in FEWER:
            dims = _image(elements, channels)
            side = dims[1]
            run = side * (channels if format == "tflite" else 1)
            whole = channels * (side + 2 * BORDER) ** 2
            yield Probe(elementwise(kind, precision, whole, run=run), dims=dims)


def _turned(kind: str, format: str, precision: str) -> Iterator[Probe]:
    """Channels come first, heads of attention before their rows, and the last axis in the place of the first."""
    del kind, format
    for elements in (*FEWER, ELEMENTS[-1]):
        for channels in TURNED:
            dims, order = _image(elements, channels), (0, 3, 1, 2)
            yield Probe(turned(precision, dims, order), dims=dims, order=order)
        for width in HEADS:
            rows = max(2, elements // (4 * width))
            for dims, order in (((1, rows, 4, width), (0, 2, 1, 3)), ((1, width, 4, rows), (0, 3, 2, 1))):
                yield Probe(turned(precision, dims, order), dims=dims, order=order)


_BY_KIND: Final[Mapping[str, Callable[[str, str, str], Iterator[Probe]]]] = {
    "add": _paired,
    "mul": _paired,
    "strip": _strips,
    "window": _windows,
    "softmax": _rows,
    "norm": _rows,
    "collapse": _collapsed,
    "copy": _copied,
    "move": _moved,
    "slice": _sliced,
    "nearest": _enlarged,
    "repeat": _enlarged,
    "resize": _enlarged,
    "shuffle": _shuffled,
    "pad": _bordered,
    "mirror": _bordered,
    "transpose": _turned,
}


def _image(elements: int, channels: int, *, even: bool = False) -> tuple[int, int, int, int]:
    """A square of so many channels with about so many elements."""
    side = max(2, math.isqrt(elements // channels))
    return 1, side + side % 2 if even else side, side + side % 2 if even else side, channels
