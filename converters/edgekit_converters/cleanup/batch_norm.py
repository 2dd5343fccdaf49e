"""Batch norm is folded into the convolution or linear layer beside it.

With `scale = gamma / sqrt(var + eps)` and `shift = beta - mean * scale` (Ioffe and Szegedy 2015,
algorithm 2), `bn(conv(x, W) + b) = conv(x, scale * W) + scale * b + shift`, and
`conv(bn(x), W) + b = conv(x, W * scale) + b + sum(W * shift)` where the convolution does not pad.
A batch norm with neither neighbour becomes a depthwise 1 × 1 convolution: every runtime has an int8
kernel for that, with one scale per channel, while a multiply and an add on one scale per
tensor lose the small channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit_converters.cleanup.edit import (
    add_constant,
    aten,
    bind,
    calls,
    constant,
    insert,
    is_call,
    only_user,
    rank,
    replace,
)

# Forward convolution of each rank: (target, number of spatial dimensions).
CONVOLUTIONS: dict[Any, int] = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
TRANSPOSED: dict[Any, int] = {
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 2,
    aten.conv_transpose3d.input: 3,
}


def run(graph: GraphModule) -> int:
    """Folds every batch norm that has a constant neighbour; see `run_alone` for the rest.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of batch norms folded.
    """
    count = 0
    for node in calls(graph, aten.batch_norm.default):
        affine = _affine(graph, node)
        if affine is None:
            continue
        count += int(_fold_backward(graph, node, *affine) or _fold_forward(graph, node, *affine))
    return count


def run_alone(graph: GraphModule) -> int:
    """Turns the batch norms that are left into depthwise 1 × 1 convolutions, `(N, C)` ones into affine calls.

    Args:
        graph: functional program graph with `val` meta; edited.

    Returns:
        number of batch norms replaced.
    """
    count = 0
    for node in calls(graph, aten.batch_norm.default):
        affine = _affine(graph, node)
        if affine is not None:
            _replace_alone(graph, node, *affine)
            count += 1
    return count


def output_channels(node: Node) -> int | None:
    """Output axis of a convolution or linear call, counted from the front; None for other calls.

    An unbatched convolution is not counted.
    """
    spatial = CONVOLUTIONS.get(node.target, TRANSPOSED.get(node.target))
    if spatial is not None:
        return 1 if rank(node) == spatial + 2 else None
    dims = rank(node)
    return dims - 1 if is_call(node, aten.linear.default) and dims else None


def scale_output(graph: GraphModule, node: Node, scale: torch.Tensor, shift: torch.Tensor) -> bool:
    """Gives a convolution or linear call new constants so that it computes `scale * y + shift`.

    Args:
        graph: module to edit.
        node: the call; its weight and bias must be constants.
        scale: float64, one per output channel.
        shift: float64, one per output channel.

    Returns:
        False when the weight or the bias is computed, and nothing was changed.
    """
    arguments = bind(node)
    weight, bias = constant(graph, arguments["weight"]), constant(graph, arguments["bias"])
    if weight is None or (bias is None and arguments["bias"] is not None):
        return False
    old = torch.zeros_like(shift) if bias is None else bias.double()
    new_weight = _scaled(node, weight.double(), scale, arguments.get("groups", 1))
    _set_constants(graph, node, new_weight.to(weight.dtype), (old * scale + shift).to(weight.dtype))
    return True


def _scaled(node: Node, weight: torch.Tensor, scale: torch.Tensor, groups: int) -> torch.Tensor:
    if node.target not in TRANSPOSED:
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    # A transposed convolution stores (in, out / groups, …): output channel g * (out / groups) + j.
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    factor = scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.dim() - 2))
    return (grouped * factor).reshape(weight.shape)


def _set_constants(graph: GraphModule, node: Node, weight: torch.Tensor, bias: torch.Tensor) -> None:
    source = node.args[1]
    assert isinstance(source, Node)
    hint = str(source.target)
    stem = hint.removesuffix("weight")
    new_weight = add_constant(graph, node, f"{hint}_folded", weight, like=source)
    new_bias = add_constant(graph, node, f"{stem}bias_folded", bias, like=source)
    rest = node.args[3:]
    node.args = (node.args[0], new_weight, new_bias, *rest)
    node.kwargs = {name: value for name, value in node.kwargs.items() if name not in ("weight", "bias")}


def _affine(graph: GraphModule, node: Node) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift of a batch norm in float64, None when it normalises by the batch or is not constant."""
    arguments = bind(node)
    mean, var = (constant(graph, arguments[name]) for name in ("running_mean", "running_var"))
    if arguments["training"] or mean is None or var is None:
        return None
    scale = (var.double() + arguments["eps"]).rsqrt()
    shift = torch.zeros_like(scale)
    if arguments["weight"] is not None:
        gamma = constant(graph, arguments["weight"])
        if gamma is None:
            return None
        scale = scale * gamma.double()
    if arguments["bias"] is not None:
        beta = constant(graph, arguments["bias"])
        if beta is None:
            return None
        shift = beta.double()
    return scale, shift - mean.double() * scale


