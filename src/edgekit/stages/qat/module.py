"""A quantized program as a trainable module, and back.

The graph of the module is that of the `QuantizedProgram` with every pair of quantize and dequantize replaced by the
function of `fake` at its grid, so groups, fixed grids, free arithmetic and elided clamps are those of the files by
construction. Batch norms were folded before calibration: what is trained are the folded weights, with the statistics
to which the network converged, and the module computes the same in training and in evaluation mode.
"""

from __future__ import annotations

import contextlib
import copy
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgekit.inputs import Batch
from edgekit.stages.qat import fake
from edgekit.stages.qat.masters import inside_cells, known_weights
from edgekit.stages.qat.steps import DEQUANTIZE, QUANTIZE, families
from edgekit.stages.quantize.bias import constant_of, round_biases
from edgekit.stages.quantize.rules import RECURRENT, WEIGHT_AXIS, aten
from edgekit.stages.quantize.ties import avoid_ties
from edgekit_converters.program import Grid, Program, QuantizedProgram

CHANNELWISE: Final = torch.ops.quantized_decomposed.dequantize_per_channel.default


@dataclass(frozen=True)
class Weight:
    """What a trained weight is in the graph.

    Attributes:
        integers: name of the int8 buffer.
        scales: name of the buffer of its scales.
        axis: of its channels.
        limit: largest integer.
        unit: of `share`, in steps.
        share: name of the parameter in the module.
        growth: name of the parameter that its scales follow; None where they stay.
    """

    integers: str
    scales: str
    axis: int
    limit: int
    unit: float
    share: str
    growth: str | None


@dataclass(frozen=True)
class Parts:
    """Where everything that is trained belongs in the graph that the module was made of.

    Attributes:
        weights: those on the grid.
        floats: name of a float tensor to the names of its parameter and of its unit.
        steps: name of a quantize node to the name of the parameter that its scale follows.
    """

    weights: tuple[Weight, ...]
    floats: Mapping[str, tuple[str, str]]
    steps: Mapping[str, str]


