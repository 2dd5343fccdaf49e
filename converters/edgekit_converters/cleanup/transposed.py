"""Transposed convolutions without output padding, which LiteRT's kernel does not have.

A transposed convolution writes `(n - 1) * stride + reach` places, `reach` being the extent of the dilated kernel, and
its padding says how many are cut off on the left; on the right, `output_padding` fewer. Here they are cut off by a
slice. Where more would have to be added than cut, one more zero comes in on the right.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import aten, bind, calls, insert, replace, shape

_TARGETS = (aten.conv_transpose1d.default, aten.conv_transpose2d.input)


def run(graph: GraphModule) -> int:
    """Rewrites every transposed convolution in one or two dimensions that has output padding.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of convolutions rewritten.
    """
    return sum(_rewrite(graph, node) for node in calls(graph, *_TARGETS))


def _rewrite(graph: GraphModule, node: Node) -> bool:
    a = bind(node)
    axes = 1 if node.target == _TARGETS[0] else 2
    added, padding = _each(a["output_padding"], axes), _each(a["padding"], axes)
    wanted = shape(node)
    if not any(added) or wanted is None or not all(isinstance(extent, int) for extent in wanted[-axes:]):
        return False
    source = a["input"]
    missing = [int(more > cut) for more, cut in zip(added, padding, strict=True)]
    if any(missing):
        # `pad` lists the last axis first.
        widths = [width for more in reversed(missing) for width in (0, more)]
        source = insert(graph, node, aten.constant_pad_nd.default, source, widths, 0.0)
    rest = (a["stride"], [0] * axes, [0] * axes, a["groups"], a["dilation"])
    found = insert(graph, node, node.target, source, a["weight"], a["bias"], *rest)
    for axis, (cut, extent) in enumerate(zip(padding, wanted[-axes:], strict=True)):
        found = insert(graph, node, aten.slice.Tensor, found, axis - axes + len(wanted), cut, cut + extent)
    replace(node, found)
    return True


def _each(value: Any, axes: int) -> list[int]:
    entries = [value] if isinstance(value, int) else list(value)
    return entries * axes if len(entries) == 1 else entries