def _fold_backward(graph: GraphModule, node: Node, scale: torch.Tensor, shift: torch.Tensor) -> bool:
    source = node.args[0]
    if not isinstance(source, Node) or source.op != "call_function" or only_user(source) is not node:
        return False
    # Batch norm works on axis 1, which is the output axis of a linear layer on (N, C) only.
    if output_channels(source) != 1 or not scale_output(graph, source, scale, shift):
        return False
    replace(node, source)
    return True


def _fold_forward(graph: GraphModule, node: Node, scale: torch.Tensor, shift: torch.Tensor) -> bool:
    users = list(node.users)
    if not users or not all(_takes_affine(graph, user, node) for user in users):
        return False
    for user in users:
        arguments = bind(user)
        weight, bias = constant(graph, arguments["weight"]), constant(graph, arguments["bias"])
        assert weight is not None
        per_input = _per_input_channel(weight, scale, arguments.get("groups", 1))
        offset = _per_input_channel(weight, shift, arguments.get("groups", 1)) * weight.double()
        base = 0.0 if bias is None else bias.double()
        new_bias = base + offset.sum(dim=tuple(range(1, weight.dim())))
        _set_constants(graph, user, (weight.double() * per_input).to(weight.dtype), new_bias.to(weight.dtype))
    source = node.args[0]
    assert isinstance(source, Node)
    replace(node, source)
    return True


def _takes_affine(graph: GraphModule, user: Node, node: Node) -> bool:
    if user.target not in CONVOLUTIONS and not is_call(user, aten.linear.default):
        return False
    arguments = bind(user)
    if user.all_input_nodes.count(node) != 1 or arguments["input"] is not node or output_channels(user) != 1:
        return False
    if any(arguments.get("padding", ())):
        return False  # the padding is zero after the batch norm, not before it
    bias_ok = arguments["bias"] is None or constant(graph, arguments["bias"]) is not None
    return bias_ok and constant(graph, arguments["weight"]) is not None


def _per_input_channel(weight: torch.Tensor, values: torch.Tensor, groups: int) -> torch.Tensor:
    """Spreads one value per input channel over a weight of shape (out, in / groups, …)."""
    per_group = values.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
    return per_group.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.dim() - 2))


def _replace_alone(graph: GraphModule, node: Node, scale: torch.Tensor, shift: torch.Tensor) -> None:
    source = node.args[0]
    mean = node.args[3]
    assert isinstance(source, Node)
    assert isinstance(mean, Node)
    gamma = node.args[1] if isinstance(node.args[1], Node) else mean
    spatial = (rank(node) or 2) - 2
    kind = node.meta["val"].dtype
    hint = str(mean.target).removesuffix("running_mean").rstrip(".")
    if spatial not in (1, 2, 3):
        factor = add_constant(graph, node, f"{hint}_scale", scale.to(kind), like=gamma)
        offset = add_constant(graph, node, f"{hint}_shift", shift.to(kind), like=gamma)
        scaled = insert(graph, node, aten.mul.Tensor, source, factor)
        replace(node, insert(graph, node, aten.add.Tensor, scaled, offset))
        return
    kernel: Sequence[int] = (scale.numel(), 1, *[1] * spatial)
    weight = add_constant(graph, node, f"{hint}_weight", scale.to(kind).reshape(kernel), like=gamma)
    bias = add_constant(graph, node, f"{hint}_bias", shift.to(kind), like=gamma)
    ones, zeros = [1] * spatial, [0] * spatial
    target = next(target for target, dims in CONVOLUTIONS.items() if dims == spatial)
    replace(node, insert(graph, node, target, source, weight, bias, ones, zeros, ones, scale.numel()))
