"""One spelling for calls that differ only in how they were exported (core ATen, cuDNN, named padding)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import aten, bind, calls, insert, is_call, rank, replace


def run(graph: GraphModule) -> int:
    """Rewrites variants to the overloads that `torch.export` gives for the everyday modules.

    Args:
        graph: functional program graph; edited.

    Returns:
        number of calls rewritten.
    """
    count = 0
    for target, rewrite in _SPELLINGS:
        for node in calls(graph, target):
            count += int(rewrite(graph, node))
    return count


def _first_result(graph: GraphModule, node: Node, target: Any, *args: Any, **kwargs: Any) -> bool:
    """Replaces a call that returns several tensors, of which only the first is read."""
    if not all(is_call(user, operator.getitem) and user.args[1] == 0 for user in node.users):
        return False
    new = insert(graph, node, target, *args, **kwargs)
    for user in list(node.users):
        replace(user, new)
    graph.graph.erase_node(node)
    return True


def _renamed(graph: GraphModule, node: Node, target: Any, *args: Any) -> bool:
    replace(node, insert(graph, node, target, *args))
    return True


def _batch_norm(graph: GraphModule, node: Node) -> bool:
    a = bind(node)
    if a.get("training"):
        return False
    epsilon = a["epsilon"] if "epsilon" in a else a["eps"]
    momentum = a["exponential_average_factor"] if "exponential_average_factor" in a else a["momentum"]
    args = (
        a["input"],
        a["weight"],
        a["bias"],
        a["running_mean"],
        a["running_var"],
        False,
        momentum,
        epsilon,
        False,
    )
    return _first_result(graph, node, aten.batch_norm.default, *args)


def _layer_norm(graph: GraphModule, node: Node) -> bool:
    a = bind(node)
    args = (a["input"], a["normalized_shape"], a["weight"], a["bias"], a["eps"])
    return _first_result(graph, node, aten.layer_norm.default, *args)


def _group_norm(graph: GraphModule, node: Node) -> bool:
    a = bind(node)
    return _first_result(
        graph, node, aten.group_norm.default, a["input"], a["group"], a["weight"], a["bias"], a["eps"]
    )


def _max_pool(graph: GraphModule, node: Node) -> bool:
    return _first_result(graph, node, aten.max_pool2d.default, *node.args)


def _dropout(graph: GraphModule, node: Node) -> bool:
    a = bind(node)
    return not a["train"] and _first_result(graph, node, aten.clone.default, a["input"])


def _softmax(graph: GraphModule, node: Node) -> bool:
    a = bind(node)
    return not a["half_to_float"] and _renamed(graph, node, aten.softmax.int, a["self"], a["dim"])


def _log_softmax(graph: GraphModule, node: Node) -> bool:
    a = bind(node)
    return not a["half_to_float"] and _renamed(graph, node, aten.log_softmax.int, a["self"], a["dim"])


def _adaptive_pool(graph: GraphModule, node: Node) -> bool:
    return _renamed(graph, node, aten.adaptive_avg_pool2d.default, *node.args)


def _view(graph: GraphModule, node: Node) -> bool:
    """`view` asks for strides, which the removal of a `contiguous` may change; no format has strides."""
    return _renamed(graph, node, aten.reshape.default, *node.args)


def _amax_pair(graph: GraphModule, node: Node) -> bool:
    a = bind(node)
    return _first_result(graph, node, aten.amax.default, a["self"], [a["dim"]], a["keepdim"])


def _amin_pair(graph: GraphModule, node: Node) -> bool:
    a = bind(node)
    return _first_result(graph, node, aten.amin.default, a["self"], [a["dim"]], a["keepdim"])


def _convolution(graph: GraphModule, node: Node) -> bool:
    """`aten.convolution` is what every convolution becomes in core ATen."""
    a = bind(node)
    spatial = (rank(a["weight"]) or 0) - 2
    if spatial not in (1, 2, 3):
        return False
    common = (a["input"], a["weight"], a["bias"], a["stride"], a["padding"])
    if a["transposed"]:
        target = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)[
            spatial - 1
        ]
        return _renamed(graph, node, target, *common, a["output_padding"], a["groups"], a["dilation"])
    target = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)[spatial - 1]
    return _renamed(graph, node, target, *common, a["dilation"], a["groups"])


def _named_padding(target: Any) -> Callable[[GraphModule, Node], bool]:
    """`padding="same"` as numbers; where left and right differ, an explicit pad carries the difference."""

    def rewrite(graph: GraphModule, node: Node) -> bool:
        a = bind(node)
        kernel = [int(extent) for extent in a["weight"].meta["val"].shape[2:]]
        dilation = list(a["dilation"]) * (len(kernel) if len(a["dilation"]) == 1 else 1)
        source = a["input"]
        total = [0 for _ in kernel]
        if a["padding"] == "same":
            total = [step * (extent - 1) for step, extent in zip(dilation, kernel, strict=True)]
        symmetric = all(width % 2 == 0 for width in total)
        if not symmetric:
            # torch puts the odd element on the right; `pad` lists the last axis first.
            pads = [side for width in reversed(total) for side in (width // 2, width - width // 2)]
            source = insert(graph, node, aten.constant_pad_nd.default, source, pads, 0.0)
        padding = [width // 2 if symmetric else 0 for width in total]
        args = (source, a["weight"], a["bias"], a["stride"], padding, a["dilation"], a["groups"])
        return _renamed(graph, node, target, *args)

    return rewrite


_SPELLINGS: tuple[tuple[Any, Callable[[GraphModule, Node], bool]], ...] = (
    (aten._native_batch_norm_legit_no_training.default, _batch_norm),
    (aten.native_batch_norm.default, _batch_norm),
    (aten.cudnn_batch_norm.default, _batch_norm),
    (aten.native_layer_norm.default, _layer_norm),
    (aten.native_group_norm.default, _group_norm),
    (aten.max_pool2d_with_indices.default, _max_pool),
    (aten.native_dropout.default, _dropout),
    (aten._softmax.default, _softmax),
    (aten._log_softmax.default, _log_softmax),
    (aten._adaptive_avg_pool2d.default, _adaptive_pool),
    (aten._unsafe_view.default, _view),
    (aten.view.default, _view),
    (aten.max.dim, _amax_pair),
    (aten.min.dim, _amin_pair),
    (aten.convolution.default, _convolution),
    (aten.conv1d.padding, _named_padding(aten.conv1d.default)),
    (aten.conv2d.padding, _named_padding(aten.conv2d.default)),
    (aten.conv3d.padding, _named_padding(aten.conv3d.default)),
)
