"""Trains a student to answer as its teacher does; labels help where there are some, and are not needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.evaluate import Metric
from edgekit.inputs import Inputs, Training, batch_size, first, input_values, split, tensors
from edgekit.recipe import Train
from edgekit.stages.train import losses
from edgekit.stages.train.augment import augmentation
from edgekit.stages.train.device import device_for, precision_for
from edgekit.stages.train.fit import Epoch, Objective, fit
from edgekit.stages.train.judging import Run, judge, judged_batches
from edgekit.stages.train.losses import Reading, Tap
from edgekit.stages.train.readings import readings_of, usable_labels
from edgekit.stages.train.schedule import schedule_for
from edgekit.stages.train.trainable import Trainable, attention_nodes, to_program, trainable
from edgekit_converters.program import Program

Array = NDArray[Any]
# Share of the labels in the loss beside a teacher, who has said most of what they say already.
LABEL_SHARE: Final = 0.1
# Inputs on which the original network is looked at before training.
_SAMPLES: Final = 256


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
    original = _runner(guide, place, size)
    samples = first(_SAMPLES, (tuple(t.numpy() for t in batch) for batch in inputs.calibration()))
    readings = readings_of(original(samples), metric)
    training, labels, notes = _lessons(inputs.training, settings, readings[0], original)
    precision, said = precision_for(settings.precision, network, tensors(samples), place, readings)
    schedule = schedule_for(settings, network, seed=seed, device=place, precision=precision)
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
        training=training,
        judge=lambda module: judge(judged, _runner(module, place, size), metric),
        higher_is_better=metric.higher_is_better,
        schedule=schedule,
        checkpoint=checkpoint,
        step=step,
        augment=augment,
        metric=metric.name,
    )
    notes = (*notes, *said, *moved, _summary(fitted.history, fitted.best, metric, settings, labels=labels))
    return Trained(to_program(network, student), fitted.history, fitted.best, notes)


def _lessons(
    training: Training | None, settings: Train, reading: Reading, original: Run
) -> tuple[Training, bool, tuple[str, ...]]:
    """What there is to learn from: the samples, whether their labels are used, and notes.

    Raises:
        UsageError: there is nothing.
    """
    if training is None:
        raise UsageError(
            "there is no training data",
            expected="samples to train on: train_x (train_y) or x (y) in an .npz, class folders, or module:callable",
            way_out="Give --data, or leave out what needs training (--prune, --distill).",
        )
    notes: tuple[str, ...] = ()
    used: Training | None = None
    if settings.labels and training.has_labels:
        used, why = usable_labels(training, reading, original, doubted=settings.distill)
        notes = (why,) if why else ()
    if used is None and not settings.distill:
        raise UsageError(
            "training with neither a teacher nor labels: nothing to learn from",
            expected="distill = true, or labels in the training data and labels = true",
            way_out="Set distill = true in [train] of the recipe, or give train_y.",
        )
    return used or training, used is not None, notes


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
        told = losses.hard(outputs[0], truth, readings[0]) if labels and truth is not None else None
        if guide is None:
            assert told is not None
            return told
        with torch.no_grad():
            answers, theirs = guide(*inputs)
        loss = losses.mean_of(
            [
                losses.soft(y, t, reading, settings.temperature)
                for y, t, reading in zip(outputs, answers, readings, strict=True)
            ]
        )
        if told is not None:
            loss = (1 - LABEL_SHARE) * loss + LABEL_SHARE * told
        for tap, weight, is_map in taps:
            distance = losses.attention if is_map else losses.features
            loss = loss + weight / len(taps) * distance(ours[tap.node], theirs[tap.node], tap)
        return loss

    return objective


def _runner(module: Trainable, device: str, size: int) -> Run:
    """A network from arrays to arrays, as it is in evaluation; in batches of a size that memory bears."""

    def run(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        parts = []
        for batch in split(arrays, size):
            with torch.no_grad():
                outputs, _ = module(*(t.to(device) for t in tensors(batch)))
            parts.append([(y.float() if y.is_floating_point() else y).cpu().numpy() for y in outputs])
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    return run


def _one_class_each(reading: Reading, program: Program) -> bool:
    """The labels are one class number for each whole input, which moves of an image do not change."""
    return reading.kind != "values" and len(program.outputs[0].shape) == 2


def _summary(history: Sequence[Epoch], best: Epoch, metric: Metric, settings: Train, *, labels: bool) -> str:
    teachers = [*(["the original network"] if settings.distill else []), *(["labels"] if labels else [])]
    return (
        f"trained for {len(history) - 1} epochs to answer as {' and '.join(teachers)}: {metric.name} "
        f"{history[0].value:.4f} before, {best.value:.4f} after epoch {best.epoch}, whose weights are kept"
    )
