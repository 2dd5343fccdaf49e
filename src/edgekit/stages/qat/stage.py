"""Training on the grid as a stage of a run: from a settled program to a settled program, kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from edgekit.evaluate import Metric
from edgekit.inputs import Inputs
from edgekit.recipe import Recipe
from edgekit.stages.qat.run import qat
from edgekit.stages.quantize.rungs import FILES, STATIC, Settled, Variant
from edgekit.workdir import Facts, WorkDir, stage_key
from edgekit_converters.program import Program
from edgekit_converters.store import save_program


def train_settled(
    settled: Settled,
    program: Program,
    teacher: Program,
    inputs: Inputs,
    metric: Metric,
    recipe: Recipe,
    work: WorkDir,
    *,
    step: Callable[[str], None],
) -> Settled:
    """Train what calibration settled on.

    Lower rungs of the ladder compute in float and are made from the weights before.

    Args:
        settled: from `settle`.
        program: cleaned float program that was settled.
        teacher: the network as it was loaded.
        inputs: with samples to train on.
        metric: that epochs are judged by.
        recipe: its tables `train` and `qat`.
        work: where the result and the checkpoints are kept.
        step: told of the progress.

    Raises:
        UsageError: as `qat` does.
    """
    trained_on = inputs.training.sha256 if inputs.training else ""
    settings = asdict(recipe.train), asdict(recipe.qat)
    key = stage_key("qat", settled.key, trained_on, settings, metric.name, recipe.seed)

    def make(folder: Path) -> Facts:
        result = qat(
            settled.variants[STATIC].program,
            program,
            teacher,
            inputs,
            metric,
            recipe.train,
            recipe.qat,
            seed=recipe.seed,
            checkpoint=work.scratch("qat", key) / "state.pt",
            step=step,
        )
        save_program(result.program, folder / FILES[STATIC])
        return {"notes": list(result.notes)}

    def read(folder: Path, facts: Facts) -> Settled:
        variants = {**settled.variants, STATIC: Variant.read(STATIC, folder)}
        return replace(settled, variants=variants, key=key, notes=tuple(facts["notes"]))

    return work.stage("qat", key, make, read)
