"""How much each layer suffers from the grid, and how much the output suffers from each layer alone."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from edgekit.stages.quantize.apply import Observed
from edgekit.stages.quantize.costs import float_bytes, macs_and_bytes
from edgekit.stages.quantize.execute import Batch, last_readers, on_grid, run_node, walk
from edgekit.stages.quantize.observers import weight_scales
from edgekit.stages.quantize.plan import is_float_tensor, layer_name
from edgekit.stages.quantize.rules import RECURRENT, RULES, Kind
from edgekit_converters.program import Grid

qd = torch.ops.quantized_decomposed

# Finite, because reports are JSON: "no noise at all" and "nothing but noise".
CEILING_DB: Final = 200.0


@dataclass(slots=True)
class _Power:
    """Energy of a signal and of its error, summed over batches."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, wanted: torch.Tensor, found: torch.Tensor) -> None:
        """Take in two tensors of one shape; where either is not finite nothing can be said."""
        wanted, found = wanted.detach(), found.detach()
        signal, noise = _energy(wanted), _energy(wanted - found)
        if not (math.isfinite(signal) and math.isfinite(noise)):
            both = wanted.isfinite() & found.isfinite()
            signal, noise = _energy(wanted[both]), _energy(wanted[both] - found[both])
        self.signal += signal
        self.noise += noise

    def decibels(self) -> float:
        if self.noise == 0.0:
            return CEILING_DB
        if self.signal == 0.0:
            return -CEILING_DB
        return max(-CEILING_DB, min(CEILING_DB, 10 * math.log10(self.signal / self.noise)))


def _energy(x: torch.Tensor) -> float:
    """Sum of squares, accumulated in float64."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def layer_snr(
    float_graph: GraphModule, quantized_graph: GraphModule, batches: Sequence[Batch]
) -> dict[str, float]:
    """Signal-to-noise ratio of every tensor with everything quantized, in dB.

    A tensor that is quantized is compared after quantization, and with the clamp that quantization replaces.

    Args:
        float_graph: the graph that was quantized.
        quantized_graph: converted from it; nodes kept their names.
        batches: a few samples; values of one batch are held at a time.

    Returns:
        Node name to dB, in [-200, 200], for inputs and ops whose output is float in both graphs.
    """
    partners = _partners(float_graph, quantized_graph)
    needed = set(partners.values())
    powers: dict[str, _Power] = {}
    for batch in batches:
        floats = {n.name: value for n, value in walk(float_graph, batch) if n.name in needed}
        for node, value in walk(quantized_graph, batch):
            name = _measured_tensor(node)
            if name in partners:
                powers.setdefault(name, _Power()).add(floats[partners[name]], value)
    return {name: power.decibels() for name, power in powers.items()}


def damage(observed: Observed, grids: Mapping[str, Grid], batches: Sequence[Batch]) -> dict[str, float]:
    """Signal-to-noise ratio of the output when one op alone is on the grid, in dB; lower is worse.

    The op has its int8 weight (or constant operand), its float bias, and its output on its grid, after the
    clamp that is fused into it. Everything else is float32, so only what lies downstream is computed again.

    Args:
        observed: what is planned; its program is the float reference.
        grids: from `grids`.
        batches: a few samples; all values of one batch are held at a time.

    Returns:
        Node name to dB, in [-200, 200], of the worst float output, for every op that computes on the grid and
        every recurrent cell. Empty when no output is float.
    """
    graph = observed.program.graph
    trials = [
        _Trial(n, _constants_on_grid(observed, n, grids), _output_grid(observed, n, grids))
        for n in graph.graph.nodes
        if _computes(observed, n)
    ]
    outputs = [o for o in graph.graph.output_node().all_input_nodes if is_float_tensor(o)]
    powers = {trial.op.name: [_Power() for _ in outputs] for trial in trials}
    dying = last_readers(graph)
    for batch in batches:
        floats = _all_values(graph, batch)
        for trial in trials:
            changed = _downstream(graph, trial, floats, dying)
            for output, power in zip(outputs, powers[trial.op.name], strict=True):
                power.add(floats[output], changed.get(output, floats[output]))
    return {name: min(p.decibels() for p in found) for name, found in powers.items() if found}


def describe_layers(
    observed: Observed, snr: Mapping[str, float], damage: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Rows for the report, in the order of computation.

    Args:
        observed: the plan and its float program.
        snr: from `layer_snr`, may be empty.
        damage: from `damage`, may be empty.

    Returns:
        For every op with weights or products, on the grid, or kept float: `name` (dotted, the user's),
        `node`, `op`, `snr_db` and `damage_db` (None where not measured), `weight_bytes` (as stored), `macs`
        (batch one), `kept_float`, `reason` ("" on the grid).
    """
    graph, plan = observed.program.graph, observed.plan
    costs = macs_and_bytes(graph)
    int8 = {op.split("#")[0] for op in plan.weights}
    rows = []
    for node in graph.graph.nodes:
        if node.name not in costs and node.name not in damage and node.name not in plan.kept_float:
            continue
        macs, weight_bytes = costs.get(node.name, (0, 0))
        rows.append(
            {
                "name": layer_name(node),
                "node": node.name,
                "op": str(getattr(node.target, "__name__", node.target)).split(".")[0],
                "snr_db": snr.get(node.name),
                "damage_db": damage.get(node.name),
                "weight_bytes": weight_bytes if node.name in int8 else float_bytes(graph, node),
                "macs": macs,
                "kept_float": node.name in plan.kept_float,
                "reason": plan.kept_float.get(node.name, ""),
            }
        )
    return rows


