"""From a float program to the same program on the grid: observe, calibrate once, convert as often as wanted."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgekit.stages.quantize.bias import constant_of, round_biases
from edgekit.stages.quantize.clamps import elide_clamps
from edgekit.stages.quantize.observers import METHODS, PERCENTILE, ActivationObserver, refuse_non_finite
from edgekit.stages.quantize.plan import GridPlan, make_plan
from edgekit.stages.quantize.quantizer import GridQuantizer
from edgekit.stages.quantize.rounding import compensated_weights
from edgekit.stages.quantize.scalars import lift_scalars
from edgekit.stages.quantize.shifts import free_arithmetic
from edgekit.stages.quantize.ties import avoid_ties
from edgekit_converters.program import Grid, Program, QuantizedProgram

qd = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class Observed:
    """A program whose observers have, or will have, seen the calibration data.

    Attributes:
        program: the float program that was planned (scalars lifted).
        plan: what goes on the grid.
        graph: the same graph with observers.
        weight_bits: 8; 7 or fewer down to 4, in the same int8 storage.
        integers: op name to the int8 weights that it gets instead of the nearest ones.
    """

    program: Program
    plan: GridPlan
    graph: GraphModule
    weight_bits: int
    integers: Mapping[str, torch.Tensor] = field(default_factory=dict)


def observe(
    program: Program, *, keep_float: Iterable[str] = (), weight_bits: int = 8, weights_only: bool = False
) -> Observed:
    """Plan the grid of a cleaned program and put observers in.

    Args:
        program: is not changed.
        keep_float: glob patterns of layers that stay float32.
        weight_bits: 8; 7 or fewer down to 4, in the same int8 storage.
        weights_only: int8 weights, float compute: the same weight integers, no grid for activations.
    """
    graph = copy.deepcopy(program.graph)
    lift_scalars(graph)
    plan = make_plan(graph, keep_float=keep_float)
    if weights_only:
        plan = plan.of_weights()
    prepared = prepare_pt2e(copy.deepcopy(graph), GridQuantizer(plan, weight_bits=weight_bits))
    return Observed(replace(program, graph=graph), plan, prepared, weight_bits)


def calibrate(observed: Observed, batches: Iterable[tuple[torch.Tensor, ...]]) -> int:
    """Run the batches through the observers, in place.

    Returns:
        Number of samples seen.

    Raises:
        UsageError: a tensor held NaN or an infinity.
    """
    seen = 0
    with torch.no_grad():
        for batch in batches:
            observed.graph(*batch)
            seen += int(batch[0].shape[0])
    refuse_non_finite(observed.graph)
    return seen


def compensate(
    observed: Observed, batches: Sequence[tuple[torch.Tensor, ...]], *, centered: bool
) -> Observed:
    """The same with weights whose rounding errors make good for one another, see `rounding`.

    Args:
        observed: is not changed.
        batches: inputs to whose statistics the weights are fitted.
        centered: biases will be corrected.
    """
    limit = 2 ** (observed.weight_bits - 1) - 1
    weights = observed.plan.weights
    found = compensated_weights(observed.program.graph, weights, batches, limit=limit, centered=centered)
    return replace(observed, integers=found)


def grids(observed: Observed, method: str = "minmax", percentile: float = PERCENTILE) -> dict[str, Grid]:
    """The grid that `convert` with the same arguments gives every tensor.

    Args:
        observed: after `calibrate`; it is not changed.
        method: "minmax", "percentile", "mse" or "entropy".
        percentile: share of values, in percent, that "percentile" keeps.

    Returns:
        Node name to grid, for every tensor of `plan.group` and every constant operand of arithmetic.
    """
    found = _observed_grids(observed, method, percentile)
    changed = free_arithmetic(observed.program.graph, observed.plan, found).grids
    return found | {name: changed[root] for name, root in observed.plan.group.items() if root in changed}


def _observed_grids(observed: Observed, method: str, percentile: float) -> dict[str, Grid]:
    plan = observed.plan
    constants = {name for name, _ in plan.constants}
    found: dict[str, Grid] = {}
    for node in observed.graph.graph.find_nodes(op="call_module"):
        observer = observed.graph.get_submodule(str(node.target))
        source = node.args[0]
        if isinstance(observer, ActivationObserver) and isinstance(source, Node):
            name = plan.group.get(source.name, source.name if source.name in constants else None)
            if name is not None and name not in found:
                found[name] = observer.grid(method, percentile)
    found |= plan.fixed
    return found | {name: found[root] for name, root in plan.group.items() if root in found}


def convert(
    observed: Observed,
    *,
    method: str = "minmax",
    percentile: float = PERCENTILE,
    ties: Sequence[tuple[torch.Tensor, ...]] = (),
) -> QuantizedProgram:
    """Read the observers by `method` and build the quantized program; may be called many times.

    Args:
        observed: after `calibrate`.
        method: "minmax", "percentile", "mse" or "entropy".
        percentile: share of values, in percent, that the "percentile" method keeps.
        ties: a few inputs on which the scales of sums are moved off rounding ties; none leaves them.
    """
    if method not in METHODS:
        raise ValueError(f"observer {method!r}: expected one of {', '.join(METHODS)}")
    graph = copy.deepcopy(observed.graph)
    for module in graph.modules():
        if isinstance(module, ActivationObserver):
            module.method, module.percentile = method, percentile
    graph = convert_pt2e(graph, fold_quantize=True)
    _set_weights(graph, observed.integers)
    group = observed.plan.group
    free = free_arithmetic(
        observed.program.graph, observed.plan, _observed_grids(observed, method, percentile)
    )
    _put_on(graph, group, free.grids)
    if ties:
        avoid_ties(graph, group, ties, free.settled)
    elide_clamps(graph)
    round_biases(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return QuantizedProgram(
        program=replace(observed.program, graph=graph),
        input_grids=_input_grids(graph),
        output_grids=_output_grids(graph),
        kept_float=dict(observed.plan.kept_float),
        weight_bits=observed.weight_bits,
    )


def _set_weights(graph: GraphModule, integers: Mapping[str, torch.Tensor]) -> None:
    for node in graph.graph.nodes:
        if node.name in integers:
            dequantize = node.args[1]
            constant_of(graph, dequantize.args[0]).copy_(integers[node.name])


def _put_on(graph: GraphModule, group: Mapping[str, str], grids: Mapping[str, Grid]) -> None:
    """Give tensors of a converted graph other grids, by the root of their group."""
    for node in graph.graph.find_nodes(op="call_function", target=qd.quantize_per_tensor.default):
        root = group.get(node.args[0].name)
        if root is None or root not in grids:
            continue
        for step in (node, *node.users):
            step.update_arg(1, grids[root].scale)
            step.update_arg(2, grids[root].zero_point)


def _grid_of(node: Node) -> Grid:
    return Grid(float(node.args[1]), int(node.args[2]))


def _input_grids(graph: GraphModule) -> tuple[Grid | None, ...]:
    grids: list[Grid | None] = []
    for node in graph.graph.find_nodes(op="placeholder"):
        users = [u for u in node.users if u.target is qd.quantize_per_tensor.default]
        grids.append(_grid_of(users[0]) if len(node.users) == len(users) == 1 else None)
    return tuple(grids)


def _output_grids(graph: GraphModule) -> tuple[Grid | None, ...]:
    outputs = graph.graph.output_node().args[0]
    assert isinstance(outputs, (tuple, list))
    return tuple(
        _grid_of(o) if isinstance(o, Node) and o.target is qd.dequantize_per_tensor.default else None
        for o in outputs
    )
