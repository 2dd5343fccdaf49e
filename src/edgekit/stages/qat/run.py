"""Train the calibrated program on its own grid to answer as the float network does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.evaluate import Metric
from edgekit.inputs import Batch, Inputs
from edgekit.recipe import Qat, Train
from edgekit.stages.qat.module import on_grid, to_quantized
from edgekit.stages.quantize.rules import aten
from edgekit.stages.train.course import Course, course_for
from edgekit.stages.train.fit import Epoch, Objective
from edgekit.stages.train.judging import Comparison
from edgekit.stages.train.lessons import loss_of
from edgekit.stages.train.schedule import ADAMW, Schedule
from edgekit_converters.parity import run_reference
from edgekit_converters.program import Program, QuantizedProgram

Array = NDArray[Any]
# By so much of its size, at most, a step moves an output of a layer. Measured at 4 to 8 bits on networks for digits and
# on ResNet-20, after good and bad calibrations: much more undoes what calibration has found.
RATE: Final = 2e-3
USUAL_BATCH: Final = 128
CLIP: Final = 1.0
TIE_SAMPLES: Final = 4
CONVOLUTIONS: Final = frozenset({aten.conv2d.default, aten.conv2d.padding, aten.conv_transpose2d.input})


@dataclass(frozen=True)
class QatResult:
    """What training on the grid came to.

    Attributes:
        program: the trained one, or that which was given where training did not improve it beyond chance.
        before: the metric of the program that was given.
        after: the metric of `program`.
        history: one entry per epoch; the first is the program that was given.
        notes: sentences for the report.
    """

    program: QuantizedProgram
    before: float
    after: float
    history: tuple[Epoch, ...]
    notes: tuple[str, ...]


def qat(
    calibrated: QuantizedProgram,
    float_program: Program,
    teacher: Program,
    inputs: Inputs,
    metric: Metric,
    train: Train,
    settings: Qat,
    *,
    seed: int,
    checkpoint: Path,
    step: Callable[[str], None],
    device: str = "auto",
) -> QatResult:
    """Train a program on the grid, or go on with a training that was interrupted.

    Everything that is learned has no unit, so AdamW with one learning rate suits all of it, and nothing decays: the
    weights that batch norms were folded into have no size that would be better for being smaller. The arithmetic is
    float32 unless the recipe says bfloat16, whose steps are coarser than those of the grid.

    Args:
        calibrated: where training starts and whose grid it keeps; it is not changed.
        float_program: the cleaned program that was calibrated.
        teacher: the network to answer as.
        inputs: with samples to train on, and to judge every epoch on.
        metric: by which the best epoch is chosen, and whether training has improved anything.
        train: temperature, labels, batch size, averaging, patience, augmentation.
        settings: epochs, learning rate, and whether steps are learned.
        seed: of every random choice.
        checkpoint: file that holds the state after every epoch; an existing one is gone on from.
        step: told of the progress; may raise to stop.
        device: "auto", "cpu" or "cuda".

    Raises:
        UsageError: nothing to train on, a loss that is no number, no memory, or a checkpoint of another training.
    """
    course = course_for(
        teacher,
        (),
        inputs,
        metric,
        train,
        taught=True,
        way_out="Give --data, or leave out --qat.",
        device=device,
    )
    module = on_grid(calibrated, float_program, learned_steps=settings.learned_steps, device=course.device)
    fitted = course.fit(
        module,
        _objective(course, train.temperature),
        lambda network, *x: network(*x),
        _schedule(train, settings, calibrated.program, seed=seed, device=course.device),
        checkpoint=checkpoint,
        step=step,
        table="qat",
    )
    step("judging the integers")
    ties = _few(inputs.calibration()) if settings.learned_steps else []
    trained = to_quantized(module, calibrated, ties=ties)
    found = course.compare(partial(run_reference, calibrated), partial(run_reference, trained))
    notes = (*course.notes, _summary(metric, fitted.history, found))
    if not found.better:
        return QatResult(calibrated, found.before, found.before, fitted.history, notes)
    return QatResult(trained, found.before, found.after, fitted.history, notes)


def _schedule(train: Train, settings: Qat, program: Program, *, seed: int, device: str) -> Schedule:
    rate = settings.learning_rate
    if rate is None:
        # Steps of Adam add up like a random walk.
        rate = RATE * math.sqrt(train.batch_size / USUAL_BATCH)
    targets = {node.target for node in program.graph.graph.nodes}
    return Schedule(
        epochs=settings.epochs,
        batch_size=train.batch_size,
        optimizer=ADAMW,
        learning_rate=rate,
        weight_decay=0.0,
        clip=CLIP,
        ema=train.ema,
        patience=train.patience,
        precision="bfloat16" if train.precision == "bfloat16" else "float32",
        device=device,
        channels_last=bool(targets & CONVOLUTIONS) and aten.as_strided.default not in targets,
        seed=seed,
    )


def _objective(course: Course, temperature: float) -> Objective:
    """Distance from the float network's answers, and from labels where there are some."""

    def objective(module: nn.Module, batch: tuple[Tensor, ...], truth: Tensor | None) -> Tensor:
        with torch.no_grad():
            answers, _ = course.guide(*batch)
        told = truth if course.labels else None
        return loss_of(module(*batch), answers, told, course.readings, temperature)

    return objective


def _few(batches: Any) -> list[Batch]:
    """The first `TIE_SAMPLES` samples, one by one."""
    rows = (tuple(x[i : i + 1] for x in batch) for batch in batches for i in range(len(batch[0])))
    return list(itertools.islice(rows, TIE_SAMPLES))


def _summary(metric: Metric, history: Sequence[Epoch], found: Comparison) -> str:
    told = (
        f"trained on the grid for {len(history) - 1} epochs, batch norms folded: {metric.name} {found.before:.4f} "
        f"before, {found.after:.4f} after"
    )
    if found.better:
        return told
    why = (
        f", as the difference may be chance (its standard error is {found.error:.2g})"
        if found.drop < 0
        else ""
    )
    return f"{told}; the calibrated program is kept{why}"
