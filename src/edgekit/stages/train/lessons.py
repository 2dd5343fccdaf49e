"""What a network learns from: samples, the original network's answers to them, and labels that can be believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.inputs import Training, split, tensors
from edgekit.recipe import Train
from edgekit.stages.train import losses
from edgekit.stages.train.judging import Run
from edgekit.stages.train.losses import Reading
from edgekit.stages.train.readings import usable_labels

Array = NDArray[Any]
# Share of the labels in the loss beside a teacher, who has said most of what they say already.
LABEL_SHARE: Final = 0.1
# Inputs on which the original network is looked at before training.
SAMPLES: Final = 256


@dataclass(frozen=True)
class Lessons:
    """What there is to learn from.

    Attributes:
        training: samples.
        labels: their labels are used.
        notes: sentences for the report.
    """

    training: Training
    labels: bool
    notes: tuple[str, ...] = ()


def lessons(
    training: Training | None, settings: Train, reading: Reading, original: Run, *, taught: bool, way_out: str
) -> Lessons:
    """Decide what is learned from.

    Args:
        training: samples, None without any.
        settings: whether labels are wanted.
        reading: of the first output.
        original: the network whose answers labels are compared with.
        taught: there is a teacher, so that labels are not needed.
        way_out: what to do without samples.

    Raises:
        UsageError: there is nothing to learn from.
    """
    if training is None:
        raise UsageError(
            "there is no training data",
            expected="samples to train on: train_x (train_y) or x (y) in an .npz, class folders, or module:callable",
            way_out=way_out,
        )
    if settings.labels and training.has_labels:
        used, why = usable_labels(training, reading, original, doubted=taught)
        if used is not None or taught:
            return Lessons(used or training, used is not None, (why,) if why else ())
    if not taught:
        raise UsageError(
            "training with neither a teacher nor labels: nothing to learn from",
            expected="distill = true, or labels in the training data and labels = true",
            way_out="Set distill = true in [train] of the recipe, or give train_y.",
        )
    return Lessons(training, labels=False)


def loss_of(
    outputs: Sequence[Tensor],
    answers: Sequence[Tensor],
    truth: Tensor | None,
    readings: Sequence[Reading],
    temperature: float,
) -> Tensor:
    """Distance from a teacher's answers and, where they are given, from labels.

    Args:
        outputs: of the student.
        answers: of the teacher; none without one.
        truth: labels of the first output.
        readings: of the outputs.
        temperature: of softened logits.
    """
    told = None if truth is None else losses.hard(outputs[0], truth, readings[0])
    if not answers:
        assert told is not None
        return told
    pairs = zip(outputs, answers, readings, strict=True)
    taught = losses.mean_of([losses.soft(y, t, reading, temperature) for y, t, reading in pairs])
    return taught if told is None else (1 - LABEL_SHARE) * taught + LABEL_SHARE * told


def runner(network: Callable[..., Sequence[Tensor]], device: str, size: int) -> Run:
    """A network from arrays to arrays, without gradients, in batches of a size that memory bears."""

    def run(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        parts = []
        for batch in split(arrays, size):
            with torch.no_grad():
                outputs = network(*(t.to(device) for t in tensors(batch)))
            parts.append([(y.float() if y.is_floating_point() else y).cpu().numpy() for y in outputs])
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    return run
