"""Averages over the whole plane in one form: `adaptive_avg_pool2d(x, [1, 1])`, then `flatten` where wanted.

LiteRT lowers it to an integer MEAN without a transpose (a `mean` that drops the axes gets one), ONNX to
GlobalAveragePool, for which ONNX Runtime has an int8 kernel while ReduceMean has none.
Other pools: an adaptive pool whose output divides its input is a plain one, and an average over windows that run
past the edge (`ceil_mode`) is spelled out, because the runtimes divide such windows by other counts than torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import (
    add_constant,
    aten,
    bind,
    calls,
    insert,
    is_call,
    is_float,
    only_user,
    rank,
    replace,
    same_tensor_type,
    shape,
)


def run(graph: GraphModule) -> int:
    """Rewrites global averages and divisible adaptive pools.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of pools rewritten.
    """
    count = 0
    for target, rewrite in _REWRITES:
        for node in calls(graph, target):
            count += int(rewrite(graph, node))
    return count


def _mean(graph: GraphModule, node: Node) -> bool:
    """`mean` over both axes of a plane, with or without `keepdim`."""
    arguments = bind(node)
    source, dims = arguments["self"], arguments["dim"]
    if rank(source) != 4 or not dims or arguments["dtype"] is not None or not is_float(source):
        return False
    if sorted(dim % 4 for dim in dims) != [2, 3]:
        return False
    pooled = insert(graph, node, aten.adaptive_avg_pool2d.default, source, [1, 1])
    if not arguments["keepdim"]:
        pooled = insert(graph, node, aten.flatten.using_ints, pooled, 1)
    replace(node, pooled)
    return True


def _mean_of_means(graph: GraphModule, node: Node) -> bool:
    """`x.mean(3).mean(2)`, and `x.flatten(2).mean(-1)`."""
    arguments = bind(node)
    source, dims = arguments["self"], arguments["dim"]
    if (
        arguments["dtype"] is not None
        or not is_float(node)
        or not isinstance(source, Node)
        or len(dims or ()) != 1
    ):
        return False
    axis = dims[0] % (rank(source) or 1)
    plane = _flattened_plane(source) if axis == 2 else None
    if plane is None:
        return False
    pooled = insert(graph, node, aten.adaptive_avg_pool2d.default, plane, [1, 1])
    replace(node, insert(graph, node, aten.flatten.using_ints, pooled, 2 if arguments["keepdim"] else 1))
    return True


def _flattened_plane(node: Node) -> Node | None:
    """The (N, C, H, W) tensor that `node` is the (N, C, H * W) form of."""
    if node.target not in (aten.flatten.using_ints, aten.reshape.default) or rank(node) != 3:
        return None
    source = node.args[0]
    before, after = shape(source), shape(node)
    if before is None or after is None or len(before) != 4:
        return None
    kept = isinstance(before[1], int) and before[1] == after[1] and same_first(before, after)
    return source if kept and isinstance(source, Node) else None


def same_first(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether two shapes have one batch extent."""
    return bool(left[0] == right[0])


def _average(graph: GraphModule, node: Node) -> bool:
    """`avg_pool2d` over the full extent; with `ceil_mode` the window may be larger than the plane."""
    arguments = bind(node)
    extents, pooled = shape(arguments["self"]), shape(node)
    if extents is None or pooled is None or len(extents) != 4 or arguments["divisor_override"] is not None:
        return False
    if any(arguments["padding"]) or pooled[2:] != (1, 1):
        return False
    kernel = _pair(arguments["kernel_size"])
    if not all(isinstance(e, int) and k >= e for k, e in zip(kernel, extents[2:], strict=True)):
        return False
    replace(node, insert(graph, node, aten.adaptive_avg_pool2d.default, arguments["self"], [1, 1]))
    return True