class OnGrid(nn.Module):  # type: ignore[misc]
    """A program on the grid whose weights, biases and, if asked for, scales are parameters.

    Args:
        graph: made by `on_grid`.
        parts: where its parameters belong.
        batched: which outputs have a batch on axis 0; None where the graph takes any batch size.
    """

    def __init__(self, graph: GraphModule, parts: Parts, batched: tuple[bool, ...] | None) -> None:
        super().__init__()
        self.graph, self.parts, self.batched = graph, parts, batched
        self._recurrent = any(node.target in RECURRENT for node in graph.graph.nodes)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the program for any number of samples, in its order."""
        # cuDNN trains recurrent cells in training mode only; the graph holds them in evaluation mode.
        plain = torch.backends.cudnn.flags(enabled=False) if self._recurrent else contextlib.nullcontext()
        with plain:
            if self.batched is None:
                return tuple(self.graph(*inputs))
            rows = [self.graph(*(x[i : i + 1] for x in inputs)) for i in range(len(inputs[0]))]
        return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def on_grid(
    quantized: QuantizedProgram,
    float_program: Program | None = None,
    *,
    learned_steps: bool = False,
    device: str = "cpu",
) -> OnGrid:
    """The trainable module that computes what a quantized program computes.

    Args:
        quantized: where training starts; it is not changed.
        float_program: where its weights came from, if known; they decide where in the cell of its integer a master
            weight begins.
        learned_steps: scales are parameters, too, but for those that kernels demand.
        device: to train on; tensors that the graph makes are made there, too.
    """
    graph = copy.deepcopy(quantized.program.graph)
    known = known_weights(graph, float_program) if float_program is not None else {}
    floats = _train_floats(graph)
    weights = {
        weight.integers: weight
        for node in graph.graph.find_nodes(op="call_function", target=CHANNELWISE)
        if (weight := _train_weight(graph, node, known.get(node.name), learned=learned_steps))
    }
    steps = _train_steps(graph) if learned_steps else {}
    _round_biases(graph, steps)
    _replace_pairs(graph, steps)
    graph.graph.eliminate_dead_code()
    _suit_training(graph, device)
    program = quantized.program
    batched = None if program.dynamic_batch else tuple(info.batch for info in program.outputs)
    # Only what the nodes name is taken over: neither the integers nor the float weights of before.
    taken = GraphModule(graph, graph.graph)
    module = OnGrid(taken, Parts(tuple(weights.values()), floats, steps), batched)
    module.to(device)
    return module


def to_quantized(module: OnGrid, like: QuantizedProgram, *, ties: Sequence[Batch] = ()) -> QuantizedProgram:
    """The quantized program that a module has become.

    Args:
        module: made from `like` by `on_grid`; it is not changed.
        like: is not changed.
        ties: a few inputs on which learned scales of sums are moved off rounding ties; none leaves them.

    Returns:
        The same graph with other integers, biases on their grid, and the scales that were learned.
    """
    graph = copy.deepcopy(like.program.graph)
    trained = {name: value.detach().cpu() for name, value in module.graph.state_dict().items()}
    with torch.no_grad():
        for weight in module.parts.weights:
            growth = trained[weight.growth] if weight.growth else None
            integers = fake.channel_integers(
                trained[weight.share], growth, weight.axis, weight.limit, weight.unit
            )
            _tensor(graph, weight.integers).copy_(integers)
            if growth is not None:
                _tensor(graph, weight.scales).mul_(growth.exp())
        for name, (share, unit) in module.parts.floats.items():
            _tensor(graph, name).copy_(fake.in_units(trained[share], trained[unit]))
    for node in graph.graph.find_nodes(op="call_function", target=QUANTIZE):
        if node.name in module.parts.steps:
            scale = fake.grown_scale(float(node.args[1]), trained[module.parts.steps[node.name]])
            for step in (node, *node.users):
                step.update_arg(1, scale)
    if ties and module.parts.steps:
        _avoid_ties(graph, ties)
    round_biases(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    inputs, outputs = ends(graph)
    return replace(like, program=replace(like.program, graph=graph), input_grids=inputs, output_grids=outputs)


def _avoid_ties(graph: GraphModule, ties: Sequence[Batch]) -> None:
    """Move learned scales of sums off rounding ties, but for those on which other scales depend by a ratio."""
    found = families(graph)
    nodes = {n.name: n for n in graph.graph.find_nodes(op="call_function", target=QUANTIZE)}
    group = {str(node.args[0]): found.root[name] for name, node in nodes.items()}
    bound = {root for name, root in found.root.items() if nodes[name].args[1] != nodes[root].args[1]}
    avoid_ties(graph, group, ties, bound | found.fixed)


def ends(graph: GraphModule) -> tuple[tuple[Grid | None, ...], tuple[Grid | None, ...]]:
    """The grids of a quantized graph's inputs and of its outputs, None for those that are float."""
    inputs: list[Grid | None] = []
    for node in graph.graph.find_nodes(op="placeholder"):
        readers = [u for u in node.users if u.target is QUANTIZE]
        inputs.append(_grid(readers[0]) if len(node.users) == len(readers) == 1 else None)
    results = graph.graph.output_node().args[0]
    assert isinstance(results, (tuple, list))
    return tuple(inputs), tuple(
        _grid(r) if isinstance(r, Node) and r.target is DEQUANTIZE else None for r in results
    )


def _suit_training(graph: GraphModule, device: str) -> None:
    """Name the device where tensors are made, and copy what a layout with channels last cannot view."""
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device(device)}
        if node.target is aten.view.default:
            node.target = aten.reshape.default


def _train_floats(graph: GraphModule) -> dict[str, tuple[str, str]]:
    """Turn biases, and parameters that stayed float, into parameters in units of their own size."""
    found: dict[str, tuple[str, str]] = {}
    for node in list(graph.graph.find_nodes(op="get_attr")):
        name, value, unit = str(node.target), constant_of(graph, node), _unit_of_bias(graph, node)
        is_parameter = isinstance(_attribute(graph, name), nn.Parameter)
        if not node.users or value.dtype != torch.float32 or not (is_parameter or unit is not None):
            continue
        if name not in found:
            unit = _largest(value) if unit is None else unit
            # Numbered, as names with other dots may read the same without them.
            share, size = (f"{what}_{len(found)}_of_{name}".replace(".", "_") for what in ("share", "unit"))
            graph.register_buffer(size, unit)
            graph.register_parameter(share, nn.Parameter(value / unit))
            found[name] = share, size
        with graph.graph.inserting_before(node):
            parts = tuple(graph.graph.get_attr(part) for part in found[name])
            _replace(graph, node, graph.graph.call_function(fake.in_units, parts))
    return found


