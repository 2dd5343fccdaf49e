"""An operator as a roofline sees it: how much it computes, how much it moves, and what its shape is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

# Kinds whose work is counted in multiply-accumulates, and those of which it is elements that are read or written.
COMPUTING: Final = (
    *("conv", "grouped", "depthwise", "transposed", "volume", "linear", "matmul", "einsum", "recurrent"),
)
MOVING: Final = (
    *("add", "mul", "clip", "prelu", "choose", "activation", "elu", "softplus", "gelu"),
    *("pool", "strip", "window", "average", "reduce", "collapse", "softmax", "norm", "convert"),
    *("copy", "move", "blocks", "slice", "transpose"),
    *("nearest", "repeat", "resize", "pad", "mirror", "shuffle"),
)
MACS: Final = frozenset(COMPUTING)
KINDS: Final = (*COMPUTING, *MOVING)
# Of weights of a convolution over three axes.
VOLUME_AXES: Final = 5
PRECISIONS: Final = ("int8", "float32")
BYTES: Final[Mapping[str, int]] = {"int8": 1, "float32": 4}

# `outs` of what makes pixels of channels; of channels from pixels it is 1.
TO_SPACE: Final = 2

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """One operator of a file.

    Attributes:
        kind: from `KINDS`.
        precision: that it computes in, from `PRECISIONS`.
        work: multiply-accumulates for the kinds of `MACS`, else elements.
        depth: input channels that one result sums over; without multiplications, the neighbours that are handled
            together: a row of softmax, what lies in one piece where data are moved, channels that have a number each.
        outs: output channels, of one group; of a transposition, the shorter side; of sums and products of tensors, how
            many are as large as the result; `TO_SPACE` where channels become pixels.
        taps: elements of the kernel or window.
        positions: results of each output channel over all groups; without multiplications, the pieces.
        weight_bytes: of constants that are read.
        moved_bytes: of activations that are read and written.
        name: in its file, for people.
        unknown: its type, where nothing is known of it and it is counted as an addition.

    Raises:
        ValueError: an unknown kind or precision, or a number below its minimum.
    """

    kind: str
    precision: str
    work: int
    depth: int = 1
    outs: int = 1
    taps: int = 1
    positions: int = 1
    weight_bytes: int = 0
    moved_bytes: int = 0
    name: str = ""
    unknown: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.precision not in PRECISIONS:
            raise ValueError(
                f"{self.kind} in {self.precision}: expected one of {', '.join(KINDS)} in int8 or float32"
            )
        least = min(self.depth, self.outs, self.taps, self.positions)
        if least < 1 or min(self.work, self.weight_bytes, self.moved_bytes) < 0:
            raise ValueError(f"{self}: expected sizes of at least 1 and work of at least 0")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """What decides how well its kernel works: depth, outs, taps, positions."""
        return self.depth, self.outs, self.taps, self.positions


def weighted(
    kind: str, precision: str, shape: tuple[int, int, int, int], *, reads: int = 0, name: str = ""
) -> Op:
    """An operator that multiplies.

    Args:
        kind: from `MACS`.
        precision: that it computes in.
        shape: depth, outs, taps, positions.
        reads: elements of the activations that it reads.
        name: in its file.
    """
    depth, outs, taps, positions = (max(1, n) for n in shape)
    weights, size = depth * outs * taps, BYTES[precision]
    constant = 0 if kind in ("matmul", "einsum") else weights * size
    return Op(
        kind,
        precision,
        weights * positions,
        depth,
        outs,
        taps,
        positions,
        constant,
        (reads + outs * positions) * size,
        name,
    )


def convolution(precision: str, weight: Shape, groups: int, result: Shape, reads: int, name: str) -> Op:
    """A convolution, by the usual order of axes.

    Args:
        precision: that it computes in.
        weight: `[out, in / groups, *kernel]`.
        groups: of the channels.
        result: `[batch, out, *size]`.
        reads: elements of the input.
        name: in its file.
    """
    outs, depth = weight[0], weight[1]
    positions = math.prod((result[0], *result[2:]))
    kind = "depthwise" if depth == 1 and groups > 1 else "grouped" if groups > 1 else "conv"
    if len(weight) == VOLUME_AXES:
        kind = "volume"
    if kind == "grouped":
        # Runtimes go from group to group.
        outs, positions = outs // groups, positions * groups
    return weighted(kind, precision, (depth, outs, math.prod(weight[2:]), positions), reads=reads, name=name)


def elementwise(
    kind: str, precision: str, elements: int, *, taps: int = 1, run: int = 1, wide: int = 1, name: str = ""
) -> Op:
    """An operator that does a little for each element.

    Args:
        kind: none of `MACS`.
        precision: that it computes in.
        elements: of its result, or of its input where that is larger.
        taps: elements of the window of a pool.
        run: neighbours that are handled together.
        wide: the shorter side of what is transposed, how many tensors as large as the result are read, or `TO_SPACE`.
        name: in its file.
    """
    moved, run = 2 * elements * BYTES[precision], max(1, min(run, elements))
    pieces = max(1, elements // run)
    return Op(kind, precision, elements * taps, run, max(1, wide), taps, pieces, moved_bytes=moved, name=name)


def turned(precision: str, shape: Shape, order: Sequence[int], name: str = "") -> Op:
    """A transposition: axes at the end that stay there move as one piece.

    Where two blocks of axes change places, as channels and pixels do, the smaller one counts; any other order has none.

    Args:
        precision: that it computes in.
        shape: of the input.
        order: of its axes in the result.
        name: in its file.
    """
    elements, blocks = math.prod(shape), _blocks(shape, order)
    if len(blocks) < 2:
        return elementwise("copy", precision, elements, run=elements, name=name)
    last, size = blocks[-1]
    if last == len(blocks) - 1:
        return elementwise("transpose", precision, elements, run=size, name=name)
    moving = [size for at, (first, size) in enumerate(blocks) if at or first]
    wide = min(moving) if len(moving) == 2 else 1
    return elementwise("transpose", precision, elements, wide=wide, name=name)


def _blocks(shape: Shape, order: Sequence[int]) -> list[tuple[int, int]]:
    """Axes that stay side by side as one, in the order of the result: where each was, and its elements."""
    several = [axis for axis, n in enumerate(shape) if n > 1]
    found: list[list[int]] = []
    for rank in (several.index(axis) for axis in order if shape[axis] > 1):
        if found and found[-1][-1] == rank - 1:
            found[-1].append(rank)
        else:
            found.append([rank])
    firsts = sorted(block[0] for block in found)
    return [(firsts.index(block[0]), math.prod(shape[several[rank]] for rank in block)) for block in found]


def piece(whole: Shape, part: Shape) -> int:
    """Elements that lie side by side in a tensor and in what is cut out of it or put around it.

    Args:
        whole: its axes.
        part: of the other one, as many.
    """
    size = 1
    for one, other in zip(reversed(whole), reversed(part), strict=True):
        size *= min(one, other)
        if one != other:
            break
    return size


def behind(shape: Sequence[int], axes: Sequence[int]) -> int:
    """Elements that lie side by side behind the last axis that is reduced; without axes all of them are.

    Args:
        shape: of the input.
        axes: that are reduced, from either end.
    """
    last = max((axis % len(shape) for axis in axes), default=len(shape))
    return math.prod(shape[last + 1 :])


def whole_tensors(sizes: Sequence[int], elements: int) -> int:
    """How many as large as the result a sum or a product reads, one at least and two at most.

    Args:
        sizes: elements of what is read, without constants.
        elements: of the result.
    """
    return min(2, max(1, sizes.count(elements)))


def total(ops: Sequence[Op], of: Callable[[Op], int]) -> int:
    """Sum of a number over operators."""
    return sum(of(op) for op in ops)