def _partners(float_graph: GraphModule, quantized_graph: GraphModule) -> dict[str, str]:
    """Name of a tensor in the quantized graph to that of the float tensor which it stands for."""
    kept = {n.name for n in quantized_graph.graph.nodes}
    found: dict[str, str] = {}
    for node in float_graph.graph.nodes:
        if (
            node.name not in kept
            or node.op not in {"call_function", "placeholder"}
            or not is_float_tensor(node)
        ):
            continue
        stands_for = node
        while len(stands_for.users) == 1:
            reader = next(iter(stands_for.users))
            if RULES.get(reader.target) is not Kind.CLAMP or reader.name in kept:
                break
            stands_for = reader
        found[node.name] = stands_for.name
    return found


def _measured_tensor(node: Node) -> str:
    """The op whose final result this node of the quantized graph is; "" when a later node is."""
    if node.target is qd.dequantize_per_tensor.default:
        quantize = node.args[0]
        source = quantize.args[0] if isinstance(quantize, Node) and quantize.args else None
        return source.name if isinstance(source, Node) and _is_quantized(source) else ""
    return "" if _is_quantized(node) else str(node.name)


def _is_quantized(node: Node) -> bool:
    return bool(node.users) and all(u.target is qd.quantize_per_tensor.default for u in node.users)


def _computes(observed: Observed, node: Node) -> bool:
    kind = RULES.get(node.target)
    if node.target in RECURRENT:
        return f"{node.name}#0" in observed.plan.weights
    return node.name in observed.plan.seeds and kind not in {Kind.SHARED, Kind.CLAMP}


@dataclass(frozen=True, slots=True)
class _Trial:
    """One op on the grid.

    Attributes:
        op: the op.
        constants: what it reads of the graph's constants, as they are on the grid.
        grids: where its result meets its grid: at itself, or at the clamp that is fused into it.
    """

    op: Node
    constants: dict[Any, Any]
    grids: dict[Node, Grid]


def _constants_on_grid(observed: Observed, layer: Node, grids: Mapping[str, Grid]) -> dict[Any, Any]:
    limit = 2 ** (observed.weight_bits - 1) - 1
    matrices = [v for k, v in observed.plan.weights.items() if k.split("#")[0] == layer.name]
    axes = dict(matrices)
    found: dict[Any, Any] = {}
    for constant in layer.all_input_nodes:
        if constant.name in axes:
            weight = run_node(observed.program.graph, constant, {}).detach()
            found[constant] = _weight_on_grid(weight, axes[constant.name], limit)
        elif (constant.name, layer.name) in observed.plan.constants and constant.name in grids:
            value = run_node(observed.program.graph, constant, {}).detach()
            found[constant] = on_grid(value, grids[constant.name])
    return found


def _weight_on_grid(weight: torch.Tensor, axis: int, limit: int) -> torch.Tensor:
    scales = weight_scales(weight, axis, limit)
    zeros = torch.zeros_like(scales, dtype=torch.int64)
    arguments = (scales, zeros, axis, -limit, limit, torch.int8)
    back: torch.Tensor = qd.dequantize_per_channel(qd.quantize_per_channel(weight, *arguments), *arguments)
    return back


def _output_grid(observed: Observed, layer: Node, grids: Mapping[str, Grid]) -> dict[Node, Grid]:
    for node in (layer, *layer.users):
        if node.name in observed.plan.group and node.name in grids:
            return {node: grids[node.name]}
        if node is layer and len(layer.users) != 1:
            break
    return {}


def _all_values(graph: GraphModule, batch: Batch) -> dict[Node, Any]:
    values: dict[Node, Any] = {}
    inputs = iter(batch)
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node.op != "output":
                values[node] = next(inputs) if node.op == "placeholder" else run_node(graph, node, values)
    return values


def _downstream(
    graph: GraphModule, trial: _Trial, floats: dict[Node, Any], dying: Mapping[Node, Sequence[Node]]
) -> dict[Node, Any]:
    """Values that differ from `floats` when one op alone is on the grid; those of outputs are kept."""
    changed: dict[Node, Any] = {}
    seen = ChainMap(changed, floats)
    node = trial.op
    with torch.no_grad():
        while node.op != "output":
            if node is trial.op or any(a in changed for a in node.all_input_nodes):
                around = ChainMap(trial.constants, seen) if node is trial.op else seen
                value = run_node(graph, node, around)
                changed[node] = on_grid(value, trial.grids[node]) if node in trial.grids else value
            for done in dying[node]:
                changed.pop(done, None)
            node = node.next
    return changed