def _ceil_average(graph: GraphModule, node: Node) -> bool:
    """`avg_pool2d` with `ceil_mode`: without it where it changes nothing, else over a wider plane of zeros.

    Torch divides a window that runs past the edge by the elements inside of it. Here the zeros count too, and a
    constant per window makes up for them.
    """
    a = bind(node)
    extents, wanted = shape(a["self"]), shape(node)
    if not a["ceil_mode"] or extents is None or wanted is None or len(extents) != 4:
        return False
    if a["divisor_override"] is not None or not all(isinstance(extent, int) for extent in extents[2:]):
        return False
    kernel, padding = _pair(a["kernel_size"]), _pair(a["padding"])
    stride = _pair(a["stride"]) if a["stride"] else kernel
    reach = [(w - 1) * s + k - p for w, s, k, p in zip(wanted[2:], stride, kernel, padding, strict=True)]
    past = [r - e - p for r, e, p in zip(reach, extents[2:], padding, strict=True)]
    if max(past) <= 0:
        rest = (a["self"], kernel, stride, padding, False, a["count_include_pad"])
        replace(node, insert(graph, node, aten.avg_pool2d.default, *map(_listed, rest)))
        return True
    # `pad` lists the last axis first.
    widths = [n for p, e in zip(padding[::-1], past[::-1], strict=True) for n in (p, p + max(e, 0))]
    wider = insert(graph, node, aten.constant_pad_nd.default, a["self"], widths, 0.0)
    pooled = insert(graph, node, aten.avg_pool2d.default, wider, list(kernel), list(stride))
    ones = torch.ones(1, 1, *extents[2:])
    include = bool(a["count_include_pad"])
    exact = F.avg_pool2d(ones, kernel, stride, padding, ceil_mode=True, count_include_pad=include)
    raw = F.avg_pool2d(F.pad(ones, widths), kernel, stride=stride)
    share = add_constant(graph, node, f"{node.name}_share", exact / raw, like=node)
    replace(node, insert(graph, node, aten.mul.Tensor, pooled, share))
    return True


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _adaptive_max(graph: GraphModule, node: Node) -> bool:
    """An adaptive maximum whose output divides its input, and whose indices nobody reads, is a plain one."""
    arguments = bind(node)
    extents, wanted = shape(arguments["self"]), _pair(arguments["output_size"])
    if extents is None or len(extents) != 4 or not all(isinstance(extent, int) for extent in extents[2:]):
        return False
    if any(extent % size for extent, size in zip(extents[2:], wanted, strict=True)):
        return False
    if any(not is_call(user, operator.getitem) or (user.args[1] and user.users) for user in node.users):
        return False
    kernel = [extent // size for extent, size in zip(extents[2:], wanted, strict=True)]
    new = insert(graph, node, aten.max_pool2d.default, arguments["self"], kernel, kernel)
    for user in list(node.users):
        replace(user, new)
    graph.graph.erase_node(node)
    return True


def _adaptive(graph: GraphModule, node: Node) -> bool:
    """An adaptive pool whose output divides its input has one kernel size everywhere."""
    arguments = bind(node)
    extents, wanted = shape(arguments["self"]), _pair(arguments["output_size"])
    if extents is None or len(extents) != 4 or not all(isinstance(extent, int) for extent in extents[2:]):
        return False
    if same_tensor_type(arguments["self"], node):
        replace(node, arguments["self"])
        return True
    if wanted == (1, 1) or any(extent % size for extent, size in zip(extents[2:], wanted, strict=True)):
        return False
    kernel = [extent // size for extent, size in zip(extents[2:], wanted, strict=True)]
    replace(node, insert(graph, node, aten.avg_pool2d.default, arguments["self"], kernel, kernel))
    return True


def _squeezed(graph: GraphModule, node: Node) -> bool:
    """`reshape` and `squeeze` after a global average become `flatten`, which names no batch size."""
    source, extents = node.args[0], shape(node)
    if not isinstance(source, Node) or source.target != aten.adaptive_avg_pool2d.default or extents is None:
        return False
    pooled = shape(source)
    if pooled is None or len(pooled) != 4 or len(extents) not in (2, 3):
        return False
    if list(pooled[2:]) == [1, 1] and len(extents) == 3:
        return _first_squeeze(graph, node, source)
    if list(pooled[2:]) != [1, 1] or extents[1] != pooled[1] or not same_first(extents, pooled):
        return False
    replace(node, insert(graph, node, aten.flatten.using_ints, source, 1))
    return True


def _first_squeeze(graph: GraphModule, node: Node, source: Node) -> bool:
    """`squeeze(-1).squeeze(-1)`."""
    second = only_user(node)
    if second is None or second.target not in (aten.squeeze.dim, aten.squeeze.default, aten.squeeze.dims):
        return False
    before, after = shape(source), shape(second)
    if (
        before is None
        or after is None
        or len(after) != 2
        or after[1] != before[1]
        or not same_first(after, before)
    ):
        return False
    replace(second, insert(graph, second, aten.flatten.using_ints, source, 1))
    graph.graph.erase_node(node)
    return True


def _pair(value: Any) -> tuple[Any, ...]:
    entries = tuple(value) if isinstance(value, list | tuple) else (value,)
    return entries * 2 if len(entries) == 1 else entries


_SHAPES = (aten.reshape.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
_REWRITES: tuple[tuple[Any, Callable[[GraphModule, Node], bool]], ...] = (
    (aten.mean.dim, _mean),
    (aten.mean.dim, _mean_of_means),
    (aten.avg_pool2d.default, _average),
    (aten.avg_pool2d.default, _ceil_average),
    (aten.adaptive_max_pool2d.default, _adaptive_max),
    (aten.adaptive_avg_pool2d.default, _adaptive),
    *((target, _squeezed) for target in _SHAPES),
)
