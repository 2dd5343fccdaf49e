"""Trains a student to answer as its teacher does; labels help where there are some, and are not needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.evaluate import Metric
from edgekit.inputs import Inputs, batch_size, first, input_values, tensors
from edgekit.recipe import Train
from edgekit.stages.train import losses
from edgekit.stages.train.augment import augmentation
from edgekit.stages.train.device import device_for, precision_for
from edgekit.stages.train.fit import Epoch, Objective, fit
from edgekit.stages.train.judging import judge, judged_batches
from edgekit.stages.train.lessons import SAMPLES, lessons, loss_of, runner
from edgekit.stages.train.losses import Reading, Tap
from edgekit.stages.train.readings import readings_of
from edgekit.stages.train.schedule import schedule_for
from edgekit.stages.train.trainable import Trainable, attention_nodes, to_program, trainable
from edgekit_converters.program import Program

Array = NDArray[Any]


@dataclass(frozen=True)
class Trained:
    """A trained student.

    Attributes:
        program: with the weights of the best epoch.
        history: one entry per epoch; the first is the student as it was given.
        best: the epoch whose weights these are.
        notes: sentences for the report.
    """

    program: Program
    history: tuple[Epoch, ...]
    best: Epoch
    notes: tuple[str, ...]


def distill(
    student: Program,
    teacher: Program,
    inputs: Inputs,
    metric: Metric,
    settings: Train,
    *,
    taps: Sequence[Tap] = (),
    seed: int,
    checkpoint: Path,
    step: Callable[[str], None],
    device: str = "auto",
) -> Trained:
    """Train a student, or go on with a training that was interrupted.

    Args:
        student: to be trained; it is not changed. Inputs and outputs are those of the teacher.
        teacher: the original network; without `settings.distill` it only is what agreement is counted against.
        inputs: with samples to train on, and to judge every epoch on.
        metric: by which the best epoch is chosen.
        settings: `[train]` of the recipe.
        taps: nodes whose features or attention maps are compared, where `settings` give these a weight.
        seed: of every random choice.
        checkpoint: file that holds the state after every epoch; an existing one is gone on from.
        step: told of the progress; may raise to stop.
        device: "auto", "cpu" or "cuda".

    Returns:
        The student with the weights of its best epoch, never worse by the metric than it was given.

    Raises:
        UsageError: nothing to train on or to learn from, a loss that is no number, no memory, or a checkpoint of
            another training.
    """
    place = device_for(device)
    weighted = _weighted(taps, student, teacher, settings)
    names = [tap.node for tap, _, _ in weighted]
    network, guide = trainable(student, names, place), trainable(teacher, names, place)
    size = batch_size(teacher)
    original = runner(lambda *x: guide(*x)[0], place, size)
    samples = first(SAMPLES, (tuple(t.numpy() for t in batch) for batch in inputs.calibration()))
    readings = readings_of(original(samples), metric)
    learned = lessons(
        inputs.training,
        settings,
        readings[0],
        original,
        taught=settings.distill,
        way_out="Give --data, or leave out what needs training (--prune, --distill).",
    )
    labels = learned.labels
    precision, said = precision_for(settings.precision, network, tensors(samples), place, readings)
    schedule = schedule_for(
        settings, network, samples=learned.training.n, seed=seed, device=place, precision=precision
    )
    if schedule.channels_last:
        network, guide = (module.to(memory_format=torch.channels_last) for module in (network, guide))
    free = not labels or _one_class_each(readings[0], teacher)
    augment, moved = augmentation(settings.augment, student.inputs, samples, original, free=free)
    judged = judged_batches(inputs, values=input_values(teacher), size=size, run=original)
    fitted = fit(
        network,
        objective=_objective(
            guide if settings.distill else None, readings, weighted, settings, labels=labels
        ),
        training=learned.training,
        judge=lambda module: judge(judged, runner(lambda *x: module(*x)[0], place, size), metric),
        higher_is_better=metric.higher_is_better,
        schedule=schedule,
        checkpoint=checkpoint,
        step=step,
        augment=augment,
        metric=metric.name,
    )
    notes = (
        *learned.notes,
        *said,
        *moved,
        _summary(fitted.history, fitted.best, metric, settings, labels=labels),
    )
    return Trained(to_program(network, student), fitted.history, fitted.best, notes)


def _weighted(
    taps: Sequence[Tap], student: Program, teacher: Program, settings: Train
) -> list[tuple[Tap, float, bool]]:
    """Taps that count: with their weight, and whether they are attention maps."""
    if not settings.distill:
        return []
    maps = attention_nodes(teacher) & attention_nodes(student)
    found = list(taps)
    if settings.attention and not any(tap.node in maps for tap in taps):
        found += [Tap(name) for name in sorted(maps)]
    weights = [(tap, settings.attention if tap.node in maps else settings.features) for tap in found]
    return [(tap, weight, tap.node in maps) for tap, weight in weights if weight > 0]


def _objective(
    guide: Trainable | None,
    readings: tuple[Reading, ...],
    taps: Sequence[tuple[Tap, float, bool]],
    settings: Train,
    *,
    labels: bool,
) -> Objective:
    """The loss of a batch: against the teacher, against labels, or both."""

    def objective(module: nn.Module, inputs: tuple[Tensor, ...], truth: Tensor | None) -> Tensor:
        outputs, ours = module(*inputs)
        answers: tuple[Tensor, ...] = ()
        theirs: dict[str, Tensor] = {}
        if guide is not None:
            with torch.no_grad():
                answers, theirs = guide(*inputs)
        loss = loss_of(outputs, answers, truth if labels else None, readings, settings.temperature)
        for tap, weight, is_map in taps:
            distance = losses.attention if is_map else losses.features
            loss = loss + weight / len(taps) * distance(ours[tap.node], theirs[tap.node], tap)
        return loss

    return objective


def _one_class_each(reading: Reading, program: Program) -> bool:
    """The labels are one class number for each whole input, which moves of an image do not change."""
    return reading.kind != "values" and len(program.outputs[0].shape) == 2


def _summary(history: Sequence[Epoch], best: Epoch, metric: Metric, settings: Train, *, labels: bool) -> str:
    teachers = [*(["the original network"] if settings.distill else []), *(["labels"] if labels else [])]
    return (
        f"trained for {len(history) - 1} epochs to answer as {' and '.join(teachers)}: {metric.name} "
        f"{history[0].value:.4f} before, {best.value:.4f} after epoch {best.epoch}, whose weights are kept"
    )
