"""Where activations can be divided by a scale per channel without an op for it.

The division goes into whatever scaled the channel last: the gain and offset of a norm, the constant of a product, the
rows of a linear layer. Between that *source* and the layers that read it there may be anything that is linear in it
channel by channel: moves (reshape, transpose, unbind, …), the product with a gate, attention's weighted mean of values.
Which channel a value belongs to is not derived from the ops' arguments: moves are run on the channels' numbers. A
channel that anything else reads keeps its scale, so of a projection to queries, keys and values the values are free.

Convolutions are no sources: `equalize` trades magnitude between them, without data.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from edgekit.stages.quantize.bias import constant_of
from edgekit.stages.quantize.execute import walk
from edgekit.stages.quantize.rules import WEIGHT_AXIS, aten
from edgekit_converters.program import Program

_MOVES: Final = frozenset(
    {
        aten.reshape.default,
        aten.view.default,
        aten._unsafe_view.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.slice.Tensor,
        aten.select.int,
        aten.narrow.default,
        aten.expand.default,
        aten.repeat.default,
        aten.flip.default,
        aten.roll.default,
        aten.contiguous.default,
        aten.clone.default,
        aten.alias.default,
        aten.pixel_shuffle.default,
        aten.chunk.default,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.unbind.int,
        operator.getitem,
    }
)
_TRANSPOSED: Final = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input})

Channels: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """A constant that takes up the scales of a site.

    Attributes:
        op: reads the constant.
        position: of the constant among the op's arguments.
        index: channel of each of its elements, int64, broadcastable to its shape.
    """

    op: Node
    position: int
    index: torch.Tensor


@dataclass(frozen=True, slots=True)
class Site:
    """Activations that can be divided by a scale per channel, and what makes good for it.

    Attributes:
        divided: constants of the source and of offsets after it; a norm without a gain is given one.
        multiplied: weights of the layers that read the activations.
        features: for each of `multiplied`, channel of each input feature, int64 `[features]`.
        free: channels that nobody else reads, bool `[channels]`.
    """

    divided: tuple[Fold, ...]
    multiplied: tuple[Fold, ...]
    features: tuple[torch.Tensor, ...]
    free: torch.Tensor


def find_sites(program: Program) -> tuple[Site, ...]:
    """Every place of a cleaned program that can be smoothed, in the order of computation.

    Args:
        program: is run once on its example, for the shapes.
    """
    values = _extents(program)
    owners = _owners(program.graph)
    found: list[Site] = []
    taken: set[Node] = set()
    # A layer is smoothed once, by the source that is nearest to it.
    for node in reversed(program.graph.graph.nodes):
        trace = _Trace(program.graph, values, owners)
        site = trace.site(node)
        readers = {fold.op for fold in site.multiplied} if site else set()
        if site and not readers & taken:
            taken |= readers
            found.append(site)
    return tuple(reversed(found))


@dataclass
class _Trace:
    """Follows one source through the graph to the layers that read it.

    Attributes:
        graph: cleaned.
        values: shape of each tensor, and each number, from `_extents`.
        owners: how many constants lie in each storage.
    """

    graph: GraphModule
    values: Mapping[Node, Any]
    owners: Mapping[int, int]
    indices: dict[Node, Channels] = field(default_factory=dict)
    divided: list[Fold] = field(default_factory=list)
    readers: dict[Node, torch.Tensor] = field(default_factory=dict)

    def site(self, source: Node) -> Site | None:
        """What can be done with the channels of `source`; None where it is nothing."""
        begin = _SOURCES.get(source.target) if source.op == "call_function" and not source.kwargs else None
        index = begin(self, source) if begin else None
        if index is None:
            return None
        free = torch.ones(int(index.max()) + 1, dtype=torch.bool)
        self.indices[source] = index.expand(self.values[source])
        node = source.next
        while node.op != "root" and free.any():
            ours = [self.indices[a] for a in node.all_input_nodes if a in self.indices]
            if ours and not self._follow(node):
                for channels in ours:
                    _mark(free, channels, value=False)
            node = node.next
        used = torch.zeros_like(free)
        _mark(used, tuple(self.readers.values()), value=True)
        if not (free & used).any():
            return None
        multiplied = tuple(Fold(op, 1, _weight_index(op, features)) for op, features in self.readers.items())
        return Site(tuple(self.divided), multiplied, tuple(self.readers.values()), free & used)

    def constant(self, op: Node, position: int) -> torch.Tensor | None:
        """A float32 constant that nobody else reads."""
        node = op.args[position] if len(op.args) > position else None
        if not isinstance(node, Node) or node.op != "get_attr" or len(node.users) != 1:
            return None
        value = constant_of(self.graph, node)
        alone = self.owners[value.untyped_storage().data_ptr()] == 1
        return value if alone and value.dtype == torch.float32 else None

    def _follow(self, node: Node) -> bool:
        """Take in a reader of a traced tensor; False when it is not linear in it channel by channel."""
        ours = [i for i, a in enumerate(node.args) if isinstance(a, Node) and a in self.indices]
        traced = sum(a in self.indices for a in node.all_input_nodes)
        if node.op != "call_function" or not len(ours) == traced == 1:
            return False
        if node.target in WEIGHT_AXIS:
            return ours == [0] and self._read(node)
        passes = _PASSES.get(node.target)
        index = passes(self, node, ours[0]) if passes else None
        if index is None:
            return False
        self.indices[node] = index
        return True

    def _read(self, layer: Node) -> bool:
        """A layer whose input features each belong to one channel."""
        index, weight = self.indices[_node(layer.args[0])], self.constant(layer, 1)
        if weight is None or layer.kwargs or isinstance(index, tuple):
            return False
        if layer.target is not aten.linear.default and index.dim() != weight.dim():
            return False
        features = _reduced(index, [feature_axis(layer) % index.dim()])
        if features is None:
            return False
        self.readers[layer] = features.flatten()
        return True


def _moved(trace: _Trace, node: Node, at: int) -> Channels | None:
    """The channels' numbers where the op puts them."""
    others = (trace.values[a] for a in node.all_input_nodes if a not in trace.indices)
    if at != 0 or not all(isinstance(value, (int, float)) for value in others):
        return None
    args, kwargs = map_arg(
        (node.args, node.kwargs), lambda a: trace.indices[a] if a in trace.indices else trace.values[a]
    )
    assert callable(node.target)
    moved = node.target(*args, **kwargs)
    return tuple(moved) if isinstance(moved, (list, tuple)) else moved


