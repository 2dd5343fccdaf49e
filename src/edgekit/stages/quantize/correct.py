"""Bias correction: quantized weights and inputs shift the mean of a layer's output; the bias takes it back.

Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019), section 4.2, in
the empirical form of its appendix: means are measured on data, layer by layer in the order of computation, so
that each layer sees inputs that have been corrected already.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.quantize.bias import constant_of, set_bias
from edgekit.stages.quantize.execute import Batch, last_readers, run_node, walk
from edgekit.stages.quantize.rules import WEIGHT_AXIS, aten

qd = torch.ops.quantized_decomposed

# Axes behind the channels.
_SPACE: Final = {op: 1 if "1d" in str(op) else 2 for op in WEIGHT_AXIS if op is not aten.linear.default}


def float_means(
    graph: GraphModule, layers: Collection[str], batches: Sequence[Batch]
) -> dict[str, torch.Tensor]:
    """What the channels of every layer give in float32, on the mean over each sample.

    Args:
        graph: the float graph.
        layers: names of convolutions and linear layers.
        batches: its inputs.

    Returns:
        Layer name to float32 `[samples, channels]`.
    """
    found: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        for node, value in walk(graph, batch):
            if node.name in layers and node.target in WEIGHT_AXIS:
                found.setdefault(node.name, []).append(_sample_means(value, node))
    return {name: torch.cat(means) for name, means in found.items()}


def correct_biases(
    quantized_graph: GraphModule, wanted: Mapping[str, torch.Tensor], batches: Sequence[Batch]
) -> int:
    """Give every layer on the grid the mean output that it has in float32, per channel, in place.

    All batches pass through the quantized graph together, node by node; what waits for a later reader waits
    as int8. A few dozen samples suffice, and they should not be those on which the result is judged. Biases
    leave their int32 grid: `round_biases` has to follow.

    Args:
        quantized_graph: converted graph; its layers carry the names that they have in the float graph.
        wanted: `float_means` of the graph that was quantized, for the same batches.
        batches: inputs.

    Returns:
        Number of biases corrected; a layer without a bias gets one.
    """
    corrected = {n: wanted[n.name] for n in quantized_graph.graph.nodes if n.name in wanted and _on_grid(n)}
    if corrected:
        _propagate(quantized_graph, corrected, batches)
        quantized_graph.recompile()
    return len(corrected)


def _propagate(graph: GraphModule, wanted: dict[Node, torch.Tensor], batches: Sequence[Batch]) -> None:
    """Run all batches in lockstep; correct each layer before anything reads it."""
    dying = last_readers(graph)
    inputs = [iter(batch) for batch in batches]
    values: list[dict[Node, Any]] = [{} for _ in batches]
    for node in list(graph.graph.nodes):
        if node.op == "output":
            return
        for held, given in zip(values, inputs, strict=True):
            held[node] = next(given) if node.op == "placeholder" else _run(graph, node, held)
        if node in wanted:
            means = torch.cat([_sample_means(held[node], node) for held in values])
            shift = _trusted(wanted[node] - means)
            old = constant_of(graph, node.args[2]) if len(node.args) > 2 and node.args[2] else 0.0
            set_bias(graph, node, old + shift)
            for held in values:
                held[node] = held[node] + shift.reshape(-1, *[1] * _SPACE.get(node.target, 0))
        for held in values:
            for done in dying[node]:
                held.pop(done, None)


def _run(graph: GraphModule, node: Node, held: dict[Node, Any]) -> Any:
    """Result of a node; that of a dequantization is a promise, computed again by each of its readers."""
    inputs = {a: v() if isinstance(v := held[a], partial) else v for a in node.all_input_nodes}
    if node.target is qd.dequantize_per_tensor.default:
        return partial(_run_without_grad, graph, node, inputs)
    return _run_without_grad(graph, node, inputs)


def _run_without_grad(graph: GraphModule, node: Node, inputs: dict[Node, Any]) -> Any:
    with torch.no_grad():
        return run_node(graph, node, inputs)


def _trusted(differences: torch.Tensor) -> torch.Tensor:
    """Mean of `[samples, channels]` over the samples, less what may be chance, float32 `[channels]`.

    Each mean is multiplied by `max(0, 1 - se² / mean²)`, the positive-part James-Stein factor of a single
    mean: a shift that stands clear of its standard error `se` is kept, the noise of a few samples is not
    learned.
    """
    mean = differences.mean(dim=0)
    if differences.shape[0] < 2:
        return mean
    variance = differences.var(dim=0) / differences.shape[0]
    return mean * (1 - variance / mean.square().clamp_min(torch.finfo().tiny)).clamp_min(0)


def _sample_means(value: torch.Tensor, layer: Node) -> torch.Tensor:
    """Means per sample and channel, float32 `[samples, channels]`; a tensor without batch is one sample."""
    axis = value.dim() - 1 - _SPACE.get(layer.target, 0)
    if axis == 0:
        value, axis = value.unsqueeze(0), 1
    if value.dim() == 2:
        return value
    return value.transpose(1, axis).flatten(2).mean(dim=2)


def _on_grid(node: Node) -> bool:
    if node.op != "call_function" or node.target not in WEIGHT_AXIS:
        return False
    weight = node.args[1]
    return isinstance(weight, Node) and weight.target is qd.dequantize_per_channel.default
