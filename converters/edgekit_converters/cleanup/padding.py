"""Explicit padding moves into the convolution or pool that reads it.

torch convolutions pad alike on both sides. Where the sum of the pads is symmetric, the pad disappears. Where
it is not (TensorFlow's SAME at stride 2, causal convolutions), one canonical form is left: a single
`aten.constant_pad_nd(x, pads, 0.0)` directly before a convolution whose own padding is zero. LiteRT makes a
SAME convolution of it where the sizes allow; ONNX writes it as asymmetric `pads`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.batch_norm import CONVOLUTIONS
from edgekit_converters.cleanup.edit import aten, bind, calls, insert, is_call, only_user, replace

Sides = list[tuple[int, int]]


def run(graph: GraphModule) -> int:
    """Folds or normalises constant pads.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of rewrites.
    """
    count = sum(_canonical(graph, node) for node in calls(graph, aten.pad.default))
    count += sum(_merged(graph, node) for node in calls(graph, aten.constant_pad_nd.default))
    for node in calls(graph, aten.constant_pad_nd.default):
        for user in list(node.users):
            rewrite = _CONSUMERS.get(user.target)
            count += int(rewrite is not None and user.args[0] is node and rewrite(graph, node, user))
        if not node.users:
            graph.graph.erase_node(node)
    return count


def _canonical(graph: GraphModule, node: Node) -> bool:
    """`pad(mode="constant")` is `constant_pad_nd`, without the zeros of outer axes."""
    arguments = bind(node)
    if arguments["mode"] != "constant" or not _is_literal(arguments["pad"]):
        return False
    value = 0.0 if arguments["value"] is None else arguments["value"]
    pads = _trimmed(list(arguments["pad"]))
    replace(node, insert(graph, node, aten.constant_pad_nd.default, arguments["self"], pads, value))
    return True


def _merged(graph: GraphModule, node: Node) -> bool:
    """Two pads in a row with one value."""
    outer = bind(node)
    source = outer["self"]
    if not is_call(source, aten.constant_pad_nd.default) or only_user(source) is not node:
        return False
    inner = bind(source)
    if inner["value"] != outer["value"] or not all(_is_literal(a["pad"]) for a in (inner, outer)):
        return False
    # A crop before a pad removes values that the sum of both would keep.
    if min(*inner["pad"], *outer["pad"]) < 0:
        return False
    length = max(len(inner["pad"]), len(outer["pad"]))
    widths = [[*a["pad"], *[0] * (length - len(a["pad"]))] for a in (inner, outer)]
    pads = [first + second for first, second in zip(*widths, strict=True)]
    replace(node, insert(graph, node, aten.constant_pad_nd.default, inner["self"], pads, outer["value"]))
    graph.graph.erase_node(source)
    return True


def _into_convolution(graph: GraphModule, pad: Node, user: Node) -> bool:
    arguments = bind(user)
    spatial = CONVOLUTIONS[user.target]
    sides = _sides(pad, spatial)
    if sides is None or bind(pad)["value"] != 0:
        return False
    own = _each(arguments["padding"], spatial)
    total = [(left + width, right + width) for (left, right), width in zip(sides, own, strict=True)]
    if all(left == right for left, right in total):
        source, padding = bind(pad)["self"], [left for left, _ in total]
    elif any(own):
        source = insert(graph, user, aten.constant_pad_nd.default, bind(pad)["self"], _flat(total), 0.0)
        padding = [0] * spatial
    else:
        return False
    weight, bias = arguments["weight"], arguments["bias"]
    user.args = (
        source,
        weight,
        bias,
        arguments["stride"],
        padding,
        arguments["dilation"],
        arguments["groups"],
    )
    user.kwargs = {}
    return True


def _into_max_pool(graph: GraphModule, pad: Node, user: Node) -> bool:
    """A max pool pads with minus infinity; zero does as well when nothing is below it."""
    a = bind(user)
    source, value = bind(pad)["self"], bind(pad)["value"]
    sides = _sides(pad, 2)
    nothing_below = _is_nonnegative(source)
    if sides is None or not (value == -math.inf or (value <= 0 and nothing_below)):
        return False
    own, kernel = _each(a["padding"], 2), _each(a["kernel_size"], 2)
    stride = _each(a["stride"] or a["kernel_size"], 2)
    total = [(left + width, right + width) for (left, right), width in zip(sides, own, strict=True)]
    symmetric = all(
        left == right and 2 * left <= size for (left, right), size in zip(total, kernel, strict=True)
    )
    if symmetric:
        user.args = (source, kernel, stride, [left for left, _ in total], a["dilation"], a["ceil_mode"])
    elif not any(own) and not a["ceil_mode"] and _same_as_ceil(source, sides, kernel, stride, a["dilation"]):
        user.args = (source, kernel, stride, [0, 0], a["dilation"], True)
    elif value != 0 and nothing_below:
        # Minus infinity has no place on an integer grid, zero has.
        pads = _flat(sides)
        user.args = (insert(graph, user, aten.constant_pad_nd.default, source, pads, 0.0), *user.args[1:])
        return True
    else:
        return False
    user.kwargs = {}
    return True


def _same_as_ceil(
    source: Node, sides: Sides, kernel: Sequence[int], stride: Sequence[int], dilation: Any
) -> bool:
    """Whether a pad on the right alone gives the windows that `ceil_mode` gives."""
    extents = _plane(source)
    if extents is None or any(step != 1 for step in _each(dilation, 2)):
        return False
    for extent, (left, right), size, step in zip(extents, sides, kernel, stride, strict=True):
        padded = (extent + right - size) // step + 1
        ceiled = -((size - extent) // step) + 1
        # A window may not start behind the input (torch, `pooling_output_shape`).
        ceiled -= int((ceiled - 1) * step >= extent)
        if left or padded != ceiled:
            return False
    return True


def _plane(node: Node) -> tuple[int, ...] | None:
    """The last two extents of a (N, C, H, W) tensor whose plane is fixed."""
    val = node.meta.get("val")
    extents = tuple(getattr(val, "shape", ()))[2:]
    return extents if len(extents) == 2 and all(isinstance(extent, int) for extent in extents) else None


def _into_average(_: GraphModule, pad: Node, user: Node) -> bool:
    """Zeros that are counted are what `count_include_pad` is."""
    a = bind(user)
    sides = _sides(pad, 2)
    if sides is None or bind(pad)["value"] != 0 or a["ceil_mode"] or a["divisor_override"] is not None:
        return False
    own, kernel = _each(a["padding"], 2), _each(a["kernel_size"], 2)
    if any(own) and not a["count_include_pad"]:
        return False
    total = [(left + width, right + width) for (left, right), width in zip(sides, own, strict=True)]
    if any(left != right or 2 * left > size for (left, right), size in zip(total, kernel, strict=True)):
        return False
    stride = _each(a["stride"] or a["kernel_size"], 2)
    user.args = (bind(pad)["self"], kernel, stride, [left for left, _ in total], False, True)
    user.kwargs = {}
    return True


def _is_nonnegative(node: object, depth: int = 8) -> bool:
    if not isinstance(node, Node) or depth == 0:
        return False
    if is_call(node, aten.relu.default, aten.sigmoid.default, aten.softmax.int):
        return True
    if is_call(node, aten.hardtanh.default):
        return bool(bind(node)["min_val"] >= 0)
    if is_call(node, *_KEEPS_SIGN):
        sources = node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
        return all(_is_nonnegative(source, depth - 1) for source in sources)
    return False


def _sides(pad: Node, spatial: int) -> Sides | None:
    """(left, right) for each spatial axis, first axis first; None when other axes are padded or it crops."""
    pads = bind(pad)["pad"]
    extents = len(getattr(pad.meta.get("val"), "shape", ()))
    if not _is_literal(pads) or len(pads) > 2 * spatial or extents != spatial + 2 or min(pads, default=0) < 0:
        return None
    full = [*pads, *[0] * (2 * spatial - len(pads))]
    return [(full[index], full[index + 1]) for index in range(0, 2 * spatial, 2)][::-1]


def _flat(sides: Sides) -> list[int]:
    """The argument of `constant_pad_nd`: last axis first."""
    return _trimmed([width for pair in reversed(sides) for width in pair])


def _trimmed(pads: list[int]) -> list[int]:
    while len(pads) > 2 and pads[-2:] == [0, 0]:
        pads = pads[:-2]
    return pads


def _is_literal(pads: Any) -> bool:
    return all(isinstance(width, int) for width in pads)


def _each(value: Any, count: int) -> list[int]:
    entries = list(value) if isinstance(value, list | tuple) else [value]
    return entries * count if len(entries) == 1 else entries


_KEEPS_SIGN = (
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.cat.default,
)
_CONSUMERS: dict[Any, Callable[[GraphModule, Node, Node], bool]] = {
    **dict.fromkeys(CONVOLUTIONS, _into_convolution),
    aten.max_pool2d.default: _into_max_pool,
    aten.avg_pool2d.default: _into_average,
}
