"""Prune and train: from the network as it was loaded to a smaller one that answers alike, in rounds."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from edgekit.bench.layers import default_store, latency_model
from edgekit.clock import Clock
from edgekit.errors import UsageError
from edgekit.evaluate import Metric
from edgekit.inputs import Inputs
from edgekit.recipe import Prune, Recipe
from edgekit.stages.prune import (
    Cost,
    Plan,
    Structure,
    cut,
    groups,
    importance,
    macs,
    milliseconds,
    plan,
    shapes,
    trace,
)
from edgekit.stages.train import Tap, distill, load_student
from edgekit.versions import versions
from edgekit.workdir import WorkDir, stage_key
from edgekit_converters.program import Program

# Formats whose runtimes run here, so that their layers can be timed.
RUNTIMES: Final[tuple[str, ...]] = ("onnx", "tflite")
# Trained tensors, in the order of the state dict.
WEIGHTS: Final = "weights.npz"
# Layers that are named when they cannot get narrower.
NAMED: Final = 4


@dataclass(frozen=True)
class Shrunk:
    """The network that is quantized.

    Attributes:
        program: float, not cleaned.
        key: identifies its weights.
        macs: multiplications of the network as it was loaded; None where it is the same network.
        predicted: runtime to milliseconds of its INT8 layers, before and after; empty where nothing was predicted.
    """

    program: Program
    key: str
    macs: int | None = None
    predicted: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def asks_for_training(recipe: Recipe) -> str:
    """The option that samples to train on are needed for; "" where there is none."""
    if recipe.train.student is not None:
        return "--student"
    if recipe.prune.ratio and recipe.train.epochs:
        return f"--prune {recipe.prune.ratio:g}"
    return "--qat" if recipe.qat.enabled is True else ""


def shrink(
    original: Program,
    sha256: str,
    inputs: Inputs,
    recipe: Recipe,
    metric: Metric,
    work: WorkDir,
    clock: Clock,
) -> Shrunk:
    """Make the network smaller as the recipe says; the same network where it says nothing.

    Args:
        original: as it was loaded, and the teacher.
        sha256: of the model.
        inputs: calibration inputs rank channels, training inputs train.
        recipe: its tables `prune` and `train`.
        metric: that training is judged by.
        work: where rounds are kept.
        clock: of the run.

    Raises:
        UsageError: nothing can be removed, or training is asked for and impossible.
    """
    shrunk = Shrunk(original, sha256)
    if recipe.train.student:
        shrunk = _student(original, shrunk, inputs, recipe, metric, work, clock)
    if not recipe.prune.ratio:
        return shrunk
    rounds, start = recipe.prune.rounds, shrunk.program
    for number in range(1, rounds + 1):
        # Every round removes the same share of what is left.
        ratio = 1 - (1 - recipe.prune.ratio) ** (number / rounds)
        with clock.stage("prune") as notes:
            shrunk, taps, said = _pruned(start, shrunk, inputs, recipe, ratio, work, clock)
            notes.extend(said)
        epochs = recipe.train.epochs * number // rounds - recipe.train.epochs * (number - 1) // rounds
        if epochs:
            with clock.stage("train") as notes:
                shrunk, said = _trained(original, shrunk, inputs, recipe, epochs, taps, metric, work, clock)
                notes.extend(said)
    return shrunk


def _student(
    original: Program,
    shrunk: Shrunk,
    inputs: Inputs,
    recipe: Recipe,
    metric: Metric,
    work: WorkDir,
    clock: Clock,
) -> Shrunk:
    """Another network in the place of the original."""
    assert recipe.train.student is not None
    with clock.stage("train") as notes:
        program = load_student(recipe.train.student, original, seed=recipe.seed)
        other = Shrunk(program, stage_key(shrunk.key, _digest(program)), _macs(original))
        trained, said = _trained(
            original, other, inputs, recipe, recipe.train.epochs, (), metric, work, clock
        )
        notes.extend((f"student: {recipe.train.student}", *said))
    return trained


def _macs(program: Program) -> int:
    structure = trace(program)
    return round(macs(structure)(_everything(structure)))


def _digest(program: Program) -> str:
    total = hashlib.sha256()
    for name, tensor in program.graph.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def _pruned(
    start: Program, shrunk: Shrunk, inputs: Inputs, recipe: Recipe, ratio: float, work: WorkDir, clock: Clock
) -> tuple[Shrunk, tuple[Tap, ...], list[str]]:
    """One round of pruning; `ratio` counts from the network before the first one."""
    structure = trace(shrunk.program)
    key = stage_key(
        "prune",
        shrunk.key,
        inputs.sha256,
        asdict(recipe.prune),
        ratio,
        recipe.formats,
        recipe.seed,
        versions(),
    )

    def make(folder: Path) -> dict[str, Any]:
        chosen, predicted = _plan(start, shrunk.program, structure, inputs, recipe, ratio, clock.detail)
        np.save(folder / "keep.npy", chosen.keep)
        return {"notes": _told(chosen, structure, recipe.prune, ratio), "predicted": predicted}

    folder, facts, _ = work.stage("prune", key, make)
    keep = np.load(folder / "keep.npy", allow_pickle=False)
    program = cut(shrunk.program, structure, keep)
    count = macs(structure)
    whole = np.ones_like(keep)
    clock.change(
        {"params": _params(shrunk.program), "macs": round(count(whole))},
        {"params": _params(program), "macs": round(count(keep))},
    )
    first = shrunk.macs or round(count(whole))
    predicted = {runtime: (before, after) for runtime, (before, after) in facts["predicted"].items()}
    return Shrunk(program, key, first, predicted), _taps(structure, keep), facts["notes"]


def _params(program: Program) -> int:
    return sum(p.numel() for p in program.graph.parameters())


def _plan(
    start: Program,
    program: Program,
    structure: Structure,
    inputs: Inputs,
    recipe: Recipe,
    ratio: float,
    step: Callable[[str], None],
) -> tuple[Plan, dict[str, tuple[float, float]]]:
    among = groups(structure, recipe.prune.keep)
    if not among:
        raise _nothing_to_prune(structure, recipe.prune)
    step("ranking channels")
    scores = importance(
        program, structure, among, recipe.prune.importance, inputs.calibration(), seed=recipe.seed
    )
    source = structure if program is start else trace(start)
    runtimes = [name for name in RUNTIMES if name in recipe.formats]
    tables = {
        name: latency_model(shapes(source), name, store=default_store(), step=step) for name in runtimes
    }
    costs = {name: milliseconds(structure, table) for name, table in tables.items()}
    whole = {name: milliseconds(source, table)(_everything(source)) for name, table in tables.items()}
    if recipe.prune.by == "latency" and not tables:
        raise UsageError(
            '[prune] by = "latency", but no format is written whose runtime is here',
            expected="onnx or tflite among the formats",
            way_out='Set by = "macs" in the recipe.',
        )
    if recipe.prune.by == "latency":
        cost = _mean_share(costs, whole)
        wanted = 1 - ratio
    else:
        cost = macs(structure)
        wanted = (1 - ratio) * macs(source)(_everything(source))
    step("choosing channels")
    chosen = plan(structure, among, scores, cost, wanted=wanted, multiple=recipe.prune.multiple)
    if program is start and chosen.keep.all():
        raise _too_narrow(recipe.prune)
    return chosen, {name: (whole[name], costs[name](chosen.keep)) for name in costs}


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


def _everything(structure: Structure) -> np.ndarray:
    return np.ones(structure.n_units + 1, bool)


def _mean_share(costs: Mapping[str, Cost], whole: Mapping[str, float]) -> Cost:
    """Mean over the runtimes of what is left of the latency of the original's layers."""
    return lambda keep: sum(cost(keep) / whole[name] for name, cost in costs.items()) / len(costs)


