"""Cross-layer equalization: move magnitude between layers until no channel wastes its tensor's grid.

Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019), section 4.1:
for two layers with only a function between them that commutes with a positive scale per channel, dividing
output channel `i` of the first by `s_i` and multiplying input channel `i` of the second by it leaves the
network as it is. Weights have a scale per output channel here, so what is gained is the activation between:
its channels come to similar ranges and share one grid well.
"""

from __future__ import annotations

import copy
import math
import operator
from collections import Counter
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.quantize.rules import WEIGHT_AXIS, aten
from edgekit_converters.program import Program

_TRANSPOSED: Final = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input})

# f(s * x) = s * f(x) for s > 0, on every element.
_HOMOGENEOUS: Final = frozenset({aten.relu.default, aten.leaky_relu.default})

# Channel by channel over space, where axis 1 is the channel: averages, maxima, copies.
_SPATIAL: Final = frozenset(
    {
        aten.max_pool1d.default,
        aten.max_pool2d.default,
        aten.avg_pool1d.default,
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool1d.default,
        aten.adaptive_avg_pool2d.default,
        aten.upsample_nearest1d.vec,
        aten.upsample_nearest2d.vec,
        aten.upsample_bilinear2d.vec,
    }
)
_FLATTENING: Final = frozenset({aten.flatten.using_ints, aten.reshape.default, aten.view.default})

_ROUNDS: Final = 32
_CONVERGED: Final = 1e-3
# Beyond this, what one layer gains in its activations it loses in float32 and in its bias.
_LARGEST_SCALE: Final = 256.0
# A channel this much weaker than its strongest sibling is dead; it keeps its scale.
_DEAD: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Pair:
    """Two layers that can trade magnitude.

    Attributes:
        first: its output channels are divided.
        second: its input channels are multiplied.
        repeat: input features of `second` per channel of `first`; more than 1 after a flatten.
    """

    first: Node
    second: Node
    repeat: int = 1


def equalize(program: Program) -> tuple[Program, int]:
    """Equalize a cleaned float program; needs no data.

    Args:
        program: ATen graph whose nodes carry `meta["val"]`; it is not changed.

    Returns:
        The program with other weights and the same function (up to float32 rounding), and the number of
        pairs. Without any pair the argument itself is returned.
    """
    if not find_pairs(program.graph):
        return program, 0
    graph = copy.deepcopy(program.graph)
    pairs = find_pairs(graph)
    total = {pair: torch.ones(()) for pair in pairs}
    with torch.no_grad():
        for _ in range(_ROUNDS):
            moved = 0.0
            for pair in pairs:
                wanted = total[pair] * _scales(_output_ranges(graph, pair.first), _input_ranges(graph, pair))
                limited = wanted.clamp(1 / _LARGEST_SCALE, _LARGEST_SCALE)
                scales = limited / total[pair]
                _rescale(graph, pair, scales)
                total[pair] = limited
                moved = max(moved, float(scales.log().abs().max()))
            if moved < _CONVERGED:
                break
    return replace(program, graph=graph), len(pairs)


def find_pairs(graph: GraphModule) -> tuple[Pair, ...]:
    """Layers with constant weights of their own and nothing but scale-equivariant ops between them."""
    owners = _owners(graph)
    layers = frozenset(n for n in graph.graph.nodes if _is_layer(graph, n, owners))
    found = (_pair_after(n, layers) for n in graph.graph.nodes if n in layers)
    return tuple(pair for pair in found if pair is not None)


def _pair_after(first: Node, layers: frozenset[Node]) -> Pair | None:
    """Follow the only readers until the next layer; None when something does not commute with the scale."""
    if first.target in _TRANSPOSED and _groups(first) != 1:
        return None
    before, repeat = first, 1
    while len(before.users) == 1:
        node = next(iter(before.users))
        if node in layers:
            return Pair(first, node, repeat) if _fits(first, before, node) else None
        if not node.args or node.args[0] is not before:
            return None
        if node.target not in _HOMOGENEOUS:
            if first.target is aten.linear.default:
                return None
            block = _channel_block(before, node)
            if not block:
                return None
            repeat *= block
        before = node
    return None


def _channel_block(before: Node, node: Node) -> int:
    """Elements on axis 1 after `node` per channel on axis 1 of `before`; 0 when channels mix."""
    if node.target not in _SPATIAL | _FLATTENING | {aten.mean.dim}:
        return 0
    old, new = before.meta["val"].shape, node.meta["val"].shape
    if node.target in _SPATIAL:
        return int(len(old) > 2 and len(new) == len(old) and new[1] == old[1])
    if node.target is aten.mean.dim:
        axes = [int(a) % len(old) for a in node.args[1]] if isinstance(node.args[1], (list, tuple)) else [0]
        return int(min(axes) > 1)
    # One row for each sample, so each channel is a block of neighbours.
    static = len(new) == 2 and all(isinstance(e, int) for e in (*old[1:], new[1]))
    return math.prod(old[2:]) if static and math.prod(old[1:]) == new[1] else 0


