"""What multiplies and is no layer over an image: products of activations, recurrent cells, convolutions of volumes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from edgekit.bench.predict.ops import weighted
from edgekit.bench.predict.probe import Probe

# Heads, rows, what is summed over, and columns of products of activations; attention has one long and one short side,
# and between channels two long ones with few rows.
PRODUCTS: Final = (
    *((2, 16, 16, 16), (3, 64, 64, 64), (4, 128, 128, 128), (3, 197, 64, 197), (3, 197, 197, 64)),
    *((4, 49, 32, 49), (4, 49, 49, 32), (2, 196, 16, 196), (2, 196, 196, 16)),
    *((1, 400, 16, 400), (1, 400, 400, 16), (1, 16, 400, 400), (2, 32, 512, 512)),
    *((4, 512, 16, 512), (4, 512, 512, 16)),
)
# Steps, inputs and state of recurrent cells with four gates.
CELLS: Final = ((12, 16, 8), (32, 128, 32), (50, 40, 64), (98, 64, 128))
GATES: Final = 4
# Channels in and out, extents of the kernel, and of the volume.
VOLUMES: Final = (
    *((3, 16, (3, 3, 3), (8, 28, 28)), (8, 8, (3, 3, 3), (8, 14, 14)), (16, 32, (1, 3, 3), (8, 14, 14))),
    *((32, 32, (3, 1, 1), (8, 14, 14)), (32, 64, (3, 3, 3), (4, 14, 14)), (64, 64, (3, 3, 3), (4, 7, 7))),
    *((3, 24, (3, 3, 3), (4, 64, 64)), (3, 8, (3, 3, 3), (16, 56, 56)), (16, 32, (1, 3, 3), (8, 28, 28))),
)


def products(format: str) -> Iterator[Probe]:
    """What is timed in one runtime, all of it in float32: in integers neither has them.

    Args:
        format: "onnx" or "tflite".
    """
    for heads, rows, depth, columns in PRODUCTS:
        for kind in ("matmul", "einsum") if format == "onnx" else ("matmul",):
            op = weighted(kind, "float32", (depth, columns, 1, heads * rows))
            yield Probe(op, dims=(heads, rows, depth, columns))
    # LiteRT's exporters write the steps of a cell one by one.
    for steps, inputs, state in CELLS if format == "onnx" else ():
        op = weighted("recurrent", "float32", (inputs + state, GATES * state, 1, steps))
        yield Probe(op, dims=(steps, inputs, state))
    for ins, outs, kernel, size in VOLUMES:
        op = weighted("volume", "float32", (ins, outs, math.prod(kernel), math.prod(size)))
        yield Probe(op, dims=(ins, outs, *kernel, *size))
