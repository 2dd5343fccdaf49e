"""A program that is captured for inference, made fit for training and brought back.

`torch.export` writes the mode of a network into its graph: batch norm takes its stored statistics, dropout does
nothing. Here these ops follow `module.training` again, weights are parameters that take gradients, and nodes of the
middle can be looked at (tapped). Names stay, so that what was learned finds its way back.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgekit_converters.program import Program

Outputs = tuple[Tensor, ...]
Taps = dict[str, Tensor]

# ATen op to the position of its flag `train`.
_MODES: Final[Mapping[str, int]] = {
    "batch_norm": 5,
    "dropout": 2,
    "feature_dropout": 2,
    "alpha_dropout": 2,
    "feature_alpha_dropout": 2,
    "lstm": 6,
    "gru": 6,
    "rnn_tanh": 6,
    "rnn_relu": 6,
}
# ATen op to the positions of what is learned; for graphs whose weights were frozen to constants.
_LEARNED: Final[Mapping[str, tuple[int, ...]]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "linear", "prelu"), (1, 2)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), (1, 2)),
    **dict.fromkeys(("batch_norm", "instance_norm", "rms_norm"), (1, 2)),
    **dict.fromkeys(("layer_norm", "group_norm"), (2, 3)),
    **dict.fromkeys(("matmul", "mm", "bmm"), (0, 1)),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), (2,)),
    "addmm": (0, 1, 2),
    "embedding": (0,),
}
# ATen convolution to the position of its number of groups.
_GROUPED: Final[Mapping[str, int]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), 6),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 6),
    "convolution": 8,
}
# What torch takes where a module had `momentum=None`; a graph keeps no count of batches for a cumulative mean.
_MOMENTUM: Final = 0.1
ATTENTION: Final = "scaled_dot_product_attention"


class Trainable(nn.Module):  # type: ignore[misc]
    """A program as a module that can be trained; `trainable` makes it.

    Args:
        net: gives the outputs and the tapped tensors as two tuples.
        taps: names of the tapped nodes.
        one_by_one: the graph takes one sample at a time.
    """

    def __init__(self, net: GraphModule, taps: tuple[str, ...], *, one_by_one: bool) -> None:
        super().__init__()
        self.net, self.taps, self._one_by_one = net, taps, one_by_one

    def forward(self, *inputs: Tensor) -> tuple[Outputs, Taps]:
        """Run the network.

        Args:
            inputs: as the program takes them, any number of samples.

        Returns:
            The outputs of the program, and the tapped tensors by name of their node.
        """
        if not self._one_by_one:
            outputs, tapped = self.net(*inputs)
            return outputs, dict(zip(self.taps, tapped, strict=True))
        rows = [self.net(*(x[i : i + 1] for x in inputs)) for i in range(len(inputs[0]))]
        columns = zip(*(row[0] for row in rows), strict=True)
        outputs = tuple(torch.cat(column) for column in columns)
        tapped = tuple(torch.cat(column) for column in zip(*(row[1] for row in rows), strict=True))
        return outputs, dict(zip(self.taps, tapped, strict=True))


class _Moded(nn.Module):  # type: ignore[misc]
    """An op whose flag `train` follows the mode of the network."""

    def __init__(self, op: Any, flag: int, *, fixed: bool) -> None:
        super().__init__()
        self.op, self.flag, self.fixed = op, flag, fixed

    def forward(self, *args: Any) -> Any:
        """The op on its arguments, but for the flag."""
        train = self.training and not self.fixed
        return self.op(*args[: self.flag], train, *args[self.flag + 1 :])


class _Norm(nn.Module):  # type: ignore[misc]
    """Batch norm in the mode of the network; a single value per channel has no variance to normalise by."""

    def __init__(self, op: Any, *, fixed: bool) -> None:
        super().__init__()
        self.op, self.fixed = op, fixed

    def forward(self, x: Tensor, *args: Any) -> Any:
        """Arguments of `aten.batch_norm`."""
        train = self.training and not self.fixed and x.numel() > x.shape[1]
        weight, bias, mean, var, _, momentum, *rest = args
        return self.op(x, weight, bias, mean, var, train, momentum or _MOMENTUM, *rest)


class _Float32(nn.Module):  # type: ignore[misc]
    """An op that takes no part in mixed precision.

    The gradients of grouped convolutions on a CPU take three times as long in bfloat16 as in float32 (torch 2.13).
    """

    def __init__(self, op: Any) -> None:
        super().__init__()
        self.op = op

    def forward(self, *args: Any) -> Any:
        """The op on its arguments, in float32 where autocast is on."""
        if not torch.is_autocast_enabled("cpu"):
            return self.op(*args)
        with torch.autocast("cpu", enabled=False):
            return self.op(*(a.float() if isinstance(a, Tensor) else a for a in args))


def op_name(node: Node) -> str:
    """Name of the ATen op without overload, e.g. `conv2d`; "" for other nodes."""
    return str(getattr(node.target, "_opname", "")) if node.op == "call_function" else ""


def attention_nodes(program: Program) -> frozenset[str]:
    """Names of the nodes at which a tap gives an attention map."""
    maps = {ATTENTION, "softmax"}
    return frozenset(node.name for node in program.graph.graph.nodes if op_name(node) in maps)


def trainable(program: Program, taps: Sequence[str] = (), device: str | torch.device = "cpu") -> Trainable:
    """Make a program fit for training; the program itself is not changed.

    Args:
        program: float, before batch norms are folded (what is folded is trained as it is).
        taps: names of nodes to look at. At `scaled_dot_product_attention` the tap gives the attention map
            `[n, heads, queries, keys]`, else what the node gives.
        device: to train on; tensors that the graph makes are made there, too.

    Returns:
        A module whose parameters take gradients, in evaluation mode. A graph of a fixed batch runs sample by
        sample, with the stored statistics of its batch norms.

    Raises:
        KeyError: there is no node of a tapped name.
    """
    net = copy.deepcopy(program.graph)
    graph = net.graph
    fixed = not program.dynamic_batch
    for node in list(graph.nodes):
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device(device)}
        if op_name(node) == "view":
            # Channels last leaves tensors that cannot be viewed; `reshape` copies those.
            node.target = torch.ops.aten.reshape.default
        elif op_name(node) in _MODES:
            _follow_mode(net, node, fixed=fixed)
        elif torch.device(device).type == "cpu" and _groups(node) > 1:
            _put(net, node, _Float32(node.target))
    _learn(net)
    _tap(net, tuple(taps))
    graph.lint()
    net.recompile()
    module = Trainable(net, tuple(taps), one_by_one=fixed)
    module.to(device).eval()
    return module


def _follow_mode(net: GraphModule, node: Node, *, fixed: bool) -> None:
    """Put a module that follows the mode of the network in the place of an op."""
    name, flag = op_name(node), _MODES[op_name(node)]
    statistics_missing = name == "batch_norm" and node.args[3] is None
    if statistics_missing or len(node.args) <= flag:
        return
    assert callable(node.target)
    module = (
        _Norm(node.target, fixed=fixed)
        if name == "batch_norm"
        else _Moded(node.target, flag, fixed=fixed and name != "dropout")
    )
    _put(net, node, module)


def _groups(node: Node) -> int:
    """Of a convolution; one for everything else."""
    position = _GROUPED.get(op_name(node), len(node.args))
    groups = node.args[position] if position < len(node.args) else 1
    return groups if isinstance(groups, int) else 1


def _put(net: GraphModule, node: Node, module: nn.Module) -> None:
    """Put a module in the place of an op."""
    path = f"_in_place_of_{node.name}"
    net.add_submodule(path, module)
    node.op, node.target = "call_module", path


def _learn(net: GraphModule) -> None:
    """Every floating weight takes gradients; constants in the place of weights become parameters."""
    for parameter in net.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    if any(p.requires_grad for p in net.parameters()):
        return
    for node in net.graph.nodes:
        for position in _LEARNED.get(_op_of(net, node), ()):
            argument = node.args[position] if position < len(node.args) else None
            for leaf in argument if isinstance(argument, (list, tuple)) else [argument]:
                if isinstance(leaf, Node) and leaf.op == "get_attr":
                    _promote(net, str(leaf.target))


def op_names(module: Trainable) -> frozenset[str]:
    """Names of all ATen ops of a network, e.g. {"conv2d", "batch_norm", …}."""
    return frozenset(_op_of(module.net, node) for node in module.net.graph.nodes) - {""}


def _op_of(net: GraphModule, node: Node) -> str:
    """`op_name`, also where a module took the place of the op."""
    if node.op != "call_module":
        return op_name(node)
    return str(getattr(net.get_submodule(str(node.target)).op, "_opname", ""))


def _promote(net: GraphModule, path: str) -> None:
    owner, _, name = path.rpartition(".")
    holder = net.get_submodule(owner)
    value = getattr(holder, name)
    if isinstance(value, nn.Parameter) or not value.is_floating_point():
        return
    delattr(holder, name)
    holder.register_parameter(name, nn.Parameter(value.detach().clone()))


def _tap(net: GraphModule, names: tuple[str, ...]) -> None:
    """Give the tapped nodes beside the outputs."""
    by_name = {node.name: node for node in net.graph.nodes}
    tapped = []
    for name in names:
        node = by_name[name]
        if op_name(node) == ATTENTION:
            with net.graph.inserting_after(node):
                tapped.append(net.graph.call_function(attention_map, node.args, dict(node.kwargs)))
        else:
            tapped.append(node)
    end = net.graph.find_nodes(op="output")[0]
    end.args = ((end.args[0], tuple(tapped)),)


def attention_map(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`softmax(q kᵀ / √d + mask)` of Vaswani et al. 2017, which the fused op keeps to itself.

    Args:
        query: `[…, queries, d]`.
        key: `[…, keys, d]`.
        value: not used; it has no part in the map.
        attn_mask: added to the scores, or true where they count.
        dropout_p: not used.
        is_causal: each query sees the keys up to its own place.
        scale: of the scores, 1/√d where None.
        enable_gqa: several heads of queries share one of keys.

    Returns:
        `[…, queries, keys]`, rows sum to one.
    """
    del value, dropout_p
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if attn_mask is not None:
        scores = (
            scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        )
    return scores.softmax(-1)


def to_program(module: Trainable, like: Program) -> Program:
    """Bring what was learned back into a program.

    Args:
        module: from `trainable(like)`, on any device, in any layout.
        like: gives everything but the values; it is not changed.

    Returns:
        A copy of `like` with the parameters and buffers of `module`.
    """
    graph = copy.deepcopy(like.graph)
    learned: dict[str, Tensor] = dict(module.net.named_parameters(remove_duplicate=False))
    learned |= dict(module.net.named_buffers(remove_duplicate=False))
    own = [*graph.named_parameters(remove_duplicate=False), *graph.named_buffers(remove_duplicate=False)]
    with torch.no_grad():
        for name, tensor in own:
            if name in learned:
                # With a single channel, strides of channels last pass for contiguous; new memory has plain ones.
                tensor.data = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(learned[name])
    return replace(like, graph=graph)