def _fits(first: Node, before: Node, second: Node) -> bool:
    """`second` reads the channels of `first` on its channel axis, as its activation."""
    if second.args[0] is not before:
        return False
    if second.target is aten.linear.default:
        return first.target is aten.linear.default or before.meta["val"].dim() == 2
    return first.target is not aten.linear.default and before.meta["val"].dim() > 2


def _is_layer(graph: GraphModule, node: Node, owners: Counter[int]) -> bool:
    """A weighted op whose float32 weight and bias are constants that nobody else reads."""
    if node.op != "call_function" or node.target not in WEIGHT_AXIS or node.kwargs:
        return False
    weight, bias = node.args[1], _bias(node)
    for constant in (weight, *((bias,) if bias is not None else ())):
        if not isinstance(constant, Node) or constant.op != "get_attr" or len(constant.users) != 1:
            return False
        value = _value(graph, constant)
        if value.dtype != torch.float32 or owners[value.untyped_storage().data_ptr()] != 1:
            return False
    # A convolution of a single unbatched sample has its channels on axis 0.
    ranks = (node.meta["val"].dim(), _value(graph, weight).dim())
    return node.target is aten.linear.default or ranks[0] == ranks[1]


def _owners(graph: GraphModule) -> Counter[int]:
    """How many constants of the graph lie in each storage."""
    nodes = graph.graph.find_nodes(op="get_attr")
    values = (operator.attrgetter(str(n.target))(graph) for n in nodes)
    return Counter(v.untyped_storage().data_ptr() for v in values if isinstance(v, torch.Tensor))


def _output_ranges(graph: GraphModule, first: Node) -> torch.Tensor:
    """Stands for the range of what each output channel computes, float32 `[channels]`.

    The largest weight, as in the paper, or the bias where that is larger relative to its layer: a channel of
    tiny weights and a large bias is not a weak one, and the paper's range would blow its values up.
    """
    weight = _value(graph, first.args[1])
    ranges = weight.transpose(0, WEIGHT_AXIS[first.target]).flatten(1).abs().amax(dim=1)
    bias = _bias(first)
    if bias is None:
        return ranges
    sizes = _value(graph, bias).abs()
    return torch.maximum(ranges, sizes / sizes.max().clamp_min(torch.finfo().tiny) * ranges.max())


def _input_ranges(graph: GraphModule, pair: Pair) -> torch.Tensor:
    """Largest weight of the second layer per channel of the first, float32 `[channels]`."""
    weight = _value(graph, pair.second.args[1]).abs()
    by_channel = _by_input_channel(weight, pair.second)
    return by_channel.flatten(1).amax(dim=1).reshape(-1, pair.repeat).amax(dim=1)


def _by_input_channel(weight: torch.Tensor, layer: Node) -> torch.Tensor:
    """The weight as `[input channels, …]`; channel `c` of a grouped one is input `c % size` of its group."""
    if layer.target in _TRANSPOSED:
        return weight
    grouped = weight.unflatten(0, (_groups(layer), -1))  # [groups, out, in, …]
    return grouped.transpose(1, 2).flatten(0, 1)


def _scales(ranges: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`s_i = sqrt(r1_i r2_i) / r2_i`, equation 11; 1 for dead channels."""
    dead = (ranges <= _DEAD * ranges.max()) | (weights <= _DEAD * weights.max())
    return torch.where(dead, 1.0, torch.sqrt(ranges / weights))


def _rescale(graph: GraphModule, pair: Pair, scales: torch.Tensor) -> None:
    weight = _value(graph, pair.first.args[1])
    shape = [-1 if i == WEIGHT_AXIS[pair.first.target] else 1 for i in range(weight.dim())]
    weight.data = weight / scales.reshape(shape)
    bias = _bias(pair.first)
    if bias is not None:
        value = _value(graph, bias)
        value.data = value / scales
    after = _value(graph, pair.second.args[1])
    features = scales.repeat_interleave(pair.repeat)
    if pair.second.target in _TRANSPOSED:
        after.data = after * features.reshape(-1, *[1] * (after.dim() - 1))
        return
    grouped = after.unflatten(0, (_groups(pair.second), -1))
    factors = features.reshape(grouped.shape[0], 1, -1, *[1] * (after.dim() - 2))
    after.data = (grouped * factors).flatten(0, 1)


def _groups(node: Node) -> int:
    groups = node.args[6] if node.target is not aten.linear.default and len(node.args) > 6 else 1
    assert isinstance(groups, int)
    return groups


def _bias(node: Node) -> object:
    return node.args[2] if len(node.args) > 2 else None


def _value(graph: GraphModule, node: object) -> torch.Tensor:
    assert isinstance(node, Node)
    value = operator.attrgetter(str(node.target))(graph)
    assert isinstance(value, torch.Tensor)
    return value
