"""Smoothing: outlier channels of activations become somewhat larger weights, which have room for them.

Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large language models" (2023),
section 4: channel `j` of a layer's input is divided by `s_j = max|X_j|^a / max|W_j|^(1 - a)` and column `j` of the
weight multiplied by it. Weights have a scale per output channel, activations have one for all channels: a single
channel a hundred times larger than the others takes their steps away, and smoothing gives them back. No op is added;
where the division goes is for `sites` to find.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.quantize.bias import constant_of
from edgekit.stages.quantize.execute import Batch, walk
from edgekit.stages.quantize.sites import Fold, Site, feature_axis, find_sites
from edgekit_converters.program import Program

# How much of the outliers is moved, to be tried; section 5.1 of the paper finds the best between 0.4 and 0.8.
ALPHAS: Final = (0.5, 0.3, 0.7)

# Channels this much weaker than the strongest one are dead; they keep their scale.
_DEAD: Final = 1e-6
# Beyond this, what the activations gain the weights lose.
_LARGEST_SCALE: Final = 1024.0


def input_ranges(program: Program, batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    """Largest magnitude of every input feature of the layers that can be smoothed.

    Args:
        program: cleaned float program.
        batches: calibration inputs.

    Returns:
        Name of the layer to float32 `[features]`.
    """
    layers = [fold.op for site in find_sites(program) for fold in site.multiplied]
    readers: dict[object, list[Node]] = {}
    for layer in layers:
        readers.setdefault(layer.args[0], []).append(layer)
    found: dict[str, torch.Tensor] = {}
    for batch in batches if layers else ():
        for node, value in walk(program.graph, batch):
            for layer in readers.get(node, ()):
                axis = feature_axis(layer) % value.dim()
                largest = value.abs().amax(dim=[d for d in range(value.dim()) if d != axis])
                before = found.get(layer.name, largest)
                found[layer.name] = torch.maximum(before, largest)
    return found


def smooth(program: Program, ranges: Mapping[str, torch.Tensor], alpha: float) -> tuple[Program, int]:
    """Smooth a cleaned float program.

    Args:
        program: ATen graph whose nodes carry `meta["val"]`; it is not changed.
        ranges: from `input_ranges` of the same program.
        alpha: in [0, 1]; 0 evens out the columns of the weights, 1 the channels of the activations.

    Returns:
        The program with other constants and the same function (up to float32 rounding), and the number of sites.
        Without any site the argument itself is returned.
    """
    if not find_sites(program):
        return program, 0
    copied = replace(program, graph=copy.deepcopy(program.graph))
    graph, sites = copied.graph, find_sites(copied)
    with torch.no_grad():
        for site in sites:
            scales = _scales(graph, site, ranges, alpha)
            for fold in site.divided:
                _multiply(graph, fold, 1.0 / scales)
            for fold in site.multiplied:
                _multiply(graph, fold, scales)
    graph.recompile()
    return copied, len(sites)


def _scales(graph: GraphModule, site: Site, ranges: Mapping[str, torch.Tensor], alpha: float) -> torch.Tensor:
    """`s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`, equation 4, with a geometric mean of 1.

    The weights are those of all readers together. 1 for channels that are dead or not free.
    """
    x, w = torch.zeros(len(site.free)), torch.zeros(len(site.free))
    for fold, features in zip(site.multiplied, site.features, strict=True):
        weight = constant_of(graph, fold.op.args[fold.position]).abs()
        _take_largest(x, features, ranges[fold.op.name])
        _take_largest(w, fold.index.expand_as(weight), weight)
    alive = site.free & (x > _DEAD * x.max()) & (w > _DEAD * w.max())
    wanted = alpha * x.log() - (1 - alpha) * w.log()
    centred = (wanted - wanted[alive].mean()).exp().clamp(1 / _LARGEST_SCALE, _LARGEST_SCALE)
    return torch.where(alive, centred, 1.0)


def _take_largest(found: torch.Tensor, index: torch.Tensor, values: torch.Tensor) -> None:
    found.scatter_reduce_(0, index.flatten(), values.flatten(), "amax")


def _multiply(graph: GraphModule, fold: Fold, factors: torch.Tensor) -> None:
    op, position = fold.op, fold.position
    constant = op.args[position] if len(op.args) > position else None
    if not isinstance(constant, Node):
        constant = _add_gain(graph, op, position, fold.index.shape)
    value = operator.attrgetter(str(constant.target))(graph)
    value.data = value * factors[fold.index]


def _add_gain(graph: GraphModule, op: Node, position: int, shape: torch.Size) -> Node:
    """Give a norm that has none a gain of ones."""
    name = f"{op.name}_gain"
    while hasattr(graph, name):
        name += "_"
    value = torch.ones(shape)
    graph.register_buffer(name, value)
    with graph.graph.inserting_before(op):
        constant = graph.graph.get_attr(name)
    constant.meta["val"] = value
    op.args = (*op.args[:position], *[None] * (position - len(op.args)), constant, *op.args[position + 1 :])
    return constant
