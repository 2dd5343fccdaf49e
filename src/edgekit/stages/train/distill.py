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
from edgekit.inputs import Inputs
from edgekit.recipe import Train
from edgekit.stages.train import losses
from edgekit.stages.train.course import Course, course_for
from edgekit.stages.train.device import precision_for
from edgekit.stages.train.fit import Epoch, Fitted, Objective
from edgekit.stages.train.lessons import loss_of
from edgekit.stages.train.losses import Tap
from edgekit.stages.train.schedule import schedule_for
from edgekit.stages.train.trainable import attention_nodes, to_program, trainable
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
    weighted = _weighted(taps, student, teacher, settings)
    names = [tap.node for tap, _, _ in weighted]
    course = course_for(
        teacher,
        names,
        inputs,
        metric,
        settings,
        taught=settings.distill,
        way_out="Give --data, or leave out what needs training (--prune, --distill).",
        device=device,
    )
    network = trainable(student, names, course.device)
    precision, said = precision_for(
        settings.precision, network, course.samples, course.device, course.readings
    )
    fitted = course.fit(
        network,
        _objective(course, weighted, settings),
        lambda module, *x: module(*x)[0],
        schedule_for(
            settings,
            network,
            samples=course.training.n,
            seed=seed,
            device=course.device,
            precision=precision,
        ),
        checkpoint=checkpoint,
        step=step,
        table="train",
    )
    notes = (*course.notes, *said, _summary(fitted, metric, settings, labels=course.labels))
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


def _objective(course: Course, taps: Sequence[tuple[Tap, float, bool]], settings: Train) -> Objective:
    """The loss of a batch: against the teacher, against labels, or both."""

    def objective(module: nn.Module, inputs: tuple[Tensor, ...], truth: Tensor | None) -> Tensor:
        outputs, ours = module(*inputs)
        answers: tuple[Tensor, ...] = ()
        theirs: dict[str, Tensor] = {}
        if settings.distill:
            with torch.no_grad():
                answers, theirs = course.guide(*inputs)
        told = truth if course.labels else None
        loss = loss_of(outputs, answers, told, course.readings, settings.temperature)
        for tap, weight, is_map in taps:
            distance = losses.attention if is_map else losses.features
            loss = loss + weight / len(taps) * distance(ours[tap.node], theirs[tap.node], tap)
        return loss

    return objective


def _summary(fitted: Fitted, metric: Metric, settings: Train, *, labels: bool) -> str:
    history, best = fitted.history, fitted.best
    teachers = [*(["the original network"] if settings.distill else []), *(["labels"] if labels else [])]
    return (
        f"trained for {len(history) - 1} epochs to answer as {' and '.join(teachers)}: {metric.name} "
        f"{history[0].value:.4f} before, {best.value:.4f} after epoch {best.epoch}, whose weights are kept"
    )
