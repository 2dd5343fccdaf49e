"""The quantize stage: the grid, chosen and measured, and the layers that must stay float for it to hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from edgekit.errors import UsageError
from edgekit.evaluate import Metric
from edgekit.inputs import Batch, Inputs, input_values, scoring
from edgekit.recipe import Recipe
from edgekit.report import LayerResult
from edgekit.search import autotune_accuracy
from edgekit.stages.quantize.apply import grids
from edgekit.stages.quantize.plan import BY_NAME, elementwise
from edgekit.stages.quantize.search import Choice, Setting, rebuild, search, weights_only
from edgekit.stages.quantize.sensitivity import damage, describe_layers, layer_snr
from edgekit.workdir import WorkDir, stage_key
from edgekit_converters.parity import run_reference
from edgekit_converters.program import Program, QuantizedProgram
from edgekit_converters.store import load_program, save_program

# Inputs on which the reference is judged before anything is lowered; fewer where they are large.
JUDGED_SAMPLES: Final = 512
JUDGED_VALUES: Final = 1 << 24
# Layers that are kept float, worst first, when the grid alone breaks the budget.
WORST: Final = (1, 2, 4)
DAMAGE_SAMPLES: Final = 2


STATIC, ISLANDS = "static int8", "static int8, float arithmetic"
DYNAMIC, WEIGHTS = "int8 weights, dynamic int8 activations", "int8 weights, float compute"
# What is tried, in this order, where a file is slower than float or loses too much.
LADDER: Final = (STATIC, ISLANDS, DYNAMIC, WEIGHTS)
FILES: Final = {
    STATIC: "static.pt2",
    ISLANDS: "islands.pt2",
    DYNAMIC: "dynamic.pt2",
    WEIGHTS: "weights.pt2",
}
# Share of the multiply-accumulates in linear layers from which on it is worth while to lower a network for them.
MOSTLY_LINEAR: Final = 0.5
LINEAR: Final = "linear"


@dataclass(frozen=True)
class Variant:
    """One way to lower the same weight integers.

    Attributes:
        name: of `LADDER`. `STATIC`: activations on the grid too; `ISLANDS`: the same without arithmetic between
            layers, where its integer kernels are slow; `DYNAMIC`: linear layers quantize what they read at each call,
            for transformers whose activations no fixed grid holds; `WEIGHTS`: float compute, for networks that are
            bound by call overhead.
        program: read back from its archive.
        archive: file that converters read.
    """

    name: str
    program: QuantizedProgram
    archive: Path


@dataclass(frozen=True)
class Settled:
    """The quantized program as every later stage sees it: read back from its archive.

    Attributes:
        variants: name to variant; those below `STATIC` only after `settle_rung`.
        key: identifies the content.
        layers: for the report.
        notes: what was tried.
        setting: how the grid was chosen.
        islands: ops that `ISLANDS` keeps float; without any there is no such variant.
        kept: layers that were kept float for the budget.
        linear: share of the multiply-accumulates that linear layers do.
    """

    variants: Mapping[str, Variant]
    key: str
    layers: tuple[LayerResult, ...]
    notes: tuple[str, ...]
    setting: Setting
    islands: tuple[str, ...]
    kept: tuple[str, ...] = ()
    linear: float = 0.0


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
    key = stage_key("quantize", model_sha256, inputs.sha256, settings, metric.name, torch.__version__)

    def make(folder: Path) -> dict[str, Any]:
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

    folder, facts, _ = work.stage("quantize", key, make)
    variants = {STATIC: _variant(STATIC, folder)}
    layers = tuple(LayerResult(**layer) for layer in facts["layers"])
    setting = Setting(**facts["setting"])
    notes, islands, kept = (tuple(facts[name]) for name in ("notes", "islands", "kept"))
    return Settled(variants, key, layers, notes, setting, islands, kept, _linear_share(layers))


def _linear_share(layers: Sequence[LayerResult]) -> float:
    linear = sum(layer.macs for layer in layers if layer.op == LINEAR)
    return linear / max(1, sum(layer.macs for layer in layers))


def settle_rung(
    rung: str,
    settled: Settled,
    program: Program,
    inputs: Inputs,
    recipe: Recipe,
    work: WorkDir,
    *,
    step: Callable[[str], None],
) -> Settled:
    """Add a lower rung of the ladder by the setting that was chosen; unchanged where it would be the rung above.

    Args:
        rung: below `STATIC`.
        settled: from `settle` with the same arguments.
        program: cleaned float program.
        inputs: calibration inputs.
        recipe: settings.
        work: where the result is kept.
        step: told what is being done.

    Raises:
        UsageError: the recipe asks for linear layers that quantize at each call, and there are none.
    """
    if rung == ISLANDS and not settled.islands:
        return settled
    if rung == DYNAMIC and not _for_linear(settled.linear, recipe):
        return settled
    file = FILES[rung]

    def make(folder: Path) -> dict[str, Any]:
        if rung == ISLANDS:
            quantized = rebuild(
                program,
                recipe.quantize,
                settled.setting,
                inputs.calibration,
                keep_float=settled.islands,
                step=step,
            )
        else:
            quantized = weights_only(program, recipe.quantize, settled.setting, inputs.calibration)
        if rung == DYNAMIC:
            # Samples of one batch would share a range: a file takes one at a time.
            alone = replace(quantized.program, dynamic_batch=False)
            quantized = replace(quantized, program=alone, dynamic=True)
        save_program(quantized, folder / file)
        return {}

    folder, _, _ = work.stage(Path(file).stem, stage_key(rung, settled.key), make)
    return replace(settled, variants={**settled.variants, rung: _variant(rung, folder)})


def _for_linear(share: float, recipe: Recipe) -> bool:
    """Whether a network is lowered for its linear layers: it is mostly made of them, or the user says so."""
    if recipe.quantize.activations != "dynamic":
        return share >= MOSTLY_LINEAR
    if share == 0.0:
        raise UsageError(
            'quantize.activations = "dynamic", but the network has no linear layer',
            expected="linear layers: they are what quantizes its input at each call",
            way_out='Leave the key out, or set it to "static" or "float".',
        )
    return True


def _variant(name: str, folder: Path) -> Variant:
    archive = folder / FILES[name]
    program = load_program(archive)
    assert isinstance(program, QuantizedProgram)
    return Variant(name, program, archive)


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