def _scaled(trace: _Trace, node: Node, at: int) -> Channels | None:
    """A product with something else, or a quotient by it."""
    index = trace.indices[_node(node.args[at])]
    if isinstance(index, tuple) or (node.target is aten.div.Tensor and at != 0) or node.kwargs:
        return None
    return index.expand(trace.values[node])


def _shifted(trace: _Trace, node: Node, at: int) -> Channels | None:
    """A sum with a constant that can be divided as well."""
    index, offset = trace.indices[_node(node.args[at])], trace.constant(node, 1 - at)
    if isinstance(index, tuple) or offset is None or index.shape != trace.values[node]:
        return None
    first = index.dim() - offset.dim()
    kept = [first + d for d, extent in enumerate(offset.shape) if extent > 1]
    reduced = _reduced(index, kept)
    if reduced is None:
        return None
    trace.divided.append(Fold(node, 1 - at, reduced.reshape(offset.shape)))
    return index


def _averaged(trace: _Trace, node: Node, at: int) -> Channels | None:
    """A mean or sum over axes along which the channel does not change."""
    index, axes = trace.indices[_node(node.args[at])], node.args[1] if len(node.args) > 1 else None
    if isinstance(index, tuple) or not isinstance(axes, (list, tuple)) or not axes:
        return None
    low, high = (f(index, axes, len(node.args) > 2 and bool(node.args[2])) for f in (torch.amin, torch.amax))
    return low if torch.equal(low, high) else None


def _weighed(trace: _Trace, node: Node, at: int) -> Channels | None:
    """`A @ ours`: each column keeps its channel, if that is one for all rows."""
    index = trace.indices[_node(node.args[at])]
    if isinstance(index, tuple) or at != 1 or index.dim() < 2:
        return None
    first = index[..., :1, :]
    return first.expand(trace.values[node]) if bool((index == first).all()) else None


_PASSES: Final[dict[object, Callable[[_Trace, Node, int], Channels | None]]] = {
    **dict.fromkeys(_MOVES, _moved),
    aten.mul.Tensor: _scaled,
    aten.div.Tensor: _scaled,
    aten.add.Tensor: _shifted,
    aten.sub.Tensor: _shifted,
    aten.mean.dim: _averaged,
    aten.sum.dim_IntList: _averaged,
    aten.matmul.default: _weighed,
    aten.bmm.default: _weighed,
}


