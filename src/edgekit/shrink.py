"""Prune and train: from the network as it was loaded to a smaller one that answers alike, in rounds."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from edgekit.clock import Clock
from edgekit.errors import UsageError
from edgekit.evaluate import Metric
from edgekit.inputs import Inputs
from edgekit.recipe import Recipe
from edgekit.report import PruningResult
from edgekit.stages.prune import (
    Chosen,
    Curve,
    Structure,
    choose,
    from_arrays,
    keep_all,
    macs,
    plain,
    rank,
    removable_branches,
    remove,
    to_arrays,
    trace,
)
from edgekit.stages.train import Tap, distill, load_student
from edgekit.workdir import Facts, WorkDir, stage_key
from edgekit_converters.program import Program

# Trained tensors, in the order of the state dict.
WEIGHTS: Final = "weights.npz"
# Which units stay.
KEEP: Final = "keep.npy"
# What can be pruned, and the damage.
CURVES: Final = "curves.npz"


@dataclass(frozen=True)
class Shrunk:
    """The network that is quantized.

    Attributes:
        program: float, not cleaned.
        key: identifies its weights.
        macs: multiplications of the network as it was loaded; None where it is the same network.
        predicted: runtime to milliseconds of its INT8 layers, before and after; empty where nothing was predicted.
        pruning: what could be removed in each round, and was.
    """

    program: Program
    key: str
    macs: int | None = None
    predicted: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    pruning: tuple[PruningResult, ...] = ()


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
    if recipe.train.student or recipe.prune.ratio:
        _check_numbers(original, inputs)
    if recipe.train.student:
        shrunk = _student(original, shrunk, inputs, recipe, metric, work, clock)
    if not recipe.prune.ratio:
        return shrunk
    shrunk = replace(shrunk, program=plain(shrunk.program))
    rounds, start, taps = recipe.prune.rounds, shrunk.program, tuple[Tap, ...]()
    for number in range(1, rounds + 1):
        # Every round removes the same share of what is left.
        ratio = 1 - (1 - recipe.prune.ratio) ** (number / rounds)
        with clock.stage("prune") as notes:
            shrunk, narrowed, said = _pruned(start, shrunk, inputs, recipe, ratio, work, clock)
            notes.extend(said)
        taps = _since(taps, narrowed, shrunk.program)
        epochs = recipe.train.epochs * number // rounds - recipe.train.epochs * (number - 1) // rounds
        if epochs:
            with clock.stage("train") as notes:
                # Another network has no nodes in common with its teacher.
                shared = () if recipe.train.student else taps
                shrunk, said = _trained(original, shrunk, inputs, recipe, epochs, shared, metric, work, clock)
                notes.extend(said)
    return shrunk


def _check_numbers(original: Program, inputs: Inputs) -> None:
    """Neither ranks nor losses can be made of what is no number."""
    with torch.no_grad():
        outputs = original.graph(*next(iter(inputs.calibration())))
    for info, y in zip(original.outputs, outputs, strict=True):
        if y.is_floating_point() and not torch.isfinite(y).all():
            raise UsageError(
                f"the output {info.name!r} of the float network has NaN or infinite values for the first calibration "
                "inputs",
                expected="finite numbers, to prune and to learn from",
                way_out="Check the weights, and that the data is preprocessed as the network expects.",
            )


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
    return round(macs(structure)(keep_all(structure)))


def _digest(program: Program) -> str:
    total = hashlib.sha256()
    for name, tensor in program.graph.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def _pruned(
    start: Program, shrunk: Shrunk, inputs: Inputs, recipe: Recipe, ratio: float, work: WorkDir, clock: Clock
) -> tuple[Shrunk, tuple[Tap, ...], Sequence[str]]:
    """One round of pruning; `ratio` counts from the network before the first one."""
    structure = trace(shrunk.program)
    settings = asdict(recipe.prune), ratio, recipe.formats
    key = stage_key("prune", shrunk.key, inputs.sha256, settings, recipe.seed)

    def make(folder: Path) -> Facts:
        curves = _ranked(shrunk, structure, inputs, recipe, work, clock)
        chosen = choose(start, shrunk.program, structure, curves, recipe, ratio, step=clock.detail)
        np.save(folder / KEEP, chosen.keep)
        return {
            "notes": chosen.notes,
            "predicted": dict(chosen.predicted),
            "results": [asdict(each) for each in chosen.results],
        }

    def read(folder: Path, facts: Facts) -> Chosen:
        keep = np.load(folder / KEEP, allow_pickle=False)
        predicted = {runtime: (before, after) for runtime, (before, after) in facts["predicted"].items()}
        return Chosen(keep, predicted, tuple(map(_result, facts["results"])), tuple(facts["notes"]))

    chosen = work.stage("prune", key, make, read)
    keep = chosen.keep
    blocks = removable_branches(shrunk.program, structure, recipe.prune)
    program = remove(shrunk.program, structure, blocks, keep)
    count = macs(structure, blocks)
    whole = np.ones_like(keep)
    clock.change(
        {"params": _params(shrunk.program), "macs": round(count(whole))},
        {"params": _params(program), "macs": round(count(keep))},
    )
    first = shrunk.macs or round(count(whole))
    pruning = (*shrunk.pruning, *chosen.results)
    return Shrunk(program, key, first, chosen.predicted, pruning), _taps(structure, keep), chosen.notes


def _result(kept: Mapping[str, Any]) -> PruningResult:
    """One that was kept as JSON."""
    lists = {name: tuple(kept[name]) for name in ("widths", "damage")}
    return PruningResult(**{**kept, **lists})


def _ranked(
    shrunk: Shrunk, structure: Structure, inputs: Inputs, recipe: Recipe, work: WorkDir, clock: Clock
) -> tuple[Curve, ...]:
    """Measure what can go, once for all ratios that are tried."""
    settings = replace(recipe.prune, ratio=0.0, rounds=1)
    key = stage_key("rank", shrunk.key, inputs.sha256, asdict(settings), recipe.seed)

    def make(folder: Path) -> Facts:
        curves = rank(shrunk.program, structure, inputs, recipe.prune, recipe.seed, step=clock.detail)
        np.savez(folder / CURVES, allow_pickle=False, **to_arrays(curves))
        return {"curves": len(curves)}

    def read(folder: Path, facts: Facts) -> tuple[Curve, ...]:
        with np.load(folder / CURVES, allow_pickle=False) as arrays:
            return from_arrays(arrays, facts["curves"])

    return work.stage("rank", key, make, read)


def _params(program: Program) -> int:
    return sum(p.numel() for p in program.graph.parameters())


def _taps(structure: Structure, keep: np.ndarray) -> tuple[Tap, ...]:
    """What layers read where it got narrower along one axis, and attention whose heads went."""
    found: dict[str, Tap] = {}
    for layer in structure.layers:
        name = layer.node if layer.op == "attention" else layer.reads
        axes, _ = structure.results(name)[0]
        narrower = [k for k, units in enumerate(axes) if units is not None and not keep[units].all()]
        if len(narrower) == 1:
            units = axes[narrower[0]]
            assert units is not None
            found[name] = Tap(name, narrower[0], tuple(np.flatnonzero(keep[units]).tolist()))
    return tuple(found.values())


def _since(earlier: Sequence[Tap], now: Sequence[Tap], program: Program) -> tuple[Tap, ...]:
    """Taps of one round after those of earlier ones, in numbers of the network before the first.

    What went with a whole branch is not looked at.
    """
    found = {tap.node: tap for tap in earlier}
    for tap in now:
        before = found.get(tap.node)
        if before is None:
            found[tap.node] = tap
        elif before.axis != tap.axis:
            del found[tap.node]  # a tap follows one axis
        elif before.kept is not None and tap.kept is not None:
            found[tap.node] = replace(tap, kept=tuple(before.kept[k] for k in tap.kept))
    nodes = {node.name for node in program.graph.graph.nodes}
    return tuple(tap for tap in found.values() if tap.node in nodes)


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
) -> tuple[Shrunk, Sequence[str]]:
    settings = replace(recipe.train, epochs=epochs)
    trained_on = inputs.training.sha256 if inputs.training else ""
    key = stage_key("train", shrunk.key, trained_on, asdict(settings), metric.name, recipe.seed)

    def make(folder: Path) -> Facts:
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

    def read(folder: Path, facts: Facts) -> tuple[Program, list[float], Sequence[str]]:
        return _with_weights(shrunk.program, folder / WEIGHTS), facts["values"], facts["notes"]

    program, (before, after), notes = work.stage("train", key, make, read)
    clock.change({"value": before}, {"value": after})
    return replace(shrunk, program=program, key=key), notes


def _with_weights(program: Program, path: Path) -> Program:
    graph = copy.deepcopy(program.graph)
    with np.load(path, allow_pickle=False) as arrays:
        # By their places: a tensor may have any name.
        names = graph.state_dict()
        graph.load_state_dict({name: torch.from_numpy(arrays[f"arr_{i}"]) for i, name in enumerate(names)})
    return replace(program, graph=graph)
