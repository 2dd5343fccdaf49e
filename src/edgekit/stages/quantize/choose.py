"""The quantize stage: the grid, chosen and measured, and the layers that must stay float for it to hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from edgekit.evaluate import Metric
from edgekit.inputs import Batch, Inputs, input_values, scoring
from edgekit.recipe import Recipe
from edgekit.report import LayerResult
from edgekit.search import autotune_accuracy
from edgekit.stages.quantize.apply import grids
from edgekit.stages.quantize.plan import BY_NAME, elementwise
from edgekit.stages.quantize.rungs import FILES, STATIC, Settled, Variant
from edgekit.stages.quantize.search import Choice, Setting, search
from edgekit.stages.quantize.sensitivity import damage, describe_layers, layer_snr
from edgekit.workdir import Facts, WorkDir, stage_key
from edgekit_converters.parity import run_reference
from edgekit_converters.program import Program, QuantizedProgram
from edgekit_converters.store import save_program

# Inputs on which the reference is judged before anything is lowered; fewer where they are large.
JUDGED_SAMPLES: Final = 512
JUDGED_VALUES: Final = 1 << 24
# Layers that are kept float, worst first, when the grid alone breaks the budget.
WORST: Final = (1, 2, 4)
DAMAGE_SAMPLES: Final = 2


def settle(
    program: Program,
    inputs: Inputs,
    recipe: Recipe,
    metric: Metric,
    work: WorkDir,
    model_sha256: str,
    *,
    step: Callable[[str], None],
) -> Settled:
    """Choose the grid, keep layers float only where the budget cannot be held otherwise, and store the result.

    Args:
        program: cleaned float program.
        inputs: calibration and evaluation inputs.
        recipe: settings and budget.
        metric: what the budget is in.
        work: where the result is kept.
        model_sha256: part of the key.
        step: told what is being done.
    """
    settings = asdict(recipe.quantize), recipe.budget.max_drop, recipe.seed
    key = stage_key("quantize", model_sha256, inputs.sha256, settings, metric.name)

    def make(folder: Path) -> Facts:
        judged = scoring(inputs)
        chosen = _within_budget(program, inputs, recipe, metric, judged, step)
        choice = chosen.choice
        layers = _layers(choice, recipe, judged, step)
        save_program(choice.program, folder / FILES[STATIC])
        observed = choice.observed
        between = elementwise(observed.program.graph, observed.plan)
        kept = [name for name, why in observed.plan.kept_float.items() if why == BY_NAME]
        return {
            "notes": chosen.notes,
            "kept": chosen.kept,
            "layers": [asdict(layer) for layer in layers],
            "setting": asdict(choice.best.setting),
            "islands": [*kept, *between] if between else [],
        }

    def read(folder: Path, facts: Facts) -> Settled:
        layers = tuple(LayerResult(**layer) for layer in facts["layers"])
        setting = Setting(**facts["setting"])
        notes, islands, kept = (tuple(facts[name]) for name in ("notes", "islands", "kept"))
        return Settled({STATIC: Variant.read(STATIC, folder)}, key, layers, notes, setting, islands, kept)

    return work.stage("quantize", key, make, read)


@dataclass(frozen=True)
class _Chosen:
    """The grid, with layers kept float where the budget needs it."""

    choice: Choice
    kept: tuple[str, ...]
    notes: list[str]


def _within_budget(
    program: Program,
    inputs: Inputs,
    recipe: Recipe,
    metric: Metric,
    judged: Sequence[Batch],
    step: Callable[[str], None],
) -> _Chosen:
    choice = search(program, recipe.quantize, inputs.calibration, judged, step=step)
    notes = [str(trial) for trial in choice.trials]
    lost = _lost(choice.program, program, inputs, metric)
    allowed = recipe.budget.max_drop
    if allowed is None or lost <= allowed:
        return _Chosen(choice, (), notes)
    step("looking for the layers that cost most")
    worst = _worst_layers(choice, judged, recipe.quantize.percentile)

    def without(kept: tuple[str, ...]) -> Choice:
        step(f"keeping {len(kept)} layers float")
        return search(program, recipe.quantize, inputs.calibration, judged, keep_float=kept, step=step)

    sets = [tuple(worst[:n]) for n in WORST if n <= len(worst)]
    if not sets:
        return _Chosen(choice, (), notes)
    tuned = autotune_accuracy(
        sets, without, lambda found: _lost(found.program, program, inputs, metric), tolerance=allowed
    )
    notes += [
        f"kept float {', '.join(kept)}: loses {now:.4f} instead of {lost:.4f}" for kept, now in tuned.trials
    ]
    if tuned.drop >= lost:
        return _Chosen(choice, (), notes)
    return _Chosen(tuned.product, tuned.setting, notes)


def _lost(quantized: QuantizedProgram, program: Program, inputs: Inputs, metric: Metric) -> float:
    """Drop of the reference against float on the first `JUDGED_SAMPLES` evaluation inputs."""
    before, after, seen = metric.make(), metric.make(), 0
    enough = max(16, min(JUDGED_SAMPLES, JUDGED_VALUES // input_values(program)))
    for arrays, labels in inputs.evaluation():
        outputs = run_reference(quantized, arrays)
        with torch.no_grad():
            floats = tuple(
                y.numpy() for y in program.graph(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
            )
        before.add(floats, labels, floats)
        after.add(outputs, labels, floats)
        seen += len(arrays[0])
        if seen >= enough:
            break
    return metric.drop(before.value(), after.value())


def _worst_layers(choice: Choice, judged: Sequence[Batch], percentile: float) -> list[str]:
    """Node names by the damage that each does alone, worst first."""
    trial = choice.best.setting
    found = damage(choice.observed, grids(choice.observed, trial.observer, percentile), _few(judged))
    return sorted(found, key=lambda name: found[name])


def _layers(
    choice: Choice, recipe: Recipe, judged: Sequence[Batch], step: Callable[[str], None]
) -> Sequence[LayerResult]:
    step("measuring layers")
    batches = _few(judged)
    observed = choice.observed
    hurt: dict[str, float] = {}
    if recipe.quantize.damage:
        hurt = damage(
            observed, grids(observed, choice.best.setting.observer, recipe.quantize.percentile), batches
        )
    snr = layer_snr(observed.program.graph, choice.program.program.graph, batches)
    rows = describe_layers(observed, snr, hurt)
    return [
        LayerResult(
            name=row["name"],
            op=row["op"],
            weight_bytes=row["weight_bytes"],
            macs=row["macs"],
            snr_db=row["snr_db"],
            damage_db=row["damage_db"],
            kept_float=row["kept_float"],
            reason=row.get("reason", ""),
        )
        for row in rows
    ]


def _few(batches: Sequence[Batch]) -> list[Batch]:
    """The first `DAMAGE_SAMPLES` samples."""
    few: list[Batch] = []
    left = DAMAGE_SAMPLES
    for batch in batches:
        few.append(tuple(x[:left] for x in batch))
        left -= len(few[-1][0])
        if left <= 0:
            break
    return few