def _norm(trace: _Trace, node: Node) -> torch.Tensor | None:
    """Layer and RMS norm: a gain, and for the former an offset, for each element of the trailing axes."""
    extents = node.args[1]
    assert isinstance(extents, (list, tuple))
    if not all(isinstance(e, int) for e in extents):
        return None
    return _affine(trace, node, torch.Size(extents))


def _group_norm(trace: _Trace, node: Node) -> torch.Tensor | None:
    extents = trace.values[node]
    index = _affine(trace, node, torch.Size([extents[1]]))
    return None if index is None else index.reshape(1, -1, *[1] * (len(extents) - 2))


def _affine(trace: _Trace, node: Node, extents: torch.Size) -> torch.Tensor | None:
    """Gain as third and offset as fourth argument, where there are any."""
    index = torch.arange(extents.numel()).reshape(extents)
    for position in (2, 3):
        given = len(node.args) > position and isinstance(node.args[position], Node)
        if given and trace.constant(node, position) is None:
            return None
        if given or position == 2:
            trace.divided.append(Fold(node, position, index))
    return index


def _linear(trace: _Trace, node: Node) -> torch.Tensor | None:
    weight, biased = trace.constant(node, 1), len(node.args) > 2 and node.args[2] is not None
    if weight is None or (biased and trace.constant(node, 2) is None):
        return None
    index = torch.arange(len(weight))
    trace.divided.append(Fold(node, 1, index.unsqueeze(1)))
    if biased:
        trace.divided.append(Fold(node, 2, index))
    return index


def _gain(trace: _Trace, node: Node) -> torch.Tensor | None:
    """A product with one constant per channel."""
    for position in (0, 1):
        value = trace.constant(node, position)
        if value is not None and value.numel() > 1:
            index = torch.arange(value.numel()).reshape(value.shape)
            trace.divided.append(Fold(node, position, index))
            return index
    return None


_SOURCES: Final[dict[object, Callable[[_Trace, Node], torch.Tensor | None]]] = {
    aten.layer_norm.default: _norm,
    aten.rms_norm.default: _norm,
    aten.group_norm.default: _group_norm,
    aten.linear.default: _linear,
    aten.mul.Tensor: _gain,
}


def _extents(program: Program) -> dict[Node, Any]:
    """Shape of every tensor, and every number, for two samples where the batch is free.

    With a single sample, an op that mixes samples could pass for one that does not.
    """
    batch = program.example
    if program.dynamic_batch:
        batch = tuple(
            torch.cat([x, x]) if info.batch and x.dim() else x
            for x, info in zip(batch, program.inputs, strict=True)
        )
    return {n: v.shape if isinstance(v, torch.Tensor) else v for n, v in walk(program.graph, batch)}


def _owners(graph: GraphModule) -> Counter[int]:
    """How many constants of the graph lie in each storage."""
    nodes = graph.graph.find_nodes(op="get_attr")
    values = (operator.attrgetter(str(n.target))(graph) for n in nodes)
    return Counter(v.untyped_storage().data_ptr() for v in values if isinstance(v, torch.Tensor))


def _node(value: object) -> Node:
    assert isinstance(value, Node)
    return value


def _mark(channels: torch.Tensor, index: Channels, *, value: bool) -> None:
    """Set what is at the channels that occur."""
    for part in index if isinstance(index, tuple) else (index,):
        channels[part.flatten()] = value


def _reduced(index: torch.Tensor, kept: Sequence[int]) -> torch.Tensor | None:
    """The channels along some axes, if they are the same along all others."""
    rows = index.permute(*kept, *(d for d in range(index.dim()) if d not in kept)).reshape(
        *(index.shape[d] for d in kept), -1
    )
    return rows[..., 0] if bool((rows == rows[..., :1]).all()) else None


def feature_axis(layer: Node) -> int:
    """Axis of a weighted op's input that holds its features."""
    return -1 if layer.target is aten.linear.default else 1


def _weight_index(layer: Node, features: torch.Tensor) -> torch.Tensor:
    """Channel of each element of a layer's weight, broadcastable to it."""
    shape = _node(layer.args[1]).meta["val"].shape
    if layer.target is aten.linear.default:
        return features.unsqueeze(0)
    tail = [1] * (len(shape) - 2)
    if layer.target in _TRANSPOSED:
        return features.reshape(-1, 1, *tail)
    by_group = features.reshape(-1, 1, shape[1])
    return by_group.expand(-1, shape[0] // len(by_group), -1).reshape(shape[0], shape[1], *tail)
