"""Float weights behind the integers of a quantized graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.stages.quantize.bias import constant_of
from edgekit.stages.quantize.observers import weight_scales
from edgekit_converters.program import Program

CHANNELWISE: Final = torch.ops.quantized_decomposed.dequantize_per_channel.default
# Half a step less what float32 may round: the integers of the start are those that were calibrated.
INSIDE: Final = 0.49
# Scales that differ by more belong to other weights, equalized ones for example.
SAME_SCALE: Final = 1e-3


def known_weights(graph: GraphModule, float_program: Program) -> dict[str, Tensor]:
    """The float weights that a quantized graph was made of.

    Args:
        graph: of a `QuantizedProgram`.
        float_program: the same network before; its layers have the same names.

    Returns:
        Name of a dequantize node to the weight, float32. Not in it: weights that the float program holds otherwise,
        as after equalization.
    """
    layers = {n.name: n for n in float_program.graph.graph.nodes}
    found: dict[str, Tensor] = {}
    for node in graph.graph.find_nodes(op="call_function", target=CHANNELWISE):
        for reader in node.users:
            twin = layers.get(reader.name)
            if twin is None or twin.target is not reader.target:
                continue
            source = _at_the_place_of(node, reader, twin)
            if source is not None and source.op == "get_attr":
                weight = constant_of(float_program.graph, source)
                if _explains(weight, graph, node):
                    found[node.name] = weight
    return found


def inside_cells(known: Tensor | None, integers: Tensor, scales: Tensor, axis: int) -> Tensor:
    """Master weights that have the given integers.

    Compensated weights are not the nearest integers to the float ones, and better; training starts from them.

    Args:
        known: float weights, or None.
        integers: int8, of the same shape.
        scales: float32 `[channels]`.
        axis: of the channels.

    Returns:
        The nearest to the known weights inside the cell of each integer, else the middle of the cell; float32.
    """
    steps = scales.reshape([-1 if i == axis else 1 for i in range(integers.dim())])
    middle = integers.to(torch.float32)
    if known is None:
        return middle * steps
    return torch.minimum(torch.maximum(known / steps, middle - INSIDE), middle + INSIDE) * steps


def _at_the_place_of(node: Node, reader: Node, twin: Node) -> Node | None:
    """The argument of `twin` where `reader` has `node`; inside lists, too."""
    for mine, theirs in zip(_flat(reader), _flat(twin), strict=False):
        if mine is node:
            return theirs if isinstance(theirs, Node) else None
    return None


def _flat(node: Node) -> Iterator[object]:
    for arg in node.args:
        yield from arg if isinstance(arg, (list, tuple)) else (arg,)


def _explains(weight: Tensor, graph: GraphModule, node: Node) -> bool:
    """The scales of the graph are those that this weight gets."""
    integers, scales = constant_of(graph, node.args[0]), constant_of(graph, node.args[1])
    axis, limit = node.args[3], node.args[5]
    assert isinstance(axis, int)
    assert isinstance(limit, int)
    if weight.shape != integers.shape:
        return False
    own = weight_scales(weight, axis, limit)
    # A scale may have grown, where the bias of a dead channel needed it; a few may, not all.
    return bool(torch.isclose(own, scales, rtol=SAME_SCALE).float().mean() > 0.5)
