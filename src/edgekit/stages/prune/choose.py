"""Chooses what one round of pruning removes, and predicts what that saves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.bench.layers import default_store, latency_model
from edgekit.drawing import numbers
from edgekit.errors import UsageError
from edgekit.inputs import Inputs
from edgekit.recipe import Prune, Recipe
from edgekit.report import PruningResult
from edgekit.stages.prune.branches import Branch, branches
from edgekit.stages.prune.costs import Cost, macs, milliseconds, shapes
from edgekit.stages.prune.damage import Curve, block_of, measure
from edgekit.stages.prune.groups import Group, groups, matches
from edgekit.stages.prune.importance import importance
from edgekit.stages.prune.plan import Plan, plan
from edgekit.stages.prune.trace import Structure, keep_all, trace
from edgekit_converters.program import Program

# Formats whose runtimes run here, so that their layers can be timed.
RUNTIMES: Final[tuple[str, ...]] = ("onnx", "tflite")
# Layers that are named when they cannot get narrower.
NAMED: Final = 4


@dataclass(frozen=True)
class Chosen:
    """What goes.

    Attributes:
        keep: bool per unit, then per branch, and True at the end.
        predicted: runtime to milliseconds of the INT8 layers, of the network before the first round and of this one.
        results: what could go, and what went.
        notes: sentences for the report.
    """

    keep: np.ndarray
    predicted: Mapping[str, tuple[float, float]]
    results: tuple[PruningResult, ...]
    notes: tuple[str, ...]


def removable_branches(program: Program, structure: Structure, settings: Prune) -> tuple[Branch, ...]:
    """Residual branches that the settings let go; by default, where latency is what counts."""
    if settings.blocks is False or (settings.blocks == "auto" and settings.by != "latency"):
        return ()
    return tuple(
        each
        for each in branches(program, structure)
        if not any(matches(weight, settings.keep) for weight in each.weights)
    )


def rank(
    program: Program,
    structure: Structure,
    inputs: Inputs,
    settings: Prune,
    seed: int,
    *,
    step: Callable[[str], None],
) -> tuple[Curve, ...]:
    """Measure what can go; it does not depend on how much shall go.

    Args:
        program: the network of this round.
        structure: of it.
        inputs: calibration inputs are what the network is run on.
        settings: the table `prune`.
        seed: of random choices.
        step: told what is being done.

    Returns:
        The damage of narrowing every group of `groups`, then of leaving out every one of `removable_branches`.

    Raises:
        UsageError: nothing can be removed, or nothing is wide enough.
    """
    among = groups(structure, settings.keep)
    blocks = removable_branches(program, structure, settings)
    if not among and not blocks:
        raise _nothing_to_prune(structure, settings)
    if not blocks and all(len(group.units) <= block_of(group, settings.multiple) for group in among):
        raise _too_narrow(settings)
    step("ranking channels")
    scores = importance(program, structure, among, settings.importance, inputs.calibration(), seed=seed)
    return measure(
        program,
        structure,
        among,
        blocks,
        scores,
        inputs.calibration(),
        multiple=settings.multiple,
        step=step,
    )


def choose(
    start: Program,
    program: Program,
    structure: Structure,
    curves: Sequence[Curve],
    recipe: Recipe,
    ratio: float,
    *,
    step: Callable[[str], None],
) -> Chosen:
    """Choose by what was measured.

    Args:
        start: the network before the first round, which `ratio` counts from.
        program: the network of this round.
        structure: of `program`.
        curves: from `rank`.
        recipe: its table `prune` and formats.
        ratio: share of the cost of `start` to remove.
        step: told what is being done.

    Raises:
        UsageError: latency is asked for, and no runtime is here or nothing narrower is quicker in those that are.
    """
    settings = recipe.prune
    among = groups(structure, settings.keep)
    blocks = removable_branches(program, structure, settings)
    source = structure if program is start else trace(start)
    costs, whole = _latencies(source, structure, blocks, recipe, step)
    if settings.by == "latency" and not costs:
        raise UsageError(
            '[prune] by = "latency", but no format is written whose runtime is here',
            expected="onnx or tflite among the formats",
            way_out='Set by = "macs" in the recipe.',
        )
    step("choosing channels")
    if settings.by == "latency":
        cost, full = _mean_share(costs, whole), 1.0
    else:
        cost, full = macs(structure, blocks), macs(source)(keep_all(source))
    found = plan(
        structure,
        among,
        curves,
        cost,
        wanted=(1 - ratio) * full,
        multiple=settings.multiple,
    )
    if program is start and found.keep.all():
        # `rank` knows that some are wide enough, and every channel multiplies: only times can speak against them all.
        raise _no_quicker(settings, whole)
    gone = [each for each, stays in zip(blocks, found.keep[structure.n_units : -1], strict=True) if not stays]
    predicted = {name: (whole[name], costs[name](found.keep)) for name in costs}
    return Chosen(
        found.keep,
        predicted,
        _results(among, blocks, curves, found.keep),
        _told(found, gone, structure, settings, ratio),
    )


def _results(
    among: Sequence[Group], blocks: Sequence[Branch], curves: Sequence[Curve], keep: np.ndarray
) -> tuple[PruningResult, ...]:
    widths = [*(group.width for group in among), *[1] * len(blocks)]
    names = [*(_layer(group.name) for group in among), *map(_ends, blocks)]
    return tuple(
        PruningResult(
            layer=name,
            branch=i >= len(among),
            before=len(curve.order) * width,
            after=int(keep[curve.order].sum()) * width,
            widths=tuple(n * width for n in curve.left),
            damage=curve.damage,
        )
        for i, (name, width, curve) in enumerate(zip(names, widths, curves, strict=True))
    )


def _layer(weight: str) -> str:
    return weight.removesuffix(".weight")


def _ends(branch: Branch) -> str:
    """The first and the last layer of a branch."""
    layers = list(dict.fromkeys((branch.weights[0], branch.weights[-1]))) if branch.weights else [branch.name]
    return " … ".join(map(_layer, layers))


def _latencies(
    source: Structure,
    structure: Structure,
    blocks: Sequence[Branch],
    recipe: Recipe,
    step: Callable[[str], None],
) -> tuple[dict[str, Cost], dict[str, float]]:
    """For every runtime that is here: the latency of a mask, and of the network before the first round."""
    tables = {
        name: latency_model(shapes(source), name, store=default_store(), step=step)
        for name in RUNTIMES
        if name in recipe.formats
    }
    costs = {name: milliseconds(structure, table, blocks) for name, table in tables.items()}
    return costs, {name: milliseconds(source, table)(keep_all(source)) for name, table in tables.items()}


def _nothing_to_prune(structure: Structure, settings: Prune) -> UsageError:
    if settings.keep and groups(structure):
        return UsageError(
            f"--prune {settings.ratio:g}: keep = {json.dumps(settings.keep)} in [prune] names every layer that can be "
            "pruned",
            expected="layers left to prune",
            way_out="Name fewer layers, or leave --prune out.",
        )
    why = f"; what stands in the way: {_refusals(structure)}" if structure.refused else ""
    return UsageError(
        f"--prune {settings.ratio:g}: no channels of this network can be removed{why}",
        expected="layers whose outputs only other layers read",
        way_out="Leave --prune out.",
    )


def _too_narrow(settings: Prune) -> UsageError:
    return UsageError(
        f"--prune {settings.ratio:g}: no layer is wide enough to lose {settings.multiple} channels at a time",
        expected=f"layers of more than {settings.multiple} channels",
        way_out="Set a smaller `multiple` in [prune] of the recipe, or leave --prune out.",
    )


def _no_quicker(settings: Prune, whole: Mapping[str, float]) -> UsageError:
    """All layers take so little that a narrower one takes as long."""
    times = ", ".join(f"{numbers.milliseconds(ms)} in {name}" for name, ms in whole.items())
    return UsageError(
        f"--prune {settings.ratio:g}: no layer is quicker here with fewer channels; all layers together take {times}",
        expected="a network whose time is in its channels",
        way_out='Set by = "macs" in [prune] of the recipe for a smaller file, or leave --prune out.',
    )


def _mean_share(costs: Mapping[str, Cost], whole: Mapping[str, float]) -> Cost:
    """Mean over the runtimes of what is left of the latency of the original's layers."""
    return lambda keep: sum(cost(keep) / whole[name] for name, cost in costs.items()) / len(costs)


def _told(
    chosen: Plan, gone: Sequence[Branch], structure: Structure, settings: Prune, ratio: float
) -> tuple[str, ...]:
    absent = {weight for each in gone for weight in each.weights}
    narrower = [f"{_layer(name)} {a} → {b}" for name, a, b in chosen.widths if a != b and name not in absent]
    notes = [", ".join(narrower)] if narrower else []
    notes += [f"left out: {', '.join(_layer(w) for w in each.weights)}" for each in gone]
    if not chosen.reached:
        left = chosen.after / (chosen.wanted / (1 - ratio))
        notes.append(
            f"no more could be removed: {left:.0%} of the {settings.by} are left, {1 - ratio:.0%} were wanted"
        )
    if structure.refused:
        notes.append(f"kept whole: {_refusals(structure)}")
    return tuple(notes)


def _refusals(structure: Structure) -> str:
    shown = [f"{_layer(name)} ({why})" for name, why in structure.refused.items()]
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return ", ".join(shown[:NAMED]) + more