def _unit_of_bias(graph: GraphModule, node: Node) -> Tensor | None:
    """What the largest weight makes of the largest input, per channel; None for what is not a bias on the grid."""
    for layer in node.users:
        if layer.target not in WEIGHT_AXIS or len(layer.args) < 3 or layer.args[2] is not node:
            continue
        x, w = layer.args[:2]
        if isinstance(w, Node) and w.target is CHANNELWISE and isinstance(w.args[5], int):
            largest = constant_of(graph, w.args[1]) * w.args[5]
            on_the_grid = isinstance(x, Node) and x.target is DEQUANTIZE
            return largest * (float(x.args[1]) * fake.HIGHEST) if on_the_grid else largest
    return None


def _train_weight(graph: GraphModule, node: Node, known: Tensor | None, *, learned: bool) -> Weight:
    """Turn one int8 weight into parameters; all readers of a buffer share them."""
    source, scales, _, axis, _, limit, *_ = node.args
    assert isinstance(source, Node)
    assert isinstance(scales, Node)
    assert isinstance(axis, int)
    assert isinstance(limit, int)
    share, growth = (f"{what}_of_{source.target}".replace(".", "_") for what in ("share", "growth"))
    integers, steps = constant_of(graph, source), constant_of(graph, scales)
    unit = limit / math.sqrt(max(1, integers.numel() // max(1, steps.numel())))
    if not hasattr(graph, share):
        shape = [-1 if a == axis else 1 for a in range(integers.dim())]
        master = inside_cells(known, integers, steps, axis)
        graph.register_parameter(share, nn.Parameter(master / (steps * unit).reshape(shape)))
    if learned and not hasattr(graph, growth):
        graph.register_parameter(growth, nn.Parameter(torch.zeros_like(steps)))
    with graph.graph.inserting_before(node):
        grown = graph.graph.get_attr(growth) if learned else None
        args = (graph.graph.get_attr(share), scales, grown, axis, limit, unit)
        _replace(graph, node, graph.graph.call_function(fake.on_channel_grid, args))
    return Weight(
        str(source.target), str(scales.target), axis, limit, unit, share, growth if learned else None
    )


def _train_steps(graph: GraphModule) -> dict[str, str]:
    """Give every family of scales that may move its parameter."""
    found, names = families(graph), {}
    for name in found.root:
        root = found.learned(name)
        if root is None:
            continue
        names[name] = f"growth_of_{root}"
        if root == name:
            graph.register_parameter(names[name], nn.Parameter(torch.zeros(())))
    return names


def _round_biases(graph: GraphModule, steps: Mapping[str, str]) -> None:
    """Put every bias of a layer on the grid onto the grid that follows from its inputs and weights."""
    for node in list(graph.graph.nodes):
        if node.target not in WEIGHT_AXIS or len(node.args) < 3:
            continue
        x, w, b = node.args[:3]
        if not all(isinstance(a, Node) for a in (x, w, b)) or b.target is not fake.in_units:
            continue
        if x.target is DEQUANTIZE and w.target is fake.on_channel_grid:
            with graph.graph.inserting_before(node):
                followed = steps.get(x.args[0].name)
                input_growth = graph.graph.get_attr(followed) if followed else None
                args = (b, w.args[1], w.args[2], x.args[1], input_growth)
                node.update_arg(2, graph.graph.call_function(fake.on_bias_grid, args))


def _replace_pairs(graph: GraphModule, steps: Mapping[str, str]) -> None:
    """Put one function in the place of every quantize node and the dequantize nodes behind it."""
    for node in list(graph.graph.find_nodes(op="call_function", target=QUANTIZE)):
        x, scale, zero_point = node.args[:3]
        with graph.graph.inserting_before(node):
            if node.name in steps:
                args = (x, scale, zero_point, graph.graph.get_attr(steps[node.name]))
                new = graph.graph.call_function(fake.on_learned_grid, args)
            else:
                new = graph.graph.call_function(fake.on_grid, (x, scale, zero_point))
        for reader in list(node.users):
            reader.replace_all_uses_with(new)
            graph.graph.erase_node(reader)
        graph.graph.erase_node(node)


def _replace(graph: GraphModule, node: Node, new: Node) -> None:
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)


def _largest(value: Tensor) -> Tensor:
    """The largest magnitude, or one where there is none, as a scalar."""
    size = value.abs().amax() if value.numel() else torch.zeros(())
    return torch.where(size > 0, size, torch.ones_like(size))


def _attribute(graph: GraphModule, name: str) -> Any:
    return operator.attrgetter(name)(graph)


def _tensor(graph: GraphModule, name: str) -> Tensor:
    tensor = _attribute(graph, name)
    assert isinstance(tensor, Tensor)
    return tensor


def _grid(node: Node) -> Grid:
    return Grid(float(node.args[1]), int(node.args[2]))