def _told(chosen: Plan, structure: Structure, settings: Prune, ratio: float) -> list[str]:
    narrower = [f"{name.removesuffix('.weight')} {a} → {b}" for name, a, b in chosen.widths if a != b]
    notes = [", ".join(narrower)] if narrower else []
    if not chosen.reached:
        left = chosen.after / (chosen.wanted / (1 - ratio))
        notes.append(
            f"no more could be removed: {left:.0%} of the {settings.by} are left, {1 - ratio:.0%} were wanted"
        )
    if structure.refused:
        notes.append(f"kept whole: {_refusals(structure)}")
    return notes


def _refusals(structure: Structure) -> str:
    shown = [f"{name.removesuffix('.weight')} ({why})" for name, why in structure.refused.items()]
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return ", ".join(shown[:NAMED]) + more


def _taps(structure: Structure, keep: np.ndarray) -> tuple[Tap, ...]:
    """What layers read where it got narrower, and attention whose heads went."""
    found: dict[str, Tap] = {}
    for layer in structure.layers:
        name = layer.node if layer.op == "attention" else layer.reads
        axes, _ = structure.results(name)[0]
        for axis, units in enumerate(axes):
            if units is not None and not keep[units].all():
                found[name] = Tap(name, axis, tuple(np.flatnonzero(keep[units]).tolist()))
    return tuple(found.values())


def _trained(
    original: Program,
    shrunk: Shrunk,
    inputs: Inputs,
    recipe: Recipe,
    epochs: int,
    taps: Sequence[Tap],
    metric: Metric,
    work: WorkDir,
    clock: Clock,
) -> tuple[Shrunk, list[str]]:
    settings = replace(recipe.train, epochs=epochs)
    trained_on = inputs.training.sha256 if inputs.training else ""
    key = stage_key("train", shrunk.key, trained_on, asdict(settings), metric.name, recipe.seed, versions())

    def make(folder: Path) -> dict[str, Any]:
        result = distill(
            shrunk.program,
            original,
            inputs,
            metric,
            settings,
            taps=taps,
            seed=recipe.seed,
            checkpoint=work.scratch("train", key) / "state.pt",
            step=clock.detail,
        )
        np.savez(folder / WEIGHTS, *(t.numpy() for t in result.program.graph.state_dict().values()))
        values = (result.history[0].value, result.best.value)
        return {"notes": list(result.notes), "values": values}

    folder, facts, _ = work.stage("train", key, make)
    before, after = facts["values"]
    clock.change({"value": before}, {"value": after})
    program = _with_weights(shrunk.program, folder / WEIGHTS)
    return replace(shrunk, program=program, key=key), facts["notes"]


def _with_weights(program: Program, path: Path) -> Program:
    graph = copy.deepcopy(program.graph)
    with np.load(path, allow_pickle=False) as arrays:
        # By their places: a tensor may have any name.
        names = graph.state_dict()
        graph.load_state_dict({name: torch.from_numpy(arrays[f"arr_{i}"]) for i, name in enumerate(names)})
    return replace(program, graph=graph)
