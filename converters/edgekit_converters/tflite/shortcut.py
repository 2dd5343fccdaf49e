"""A shortcut that takes every second pixel, as a convolution by ones and zeros.

XNNPACK has no strided slice and no pool of one pixel for integers, so LiteRT leaves its delegate for them and comes
back: a partition more for each shortcut of a ResNet for CIFAR (He et al. 2016, section 4.2, option A). A convolution
with a weight of 1 at scale 1.0 hands the integers on as they are, with nothing to round, and appends the empty channels
too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from edgekit_converters.shortcut import Shortcut

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed

# Beyond this many channels each is convolved by itself, and the pad stays: products with zero are work too.
MOST_CHANNELS: Final = 32
PLANE_RANK: Final = 4
# Scale, zero point and limits of a quantize or dequantize op.
GRID: Final = slice(1, 6)


def convolve_shortcuts(graph: GraphModule) -> int:
    """Rewrite strided slices and pools of one pixel between tensors of one grid, with the pads around them.

    Args:
        graph: quantized graph whose weights are unfolded; edited in place.

    Returns:
        number of convolutions.
    """
    count = 0
    done: set[Node] = set()
    for last in reversed(list(graph.graph.nodes)):
        if last in done:
            continue
        steps = [last]
        while (before := _step_before(steps[0])) is not None:
            steps.insert(0, before)
        if _convolve(graph, steps):
            done.update(steps)
            count += 1
    if count:
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return count


def _convolve(graph: GraphModule, steps: list[Node]) -> bool:
    """Put one convolution in place of ops that follow one another, if all of them together are a shortcut."""
    whole, parts = Shortcut(), [_shortcut(step) for step in steps]
    for part in parts:
        if part is None:
            return False
        whole = whole.then(part)
    source, channels = steps[0].args[0], steps[0].meta["val"].shape[1] - _added(parts[0])
    if whole.rows * whole.columns == 1 or not isinstance(channels, int) or not _keeps_grid(steps[-1]):
        return False
    assert isinstance(source, Node)
    last = steps[-1]
    with graph.graph.inserting_before(last):
        strides = [whole.rows, whole.columns]
        if channels <= MOST_CHANNELS:
            weight = torch.zeros(whole.before + channels + whole.behind, channels, 1, 1)
            weight[whole.before + torch.arange(channels), torch.arange(channels)] = 1.0
            new = _convolution(graph, last, source, weight, strides, 1)
        else:
            new = _convolution(graph, last, source, torch.ones(channels, 1, 1, 1), strides, channels)
            if whole.before + whole.behind:
                pads = [0, 0, 0, 0, whole.before, whole.behind]
                new = graph.graph.call_function(aten.constant_pad_nd.default, (_on(source, new), pads, 0.0))
    new.meta["val"] = last.meta["val"]
    last.replace_all_uses_with(new, propagate_meta=False)
    _erase(graph, steps)
    return True


def _erase(graph: GraphModule, steps: list[Node]) -> None:
    """From the last to the first, with the quantize and dequantize ops in between."""
    for step in reversed(steps):
        links = [step]
        if step is not steps[0]:
            dequantize = step.args[0]
            assert isinstance(dequantize, Node)
            quantize = dequantize.args[0]
            assert isinstance(quantize, Node)
            links += [dequantize, quantize]
        for node in links:
            graph.graph.erase_node(node)


def _added(part: Shortcut | None) -> int:
    return 0 if part is None else part.before + part.behind


def _convolution(
    graph: GraphModule, last: Node, source: Node, weight: torch.Tensor, strides: list[int], groups: int
) -> Node:
    name, count = f"_taken_by_{last.name}", len(weight)
    constants = (weight, torch.ones(count), torch.zeros(count, dtype=torch.int64))
    nodes = []
    for suffix, value in zip(("", "_scale", "_zero_point"), constants, strict=True):
        graph.register_buffer(name + suffix, value)
        node = graph.graph.get_attr(name + suffix)
        node.meta["val"] = value
        nodes.append(node)
    rest = (*nodes[1:], 0, -127, 127, torch.int8)
    integers = graph.graph.call_function(qd.quantize_per_channel.default, (nodes[0], *rest))
    real = graph.graph.call_function(qd.dequantize_per_channel.default, (integers, *rest))
    arguments = (source, real, None, strides, [0, 0], [1, 1], groups)
    made: Node = graph.graph.call_function(aten.conv2d.default, arguments)
    return made


def _on(like: Node, value: Node) -> Node:
    """Quantize and dequantize on the grid of `like`."""
    grid = like.args[GRID]
    integers = value.graph.call_function(qd.quantize_per_tensor.default, (value, *grid))
    made: Node = value.graph.call_function(qd.dequantize_per_tensor.default, (integers, *grid))
    return made


def _step_before(node: Node) -> Node | None:
    """The part of a shortcut whose output, on one grid with its input, only `node` reads."""
    if _shortcut(node) is None:
        return None
    dequantize = node.args[0]
    assert isinstance(dequantize, Node)
    quantize = dequantize.args[0]
    if not isinstance(quantize, Node) or quantize.target != qd.quantize_per_tensor.default:
        return None
    before = quantize.args[0]
    alone = all(len(n.users) == 1 for n in (dequantize, quantize))
    fits = isinstance(before, Node) and alone and _shortcut(before) is not None and _keeps_grid(before)
    return before if fits else None


def _keeps_grid(node: Node) -> bool:
    """Read by one quantize op alone, whose grid is that of the input."""
    source, users = node.args[0], list(node.users)
    return (
        isinstance(source, Node)
        and len(users) == 1
        and users[0].target == qd.quantize_per_tensor.default
        and users[0].args[GRID] == source.args[GRID]
    )


def _shortcut(node: Node) -> Shortcut | None:
    """What an op does if it takes every n-th row or column, or puts zeros around the channels."""
    part = PARTS.get(node.target) if node.op == "call_function" else None
    source = node.args[0] if part is not None else None
    if part is None or not isinstance(source, Node) or source.target != qd.dequantize_per_tensor.default:
        return None
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dim() != PLANE_RANK:
        return None
    return part(*node.args[1:], **node.kwargs)


def _slice(dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Shortcut | None:
    if start not in (None, 0) or end not in (None, sys.maxsize):
        return None
    strides = {2: Shortcut(rows=step), 3: Shortcut(columns=step)}
    return strides.get(dim % PLANE_RANK)


def _pool(kernel: Any, stride: Any = (), *rest: Any, **others: Any) -> Shortcut | None:
    """A pool of one pixel without padding; what else there is to set is left as it is by default."""
    if set(kernel) != {1} or others or any(value not in ([0, 0], [0], [1, 1], [1], False) for value in rest):
        return None
    rows, columns = (*stride, *stride)[:2] if stride else (1, 1)
    return Shortcut(rows, columns)


def _pad(pads: list[int], value: float | None = 0.0) -> Shortcut | None:
    pads = [*pads, *[0] * (2 * PLANE_RANK - len(pads))]
    channels = pads[4:6]
    if value or min(channels) < 0 or any(pads[:4]) or any(pads[6:]):
        return None
    return Shortcut(before=channels[0], behind=channels[1])


PARTS: Final[dict[object, Callable[..., Shortcut | None]]] = {
    aten.slice.Tensor: _slice,
    aten.max_pool2d.default: _pool,
    aten.avg_pool2d.default: _pool,
    aten.constant_pad_nd.default: _pad,
}
